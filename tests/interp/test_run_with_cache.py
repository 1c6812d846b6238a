"""sae_lm.run_with_cache: the model's cache with SAEs' latents in it, as SAELens has it."""

import pytest
import torch

import sae_lm
from sae_lm.errors import ModelError, SaeError
from sae_lm.sae.formats.saelens import save

pytestmark = pytest.mark.transformer_lens_3

IDS = torch.tensor([[0, 5, 9, 33, 70, 12], [0, 8, 8, 250, 3, 44]])
ACTS = "blocks.1.hook_resid_post.hook_sae_acts_post"


@pytest.fixture(scope="module")
def model(tiny_model):
    return sae_lm.load_model(str(tiny_model), device="cpu")


def test_the_cache_holds_the_models_activations_and_the_saes_under_every_name_of_the_hook(model, make_sae):
    sae = make_sae(d_in=16, d_sae=32)
    clean = model.run_with_cache(IDS)[1]["blocks.1.hook_out"]
    output, cache = sae_lm.run_with_cache(model, IDS, sae, keep=None)
    with sae_lm.splice(model, sae, keep=None):
        expected, plain = model.run_with_cache(IDS)
    assert torch.equal(output, expected)
    assert set(plain.keys()) < set(cache.keys())
    for name, value in plain.items():
        assert torch.equal(cache[name], value)
    assert torch.equal(cache[ACTS], sae.encode(clean)) and torch.equal(
        cache[ACTS], cache["blocks.1.hook_out.hook_sae_acts_post"]
    )
    assert torch.equal(cache["blocks.1.hook_out.hook_sae_input"], clean)
    assert torch.equal(cache["blocks.1.hook_out.hook_sae_output"], cache["blocks.1.hook_out"])
    assert "blocks.1.hook_out.hook_sae_error" not in cache.keys()  # noqa: SIM118 (a cache is no dictionary)


def test_with_the_error_term_the_error_is_there_and_the_model_is_as_it_was(model, make_sae):
    sae = make_sae(d_in=16, d_sae=32)
    output, cache = sae_lm.run_with_cache(model, IDS, sae, keep=None, error_term=True)
    torch.testing.assert_close(output, model(IDS), rtol=1e-4, atol=1e-5)
    parts = [cache[f"blocks.1.hook_out.hook_sae_{part}"] for part in ("recons", "error", "output")]
    torch.testing.assert_close(parts[0] + parts[1], parts[2])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (ACTS, {ACTS}),
        ([ACTS, "blocks.2.hook_in"], {ACTS, "blocks.2.hook_in"}),
        (lambda name: name.endswith("hook_sae_acts_post"), {ACTS, "blocks.1.hook_out.hook_sae_acts_post"}),
    ],
    ids=["name", "names", "function"],
)
def test_a_filter_chooses_among_the_models_hooks_and_the_saes(model, make_sae, names, expected):
    cache = sae_lm.run_with_cache(model, IDS, make_sae(d_in=16), names_filter=names)[1]
    assert set(cache.keys()) == expected


def test_one_context_loses_its_batch_dimension_everywhere_and_a_dictionary_is_as_good(model, make_sae):
    cache = sae_lm.run_with_cache(
        model,
        IDS[:1],
        make_sae(d_in=16),
        remove_batch_dim=True,
        return_cache_object=False,
        names_filter=[ACTS, "blocks.2.hook_in"],
    )[1]
    assert {name: tuple(value.shape) for name, value in cache.items()} == {ACTS: (6, 10), "blocks.2.hook_in": (6, 16)}


def test_names_that_nothing_has_and_slices_are_refused(model, make_sae):
    sae = make_sae(d_in=16)
    with pytest.raises(ModelError, match="neither model nor SAEs have; the nearest are"):
        sae_lm.run_with_cache(model, IDS, sae, names_filter="blocks.1.hook_out.hook_sae_act_post")
    with pytest.raises(SaeError, match="pos_slice"):
        sae_lm.run_with_cache(model, IDS, sae, pos_slice=-1)


@pytest.mark.parametrize("error_term", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"])
def test_saelens_bridge_has_the_same_keys_and_values(tiny_model, make_sae, tmp_path, architecture, hook, error_term):
    sae_lens = pytest.importorskip("sae_lens", reason="needs sae-lens, which needs transformer-lens < 4")
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    ours = make_sae(architecture, d_in=16, d_sae=24, hook_name=hook)
    save(ours, tmp_path / "sae")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"))
    bridge = SAETransformerBridge.boot_transformers(str(tiny_model), device="cpu")
    logits, expected = bridge.run_with_cache_with_saes(IDS, saes=[theirs], use_error_term=error_term)
    model = sae_lm.load_model(str(tiny_model), device="cpu")
    output, cache = sae_lm.run_with_cache(model, IDS, [ours], keep=None, error_term=error_term)
    torch.testing.assert_close(output, logits, rtol=1e-4, atol=1e-5)
    assert sum("hook_sae_" in name for name in expected.keys()) == 5 + error_term  # noqa: SIM118
    for name, value in expected.items():
        torch.testing.assert_close(cache[name], value, rtol=1e-4, atol=1e-5)


def test_saelens_transformer_has_the_same_keys(tiny_model, make_sae, tmp_path):
    """The hooks of HookedTransformer have the names that SAEs are known by: here those are all in the cache too."""
    sae_lens = pytest.importorskip("sae_lens", reason="needs sae-lens, which needs transformer-lens < 4")
    from transformer_lens import HookedTransformerConfig

    hook = "blocks.1.hook_resid_post"
    ours = make_sae("topk", d_in=16, d_sae=24, hook_name=hook)
    save(ours, tmp_path / "sae")
    config = HookedTransformerConfig(
        n_layers=3, d_model=16, n_ctx=32, d_head=8, n_heads=2, d_vocab=300, act_fn="gelu_new"
    )
    transformer = sae_lens.HookedSAETransformer(config)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"))
    _, expected = transformer.run_with_cache_with_saes(IDS, saes=[theirs], use_error_term=True)
    model = sae_lm.load_model(str(tiny_model), device="cpu")
    cache = sae_lm.run_with_cache(model, IDS, ours, error_term=True)[1]
    names = {name for name in expected.keys() if "hook_sae_" in name}  # noqa: SIM118
    assert len(names) == 6 and names < set(cache.keys())
    for name in names:
        assert cache[name].shape == expected[name].shape
