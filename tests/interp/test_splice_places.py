"""sae_lm.interp.splice: SAEs at hooks of every kind, several at once, on any device, and gradients to latents."""

import pytest
import tiny_models
import torch

import sae_lm
from sae_lm.errors import ModelError, SaeError
from sae_lm.interp.splice import SplicedSAE
from sae_lm.lm.bridge import Capture

pytestmark = pytest.mark.transformer_lens_3

IDS = torch.tensor([[0, 5, 9, 33, 70, 12], [0, 8, 8, 250, 3, 44]])
HOOKS = {"blocks.1.hook_out": 16, "blocks.1.hook_mlp_out": 16, "blocks.0.hook_attn_out": 16, "blocks.2.attn.hook_z": 16}


@pytest.fixture(scope="module", params=sorted(tiny_models.ARCHITECTURES))
def any_model(request, tmp_path_factory, tiny_model):
    folder = tiny_models.save(request.param, tmp_path_factory.mktemp(request.param), tiny_model)
    return sae_lm.load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def model(tiny_model):
    return sae_lm.load_model(str(tiny_model), device="cpu")


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_a_splice_is_the_reconstruction_at_that_hook_whatever_the_architecture(any_model, make_sae, hook):
    sae = make_sae(d_in=HOOKS[hook], d_sae=24)
    expected = any_model.run_with_hooks(IDS, fwd_hooks=[(hook, lambda x, hook: sae(x.reshape(2, 6, -1)).view(x.shape))])
    clean = any_model(IDS)
    with sae_lm.splice(any_model, sae, hook=hook, keep=None):
        torch.testing.assert_close(any_model(IDS), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(clean, expected, atol=1e-3)
    assert torch.equal(any_model(IDS), clean)


def test_several_saes_work_together_as_nested_splices_of_each_do(any_model, make_sae):
    saes = {hook: make_sae(d_in=16, d_sae=24, seed=seed) for seed, hook in enumerate(HOOKS)}
    with sae_lm.splice(any_model, saes) as latents:
        together = any_model(IDS)
    assert list(latents) == list(saes)
    first, second, third, fourth = saes.items()
    with (
        sae_lm.splice(any_model, first[1], hook=first[0]),
        sae_lm.splice(any_model, second[1], hook=second[0]),
        sae_lm.splice(any_model, third[1], hook=third[0]),
        sae_lm.splice(any_model, fourth[1], hook=fourth[0]),
    ):
        assert torch.equal(any_model(IDS), together)


def test_several_saes_go_to_the_hooks_they_name_and_each_has_its_own_hook_points(model, make_sae):
    saes = [make_sae(d_in=16, hook_name=f"blocks.{layer}.hook_resid_post") for layer in (0, 2)]
    seen = []
    with (
        sae_lm.splice(model, saes) as latents,
        latents["blocks.2.hook_resid_post"].hooks(
            fwd_hooks=[("hook_sae_acts_post", lambda acts, hook: seen.append(acts.shape))]
        ),
    ):
        model(IDS)
    assert list(latents) == ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"] and seen == [(2, 6, 10)]


def test_two_saes_at_one_hook_are_refused_under_whatever_names(model, make_sae):
    two = {"blocks.1.hook_out": make_sae(d_in=16), "blocks.1.hook_resid_post": make_sae(d_in=16)}
    with (
        pytest.raises(SaeError, match="two SAEs are given for one hook, blocks.1.hook_out and"),
        sae_lm.splice(model, two),
    ):
        pass
    with pytest.raises(SaeError, match="two SAEs are given"), sae_lm.splice(model, [make_sae(d_in=16)] * 2):
        pass


def test_a_hook_the_model_has_not_is_refused_with_the_nearest_names(model, make_sae):
    with (
        pytest.raises(ModelError, match=r"not a hook point.*nearest names are blocks.1.hook_mlp_out"),
        sae_lm.splice(model, make_sae(d_in=16), hook="blocks.1.hook_mlp_put"),
    ):
        pass


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("hook", [0, 1, ("blocks.1.hook_out",)])
def test_a_hook_that_is_no_name_is_refused(model, make_sae, hook):
    for given in ({"sae": make_sae(d_in=16), "hook": hook}, {"sae": {hook: make_sae(d_in=16)}}):
        with (
            pytest.raises(ModelError, match="a hook is .*, expected its name, such as 'blocks.0.hook_out'"),
            sae_lm.splice(model, **given),
        ):
            pass


def test_the_width_is_that_of_the_hook_not_of_the_residual_stream(model, make_sae):
    wide = make_sae(d_in=64)
    with sae_lm.splice(model, wide, hook="blocks.1.mlp.hook_post"):
        model(IDS)
    with (
        pytest.raises(SaeError, match="d_in 16, the model's blocks.1.mlp.hook_post has width 64"),
        sae_lm.splice(model, make_sae(d_in=16), hook="blocks.1.mlp.hook_post"),
    ):
        pass
    with (
        pytest.raises(ModelError, match=r"shape .* expected \[batch, pos"),
        sae_lm.splice(model, wide, hook="blocks.1.attn.hook_pattern"),
    ):
        pass
    with (
        pytest.raises(ModelError, match="set_use_hook_mlp_in"),
        sae_lm.splice(model, wide, hook="blocks.1.hook_mlp_in"),
    ):
        pass


def test_a_splice_opens_inside_another_with_a_mask_and_users_hooks_see_no_pass_but_their_own(model, make_sae):
    outer, inner = make_sae(d_in=16), make_sae(d_in=16, hook_name="blocks.2.hook_mlp_out")
    shapes = []
    model.add_hook("blocks.0.hook_in", lambda x, hook: shapes.append(tuple(x.shape[:2])))
    try:
        with sae_lm.splice(model, outer, keep=IDS == 0):
            with sae_lm.splice(model, inner, keep=IDS == 0):
                nested = model(IDS)
            sae_lm.run_with_cache(model, IDS, inner)
            with sae_lm.splice(model, inner):
                assert torch.equal(model(IDS), nested)  # the outer splice is as it was
    finally:
        model.reset_hooks()
    assert shapes == [(2, 6)] * 3


def test_inside_a_splice_with_a_mask_activations_are_captured_as_it_leaves_them(model, make_sae):
    with sae_lm.splice(model, make_sae(d_in=16), keep=IDS == 0):
        expected = model.run_with_cache(IDS, names_filter="blocks.2.hook_in")[1]["blocks.2.hook_in"]
        with Capture(model, ["blocks.1.hook_out"]) as capture:
            assert torch.equal(capture(IDS)["blocks.1.hook_out"], expected)


@pytest.mark.parametrize("error_term", [False, True])
def test_latents_have_the_gradient_of_their_decoder_rows_with_and_without_the_error_term(model, make_sae, error_term):
    sae = make_sae("standard", d_in=16, d_sae=32)
    kept = {}

    def leaf(acts, hook):
        kept["z"] = acts.detach().requires_grad_()
        return kept["z"]

    def residual(x, hook):
        kept["x"] = x.detach().requires_grad_()
        return kept["x"]

    with sae_lm.splice(model, sae, keep=None, error_term=error_term) as latents:
        # the activation that the model goes on with, as a leaf behind the splice: its gradient is what z's comes from
        with model.hooks(fwd_hooks=[("blocks.2.hook_in", residual)]):
            model(IDS)[..., 7].sum().backward()
        with latents.hooks(fwd_hooks=[("hook_sae_acts_post", leaf)]):
            model(IDS)[..., 7].sum().backward()
    torch.testing.assert_close(kept["z"].grad, kept["x"].grad @ sae.W_dec.T, rtol=1e-3, atol=1e-4)
    assert float(kept["z"].grad.abs().sum()) > 0.1


def test_latents_that_are_part_of_a_graph_have_a_gradient_with_the_error_term_too(model, make_sae):
    """As where a parameter of the model trains: what comes into the SAE has a gradient of its own."""
    sae, kept = make_sae("standard", d_in=16, d_sae=32), {}

    def keep(acts, hook):
        acts.retain_grad()
        kept["z"] = acts

    def leaf(x, hook):
        return x.detach().requires_grad_()

    for error_term in (False, True):
        with (
            sae_lm.splice(model, sae, keep=None, error_term=error_term) as latents,
            latents.hooks(fwd_hooks=[("hook_sae_acts_post", keep)]),
            model.hooks(fwd_hooks=[("blocks.0.hook_in", leaf)]),
        ):
            model(IDS)[..., 7].sum().backward()
        assert float(kept["z"].grad.abs().sum()) > 0.1


def test_the_sae_goes_where_the_activation_is_in_a_copy_made_once(make_sae):
    sae = make_sae(d_in=16)
    spliced = SplicedSAE(sae, error_term=True)
    out = spliced(torch.empty(2, 3, 16, device="meta"), torch.zeros(2, 3, dtype=torch.bool))
    assert out.device.type == "meta" and out.shape == (2, 3, 16)
    copy = spliced.at(torch.device("meta"))
    spliced(torch.empty(2, 3, 16, device="meta"))
    assert spliced.at(torch.device("meta")) is copy and copy.W_enc.device.type == "meta"
    assert sae.W_enc.device.type == "cpu" and spliced.at(torch.device("cpu")) is sae


def test_an_sae_that_is_being_trained_is_not_copied_and_both_devices_are_named(make_sae):
    sae = make_sae(d_in=16)
    sae.W_dec.requires_grad_()
    with pytest.raises(SaeError, match="the SAE is on cpu, its activation on meta"):
        SplicedSAE(sae)(torch.empty(2, 3, 16, device="meta"))


def test_a_model_on_another_device_is_given_token_ids_and_masks_there(tiny_model, make_sae):
    """The meta device stands in for an accelerator: shapes and devices are real, values are not."""
    model = sae_lm.load_model(str(tiny_model), device="cpu")
    model.to("meta")
    seen = {}
    note = [("embed.hook_in", lambda ids, hook: seen.__setitem__("ids", ids.device.type))]
    with sae_lm.splice(model, make_sae(d_in=16), keep=None), model.hooks(fwd_hooks=note):
        assert model(IDS, attention_mask=torch.ones_like(IDS)).device.type == "meta"
        assert model.run_with_cache(IDS)[0].device.type == "meta"
    assert seen == {"ids": "meta"}


@pytest.mark.parametrize("ours", [torch.float32, torch.bfloat16])
def test_sae_and_model_may_have_different_dtypes_and_the_model_keeps_its_own(tiny_model, make_sae, ours):
    model = sae_lm.load_model(
        str(tiny_model), device="cpu", dtype=torch.bfloat16 if ours is torch.float32 else torch.float32
    )
    sae = make_sae("standard", d_in=16).to(ours)
    for error_term in (False, True):
        with sae_lm.splice(model, sae, error_term=error_term):
            assert model(IDS).dtype == next(model.parameters()).dtype
