"""Our numbers against those of SAEBench 0.6.0 and SAELens on the same tensors; fixtures made by peers.py."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sae_lm.concepts.rows import ConceptRows
from sae_lm.concepts.word_split import TRAIN, VALIDATION
from sae_lm.metrics.absorption import ConceptAtSae, fraction_scores, full_scores, projections
from sae_lm.metrics.codes import firing_codes
from sae_lm.metrics.meta_sae import explained_variance
from sae_lm.metrics.reconstruction import quality
from sae_lm.metrics.splitting import rule, split_counts
from sae_lm.sae.model import SAE, SaeConfig

FILE = Path(__file__).parents[1] / "fixtures" / "peers.safetensors"
with safe_open(FILE, "pt") as opened:
    PEERS = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    VERSIONS = opened.metadata()
CASES = sorted({name.split("/")[1] for name in PEERS if name.startswith("absorption/")})


def part(prefix):
    return {name.removeprefix(prefix): value for name, value in PEERS.items() if name.startswith(prefix)}


def test_the_fixtures_are_of_the_versions_that_docstrings_name():
    assert VERSIONS["sae-bench"] == "0.6.0" and VERSIONS["sae-lens"].startswith("6.")


# --- absorption


def sparse(a):
    strength, latent = a.topk(max(1, int((a > 0).sum(1).max())), dim=1)
    return firing_codes(strength, latent, a.shape[1])


def projected(codes, given, W_dec):
    x = given["x"]
    return projections(ConceptAtSae(codes, x, torch.arange(len(x)), W_dec, given["probe"]), given["main"].tolist())


@pytest.mark.parametrize("norms", ["unit", "uneven"])
@pytest.mark.parametrize("case", CASES)
def test_absorption_is_saebenchs_full_exactly_and_fraction_to_a_millionth(case, norms):
    given = part(f"absorption/{case}/")
    # SAEBench wants unit decoders; rows of any norm, encoders made up for it, are the same SAE
    scale = torch.linspace(0.5, 4, len(given["W_dec"])) if norms == "uneven" else torch.ones(len(given["W_dec"]))
    codes, W_dec = sparse(given["a"]), given["W_dec"] * scale[:, None]
    parts = projected(codes, given, W_dec)
    assert full_scores(parts).tolist() == given["full"].tolist()
    torch.testing.assert_close(fraction_scores(parts).double(), given["fraction"], atol=1e-6, rtol=0)


def test_the_fixtures_hold_every_outcome():
    full = torch.cat([part(f"absorption/{case}/")["full"] for case in CASES])
    fraction = torch.cat([part(f"absorption/{case}/")["fraction"] for case in CASES])
    assert 20 < full.sum() < len(full) - 20
    assert min((fraction == 0).sum(), (fraction == 1).sum(), ((fraction > 0) & (fraction < 1)).sum()) > 20


def test_the_cosine_gate_and_the_silence_of_each_main_latent_decide_in_the_fixtures():
    given = part("absorption/cosines near the gates/")
    parts = projected(sparse(given["a"]), given, given["W_dec"])
    assert not torch.equal(full_scores(parts, cos=0.0, share=0.0), full_scores(parts, cos=0.1, share=0.0))
    given = part("absorption/almost silent main latents/")
    main = given["a"][:, given["main"]]
    assert ((main.sum(1) >= 1e-8) & (main < 1e-8).all(1)).any() and ((main > 0).any(1) & given["full"]).any()


# --- splitting


def test_the_splitting_rule_is_sae_spellings():
    for curve, count in zip(PEERS["rule/f1"].tolist(), PEERS["rule/count"].tolist(), strict=True):
        assert rule(curve, 0.03)[0] == count
    assert len(PEERS["rule/count"].unique()) >= 5


def test_probe_regressions_and_rule_together_give_saebenchs_main_latents():
    given = part("splitting/")
    letter, train = given["letter"].long(), given["train"]
    n, d_sae = len(letter), int(given["d_sae"])
    rows = ConceptRows(
        x=torch.zeros(n, 1),
        token_id=torch.arange(n),
        labels=torch.nn.functional.one_hot(letter, 26).bool(),
        subset=torch.where(train, TRAIN, VALIDATION),
        names=[chr(97 + c) for c in range(26)],
    )
    codes = firing_codes(given["strength"], given["latent"].long(), d_sae)
    splits = split_counts(codes, rows, list(range(26)), max_k=given["f1"].shape[1], gain=0.03, seed=0)
    for c, count in enumerate(given["count"].tolist()):
        assert len(splits[c].latents) == count == 1 + c % 4
        assert set(splits[c].latents) == set(given["latents"][c, :count].tolist())
    # which of a letter's latents ranks first is the probe's shuffling; all of them together is not
    for c, count in enumerate(given["count"].tolist()):
        assert splits[c].f1_by_k[count - 1] == pytest.approx(float(given["f1"][c, count - 1]), abs=1e-6)


# --- quality


def measured(unit=1.0, size=100):
    given = part("variance/")
    weights = {name: given[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    weights |= {"b_enc": given["b_enc"] * unit, "b_dec": given["b_dec"] * unit}
    sae = SAE(SaeConfig(architecture="standard", d_in=10, d_sae=24), weights)
    return quality(sae, (given["x"] * unit).split(size))[0]


def test_one_minus_fvu_is_saelens_explained_variance():
    assert 1 - measured().fvu == pytest.approx(float(PEERS["variance/saelens"]), abs=1e-6)
    assert 0.05 < measured().fvu < 0.95


def test_l0_density_norm_ratio_and_reconstruction_bias_are_saebenchs():
    peer, ours = part("variance/saebench whole/"), measured()
    assert ours.l0 == pytest.approx(float(peer["l0"]), rel=1e-6)
    assert ours.l2_ratio == pytest.approx(float(peer["l2_ratio"]), rel=1e-5)
    assert ours.bias == pytest.approx(float(peer["relative_reconstruction_bias"]), rel=1e-5)
    for share, ours_share in ((0.1, ours.dense), (0.01, ours.dense_1)):
        assert ours_share == pytest.approx(float((peer["density"] > share).double().mean()))
    assert ours.dead == pytest.approx(float((peer["density"] == 0).double().mean()))


def test_saebenchs_explained_variance_changes_with_the_unit_of_the_activations_and_ours_does_not():
    truth = float(PEERS["variance/saelens"])
    theirs = [float(PEERS[f"variance/saebench {name}/explained_variance"]) for name in ("whole", "in tenths")]
    assert abs(theirs[0] - theirs[1]) > 0.01 and max(abs(number - truth) for number in theirs) > 0.01
    assert 1 - measured(unit=0.1).fvu == pytest.approx(truth, abs=1e-6)
    # what it computes: the mean square squared, where the square of the mean belongs
    x = PEERS["variance/x"].double()
    square = float(x.square().sum(1).mean())
    assert theirs[0] == pytest.approx(1 - measured().mse / (square - (square / 10) ** 2), abs=1e-5)


def test_saebenchs_mse_falls_as_batches_grow_and_ours_does_not():
    whole, thirds = (float(PEERS[f"variance/saebench {name}/mse"]) for name in ("whole", "in three batches"))
    assert thirds == pytest.approx(3 * whole, rel=1e-5)
    assert measured(size=360).mse == pytest.approx(measured(size=120).mse, rel=1e-9) == pytest.approx(360 * whole, 1e-5)


# --- meta-SAE


@pytest.mark.parametrize("name", ["close", "mean", "worse than the mean"])
def test_explained_variance_of_decoder_rows_is_saebenchs(name):
    given = part(f"meta/{name}/")
    assert explained_variance(given["rows"], given["reconstruction"]) == pytest.approx(float(given["score"]), abs=1e-6)
