"""Which arms may be compared with which: equal L0, the line between rungs, the ladder of an architecture."""

import math

import pytest

from sae_lm.comparison.matching import frontier, interpolate, ladder_of, match, match_arms, pareto
from sae_lm.penalties.arms import parse_arm

NAN = float("nan")
A, B, C = (parse_arm(f"none@k={k}") for k in (8, 32, 16))


def arms(values):
    """{name: anything} -> {arm: the same}."""
    return {parse_arm(name): value for name, value in values.items()}


def matching_of(l0, baseline="none"):
    return match_arms([*arms(l0)], parse_arm(baseline), arms(l0))


# --- equal L0


def test_an_arm_of_equal_l0_is_matched_to_the_rung_of_its_k():
    ladder = arms({"none@k=8": [8.0, 8.0], "none@k=16": [16.0, 16.2]})
    k8, k16 = ladder
    found = match([16.5, 16.5], ladder, prefer=k16)
    assert (found.how, found.rung) == ("matched", k16)
    assert found.baseline({k8: [1.0, 1.0], k16: [0.5, 0.6]}) == [0.5, 0.6]
    assert match([8.1, 8.1], ladder, prefer=k16).rung == k8, "another rung fits better than its k's"


def test_between_rungs_the_baseline_is_interpolated_seed_by_seed_in_log_l0():
    ladder = {A: [8.0, 8.0], B: [32.0, 32.0], C: [16.0, 16.0]}
    found = match([11.3137085, 22.627417], ladder)  # the geometric means of 8, 16 and of 16, 32
    assert found.how == "interpolated"
    assert found.baseline({A: [0.4, 0.5], B: [0.1, 0.1], C: [0.3, 0.2]}) == pytest.approx([0.35, 0.15])
    assert found.baseline({A: [0.4, 0.5], B: [0.1, 0.1], C: [NAN, 0.2]})[1] == pytest.approx(0.15)


def test_between_rungs_those_around_it_are_used_and_no_others():
    far = parse_arm("none@k=64")
    ladder = {A: [8.0, 8.0], B: [32.0, 32.0], C: [16.0, 16.0], far: [64.0, 64.0]}
    assert match([11.0, 12.0], ladder).used == [A, C]
    assert match([11.0, 24.0], ladder).used == [A, B, C], "of any seed"
    assert match([16.0, 24.0], ladder).used == [B, C], "one that it meets"
    assert match([16.1, 16.1], ladder).used == [C], "of equal L0"


def test_outside_the_ladder_of_any_seed_l0_is_not_matched():
    ladder = {A: [8.0, 8.0], B: [16.0, 16.0]}
    assert match([12.0, 17.0], ladder).how == match([40.0, 40.0], ladder).how == "not matched"
    assert match([20.0], {A: [16.0]}).how == "not matched"


def test_between_rungs_further_apart_than_an_octave_nothing_is_interpolated():
    ladder = {A: [8.0, 8.0], B: [32.0, 32.0]}
    assert match([16.0, 16.0], ladder).how == "not matched"
    assert match([16.0, 16.0], ladder | {C: [15.0, 15.0]}).how == "interpolated"
    assert match([16.0, 8.1], ladder).how == "not matched", "one seed is far from both"
    # of mean L0 11.4, matched to no rung; of each seed one rung is near
    assert match([8.1, 15.8], {A: [8.0, 7.0], B: [32.0, 15.9]}).how == "interpolated"


def test_interpolation_meets_its_rungs_and_guesses_nothing_beyond():
    rungs = [(16.0, 0.2), (8.0, 0.4)]
    assert interpolate(8.0, rungs) == 0.4 and interpolate(16.0, rungs) == 0.2
    assert math.isnan(interpolate(7.9, rungs)) and math.isnan(interpolate(16.1, rungs))


# --- ladders


def test_of_two_rungs_of_about_its_l0_an_arm_is_compared_with_the_one_of_its_k():
    matching = matching_of({"none@k=15": [15.6] * 3, "none@k=16": [16.3] * 3, "abs_cos:1@k=16": [15.7] * 3})
    assert matching.matches[parse_arm("abs_cos:1@k=16")].rung == parse_arm("none@k=16")


def test_a_penalty_on_another_architecture_is_compared_with_that_architecture_where_it_is_there():
    arms = ["none", "none@arch=matryoshka", "abs_cos:1@arch=matryoshka", "abs_cos:1@arch=relu", "abs_cos:1"]

    def ladder(arm, arms, baseline):
        return [rung.name for rung in ladder_of(parse_arm(arm), [*map(parse_arm, arms)], parse_arm(baseline))]

    assert ladder("abs_cos:1@arch=matryoshka", arms, "none") == ["none@arch=matryoshka"]
    for arm in ("none@arch=matryoshka", "abs_cos:1@arch=relu", "abs_cos:1"):
        assert ladder(arm, arms, "none") == ["none"]
    assert ladder("abs_cos:1@arch=matryoshka", arms, "abs_cos:1") == ["abs_cos:1"]
    assert ladder("none@k=16", ["none@k=8", "none@k=16"], "none@k=8") == ["none@k=8"]


def test_a_control_is_compared_with_the_same_sae_that_nothing_holds_and_a_penalty_with_the_same_that_is_held():
    every = [*map(parse_arm, ("none", "none@arch=relu", "none@decoder=0.8"))]

    def ladder(arm, arms=every):
        return [rung.name for rung in ladder_of(parse_arm(arm), arms, parse_arm("none"))]

    assert ladder("none@decoder=0.8") == ladder("none@encoder=frozen") == ["none"]
    assert ladder("none@decoder=0.8@arch=relu") == ["none@arch=relu"]
    assert ladder("max_cos@decoder=0.8") == ["none@decoder=0.8"]
    assert ladder("max_cos@decoder=0.8", every[:2]) == ["none"]


def test_every_arm_has_a_rung_of_the_baseline_beside_what_its_differences_are_taken_from():
    l0 = {"none@k=8": [8.0], "none@k=16": [16.0], "none@arch=relu@k=15": [16.3], "abs_cos:1@arch=relu@k=15": [16.2]}
    matching = matching_of(l0)
    assert [rung.name for rung in matching.ladder] == ["none@k=8", "none@k=16"]
    assert {arm.name: found.rung.name for arm, found in matching.to_baseline.items()} == {
        "none@k=8": "none@k=8", "none@k=16": "none@k=16",
        "none@arch=relu@k=15": "none@k=16", "abs_cos:1@arch=relu@k=15": "none@k=16",
    }  # fmt: skip
    assert matching.matches[parse_arm("abs_cos:1@arch=relu@k=15")].rung.name == "none@arch=relu@k=15"


@pytest.mark.parametrize(
    ("names", "baseline"),
    [
        (("none", "none@decoder=0.8", "max_cos:0.25"), "none@decoder=0.8"),
        (("none", "none@encoder=frozen", "max_cos:0.25@encoder=frozen"), "none@encoder=frozen"),
        (("none@arch=batchtopk", "none@arch=matryoshka@fvu=0.02", "max_cos:1"), "none@arch=matryoshka@fvu=0.02"),
        (("none", "none@arch=matryoshka", "max_cos:1@arch=relu", "none@arch=relu"), "none@arch=matryoshka"),
        (("none", "max_cos:1", "max_cos:1@arch=relu", "none@arch=relu"), "max_cos:1"),
        (("none@k=32", "none@k=16@decoder=0.8"), "none@k=16@decoder=0.8"),
    ],
)
def test_whatever_arm_the_baseline_is_its_ladder_holds_it_and_all_others_have_a_difference(names, baseline):
    every, named = [*map(parse_arm, names)], parse_arm(baseline)
    assert ladder_of(named, every, named) == [named]
    matching = matching_of({name: [16.0] for name in names}, baseline)
    assert matching.ladder == [named] and set(matching.matches) == set(every)
    for arm, found in matching.matches.items():
        assert (found.rung == arm) == (arm == named), f"{arm.name} is compared with {found.rung.name}"


def test_beside_a_held_baseline_every_arm_is_compared_with_it_and_no_penalty_too():
    every = [*map(parse_arm, ("none", "none@decoder=0.8", "max_cos:0.25", "max_cos:0.25@decoder=0.8"))]
    held = every[1]
    assert all(ladder_of(arm, every, held) == [held] for arm in every)


# --- the front


def test_the_pareto_front_holds_what_nothing_beats_at_its_l0():
    a, b, worse, c, dense = (parse_arm(f"abs_cos:{coefficient}") for coefficient in range(1, 6))
    points = {a: (8.0, 0.4), b: (16.0, 0.3), worse: (16.0, 0.31), c: (32.0, 0.2), dense: (40.0, 0.25)}
    assert pareto(points) == {a, b, c}
    assert pareto({a: (16.0, 0.3), b: (15.9, 0.31)}) == {a}, "L0 within 5% counts as equal"


def test_the_front_is_of_mean_l0_and_mean_fvu():
    l0 = {"none": [16.0] * 6, "abs_cos:1": [16.1] * 6, "max_cos:1": [15.9] * 6}
    fvu = {"none": [0.3] * 6, "abs_cos:1": [0.31] * 6, "max_cos:1": [0.29] * 6}
    values = arms({name: {"l0": l0[name], "fvu": fvu[name]} for name in l0})
    assert frontier(values) == {parse_arm("max_cos:1")}
    assert matching_of(l0).matches[parse_arm("abs_cos:1")].how == "matched"
