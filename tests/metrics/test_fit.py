"""Every usual mistake of loading, planted, is named."""

import math
import weakref

import pytest
import torch

from sae_lm.metrics import fit as fit_module
from sae_lm.metrics.fit import Reading, find_fit, is_better, scaled
from sae_lm.metrics.reconstruction import quality
from sae_lm.sae.model import SAE, SaeConfig

D_IN, D_SAE, K = 24, 24, 3


def world(d_in=D_IN, offset=3.0, rows=1500, norm=1.0):
    """Rows that are an offset and three atoms of an orthonormal dictionary, and the SAE that is exact on them."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator))[0]
    strengths = torch.rand(rows, d_in, generator=generator) + 0.5
    chosen = torch.rand(rows, d_in, generator=generator).argsort(1)[:, :K]
    z = torch.zeros(rows, d_in).scatter_(1, chosen, strengths.gather(1, chosen))
    b = offset * torch.randn(d_in, generator=generator)
    sae = make(atoms.T, atoms, b)
    return sae, (z @ atoms + b) * norm


def make(W_enc, W_dec, b_dec, **config):
    about = {"architecture": "topk", "d_in": len(W_enc), "d_sae": len(W_dec), "k": K, **config}
    weights = {"W_enc": W_enc, "b_enc": torch.zeros(len(W_dec)), "W_dec": W_dec, "b_dec": b_dec}
    return SAE(SaeConfig(**about), weights)


def changed(sae, weights=(), **config):
    about = {**vars(sae.config), **config}
    return SAE(SaeConfig(**about), {**dict(sae.named_parameters()), **dict(weights)})


def test_an_sae_that_is_loaded_right_is_left_as_it_is():
    sae, x = world()
    fit = find_fit(sae, {"own": x})
    assert fit.best is fit.loaded and fit.loaded.fvu < 1e-9
    assert fit.loaded.quality == quality(sae, [x])[0]


@pytest.mark.parametrize("names", [("W_dec",), ("W_enc",), ("W_enc", "W_dec")])
def test_a_transposed_matrix_is_named(names):
    sae, x = world()
    wrong = changed(sae, {name: getattr(sae, name).T for name in names})
    assert find_fit(wrong, {"own": x}).best.changes == (f"{' and '.join(names)} transposed",)


def test_a_bias_that_is_not_subtracted_or_wrongly_is_named():
    sae, x = world()
    wrong = changed(sae, apply_b_dec_to_input=False)
    assert find_fit(wrong, {"own": x}).best.changes == ("b_dec subtracted from the input",)
    folded = changed(sae, {"b_enc": -sae.b_dec @ sae.W_enc}, apply_b_dec_to_input=False)
    twice = changed(folded, apply_b_dec_to_input=True)
    assert find_fit(twice, {"own": x}).best.changes == ("b_dec not subtracted from the input",)


@pytest.mark.parametrize("norm", [0.02, 60.0])
def test_a_scale_that_is_missing_or_folded_twice_is_named(norm):
    sae, x = world(norm=norm)
    size = float(x.norm(dim=1).mean())
    right = scaled(world(norm=1.0)[0], math.sqrt(D_IN) / size)
    unit = math.sqrt(D_IN) / float((x / norm).norm(dim=1).mean())
    expects_unit = scaled(world()[0], 1 / unit)  # exact on activations of mean norm sqrt(d_in)
    missing = find_fit(expects_unit, {"own": x}).best
    assert missing.fvu < 1e-6 and missing.changes[0].endswith("(to a mean norm of sqrt(d_in))")
    twice = scaled(expects_unit, (math.sqrt(D_IN) / size) ** 2)
    found = find_fit(twice, {"own": x}).best
    assert found.fvu < 1e-6 and found.changes[0].endswith("(as if that were folded twice)")
    assert right.config == sae.config


def test_activations_that_were_centred_or_normalised_in_training_are_named():
    sae, x = world()
    with_mean = x + torch.linspace(-60, 60, len(x))[:, None]
    centred = changed(sae, {"b_dec": sae.b_dec - sae.b_dec.mean()})
    flat = x - x.mean(1, keepdim=True)
    assert find_fit(centred, {"own": flat}).loaded.fvu < 0.5
    assert find_fit(centred, {"own": with_mean}).best.changes == ("activations centred",)
    lengths = torch.linspace(0.05, 40, len(x))[:, None]
    at_norm = x / x.norm(dim=1, keepdim=True) * math.sqrt(D_IN)
    scale = at_norm.norm() / x.norm()
    rescaled = scaled(sae, float(1 / scale))
    found = find_fit(rescaled, {"own": x * lengths}).best
    assert found.changes == ("activations normalised (constant_norm_rescale)",)
    kept = changed(rescaled, normalize_activations="constant_norm_rescale")
    assert find_fit(kept, {"own": x * lengths}).best.changes == ()


def test_other_rows_that_fit_are_named_by_where_they_are_from():
    sae, x = world()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * 3
    fit = find_fit(sae, {"own": noise, "blocks.1.hook_out": x, "blocks.2.hook_out": -x})
    assert (fit.best.changes, fit.best.place) == (("on blocks.1.hook_out",), "blocks.1.hook_out")


def test_two_mistakes_at_once_are_both_named():
    sae, x = world()
    sae, x = world(offset=1.0)
    wrong = changed(sae, {"W_dec": sae.W_dec.T}, apply_b_dec_to_input=False)
    fit = find_fit(wrong, {"own": x})
    assert set(fit.best.changes) == {"W_dec transposed", "b_dec subtracted from the input"}
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * 3
    elsewhere = find_fit(changed(sae, apply_b_dec_to_input=False), {"own": noise, "blocks.1.hook_out": x})
    assert set(elsewhere.best.changes) == {"on blocks.1.hook_out", "b_dec subtracted from the input"}


def test_what_is_better_by_a_little_is_no_mistake():
    sae, x = world()
    loaded = find_fit(sae, {"own": x}).loaded
    near = [loaded._replace(quality=loaded.quality._replace(fvu=fvu)) for fvu in (0.20, 0.17, 0.15)]
    assert not is_better(near[1], near[0]) and is_better(near[2], near[0])
    assert not is_better(
        near[0]._replace(quality=loaded.quality._replace(fvu=0.001)),
        near[0]._replace(quality=loaded.quality._replace(fvu=0.02)),
    )
    broken = near[0]._replace(quality=loaded.quality._replace(fvu=float("nan")))
    assert is_better(near[0], broken) and not is_better(broken, near[0])


@pytest.mark.parametrize(
    ("single", "pair", "best"),
    [(0.75, 0.61, ("one", "two")), (0.66, 0.61, ("one",)), (0.5, 0.45, ("one",)), (0.5, 0.3, ("one", "two")),
     (0.75, 0.71, ()), (0.3, 0.9, ("one",))],
)  # fmt: skip
def test_a_pair_is_held_against_a_single_change_only_where_that_is_better_itself(monkeypatch, single, pair, best):
    sae, x = world(rows=50)
    as_loaded = quality(sae, [x])[0]
    monkeypatch.setattr(fit_module, "_quality", lambda of, x: as_loaded._replace(fvu=0.90 if of is sae else single))
    monkeypatch.setattr(fit_module, "_changes", lambda *_: iter([("one", "own", changed(sae))]))
    found = Reading(("one", "two"), "own", as_loaded._replace(fvu=pair))
    monkeypatch.setattr(fit_module, "_best_pair", lambda *_: found)
    assert find_fit(sae, {"own": x}).best.changes == best


def test_no_more_than_four_changed_saes_are_held_and_they_share_what_is_not_changed(monkeypatch):
    sae, x = world(rows=200, offset=1.0)
    wrong = changed(sae, {"W_dec": sae.W_dec.T}, apply_b_dec_to_input=False)
    made, most, make = weakref.WeakSet(), [], fit_module._with

    def counted(*args, **config):
        made.add(one := make(*args, **config))
        most.append(len(made))
        return one

    monkeypatch.setattr(fit_module, "_with", counted)
    assert find_fit(wrong, {"own": x}).best.fvu < 1e-9
    assert 1 < max(most) <= 4
    centred = make(wrong, {}, centred_input=True)
    assert centred.config.centred_input and not wrong.config.centred_input
    assert all(getattr(centred, name) is value for name, value in wrong.named_parameters())
