"""sae_lm.comparison.undertrained: SAEs that are not trained are said to be, and nothing strong is claimed of them."""

import pytest
import torch

from sae_lm.comparison import verdicts
from sae_lm.comparison.findings import answer, findings
from sae_lm.comparison.matching import match_arms
from sae_lm.comparison.outcomes import METRICS
from sae_lm.comparison.undertrained import Undertrained, find_undertrained, reason, training_figures, warn
from sae_lm.penalties.arms import Arm, parse_arm
from sae_lm.training.convergence import random_start

ARMS = ("none", "abs_cos:1", "max_cos:1")
BASE = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75]


def shifted(by):
    return [value + by + error for value, error in zip(BASE, (1e-3, -2e-3, 15e-4, -5e-4, 0, 1e-3), strict=True)]


def arms_of(**metrics):
    """{arm: {metric: values}} from {metric: {arm: values}}; the rest is not known."""
    arms = dict.fromkeys(arm for of in metrics.values() for arm in of)
    return {parse_arm(arm): {key: metrics.get(key, {}).get(arm, [float("nan")] * 6) for key in METRICS} for arm in arms}


def compare_arms(values, baseline):
    l0 = {arm: metrics["l0"] for arm, metrics in values.items()}
    return verdicts.compare_arms(values, match_arms([*values], parse_arm(baseline), l0))


def entry(differences, arm, metric):
    (found,) = (d for d in differences if (d["arm"], d["metric"]) == (arm, metric))
    return found


def figures_of(**start_cos):
    """Arms of equal L0 whose holes and fraction are lower than the baseline's, by their cosines to the start."""
    cosines = dict(zip(ARMS, start_cos.values(), strict=True))
    lower = {arm: BASE if arm == "none" else shifted(-0.1) for arm in ARMS}
    return arms_of(
        l0={arm: [16.0] * 6 for arm in ARMS},
        fvu={arm: BASE if arm == "none" else shifted(0.004) for arm in ARMS},
        equal_hole_rate=lower,
        absorption_fraction=lower,
        start_cos={arm: [cosine] * 6 for arm, cosine in cosines.items()},
        seed_stability={arm: [0.018] * 6 for arm in ARMS},
    )


def flagged(signal, slope, start_cos=0.3):
    values = {parse_arm("none"): {"start_cos": [start_cos], "seed_stability": [0.1],
                                  "stable_signal": [signal], "fvu_slope": [slope]}}  # fmt: skip
    return bool(find_undertrained(values))


def test_rows_near_their_start_or_seeds_that_differ_while_fvu_falls_fast_are_undertrained():
    nan = float("nan")
    assert flagged(signal=0.9, slope=0.0, start_cos=0.74)
    assert flagged(signal=0.1, slope=0.2)
    assert not flagged(signal=0.1, slope=0.02), "seeds of a wide dictionary never share all"
    assert not flagged(signal=0.9, slope=0.2), "FVU falls in any run that is ended early"
    assert not any(flagged(*known) for known in [(nan, 0.2), (nan, nan)]), "not known is not guilty"
    assert not flagged(nan, nan, start_cos=nan)


def test_a_run_too_short_for_its_log_to_tell_whether_it_still_learns_is_taken_to():
    nan = float("nan")
    assert flagged(signal=0.1, slope=nan)
    assert not flagged(signal=0.1, slope=nan, start_cos=nan), "an SAE of another program has no log"
    assert not flagged(signal=0.9, slope=nan)
    assert reason([Undertrained(0.38, 0.1, 0.26, nan)]) == (
        "left their random start, but seeds have little in common and how fast FVU still fell is not known "
        "(decoder cosine with it 0.38, seeds share 10% of latents)"
    )


def test_the_answer_begins_with_what_is_not_trained_and_claims_no_absorption():
    values = figures_of(none=0.74, abs_cos=0.75, max_cos=0.76)
    warning = warn(find_undertrained(values), values)
    assert warning.startswith(
        "These SAEs hardly left their random start (decoder cosine with it 0.74 to 0.76, seeds share 2% of latents): "
        "differences between them say little about trained SAEs"
    )
    differences = compare_arms(values, "none")
    told = answer(differences, "none", 6, concepts=4)
    assert "less absorption" not in told
    assert "among undertrained SAEs hole rate at equal false alarms and fraction both lower with abs_cos:1" in told
    said = findings(differences, values, 6)[0]
    assert (
        "no claim on absorption: hole rate at equal false alarms and fraction both lower, but among undertrained SAEs"
        in said
    )
    holes = entry(differences, "abs_cos:1", "equal_hole_rate")
    assert holes["verdict"] == "lower" and holes["undertrained"], "statistics stay, beside a mark"


def test_of_trained_saes_nothing_is_said_and_claims_stand():
    values = figures_of(none=0.2, abs_cos=0.2, max_cos=0.25)
    differences = compare_arms(values, "none")
    assert warn(find_undertrained(values), values) is None
    assert "less absorption with abs_cos:1" in answer(differences, "none", 6, concepts=4)
    assert not any(d["undertrained"] for d in differences)


def test_an_undertrained_arm_taints_itself_and_an_undertrained_baseline_all():
    values = figures_of(none=0.2, abs_cos=0.7, max_cos=0.2)
    differences = compare_arms(values, "none")
    assert [entry(differences, arm, "fvu")["undertrained"] for arm in ARMS[1:]] == [True, False]
    assert warn(find_undertrained(values), values).startswith("The SAEs of abs_cos:1 hardly left")
    told = answer(differences, "none", 6, concepts=4)
    assert "less absorption with max_cos:1" in told and "among undertrained SAEs" in told
    values = figures_of(none=0.7, abs_cos=0.2, max_cos=0.2)
    assert all(d["undertrained"] for d in compare_arms(values, "none"))


def test_a_control_that_is_held_at_its_start_is_flagged_and_warns_of_no_others(monkeypatch):
    values = figures_of(none=0.2, abs_cos=1.0, max_cos=0.2)
    monkeypatch.setattr(Arm, "is_held", property(lambda arm: arm.name == "abs_cos:1"))
    found = find_undertrained(values)
    assert [arm.name for arm in found] == ["abs_cos:1"] and warn(found, values) is None
    assert reason([*found.values()]).startswith("hardly left their random start (decoder cosine with it 1.00")


def test_many_arms_are_counted_and_some_named():
    arms = [parse_arm(f"abs_cos:{number}") for number in range(1, 8)]
    values = arms_of(start_cos={arm.name: [0.7 if arm != arms[-1] else 0.1] for arm in arms})
    warning = warn(find_undertrained(values), arms)
    assert "abs_cos:4 and 2 further arms hardly left" in warning and "abs_cos:5" not in warning


def test_cosines_to_the_start_need_the_seed_alone_and_the_fall_of_fvu_is_what_the_metadata_says(make_sae):
    sae = make_sae(d_sae=10, convergence={"fvu_slope": 0.25})
    fired = torch.arange(10) < 7
    found = training_figures(sae, 3, fired)
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec, random_start(3, 10, 6), dim=1)[:7].mean()
    assert found["start_cos"] == pytest.approx(float(cosine), abs=1e-6) and found["fvu_slope"] == 0.25
    assert "fvu_slope" not in training_figures(make_sae(), 3, fired)
