"""What a folder of runs may lack."""

import json
import shutil

import pytest

from sae_lm.comparison.report import arm_entry
from sae_lm.comparison.runs import read_narrower, read_runs
from sae_lm.errors import SaeError

HOOK = "blocks.1.hook_out"


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


def names(runs):
    return [arm.name for arm in runs.arms]


WHOLE = [(arm, seed) for arm in ("none", "abs_cos:1") for seed in range(3)]


def test_a_whole_folder_has_nothing_partial_and_its_baseline_first(tmp_path):
    runs = read_runs(fake_runs(tmp_path, WHOLE, arms=("abs_cos:1", "none")), "none")
    assert (names(runs), runs.seeds, runs.partial) == (["none", "abs_cos:1"], [0, 1, 2], [])
    assert list(runs.by_key) == [(arm, seed) for arm in runs.arms for seed in runs.seeds]


def test_a_missing_seed_of_one_arm_is_left_out_of_all_and_told(tmp_path):
    runs = read_runs(fake_runs(tmp_path, [key for key in WHOLE if key != ("abs_cos:1", 1)]), "none")
    assert runs.seeds == [0, 2]
    (told,) = runs.partial
    assert told.startswith("Seed 1 is left out: abs_cos_1-seed1 missing")


def test_a_control_without_the_baseline_that_shares_its_start_is_left_out_and_told(tmp_path):
    control = "none@decoder=0.8"
    there = [("none", 0), (control, 0), (control, 1)]
    runs = read_runs(fake_runs(tmp_path, there, arms=("none", control), seeds=2), "none")
    assert runs.seeds == [0]
    (told,) = runs.partial
    assert told == "Seed 1 is left out: none-seed1 missing; run sae-lm train again with these arms."


def test_many_missing_seeds_are_told_in_one_sentence_for_the_same_arms(tmp_path):
    there = [(arm, seed) for arm in ("none", "abs_cos:1") for seed in (0, 2, 300, 302)]
    runs = read_runs(fake_runs(tmp_path, [*there, ("none", 299), ("none", 301)], seeds=303), "none")
    assert runs.seeds == [0, 2, 300, 302]
    assert runs.partial == [
        "Seeds 1, 3-298 are left out: none, abs_cos:1 missing; run sae-lm train again with these arms.",
        "Seeds 299, 301 are left out: abs_cos:1 missing; run sae-lm train again with these arms.",
    ]


def test_an_arm_that_was_never_trained_is_left_out_and_told(tmp_path):
    runs = read_runs(fake_runs(tmp_path, WHOLE, arms=("none", "abs_cos:1", "max_cos:1")), "none")
    assert names(runs) == ["none", "abs_cos:1"]
    assert runs.partial == ["max_cos:1: no SAE is there; the arm is left out."]


@pytest.mark.parametrize("metadata", [None, {}, {"arm": "none"}, []])
def test_an_sae_of_another_program_is_left_out_and_told(tmp_path, metadata):
    folder = fake_runs(tmp_path, WHOLE)
    (folder / "theirs").mkdir()
    (folder / "theirs" / "cfg.json").write_text(json.dumps({"architecture": "standard", "metadata": metadata}))
    runs = read_runs(folder, "none")
    assert len(runs.by_key) == 6 and "theirs is left out: an SAE of another program" in runs.partial[0]


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


def test_saes_of_a_version_without_a_setting_are_compared_with_those_that_have_what_that_version_did(tmp_path):
    folder = fake_runs(tmp_path, WHOLE, arms=("none", "abs_cos:1", "max_cos:1"))
    for seed in range(3):
        fake_run(folder, "max_cos:1", seed, whiten=False)
    assert len(read_runs(folder, "none").by_key) == 9
    shutil.rmtree(folder / "max_cos_1-seed2")
    fake_run(folder, "max_cos:1", 2, whiten=True)
    with pytest.raises(SaeError, match="differ in their whiten .False: .*; True: max_cos_1-seed2"):
        read_runs(folder, "none")


def test_the_baseline_may_be_spelt_without_its_default_coefficient(tmp_path):
    runs = read_runs(fake_runs(tmp_path, WHOLE), "abs_cos")
    assert (runs.baseline.name, names(runs)) == ("abs_cos:1", ["abs_cos:1", "none"])


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
    assert read_narrower(of("a", d_sae=24), runs).arms == [runs.baseline]
    other_width = {"d_sae": 24, "widths": [8, 24], "scale": 1.00001, "matmul": "float32"}
    assert read_narrower(of("g", **other_width), runs).arms == [runs.baseline]
    for name, changes, says in (
        ("b", {}, "have 48 latents, expected fewer than the 48 of those compared; give --narrower the folder"),
        (
            "c",
            {"d_sae": 24, "k": 8},
            r"differ from those compared in their k \(8, expected 4\); train them with the same",
        ),
        ("d", {"d_sae": 24, "hook": "blocks.0.hook_out"}, "differ from those compared in their hook"),
        ("e", {"d_sae": 24, "held_out_from_row": 1}, "differ from those compared in their first held-out row"),
        ("f", {"d_sae": 24, "lr": 0.5}, "differ from those compared in their lr"),
    ):
        with pytest.raises(SaeError, match=says):
            read_narrower(of(name, **changes), runs)


@pytest.mark.parametrize(
    ("architecture", "coefficient", "k"),
    [("relu", 0.01, None), ("jumprelu", 0.01, None), ("relu", None, 4), ("topk", 0.01, 4)],
)
def test_an_sae_trained_at_a_fixed_sparsity_coefficient_has_no_k_in_the_report(tmp_path, architecture, coefficient, k):
    runs = read_runs(fake_runs(tmp_path, WHOLE), "none")
    training = runs.training | {"k": 4, "sparsity_coefficient": coefficient}
    by_key = {key: run._replace(training=training, architecture=architecture) for key, run in runs.by_key.items()}
    arm = runs.arms[0]
    assert arm_entry(arm, runs._replace(by_key=by_key), False, None, {arm: {}})["k"] == k
