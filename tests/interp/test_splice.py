"""sae_lm.interp.splice: an SAE at work in the model."""

import inspect
from pathlib import Path

import pytest
import torch

import sae_lm
from sae_lm.errors import ModelError, SaeError
from sae_lm.interp.splice import place
from sae_lm.sae.model import SAE, SaeConfig

pytestmark = pytest.mark.transformer_lens_3


@pytest.fixture(scope="module")
def model(tiny_model):
    return sae_lm.load_model(str(tiny_model))


IDS = torch.tensor([[0, 5, 9, 33, 70, 12], [0, 8, 8, 250, 3, 44]])


def residual(model, name="blocks.1.hook_out"):
    return model.run_with_cache(IDS, names_filter=name)[1][name]


def test_a_splice_gives_the_logits_of_the_model_with_the_reconstruction(model, make_sae):
    sae = make_sae(d_in=16, d_sae=32)
    expected = model.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_out", lambda tensor, hook: sae(tensor))])
    clean = model(IDS)
    with sae_lm.splice(model, sae, keep=None):
        torch.testing.assert_close(model(IDS), expected)
    assert not torch.allclose(clean, expected)
    assert torch.equal(model(IDS), clean)  # nothing stays behind


def test_positions_in_keep_are_left_alone(model, make_sae):
    sae = make_sae(d_in=16, d_sae=32)
    clean = residual(model)
    with sae_lm.splice(model, sae, keep=IDS == 0):
        after = residual(model, "blocks.2.hook_in")
    torch.testing.assert_close(after[:, 0], clean[:, 0])
    torch.testing.assert_close(after[:, 1:], sae(clean)[:, 1:])
    with pytest.raises(SaeError, match="keep has shape"), sae_lm.splice(model, sae, keep=torch.zeros(1, 1) > 0):
        model(IDS)


def test_with_the_error_term_an_unedited_splice_changes_nothing_and_an_edit_moves_by_its_decoder_row(model, make_sae):
    sae = make_sae("standard", d_in=16, d_sae=32)
    clean = residual(model)
    latent = int(sae.encode(clean).sum((0, 1)).argmax())

    def ablate(tensor, hook):
        tensor[..., latent] = 0
        return tensor

    with sae_lm.splice(model, sae, keep=None, error_term=True) as spliced:
        torch.testing.assert_close(residual(model, "blocks.2.hook_in"), clean, atol=1e-5, rtol=1e-5)
        with spliced.hooks(fwd_hooks=[("hook_sae_acts_post", ablate)]):
            edited = residual(model, "blocks.2.hook_in")
    moved = -sae.encode(clean)[..., latent, None] * sae.W_dec[latent]
    torch.testing.assert_close(edited - clean, moved, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("part", ["hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post"])
def test_the_error_term_is_that_of_the_sae_before_any_edit_at_whichever_hook(model, make_sae, part, in_place):
    sae = make_sae("standard", d_in=16, d_sae=32)
    clean, seen = residual(model), {}

    def zero(tensor, hook):
        return tensor.zero_() if in_place else torch.zeros_like(tensor)

    with sae_lm.splice(model, sae, keep=None, error_term=True) as spliced:
        note = [("hook_sae_recons", lambda y, hook: seen.__setitem__("y", y.clone()))]
        with spliced.hooks(fwd_hooks=[(part, zero), *note]):
            edited = residual(model, "blocks.2.hook_in")
    torch.testing.assert_close(edited, seen["y"] + clean - sae(clean), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(edited, clean, atol=0.1)


def test_latents_can_be_cached_at_their_hook_points(model, make_sae):
    sae = make_sae(d_in=16, d_sae=32)
    seen = {}
    with sae_lm.splice(model, sae) as spliced:
        names = [f"hook_sae_{part}" for part in ("input", "acts_pre", "acts_post", "recons")]
        keep = [(name, lambda tensor, hook: seen.__setitem__(hook.name, tensor)) for name in names]
        with spliced.hooks(fwd_hooks=keep):
            model(IDS)
    assert sorted(seen) == sorted(names)
    torch.testing.assert_close(seen["hook_sae_acts_post"], sae.encode(seen["hook_sae_input"]))


def test_generation_works_inside_a_splice(model, make_sae):
    with sae_lm.splice(model, make_sae(d_in=16, d_sae=32)):
        out = model.generate(IDS[:1], max_new_tokens=4, do_sample=False, verbose=False, return_type="tokens")
    assert out.shape == (1, 10)


def test_an_sae_of_another_width_or_without_a_hook_is_refused(model, make_sae):
    with (
        pytest.raises(SaeError, match="d_in 6, the model's residual stream has width 16"),
        sae_lm.splice(model, make_sae()),
    ):
        pass
    sae = make_sae(d_in=16)
    bare = SAE(SaeConfig(architecture="topk", d_in=16, d_sae=10, k=3), dict(sae.named_parameters()))
    with pytest.raises(SaeError, match="which hook"), sae_lm.splice(model, bare):
        pass


def test_names_in_place_of_a_model_an_sae_or_a_store_are_told_apart_from_them(model, make_sae):
    def plain(function):
        return inspect.unwrap(function)  # without the tests' own check of annotations

    sae = make_sae(d_in=16)
    for function in (plain(place), plain(sae_lm.check)):
        for wrong in ("runs/one", Path("runs/one"), ["runs/one"], {"blocks.1.hook_out": "runs/one"}):
            with pytest.raises(SaeError, match="an SAE is 'runs/one', a name; give what sae_lm.load gives"):
                function(model, wrong)
        with pytest.raises(SaeError, match="an SAE is of type Tensor"):
            function(model, torch.zeros(2))
        with pytest.raises(ModelError, match="model is 'embedded', a name; give sae_lm.load_model"):
            function("embedded", sae)
    with pytest.raises(SaeError, match="store is 'acts', a name; give sae_lm.open_store"):
        plain(sae_lm.largest_activations)(sae, "acts")
