"""sae_lm.generate: the same text with and without kept keys and values, as Hugging Face has it, and with SAEs in it."""

import warnings
from inspect import unwrap

import pytest
import tiny_models
import torch

import sae_lm
from sae_lm.errors import SaeError, SettingsError
from sae_lm.lm import bridge
from sae_lm.lm.source import find_model

pytestmark = pytest.mark.transformer_lens_3

PROMPT = torch.tensor([[0, 5, 9, 33, 70, 12], [0, 8, 8, 250, 3, 44]])
HOW = {"max_new_tokens": 10, "stop_at_eos": False}


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    """That keys and values are lost under some versions is told in every test; one looks at it."""


@pytest.fixture(scope="module", params=sorted(tiny_models.ARCHITECTURES))
def folder(request, tmp_path_factory, tiny_model):
    return tiny_models.save(request.param, tmp_path_factory.mktemp(request.param), tiny_model)


@pytest.fixture(scope="module")
def model(folder):
    return sae_lm.load_model(str(folder), device="cpu")


def hugging_face(folder, prompt):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    plain.generation_config.eos_token_id = None
    return plain.generate(prompt, max_new_tokens=10, do_sample=False, attention_mask=torch.ones_like(prompt))


def test_greedy_text_is_hugging_faces_with_and_without_kept_keys_and_without_our_function(model, folder):
    expected = hugging_face(folder, PROMPT)
    for kept in (True, False):
        assert torch.equal(sae_lm.generate(model, PROMPT, use_past_kv_cache=kept, **HOW), expected)
    assert torch.equal(model.generate(PROMPT, do_sample=False, verbose=False, **HOW), expected)


def test_what_an_sae_does_to_generation_is_what_it_does_to_whole_passes(model, make_sae):
    sae = make_sae(d_in=16, d_sae=24)
    steering = sae_lm.Steer(3, "add", strength=4.0, largest=1.0)
    for options in ({}, {"steering": steering}, {"keep": None}, {"keep": [0, 8], "error_term": True}):
        tokens = PROMPT
        with sae_lm.splice(model, sae, **options):
            for _ in range(10):
                tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
            inside = model.generate(PROMPT, do_sample=False, verbose=False, **HOW)
        assert torch.equal(sae_lm.generate(model, PROMPT, sae, **options, **HOW), tokens)
        assert torch.equal(inside, tokens)
    assert not torch.equal(
        sae_lm.generate(model, PROMPT, sae, steering=steering, **HOW), sae_lm.generate(model, PROMPT, **HOW)
    )


def test_with_the_error_term_and_no_edit_the_text_is_the_models_own(model, make_sae):
    own = sae_lm.generate(model, PROMPT, **HOW)
    assert torch.equal(sae_lm.generate(model, PROMPT, make_sae(d_in=16), error_term=True, **HOW), own)


def test_whether_keys_are_kept_is_found_by_trying_and_not_by_versions(folder, monkeypatch):
    model = bridge.boot(find_model(str(folder)), device="cpu", dtype=torch.float32)
    how = {"max_new_tokens": 2, "do_sample": False, "stop_at_eos": False, "verbose": False, "output_logits": True}
    kept, plain = (model.generate(PROMPT, use_past_kv_cache=k, **how).logits[-1] for k in (True, False))
    assert bridge.remembers(model) == torch.allclose(kept, plain, rtol=1e-3, atol=1e-3)
    assert model.adapter.supports_kv_cache == bridge.remembers(model)
    monkeypatch.setattr(bridge, "_same_with_kept_keys", lambda bridge: pytest.fail("tried twice"))
    bridge.remembers(model)


def test_the_trial_of_kept_keys_is_no_pass_of_the_users(folder):
    model = bridge.boot(find_model(str(folder)), device="cpu", dtype=torch.float32)
    seen = []
    with model.hooks(fwd_hooks=[("blocks.0.hook_in", lambda x, hook: seen.append(x.shape))]):
        bridge.remembers(model)
        assert not seen
        model(PROMPT)
    assert len(seen) == 1


def test_a_cache_that_is_never_filled_is_found(tmp_path, tiny_model, monkeypatch):
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    folder = tiny_models.save("GPTNeoXForCausalLM", tmp_path, tiny_model)
    assert bridge.remembers(sae_lm.load_model(str(folder), device="cpu"))
    monkeypatch.setattr(AttentionBridge, "_update_kv_cache", lambda self, k, v, **keywords: (k, v))
    model = sae_lm.load_model(str(folder), device="cpu")
    assert not bridge.remembers(model)
    assert torch.equal(model.generate(PROMPT, do_sample=False, verbose=False, **HOW), hugging_face(folder, PROMPT))


def test_a_model_that_forgets_is_told_of_in_one_sentence_and_one_that_does_not_keeps_its_cache(model, monkeypatch):
    seen = []
    own = type(model).generate
    monkeypatch.setattr(
        type(model),
        "generate",
        lambda self, *a, **k: (seen.append(k.get("use_past_kv_cache", True)), own(self, *a, **k))[1],
    )
    for works in (True, False):
        monkeypatch.setitem(bridge._REMEMBERS, model, works)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            sae_lm.generate(model, PROMPT, max_new_tokens=2)
        told = [str(one.message) for one in said if "TransformerLens loses" in str(one.message)]
        assert len(told) == (not works) and seen[-1] == works


@pytest.fixture
def reader(model):
    """A model that has an embedding for each token its tokenizer makes, of those that TransformerLens adds too."""
    if len(model.tokenizer) > model.cfg.d_vocab:
        pytest.skip("the tokenizer has more tokens than the model")
    return model


def test_text_gives_text_and_lists_give_lists(reader, make_sae):
    sae = make_sae(d_in=16)
    one = sae_lm.generate(reader, "The quick brown fox", sae, max_new_tokens=4)
    several = sae_lm.generate(reader, ["The quick brown fox", "dogs"], sae, max_new_tokens=4)
    assert isinstance(one, str) and one.startswith("The quick brown fox") and len(several) == 2


def test_a_batch_with_left_padding_is_each_prompt_on_its_own(reader, make_sae):
    sae = make_sae(d_in=16)
    texts = ["The quick brown fox jumps", "lazy dogs"]
    together = sae_lm.generate(reader, texts, sae, max_new_tokens=6, stop_at_eos=False)
    assert together == [sae_lm.generate(reader, text, sae, max_new_tokens=6, stop_at_eos=False) for text in texts]


def test_masks_and_steering_of_nothing_are_refused(model, make_sae):
    with pytest.raises(SaeError, match="keep is a mask"):
        sae_lm.generate(model, PROMPT, make_sae(d_in=16), keep=PROMPT == 0)
    with pytest.raises(SaeError, match="no SAE was given"):
        sae_lm.generate(model, PROMPT, steering=sae_lm.Steer(1, largest=1.0))


@pytest.mark.parametrize("number", [0, -1, 2.5, True])
def test_a_number_of_tokens_that_is_none_is_refused(model, number):
    generate = unwrap(sae_lm.generate)  # without the tests' own check of annotations
    with pytest.raises(SettingsError, match=f"max_new_tokens is {number}, expected a whole number"):
        generate(model, PROMPT, max_new_tokens=number)


@pytest.mark.parametrize("prompt", [[1, 2], [], 3, [[1, 2]]])
def test_a_prompt_that_is_no_text_and_no_tensor_is_refused(model, prompt):
    generate = unwrap(sae_lm.generate)
    with pytest.raises(SettingsError, match="the prompt is neither text"):
        generate(model, prompt)


def test_token_ids_may_be_of_one_prompt_alone_and_other_shapes_are_refused(model, make_sae):
    for saes in (None, make_sae(d_in=16)):
        assert torch.equal(
            sae_lm.generate(model, PROMPT[0], saes, **HOW), sae_lm.generate(model, PROMPT[:1], saes, **HOW)
        )
    generate = unwrap(sae_lm.generate)
    for prompt in (PROMPT[None], PROMPT[0, 0]):
        said = rf"token ids of shape \({', '.join(map(str, prompt.shape))}\), expected \[batch, pos\]"
        with pytest.raises(SettingsError, match=said):
            generate(model, prompt)
