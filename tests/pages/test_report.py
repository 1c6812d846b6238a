"""The terminal's table, the page and the figures of a report made by hand. tests/pages/test_browser.py opens the page."""

import html
import json
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from example_report import HOSTILE, METRICS, SCRIPT, VERDICTS, hostile_report, make_report, with_frontier

from sae_lm.cli import parse
from sae_lm.pages import charts
from sae_lm.pages.figures import write_figures
from sae_lm.pages.frontier import frontier_charts
from sae_lm.pages.genealogy import TREE_LINES
from sae_lm.pages.report import PAGE_BYTES, write_html
from sae_lm.pages.schema import ArmEntry, Report
from sae_lm.pages.svg import MARK_SHAPES, TONE_COLOURS, panel, svg, ticks
from sae_lm.pages.terminal import TERMINAL_FINDINGS, columns, text_table
from sae_lm.pages.text import number, p_value, signed, spread, visible
from sae_lm.settings import CompareSettings

MANY = tuple(["none", *(f"{p}:{c}" for p in ("abs_cos", "sq_cos", "max_cos", "coactive") for c in (0.1, 0.3, 1))])
MANY += tuple(f"coactive:{c}@anchored" for c in (0.1, 0.3, 1, 3)) + tuple(f"none@arch={a}" for a in ("relu", "matryoshka", "batchtopk"))  # fmt: skip


def page_of(report: dict[str, Any], folder: Path) -> str:
    write_html(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def plots_of(page: str) -> list[str]:
    return re.findall(r'<svg viewBox="0 0 360.*?</svg>', page, re.DOTALL)


def data_of(page: str) -> Any:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    return json.loads(block[1])


# --- numbers


def test_numbers_have_about_four_digits_and_missing_ones_are_a_dash() -> None:
    assert [number(value) for value in (None, 0.12345, 1.23456, 12.3456, 1234.56)] == [
        "-", "0.1235", "1.235", "12.35", "1,234.6",
    ]  # fmt: skip
    assert [signed(value) for value in (None, 0.5, -0.5)] == ["-", "+0.5000", "-0.5000"]
    assert [p_value(p) for p in (None, 0.0625, 0.00001, 1)] == ["-", "0.062", "< .001", "1.000"]
    assert spread([0.5, 0.6, 0.7]) == "0.6000 ± 0.1000"
    assert spread([0.5, None]) == "0.5000"
    assert spread([None, None]) == "-"


def test_every_character_shows_and_a_long_text_is_cut() -> None:
    assert visible("a\nb\x1b\u202e\ud800") == "a↵b⟨001B⟩⟨202E⟩⟨D800⟩"
    assert visible("abcdef", 4) == "abc…" and visible("abcd", 4) == "abcd"


# --- the report itself


def test_the_report_made_by_hand_has_the_keys_of_a_real_one() -> None:
    report = make_report()
    assert report.keys() == Report.__annotations__.keys()
    assert all(arm.keys() == ArmEntry.__annotations__.keys() for arm in report["arms"].values())


# --- the terminal


def test_columns_are_aligned_below_heads_of_several_lines_and_go_on_in_a_block_below() -> None:
    table = columns(["", "a", "longer"], [["head", "1", "22"], ["a head of several words", "3", "4"]])
    assert table == [
        "                  a head of",
        "        head  several words",
        "---------------------------",
        "a          1              3",
        "longer    22              4",
    ]
    wide = columns(["", "a"], [["head", "x" * 50] for _ in range(3)])
    assert [line.split() for line in wide if line.startswith("a")] == [["a", "x" * 50, "x" * 50], ["a", "x" * 50]]
    assert columns(["rows:", "disk:"], [["12", "3.5 GB"]], heads=False, left=True) == ["rows:  12", "disk:  3.5 GB"]


def test_the_table_says_what_was_compared_and_opens_with_the_answer() -> None:
    text = text_table(make_report())
    for fact in ("model a-model", "hook blocks.3.hook_out", "latents 4,096", "k 32", "rows trained on 900", "seeds 3"):
        assert fact in " ".join(text.split())
    lines = text.splitlines()
    assert lines.index("Compared with none: less absorption with max_cos:0.25 (FVU +0.0100).") < 4
    assert "abs_cos:1: less absorption; splitting not distinguishable." in lines
    assert "concepts used (probe F1, token types), 2 of 4: digit (0.91, 60), capitalised (0.91, 60)" in text
    assert "skipped: 2 (token types, fewer than 50)" in text


def test_what_is_missing_is_said_before_what_was_found() -> None:
    text = text_table(make_report() | {"partial": ["max_cos:0.25: seed 3 is missing."]})
    assert text.index("partial: max_cos:0.25: seed 3 is missing.") < text.index("abs_cos:1: less absorption")


def test_metrics_that_were_not_asked_for_take_no_room(tmp_path: Path) -> None:
    report = make_report()

    def told() -> list[bool]:
        outcomes = page_of(report, tmp_path).split("<h2>")[1]
        return ["dead latents" in outcomes, "dead latents" in text_table(report)]

    assert told() == [True, True]
    for arm in report["arms"].values():
        arm["values"]["dead"] = [None] * len(report["seeds"])
    assert told() == [False, False]


def test_reasons_are_counted_without_their_number_and_are_left_whole_otherwise() -> None:
    report = make_report()
    for concept, reason in zip(
        report["concepts"],
        ["no examples on both sides in train, validation and test types", "12 token types, fewer than 50",
         "probe F1 0.65 on permuted labels too, not below 0.6", "7 token types, fewer than 50"],
        strict=True,
    ):  # fmt: skip
        concept["skipped"] = reason
    text = " ".join(text_table(report).split())
    assert "1 (no examples on both sides in train, validation and test types)" in text
    assert "2 (token types, fewer than 50)" in text and "1 (probe F1 on permuted labels too, not below 0.6)" in text


def test_each_arm_has_a_row_of_means_and_one_of_differences() -> None:
    lines = text_table(make_report()).splitlines()
    rows = [
        re.split(r"\s{2,}", line) for line in lines if re.match(r"(none|abs_cos:1|max_cos:0.25|random).* {2}", line)
    ]
    assert rows[0][:3] == ["none", "0.6000 ± 0.1000", "0.6000 ± 0.1000"]
    assert rows[1][:2] == ["abs_cos:1", "0.7000 ± 0.1000"]
    assert rows[3][:2] == ["random (control)", "0.1230"]
    text = "\n".join(lines)
    for head in ("lower", "higher", "n.d.", "L0 differs", "no claim"):
        assert f"-0.1250 [-0.1875, -0.0625] {head}" in text
    assert "n.d.: not distinguishable" in text


@pytest.mark.parametrize(("families", "ks"), [(("none",), (32,)), (("none", "abs_cos:1"), (32,)), (MANY, (8, 16, 32))])
def test_no_line_is_wider_than_120_columns_whatever_the_number_of_arms(
    families: tuple[str, ...], ks: tuple[int, ...]
) -> None:
    report = make_report(families, ks)
    text = text_table(report)
    assert max(map(len, text.splitlines())) <= 120
    assert all(re.search(rf"(?m)^{re.escape(arm)} +\d", text) for arm in report["arms"])


def test_of_many_findings_the_terminal_shows_the_first_and_counts_the_rest() -> None:
    report = make_report()
    report["findings"] = [f"finding {place}." for place in range(TERMINAL_FINDINGS + 5)]
    text = text_table(report)
    assert f"finding {TERMINAL_FINDINGS - 1}." in text and f"finding {TERMINAL_FINDINGS}." not in text
    assert "... and 5 more" in text


def test_text_on_a_terminal_holds_no_control_characters() -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\ud800]", text_table(hostile_report()))


# --- charts


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


# --- the page


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    page = page_of(make_report(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert not re.search(r"https?:|@import|<link|<img|<iframe|url\(| on\w+=", page)
    assert re.search(r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[\w+/=]+'", page)
    assert re.findall(r"<script[^>]*>", page) == ['<script type="application/json" id="data">', "<script>"]


def test_the_page_opens_with_the_answer_then_the_table(tmp_path: Path) -> None:
    page = html.unescape(page_of(make_report() | {"partial": ["a seed is missing"]}, tmp_path))
    order = [
        '<p class="answer">Compared with none',
        "a seed is missing",
        '<table id="outcome"',
        "abs_cos:1: less absorption",
    ]
    order += [f'id="{name}"' for name in ("curves", "differences", "geometry", "splitting", "absorption", "statistics")]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    head = page[page.index('<table id="outcome"') : page.index("<tbody>")]
    labels = [METRICS[key][0] for key in ("hole_rate", "absorption_fraction", "splits", "fvu", "ce_recovered")]
    assert re.findall(r'<th scope="col"><span>(.*?)</span>', head) == labels


def test_the_baseline_stands_first_even_if_the_report_was_sorted_by_name(tmp_path: Path) -> None:
    report = make_report()
    report["arms"] = dict(sorted(report["arms"].items()))
    page = Tags(page_of(report, tmp_path)).text
    table = page[page.index("Primary outcomes and what they cost") :]
    places = [table.index(arm) for arm in ("none", "abs_cos:1", "max_cos:0.25")]
    assert places == sorted(places)


def test_verdicts_are_told_by_words_and_signs_and_coloured_by_which_way_is_better(tmp_path: Path) -> None:
    page = page_of(make_report(), tmp_path)
    for told in ("▼ lower", "▲ higher", "≈ not distinguishable", "≠ L0 not matched", "○ no claim"):
        assert f">{told}</span>" in page
    assert '<span class="verdict good">▼ lower' in page  # hole rate
    assert '<span class="verdict bad">▲ higher' in page  # fraction
    assert '<span class="needs">needs about 38 seeds</span>' in page


def test_statistics_concepts_and_settings_are_tables_and_text(tmp_path: Path) -> None:
    page = page_of(make_report(), tmp_path)
    text = " ".join(Tags(page).text.split())
    for cell in ("0.031", "0.062", "[-0.1875, -0.0625]", "0.91", "0.25", "no: 49 token types, fewer than 50", "2 of 4"):
        assert cell in text
    assert page.count('data-verdict="') == 2 * len(METRICS)
    assert "cos 0.1" in text and "share 0.4" in text, "the sweep of gates"
    assert "sae-lm compare 'my runs' --out report --max-k 7" in html.unescape(page)
    assert "held_out_from_row = 900" in text and "torch = 2" in text


def test_genealogy_is_a_table_with_bars_and_trees(tmp_path: Path) -> None:
    page = page_of(make_report(), tmp_path)
    assert page.count('<svg class="shares"') == 2
    assert page.count('<span class="parent">') == 4
    text = " ".join(Tags(page).text.split())
    assert "4 of 4 trees in the report." in text and "11 0.91 kept" in text and "12 0.62 split" in text


def test_trees_past_the_room_are_left_out_evenly_and_counted(tmp_path: Path) -> None:
    report = make_report()
    tree = {"parent": 1, "children": [{"latent": 2, "cos": 0.9, "kind": "split"}] * 10}
    report["genealogy"] = [pair | {"trees": [tree] * TREE_LINES} for pair in report["genealogy"]]
    page = page_of(report, tmp_path)
    assert page.count('<span class="parent">') == 2 * (TREE_LINES // 20)
    assert f"{TREE_LINES // 10} of {2 * TREE_LINES} trees in the report; the rest are in report.json" in page


def test_what_became_of_a_narrower_sae_is_a_table_of_means_over_seeds(tmp_path: Path) -> None:
    curve = [{"threshold": t, "split_ratio": None if t > 0.7 else 2 - t, "novel": t, "lost": 0.1} for t in (0.7, 0.8)]
    entry = {"arm": "max_cos:0.25", "from_latents": 1024, "to_latents": 4096, "curve": curve, "novelty": None}
    report = make_report()
    assert "narrower SAE became" not in page_of(report, tmp_path)
    seen = {"threshold": 0.31, "auc": 0.82}
    report["widths"] = [
        entry | {"seed": 1, "to_seed": 0, "stitched_novel": 0.25},
        entry | {"seed": 0, "to_seed": 1, "stitched_novel": 0.75, "novelty": seen},
    ]
    text = " ".join(Tags(page_of(report, tmp_path)).text.split())
    assert "of the same arm and the next seed." in text and "1,024 → 4,096" in text
    assert "1.300-0.7000.8000.5000 ± 0.35360.820.31" in text
    for both in report["widths"]:
        both["seed"] = both["to_seed"]
    assert "and seed: both begin at the same directions" in page_of(report, tmp_path)


def test_every_plot_is_wellformed_and_named(tmp_path: Path) -> None:
    for report, count in ((make_report(), 12), (make_report(("none", "abs_cos:1", "abs_cos:3"), (8, 16)), 17)):
        plots = plots_of(page_of(report, tmp_path))
        # five metrics by seed and five differences, two histograms; with several k five curves, five along coefficients
        assert len(plots) == count
        for plot in plots:
            root = ElementTree.fromstring(plot)
            assert root.get("role") == "img" and root.get("aria-label", "").startswith("Plot of ")
            assert "nan" not in plot and "inf" not in plot


def test_the_explorers_data_are_the_reports_events_in_the_order_of_the_arms(tmp_path: Path) -> None:
    data = data_of(page_of(make_report(), tmp_path))
    assert data["arms"] == ["none", "abs_cos:1", "max_cos:0.25"] and (data["left"], data["right"]) == (0, 1)
    concept, seed, absorbers, events = data["entries"][0]
    assert (concept, seed) == ("digit", 0)
    assert absorbers[0] == [[77, 12, 0.8, 0.21, 0.05, " The"]]
    before, token, after, sides = events[0]
    assert (before, token, after) == ("he said.↵", " token0 of digit, seed 0", " and went")
    assert sides[0] == [1, [[5, 0.0]], [77, 3.25, 0.61, 0.21, 0.05, " The"]]
    assert sides[1] == [0, [[5, 2.5]], None]
    assert data["shown"] == 12 and data["left_out"] == 0


def test_of_several_k_the_explorer_begins_with_arms_of_one(tmp_path: Path) -> None:
    report = make_report(("none", "abs_cos:1"), (8, 16))
    del report["arms"]["abs_cos:1@k=8"]
    report["differences"] = [d for d in report["differences"] if d["arm"] in report["arms"]]
    data = data_of(page_of(report, tmp_path))
    assert (data["arms"][data["left"]], data["arms"][data["right"]]) == ("none@k=16", "abs_cos:1@k=16")


def test_a_report_of_twenty_arms_at_three_k_stays_below_five_megabytes(tmp_path: Path) -> None:
    page = page_of(make_report(MANY, (8, 16, 32), concepts=4), tmp_path)
    assert len(page.encode()) < PAGE_BYTES < 5_000_000
    assert data_of(page)["left_out"] == 0


def test_events_that_do_not_fit_are_left_out_evenly_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_lm.pages.report.PAGE_BYTES", 110_000)
    page = page_of(make_report(concepts=3, events=40), tmp_path)
    assert 109_000 < len(page.encode()) <= 110_000
    data = data_of(page)
    assert 0 < data["shown"] < 240 and data["shown"] + data["left_out"] == 3 * 2 * 40
    kept = [len(entry[3]) for entry in data["entries"] if entry[1] == 0]
    assert len(kept) == 3 and max(kept) - min(kept) <= 1, "no concept is left out for another"


def test_a_long_table_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_lm.pages.report.TABLE_ROWS", 5)
    page = page_of(make_report(), tmp_path)
    assert page.count('data-verdict="') == 5
    assert f"{2 * len(METRICS) - 5} further rows are in report.json" in page


def test_nulls_are_dashes_in_the_table_and_leave_the_page_whole(tmp_path: Path) -> None:
    report = make_report()
    for arm in report["arms"].values():
        arm["values"]["ce_recovered"] = [None, None, None]
        arm["values"]["hole_rate"][1] = None
    numbers = ("mean", "low", "high", "p", "p_holm", "detectable", "seeds_needed")
    report["differences"] = [d | dict.fromkeys(numbers) | {"verdict": VERDICTS[-1]} for d in report["differences"]]
    report["controls"]["random"]["ce_recovered"] = report["cross_entropy"] = None
    report["noise"] = {key: {"evaluation": None, "training": None} for key in METRICS}
    for concept in report["concepts"]:
        concept |= {"probe_f1": None, "permuted_f1": None}
    assert re.search(
        r"(?m)^abs_cos:1 .* - +0.7000 ± 0.1000$|^abs_cos:1 .* -\b", text_table(report)
    ) or " - " in text_table(report)
    page = page_of(report, tmp_path)
    assert "No language model was run" in page
    assert ">None" not in page and "None ±" not in page and "nan" not in page
    assert "Differences, and what would go unseen" not in page and 'href="#differences"' not in page
    assert len(plots_of(page)) == 6, "four metrics by seed, two histograms"


def test_a_report_without_concepts_other_arms_or_second_seeds_still_becomes_a_page(tmp_path: Path) -> None:
    report = make_report(("none",), seeds=1, concepts=0)
    for key in ("genealogy", "explorer", "differences", "findings", "per_concept"):
        report[key] = []
    report["noise"], report["nearest_cos"], report["controls"] = {}, {}, {}
    assert "± sd" not in text_table(report)
    page = page_of(report, tmp_path)
    for told in ("No concept could be used", "nothing is compared", "no genealogy", "there are no events to show"):
        assert told in page
    assert data_of(page) is None
    sections = re.findall(r'<a href="#(\w+)"', page)
    assert all(f'id="{name}"' in page for name in sections) and "geometry" not in sections


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    assert page_of(make_report(), tmp_path) == page_of(make_report(), tmp_path)


# --- hostile texts


def test_hostile_names_show_as_text_in_tables_and_in_plots(tmp_path: Path) -> None:
    page = page_of(hostile_report(), tmp_path)
    parsed = Tags(page)
    assert parsed.tags.count("script") == 2 and not {"img", "b onmouseover"} & set(parsed.tags)
    assert parsed.text.count(SCRIPT) > 50 and "{{ 7 * 7 }}" in parsed.text
    labels = [text.text or "" for plot in plots_of(page) for text in ElementTree.fromstring(plot).iter("text")]
    assert any(label.startswith("_$x^1$<script>") or label.startswith("_$x^1$") for label in labels)


def test_no_text_ends_the_block_of_data_or_opens_a_comment_in_it(tmp_path: Path) -> None:
    page = page_of(hostile_report(), tmp_path)
    block = page[page.index('id="data">') :].partition("</script>")[0]
    assert "<" not in block.removeprefix('id="data">') and block.isascii()
    tokens = [event[1] for event in data_of(page)["entries"][0][3]]
    assert tokens == [visible(text) for text in HOSTILE[:3]]


# --- figures for a paper


def test_figures_are_png_and_svg_with_names_as_text(tmp_path: Path) -> None:
    paths = write_figures(make_report(("none", "abs_cos:1", "abs_cos:3"), (8, 16), 1), tmp_path / "figures")
    names = ["fvu_l0", "differences", "coefficients", "nearest_cos"]
    assert [path.name for path in paths] == [f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            texts = "".join(ElementTree.parse(path).getroot().itertext())
            assert "abs_cos:1" in texts or "abs_cos, k = 8" in texts


def test_of_one_l0_the_figure_is_seed_by_seed_and_what_has_no_numbers_is_left_out(tmp_path: Path) -> None:
    report = make_report(("none",), seeds=1) | {"nearest_cos": {}}
    assert [path.name for path in write_figures(report, tmp_path)] == ["seeds.png", "seeds.svg"]


@pytest.mark.parametrize("value", [True, False])
def test_the_command_on_the_page_makes_the_same_settings(tmp_path: Path, value: bool) -> None:
    report = make_report()
    given = CompareSettings(
        runs=Path("runs"), out=Path("out it"), contextual=value, prompts=value, composition=value, model="x"
    )
    report["settings"] = given.model_dump(mode="json")
    found = re.search(r"sae-lm (compare [^<]+)<", page_of(report, tmp_path))
    words = shlex.split(html.unescape(found.group(1))) if found else []
    assert parse(words) == ("compare", given)


def test_figures_repeat_to_the_byte_and_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    before, pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    report = make_report(("none" + HOSTILE[0], "$x^1$"), seeds=2)
    first = {path.name: path.read_bytes() for path in write_figures(report, tmp_path)}
    assert {path.name: path.read_bytes() for path in write_figures(report, tmp_path)} == first
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


# --- families at equal cost, other concepts


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


def test_a_report_without_families_has_no_frontier_and_the_figure_is_left_out(tmp_path: Path) -> None:
    assert "frontier" not in page_of(make_report(), tmp_path).split("<main", 1)[0]
    names = [path.name for path in write_figures(with_frontier(make_report()), tmp_path / "figures")]
    assert "frontier.png" in names and "frontier.svg" in names


def words_of(page: str) -> str:
    """Its text, cell by cell."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_table_at_equal_fvu_says_between_which_arms_each_family_is_read(tmp_path: Path) -> None:
    page = page_of(with_frontier(make_report()), tmp_path)
    text = words_of(page)
    assert (
        "max_cos:0.25 against abs_cos:1 +0.0050 hole rate -0.0625 none to max_cos:0.25 -0.0312 none to abs_cos:1"
        in text
    )


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


def test_the_report_links_to_a_page_of_latents_beside_it_and_to_none_without(tmp_path):
    write_html(make_report(), tmp_path / "with.html", "latents.html")
    write_html(make_report(), tmp_path / "without.html")
    pages = [(tmp_path / name).read_text(encoding="utf-8") for name in ("with.html", "without.html")]
    assert [page.count('href="latents.html"') for page in pages] == [2, 0]
