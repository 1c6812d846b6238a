"""sae_lm.attribute: gradients, integrated gradients and ablation agree with what each is by definition."""

from inspect import unwrap

import pytest
import tiny_models
import torch

import sae_lm
from sae_lm.errors import SaeError
from sae_lm.interp.attribution import _Run

pytestmark = pytest.mark.transformer_lens_3

IDS = torch.tensor([[0, 5, 9, 33, 70, 12], [0, 8, 8, 250, 3, 44]])
METRIC = sae_lm.logit_difference(7, 11)
METHODS = ("gradient", "integrated", "ablation")


@pytest.fixture(scope="module", params=sorted(tiny_models.ARCHITECTURES))
def model(request, tmp_path_factory, tiny_model):
    folder = tiny_models.save(request.param, tmp_path_factory.mktemp(request.param), tiny_model)
    return sae_lm.load_model(str(folder), device="cpu")


@pytest.fixture
def sae(make_sae):
    return make_sae("standard", d_in=16, d_sae=24)


@pytest.fixture
def several(make_sae):
    hooks = ("blocks.0.hook_mlp_out", "blocks.1.hook_out", "blocks.2.attn.hook_z")
    return {hook: make_sae("standard", d_in=16, d_sae=20, seed=seed) for seed, hook in enumerate(hooks)}


def without(model, saes, hook, prompt, position, latent):
    """The plain twin: one latent set to 0 by a hook in a splice with its error term."""

    def zero(acts, hook):
        acts[prompt, position, latent] = 0
        return acts

    with (
        sae_lm.splice(model, saes, error_term=True) as latents,
        latents[hook].hooks(fwd_hooks=[("hook_sae_acts_post", zero)]),
        torch.no_grad(),
    ):
        return METRIC(model(IDS))[prompt]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_ablation_is_zeroing_each_latent_in_a_splice_with_the_error_term(model, several, batch_size):
    chosen = sae_lm.attribute(model, IDS, METRIC, several).head(15) if batch_size == 1 else None
    found = sae_lm.attribute(model, IDS, METRIC, several, method="ablation", batch_size=batch_size, of=chosen)
    torch.testing.assert_close(found.metric, METRIC(model(IDS)))
    assert (found.attribution.abs().diff() <= 1e-7).all()  # the largest first
    for entry in [*found.top(12), *found._rows(torch.arange(len(found) - 12, len(found))).top(12)]:
        loss = found.metric[entry.prompt] - without(model, several, *entry[:4])
        torch.testing.assert_close(torch.tensor(entry.attribution), loss, rtol=1e-3, atol=1e-4)


def test_every_latent_that_fires_on_text_is_attributed_to_and_no_other(model, several):
    found = sae_lm.attribute(model, IDS, METRIC, several)
    cache = sae_lm.run_with_cache(model, IDS, several, error_term=True)[1]
    for hook in several:
        acts = cache[f"{hook}.hook_sae_acts_post"]
        rows = found.hook == found.hooks.index(hook)
        dense = torch.zeros_like(acts)
        dense[found.prompt[rows], found.position[rows], found.latent[rows]] = found.activation[rows]
        torch.testing.assert_close(dense, acts.masked_fill((IDS == 0)[..., None], 0.0), rtol=1e-3, atol=1e-5)


def test_the_gradient_is_that_of_the_latents_in_a_splice(model, sae):
    found = sae_lm.attribute(model, IDS, METRIC, sae)
    kept = {}

    def leaf(acts, hook):
        kept["z"] = acts.detach().requires_grad_()
        return kept["z"]

    with sae_lm.splice(model, sae, error_term=True) as latents, latents.hooks(fwd_hooks=[("hook_sae_acts_post", leaf)]):
        METRIC(model(IDS)).sum().backward()
    torch.testing.assert_close(found.dense(), (kept["z"] * kept["z"].grad).detach(), rtol=1e-3, atol=1e-5)


def test_the_gradient_is_the_slope_of_ablation_by_way_of_all_saes(model, several):
    """Through later latents and errors: a latent a little weaker moves the metric by its share of the attribution."""
    found = sae_lm.attribute(model, IDS, METRIC, several)
    step = 1e-2
    for hook, prompt, position, latent, _, attribution in found.top(6):

        def weaker(acts, hook, at=(prompt, position, latent)):
            acts[at] *= 1 - step
            return acts

        def stronger(acts, hook, at=(prompt, position, latent)):
            acts[at] *= 1 + step
            return acts

        values = []
        for edit in (weaker, stronger):
            with (
                sae_lm.splice(model, several, error_term=True) as latents,
                latents[hook].hooks(fwd_hooks=[("hook_sae_acts_post", edit)]),
                torch.no_grad(),
            ):
                values.append(float(METRIC(model(IDS))[prompt]))
        assert attribution == pytest.approx((values[1] - values[0]) / (2 * step), rel=0.05, abs=2e-3)


def test_integrated_gradients_sum_to_what_the_metric_loses_without_all_latents(model, sae):
    found = sae_lm.attribute(model, IDS, METRIC, sae, method="integrated", steps=64)
    off = [("hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))]
    with sae_lm.splice(model, sae, error_term=True) as latents, latents.hooks(fwd_hooks=off):
        loss = METRIC(model(IDS)).sum()
    torch.testing.assert_close(found.attribution.sum(), found.metric.sum() - loss, rtol=0.05, atol=0.05)


def test_faithfulness_is_the_correlation_with_ablation_of_the_same_entries(model, sae):
    for method in ("gradient", "integrated", "ablation"):
        found = sae_lm.attribute(model, IDS, METRIC, sae, method=method)
        measured = sae_lm.faithfulness(model, IDS, METRIC, sae, found, top=20)
        exact = sae_lm.attribute(model, IDS, METRIC, sae, method="ablation").dense()
        head = found.head(20)
        expected = exact[head.prompt, head.position, head.latent]
        torch.testing.assert_close(measured.ablated, expected, rtol=1e-3, atol=1e-4)
        both = torch.stack([head.attribution, expected])
        assert measured.correlation == pytest.approx(float(torch.corrcoef(both)[0, 1]), abs=1e-3)
    assert measured.correlation == pytest.approx(1, abs=1e-4)
    few = sae_lm.faithfulness(model, IDS, METRIC, sae, found, top=2).correlation
    assert few != few


def test_an_attribution_of_another_run_is_refused_in_a_sentence(model, sae, make_sae):
    found = sae_lm.attribute(model, IDS, METRIC, sae)
    hook = "blocks.1.hook_out"
    for given, said in [
        ((IDS[:, :4], METRIC, sae), "prompts 2 of 6 tokens, given are 2 of 4 tokens"),
        ((IDS[:1], METRIC, sae), "prompts 2 of 6 tokens, given are 1 of 6 tokens"),
        ((IDS, METRIC, {"blocks.0.hook_out": sae}), f"at {hook} with 24 latents, given are blocks.0.hook_out with 24"),
        ((IDS, METRIC, make_sae("standard", d_in=16, d_sae=20)), f"{hook} with 24 latents, given are {hook} with 20"),
    ]:
        with pytest.raises(SaeError, match=said):
            sae_lm.faithfulness(model, *given, found)
        with pytest.raises(SaeError, match=said):
            sae_lm.attribute(model, *given, method="ablation", of=found)
    with pytest.raises(SaeError, match="the attribution is of a metric that is .*, here it is"):
        sae_lm.faithfulness(model, IDS, sae_lm.logit_difference(20, 3), sae, found)
    with pytest.raises(SaeError, match="batch_size is 0"):
        sae_lm.faithfulness(model, IDS, METRIC, sae, found, batch_size=0)
    with pytest.raises(TypeError, match="kep"):
        sae_lm.faithfulness(model, IDS, METRIC, sae, found, kep=None)
    with pytest.raises(SaeError, match="tokens is a list, expected a prompt or token ids"):
        _Run(model, ["one", "two"], METRIC, sae, "special", None)


def test_entries_may_be_chosen_summed_over_positions_and_read(model, several):
    found = sae_lm.attribute(model, IDS, METRIC, several)
    exact = sae_lm.attribute(model, IDS, METRIC, several, method="ablation", of=found.head(5))
    assert len(exact) == 5 and {entry[:4] for entry in exact.top()} == {entry[:4] for entry in found.top(5)}
    hook = "blocks.1.hook_out"
    assert torch.equal(found.by_latent(hook), found.dense(hook).sum((0, 1)))
    assert repr(found).startswith("Attribution(gradient, ")
    with pytest.raises(SaeError, match="name one hook"):
        found.dense()
    with pytest.raises(SaeError, match="no SAE is at hook 'blocks.9"):
        found.dense("blocks.9.hook_out")


@pytest.mark.parametrize("method", ["gradient", "integrated", "ablation"])
def test_an_attribution_does_not_hang_on_the_order_that_saes_are_given_in(model, make_sae, method):
    hooks = ("blocks.0.hook_mlp_out", "blocks.1.hook_out", "blocks.2.attn.hook_z")
    saes = {hook: make_sae("standard", d_in=16, d_sae=18 + 2 * i, seed=i) for i, hook in enumerate(hooks)}
    forward, backward = (
        sae_lm.attribute(model, IDS, METRIC, given, method=method, steps=3)
        for given in (saes, dict(reversed(saes.items())))
    )
    assert backward.hooks == tuple(reversed(forward.hooks)) and backward.widths == tuple(reversed(forward.widths))
    one, other = (sorted(found.top(len(found))) for found in (forward, backward))
    assert [entry[:4] for entry in one] == [entry[:4] for entry in other]
    numbers = [torch.tensor([entry[4:] for entry in found]) for found in (one, other)]
    torch.testing.assert_close(*numbers, rtol=1e-3, atol=1e-4)


def test_entries_ablated_for_another_metric_have_that_metric_of_this_run(model, sae):
    found = sae_lm.attribute(model, IDS, METRIC, sae).head(4)
    other = sae_lm.logit_difference(20, 3)
    exact = sae_lm.attribute(model, IDS, other, sae, method="ablation", of=found)
    torch.testing.assert_close(exact.metric, other(model(IDS)))
    whole = sae_lm.attribute(model, IDS, other, sae, method="ablation").dense()
    expected = whole[found.prompt, found.position, found.latent]
    torch.testing.assert_close(
        exact.dense()[found.prompt, found.position, found.latent], expected, rtol=1e-3, atol=1e-4
    )


def test_entries_of_other_prompts_or_of_another_sae_are_refused_in_a_sentence(model, sae, make_sae):
    found = sae_lm.attribute(model, IDS, METRIC, sae)
    said = r"latent \d+ has activation .* at prompt \d, position \d, here it is .*; give the prompts, the SAEs and"
    for tokens, given in ((IDS.flip(0), sae), (IDS, make_sae("standard", d_in=16, d_sae=24, seed=5))):
        with pytest.raises(SaeError, match=said):
            sae_lm.attribute(model, tokens, METRIC, given, method="ablation", of=found)
        with pytest.raises(SaeError, match=said):
            sae_lm.faithfulness(model, tokens, METRIC, given, found)


def test_padded_prompts_and_masks_of_positions_are_as_the_prompts_alone(model, sae):
    short = IDS[:1, :4]
    padded, mask = (
        torch.tensor([[0, 5, 9, 33, 0, 0], [0, 8, 8, 250, 3, 44]]),
        torch.tensor([[1] * 4 + [0] * 2, [1] * 6]),
    )
    at = sae_lm.logit_difference(7, 11, position=3)
    alone = sae_lm.attribute(model, short, at, sae, keep=short == 0, method="ablation")
    both = sae_lm.attribute(model, padded, at, sae, keep=padded == 0, method="ablation", attention_mask=mask)
    torch.testing.assert_close(both.dense()[0, :4], alone.dense()[0], rtol=1e-3, atol=1e-4)


def test_one_prompt_may_be_ids_alone_and_its_metric_a_single_number(model, sae):
    whole = sae_lm.attribute(model, IDS[:1], METRIC, sae, method="ablation")
    for metric in (METRIC, lambda logits: METRIC(logits)[0], lambda logits: METRIC(logits).mean()):
        single = sae_lm.attribute(model, IDS[0], metric, sae, method="ablation", batch_size=5)
        torch.testing.assert_close(single.dense(), whole.dense(), rtol=1e-4, atol=1e-4)


def test_entries_to_ablate_are_refused_where_nothing_is_ablated(model, sae):
    found = sae_lm.attribute(model, IDS, METRIC, sae)
    for method in ("gradient", "integrated"):
        with pytest.raises(SaeError, match=f"of names entries to ablate, method is '{method}'; give method='ablation'"):
            sae_lm.attribute(model, IDS, METRIC, sae, method=method, of=found.head(3))


def test_wrong_metrics_and_methods_are_refused(model, sae):
    with pytest.raises(SaeError, match=r"metric gave shape \(\), expected one number for each of 2 prompts"):
        sae_lm.attribute(model, IDS, lambda logits: logits.mean(), sae)
    for method in ("gradient", "integrated"):
        with pytest.raises(SaeError, match="the metric has no gradient to the logits; "):
            sae_lm.attribute(model, IDS, lambda logits: METRIC(logits).detach(), sae, method=method)
    sae_lm.attribute(model, IDS, lambda logits: METRIC(logits).detach(), sae, method="ablation")
    with pytest.raises(SaeError, match="steps is 0"):
        sae_lm.attribute(model, IDS, METRIC, sae, method="integrated", steps=0)


@pytest.mark.parametrize("none", [[], {}, ()])
def test_no_saes_at_all_are_refused_in_a_sentence(model, sae, none):
    found = sae_lm.attribute(model, IDS, METRIC, sae)
    calls = [
        *(lambda method=method: sae_lm.attribute(model, IDS, METRIC, none, method=method) for method in METHODS),
        lambda: sae_lm.faithfulness(model, IDS, METRIC, none, found),
        lambda: sae_lm.run_with_cache(model, IDS, none),
    ]
    for call in calls:
        with pytest.raises(SaeError, match="no SAE is given; give one, several as a list, or"):
            call()


def test_gradients_in_inference_mode_are_refused_and_ablation_is_not(model, sae):
    with torch.inference_mode():
        for method in ("gradient", "integrated"):
            with pytest.raises(SaeError, match=f"method {method} needs gradients, which torch.inference_mode"):
                sae_lm.attribute(model, IDS, METRIC, sae, method=method)
        within = sae_lm.attribute(model, IDS, METRIC, sae, method="ablation")
    torch.testing.assert_close(within.dense(), sae_lm.attribute(model, IDS, METRIC, sae, method="ablation").dense())


@pytest.mark.parametrize("value", [2.5, 2.0, -3, True, "4", None])
def test_numbers_that_are_no_counts_are_refused(model, sae, value):
    found = sae_lm.attribute(model, IDS, METRIC, sae)
    attribute, faithfulness = (unwrap(function) for function in (sae_lm.attribute, sae_lm.faithfulness))
    calls = {
        "steps": lambda: attribute(model, IDS, METRIC, sae, method="integrated", steps=value),
        "batch_size": lambda: attribute(model, IDS, METRIC, sae, method="ablation", batch_size=value),
        "batch_size ": lambda: faithfulness(model, IDS, METRIC, sae, found, batch_size=value),
        "top": lambda: faithfulness(model, IDS, METRIC, sae, found, top=value),
        "count": lambda: unwrap(type(found).head)(found, value),
        "count ": lambda: unwrap(type(found).top)(found, value),
    }
    for name, call in calls.items():
        with pytest.raises(SaeError, match=f"{name.strip()} is {value!r}, expected a whole number from"):
            call()


def test_counts_may_be_numpys_or_tensors(model, sae):
    import numpy as np

    attribute = unwrap(sae_lm.attribute)
    for method in METHODS:
        plain = attribute(model, IDS, METRIC, sae, method=method, steps=3, batch_size=5)
        for kind in (np.int64, torch.tensor):
            given = attribute(model, IDS, METRIC, sae, method=method, steps=kind(3), batch_size=kind(5))
            torch.testing.assert_close(given.dense(), plain.dense())
    assert len(unwrap(type(plain).head)(plain, np.int64(2))) == 2
