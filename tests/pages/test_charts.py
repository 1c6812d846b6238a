"""sae_lm.pages.charts: what is drawn of a report, by which colour and mark."""

import re
from xml.etree import ElementTree

import pytest
from example_report import MANY, make_report

from sae_lm.pages import charts
from sae_lm.pages.svg import MARK_SHAPES, TONE_COLOURS, panel, svg, ticks


def test_penalties_differ_by_colour_and_their_coefficients_by_mark() -> None:
    looks = charts.looks(make_report(("none", "abs_cos:1", "abs_cos:3", "max_cos:1"), (8, 16)))
    assert looks["none@k=8"] == looks["none@k=16"]._replace(k=8) and looks["none@k=8"].tone == 0
    assert looks["abs_cos:1@k=8"].tone == looks["abs_cos:3@k=8"].tone != looks["max_cos:1@k=8"].tone
    assert looks["abs_cos:1@k=8"].mark != looks["abs_cos:3@k=8"].mark


def test_balances_of_matryoshka_and_numbers_of_an_option_have_one_colour_and_marks_of_their_own() -> None:
    balances = ("none@arch=matryoshka", "none@arch=matryoshka@balance=0.25", "none@arch=matryoshka@balance=0.5")
    held = ("none@decoder=0.8", "none@decoder=0.9")
    looks = charts.looks(make_report(("none", "none@arch=batchtopk", "none@decoder=frozen", *balances, *held), seeds=1))
    for family in (balances, held):
        assert len({looks[name].tone for name in family}) == 1 and len({looks[name].mark for name in family}) == len(
            family
        )
    assert len({look.tone for look in looks.values()}) == 5


def test_twenty_families_have_twenty_looks() -> None:
    looks = charts.looks(make_report(MANY, seeds=1))
    assert len({(look.tone, look.mark) for look in looks.values()}) == len(MANY) == 20
    assert max(look.tone for look in looks.values()) < len(TONE_COLOURS) == charts.TONE_COUNT
    assert max(look.mark for look in looks.values()) < len(MARK_SHAPES) == charts.MARK_COUNT


def test_against_l0_joins_the_rungs_of_a_family_and_draws_the_front_of_fvu() -> None:
    chart = charts.against_l0(make_report(("none", "abs_cos:1"), (8, 16)), "fvu")
    assert chart is not None
    # arms in turn: none and abs_cos:1 at k 8, then at k 16; means 0.6, 0.7, 0.8, 0.9; every other is on the front
    assert [(dot.x, round(dot.y, 9), dot.arm) for dot in chart.dots] == [
        (8, 0.6, "none@k=8"), (8, 0.7, "abs_cos:1@k=8"), (16, 0.8, "none@k=16"), (16, 0.9, "abs_cos:1@k=16"),
    ]  # fmt: skip
    joined = [line for line in chart.lines if line.style == "solid"]
    assert [[round(y, 9) for _, y in line.points] for line in joined] == [[0.6, 0.8], [0.7, 0.9]]
    [front] = [line for line in chart.lines if line.style == "dashed"]
    assert [x for x, _ in front.points] == [8, 16]
    assert chart.x_ticks == [(8, "8"), (16, "16")]


def test_the_metric_that_tells_a_right_l0_is_drawn_against_it_beside_those_that_open_the_page() -> None:
    report = make_report(("none",), (8, 16))
    assert charts.ladder_metrics(report) == charts.headline(report)
    report["metrics"][charts.RIGHT_L0] = report["metrics"]["fvu"]
    assert charts.ladder_metrics(report) == [*charts.headline(report), "nth_projection"]


def test_one_l0_is_no_curve_and_two_that_differ_by_more_than_a_twentieth_are() -> None:
    report = make_report()
    assert not charts.several_l0(report)
    report["arms"]["abs_cos:1"]["values"]["l0"] = [33.5] * 3
    assert not charts.several_l0(report)
    report["arms"]["abs_cos:1"]["values"]["l0"] = [34.0] * 3
    assert charts.several_l0(report)


def test_seed_by_seed_joins_the_runs_of_a_seed_and_leaves_out_what_is_missing() -> None:
    report = make_report(("none", "abs_cos:1"))
    report["arms"]["none"]["values"]["splits"][1] = None
    chart = charts.by_seed(report, "splits")
    assert chart is not None and len(chart.dots) == 5
    assert [len(line.points) for line in chart.lines] == [2, 2]
    assert chart.rows == ["none", "abs_cos:1"] and {dot.y for dot in chart.dots} == {0, -1}


def test_a_forest_has_full_marks_where_there_is_a_verdict_and_the_detectable_band() -> None:
    report = make_report()
    chart = charts.forest(report, "hole_rate")
    assert chart is not None and not any(dot.hollow for dot in chart.dots)
    chart = charts.forest(report, "splits")
    assert chart is not None and all(dot.hollow for dot in chart.dots)
    assert next(line.points for line in chart.lines if line.style == "band") == ((-0.05, 0), (0.05, 0))
    assert [line.points for line in chart.lines if line.arm == "abs_cos:1"] == [((-0.1875, 0), (-0.0625, 0))]


def test_only_penalties_with_two_coefficients_have_a_curve_along_them() -> None:
    chart = charts.along_coefficient(make_report(("none", "abs_cos:3", "abs_cos:1", "max_cos:1")), "fvu")
    assert chart is not None
    assert [(dot.x, dot.arm) for dot in chart.dots] == [(1, "abs_cos:1"), (3, "abs_cos:3")]
    assert charts.along_coefficient(make_report(), "fvu") is None
    steered = make_report(("none", "abs_cos:1@fvu=0.01", "abs_cos:3@fvu=0.01"))
    assert charts.along_coefficient(steered, "fvu") is None, "their coefficients are what they began at"


def test_histograms_stand_beside_the_baselines_of_their_k_and_over_the_null() -> None:
    panels = charts.nearest_panels(make_report(("none", "abs_cos:1", "abs_cos:3", "max_cos:1"), (8, 16)))
    assert list(panels) == [8, 16] and [chart.title for chart in panels[8]] == ["abs_cos, k = 8", "max_cos, k = 8"]
    assert [line.arm for line in panels[8][0].lines] == ["", "none@k=8", "abs_cos:1@k=8", "abs_cos:3@k=8"]
    assert panels[8][0].lines[0].style == "area"
    one = charts.nearest_panels(make_report(("none",)))
    assert [line.arm for line in one[32][0].lines] == ["", "none"]


def test_ticks_are_round_numbers_inside_the_limits() -> None:
    assert ticks(0.0, 1.0, 5) == [(0.0, "0.0"), (0.2, "0.2"), (0.4, "0.4"), (pytest.approx(0.6), "0.6"), (0.8, "0.8"), (1.0, "1.0")]  # fmt: skip
    assert [label for _, label in ticks(-0.0031, 0.0049, 5)] == ["-0.002", "0.000", "0.002", "0.004"]
    assert [label for _, label in ticks(1200, 5300, 5)] == ["2000", "3000", "4000", "5000"]


def test_a_band_that_is_wider_than_the_plot_is_cut_at_its_edges() -> None:
    report = make_report()
    for difference in report["differences"]:
        difference["detectable"] = 50.0
    chart = charts.forest(report, "fvu")
    assert chart is not None and panel(chart).x[0] > -0.3
    root = ElementTree.fromstring(svg(chart, charts.looks(report), "told"))
    xs = [float(x) for path in root.iter("path") for x in re.findall(r"[ML]([-\d.]+) ", path.get("d", ""))]
    assert min(xs) >= 0 and max(xs) <= 360
