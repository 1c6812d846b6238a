"""The report's page in a real browser: clicks, keys, a phone, the dark, no script, hostile texts."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, CONTRAST, Browser
from example_report import HOSTILE, SCRIPT, hostile_report, make_report

from sae_lm.pages.report import write_html
from sae_lm.pages.text import visible

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome binary on PATH")
ROWS = "[...document.querySelectorAll('#%s tbody tr')].filter(row => !row.hidden).map(row => row.cells[0].textContent.trim())"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


FAMILIES = tuple(["none", *(f"{penalty}:{c}" for penalty in ("abs_cos", "max_cos", "coactive") for c in (0.1, 0.3, 1))])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small, of many arms and several k, hostile, of one arm and one seed."""
    folder = tmp_path_factory.mktemp("pages")
    reports = {
        "small": make_report(events=20),
        "many": make_report(FAMILIES, (8, 16, 32), concepts=4),
        "hostile": hostile_report(),
        "one": make_report(("none",), seeds=1, concepts=0) | {"genealogy": [], "differences": [], "findings": []},
    }
    answer = f"no answer (nothing was trained of {FAMILIES[1]} between {FAMILIES[2]} and {FAMILIES[3]}, which cost .0035 and .0093)"
    claim = {"sentence": "It has fewer holes at equal false alarms.", "answer": answer, "holds": None}
    reports["many"]["registered"] = {"file": "fixed.toml", "sha256": "0" * 64, "claims": [claim]}
    for name, report in reports.items():
        write_html(report, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in reports}


@pytest.mark.parametrize("name", ["small", "many", "hostile", "one"])
def test_a_page_opens_without_a_complaint_and_asks_for_nothing(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name])
    time.sleep(0.05)
    assert browser.run("document.querySelectorAll('h2').length") >= 6
    assert browser.told == []
    assert browser.asked == [pages[name].as_uri()]


def test_a_click_on_a_head_sorts_and_the_next_one_turns_the_order(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["small"])
    before = browser.run(ROWS % "outcome")
    browser.click("#outcome thead th:nth-child(2) button")
    assert [row.split()[0] for row in browser.run(ROWS % "outcome")] == ["none", "abs_cos:1", "max_cos:0.25"]
    browser.click("#outcome thead th:nth-child(2) button")
    assert browser.run(ROWS % "outcome") == before[::-1]
    sorts = "[...document.querySelectorAll('#outcome thead th')].map(th => th.getAttribute('aria-sort'))"
    assert browser.run(sorts)[:3] == ["none", "descending", "none"]
    assert "descending" in browser.run("document.getElementById('status').textContent")
    assert browser.told == []


def test_a_table_can_be_sorted_with_the_keyboard_alone(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["small"])
    browser.run("document.querySelector('#outcome thead button').focus()")
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent").startswith("hole rate")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    browser.press("Enter")
    assert browser.run(ROWS % "outcome")[0] == "max_cos:0.25"


def test_filters_leave_the_rows_that_fit_and_say_how_many(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["small"])
    tools = ".tools[data-table=stats] "
    output = f"document.querySelector('{tools}output').textContent"
    assert browser.run(output) == "6 of 16 rows", "primary outcomes first"
    browser.choose(tools + "select[data-key=role]", "")
    assert browser.run(output) == "16 of 16 rows"
    browser.choose(tools + "input", "MAX_COS")
    assert len(browser.run(ROWS % "stats")) == 8
    browser.choose(tools + "input", "no such arm")
    assert browser.run(output) == "0 of 16 rows"
    assert browser.told == []


EVENTS = "[...document.querySelectorAll('.events > li')].map(li => li.querySelector('mark').textContent)"
STATES = "[...document.querySelectorAll('.events > li')].map(li => [...li.querySelectorAll('.state')].map(p => p.textContent.includes('silent')))"


def test_the_explorer_shows_one_event_in_two_arms_for_the_concept_chosen(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["small"])
    assert browser.run(EVENTS)[:2] == [" token0 of digit, seed 0", " token1 of digit, seed 0"]
    assert browser.run(STATES)[:2] == [[True, False], [True, True]]
    assert browser.run("document.querySelector('.context').textContent") == "he said.↵ token0 of digit, seed 0 and went"
    browser.choose("#explorer-tools [name=concept]", "capitalised")
    browser.choose("#explorer-tools [name=seed]", "1")
    assert browser.run(EVENTS)[0] == " token0 of capitalised, seed 1"
    browser.choose("#explorer-tools [name=which]", "closed")
    assert browser.run(STATES) == [[True, False]] * 8
    browser.choose("#explorer-tools [name=which]", "opened")
    assert browser.run(EVENTS) == []
    browser.choose("#explorer-tools [name=left]", "1")
    browser.choose("#explorer-tools [name=right]", "0")
    assert browser.run(STATES) == [[False, True]] * 8
    side = browser.run("[...document.querySelectorAll('.side')].slice(0, 2).map(side => side.textContent)")
    assert side[0].startswith("abs_cos:1") and "5 (2.50)" in side[0]
    for fact in (
        "none",
        "latent 77, which fires most on",
        "“ The”",
        "61% of the projection",
        "probe 0.21",
        "parent 0.05",
    ):
        assert fact in side[1]
    assert browser.told == []


def test_the_explorer_shows_more_events_when_asked_and_finds_a_text(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["small"])
    assert len(browser.run(EVENTS)) == 8
    browser.click(".more")
    assert len(browser.run(EVENTS)) == 20
    assert browser.run("document.activeElement.querySelector('mark').textContent") == " token8 of digit, seed 0"
    browser.choose("#explorer-tools [name=text]", "TOKEN7 ")
    assert browser.run(EVENTS) == [" token7 of digit, seed 0"]


def test_a_button_of_the_legend_switches_an_arm_off_in_all_plots(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["many"])
    seen = "[...document.querySelectorAll('figure [data-family]')].filter(e => getComputedStyle(e).display !== 'none').map(e => e.dataset.%s)"
    assert "1" in browser.run(seen % "family") and "8" in browser.run(seen % "k")
    browser.click(".legend button[data-family='1']")
    browser.click(".legend button[data-k='8']")
    assert (
        browser.run("document.querySelector(\".legend button[data-family='1']\").getAttribute('aria-pressed')")
        == "false"
    )
    assert "1" not in browser.run(seen % "family") and "8" not in browser.run(seen % "k")
    browser.click(".legend button[data-family='1']")
    assert "1" in browser.run(seen % "family") and "8" not in browser.run(seen % "k")


@pytest.mark.parametrize("name", ["small", "many", "hostile", "one"])
def test_on_a_phone_the_page_does_not_scroll_sideways_and_tables_do(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name], width=390, height=800)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("document.documentElement.scrollWidth") == 390
    out = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, nav, svg, .unseen') && e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"
    assert browser.run(out) == []
    boxes = "[...document.querySelectorAll('.scroll')].map(b => [getComputedStyle(b).overflowX, b.tabIndex, b.scrollWidth > b.clientWidth])"
    assert all(box[:2] == ["auto", 0] for box in browser.run(boxes)) and any(box[2] for box in browser.run(boxes))


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_a_contrast_of_four_and_a_half_by_day_and_by_night(
    browser: Browser, pages: dict[str, Path], dark: bool
) -> None:
    browser.open(pages["small"], dark=dark)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert browser.run(CONTRAST) == []


def test_whatever_takes_input_has_a_name_and_headings_skip_no_level(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["many"])
    nameless = "[...document.querySelectorAll('button, select, input, [role=region], [role=img], [role=group]')].filter(e => !(e.textContent.trim() || e.closest('label') || e.ariaLabel)).length"
    assert browser.run(nameless) == 0
    assert browser.run(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('th[scope=row]'))"
    )
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "main"
    targets = "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))"
    assert browser.run(targets)


def test_without_javascript_tables_plots_and_texts_are_there_and_dead_controls_are_not(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["small"], script=False)
    assert len(browser.run(ROWS % "stats")) == 16
    assert browser.run("document.querySelectorAll('figure svg .dot').length") > 20
    shown = "[...document.querySelectorAll('.tools, thead button')].filter(e => e.getClientRects().length).length"
    assert browser.run(shown) == 0
    assert "needs JavaScript" in browser.run("document.querySelector('noscript').innerHTML")


def test_hostile_texts_show_and_do_not_run(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"])
    assert browser.run("document.querySelector('.answer').textContent") == visible(SCRIPT + "".join(HOSTILE))
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.querySelectorAll('img, b[onmouseover]').length") == 0
    assert browser.run(EVENTS)[:3] == [visible(text) for text in HOSTILE[:3]]
    assert browser.run("document.querySelector('.token').textContent") == f"“{SCRIPT}”"
    assert browser.told == []


def test_a_script_that_got_into_the_page_is_stopped_by_its_policy(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    page = (
        pages["small"].read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'ran'</script></main>")
    )
    (tmp_path / "open.html").write_text(page, encoding="utf-8")
    browser.open(tmp_path / "open.html")
    assert browser.run("document.title") != "ran"
    assert any("Content Security Policy" in told for told in browser.told)
    assert len(browser.run(EVENTS)) == 8, "the page's own script runs"
