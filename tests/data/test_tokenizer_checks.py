"""Tokenizers that do not go with the model or the text, and tokens that are special: told, left out, counted."""

import json
import shutil
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version

import pytest
import torch
from transformers import AutoTokenizer

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.data.recipe import describe_recipe
from sae_lm.data.text import open_text
from sae_lm.data.tokenizer_checks import lost_letters
from sae_lm.data.tokens import special_tokens
from sae_lm.data.writer import open_writer
from sae_lm.errors import ModelError, SettingsError, StoreError, TextError
from sae_lm.lm.source import find_model, load_tokenizer

CHAT = [{"role": "user", "content": "the quick fox"}, {"role": "assistant", "content": "jumps over lazy dogs"}]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def chat_model(tiny_model, tmp_path):
    """The tiny model with marks of chats in place of two tokens that its text never needs."""
    folder = shutil.copytree(tiny_model, tmp_path / "chat-model")
    content = json.loads((folder / "tokenizer.json").read_text())
    words = {token: index for token, index in content["model"]["vocab"].items() if index < 280}
    content["model"]["vocab"] = words
    content["model"]["merges"] = [merge for merge in content["model"]["merges"] if "".join(merge) in words]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def marked_text(tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_text((json.dumps({"text": "<|im_start|>the quick fox<|im_end|> lazy dogs " * 6}) + "\n") * 30)
    return path


def test_marks_of_chats_have_no_rows_unless_they_are_kept(cache_settings, chat_model, marked_text, tmp_path, capsys):
    common = {"model": str(chat_model), "text": str(marked_text), "tokens": 900}
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "store", **common)))
    said = capsys.readouterr().out
    marks = {store.vocabulary.index("<|im_start|>"), store.vocabulary.index("<|im_end|>")}
    assert set(store.manifest.recipe.other_special) == marks
    assert not marks & set(store.tokens()["token_id"].tolist())
    blocks = store.blocks()
    assert marks <= set(blocks.flatten().tolist())
    assert store.special(blocks)[torch.isin(blocks, torch.tensor(list(marks)))].all()
    special = sum(shard.special_tokens for shard in store.manifest.shards)
    assert special == int(store.special(blocks).sum()) > len(blocks)
    assert f"{special:,} special tokens have no row" in said and "--keep-special" in said
    kept = sae_lm.open_store(cache(cache_settings(tmp_path / "kept", keep_special=True, **common)))
    assert marks <= set(kept.tokens()["token_id"].tolist())


def test_a_store_of_before_says_what_differs_and_is_repaired_as_it_was(
    cache_settings, chat_model, marked_text, tmp_path, monkeypatch
):
    """Stores in which marks of chats have rows stay whole; the same command does not take one for its own."""
    import sae_lm.data.tokens as tokens
    from sae_lm.data.repair import repair

    settings = cache_settings(tmp_path / "store", model=str(chat_model), text=str(marked_text), tokens=900)
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "special_token_ids", lambda tokenizer: set())
        cache(settings)
    assert "other_special" not in (settings.out / "manifest.json").read_text()
    before = (settings.out / "tokens/00001.safetensors").read_bytes()
    with pytest.raises(StoreError, match=r"other_special is null, asked for \[280, 281\]"):
        cache(settings)
    (settings.out / "tokens/00001.safetensors").unlink()
    repair(settings.out, str(chat_model), str(marked_text))
    assert (settings.out / "tokens/00001.safetensors").read_bytes() == before


def test_a_model_with_no_special_tokens_but_its_own_has_the_recipe_it_always_had(tiny_store):
    recipe = json.loads((tiny_store / "manifest.json").read_text())["recipe"]
    assert "other_special" not in recipe and recipe["bos"] == recipe["separator"] == 0


def test_an_unknown_token_that_stands_for_text_is_not_special():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "[SEP]": 2, "[MASK]": 3, "fox": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"unk_token": "[UNK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **marks)
    special = special_tokens(tokenizer, False)
    assert (special.bos, special.separator, special.others) == (None, 2, (1, 3))
    assert lost_letters("fox dog", tokenizer) == 0.5
    assert special_tokens(load_tokenizer(find_model("embedded")), True).others == ()


def test_berts_unknown_token_stands_for_text_though_its_normaliser_drops_odd_characters():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["pad", "unk", "cls", "sep", "mask"]
    words = {word: index for index, word in enumerate([*(f"[{name.upper()}]" for name in names), "fox"])}
    bert = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    bert.normalizer, bert.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bert, **{f"{name}_token": f"[{name.upper()}]" for name in names}
    )
    assert tokenizer("9", add_special_tokens=False)["input_ids"] == [1]
    assert special_tokens(tokenizer, True) == (2, 3, (0, 4))


def test_a_token_beyond_the_embedding_is_named_before_the_run(cache_settings, tiny_model, tmp_path, capsys):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = load_tokenizer(find_model(str(folder)))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    path = tmp_path / "new.jsonl"
    path.write_text((json.dumps({"text": "the quick brown fox " * 30}) + "\n") * 3 + '{"text": "a <new> dog"}\n')
    settings = cache_settings(tmp_path / "store", model=str(folder), text=str(path), tokens=100)
    cache(settings)  # the text up to there is cached
    assert "beyond the model's embedding of 300 rows: '<new>' (id 300)" in capsys.readouterr().err
    path.write_text('{"text": "a <new> dog and more of it, and more and more"}\n')
    with pytest.raises(ModelError, match=r"document 0 of text 'new.jsonl' has token '<new>' with id 300, .* 300 rows"):
        cache(cache_settings(tmp_path / "other", model=str(folder), text=str(path), tokens=10))
    tokenizer.eos_token = "<new>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"separator of documents\) has token '<new>' with id 300"):
        cache(cache_settings(tmp_path / "other", model=str(folder), text=str(path), tokens=10))


def test_a_text_that_the_tokenizer_loses_is_told_once(cache_settings, tiny_model, text_file, tmp_path, capsys):
    cache(cache_settings(tmp_path / "fine", tokens=50))
    assert "note:" not in capsys.readouterr().err
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "o"}, "content": "-"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    cache(cache_settings(tmp_path / "store", model=str(folder), tokens=50))
    said = capsys.readouterr().err
    assert said.count("note: the tokenizer loses") == 1 and "'documents.jsonl'" in said


def test_positions_of_padding_are_not_the_contexts(tiny_model, cache_settings, tmp_path):
    if version("transformer-lens").startswith("3."):
        pytest.skip("TransformerLens 3 boots no RoBERTa")
    """RoBERTa counts positions from behind the padding's id: of 34 position embeddings 32 are for tokens."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    folder = tmp_path / "roberta"
    small = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    RobertaForMaskedLM(
        RobertaConfig(vocab_size=300, max_position_embeddings=34, pad_token_id=1, **small)
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    common = {"model": str(folder), "hooks": "0", "tokens": 60}
    with pytest.raises(
        SettingsError, match=r"at most 32 tokens \(34 position embeddings, of which 2 are for padding\)"
    ):
        cache(cache_settings(tmp_path / "store", context_size=33, **common))
    assert len(sae_lm.open_store(cache(cache_settings(tmp_path / "store", context_size=32, **common)))) == 60


def test_a_model_that_sees_is_cached_by_the_language_model_within(tiny_model, cache_settings, tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    folder = tmp_path / "gemma"
    small = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**small, "image_size": 8, "patch_size": 4}
    text = {**small, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 300, "max_position_embeddings": 64}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "store", model=str(folder), hooks="0,1", tokens=60)))
    model = store.manifest.recipe.model
    assert (model["architecture"], model["n_layers"], model["d_model"]) == ("Gemma3ForConditionalGeneration", 2, 16)
    assert store.hooks == {"blocks.0.hook_out": 16, "blocks.1.hook_out": 16}
    with pytest.raises(SettingsError, match="at most 64 tokens"):
        cache(cache_settings(tmp_path / "long", model=str(folder), hooks="0", tokens=60, context_size=65))


def test_chats_are_written_by_the_tokenizers_template(cache_settings, chat_model, tiny_model, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text((json.dumps({"messages": CHAT, "n": 3}) + "\n") * 20)
    store = sae_lm.open_store(
        cache(cache_settings(tmp_path / "store", model=str(chat_model), text=str(path), tokens=60))
    )
    shown = "".join(store.vocabulary[token] for token in store.blocks()[0].tolist())
    assert "<|im_start|>user\nthe" in shown
    with pytest.raises(TextError, match="the tokenizer has no chat template"):
        cache(cache_settings(tmp_path / "none", model=str(tiny_model), text=str(path), tokens=60))
    path.write_text('{"messages": [{"from": "user", "value": "x"}]}\n')
    with pytest.raises(TextError, match="no column holds text, chats or token ids, got columns messages"):
        cache(cache_settings(tmp_path / "none", model=str(chat_model), text=str(path), tokens=60))


def test_a_store_of_chats_is_of_one_chat_template_and_others_know_nothing_of_it(
    cache_settings, chat_model, marked_text, tmp_path
):
    path = tmp_path / "chats.jsonl"
    path.write_text((json.dumps({"messages": CHAT}) + "\n") * 20)
    of_chats = cache_settings(tmp_path / "store", model=str(chat_model), text=str(path), tokens=60)
    of_text = cache_settings(tmp_path / "plain", model=str(chat_model), text=str(marked_text), tokens=60)
    cache(of_chats), cache(of_text)
    assert "chat_template_sha256" not in sae_lm.open_store(of_text.out).manifest.recipe.text
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = TEMPLATE.replace("user", "person") + "end"
    tokenizer.save_pretrained(chat_model)
    with pytest.raises(StoreError, match="holds another store: text.chat_template_sha256 is"):
        cache(of_chats)
    cache(of_text)


@contextmanager
def clock_at(year, month, day):
    """In which chat templates are told that it is this day."""
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(year, month, day)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Clock)
        yield


def chats_of(folder, path):
    """Documents and facts of a text, as the tokenizer of a folder writes its chats."""
    text = open_text(str(path)).with_chats_of(AutoTokenizer.from_pretrained(folder))
    return list(text.documents()), text.facts()


DATED = """  {% macro head() %}{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d') }}{% endmacro %}

  {% if strftime_now is defined %}It is {{ head() }}.{% endif %}
"""


@pytest.mark.parametrize("several", [False, True])
def test_chats_whose_template_writes_a_date_are_the_same_on_every_day(chat_model, tmp_path, several):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = {"default": DATED + TEMPLATE, "tool_use": TEMPLATE} if several else DATED + TEMPLATE
    tokenizer.save_pretrained(chat_model)
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + "\n")
    with clock_at(2026, 1, 2):
        written, facts = chats_of(chat_model, path)
    with clock_at(2027, 3, 4):
        assert chats_of(chat_model, path) == (written, facts)
    with clock_at(2024, 7, 26):
        assert written == [tokenizer.apply_chat_template(CHAT, tokenize=False)]
    assert "It is 26 Jul 2024 2024-07-26." in written[0] and facts["chat_day"] == "2024-07-26"


def test_a_text_knows_of_a_day_only_where_its_chats_ask_for_one(chat_model, tmp_path):
    chats, plain = tmp_path / "chats.jsonl", tmp_path / "plain.jsonl"
    chats.write_text(json.dumps({"messages": CHAT}) + "\n")
    plain.write_text('{"text": "the quick fox"}\n')
    assert "chat_day" not in chats_of(chat_model, chats)[1]
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = DATED + TEMPLATE
    tokenizer.save_pretrained(chat_model)
    assert "chat_day" not in chats_of(chat_model, plain)[1] and "chat_day" in chats_of(chat_model, chats)[1]


def test_half_a_character_in_a_chat_is_one_sentence(chat_model, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "\\ud800 alone"}]}\n')
    with pytest.raises(TextError, match="chats.jsonl: cannot be read, UnicodeEncodeError: [^;]*$"):
        chats_of(chat_model, path)


@pytest.mark.parametrize(
    ("row", "prepend", "told"),
    [
        ({"messages": CHAT}, True, True),
        ({"messages": CHAT}, False, False),
        ({"input_ids": [280, 5, 6, 7] * 9}, True, True),
        ({"input_ids": [5, 6, 7] * 9}, True, False),
    ],
)
def test_documents_that_bring_their_own_bos_are_told_of_unless_contexts_have_none(
    cache_settings, chat_model, tmp_path, capsys, row, prepend, told
):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(chat_model)
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * 20)
    cache(cache_settings(tmp_path / "store", model=str(chat_model), text=str(path), tokens=60, prepend_bos=prepend))
    said = capsys.readouterr().err
    assert ("begin with the token '<|im_start|>' that every context is given as well" in said) == told


def test_empty_lists_of_messages_or_ids_are_left_out_as_empty_text_is(cache_settings, chat_model, tmp_path):
    path = tmp_path / "rows.jsonl"
    for column, value in (("messages", CHAT), ("input_ids", [5, 6, 7] * 9)):
        path.write_text("".join(json.dumps({column: v}) + "\n" for v in [[], *[value] * 20, [], *[value] * 20, []]))
        settings = cache_settings(tmp_path / column, model=str(chat_model), text=str(path), tokens=200)
        assert len(sae_lm.open_store(cache(settings))) == 200


@pytest.mark.parametrize("wrong", [2**31, 3_000_000_000, 10**30, -(10**12)])
def test_a_token_id_beyond_all_vocabularies_is_one_sentence(cache_settings, tiny_model, tmp_path, wrong):
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps({"input_ids": [5, 6, wrong]}) + "\n") * 20)
    with pytest.raises(TextError, match=f"column 'input_ids' has the token id {wrong}, expected ids"):
        cache(cache_settings(tmp_path / "store", model=str(tiny_model), text=str(path), tokens=60))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_token_ids_are_taken_as_they_are_after_a_check(cache_settings, text_file, tiny_model, tmp_path, suffix):
    import pyarrow.parquet

    def written(name, rows):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)

    tokenizer = load_tokenizer(find_model(str(tiny_model)))
    texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = [[*row, 0] if number % 2 else row for number, row in enumerate(ids)]  # some end with their separator
    rows = [{"input_ids": row, "length": len(row)} for row in ids]
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "ids", text=written("ids", rows))))
    plain = sae_lm.open_store(cache(cache_settings(tmp_path / "plain")))
    assert torch.equal(store.blocks(), plain.blocks()) and torch.equal(store.rows("0"), plain.rows("0"))
    for bad in (300, -100):
        with pytest.raises(ModelError, match=rf"document 0 of text 'bad.{suffix}' has token id {bad}, .* 300 rows"):
            cache(cache_settings(tmp_path / f"bad{bad}", text=written("bad", [{"input_ids": [5, bad] * 20}]), tokens=9))


def test_recipes_are_described_for_every_tokenizer_of_this_file(cache_settings, chat_model, tmp_path):
    settings = cache_settings(tmp_path, model=str(chat_model))
    with open_writer(settings) as maker:
        again = describe_recipe(settings, maker.forward, find_model(str(chat_model)), maker.text, maker.tokenizer)
    assert again == maker.recipe
