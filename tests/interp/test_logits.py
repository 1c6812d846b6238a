"""sae_lm.logit_effect: which tokens a latent promotes, by the plain formula of each architecture's final norm."""

import pytest
import tiny_models
import torch

import sae_lm
from sae_lm.errors import SaeError

pytestmark = pytest.mark.transformer_lens_3

IDS = torch.tensor([[0, 5, 9, 33, 70, 12], [0, 8, 8, 250, 3, 44]])


@pytest.fixture(scope="module", params=sorted(tiny_models.ARCHITECTURES))
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def folder(architecture, tmp_path_factory, tiny_model):
    return tiny_models.save(architecture, tmp_path_factory.mktemp(architecture), tiny_model)


@pytest.fixture(scope="module")
def model(folder):
    return sae_lm.load_model(str(folder), device="cpu")


def plain(folder, architecture, rows):
    """Decoder rows through the final norm's weight and the unembedding of the Hugging Face model."""
    from transformers import AutoModelForCausalLM

    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    norm = next(
        value
        for name, value in weights.items()
        if name.endswith(("ln_f.weight", "final_layer_norm.weight", "model.norm.weight"))
    )
    unembedding = next(weights[name] for name in ("lm_head.weight", "embed_out.weight") if name in weights)
    if architecture in ("GPT2LMHeadModel", "GPTNeoXForCausalLM"):
        rows = rows - rows.mean(1, keepdim=True)
    norm = 1 + norm if architecture == "Gemma2ForCausalLM" else norm
    return (rows * norm) @ unembedding.T


def test_promoted_and_suppressed_tokens_are_those_of_the_plain_formula(model, folder, architecture, make_sae):
    sae = make_sae(d_in=16, d_sae=24, unit=False)
    for effect, logits in zip(
        sae_lm.logit_effect(model, sae, [3, 17, 5], top=8),
        plain(folder, architecture, sae.W_dec[[3, 17, 5]]),
        strict=True,
    ):
        assert [one.token_id for one in effect.promoted] == logits.topk(8).indices.tolist()
        assert [one.token_id for one in effect.suppressed] == logits.topk(8, largest=False).indices.tolist()
        assert effect.promoted[0].effect > 0 > effect.suppressed[0].effect
        assert effect.method in ("logit_readout", "ln_final and W_U")
    assert effect.latent == 5 and str(effect).startswith("latent 5: promotes ")


def test_both_ways_to_read_name_the_same_tokens(model, make_sae, monkeypatch):
    import sys

    sae = make_sae(d_in=16, d_sae=24)
    ours = sae_lm.logit_effect(model, sae, range(24))
    monkeypatch.setitem(sys.modules, "transformer_lens.tools.analysis", None)
    other = sae_lm.logit_effect(model, sae, range(24))
    assert other[0].method == "ln_final and W_U"
    for one, two in zip(ours, other, strict=True):
        assert [t.token_id for t in one.promoted] == [t.token_id for t in two.promoted]
        assert [t.token_id for t in one.suppressed] == [t.token_id for t in two.suppressed]


def test_tokens_are_told_by_their_text(model):
    from sae_lm.interp.logits import token_text

    fox = model.tokenizer(" fox", add_special_tokens=False)["input_ids"]
    assert "".join(token_text(model.tokenizer, token) for token in fox) == " fox"
    assert token_text(None, 5) == "<5>"


def test_what_has_no_direct_effect_is_refused(model, make_sae):
    sae = make_sae(d_in=16)
    assert sae_lm.logit_effect(model, sae, 3, hook="blocks.0.hook_mlp_out")[0].latent == 3
    with pytest.raises(SaeError, match="no directions of the residual stream"):
        sae_lm.logit_effect(model, sae, 3, hook="blocks.1.attn.hook_z")
    with pytest.raises(SaeError, match="has latents 0 to 9"):
        sae_lm.logit_effect(model, sae, [3, 10])


def test_logit_difference_is_the_difference_of_two_logits(model):
    logits = model(IDS)
    expected = logits[:, -1, 7] - logits[:, -1, 11]
    torch.testing.assert_close(sae_lm.logit_difference(7, 11)(logits), expected)
    per_prompt = sae_lm.logit_difference(torch.tensor([7, 8]), 11, position=2)(logits)
    torch.testing.assert_close(per_prompt, torch.stack([logits[0, 2, 7], logits[1, 2, 8]]) - logits[:, 2, 11])
    comma, dot = (model.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (",", "."))
    assert torch.equal(
        sae_lm.logit_difference(",", ".", model=model)(logits), sae_lm.logit_difference(comma, dot)(logits)
    )
    with pytest.raises(SaeError, match="tokens .*give a text that is one"):
        sae_lm.logit_difference(" quite a few words", ".", model=model)
    with pytest.raises(SaeError, match="model=model"):
        sae_lm.logit_difference(",", ".")
