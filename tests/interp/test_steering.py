"""sae_lm.Steer: each action is a plain formula on the activation, and changes what the model says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import sae_lm
from sae_lm.errors import SaeError, SaeLmError
from sae_lm.interp.steering import as_list, edits
from sae_lm.sae.model import SAE

pytestmark = pytest.mark.transformer_lens_3

IDS = torch.tensor([[0, 5, 9, 33, 70, 12], [0, 8, 8, 250, 3, 44]])
HOOK = "blocks.1.hook_out"


@pytest.fixture(scope="module")
def model(tiny_model):
    return sae_lm.load_model(str(tiny_model), device="cpu")


@pytest.fixture
def sae(make_sae):
    return make_sae("standard", d_in=16, d_sae=32, unit=False)


def steered(model, sae, steering, **options):
    with sae_lm.splice(model, sae, steering=steering, **options):
        return model.run_with_cache(IDS, names_filter="blocks.2.hook_in")[1]["blocks.2.hook_in"]


def busiest(sae, x):
    return int(sae.encode(x).sum((0, 1)).argmax())


@pytest.mark.parametrize("action", ["add", "clamp", "ablate", "orthogonal"])
@pytest.mark.parametrize("error_term", [None, False])
def test_every_action_is_its_plain_formula_and_leaves_special_tokens_alone(model, sae, action, error_term):
    x = model.run_with_cache(IDS, names_filter=HOOK)[1][HOOK]
    z, latent = sae.encode(x), busiest(sae, x)
    row, amount = sae.W_dec[latent], 2.5 * 4.0
    base = x if error_term is None else sae(x)
    own = z[..., latent, None]
    direction = row / row.norm()
    expected = {
        "add": base + amount * row,
        "clamp": base + (amount - own) * row,
        "ablate": base - own * row,
        "orthogonal": base - (base @ direction)[..., None] * direction + amount * row,
    }[action]
    expected = torch.where((IDS == 0)[..., None], x, expected)
    steering = sae_lm.Steer(latent, action, strength=2.5, largest=None if action == "ablate" else 4.0)
    got = steered(model, sae, steering, error_term=error_term)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(got[IDS == 0], x[IDS == 0])


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_an_sae_that_normalises_is_steered_in_its_own_units(model, sae, norm):
    config = replace(sae.config, normalize_activations=norm)
    own = SAE(config, dict(sae.named_parameters()))
    x = model.run_with_cache(IDS, names_filter=HOOK)[1][HOOK]
    scale = x.std(-1, keepdim=True) if norm == "layer_norm" else x.norm(dim=-1, keepdim=True) / 4
    row, z = sae.W_dec[3], own.encode(x)
    direction = row / row.norm()
    expected = {
        "add": x + 5 * scale * row,
        "clamp": x + (5 - z[..., 3, None]) * scale * row,
        "orthogonal": x - (x @ direction)[..., None] * direction + 5 * scale * row,
    }
    for action, after in expected.items():
        got = steered(model, own, sae_lm.Steer(3, action, 5.0, largest=1.0), keep=None)
        torch.testing.assert_close(got, after, rtol=1e-3, atol=1e-3)


def test_a_clamp_changes_the_logits_though_the_error_term_is_there(model, sae):
    latent = busiest(sae, model.run_with_cache(IDS, names_filter=HOOK)[1][HOOK])
    clean = model(IDS)
    with sae_lm.splice(model, sae, steering=sae_lm.Steer(latent, "clamp", strength=3.0, largest=5.0)):
        changed = model(IDS)
    assert float((changed - clean)[:, 1:].abs().max()) > 1e-2
    assert torch.equal(changed[:, 0], clean[:, 0])


def test_several_edits_are_made_one_after_the_other_and_a_hook_sees_their_outcome(model, sae):
    edits = [
        sae_lm.Steer(3, "clamp", 1.0, largest=2.0),
        sae_lm.Steer(3, "add", 1.0, largest=0.5),
        sae_lm.Steer(4, "ablate"),
    ]
    seen = []
    with (
        sae_lm.splice(model, sae, steering=edits) as latents,
        latents.hooks(fwd_hooks=[("hook_sae_acts_post", lambda acts, hook: seen.append(acts.clone()))]),
    ):
        model(IDS)
    assert (seen[0][..., 3] == 2.5).all() and (seen[0][..., 4] == 0).all()


def test_of_several_saes_the_one_at_the_named_hook_is_steered(model, make_sae):
    saes = {hook: make_sae("standard", d_in=16) for hook in ("blocks.0.hook_mlp_out", "blocks.1.hook_resid_post")}
    steer = sae_lm.Steer(3, "add", largest=10.0, hook="blocks.1.hook_out")
    cache = sae_lm.run_with_cache(model, IDS, saes, steering=steer)[1]
    with sae_lm.splice(model, saes["blocks.0.hook_mlp_out"], hook="blocks.0.hook_mlp_out", error_term=True):
        alone = model.run_with_cache(IDS, names_filter=HOOK)[1][HOOK]
    moved = (cache["blocks.2.hook_in"] - alone)[:, 1:]
    torch.testing.assert_close(
        moved, (10.0 * saes["blocks.1.hook_resid_post"].W_dec[3]).expand_as(moved), rtol=1e-3, atol=1e-4
    )
    for hook in (None, "blocks.2.hook_out"):
        with (
            pytest.raises(SaeError, match="give Steer"),
            sae_lm.splice(model, saes, steering=replace(steer, hook=hook)),
        ):
            pass


def test_strength_is_in_multiples_of_the_largest_activation_given_or_known_to_the_sae(model, sae):
    known = SAE(
        replace(sae.config, metadata={**sae.config.metadata, "largest_activations": [float(i) for i in range(32)]}),
        dict(sae.named_parameters()),
    )
    given = steered(model, sae, sae_lm.Steer(7, strength=0.5, largest=7.0))
    assert torch.equal(steered(model, known, sae_lm.Steer(7, strength=0.5)), given)
    assert torch.equal(steered(model, known, sae_lm.Steer(7, strength=3.5, largest=1)), given)
    with pytest.raises(SaeError, match=r"largest activation, which is not known; give largest="):
        steered(model, sae, sae_lm.Steer(7))


@pytest.mark.parametrize("said", [None, "a lot", [1.0], [float("nan")] * 32, [-1.0] * 32, [True], [0.0] * 32])
def test_a_largest_activation_that_is_no_number_above_zero_is_not_known(model, sae, said):
    known = SAE(
        replace(sae.config, metadata={**sae.config.metadata, "largest_activations": said}), dict(sae.named_parameters())
    )
    with pytest.raises(SaeError, match=r"largest activation, which is not known.*; give largest="):
        steered(model, known, sae_lm.Steer(7))
    steered(model, known, sae_lm.Steer(7, "ablate"))


@pytest.mark.parametrize("action", ["add", "clamp", "orthogonal"])
@pytest.mark.parametrize("largest", [0, 0.0, -1.0])
def test_a_largest_activation_of_a_latent_that_never_fired_is_refused_and_not_taken_for_no_steering(action, largest):
    with pytest.raises(SaeError, match=r"largest .* is .*, expected a number above 0: .*; give largest=1"):
        sae_lm.Steer(7, action, largest=largest)


def test_an_sae_that_was_trained_here_is_steered_by_its_largest_activation_at_once(model, tiny_store, tmp_path):
    from sae_lm.settings import TrainSettings

    settings = {"d_sae": 24, "k": 4, "arms": "none", "seeds": 1, "tokens": "3k", "batch_size": 128, "device": "cpu"}
    runs = sae_lm.train(TrainSettings(store=str(tiny_store), hook=HOOK, out=tmp_path / "runs", **settings))
    sae, store = sae_lm.load(runs / "none-seed0"), sae_lm.open_store(tiny_store)
    largest = sae_lm.largest_activations(sae, store)
    known = sae.config.metadata["largest_activations"]
    assert known == [float(f"{value:.4g}") for value in largest.tolist()]  # the store has fewer rows than are looked at
    latent = int(largest.argmax())
    by_itself = steered(model, sae, sae_lm.Steer(latent, strength=2.0))
    assert torch.equal(by_itself, steered(model, sae, sae_lm.Steer(latent, strength=2.0, largest=known[latent])))


def test_the_largest_activations_are_those_over_all_rows(tiny_store, make_sae):
    store = sae_lm.open_store(tiny_store)
    sae = make_sae(d_in=16, d_sae=32)
    z = sae.encode(store.rows(HOOK))
    assert torch.equal(sae_lm.largest_activations(sae, store), z.amax(0))
    assert torch.equal(sae_lm.largest_activations(sae, store, start=100, stop=900), z[100:900].amax(0))
    with pytest.raises(SaeError, match="width"):
        sae_lm.largest_activations(make_sae(), store)


def test_a_damaged_row_does_not_hide_the_largest_activations_of_the_others(tiny_store, make_sae, monkeypatch):
    store, sae = sae_lm.open_store(tiny_store), make_sae(d_in=16, d_sae=32)
    rows = store.rows(HOOK)
    rows[[5, 700]], rows[900, 3] = float("nan"), float("inf")
    monkeypatch.setattr(store, "rows", lambda hook, start, stop: rows[start:stop])
    others = torch.tensor([row for row in range(len(store)) if row not in (5, 700, 900)])
    torch.testing.assert_close(sae_lm.largest_activations(sae, store), sae.encode(rows[others]).amax(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sae_lm.Steer(3, "multiply"), "action is 'multiply', expected one of add, clamp"),
        (lambda: sae_lm.Steer(3, strength=float("nan")), "strength .* expected a finite number"),
        (lambda: sae_lm.Steer(32, largest=1.0), "latent 32, this SAE has latents 0 to 31"),
        (lambda: as_list([{"latent": 3}]), "steering holds"),
    ],
)
def test_wrong_steering_is_refused_in_a_sentence(model, sae, make, message):
    with pytest.raises(SaeLmError, match=message):
        steered(model, sae, [make()])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("latent", [1.5, -1, "3", None, True, [3], torch.tensor([1, 2])])
def test_a_latent_that_is_no_whole_number_is_refused(latent):
    with pytest.raises(SaeError, match="steering names latent .*, expected a whole number from 0 on"):
        sae_lm.Steer(latent, largest=1.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", [{"strength": "2"}, {"strength": None}, {"strength": [1.0]}, {"largest": "2"}])
def test_a_strength_that_is_no_number_is_refused(given):
    with pytest.raises(
        SaeError, match=f"{next(iter(given))} of the steering of latent 3 is .*, expected a finite number"
    ):
        sae_lm.Steer(3, **given)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_steering_may_be_those_of_tensors_and_arrays(model, sae):
    steers = [
        sae_lm.Steer(7, strength=2.0, largest=3.0),
        sae_lm.Steer(torch.tensor(7), strength=torch.tensor(2.0), largest=torch.tensor(3.0)),
        sae_lm.Steer(np.int64(7), strength=np.float32(2), largest=np.float64(3)),
    ]
    assert len({*edits(sae, steers)}) == 1
