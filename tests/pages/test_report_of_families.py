"""What a report says of families at equal cost, other concepts, kinds and undertrained SAEs: the page made by hand."""

from pathlib import Path
from xml.etree import ElementTree

from example_report import make_report, with_frontier
from report_page import Tags, page_of, plots_of, words_of

from sae_lm.pages.figures import write_figures
from sae_lm.pages.frontier import frontier_charts
from sae_lm.pages.svg import panel
from sae_lm.pages.terminal import text_table


def test_the_frontier_has_a_panel_for_each_l0_with_the_baseline_at_the_origin(tmp_path: Path) -> None:
    report = with_frontier(make_report(("none", "abs_cos:1", "max_cos:0.25"), (8, 16)))
    holes = [chart for chart in frontier_charts(report) if chart is not None]
    assert [chart.title for chart in holes] == ["hole rate, L0 of none@k=8", "hole rate, L0 of none@k=16"]
    assert [(dot.x, dot.y, dot.arm) for dot in holes[0].dots] == [
        (0, 0, "none@k=8"), (0.01, -0.125, "abs_cos:1@k=8"), (0.01, -0.125, "max_cos:0.25@k=8"),
    ]  # fmt: skip
    assert [line.style for line in holes[0].lines] == ["ribbon", "thin", "thin", "solid"] * 2
    assert panel(holes[0]).x[0] < 0 and panel(holes[0]).y[1] > 0, "both axes show their 0"
    page = page_of(report, tmp_path)
    assert 'href="#frontier"' in page and page.count('class="ribbon t') == 4
    for plot in plots_of(page):
        ElementTree.fromstring(plot)


def test_the_frontier_has_panels_of_the_other_ranking_after_those_of_the_first() -> None:
    report = with_frontier(make_report())
    label = report["metrics"]["hole_rate"] | {"label": "hole rate, ranked by F1", "role": "context"}
    report["metrics"]["hole_rate_by_f1"] = label
    for entry in report["frontier"]:
        for point in entry["points"]:
            point["changes"]["hole_rate_by_f1"] = point["changes"]["hole_rate"]
        entry["bands"]["hole_rate_by_f1"] = entry["bands"]["hole_rate"]
    drawn = [chart for chart in frontier_charts(report) if chart is not None]
    assert [chart.title for chart in drawn] == ["hole rate", "hole rate, ranked by F1"]
    assert [line.style for line in drawn[1].lines] == [line.style for line in drawn[0].lines]
    assert drawn[1].dots[1].tooltip.startswith("abs_cos:1: hole rate, ranked by F1 -0.125")


def test_a_report_without_families_has_no_frontier_and_the_figure_is_left_out(tmp_path: Path) -> None:
    assert "frontier" not in page_of(make_report(), tmp_path).split("<main", 1)[0]
    names = [path.name for path in write_figures(with_frontier(make_report()), tmp_path / "figures")]
    assert "frontier.png" in names and "frontier.svg" in names


def test_the_table_at_equal_fvu_says_between_which_arms_each_family_is_read_and_what_is_doubted(tmp_path: Path) -> None:
    report = with_frontier(make_report())
    report["at_equal_fvu"][0] |= {"verdict": "lower", "reason": None, "doubts": ["precision there is <b>lower</b>"]}
    text = words_of(page_of(report, tmp_path))
    assert (
        "max_cos:0.25 against abs_cos:1 +0.0050 hole rate -0.0625 none to max_cos:0.25 -0.0312 none to abs_cos:1"
        in text
    )
    assert "lower but precision there is <b>lower</b>" in text


def test_the_table_of_differences_shows_other_concepts_beside_students_interval(tmp_path: Path) -> None:
    shown = words_of(page_of(with_frontier(make_report()), tmp_path))
    assert "95%, seeds and concepts" in shown and "-0.1562 to -0.0938 digit" in shown and "[-0.2500, +0.0125]" in shown
    assert "95%, seeds and concepts" not in Tags(page_of(make_report(), tmp_path)).text


def test_undertrained_saes_are_said_at_the_top_and_their_verdicts_are_no_merit(tmp_path):
    report = make_report()
    trained = page_of(report, tmp_path)
    report["warning"] = "These SAEs hardly left their random start."
    report["answer"] = f"{report['warning']} Compared with none: nothing."
    report["arms"]["max_cos:0.25"]["undertrained"] = "hardly left their random start"
    for difference in report["differences"]:
        difference["undertrained"] = True
    page = page_of(report, tmp_path)
    text = Tags(page).text
    assert text.index("Undertrained. These SAEs hardly left") < text.index("Compared with none: nothing.")
    assert text.count("These SAEs hardly left") == 1, "the banner says it, the answer goes on from there"
    assert 'class="verdict good"' in trained and 'class="verdict good"' not in page
    assert "lower undertrained" in " ".join(text.split()) and "Undertrained" not in Tags(trained).text
    assert "These SAEs hardly left" in text_table(report)


def test_what_holes_are_read_by_is_a_table_of_its_own_and_kinds_of_concepts_another(tmp_path: Path) -> None:
    report = make_report()
    for key in ("main_false_alarms", "main_precision"):
        report["metrics"][key] = {**report["metrics"]["dead"], "label": key}
        for arm in report["arms"].values():
            arm["values"][key] = [0.25, 0.5, 0.75]
    page = page_of(report, tmp_path)
    beside = page[page.index("Holes as they are, and how often main latents fire: 2 further metrics") :]
    assert (
        beside.index("main_false_alarms") < beside.index("main_precision") < beside.index("Quality: 1 further metric")
    )
    kinds = page[page.index('<table id="kinds"') : page.index("Concept by concept, arm by arm</h3>")]
    assert kinds.count("<tr>") == 1 + len(report["kinds"]) and ">places<" in kinds and "[-0.1875, -0.0625]" in kinds
    report["kinds"] = [entry for entry in report["kinds"] if entry["kind"] == "token"]
    assert '<table id="kinds"' not in page_of(report, tmp_path), "one kind agrees with itself"
