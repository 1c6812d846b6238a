"""sae_lm.synthetic.suite, .experiments and .curves: what the suite of toys holds, prints and draws."""

import json

import pytest
import torch

from sae_lm.commands import demo
from sae_lm.penalties.arms import parse_arm, parse_arms
from sae_lm.settings import DemoSettings
from sae_lm.synthetic import suite
from sae_lm.synthetic.batched_training import ToyRecipe, ToyTrial, train
from sae_lm.synthetic.curves import curve, ladders, mean_and_reach, write_curves
from sae_lm.synthetic.experiments import BASELINE, EXPERIMENTS
from sae_lm.synthetic.worlds import Trees, forest

COMPOSITION = EXPERIMENTS[0]


@pytest.fixture(scope="module")
def small():
    """The whole of a suite of two little experiments."""
    world = forest(8, Trees(2, 0.3, children=2, child_probability=0.3))
    recipe = ToyRecipe(d_sae=8, arch="topk", steps=30, lr=0.01, k=2, batch=32)
    trees = COMPOSITION._replace(
        key="superposition",
        title="Little trees",
        world=world,
        recipe=recipe,
        short=(BASELINE, ToyTrial(parse_arm("max_cos:1")), ToyTrial(parse_arm("max_cos:1"), stop=0.5)),
        long=(BASELINE, ToyTrial(BASELINE.arm, truth="fixed"), *map(ToyTrial, parse_arms(["max_cos:0.1/0.3/1", "none@arch=matryoshka",
                                                                            "none@arch=batchtopk",
                                                                            "max_cos:1@arch=batchtopk"]))),
        shown=("fvu", "hole", "mcc"),
    )  # fmt: skip
    shorter = COMPOSITION._replace(recipe=COMPOSITION.recipe._replace(steps=5), long=COMPOSITION.short[:2])
    return [shorter, trees]


def test_every_experiment_has_a_baseline_first_arms_of_different_names_and_pairs_to_judge():
    assert len({experiment.key for experiment in EXPERIMENTS}) == len(EXPERIMENTS)
    for experiment in EXPERIMENTS:
        for trials in (experiment.short, experiment.long):
            names = [trial.name for trial in trials or experiment.long]
            assert names[0] == "none" and len(set(names)) == len(names)
        # what stands in the short table is found in the long one
        assert {trial.name for trial in experiment.short} <= {trial.name for trial in experiment.long}
        assert experiment.world.pairs


def test_a_suite_is_whole_repeats_itself_and_leaves_the_global_seed_alone(small, tmp_path):
    torch.manual_seed(1)
    first = suite.run(full=True, seeds=3, experiments=small)
    torch.manual_seed(2)
    again = suite.run(full=True, seeds=3, experiments=small)
    assert first["experiments"] == again["experiments"]
    trees = first["experiments"][1]
    assert list(trees["arms"]) == [trial.name for trial in small[1].long]
    assert all(len(v) == 3 for arm in trees["arms"].values() for v in arm["values"].values())
    path = suite.write(first, tmp_path)
    assert json.loads(path.read_text())["experiments"][1]["arms"] == trees["arms"]


def test_a_difference_is_the_arm_less_its_own_baseline_seed_by_seed(small):
    _, trees = suite.run(full=True, seeds=3, experiments=small)["experiments"]
    arms = trees["arms"]
    assert arms["none@arch=matryoshka"]["baseline"] == arms["none@arch=batchtopk"]["baseline"] == "none"
    assert arms["max_cos:1@arch=batchtopk"]["baseline"] == "none@arch=batchtopk"
    assert arms["truth held"]["baseline"] == arms["max_cos:1"]["baseline"] == "none"
    found = {(d["arm"], d["metric"]): d for d in trees["differences"]}
    assert {arm for arm, _ in found} == set(arms) - {"none"}
    a, b = (arms[name]["values"]["fvu"] for name in ("max_cos:1", "none"))
    one = found["max_cos:1", "fvu"]
    assert one["mean"] == pytest.approx(sum(x - y for x, y in zip(a, b, strict=True)) / 3)
    assert one["low"] < one["mean"] < one["high"]


def test_holes_count_as_halved_and_cheap_only_with_their_whole_interval():
    def arm(holes, fvu, baseline="none"):
        return {"baseline": baseline, "values": {"hole": holes, "fvu": fvu}}

    base = [0.1, 0.11, 0.12]
    lines = suite.halving(
        {
            "arms": {
                "none": arm([0.6, 0.59, 0.61], base),
                "good": arm([0.2, 0.21, 0.22], [f + 0.011 + 0.001 * i for i, f in enumerate(base)]),
                "dear": arm([0.2, 0.21, 0.22], [f + 0.05 + 0.001 * i for i, f in enumerate(base)]),
                "unsure": arm([0.05, 0.4, 0.3], [f + 0.001 * i for i, f in enumerate(base)]),
            }
        }
    )
    rows = lines[[line.strip("- ") for line in lines].index("") + 1 :]  # what is below the rule
    ends = {line.split()[0]: line.split("]")[-1].strip() for line in rows}
    assert ends == {"good": "halved and cheap", "dear": "halved", "unsure": ""}
    assert "x0.35" in rows[0] and "+0.012 [+0.010, +0.014]" in rows[0]  # .63 / 1.8
    whole = suite.halving({"arms": {"none": arm([0.0, 0.0], base[:2]), "other": arm([0.0, 0.1], base[:2])}})
    assert whole[-1].split()[:2] == ["other", "-"] and "not corrected" in whole[0]


def test_the_table_holds_a_line_for_every_arm_with_its_counts(small):
    result = suite.run(seeds=3, experiments=small)
    values = result["experiments"][0]["arms"]["none"]["values"]
    values["composite"], values["recovered"] = [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]
    text = suite.table(result)
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert "0.333" in lines["encoder"] and "0.471" in lines["decoder"] and "no reconstruction error" in text
    (counted,) = (line for line in text.splitlines() if "2/3" in line)
    assert counted.split()[:3] == ["none", "2/3", "0/3"]
    assert "max_cos:1, off at 0.5" in text and "x" in text
    assert max(map(len, text.splitlines())) <= 200


def test_demo_toy_prints_the_table_and_says_where_the_rest_is(small, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "EXPERIMENTS", small)
    text = demo.demo(DemoSettings(what="toy", out=tmp_path, full=True, seeds=2))
    assert "Little trees" in text and str(tmp_path / "toy" / "suite.json") in text
    told = json.loads((tmp_path / "toy" / "suite.json").read_text())
    assert told["full"] is True and told["seeds"] == 2


def test_ladders_are_families_of_several_coefficients_in_ascending_order():
    def arm(name, coefficient):
        return {"family": name, "coefficient": coefficient, "values": {"fvu": [coefficient]}}

    arms = {
        "none": arm("none", 0.0),
        "b": arm("sq_cos", 3.0),
        "a": arm("sq_cos", 1.0),
        "d": arm("sq_cos", 10.0),
        "c": arm("max_cos", 1.0),
    }
    assert {family: [c for c, _ in ladder] for family, ladder in ladders({"arms": arms}).items()} == {
        "sq_cos": [1, 3, 10]
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("coactive:0.7@anchored", "coactive@anchored"),
        ("max_cos:1@margin=0.1", "max_cos@margin=0.1"),
        ("none@arch=batchtopk", "none@arch=batchtopk"),
    ],
)
def test_a_family_is_an_arms_name_without_its_coefficient(text, expected):
    assert suite.family(ToyTrial(parse_arm(text))) == expected
    assert suite.family(ToyTrial(parse_arm(text), stop=0.5)) == f"{expected}, off at 0.5"


def test_an_interval_reaches_as_far_as_students_t_says_and_a_missing_seed_is_left_out():
    mean, reach = mean_and_reach([1.0, 2.0, None, 3.0])
    assert mean == 2 and reach == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert mean_and_reach([1.5, None]) == (1.5, 0.0)


def test_curves_are_drawn_for_experiments_with_ladders(small, tmp_path):
    result = suite.run(full=True, seeds=2, experiments=small)
    (path,) = write_curves(result, tmp_path)
    drawn = path.read_text()
    assert path.name == "superposition.svg" and drawn.startswith("<?xml") and "max_cos" in drawn


def test_a_curve_has_a_mark_and_an_interval_per_coefficient_and_the_baseline_in_grey():
    ladder = [(0.1, {"fvu": [0.2, 0.4]}), (1.0, {"fvu": [0.5, 0.5]}), (3.0, {"fvu": [None, None]})]
    chart = curve({"max_cos": ladder}, "fvu", base=0.25)
    assert chart is not None
    assert [(dot.x, round(dot.y, 9), dot.arm) for dot in chart.dots] == [(0.1, 0.3, "max_cos"), (1.0, 0.5, "max_cos")]
    assert [line.points for line in chart.lines if not line.arm] == [((0.1, 0.25), (1.0, 0.25))]
    assert [line.style for line in chart.lines if line.arm] == ["thin", "thin", "solid"]
    assert curve({"max_cos": ladder[2:]}, "fvu", base=0.25) is None


def test_on_chanins_toy_align_fills_the_hole_and_silent_parts_rows_but_fills_it_only_for_some_seeds():
    """A general latent that is off has no gradient by which a penalty on the decoder could switch it on."""
    (experiment,) = (one for one in EXPERIMENTS if one.key == "absorption")
    experiment = experiment._replace(recipe=experiment.recipe._replace(steps=1500))
    trials = [ToyTrial(arm) for arm in parse_arms(["none", "silent:1", "align:0.1"])]
    scores = suite.judge_trials(experiment, trials, train(experiment.world, trials, experiment.recipe, 3))
    none, silent, align = ({key: sum(row[key]) / 3 for key in ("hole", "merge", "fvu")} for row in scores.values())
    assert none["hole"] > 0.9 and none["merge"] > 0.6
    assert align["hole"] < 0.2 and align["merge"] < 0.4 and align["fvu"] < none["fvu"] + 0.005
    assert silent["merge"] < none["merge"] - 0.05 and silent["hole"] < none["hole"] - 0.1
    assert silent["hole"] > align["hole"]
