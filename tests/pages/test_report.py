"""The terminal's table, the page and the figures of a report made by hand. tests/pages/test_browser.py opens the page."""

import html
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from example_report import HOSTILE, MANY, METRICS, SCRIPT, VERDICTS, hostile_report, make_report
from report_page import Tags, data_of, page_of, plots_of

from sae_lm.cli import parse
from sae_lm.pages.genealogy import TREE_LINES
from sae_lm.pages.report import PAGE_BYTES, write_html
from sae_lm.pages.schema import ArmEntry, Report
from sae_lm.pages.terminal import text_table
from sae_lm.pages.text import visible
from sae_lm.settings import CompareSettings

# --- the report itself


def test_the_report_made_by_hand_has_the_keys_of_a_real_one() -> None:
    report = make_report()
    assert report.keys() == Report.__annotations__.keys()
    assert all(arm.keys() == ArmEntry.__annotations__.keys() for arm in report["arms"].values())


def test_metrics_that_were_not_asked_for_take_no_room(tmp_path: Path) -> None:
    report = make_report()

    def told() -> list[bool]:
        outcomes = page_of(report, tmp_path).split("<h2>")[1]
        return ["dead latents" in outcomes, "dead latents" in text_table(report)]

    assert told() == [True, True]
    for arm in report["arms"].values():
        arm["values"]["dead"] = [None] * len(report["seeds"])
    assert told() == [False, False]


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
    for cell in (
        "0.031",
        "0.062",
        "[-0.1875, -0.0625]",
        "0.91",
        "0.25",
        "no: 6 words to be tested on, fewer than 8",
        "2 of 4",
    ):
        assert cell in text
    assert page.count('data-verdict="') == 2 * len(METRICS)
    assert "cos 0.1" in text and "share 0.4" in text, "the sweep of gates"
    assert "sae-lm compare 'my runs' --out report --max-k 7" in html.unescape(page)
    assert "held_out_from_row = 900" in text and "torch = 2" in text


def test_what_was_planted_stands_first_in_the_table_of_saes_whose_place_is_known(tmp_path: Path) -> None:
    page = html.unescape(page_of(make_report(), tmp_path))
    table = page.split('<table id="grades"')[1].split("</table>")[0]
    head, *rows = table.split("<tr>")[1:]
    assert re.findall(r'<th scope="col"[^>]*>([^<]*?)\s*<', head)[:2] == ["SAE", "planted holes"]
    first = {
        re.findall(r'<th scope="row">(.*?)</th>', row)[0]: re.findall(r"<td[^>]*>(.*?)</td>", row)[0] for row in rows
    }
    planted = [f"oracle, absorption planted, at most {share}%" for share in (10, 20, 40)]
    assert [float(first[name]) for name in planted] == [0.05, 0.1, 0.2]
    assert {value for name, value in first.items() if name not in planted} == {"-"}


def test_the_sweep_of_gates_is_of_raw_activations_as_the_fraction_itself_is(tmp_path: Path) -> None:
    page = page_of(make_report(), tmp_path)
    table = page[page.index('id="sweep"') :].partition("</table>")[0]
    cells = re.findall(r'<td class="n"[^>]*>([^<]+)</td>', table)
    assert [float(cell) for cell in cells[:4]] == [0.5, 0.4, 0.4, 0.3]


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


def test_the_explorer_has_the_arms_alone_that_events_were_taken_of(tmp_path: Path) -> None:
    report = make_report(("none", "abs_cos:1", "max_cos:1"), (8, 16))
    for entry in report["explorer"]:
        for arm in [arm for arm in entry["absorbers"] if "k=8" in arm or "max_cos" in arm]:
            del entry["absorbers"][arm]
            for event in entry["events"]:
                del event["arms"][arm]
    del report["explorer"][0]["absorbers"]["abs_cos:1@k=16"]
    data = data_of(page_of(report, tmp_path))
    assert data["arms"] == ["none@k=16", "abs_cos:1@k=16"] and (data["left"], data["right"]) == (0, 1)
    assert data["entries"][0][2][1] is None, "not measured is another thing than no absorber"
    assert data["entries"][1][2][1] is not None


def test_an_arm_without_k_is_called_free(tmp_path: Path) -> None:
    report = make_report(("none", "abs_cos:1"), (8, 16))
    for name, arm in report["arms"].items():
        if "k=8" in name:
            arm["k"] = None
    page = page_of(report, tmp_path)
    assert "k = free" in page and "k = None" not in page and ">None<" not in page


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


def test_the_report_links_to_a_page_of_latents_beside_it_and_to_none_without(tmp_path):
    write_html(make_report(), tmp_path / "with.html", "latents.html")
    write_html(make_report(), tmp_path / "without.html")
    pages = [(tmp_path / name).read_text(encoding="utf-8") for name in ("with.html", "without.html")]
    assert [page.count('href="latents.html"') for page in pages] == [2, 0]
