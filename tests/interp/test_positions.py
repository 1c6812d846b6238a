"""sae_lm.interp.positions: which positions a splice leaves alone, in forward passes of any shape."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import sae_lm
from sae_lm.data.tokens import special_tokens
from sae_lm.errors import SaeError
from sae_lm.interp.positions import special_ids

pytestmark = pytest.mark.transformer_lens_3

IDS = torch.tensor([[0, 5, 9, 33, 0, 12], [0, 8, 8, 250, 3, 44]])


@pytest.fixture(scope="module")
def model(tiny_model):
    return sae_lm.load_model(str(tiny_model), device="cpu")


@pytest.fixture
def sae(make_sae):
    return make_sae(d_in=16, d_sae=32)


def after(model, ids=IDS):
    return model.run_with_cache(ids, names_filter="blocks.2.hook_in")[1]["blocks.2.hook_in"]


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ("special", IDS == 0),
        ([0, 8], (IDS == 0) | (IDS == 8)),
        ({33}, IDS == 33),
        (lambda tokens: tokens > 40, IDS > 40),
        (IDS == 5, IDS == 5),
        (None, torch.zeros_like(IDS) > 0),
        ([], torch.zeros_like(IDS) > 0),
    ],
    ids=["special", "list", "set", "function", "mask", "none", "nothing"],
)
def test_each_way_to_say_what_is_kept_is_a_plain_mask(model, sae, keep, left):
    clean = after(model)
    with sae_lm.splice(model, sae, keep=keep):
        got = after(model)
    assert torch.equal(got, torch.where(left[..., None], clean, sae(clean)))


def test_special_tokens_are_left_alone_unless_told_otherwise(model, sae):
    with sae_lm.splice(model, sae):
        default = after(model)
    with sae_lm.splice(model, sae, keep="special"):
        assert torch.equal(after(model), default)


def with_tokenizer(tokenizer, **config):
    return SimpleNamespace(tokenizer=tokenizer, original_model=SimpleNamespace(config=SimpleNamespace(**config)))


def test_special_tokens_are_those_of_the_store_chat_marks_among_them_whatever_the_configuration_names(model):
    tokenizer = AutoTokenizer.from_pretrained(model.tokenizer.name_or_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens(["an_added_word"])
    chat = tokenizer.convert_tokens_to_ids("<|im_start|>")
    other = with_tokenizer(tokenizer, bos_token_id=1, eos_token_id=[0, 7], pad_token_id=11)
    assert special_ids(model) == [0]
    assert special_ids(other) == sorted({*special_tokens(tokenizer, prepend_bos=True).ids}) == [0, chat]


def test_an_unknown_token_that_stands_for_text_is_not_special():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "fox": 2}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", cls_token="[CLS]")
    other = with_tokenizer(tokenizer, bos_token_id=0)
    assert special_ids(other) == sorted({*special_tokens(tokenizer, prepend_bos=True).ids}) == [1]


def test_without_a_tokenizer_special_tokens_are_those_of_the_configuration():
    assert special_ids(with_tokenizer(None, bos_token_id=None, eos_token_id=[7, 9], pad_token_id=11)) == [7, 9, 11]
    assert special_ids(SimpleNamespace(tokenizer=None, original_model=None)) == []


def test_rules_fit_passes_of_any_shape_and_of_hugging_faces_generation(model, sae):
    with sae_lm.splice(model, sae, keep="special"):
        for ids in (IDS[:, :1], IDS[:1], IDS.repeat(2, 1)):
            after(model, ids)
        step = after(model, torch.tensor([[0], [8]]))
    clean = after(model, torch.tensor([[0], [8]]))
    assert torch.equal(step[0], clean[0])
    torch.testing.assert_close(step[1], sae(clean[1]))  # a product of one row may end in other bits than one of two


@pytest.mark.parametrize("keep", ["bos", 3, [0.5], [True, False], IDS])
def test_what_says_nothing_about_positions_is_refused_in_a_sentence(model, sae, keep):
    with (
        pytest.raises(SaeError, match='keep is .*; expected "special", token ids'),
        sae_lm.splice(model, sae, keep=keep),
    ):
        pass


def test_a_mask_of_another_shape_names_what_fits_any(model, sae):
    with sae_lm.splice(model, sae, keep=IDS == 0), pytest.raises(SaeError, match="for generation give keep"):
        model.generate(IDS, max_new_tokens=3, do_sample=False, verbose=False, stop_at_eos=False)


def test_a_function_that_returns_no_mask_is_refused(model, sae):
    with sae_lm.splice(model, sae, keep=lambda tokens: tokens), pytest.raises(SaeError, match="returned torch.int64"):
        model(IDS)


def test_a_pass_without_token_ids_does_not_take_those_of_the_pass_before(model, sae):
    embeddings = model.original_model.get_input_embeddings()(IDS)
    with sae_lm.splice(model, sae):
        model(IDS)
        with pytest.raises(SaeError, match="was given no token ids"):
            model.original_model(inputs_embeds=embeddings)
