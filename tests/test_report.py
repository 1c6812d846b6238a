"""The terminal's table and the page of a report made by hand."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sae_lm.comparison import METRICS
from sae_lm.report import number, signed, spread, text_table, visible, write_html

HOSTILE = "<script>document.title='ran'</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make_report(arms: tuple[str, ...] = ("none", "abs_cos:1", "max_cos:0.25"), seeds: int = 3) -> dict[str, Any]:
    """Numbers whose means and verdicts are easy to say: 0.5, 0.6, 0.7 plus a tenth per arm."""
    values = {
        arm: {key: [0.5 + 0.1 * seed + 0.1 * place for seed in range(seeds)] for key in METRICS}
        for place, arm in enumerate(arms)
    }
    verdicts = ("lower", "higher", "not distinguishable", "L0 not matched", "no claim (< 3 seeds)")
    differences = [
        {
            "arm": arm,
            "metric": key,
            "per_seed": [0.1] * seeds,
            "mean": 0.1 * place,
            "low": 0.0625,
            "high": 0.1875,
            "verdict": verdicts[number % len(verdicts)],
        }
        for place, arm in enumerate(arms[1:], 1)
        for number, key in enumerate(METRICS)
    ]
    concept = {"latents": [3, 5], "splits": 2, "main_f1": 0.8, "candidates": 90, "types": 30, "full": 0.1}
    concept |= {"fraction": 0.2, "recovered": None}
    return {
        "settings": {"runs": "my runs", "out": "report", "baseline": arms[0], "min_types": 50, "max_k": 7},
        "baseline": arms[0],
        "seeds": list(range(seeds)),
        "store": {
            "id": "0123456789abcdef" * 4,
            "rows": 1000,
            "held_out_rows": 100,
            "recipe": {"model": {"id": "a-model"}, "text": {"id": "a-text"}, "hooks": {"blocks.3.hook_out": 8}},
        },
        "training": {"hook": "blocks.3.hook_out", "d_sae": 4096, "k": 32, "tokens": 900, "held_out_from_row": 900},
        "cross_entropy": {"model": "a-model", "tokens": 99, "clean": 3.0, "ablated": 9.0},
        "metrics": dict(METRICS),
        "arms": values,
        "control": {key: 0.123 for key in METRICS},
        "differences": differences,
        "findings": [f"{arm}: less absorption." for arm in arms[1:]],
        "concepts": [
            {"name": "digit", "types": 60, "rows": 400, "probe_f1": 0.912, "skipped": None},
            {
                "name": "ends in -ed",
                "types": 49,
                "rows": 40,
                "probe_f1": 0.7,
                "skipped": "49 token types, fewer than 50",
            },
            {"name": "ends in -ly", "types": 7, "rows": 9, "probe_f1": 0.7, "skipped": "7 token types, fewer than 50"},
        ],
        "per_concept": [
            {"arm": arm, "seed": seed, "concept": "digit", "hole_rate": 0.25 + 0.125 * seed, **concept}
            for arm in (*arms, "random")
            for seed in range(1 if arm == "random" else seeds)
        ],
        "versions": {"sae_lm": "0"},
    }


def page_of(report: dict[str, Any], folder: Path) -> str:
    write_html(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_numbers_have_about_four_digits_and_missing_ones_are_a_dash() -> None:
    assert [number(value) for value in (None, 0.12345, 1.23456, 12.3456, 1234.56)] == [
        "-", "0.1235", "1.235", "12.35", "1,234.6",
    ]  # fmt: skip
    assert [signed(value) for value in (None, 0.5, -0.5)] == ["-", "+0.5000", "-0.5000"]
    assert spread([0.5, 0.6, 0.7]) == "0.6000 ± 0.1000"
    assert spread([0.5, None]) == "0.5000"
    assert spread([None, None]) == "-"


def test_the_table_says_what_was_compared_and_what_was_found() -> None:
    text = text_table(make_report())
    for fact in ("a-model", "blocks.3.hook_out", "d_sae 4,096", "k 32", "900", "100", "3 seeds per arm"):
        assert fact in text
    assert "abs_cos:1: less absorption." in text
    assert "concepts used (probe F1, token types), 1 of 3: digit (0.91, 60)" in text
    assert "skipped: 2 (token types, fewer than 50)" in text


def test_each_metric_has_a_row_of_means_and_one_of_differences_in_the_reports_order() -> None:
    lines = text_table(make_report()).splitlines()
    rows = [line for line in lines if any(line.startswith(label + "  ") for label in METRICS.values())]
    assert [re.split(r"\s{2,}", row)[0] for row in rows] == [*METRICS.values(), *METRICS.values()]
    assert re.split(r"\s{2,}", rows[0])[1:] == ["0.6000 ± 0.1000", "0.7000 ± 0.1000", "0.8000 ± 0.1000", "0.1230"]
    differences = rows[len(METRICS) :]
    assert "+0.1000 [+0.0625, +0.1875] lower" in differences[0] and "+0.2000" in differences[0]
    for row, verdict in zip(differences[:5], ("lower", "higher", "n.d.", "L0 differs", "no claim"), strict=True):
        assert row.endswith(verdict)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_no_line_is_wider_than_120_columns_whatever_the_number_of_arms(count: int) -> None:
    arms = tuple(["none", *(f"max_cos:0.{place}" for place in range(1, count))])
    text = text_table(make_report(arms))
    assert max(map(len, text.splitlines())) <= 120
    for arm in arms:
        assert re.search(rf"(?m)^mean ± sd over seeds .*{re.escape(arm)}", text)


def test_the_baseline_stands_first_even_if_the_report_was_sorted_by_name() -> None:
    report = make_report()
    report["arms"] = dict(sorted(report["arms"].items()))
    header = next(line for line in text_table(report).splitlines() if line.startswith("mean"))
    assert header.split()[5:8] == ["none", "abs_cos:1", "max_cos:0.25"]


def test_nulls_are_dashes_in_the_table_and_leave_the_page_whole(tmp_path: Path) -> None:
    report = make_report()
    for values in report["arms"].values():
        values["ce_recovered"] = [None, None, None]
        values["hole_rate"][1] = None
    report["differences"] = [d | {"mean": None, "low": None, "high": None} for d in report["differences"]]
    report["control"]["ce_recovered"] = report["cross_entropy"] = None
    row = next(line for line in text_table(report).splitlines() if line.startswith(METRICS["ce_recovered"]))
    assert row.split()[2:] == ["-", "-", "-", "-"]
    page = page_of(report, tmp_path)
    assert "No language model was run" in page
    assert ">None<" not in page and "None ±" not in page and "nan" not in page
    assert page.count("<svg") == 8, "the plot of a metric without any number is left out"


def test_a_report_without_concepts_other_arms_or_second_seeds_still_becomes_a_page(tmp_path: Path) -> None:
    report = make_report(("none",), seeds=1)
    report["per_concept"], report["concepts"] = [], report["concepts"][1:]
    assert "± sd" not in text_table(report)
    page = page_of(report, tmp_path)
    assert "No concept could be used" in page and "nothing is compared" in page


def test_the_page_is_one_file_without_scripts_that_loads_nothing(tmp_path: Path) -> None:
    page = page_of(make_report(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"<script|https?:|@import|<link|<img|<iframe| on\w+=", without_namespaces)
    assert set(re.findall(r"url\(([^)]*)\)", page)) == {u for u in re.findall(r"url\((#[^)]*)\)", page)}
    assert len(page) < 1_000_000


def test_the_page_states_findings_then_primary_outcomes_then_the_rest(tmp_path: Path) -> None:
    page = html.unescape(page_of(make_report(), tmp_path))
    table = page[page.index("<h2>Outcomes") :]
    places = [page.index("abs_cos:1: less absorption."), page.index("<h2>Outcomes")]
    assert places == sorted(places)
    primary = ("hole_rate", "absorption_fraction", "absorption_full", "splits", "fvu", "ce_recovered")
    order = [*primary, *(key for key in METRICS if key not in primary)]
    rows = [table.index(f'<th scope="row">{METRICS[key]}') for key in order]
    assert rows == sorted(rows)


def test_verdicts_are_told_by_words_and_signs_not_only_by_colour(tmp_path: Path) -> None:
    page = page_of(make_report(), tmp_path)
    for told in ("▼ lower", "▲ higher", "≈ not distinguishable", "≠ L0 not matched", "○ no claim (&lt; 3 seeds)"):
        assert f">{told}</span>" in page


def test_eleven_arms_have_eleven_marks_in_the_legend(tmp_path: Path) -> None:
    page = page_of(make_report(tuple(f"arm{place}" for place in range(11)), seeds=1), tmp_path)
    marks = re.findall(r'<b style="color:(#\w+)" aria-hidden="true">(.)</b>', page)
    assert len(marks) == len(set(marks)) == 11


def test_every_plot_is_wellformed_and_says_its_numbers_to_a_screen_reader(tmp_path: Path) -> None:
    page = page_of(make_report(), tmp_path)
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 9  # six primary outcomes, two by concept, one trade-off
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root.get("role") == "img" and "abs_cos:1: " in root.get("aria-label", "").replace("digit, ", "")
        assert not re.search("#fff|white", plot, re.IGNORECASE), "a background would hide text in the dark"
    assert "none: 0.500, 0.600, 0.700; abs_cos:1: 0.600, 0.700, 0.800" in plots[0]
    assert "digit, max_cos:0.25: 0.250, 0.375, 0.500" in plots[6]


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    assert page_of(make_report(), tmp_path) == page_of(make_report(), tmp_path)


def test_the_page_changes_no_setting_of_matplotlib_and_opens_no_pyplot(tmp_path: Path) -> None:
    import sys

    import matplotlib

    before, pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    page_of(make_report(), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_the_command_names_what_differs_from_the_defaults(tmp_path: Path) -> None:
    command = re.search(r"<pre>(sae-lm .*)</pre>", page_of(make_report(), tmp_path))
    assert command and command[1] == "sae-lm compare &#39;my runs&#39; --out report --max-k 7"


def hostile_report() -> dict[str, Any]:
    """Every string of the report that is not a key the page needs carries a script."""
    report = make_report(("none" + HOSTILE, "abs_cos" + HOSTILE, "_$x^1$" + HOSTILE))
    report["metrics"] = {key: label + HOSTILE for key, label in report["metrics"].items()}
    report["findings"] = [HOSTILE]
    report["versions"] = {HOSTILE: HOSTILE}
    report["store"]["recipe"]["model"] = {"id": HOSTILE, HOSTILE: [HOSTILE]}
    report["store"]["id"] = report["training"]["hook"] = report["settings"]["runs"] = report["cross_entropy"][
        "model"
    ] = HOSTILE
    for concept in report["concepts"]:
        concept["skipped"] = concept["skipped"] and HOSTILE
        concept["name"] += HOSTILE
    for entry in report["per_concept"]:
        entry["concept"] += HOSTILE
    for difference in report["differences"]:
        difference["verdict"] = f'"lower"{HOSTILE}'
    return report


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


def test_hostile_names_show_as_text_in_tables_and_in_plots(tmp_path: Path) -> None:
    page = page_of(hostile_report(), tmp_path)
    parsed = Tags(page)
    assert "script" not in parsed.tags
    assert parsed.text.count(HOSTILE) > 50
    labels = [text.text or "" for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL) for text in _texts(plot)]
    assert any("<script>docume" in label for label in labels)
    assert any(label.startswith("_$x^1$<") for label in labels), "a name is not mathematics"


def _texts(plot: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(plot).iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome binary on PATH")
def test_a_browser_runs_no_script_of_a_hostile_report(tmp_path: Path) -> None:
    # the policy that forbids scripts is taken out, so that escaping alone is tried
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page_of(hostile_report(), tmp_path))
    assert "Security-Policy" not in page
    probe = "<script>document.documentElement.dataset.scripts = 'work'</script></body>"
    (tmp_path / "open.html").write_text(page.replace("</body>", probe), encoding="utf-8")
    dom = dump_dom(tmp_path / "open.html", tmp_path)
    assert 'data-scripts="work"' in dom
    assert "<title>ran" not in dom and dom.count("<script>") == 1
    assert dom.count("&lt;script&gt;document.title='ran'&lt;/script&gt;") > 50


def dump_dom(page: Path, folder: Path) -> str:
    """What a browser makes of a page, scripts run."""
    assert CHROMIUM is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_text_on_a_terminal_holds_no_control_characters() -> None:
    report = make_report(("none", "bad\x1b[31m\n\u202e"))
    assert visible("a\nb\x1b\u202e") == "a↵b⟨001B⟩⟨202E⟩"
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text_table(report))
