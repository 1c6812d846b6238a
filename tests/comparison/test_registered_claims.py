"""Registered claims get the answer that their figures allow."""

import json
import math
from pathlib import Path

import pytest

from sae_lm.comparison import registered as module
from sae_lm.comparison.frontier import curves
from sae_lm.comparison.matching import match_arms
from sae_lm.comparison.outcomes import METRICS
from sae_lm.comparison.registered import Evidence, answer_registered, check_claims, check_registered
from sae_lm.comparison.runs import Runs
from sae_lm.errors import SettingsError
from sae_lm.metrics.equivalence import equivalence_p
from sae_lm.metrics.statistics import paired_difference
from sae_lm.penalties.arms import parse_arm
from sae_lm.settings import CompareSettings, TrainSettings
from sae_lm.training.registered import Registered, read_registered, registration

NOISE = (0.001, -0.002, 0.0015, -0.0005, 0.0, 0.001)
SETTINGS = CompareSettings(runs="runs", out="out")


@pytest.fixture(autouse=True)
def all_trained_under_the_file(monkeypatch):
    monkeypatch.setattr(module, "not_registered", lambda *_: [])


ARMS = (
    "none",
    "abs_cos:1",
    "max_cos:1",
    "sq_cos:1",
    *(f"{arm}@k={k}" for arm in ("none", "abs_cos:1", "max_cos:1") for k in (16, 64)),
)


def registered(*claims, settings="seeds = 6", arms=ARMS):
    entries = "".join(f'[[claim]]\nsentence = "It is so."\nmetric = "equal_hole_rate"\n{claim}\n' for claim in claims)
    return Registered("fixed.toml", f"[train]\n{settings}\narms = {json.dumps(arms)}\n{entries}")


def evidence(undertrained=(), **changes):
    """Changes in holes and in FVU of each arm from a baseline of six seeds; L0 is the arm's k."""
    base = [0.5 + 0.05 * seed for seed in range(6)]
    values = {}
    for name, (holes, fvu) in {"none": (0.0, 0.0), **changes}.items():
        of_metric = {key: [math.nan] * 6 for key in METRICS}
        of_metric["l0"] = [float(parse_arm(name).k or 16)] * 6
        for key, by in (("equal_hole_rate", holes), ("fvu", fvu)):
            of_metric[key] = [b + by + (n if by else 0) for b, n in zip(base, NOISE, strict=True)]
        of_metric |= {
            "equal_hole_rate_found": of_metric["equal_hole_rate"],
            "absorption_fraction_found": of_metric["equal_hole_rate"],
        }
        values[parse_arm(name)] = of_metric
    matching = match_arms([*values], parse_arm("none"), {arm: of["l0"] for arm, of in values.items()})
    return Evidence(values, matching, curves(values, matching), [parse_arm(name) for name in undertrained], 0.02)


def runs_of(seeds, arms=ARMS):
    return Runs(parse_arm("none"), [*map(parse_arm, arms)], [*seeds], {}, [], {})


def answers(text, facts, seeds=range(6), settings=SETTINGS, arms=ARMS):
    entry = answer_registered(text, settings, runs_of(seeds, arms), facts)
    assert entry is not None and entry["sha256"] == text.sha256
    return entry["claims"]


LOWER = 'arm = "abs_cos:1"\nexpect = "lower"'


def test_a_claim_holds_is_not_shown_or_its_opposite_does():
    for holes, holds, words in ((-0.1, True, "holds ("), (0.0, False, "is not shown ("), (0.1, False, "does not hold")):
        (claim,) = answers(registered(LOWER), evidence(**{"abs_cos:1": (holes, 0.01)}))
        assert (claim["holds"], claim["answer"].startswith(words)) == (holds, True)
    assert claim["answer"].startswith("does not hold, the opposite does (hole rate at equal false alarms +0.1002 [")


def test_a_claim_on_what_stands_beside_an_outcome_is_decided_by_both_rankings_too():
    facts = evidence(**{"abs_cos:1": (-0.1, 0.01)})
    other = evidence(**{"abs_cos:1": (0.05, 0.01)}).values
    for arm, of in facts.values.items():
        of["absorption_fraction_ungated"] = of["equal_hole_rate"]
        of["absorption_fraction_ungated_by_f1"] = other[arm]["equal_hole_rate"]
    text = registered(LOWER)._replace(
        text=registered(LOWER).text.replace('metric = "equal_hole_rate"', 'metric = "absorption_fraction_ungated"')
    )
    (claim,) = answers(text, facts)
    assert not claim["holds"]


def test_with_main_latents_ranked_twice_a_claim_holds_by_both():
    def by(holes, by_f1):
        facts = evidence(**{"abs_cos:1": (holes, 0.01)})
        second = evidence(**{"abs_cos:1": (by_f1, 0.01)}).values
        for arm, of in facts.values.items():
            of["equal_hole_rate_by_f1"] = second[arm]["equal_hole_rate"]
        (claim,) = answers(registered(LOWER), facts)
        return claim

    both, probe, neither = by(-0.1, -0.08), by(-0.1, 0.0), by(-0.1, 0.1)
    assert both["holds"] and " by both rankings (ranked by F1 -0.0798), 6 seeds" in both["answer"]
    assert not probe["holds"] and not neither["holds"] and neither["p"] == 1
    assert both["p"] == max(by(-0.1, -0.1)["p"], by(-0.08, -0.08)["p"])
    equivalent = LOWER.replace("lower", "equivalent")
    facts = evidence(**{"abs_cos:1": (0.003, 0.01)})
    far = evidence(**{"abs_cos:1": (0.03, 0.01)}).values
    for arm, of in facts.values.items():
        of["equal_hole_rate_by_f1"] = far[arm]["equal_hole_rate"]
    (claim,) = answers(registered(equivalent), facts)
    assert not claim["holds"]


def doubted(metric, **changes):
    """The answer to a claim on a metric, with changes of the arm in this and others; over found concepts as over all."""
    facts = evidence(**{"abs_cos:1": (0.0, 0.01)})
    for key in ("equal_hole_rate", "absorption_fraction"):
        changes.setdefault(f"{key}_found", changes.get(key, 0.0))
    for key, by in changes.items():
        of_arm = evidence(**{"abs_cos:1": (by, 0.01)}).values
        for arm, metrics in facts.values.items():
            metrics[key] = of_arm[arm]["equal_hole_rate"]
    text = registered(LOWER)
    (claim,) = answers(text._replace(text=text.text.replace("equal_hole_rate", metric)), facts)
    return claim["answer"]


def test_what_speaks_against_fewer_holes_stands_beside_the_answer():
    assert "but" not in doubted("equal_hole_rate", equal_hole_rate=-0.1, equal_false_alarms=-0.05)
    against = {"equal_false_alarms": 0.05, "equal_precision": -0.07, "equal_hole_rate_reached": 0.0}
    said = doubted("equal_hole_rate", equal_hole_rate=-0.1, **against, equal_hole_rate_found=0.001)
    assert said.startswith("holds (")
    for doubt in (
        "; but false alarms on the words where holes are counted are higher by 0.050",
        "; but precision there is lower by 0.070",
        "; but over the concepts whose false alarms every SAE reaches holes are not distinguishable (+0.000)",
        "; but over the concepts that main latents tell holes differ by +0.001 [-0.000, +0.003]",
    ):
        assert doubt in said


def test_what_speaks_against_a_lower_fraction_stands_beside_the_answer():
    said = doubted("absorption_fraction", absorption_fraction=-0.1, absorption_fraction_ungated=-0.03)
    assert said.endswith("; but without its gates the fraction is -0.030, with them -0.100)")
    assert "but" not in doubted("absorption_fraction", absorption_fraction=-0.1, absorption_fraction_ungated=-0.08)
    assert "but" not in doubted("absorption_fraction", absorption_fraction=0.0, absorption_fraction_ungated=0.1)


def test_claims_on_what_stands_beside_holes_or_fraction_have_the_same_doubts():
    holes = doubted("equal_hole_rate_reached", equal_hole_rate_reached=-0.1, equal_precision=-0.07)
    assert "; but precision there is lower by 0.070" in holes and "tell holes differ by +0.000" in holes
    told = doubted("absorption_fraction_ungated", absorption_fraction_ungated=-0.1, absorption_fraction_found=0.03)
    assert "; but over the concepts that main latents tell the fraction differs by +0.030" in told
    assert "but" not in doubted("main_f1", main_f1=-0.1, equal_precision=-0.07)


def test_the_correction_is_over_the_claims_of_the_file_alone():
    facts = evidence(**{"abs_cos:1": (-0.001, 0.01), "max_cos:1": (-0.1, 0.01), "sq_cos:1": (-0.1, 0.01)})
    (alone,) = answers(registered(LOWER), facts)
    assert alone["p_holm"] == alone["p"]
    both = answers(registered(LOWER, LOWER.replace("abs", "max")), facts)
    assert [claim["p_holm"] for claim in both] == [alone["p"], pytest.approx(2 * both[1]["p"])]


def test_a_claim_without_an_answer_is_corrected_for_as_well():
    facts = evidence(**{"abs_cos:1": (-0.1, 0.01)})
    held, absent = answers(registered(LOWER, LOWER.replace("abs", "max")), facts)
    assert absent["answer"] == "no answer (max_cos:1 is not there)"
    assert held["p_holm"] == 2 * held["p"]


def test_equivalence_is_shown_by_two_one_sided_tests():
    facts = evidence(**{"abs_cos:1": (0.003, 0.01), "max_cos:1": (0.03, 0.01)})
    near, far = answers(
        registered(LOWER.replace("lower", "equivalent"), LOWER.replace("abs", "max").replace("lower", "equivalent")),
        facts,
    )
    assert (near["holds"], far["holds"]) == (True, False)
    assert " within ±0.02 against none, p " in near["answer"] and "not shown to be within ±0.02" in far["answer"]
    of_arm = facts.values[parse_arm("abs_cos:1")]["equal_hole_rate"]
    of_base = facts.values[parse_arm("none")]["equal_hole_rate"]
    assert near["p"] == equivalence_p(paired_difference(of_arm, of_base).per_seed, 0.02)


def test_at_one_cost_two_curves_are_read_and_held_against_each_other():
    facts = evidence(**{"abs_cos:1": (-0.10, 0.02), "max_cos:1": (-0.02, 0.02)})
    at_cost = 'arm = "abs_cos:1"\nagainst = "max_cos:1"\nfvu = 0.016\nexpect = "lower"'
    (claim,) = answers(registered(at_cost), facts)
    assert claim["holds"] and claim["mean"] == pytest.approx(-0.064, abs=0.004)
    assert " against max_cos:1 at +0.016 FVU, p " in claim["answer"] and claim["answer"].endswith("L0 16 and 16)")
    (beyond,) = answers(registered(at_cost.replace("0.016", "0.05")), facts)
    assert beyond["holds"] is None
    assert beyond["answer"].startswith("no answer (abs_cos:1 is known at costs of 0 to 0.018 only")


def test_far_from_what_was_trained_nothing_is_read_off_a_straight_line():
    """Both arms on one curve whose gains flatten with cost: a line to the farther point would lie above it."""
    facts = evidence(**{"abs_cos:1": (-0.05, 0.04), "max_cos:1": (-0.06, 0.12)})
    at_cost = 'arm = "abs_cos:1"\nagainst = "max_cos:1"\nfvu = 0.037\nexpect = "lower"'
    (claim,) = answers(registered(at_cost), facts)
    assert claim["holds"] is None
    both = [
        f"of {arm} below {arm}, which costs {cost} FVU" for arm, cost in (("abs_cos:1", 0.0402), ("max_cos:1", 0.12))
    ]
    assert claim["answer"] == f"no answer (nothing was trained {', or '.join(both)})"
    turned = at_cost.replace("abs_cos", "?").replace("max_cos", "abs_cos").replace("?", "max_cos")
    assert (
        answers(registered(turned), facts)[0]["answer"] == f"no answer (nothing was trained {', or '.join(both[::-1])})"
    )


def test_a_claim_without_another_arm_is_held_to_the_baseline_whatever_else_is_there():
    nested = {"none@arch=matryoshka": (-0.09, 0.01), "abs_cos:1@arch=matryoshka": (-0.05, 0.01)}
    arms = ["none", *nested]
    text = registered(LOWER.replace("abs_cos:1", "abs_cos:1@arch=matryoshka"), arms=arms)
    (claim,) = answers(text, evidence(**nested), arms=arms)
    assert claim["holds"] and claim["mean"] == pytest.approx(-0.05, abs=0.001)
    assert " against none, p " in claim["answer"]


def test_an_arm_between_rungs_is_held_to_the_line_between_them_at_its_own_l0():
    changes = {"none@k=16": (0.0, 0.0), "none@k=32": (0.0, 0.0), "abs_cos:1@k=22": (-0.1, 0.01)}
    facts = evidence(**changes)
    values = {arm: of for arm, of in facts.values.items() if arm.name != "none"}
    matching = match_arms([*values], parse_arm("none"), {arm: of["l0"] for arm, of in values.items()})
    arms = [*changes]
    (claim,) = answers(
        registered('arm = "abs_cos:1@k=22"\nexpect = "lower"', arms=arms),
        facts._replace(values=values, matching=matching, curves=curves(values, matching)),
        arms=arms,
    )
    assert claim["holds"] and " against none@k=16/none@k=32, interpolated, p " in claim["answer"]
    assert claim["answer"].endswith("L0 22 and 22)")


def test_undertrained_saes_missing_seeds_and_other_settings_answer_nothing():
    changes = {"abs_cos:1": (-0.1, 0.01)}
    (weak,) = answers(registered(LOWER), evidence(undertrained=["abs_cos:1"], **changes))
    assert weak["answer"] == "no answer (undertrained: abs_cos:1)"
    (few,) = answers(registered(LOWER), evidence(**changes), seeds=[0, 1, 2, 3])
    assert few["answer"] == "no answer (4 of 6 seeds are there)"
    places = CompareSettings(runs="runs", out="out", device_map="auto", controls=False)
    (free,) = answers(registered(LOWER), evidence(**changes), settings=places)
    assert free["holds"]
    other = CompareSettings(runs="runs", out="out", probe_gate=0.5)
    (differs,) = answers(registered(LOWER), evidence(**changes), settings=other)
    assert differs["answer"].startswith("no answer (compared with other settings than registered: probe_gate is 0.6")


@pytest.mark.parametrize("held", ["none@decoder=0.8", "none@encoder=frozen"])
def test_a_claim_about_a_control_is_answered_though_it_stays_at_its_start(held):
    text = registered(f'arm = "{held}"\nexpect = "higher"', arms=["none", held])
    (claim,) = answers(text, evidence([held], **{held: (0.1, 0.04)}), arms=["none", held])
    assert claim["holds"] and claim["answer"].startswith("holds (")
    (weak,) = answers(text, evidence([held, "none"], **{held: (0.1, 0.04)}), arms=["none", held])
    assert weak["answer"] == "no answer (undertrained: none)"


def test_where_an_arm_that_was_registered_is_missing_no_claim_is_answered():
    facts = evidence(**{"abs_cos:1": (-0.1, 0.01)})
    text = registered(LOWER, arms=["none", "abs_cos:1/2", "max_cos"])
    (few,) = answers(text, facts, arms=["none", "abs_cos:1", "max_cos:0.25"])
    assert few["holds"] is None and few["answer"] == "no answer (3 of 4 arms are there)"
    (whole,) = answers(text, facts, arms=["none", "abs_cos:1", "abs_cos:2", "max_cos:0.25", "sq_cos:1"])
    assert whole["holds"], "one that was added later takes no answer away"


@pytest.mark.parametrize(
    ("arm", "against", "said"),
    [
        ("abs_cos:1", "abs_cos:3", r"abs_cos:1 and abs_cos:3 lie on one curve, abs_cos:1/3"),
        ("abs_cos:1", "abs_cos:1", r"abs_cos:1 and abs_cos:1 lie on one curve"),
        ("abs_cos:1", "none", r"none is the baseline itself, .* or leave out `against` and `fvu`"),
        ("none", "abs_cos:1", r"none is the baseline itself"),
        ("none@arch=matryoshka@balance=0.5", "none@arch=matryoshka", r".* lie on one curve"),
    ],
)
def test_a_claim_at_one_cost_that_no_two_curves_decide_is_refused_before_training(arm, against, said):
    arms = ["none", "abs_cos:1/3", "max_cos:1", "none@arch=matryoshka@balance=0.5/1"]
    at_cost = f'arm = "{arm}"\nagainst = "{against}"\nfvu = 0.01\nexpect = "lower"'
    with pytest.raises(SettingsError, match=rf"registered fixed.toml: claim 1: {said}"):
        check_claims(registered(at_cost, arms=arms))
    of_two = 'arm = "abs_cos:3"\nagainst = "max_cos:1"\nfvu = 0.01\nexpect = "lower"'
    check_claims(registered(of_two, arms=arms))


def test_a_claim_without_a_cost_on_the_baseline_is_refused_before_training():
    with pytest.raises(SettingsError, match="claim 1: none is the baseline itself, .* name another arm"):
        check_claims(registered(LOWER.replace("abs_cos:1", "none")))


def test_arms_on_one_curve_are_no_answer_in_a_folder_that_was_trained_so():
    facts = evidence(**{"abs_cos:1": (-0.10, 0.02), "abs_cos:3": (-0.12, 0.03)})
    at_cost = 'arm = "abs_cos:1"\nagainst = "abs_cos:3"\nfvu = 0.01\nexpect = "lower"'
    (claim,) = answers(registered(at_cost), facts)
    assert claim["answer"] == "no answer (abs_cos:1 and abs_cos:3 lie on one curve, abs_cos:1/3)"


LABELS = "string,label\n the,article\n"


@pytest.fixture
def with_labels(tmp_path, monkeypatch):
    """A file that names labels, as it is registered in a folder; and its run.json after training began."""
    monkeypatch.chdir(tmp_path)
    Path("concepts.csv").write_text(LABELS)
    text = registered(LOWER, settings='hook = "blocks.1.hook_out"').text
    Path("fixed.toml").write_text(f'{text}\n[compare]\nlabels = "concepts.csv"\n')

    def register(registered="fixed.toml"):
        settings = TrainSettings(
            store="store", out="runs", registered=registered, hook="blocks.1.hook_out", arms=",".join(ARMS)
        )
        kept = registration(settings)
        Path("runs").mkdir(exist_ok=True)
        Path("runs/run.json").write_text(json.dumps({"registered": kept.record()}))
        return kept

    return register


def answer_with(labels, text):
    (claim,) = answers(
        text,
        evidence(**{"abs_cos:1": (-0.1, 0.01)}),
        settings=CompareSettings(runs="runs", out="out", labels=labels),
    )
    return claim["answer"]


def test_registered_labels_are_known_by_their_content_and_not_by_their_path(with_labels, tmp_path):
    text = with_labels()
    assert read_registered(Path("runs")) == text
    (tmp_path / "elsewhere.csv").write_text(LABELS)
    assert answer_with("elsewhere.csv", text).startswith("holds (")
    Path("concepts.csv").write_text(LABELS + " a,article\n")
    changed = "no answer (compared with other settings than registered: labels is "
    assert answer_with("concepts.csv", text).startswith(changed)
    assert answer_with(None, text).startswith(changed)


def test_labels_are_registered_until_the_first_sae_is_begun_and_not_after(with_labels):
    before = with_labels()
    Path("concepts.csv").write_text(LABELS + " a,article\n")
    after = with_labels()
    assert before.text == after.text and before.labels != after.labels
    Path("runs/none-seed0.metrics.jsonl").touch()
    Path("concepts.csv").write_text(LABELS)
    assert with_labels() == with_labels(None) == after
    Path("concepts.csv").unlink()
    assert with_labels() == after


def test_labels_that_are_not_there_cannot_be_registered(with_labels):
    Path("concepts.csv").unlink()
    with pytest.raises(
        SettingsError, match=r"registered fixed.toml: labels concepts.csv cannot be read \(No such file"
    ):
        with_labels()


def test_a_folder_registered_without_the_content_of_its_labels_is_held_to_their_path(with_labels):
    text = with_labels()._replace(labels=None)
    Path("runs/run.json").write_text(json.dumps({"registered": text.record()}))
    Path("runs/none-seed0.metrics.jsonl").touch()
    assert with_labels().labels is None, "what the file held when it was registered is not known"
    Path("concepts.csv").write_text(LABELS + " a,article\n")
    assert answer_with("concepts.csv", text).startswith("holds (")
    assert answer_with("elsewhere.csv", text).startswith(
        "no answer (compared with other settings than registered: labels"
    )


def test_saes_of_another_file_answer_nothing(monkeypatch):
    monkeypatch.setattr(module, "not_registered", lambda *_: ["none-seed0"])
    (claim,) = answers(registered(LOWER), evidence(**{"abs_cos:1": (-0.1, 0.01)}))
    assert claim["answer"] == "no answer (none-seed0 was not trained under this file)"


def test_a_metric_that_is_not_measured_is_named_before_the_work(monkeypatch):
    text = registered(LOWER)
    wrong = Registered(text.file, text.text.replace("equal_hole_rate", "equal_hole_rat"))
    monkeypatch.setattr(module, "read_registered", lambda _: wrong)
    with pytest.raises(SettingsError, match=r"claim 1: metric 'equal_hole_rat' is not tested here; .*did you mean"):
        check_registered(CompareSettings(runs=Path("runs"), out="out"))


def test_nothing_registered_is_no_entry():
    assert answer_registered(None, SETTINGS, runs_of([0]), evidence()) is None


def of_two_rungs(undertrained=()):
    """The baseline at L0 16 and 64, and an arm at each."""
    changes = {
        "none@k=16": (0.0, 0.0),
        "none@k=64": (0.0, 0.0),
        "abs_cos:1@k=16": (-0.1, 0.02),
        "max_cos:1@k=64": (-0.02, 0.02),
    }
    facts = evidence(undertrained, **changes)
    values = {arm: of for arm, of in facts.values.items() if arm.name != "none"}
    matching = match_arms([*values], parse_arm("none"), {arm: of["l0"] for arm, of in values.items()})
    return facts._replace(values=values, matching=matching, curves=curves(values, matching))


def test_arms_of_different_l0_are_not_read_at_one_cost():
    at_cost = 'arm = "abs_cos:1@k=16"\nagainst = "max_cos:1@k=64"\nfvu = 0.01\nexpect = "lower"'
    (claim,) = answers(registered(at_cost), of_two_rungs())
    assert claim["answer"] == "no answer (their L0 differ: they are held to none@k=16 and none@k=64)"


def test_a_claim_at_one_cost_is_of_undertrained_saes_where_the_baseline_is_undertrained():
    changes = {"abs_cos:1": (-0.10, 0.02), "max_cos:1": (-0.02, 0.02)}
    at_cost = 'arm = "abs_cos:1"\nagainst = "max_cos:1"\nfvu = 0.016\nexpect = "lower"'
    (claim,) = answers(registered(at_cost), evidence(**changes))
    assert claim["holds"]
    for weak in ("none", "max_cos:1"):
        (claim,) = answers(registered(at_cost), evidence([weak], **changes))
        assert claim["answer"] == f"no answer (undertrained: {weak})"


def test_an_undertrained_rung_that_an_arm_is_not_held_to_takes_no_answer_away():
    lower = 'arm = "abs_cos:1@k=16"\nexpect = "lower"'
    (claim,) = answers(registered(lower), of_two_rungs(["none@k=64"]))
    assert claim["holds"]
    (weak,) = answers(registered(lower), of_two_rungs(["none@k=16"]))
    assert weak["answer"] == "no answer (undertrained: none@k=16)"
