"""sae_lm.metrics.graded_saes: an oracle that nothing displaces, and copies that are spoilt as asked."""

import pytest
import torch
from toys import identity_sae

from sae_lm.metrics.codes import encode_sparse
from sae_lm.metrics.false_alarms import gate_ratios
from sae_lm.metrics.graded_saes import PlantedSAE, absorbing_sae, dropped_sae, oracle_sae, permuted_sae

WEIGHT, BIAS = torch.tensor([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), [-1.0, 0.25]


def rows(n=400, seed=0):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_a_planted_latent_fires_where_its_probe_says_yes_and_displaces_nothing(make_sae, architecture):
    sae, x, bias = make_sae(architecture), rows(), torch.tensor(BIAS)
    planted = PlantedSAE(sae, WEIGHT, bias)
    z = planted.encode(x)
    assert torch.equal(z[:, :10], sae.encode(x)) and torch.equal(z[:, 10:] > 0, x @ WEIGHT + bias > 0)
    at = z[:, 10] > 0
    torch.testing.assert_close(z[at, 10], x[at, 0])  # the projection, where the probe says yes to positive ones only
    codes = encode_sparse(planted, x.split(150))
    torch.testing.assert_close(codes.columns(list(range(12))), z * planted.W_dec.norm(dim=1))


def test_the_oracle_takes_the_concept_from_a_latent_that_fires_only_with_it():
    """Axis 0 is the concept, axis 1 its child; latent 0 is silent on children, latent 1 carries both there."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 3, (600,), generator=generator)  # concept, concept and child, neither
    x = 0.01 * torch.randn(600, 6, generator=generator)
    x[:, 0] += 2.0 * (kind < 2)
    x[:, 1] += 2.0 * (kind == 1)
    x[:, 2] += 2.0 * (kind == 2)
    W_enc, W_dec, b_enc = torch.eye(6), torch.eye(6), torch.full((6,), -0.5)
    W_enc[1, 0] = -1.0
    W_dec[1] = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) / 2**0.5
    sae = identity_sae(6, W_enc=W_enc, W_dec=W_dec, b_enc=b_enc)
    weight, bias = torch.tensor([[1.0], [0], [0], [0], [0], [0]]), torch.tensor([-1.0])
    oracle = oracle_sae(sae, weight, bias, x.split(256))
    assert abs(float(oracle.W_dec[1, 0])) < 0.05 < float(sae.W_dec[1, 0])
    assert torch.equal(oracle.W_dec[6], weight[:, 0])
    torch.testing.assert_close(oracle.W_dec[:6, 1:], sae.W_dec[:, 1:])
    before, after = ((x - other(x)).square().sum() for other in (PlantedSAE(sae, weight, bias), oracle))
    assert after < before


def children(n=1000):
    """Axis 0 is the concept; axes 1 to 4 fire on a tenth of its rows each, axis 5 on all rows without it."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 20, (n,), generator=generator)
    x = torch.zeros(n, 6)
    x[:, 0] = torch.where(kind < 10, 1 + torch.rand(n, generator=generator), -1)
    for axis in range(1, 5):
        x[kind == axis, axis] = 2 + torch.rand(int((kind == axis).sum()), generator=generator)
    x[kind >= 10, 5] = 1
    return x


WITHOUT_CONCEPT = {"W_enc": torch.diag(torch.tensor([0.0, 1, 1, 1, 1, 1])), "b_enc": torch.full((6,), -0.5)}


@pytest.mark.parametrize(("share", "absorbers"), [(0.05, 0), (0.25, 2), (0.9, 4)])
def test_absorbers_fire_only_with_the_concept_silence_its_latent_and_take_its_part(share, absorbers):
    x, sae = children(), identity_sae(6, **WITHOUT_CONCEPT)
    oracle = PlantedSAE(sae, torch.eye(6)[:, :1], torch.zeros(1))
    absorbing = absorbing_sae(oracle, share, x.split(300), seed=0)
    z, before, has = absorbing.encode(x), oracle.encode(x), x[:, 0] > 0
    of = absorbing.absorbers[:, 0]
    assert int(of.sum()) == absorbers and not of[[0, 5]].any()
    taken = (z[:, :6][:, of] > 0).any(1)
    assert torch.equal(z[:, 6] > 0, has & ~taken) and int(taken.sum()) <= share * int(has.sum())
    assert torch.equal(z[:, :6], before[:, :6]) and torch.equal(z[~taken], before[~taken])
    parts = torch.linalg.lstsq(z[taken][:, :6][:, of].double(), x[taken, :1].double()).solution[:, 0].float()
    torch.testing.assert_close((absorbing.W_dec - oracle.W_dec)[:6][of][:, 0], parts)
    assert torch.equal(absorbing.W_dec[:, 1:], oracle.W_dec[:, 1:])
    assert torch.equal(absorbing.W_dec[:6][~of], oracle.W_dec[:6][~of])


def test_latents_that_fire_together_share_what_they_take():
    x = children()
    W_enc = WITHOUT_CONCEPT["W_enc"].clone()
    W_enc[1, 2] = 1.0  # latent 2 fires wherever latent 1 does
    oracle = PlantedSAE(identity_sae(6, **(WITHOUT_CONCEPT | {"W_enc": W_enc})), torch.eye(6)[:, :1], torch.zeros(1))
    absorbing = absorbing_sae(oracle, 0.9, [x], seed=0)
    both = x[:, 1] > 0
    assert bool(absorbing.absorbers[1:3, 0].all())
    assert float(absorbing(x)[both, 0].mean() / x[both, 0].mean()) == pytest.approx(1, abs=0.05)


def test_of_no_gate_a_planted_latent_fires_where_its_concept_is_absorbed():
    x = children()
    oracle = PlantedSAE(identity_sae(6, **WITHOUT_CONCEPT), torch.eye(6)[:, :1], torch.zeros(1))
    absorbing = absorbing_sae(oracle, 0.25, [x], seed=0)
    ratio = gate_ratios(absorbing, [x], [[6]])[:, 0]
    taken = (x[:, 0] > 0) & (absorbing.encode(x)[:, 6] == 0)
    assert taken.any() and bool((ratio[taken] == -torch.inf).all()) and bool(ratio[~taken].isfinite().all())


def test_permuted_rows_keep_their_norms_and_none_its_direction(make_sae):
    sae = make_sae(unit=False)
    half, whole = (permuted_sae(sae, share, seed=1) for share in (0.5, 1.0))

    def moved(other):
        return ~torch.isclose(other.W_dec, sae.W_dec).all(1)

    assert int(moved(half).sum()) == 5 and moved(whole).all() and bool((moved(half) <= moved(whole)).all())
    torch.testing.assert_close(whole.W_dec.norm(dim=1), sae.W_dec.norm(dim=1))
    assert torch.equal(whole.encode(rows()), sae.encode(rows()))
    unit = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    cosines = whole.W_dec / whole.W_dec.norm(dim=1, keepdim=True) @ unit.T
    assert sorted(cosines.argmax(1).tolist()) == list(range(10))


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_dropped_latents_never_fire_and_topk_takes_the_next_largest(make_sae, architecture):
    sae, x = make_sae(architecture), rows()
    for share, left in ((0.5, 5), (1.0, 0)):
        z = dropped_sae(sae, share, seed=1).encode(x)
        assert int((z > 0).any(0).sum()) == left
        if architecture != "topk":
            assert bool(((z == 0) | (z == sae.encode(x))).all())
    if architecture == "topk":
        z = dropped_sae(sae, 0.2, seed=1).encode(x)
        left = sae.encode(x)[:, (z > 0).any(0)]
        assert int((z > 0).sum()) > int((left > 0).sum())
