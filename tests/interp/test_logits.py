"""sae_lm.logit_effect: which tokens a latent promotes, by the plain formula of each architecture's final norm."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_models
import torch

import sae_lm
from sae_lm.errors import ModelError, SaeError
from sae_lm.interp.promoted_tokens import promoted_tokens
from sae_lm.sae.model import SAE

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
        high = logits.topk(8).values - logits.mean()
        torch.testing.assert_close(torch.tensor([one.effect for one in effect.promoted]), high, atol=2e-4, rtol=1e-3)
    assert effect.latent == 5 and str(effect).startswith("latent 5: promotes ")


def test_the_page_and_the_function_name_the_same_tokens_with_the_same_logits(model, make_sae):
    sae = make_sae(d_in=16, d_sae=24, unit=False)
    page = promoted_tokens(model, sae.W_dec.detach(), 8)
    for latent, effect in enumerate(sae_lm.logit_effect(model, sae, range(24), top=8)):
        assert [one.token_id for one in effect.promoted] == page.promoted[latent].tolist()
        assert [one.effect for one in effect.promoted] == page.promoted_logit[latent].tolist()
        assert [one.token_id for one in effect.suppressed] == page.suppressed[latent].tolist()
        assert [one.effect for one in effect.suppressed] == page.suppressed_logit[latent].tolist()


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("centred", [False, True])
def test_of_an_sae_that_rescales_activations_effects_are_said_to_be_times_their_size(model, make_sae, norm, centred):
    plain = make_sae("standard", d_in=16, d_sae=24)
    config = replace(plain.config, normalize_activations=norm, centred_input=centred)
    sae = SAE(config, dict(plain.named_parameters()))
    (effect,) = sae_lm.logit_effect(model, sae, 5)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [5.0], [40.0]])
    z = sae.encode(x)
    moved = sae.decode(z + torch.eye(24)[5], x) - sae.decode(z, x)  # by one unit of the latent
    torch.testing.assert_close(moved, sae.scale(x) * sae.W_dec[5], rtol=1e-3, atol=1e-3)
    assert effect.times_size == sae.config.rescales == bool((sae.scale(x) - 1).abs().max() > 1e-6) == (norm != "none")
    assert str(effect).endswith("; times the size of each activation") == effect.times_size


def test_tokens_are_those_that_the_models_own_last_steps_name(model, make_sae):
    sae = make_sae(d_in=16, d_sae=24)
    rows = torch.cat([sae.W_dec.detach(), torch.zeros(1, 16)])
    logits = model.ln_final(rows[None])[0] @ model.W_U
    logits = logits[:-1] - logits[-1:]
    for row, effect in zip(logits, sae_lm.logit_effect(model, sae, range(24), top=8), strict=True):
        assert [one.token_id for one in effect.promoted] == row.topk(8).indices.tolist()
        assert [one.token_id for one in effect.suppressed] == row.topk(8, largest=False).indices.tolist()


def test_tokens_are_those_of_transformer_lens_own_readout(model, make_sae):
    analysis = pytest.importorskip("transformer_lens.tools.analysis")
    if not hasattr(analysis, "logit_readout"):
        pytest.skip("this TransformerLens has no readout of its own (it came with 4.x)")
    sae = make_sae(d_in=16, d_sae=24)
    rows = torch.cat([sae.W_dec.detach(), torch.zeros(1, 16)])
    logits = analysis.logit_readout(model, rows).values.float()
    for row, effect in zip(logits[:-1] - logits[-1:], sae_lm.logit_effect(model, sae, range(24), top=8), strict=True):
        assert [one.token_id for one in effect.promoted] == row.topk(8).indices.tolist()
        assert [one.token_id for one in effect.suppressed] == row.topk(8, largest=False).indices.tolist()


def test_a_norm_of_another_kind_is_refused(make_sae):
    model = SimpleNamespace(W_U=torch.randn(16, 30, generator=torch.Generator().manual_seed(0)), ln_final=torch.tanh)
    with pytest.raises(ModelError, match="neither a LayerNorm nor an RMSNorm"):
        promoted_tokens(model, make_sae(d_in=16, d_sae=4).W_dec.detach(), 3)
    bare = SimpleNamespace(W_U=model.W_U)  # without any
    assert promoted_tokens(bare, torch.eye(16)[:2], 3).promoted.shape == (2, 3)


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


@pytest.mark.usefixtures("unchecked")
def test_latents_may_be_a_tensor_and_what_are_no_latents_or_numbers_of_tokens_is_refused(model, make_sae):
    sae, logit_effect = make_sae(d_in=16), sae_lm.logit_effect
    wanted = logit_effect(model, sae, [1, 2])
    assert logit_effect(model, sae, torch.tensor([1, 2])) == wanted and [one.latent for one in wanted] == [1, 2]
    assert (
        logit_effect(model, sae, torch.tensor(2)) == logit_effect(model, sae, 2) and logit_effect(model, sae, []) == []
    )
    for latents in (1.5, [1.0], "3", True, None, torch.tensor([0.5]), torch.tensor([[1, 2]]), -1, [3, 10]):
        with pytest.raises(SaeError, match=r"latent .* is none of this SAE, which has latents 0 to 9; give"):
            logit_effect(model, sae, latents)
    for top in (0, -1, 2.5, "3", True):
        with pytest.raises(SaeError, match=f"top is {top!r}, expected a whole number from 1 on"):
            logit_effect(model, sae, 3, top=top)


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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("right", "position", "message"),
    [
        (torch.tensor([7, 8, 9]), -1, "an answer is 3 token ids, the logits are of 2 prompts; give one id, or one for"),
        (torch.tensor([]).long(), -1, "an answer is 0 token ids, the logits are of 2 prompts"),
        (7, 6, "position is 6, the logits have positions 0 to 5; give one of them, or one from -6 on"),
        (7, -7, "position is -7, the logits have positions 0 to 5"),
        (7, 1.0, "position is 1.0, the logits have positions 0 to 5"),
        (300, -1, "an answer is token id 300, the vocabulary has ids 0 to 299; give an id of this model's tokens"),
        (torch.tensor([7, -1]), -1, "an answer is token id -1, the vocabulary has ids 0 to 299"),
    ],
)
def test_a_logit_difference_that_does_not_fit_the_logits_is_refused(right, position, message):
    metric = sae_lm.logit_difference(right, 11, position=position)
    with pytest.raises(SaeError, match=message):
        metric(torch.zeros(2, 6, 300))


def test_of_padded_prompts_each_ones_own_last_position_is_read(model):
    short, long = IDS[:1, :3], IDS[1:2]
    padded = torch.cat([torch.nn.functional.pad(short, (0, IDS.shape[1] - 3)), long])
    alone = torch.cat([sae_lm.logit_difference(7, 11)(model(ids)) for ids in (short, long)])
    for last in ([2, -1], torch.tensor([2, IDS.shape[1] - 1])):
        torch.testing.assert_close(sae_lm.logit_difference(7, 11, position=last)(model(padded)), alone)
    with pytest.raises(
        SaeError, match="position names 3 positions, the logits are of 2 prompts; give one, or one for each"
    ):
        sae_lm.logit_difference(7, 11, position=[1, 2, 3])(model(padded))


@pytest.mark.usefixtures("unchecked")
def test_a_logit_difference_of_what_are_no_logits_is_refused():
    with pytest.raises(SaeError, match=r"logits have shape \(6, 300\), expected \[batch, pos, d_vocab\]; give"):
        sae_lm.logit_difference(7, 11)(torch.zeros(6, 300))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("answer", [1.5, None, True, [7, 8], torch.tensor([0.5]), torch.tensor([True, False])])
def test_an_answer_that_is_no_token_is_refused(answer):
    with pytest.raises(
        SaeError, match=r"an answer is .*, expected a token id, token ids \[batch\] as a tensor, or a text"
    ):
        sae_lm.logit_difference(7, answer)
    with pytest.raises(ModelError, match="model is 'embedded', a name"):
        sae_lm.logit_difference(",", ".", model="embedded")
