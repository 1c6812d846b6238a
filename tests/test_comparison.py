"""Which arms are compared with what, what may be claimed, and what a folder of runs may lack."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae_lm
from sae_lm.caching import cache
from sae_lm.comparison import compare
from sae_lm.errors import SaeError, SaeLmError, SettingsError, StoreError
from sae_lm.evaluating import Bench, Candidates, documents, held_out_figures, pooled_entropy, sampled, type_means
from sae_lm.measuring import beside
from sae_lm.metrics.concepts import Probe
from sae_lm.metrics.quality import CrossEntropy
from sae_lm.pairing import between_seeds
from sae_lm.runs import Runs, read_narrower, read_runs
from sae_lm.sae.checkpoint import save
from sae_lm.sae.model import SAE, SaeConfig, random_sae
from sae_lm.settings import CompareSettings, TrainSettings
from sae_lm.training import train
from sae_lm.verdicts import METRICS, PRIMARY, answer, compare_arms, counterpart, findings, frontier, ladder_of

HOOK = "blocks.1.hook_out"
NAN = float("nan")


def arms_of(**metrics):
    """{arm: {metric: values}} from {metric: {arm: values}}; the rest is NaN."""
    names = dict.fromkeys(arm for of in metrics.values() for arm in of)
    seeds = len(next(iter(next(iter(metrics.values())).values())))
    return {arm: {key: metrics.get(key, {}).get(arm, [NAN] * seeds) for key in METRICS} for arm in names}


def entry(differences, arm, metric):
    (found,) = (d for d in differences if (d["arm"], d["metric"]) == (arm, metric))
    return found


def shifted(by, noise=(0.001, -0.002, 0.0015, -0.0005, 0.0, 0.001), start=0.5):
    """Six seeds: a baseline that varies from seed to seed, and what is lower or higher than it by about as much."""
    return [start + 0.05 * seed + by + error for seed, error in enumerate(noise)]


BASE = shifted(0.0, noise=[0.0] * 6)
EQUAL_L0 = {"none": [16.0] * 6, "abs_cos:1": [16.1] * 6, "max_cos:1": [15.9] * 6}


# --- verdicts


def test_a_clear_difference_is_lower_or_higher_and_an_unclear_one_says_how_many_seeds_it_needs():
    unclear = [0.06, -0.05, 0.04, -0.01, 0.03, -0.02]
    values = arms_of(
        l0=EQUAL_L0,
        hole_rate={"none": BASE, "abs_cos:1": shifted(-0.1), "max_cos:1": shifted(0.1)},
        fvu={"none": BASE, "abs_cos:1": shifted(0.0, unclear), "max_cos:1": BASE},
    )
    found = compare_arms(values, "none")
    assert entry(found, "abs_cos:1", "hole_rate")["verdict"] == "lower"
    assert entry(found, "max_cos:1", "hole_rate")["verdict"] == "higher"
    fvu = entry(found, "abs_cos:1", "fvu")
    assert (
        fvu["verdict"] == f"not distinguishable (needs about {fvu['seeds_needed']} seeds)" and fvu["seeds_needed"] > 6
    )
    assert entry(found, "max_cos:1", "fvu")["verdict"] == "not distinguishable (equal)"
    assert entry(found, "max_cos:1", "splits")["verdict"] == "no claim (no values)"


def test_primary_outcomes_are_corrected_over_outcomes_and_arms_together_and_others_are_not():
    weak = shifted(-0.02, noise=[0.016, -0.014, 0.013, -0.018, 0.016, 0.0])  # p about .03 alone
    alike = dict.fromkeys(("none", "max_cos:1"), BASE)
    values = arms_of(
        l0=EQUAL_L0,
        fvu=alike | {"abs_cos:1": weak},
        hole_rate=alike | {"abs_cos:1": weak, "max_cos:1": shifted(0.0)},
        splits=alike | {"abs_cos:1": shifted(0.0), "max_cos:1": shifted(0.0)},
    )
    found = compare_arms(values, "none")
    primary, other = entry(found, "abs_cos:1", "hole_rate"), entry(found, "abs_cos:1", "fvu")
    assert other["p"] == primary["p"] < 0.05 and other["p_holm"] is None and other["verdict"] == "lower"
    assert primary["p_holm"] == pytest.approx(4 * primary["p"])  # two arms, two outcomes with values
    assert primary["verdict"].startswith("not distinguishable")
    assert primary["detectable"] > other["detectable"], "what is corrected needs more to be found"


@pytest.mark.parametrize(("fraction", "says"), [(shifted(-0.1), "less absorption"), (BASE, "no claim on absorption")])
def test_less_absorption_needs_hole_rate_and_fraction_to_fall(fraction, says):
    values = arms_of(
        l0={"none": [16.0] * 6, "abs_cos:1": [16.0] * 6},
        fvu={"none": BASE, "abs_cos:1": shifted(0.004)},
        hole_rate={"none": BASE, "abs_cos:1": shifted(-0.1)},
        absorption_fraction={"none": BASE, "abs_cos:1": fraction},
    )
    differences = compare_arms(values, "none")
    assert says in findings(differences, values, 6)[0]
    told = answer(differences, "none", 6, concepts=4)
    assert ("less absorption with abs_cos:1 (FVU +0.0042)" in told) == (says == "less absorption")
    assert ("no evidence that there is none" in told) == (says != "less absorption")


def test_of_many_arms_with_a_finding_the_answer_counts_all_and_names_the_cheapest():
    costs = {f"abs_cos:{coefficient}": cost for coefficient, cost in zip(range(1, 7), (6, 1, 5, 2, 4, 3), strict=True)}
    values = arms_of(
        l0=dict.fromkeys(["none", *costs], [16.0] * 6),
        fvu={"none": BASE} | {arm: shifted(cost / 1000) for arm, cost in costs.items()},
        hole_rate={"none": BASE} | {arm: shifted(-0.1) for arm in costs},
        absorption_fraction={"none": BASE} | {arm: shifted(-0.1) for arm in costs},
    )
    told = answer(compare_arms(values, "none"), "none", 6, concepts=4)
    named = [told.index(arm) for arm in ("abs_cos:2", "abs_cos:4", "abs_cos:6", "abs_cos:5")]
    assert "less absorption with 6 arms, cheapest abs_cos:2 (FVU +0.0012)" in told and named == sorted(named)
    assert "abs_cos:1 " not in told and "abs_cos:3 " not in told


def test_few_seeds_no_concepts_or_no_other_arms_give_an_answer_without_a_claim():
    two = {"none": [0.5, 0.6], "abs_cos:1": [0.1, 0.2]}
    values = arms_of(l0={arm: [16.0, 16.0] for arm in two}, hole_rate=two, absorption_fraction=two, fvu=two)
    found = compare_arms(values, "none")
    assert all(d["verdict"].startswith("no claim") for d in found)
    assert answer(found, "none", 2, 4) == (
        "No claim: 2 seeds per arm, where at least 3 are needed to tell a difference from chance."
    )
    assert "no concept passed" in answer(found, "none", 2, 0)
    assert "no arm besides none" in answer([], "none", 6, 4)
    assert "no claim with 2 seeds" in findings(found, values, 2)[0]


def test_claims_that_the_sign_flip_test_could_never_make_say_what_they_rest_on():
    values = arms_of(l0=EQUAL_L0, hole_rate={"none": BASE, "abs_cos:1": shifted(-0.1), "max_cos:1": BASE})
    assert any("cannot go below p = 0.0312" in said for said in findings(compare_arms(values, "none"), values, 6))


# --- what is compared with what


def test_each_arm_of_a_ladder_is_compared_with_the_baseline_of_its_k():
    names = ["none@k=8", "none@k=16", "abs_cos:1@k=8", "abs_cos:1@k=16"]
    l0 = {name: [8.0 if "8" in name else 16.0] * 6 for name in names}
    values = arms_of(l0=l0, fvu={name: [1 / l0[name][0] + i for i in range(6)] for name in names})
    found = compare_arms(values, "none")
    assert {d["arm"]: d["baseline"] for d in found} == {"abs_cos:1@k=8": "none@k=8", "abs_cos:1@k=16": "none@k=16"}
    assert all(d["mean"] == 0 for d in found if d["metric"] == "fvu")


def test_of_two_rungs_of_about_its_l0_an_arm_is_compared_with_the_one_of_its_k():
    values = arms_of(l0={"none@k=15": [15.6] * 3, "none@k=16": [16.3] * 3, "abs_cos:1@k=16": [15.7] * 3})
    assert counterpart("abs_cos:1@k=16", values, "none").name == "none@k=16"


def test_an_arm_between_the_rungs_is_compared_with_the_line_between_them_and_says_so():
    l0 = {"none@k=8": [8.0] * 3, "none@k=32": [32.0] * 3, "abs_cos:1@k=16": [16.0] * 3}
    values = arms_of(l0=l0, fvu={"none@k=8": [0.4] * 3, "none@k=32": [0.2] * 3, "abs_cos:1@k=16": [0.31, 0.32, 0.33]})
    fvu = entry(compare_arms(values, "none"), "abs_cos:1@k=16", "fvu")
    assert (fvu["l0"], fvu["baseline"]) == ("interpolated", "none@k=8/none@k=32")
    assert fvu["per_seed"] == pytest.approx([0.01, 0.02, 0.03])
    assert "interpolated" in findings(compare_arms(values, "none"), values, 3)[0]


def test_an_arm_beyond_the_ladder_gets_no_verdict_but_on_its_l0():
    values = arms_of(
        l0={"none": [16.0] * 3, "max_cos:1": [24.0, 24.1, 24.2]},
        fvu={"none": [0.3] * 3, "max_cos:1": [0.1, 0.11, 0.12]},
    )
    found = compare_arms(values, "none")
    assert entry(found, "max_cos:1", "fvu")["verdict"] == "L0 not matched"
    assert entry(found, "max_cos:1", "l0")["verdict"] == "higher"
    assert "no arm has the L0 of none" in answer(found, "none", 3, 4)


def test_a_penalty_on_another_architecture_is_compared_with_that_architecture_where_it_is_there():
    arms = ["none", "none@arch=matryoshka", "abs_cos:1@arch=matryoshka", "abs_cos:1@arch=relu", "abs_cos:1"]
    assert ladder_of("abs_cos:1@arch=matryoshka", arms, "none") == ["none@arch=matryoshka"]
    for arm in ("none@arch=matryoshka", "abs_cos:1@arch=relu", "abs_cos:1"):
        assert ladder_of(arm, arms, "none") == ["none"]
    assert ladder_of("abs_cos:1@arch=matryoshka", arms, "abs_cos:1") == ["abs_cos:1"]
    assert ladder_of("none@k=16", ["none@k=8", "none@k=16"], "none@k=8") == ["none@k=8"]


def test_the_front_is_of_mean_l0_and_mean_fvu():
    values = arms_of(l0=EQUAL_L0, fvu={"none": [0.3] * 6, "abs_cos:1": [0.31] * 6, "max_cos:1": [0.29] * 6})
    assert frontier(values) == {"max_cos:1"} and counterpart("abs_cos:1", values, "none").how == "matched"


def test_equal_differences_on_too_few_seeds_do_not_say_that_these_would_do():
    values = arms_of(l0={"none": [16.0] * 3, "abs_cos:1": [16.0] * 3},
                     splits={"none": [2.5, 3.0, 2.75], "abs_cos:1": [2.0, 2.5, 2.25]})  # fmt: skip
    found = entry(compare_arms(values, "none"), "abs_cos:1", "splits")
    assert found["detectable"] is None and found["seeds_needed"] > 3
    assert found["verdict"] == f"not distinguishable (needs about {found['seeds_needed']} seeds)"


def test_values_of_pairs_of_seeds_that_overlap_are_told_and_not_tested():
    values = arms_of(l0=EQUAL_L0, seed_stability={"none": BASE, "abs_cos:1": shifted(-0.1), "max_cos:1": BASE})
    found = entry(compare_arms(values, "none"), "abs_cos:1", "seed_stability")
    assert found["mean"] == pytest.approx(-0.1, abs=0.01) and found["low"] is found["p"] is found["detectable"] is None
    assert found["verdict"] == "no claim (pairs of seeds overlap)"


def test_what_seeds_have_in_common_is_taken_against_the_rung_of_the_arms_l0():
    class Same(NamedTuple):
        W_dec: torch.Tensor

        def load(self, device):
            return self

    rows = {"none@k=8": 0, "none@k=16": 1, "none@arch=matryoshka@k=15": 1}  # what an SAE's latents all point at
    runs = Runs(
        list(rows),
        [0, 1],
        {(arm, seed): Same(torch.eye(4)[[at, at]]) for arm, at in rows.items() for seed in (0, 1)},
        [],
        {},
    )
    l0 = {"none@k=8": 8.0, "none@k=16": 16.0, "none@arch=matryoshka@k=15": 16.3}
    figures = {key: {"l0": l0[key[0]]} for key in runs.of}
    between_seeds(runs, dict.fromkeys(runs.of, torch.tensor([True, True])), list(rows)[:2], "cpu", figures)
    assert {arm: figures[arm, 0]["distinct"] for arm in rows} == dict.fromkeys(rows, 0.0)


def test_the_explorer_shows_arms_of_the_rungs_k_or_of_its_l0():
    ladder = ["none@k=8", "none@k=16", "none@k=32"]
    l0 = {
        "none@k=16": 16.0,
        "max_cos:1@k=16": 14.0,
        "none@arch=matryoshka@k=15": 16.3,
        "max_cos:1@k=8": 8.0,
        "random": 16.0,
    }
    figures = {(arm, 0): {"l0": value} for arm, value in l0.items()}
    shown = [arm for arm in l0 if beside("none@k=16", (arm, 0), ladder, figures)]
    assert shown == ["none@k=16", "max_cos:1@k=16", "none@arch=matryoshka@k=15"]


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_the_random_control_fires_as_many_latents_as_the_baseline_whatever_its_architecture(make_sae, architecture):
    weights = {name: value for name, value in make_sae().named_parameters() if name != "threshold"}
    weights |= {"threshold": torch.full((10,), 3.0)} if architecture == "jumprelu" else {}
    like = SAE(SaeConfig(architecture=architecture, d_in=6, d_sae=10, k=4 if architecture == "topk" else None), weights)
    control = random_sae(like, 3.2, seed=0)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    assert float((control.encode(x) > 0).sum(1).float().mean()) == pytest.approx(3, abs=0.1)
    assert torch.equal(control.b_dec, like.b_dec) and torch.allclose(control.W_dec.norm(dim=1), torch.ones(10))


# --- evaluation noise


def bench_of(x, of_row, size):
    def read(rows):
        return iter(x.split(size))

    return Bench(read, of_row, sampled(read, of_row), [], [], 0)


def test_samples_in_which_every_document_is_once_give_the_figures_themselves(make_sae):
    sae, x = make_sae(unit=False), torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + 1
    of_row = documents(torch.arange(60) // 7, 0)._replace(counts=torch.ones(2, 9))
    figures, draws, fired, nearest = held_out_figures(sae, bench_of(x, of_row, 17))
    for key in ("l0", "fvu", "nmse"):
        assert draws[key].tolist() == pytest.approx([figures[key]] * 2, rel=1e-5), key
    assert fired.shape == (10,) and len(nearest) == int(fired.sum())


def test_the_fvu_of_a_sample_is_that_of_its_rows(make_sae):
    sae, x = make_sae(), torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    of_row = documents(torch.arange(60) // 20, 0)._replace(counts=torch.tensor([[2.0, 0.0, 1.0]]))
    twice = torch.cat([x[:20], x[:20], x[40:]])
    expected = held_out_figures(sae, bench_of(twice, documents(torch.zeros(60, dtype=torch.long), 0), 60)).figures[
        "fvu"
    ]
    draws = held_out_figures(sae, bench_of(x, of_row, 25)).draws
    assert float(draws["fvu"]) == pytest.approx(expected, rel=1e-5)


def test_means_over_types_leave_out_types_that_a_sample_lacks():
    weight = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    types = torch.tensor([0, 0, 1])
    type_weight = torch.zeros(2, 2).index_add_(1, types, weight)
    probe = Probe("p", "token", 2, 3, 1.0, 0.0, torch.zeros(2), 0.0, None)
    found = Candidates(0, 0, probe, torch.arange(3), torch.zeros(3, 2), types, types, weight, type_weight)
    values = torch.tensor([1.0, 0.0, 1.0])
    assert type_means(values, found).tolist() == pytest.approx([(0.5 + 1) / 2, 2 / 3])


def test_blocks_of_contexts_are_pooled_by_their_tokens():
    parts = [CrossEntropy(10, 1.0, 2.0, 5.0), CrossEntropy(30, 2.0, 4.0, 5.0)]
    pooled = pooled_entropy(parts)
    assert (pooled.tokens, pooled.clean, pooled.spliced) == (40, 1.75, 3.5)
    assert pooled_entropy(parts, [2.0, 0.0]).spliced == 2.0


# --- what a folder of runs may lack


def fake_run(folder, arm, seed, **changes):
    """An SAE directory as far as reading its facts is concerned."""
    training = {
        "store_id": "a" * 64,
        "hook": HOOK,
        "held_out_from_row": 900,
        "d_sae": 48,
        "k": 4,
        "held_out_from_context": 60,
        **changes,
    }
    path = folder / f"{arm.replace(':', '_')}-seed{seed}"
    path.mkdir(parents=True)
    about = {"arm": arm, "seed": seed, "training": training}
    (path / "cfg.json").write_text(json.dumps({"architecture": "topk", "metadata": about}))


def fake_runs(folder, there, arms=("none", "abs_cos:1"), seeds=3):
    for arm, seed in there:
        fake_run(folder, arm, seed)
    (folder / "run.json").write_text(json.dumps({"arms": list(arms), "seeds": seeds, "store": "x"}))
    return folder


WHOLE = [(arm, seed) for arm in ("none", "abs_cos:1") for seed in range(3)]


def test_a_whole_folder_has_nothing_partial_and_its_baseline_first(tmp_path):
    runs = read_runs(fake_runs(tmp_path, WHOLE, arms=("abs_cos:1", "none")), "none")
    assert (runs.arms, runs.seeds, runs.partial) == (["none", "abs_cos:1"], [0, 1, 2], [])
    assert list(runs.of) == [(arm, seed) for arm in runs.arms for seed in runs.seeds]


def test_a_missing_seed_of_one_arm_is_left_out_of_all_and_told(tmp_path):
    runs = read_runs(fake_runs(tmp_path, [key for key in WHOLE if key != ("abs_cos:1", 1)]), "none")
    assert runs.seeds == [0, 2]
    (told,) = runs.partial
    assert told.startswith("Seed 1 is left out: abs_cos_1-seed1 missing")


def test_an_arm_that_was_never_trained_is_left_out_and_told(tmp_path):
    runs = read_runs(fake_runs(tmp_path, WHOLE, arms=("none", "abs_cos:1", "max_cos:1")), "none")
    assert runs.arms == ["none", "abs_cos:1"]
    assert runs.partial == ["max_cos:1: no SAE is there; the arm is left out."]


@pytest.mark.parametrize("metadata", [None, {}, {"arm": "none"}, []])
def test_an_sae_of_another_program_is_left_out_and_told(tmp_path, metadata):
    folder = fake_runs(tmp_path, WHOLE)
    (folder / "theirs").mkdir()
    (folder / "theirs" / "cfg.json").write_text(json.dumps({"architecture": "standard", "metadata": metadata}))
    runs = read_runs(folder, "none")
    assert len(runs.of) == 6 and "theirs is left out: an SAE of another program" in runs.partial[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"store_id": "b" * 64}, "differ in their store .aaaaaaaaaaaa: .*; bbbbbbbbbbbb: max_cos_1-seed0"),
        ({"hook": "blocks.0.hook_out"}, "differ in their hook .*blocks.0.hook_out: max_cos_1-seed0"),
        ({"d_sae": 96}, "differ in their number of latents"),
        ({"held_out_from_row": 1}, "differ in their first held-out row"),
        ({"lr": 0.1}, "differ in their lr .None: .*; 0.1: max_cos_1-seed0"),
        ({"arch": "matryoshka"}, "differ in their arch"),
    ],
)
def test_saes_of_different_stores_hooks_widths_or_training_are_refused_by_name(tmp_path, changes, says):
    folder = fake_runs(tmp_path, WHOLE)
    for seed in range(3):
        fake_run(folder, "max_cos:1", seed, **changes)
    with pytest.raises(SaeError, match=says):
        read_runs(folder, "none")


def test_without_a_baseline_or_a_common_seed_there_is_one_sentence(tmp_path):
    with pytest.raises(SaeError, match="no arm 'plain' to compare with, they have none, abs_cos:1; give --baseline"):
        read_runs(fake_runs(tmp_path / "a", WHOLE), "plain")
    with pytest.raises(SaeError, match="hold no SAE of the baseline 'none' yet"):
        read_runs(fake_runs(tmp_path / "b", [("abs_cos:1", 0)]), "none")
    with pytest.raises(
        SaeError, match="no seed that all of their arms have, they have abs_cos_1-seed1, none-seed0; run"
    ):
        read_runs(fake_runs(tmp_path / "c", [("none", 0), ("abs_cos:1", 1)]), "none")
    with pytest.raises(SaeError, match="hold no SAE yet"):
        read_runs(fake_runs(tmp_path / "d", []), "none") if (tmp_path / "d").mkdir() is None else None


def test_what_a_kill_left_half_made_is_not_read(tmp_path):
    folder = fake_runs(tmp_path, WHOLE)
    shutil.copytree(folder / "none-seed0", folder / "none-seed0.part")
    assert read_runs(folder, "none").partial == []


@pytest.mark.parametrize("fact", ["store_id", "held_out_from_context", "k"])
def test_an_sae_that_lacks_a_fact_of_its_training_is_left_out_and_told(tmp_path, fact):
    folder = fake_runs(tmp_path, WHOLE)
    path = folder / "none-seed0" / "cfg.json"
    config = json.loads(path.read_text())
    del config["metadata"]["training"][fact]
    path.write_text(json.dumps(config))
    assert f"none-seed0 is left out: its metadata lacks {fact}; train it again." in read_runs(folder, "none").partial


def test_of_a_single_sae_the_folder_of_all_is_named(tmp_path):
    folder = fake_runs(tmp_path, WHOLE)
    with pytest.raises(SaeError, match=f"is a single SAE, expected the folder .*; give {folder}"):
        read_runs(folder / "none-seed0", "none")


def test_the_same_arm_and_seed_twice_is_refused(tmp_path):
    folder = fake_runs(tmp_path, WHOLE)
    shutil.copytree(folder / "none-seed0", folder / "copy")
    with pytest.raises(SaeError, match="are both none with seed 0; delete one"):
        read_runs(folder, "none")


def test_narrower_runs_have_fewer_latents_and_all_else_alike(tmp_path):
    def of(name, **changes):
        for seed in range(3):
            fake_run(tmp_path / name, "none", seed, **changes)
        return fake_runs(tmp_path / name, [], arms=("none",))

    runs = read_runs(fake_runs(tmp_path / "wide", WHOLE), "none")
    assert read_narrower(of("a", d_sae=24), runs, "none").arms == ["none"]
    for name, changes, says in (
        ("b", {}, "have 48 latents, expected fewer than the 48 of those compared; give --narrower the folder"),
        (
            "c",
            {"d_sae": 24, "k": 8},
            r"differ from those compared in their k \(8, expected 4\); train them with the same",
        ),
        ("d", {"d_sae": 24, "hook": "blocks.0.hook_out"}, "differ from those compared in their hook"),
        ("e", {"d_sae": 24, "held_out_from_row": 1}, "differ from those compared in their first held-out row"),
    ):
        with pytest.raises(SaeError, match=says):
            read_narrower(of(name, **changes), runs, "none")


# --- a whole comparison


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Those of the first report are enough; a dozen drawings take a second."""
    monkeypatch.setattr("sae_lm.report.write_figures", lambda report, folder: [])


@pytest.fixture(scope="module")
def runs(tiny_store, tmp_path_factory):
    """Two arms, a ladder of two, two seeds, half of the tiny store held out."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    settings = {"hook": HOOK, "d_sae": 48, "k": 4, "tokens": 3000, "batch_size": 64, "lr": 3e-3, "held_out": 0.5}
    arms = "none@k=4/6,max_cos:0.5@k=4/6"
    return train(TrainSettings(store=tiny_store, arms=arms, seeds=2, dead_after=500, out=out, **settings))


def comparing(runs, out, **changes):
    values = {"min_types": 3, "probe_gate": 0.5, "per_type": 20, "contextual": False, "model": "none", "seed": 4}
    return CompareSettings(**{"runs": runs, "out": out, **values, **changes})


@pytest.fixture(scope="module")
def report(runs, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return compare(comparing(runs, out, model=str(tiny_model), ce_contexts=24)), out


def test_the_report_holds_what_its_schema_says(report):
    values, out = report
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(values))
    assert (out / "report.html").stat().st_size > 10_000 and list((out / "figures").glob("*.svg"))
    assert (values["format"], values["version"], values["partial"]) == ("sae_lm comparison", 2, [])
    arms = ["none@k=4", "none@k=6", "max_cos:0.5@k=4", "max_cos:0.5@k=6"]
    assert list(values["arms"]) == arms and values["seeds"] == [0, 1]
    assert {(a["family"], a["k"], a["arch"]) for a in values["arms"].values()} == {
        (family, k, "topk") for family in ("none", "max_cos:0.5") for k in (4, 6)
    }
    optional = {"composition_rate", "recovered_on_holes", "split_ratio", "stitched_novel"}
    for arm in values["arms"].values():
        assert list(arm["values"]) == list(METRICS)
        for key, per_seed in arm["values"].items():
            assert len(per_seed) == 2 and (key in optional or None not in per_seed), key
    assert {(d["arm"], d["baseline"]) for d in values["differences"]} == {
        (a, a.replace("max_cos:0.5", "none")) for a in arms[2:]
    }
    assert all(
        d["verdict"] == "no claim (< 3 seeds)" or None in d["per_seed"] or d["metric"] in optional
        for d in values["differences"]
    )
    for key in ("hole_rate", "absorption_fraction", "fvu", "l0", "ce_spliced"):
        assert values["noise"][key]["evaluation"] is not None and values["noise"][key]["training"] is not None, key
    shares = values["nearest_cos"]
    assert set(shares["arms"]) == set(arms) and len(shares["null"]) == len(shares["edges"]) - 1
    assert all(math.fsum(of) == pytest.approx(1) for of in shares["arms"].values())
    assert {(g["to"], g["to_seed"]) for g in values["genealogy"]} == {*((a, 0) for a in arms[1:]), ("none@k=4", 1)}
    used = [c["name"] for c in values["concepts"] if c["skipped"] is None]
    assert used and [e["concept"] for e in values["explorer"]] == used
    assert set(values["explorer"][0]["absorbers"]) == {"none@k=6", "max_cos:0.5@k=6"}
    assert {c["arm"] for c in values["per_concept"]} == {*arms, "random"}
    assert all(("sweep" in c) == (c["seed"] == 0) for c in values["per_concept"])
    assert values["cross_entropy"]["clean"] > 0 and values["controls"]["random"]["fvu"] > 0.3


def test_every_value_of_the_report_is_a_line_of_the_csv(report):
    values, out = report
    with (out / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        of = values["controls"][row["arm"]] if row["seed"] == "" else values["arms"][row["arm"]]["values"]
        told = of[row["metric"]] if row["seed"] == "" else of[row["metric"]][int(row["seed"])]
        assert float(row["value"]) == told
    there = sum(v is not None for arm in values["arms"].values() for of in arm["values"].values() for v in of)
    assert len(rows) == there + sum(v is not None for v in values["controls"]["random"].values())


def test_every_sae_is_scored_with_the_baselines_number_of_main_latents(report):
    values, _ = report
    for concept in {c["concept"] for c in values["per_concept"]}:
        mine = [c for c in values["per_concept"] if c["concept"] == concept]
        own = [c["splits"] for c in mine if c["arm"].startswith("none")]
        assert {c["common_k"] for c in mine} == {round(sum(own) / len(own))}
        for c in mine:
            if c["splits"] == c["common_k"]:
                assert (c["hole_rate"], c["fraction"]) == (c["hole_rate_own_k"], c["fraction_own_k"])


def test_the_same_comparison_gives_the_same_report(report, runs, tiny_model, tmp_path):
    again = compare(comparing(runs, tmp_path, model=str(tiny_model), ce_contexts=24))
    assert {k: v for k, v in again.items() if k != "settings"} == {
        k: v for k, v in report[0].items() if k != "settings"
    }


def test_without_any_concept_the_rest_is_reported_and_labelled(runs, tmp_path):
    values = compare(comparing(runs, tmp_path, min_types=10_000))
    assert values["answer"].startswith("No claim on splitting or absorption")
    assert any("none of the" in said and "passed its gate" in said for said in values["partial"])
    assert values["arms"]["none@k=4"]["values"]["fvu"][0] > 0 and values["explorer"] == values["per_concept"] == []


def test_one_seed_and_a_missing_one_make_a_partial_report(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    shutil.rmtree(copy / "max_cos_0.5@k=6-seed1")
    values = compare(comparing(copy, tmp_path / "out", min_types=10_000))
    assert values["seeds"] == [0] and "max_cos_0.5@k=6-seed1 missing" in values["partial"][0]
    assert all(d["verdict"].startswith("no claim") for d in values["differences"])
    assert [g["to_seed"] for g in values["genealogy"]] == [0, 0, 0]


def test_saes_trained_otherwise_are_refused_beside_others_whatever_their_arm(runs, tiny_store, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    settings = {
        "hook": HOOK,
        "d_sae": 48,
        "tokens": 3000,
        "batch_size": 64,
        "lr": 3e-3,
        "held_out": 0.5,
        "dead_after": 500,
    }
    again = TrainSettings(store=tiny_store, arms="abs_cos:1@k=4", seeds=1, out=copy, **{**settings, "k": 9})
    assert train(again) == copy, "arms may have k of their own"
    for key, value in (("lr", 0.1), ("tokens", 1280), ("arch", "matryoshka")):
        with pytest.raises(SaeError, match=f"was trained otherwise: .*{key} is .*; give another --out"):
            train(TrainSettings(store=tiny_store, arms="sq_cos:1", seeds=1, out=copy, **{**settings, key: value}))


def no_measuring(*_):
    raise AssertionError("the long part of the work has begun")


@pytest.mark.parametrize("what", ["missing", "cut", "renamed", "reshaped", "gated"])
def test_a_damaged_sae_is_named_before_the_long_part_of_the_work(runs, tmp_path, monkeypatch, what):
    monkeypatch.setattr("sae_lm.comparison.measure", no_measuring)
    copy = shutil.copytree(runs, tmp_path / "runs")
    folder = copy / "max_cos_0.5@k=4-seed1"
    path = folder / "sae_weights.safetensors"
    weights, config = load_file(path), json.loads((folder / "cfg.json").read_text())
    del config["metadata"]["weights_sha256"]
    if what == "missing":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "renamed":
        save_file({("W_out" if name == "W_dec" else name): value for name, value in weights.items()}, path)
    elif what == "reshaped":
        save_file(weights | {"W_dec": weights["W_dec"][:-1].contiguous()}, path)
    else:
        config["architecture"] = "gated"
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(SaeError, match=r"max_cos_0.5@k=4-seed1.*train or download it again"):
        compare(comparing(copy, tmp_path / "out"))


@pytest.mark.parametrize(
    ("value", "says"), [(NAN, "W_dec holds NaN"), (math.inf, "W_dec holds NaN or infinite"), (0.0, None)]
)
def test_weights_that_are_no_numbers_are_told_with_their_sae_and_zeros_are_read(runs, tmp_path, value, says):
    folder = shutil.copytree(runs / "none@k=4-seed0", tmp_path / "broken")
    config = json.loads((folder / "cfg.json").read_text())
    del config["metadata"]["weights_sha256"]
    (folder / "cfg.json").write_text(json.dumps(config))
    weights = load_file(folder / "sae_weights.safetensors")
    weights["W_dec"][3] = value
    save_file(weights, folder / "sae_weights.safetensors")
    if says is None:
        assert not sae_lm.load(folder).W_dec[3].any()
    else:
        with pytest.raises(SaeError, match=f"broken: {says}.*; train or download it again"):
            sae_lm.load(folder)


@pytest.mark.parametrize(("make", "says"), [
    (lambda out: out.write_text("x"), "is a file, expected a folder to write to; give another"),
    (lambda out: (out.mkdir(), (out / "figures").write_text("x")), "figures is a file, expected a folder"),
    (lambda out: (out / "report.html").mkdir(parents=True), "report.html is a folder, where the report's file would be"),
])  # fmt: skip
def test_a_place_that_cannot_take_the_report_is_told_before_the_work(runs, tmp_path, monkeypatch, make, says):
    monkeypatch.setattr("sae_lm.comparison.measure", no_measuring)
    make(tmp_path / "out")
    with pytest.raises(SaeLmError, match=says):
        compare(comparing(runs, tmp_path / "out"))


def test_a_folder_that_takes_no_files_is_told_before_the_work(runs, monkeypatch):
    monkeypatch.setattr("sae_lm.comparison.measure", no_measuring)
    with pytest.raises(SaeLmError, match="nothing can be written to the folder /proc/self"):
        compare(comparing(runs, Path("/proc/self/report")))


def test_a_report_is_of_one_comparison_whenever_it_is_interrupted(runs, tmp_path, monkeypatch):
    first = comparing(runs, tmp_path / "out", min_types=10_000)
    compare(first)
    (first.out / "figures" / "differences.png").write_bytes(b"of an earlier report")
    (first.out / "figures" / "mine.png").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in first.out.rglob("*") if path.is_file()}

    def interrupted(report, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as at_the_end:
        at_the_end.setattr("sae_lm.report.write_figures", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(first.model_copy(update={"seed": 5}))
    assert {path: path.read_bytes() for path in first.out.rglob("*") if path.is_file()} == before
    compare(first.model_copy(update={"seed": 5}))
    now = {path.name for path in first.out.rglob("*") if path.is_file()}
    assert now == {"report.json", "report.csv", "report.html", "mine.png"}
    assert json.loads((first.out / "report.json").read_text())["settings"]["seed"] == 5


@pytest.mark.parametrize("row", [40, 150])
def test_rows_that_were_damaged_since_they_were_cached_are_told(runs, tiny_store, tmp_path, row):
    copy = shutil.copytree(tiny_store, tmp_path / "store")
    store = sae_lm.open_store(copy)
    path = sorted((copy / HOOK).glob("*.safetensors"))[-1]
    tensors = load_file(path)
    tensors["rows"][-row:, 0] = NAN
    save_file(tensors, path)
    assert len(store) > 0
    with pytest.raises(
        StoreError, match=f"{copy} is damaged: rows of {HOOK} hold NaN .*; run sae-lm verify .* --repair"
    ):
        compare(comparing(runs, tmp_path / "out", store=copy, seed=row))


def test_a_text_gone_through_twice_is_told_in_the_report(cache_settings, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat (and the dog did not), as cats do. " * 40)
    store = cache(cache_settings(tmp_path / "store", text=str(text), tokens=5000, repeat=True))
    settings = {"hook": HOOK, "d_sae": 32, "k": 4, "tokens": 640, "batch_size": 64, "held_out": 0.5}
    runs = train(TrainSettings(store=store, arms="none,max_cos", seeds=1, out=tmp_path / "runs", **settings))
    (told,) = [said for said in compare(comparing(runs, tmp_path / "out"))["partial"] if "--repeat" in said]
    assert "held-out rows may be of text that the SAEs were trained on" in told


def test_an_sae_all_of_whose_latents_are_dead_is_measured_like_any_other(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    sae = sae_lm.load(copy / "max_cos_0.5@k=4-seed1")
    sae.W_enc *= 0
    sae.b_enc -= 1 + sae.b_enc
    save(sae, copy / "max_cos_0.5@k=4-seed1")
    values = compare(comparing(copy, tmp_path / "out", narrower=None))
    of = values["arms"]["max_cos:0.5@k=4"]["values"]
    assert "No latent of max_cos_0.5@k=4-seed1 fires on any held-out row" in values["partial"][0]
    assert (of["l0"][1], of["dead"][1]) == (0, 1) and of["hole_rate"][1] == 1
    assert (of["distinct"][1], of["seed_stability"]) == (None, [0, 0])
    assert all(d["l0"] == "not matched" for d in values["differences"] if d["arm"] == "max_cos:0.5@k=4")


def test_latents_are_traced_from_narrower_saes_of_the_next_seed(runs, tiny_store, tmp_path):
    settings = {"hook": HOOK, "d_sae": 24, "k": 4, "tokens": 3000, "batch_size": 64, "lr": 3e-3, "held_out": 0.5}
    arms = "none@k=4,max_cos:0.5@k=4"
    narrow = train(TrainSettings(store=tiny_store, arms=arms, seeds=2, out=tmp_path / "narrow", **settings))
    values = compare(comparing(runs, tmp_path / "out", narrower=narrow, min_types=10_000))
    found = {(w["arm"], w["seed"], w["to_seed"]) for w in values["widths"]}
    assert found == {(arm, seed, 1 - seed) for arm in arms.split(",") for seed in (0, 1)}
    for w in values["widths"]:
        assert (w["from_latents"], w["to_latents"]) == (24, 48)
        a = sae_lm.load(narrow / f"{w['arm'].replace(':', '_')}-seed{w['seed']}")
        b = sae_lm.load(runs / f"{w['arm'].replace(':', '_')}-seed{w['to_seed']}")
        store = sae_lm.open_store(tiny_store)
        x = store.rows(HOOK, values["training"]["held_out_from_row"], len(store)).float()
        z, error = b.encode(x), (x - a(x)).double()
        change = [
            float((error - z[:, j, None] * b.W_dec[j]).square().sum(1).mean() - error.square().sum(1).mean())
            for j in range(48)
        ]
        fires = (z > 0).any(0)
        share = float((torch.tensor(change) < 0)[fires].double().mean())
        assert w["stitched_novel"] == pytest.approx(share)
        assert values["arms"][w["arm"]]["values"]["stitched_novel"][w["to_seed"]] == w["stitched_novel"]
        cosine = torch.nn.functional.cosine_similarity(
            a.W_dec[(a.encode(x) > 0).any(0)][None], b.W_dec[fires][:, None], dim=2
        )
        for of in w["curve"]:
            assert of["novel"] == pytest.approx(float((cosine.amax(1) < of["threshold"]).double().mean()))
    traced = [g for g in values["genealogy"] if "from_latents" in g]
    assert [(g["from"], g["to"], g["seed"], g["to_seed"]) for g in traced] == [(a, a, 1, 0) for a in arms.split(",")]
    assert values["arms"]["none@k=6"]["values"]["stitched_novel"] == [None, None]
    assert "narrower SAE became" in (tmp_path / "out" / "report.html").read_text()


def test_a_users_labels_are_concepts_and_unknown_tokens_are_told(runs, tiny_store, tmp_path):
    vocabulary = sae_lm.open_store(tiny_store).vocabulary
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["token", "label", "child"])
        table.writerows([text, "mine", "of mine"] for text in sorted({t for t in vocabulary if t.strip().isalpha()}))
        table.writerow(["surely no token", "mine", ""])
    values = compare(comparing(runs, tmp_path / "out", labels=tmp_path / "labels.csv"))
    assert [c["kind"] for c in values["concepts"] if c["name"] == "mine"] == ["csv"]
    assert any("surely no token" in said for said in values["partial"])
    children = {a["child"] for e in values["explorer"] for of in e["absorbers"].values() for a in of}
    assert "of mine" in children and not any(child.strip().isalpha() for child in children)


def test_prompts_without_a_language_model_are_refused(runs, tmp_path):
    with pytest.raises(SettingsError, match="prompts need the language model"):
        compare(comparing(runs, tmp_path, prompts=True))


def test_prompts_and_places_are_measured_like_tokens_in_text(runs, tiny_model, tmp_path):
    changes = {"prompts": True, "contextual": True, "model": str(tiny_model), "ce_contexts": 4}
    values = compare(comparing(runs, tmp_path, **changes))
    kinds = {c["kind"] for c in values["concepts"]}
    assert "token" in kinds and "contextual" in kinds
    assert all(event["before"] == "" for e in values["explorer"] for event in e["events"] if e["concept"] == "digit")


def test_primary_outcomes_are_the_ones_that_the_question_names():
    assert PRIMARY == ("splits", "hole_rate", "absorption_fraction")
