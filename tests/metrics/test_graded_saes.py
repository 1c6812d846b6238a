"""sae_lm.metrics.graded_saes: an oracle that nothing displaces, and copies that are spoilt as asked."""

from itertools import pairwise

import pytest
import torch
from toys import identity_sae

from sae_lm.metrics.codes import encode_sparse
from sae_lm.metrics.false_alarms import gate_ratios
from sae_lm.metrics.graded_saes import PlantedSAE, absorbing_saes, dropped_sae, oracle_sae, permuted_sae

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


def absorbing(oracle, x, share):
    return absorbing_saes(oracle, [share], [x.split(300)], [range(len(oracle.bias))], [x], seed=0)[0]


@pytest.mark.parametrize(("share", "absorbers"), [(0.05, 0), (0.25, 2), (0.9, 4)])
def test_absorbers_fire_only_with_the_concept_silence_its_latent_and_take_its_part(share, absorbers):
    x, sae = children(), identity_sae(6, **WITHOUT_CONCEPT, b_dec=torch.full((6,), 0.01))
    oracle = PlantedSAE(sae, torch.eye(6)[:, :1], torch.zeros(1))
    other = absorbing(oracle, x, share)
    z, before, has = other.encode(x), oracle.encode(x), x[:, 0] > 0
    of = other.absorbers[:, 0]
    assert int(of.sum()) == absorbers and not of[[0, 5]].any()
    taken = (z[:, :6][:, of] > 0).any(1)
    assert torch.equal(z[:, 6] > 0, has & ~taken) and int(taken.sum()) <= share * int(has.sum())
    assert torch.equal(z[:, :6], before[:, :6]) and torch.equal(z[~taken], before[~taken])
    parts = torch.linalg.lstsq(z[taken][:, :6][:, of].double(), x[taken, :1].double()).solution[:, 0].float()
    torch.testing.assert_close((other.W_dec - oracle.W_dec)[:6][of][:, 0], parts)
    assert torch.equal(other.W_dec[:, 1:], oracle.W_dec[:, 1:]) and torch.equal(other.b_dec, oracle.b_dec)
    assert torch.equal(other.W_dec[:6][~of], oracle.W_dec[:6][~of])
    lost, after = ((x - each(x)).square().sum() for each in (oracle, other))
    assert after <= 1.25 * lost + 0.1 * len(x[taken])


def test_what_the_oracle_changed_stays_and_rows_where_the_probe_says_no_count_for_nothing():
    x = children()
    without = (x[:, 0] < 0).nonzero().flatten()
    x[without[: int((x[:, 1] > 0).sum() * 0.1)], 1] = 9.0  # a tenth as many rows as with the concept, and loud
    oracle = PlantedSAE(identity_sae(6, **WITHOUT_CONCEPT), torch.eye(6)[:, :1], torch.zeros(1))
    oracle.W_dec[5] = torch.tensor([0.0, 0.5, 0, 0, 0, 1])
    oracle.b_dec[3] = 0.25
    other = absorbing(oracle, x, 0.9)
    assert torch.equal(other.W_dec[5:], oracle.W_dec[5:]) and torch.equal(other.b_dec, oracle.b_dec)
    z, said = other.encode(x)[:, 1], x[:, 0] > 0
    assert bool(other.absorbers[1, 0]) and bool((z[~said] > 0).any())
    part = (z * x[:, 0])[said].sum() / z[said].square().sum()  # least squares, as no other fires there
    torch.testing.assert_close(other.W_dec[1, 0], part)


def test_latents_that_fire_together_share_what_they_take():
    x = children()
    W_enc = WITHOUT_CONCEPT["W_enc"].clone()
    W_enc[1, 2] = 1.0  # latent 2 fires wherever latent 1 does
    oracle = PlantedSAE(identity_sae(6, **(WITHOUT_CONCEPT | {"W_enc": W_enc})), torch.eye(6)[:, :1], torch.zeros(1))
    other = absorbing(oracle, x, 0.9)
    both = x[:, 1] > 0
    assert bool(other.absorbers[1:3, 0].all())
    assert float(other(x)[both, 0].mean() / x[both, 0].mean()) == pytest.approx(1, abs=0.05)


def test_what_fires_elsewhere_too_or_on_three_rows_absorbs_nothing():
    x = children()
    without = (x[:, 0] < 0).nonzero().flatten()
    x[without[: int((x[:, 1] > 0).sum() * 0.2)], 1] = 2.0  # a sixth of latent 1's rows
    x[:, 2] = 0
    x[(x[:, 0] > 0).nonzero().flatten()[:3], 2] = 2.0
    oracle = PlantedSAE(identity_sae(6, **WITHOUT_CONCEPT), torch.eye(6)[:, :1], torch.zeros(1))
    assert absorbing(oracle, x, 0.9).absorbers[:, 0].tolist() == [False, False, False, True, True, False]


def test_what_fires_elsewhere_in_the_text_alone_absorbs_nothing_and_what_it_carries_there_counts():
    x, text = children(), children(400)
    text[text[:, 0] < 0, 1] = 2.0  # latent 1 is pure on the concept's own rows, not in the text
    text[:, 2] *= 2  # and what fires twice as strongly there takes less for it
    oracle = PlantedSAE(identity_sae(6, **WITHOUT_CONCEPT), torch.eye(6)[:, :1], torch.zeros(1))
    alone = absorbing_saes(oracle, [0.9], [[x]], [[0]], [x[:0]], seed=0)[0]
    other = absorbing_saes(oracle, [0.9], [[x]], [[0]], [text], seed=0)[0]
    assert alone.absorbers[:, 0].tolist() == [False, True, True, True, True, False]
    assert other.absorbers[:, 0].tolist() == [False, False, True, True, True, False]
    assert other.W_dec[2, 0] < alone.W_dec[2, 0] - 0.05


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_a_latent_may_absorb_two_concepts_and_takes_of_each_what_was_its_own(make_sae, architecture):
    """Concept 0 is axis 0; concept 1, axis 5, holds where latents 1 and 2 fire, and latents 3 and 4 come with the first alone."""
    x = children(2000)
    x[:, 5] = torch.where((x[:, 1] > 0) | (x[:, 2] > 0), 3.0, -1.0)
    sae = make_sae(architecture, d_in=6, d_sae=6, k=6)
    W_enc = torch.diag(torch.tensor([0.0, 1, 1, 1, 1, 0]))
    weights = {"W_enc": W_enc, "b_enc": WITHOUT_CONCEPT["b_enc"], "W_dec": torch.eye(6)}
    for name, value in weights.items():
        getattr(sae, name).data.copy_(value)
    sae.b_dec.data.zero_()
    if architecture == "jumprelu":
        sae.threshold.data.fill_(0.01)
    oracle = PlantedSAE(sae, torch.eye(6)[:, [0, 5]], torch.zeros(2))
    other = absorbing(oracle, x, 1.0)
    z, before = other.encode(x), oracle.encode(x)
    assert bool(other.absorbers[1:3].all()) and other.absorbers[3:5].tolist() == [[True, False]] * 2
    for probe in (0, 1):
        taken = (z[:, :6][:, other.absorbers[:, probe]] > 0).any(1)
        assert torch.equal(z[:, 6 + probe], torch.where(taken, 0.0, before[:, 6 + probe]))
    of = other.absorbers[:, 1]
    taken = (z[:, :6][:, of] > 0).any(1)
    parts = torch.linalg.lstsq(z[taken][:, :6][:, of].double(), before[taken, 7:].double()).solution[:, 0].float()
    torch.testing.assert_close((other.W_dec - oracle.W_dec)[:6][of][:, 5], parts)


def test_a_larger_share_takes_in_the_absorbers_of_a_smaller_and_sets_of_rows_are_their_probes_own():
    x = children()
    oracle = PlantedSAE(identity_sae(6, **WITHOUT_CONCEPT), torch.eye(6)[:, [0, 0]], torch.zeros(2))
    without = x[x[:, 0] < 0]  # the second probe's set: nothing absorbs there
    ladder = absorbing_saes(oracle, [0.15, 0.25, 0.9], [[x], [without]], [[0], [1]], [x], seed=3)
    counts = [int(sae.absorbers[:, 0].sum()) for sae in ladder]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 4
    for less, more in pairwise(ladder):
        assert bool((less.absorbers <= more.absorbers).all())
    assert not any(sae.absorbers[:, 1].any() for sae in ladder)
    for axis, rows in ((1, 40), (2, 60), (3, 10), (4, 25)):  # of uneven sizes what fits is not nested of itself
        x[:, axis] = 0
        x[(x[:, 0] > 0).nonzero().flatten()[100 * (axis - 1) :][:rows], axis] = 2.0
    for seed in range(12):
        pairs = absorbing_saes(oracle, [0.1, 0.2], [[x], []], [[0], []], [x], seed)
        assert bool((pairs[0].absorbers <= pairs[1].absorbers).all())
    drawn = {
        tuple(absorbing_saes(oracle, [0.15], [[x], []], [[0], []], [x], s)[0].absorbers[:, 0].tolist())
        for s in range(8)
    }
    assert len(drawn) > 1


def test_of_no_gate_a_planted_latent_fires_where_its_concept_is_absorbed():
    x = children()
    oracle = PlantedSAE(identity_sae(6, **WITHOUT_CONCEPT), torch.eye(6)[:, :1], torch.zeros(1))
    other = absorbing(oracle, x, 0.25)
    ratio, has = gate_ratios(other, [x], [[6]])[:, 0], x[:, 0] > 0
    taken = has & (other.encode(x)[:, 6] == 0)
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
