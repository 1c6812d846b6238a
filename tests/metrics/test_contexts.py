"""Contexts to measure an SAE on are those of ``sae-lm cache``: its tokenizer, its mask, its BOS, its limit."""

import shutil
from pathlib import Path

import pytest
import tiny_models
import torch

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.commands.check import _model_rows, check
from sae_lm.errors import HubError, SettingsError, TextError
from sae_lm.metrics.contexts import contexts_of

pytestmark = pytest.mark.transformer_lens_3

HOOK = "blocks.1.hook_out"


@pytest.fixture(scope="module")
def model(tiny_model):
    return sae_lm.load_model(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder of a tiny BERT whose tokenizer knows [CLS] and [SEP], no BOS and no EOS."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder, names = tmp_path_factory.mktemp("bert"), ["pad", "unk", "cls", "sep", "mask"]
    letters = [sign + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789.:" for sign in ("", "##")]
    words = [*(f"[{name.upper()}]" for name in names), *letters]
    pieces = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    marks = {f"{name}_token": f"[{name.upper()}]" for name in names}
    PreTrainedTokenizerFast(tokenizer_object=pieces, **marks).save_pretrained(folder / "tokenizer")
    return tiny_models.save("BertForMaskedLM", folder / "model", folder / "tokenizer")


@pytest.fixture(scope="module")
def without_bos(tiny_model, tmp_path_factory):
    """A model whose tokenizer knows no BOS, as Qwen's."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("none") / "model")
    for file in folder.glob("*token*"):
        file.unlink()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    return sae_lm.load_model(str(folder), device="cpu")


def test_a_text_is_cut_and_run_as_it_is_cached(bert, cache_settings, text_file, make_sae, tmp_path):
    common = {"model": str(bert), "hooks": HOOK, "pack": False, "tokens": 900, "context_size": 50}
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "store", **common)))
    model = sae_lm.load_model(str(bert), device="cpu")
    stop = store.manifest.contexts - 1  # of the last context the store may have a part
    ids, rowless = store.blocks(0, stop).long(), store.rowless(0, stop)
    columns = store.tokens()
    rows = store.rows(HOOK)[columns["context"] < stop]
    of_text = contexts_of(model, str(text_file), stop * 50, 50)
    assert (of_text.tokens[0, 0], of_text.bos) == (2, True) and of_text.mask is not None
    assert torch.equal(of_text.tokens[:stop], ids) and torch.equal(of_text.special[:stop], rowless)
    of_store = contexts_of(model, store, 10**6)
    for contexts in (of_text, of_store):
        cut = contexts._replace(tokens=ids, special=rowless, mask=contexts.mask[:stop])
        found = _model_rows(model, make_sae(d_in=16), HOOK, cut)[HOOK]
        torch.testing.assert_close(found, rows, rtol=1e-3, atol=1e-4)


def test_of_a_model_that_looks_ahead_no_loss_of_the_next_token_is_given(bert, model, make_sae):
    found = check(sae_lm.load_model(str(bert), device="cpu"), make_sae(d_in=16), ["the quick brown fox"])
    assert found.losses is None and "nats" not in found.verdict
    assert [remark for remark in found.remarks if "left out" in remark] == [
        "Cross-entropy is left out: this model's predictions change with tokens that come after them."
    ]
    assert check(model, make_sae(d_in=16), ["the quick brown fox"]).losses is not None


def test_contexts_begin_with_a_bos_where_the_tokenizer_has_one_and_the_sae_was_trained_so(model, without_bos):
    text = ["the quick brown fox jumps over lazy dogs"]
    assert contexts_of(model, text, 100, 16).tokens[0, 0] == 0
    trained = contexts_of(model, text, 100, 16, {"prepend_bos": False})
    assert trained.tokens[0, 0] != 0 and not trained.bos
    assert not contexts_of(without_bos, text, 100, 16, {"prepend_bos": True}).bos


def test_an_sae_trained_with_a_bos_that_there_is_none_of_is_remarked(without_bos, make_sae):
    found = check(without_bos, make_sae(d_in=16), ["the quick brown fox jumps over lazy dogs"])
    assert "The SAE was trained on contexts that begin with a BOS, here none does." in found.remarks


def test_contexts_are_as_long_as_the_sae_was_trained_on_unless_that_is_said_or_too_long(model, text_file):
    def size(given=None, **trained):
        return contexts_of(model, str(text_file), 100, given, trained).tokens.shape[1]

    assert (size(), size(context_size=20), size(context_size=1024)) == (32, 20, 32)
    assert (size(16, context_size=20), size(context_size=None)) == (16, 32)


def test_contexts_beyond_the_models_positions_are_one_sentence(model, tiny_store, monkeypatch):
    with pytest.raises(
        SettingsError, match="context_size is 33, the model takes at most 32 tokens; give --context-size 32"
    ):
        contexts_of(model, "embedded", 100, 33)
    monkeypatch.setattr(model.original_model.config, "n_positions", 8)
    with pytest.raises(SettingsError, match="have 16 tokens, the model takes at most 8 tokens; give the model that"):
        contexts_of(model, sae_lm.open_store(tiny_store), 100)


def test_short_documents_give_as_many_tokens_in_long_contexts_as_in_usual_ones(without_bos, monkeypatch):
    monkeypatch.setattr("sae_lm.metrics.contexts.CONTEXT_SIZE", 8)
    texts = ["the quick brown fox"] * 50
    usual, long = (contexts_of(without_bos, texts, 64, size) for size in (8, 32))
    assert len(usual.tokens) == 8 and len(long.tokens) == 8


@pytest.mark.parametrize("named", ["{there}", "~/My Texts/book.txt", Path("~/My Texts/book.txt")])
def test_a_path_with_spaces_or_a_tilde_is_read_and_not_measured_itself(model, tmp_path, monkeypatch, named):
    monkeypatch.setenv("HOME", str(tmp_path))
    book = tmp_path / "My Texts" / "book.txt"
    book.parent.mkdir()
    book.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    found = contexts_of(model, str(book) if named == "{there}" else named, 300, 16)
    assert torch.equal(found.tokens, contexts_of(model, [book.read_text()], 300, 16).tokens)


@pytest.mark.parametrize(
    "named", ["My Texts/bok.txt", "~/My Texts", "./my texts", "/a b/c", "~nosuch/x y", "book.jsonl", "my book.csv.gz"]
)
def test_a_path_that_is_not_there_is_told_and_not_measured(model, named):
    with pytest.raises(TextError, match="no such file or folder"):
        contexts_of(model, named, 300, 16)


@pytest.mark.parametrize("named", ["a/b/c", "someone/lines:en:fr", "https://host/text"])
def test_what_reads_like_a_hub_id_or_an_address_is_looked_up(model, named):
    with pytest.raises(HubError):
        contexts_of(model, named, 300, 16)


@pytest.mark.parametrize(
    "text",
    ["The quick brown fox.", "快速的棕色狐狸跳过懒狗。" * 4, "A line\n/and/another", "/ is a slash", "fox." * 99],
)
def test_a_string_that_reads_like_no_name_is_a_text(model, text):
    assert torch.equal(contexts_of(model, text, 60, 16).tokens, contexts_of(model, [text], 60, 16).tokens)
