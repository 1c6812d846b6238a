"""The page of latents in a real browser: sorting, search, keys, permalinks, the folder form, a phone, the dark."""

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, CONTRAST, Browser
from hand_made import CONTEXTS, WORDS, random_contexts, random_sae, write_sae, write_store

from sae_lm.commands.show import show
from sae_lm.data.manifest import FileRecord, read_manifest, write_manifest
from sae_lm.pages import latents as latents_module
from sae_lm.runtime.files import sha256, write_json
from sae_lm.sae.formats.saelens import save
from sae_lm.settings import ShowSettings

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome binary on PATH")
INDEX = "[...document.querySelectorAll('#index tbody tr:not(.space)')].map(row => row.cells[0].textContent)"
TITLE = "document.querySelector('#card h3')?.textContent"
PATIENCE = 60
ODD = "c2r:5 #1%20?"
"""Name of a page and its folder, as arms have them: each of these signs means something else in an address."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def wait(browser: Browser, expression: str, value: object = True) -> None:
    """Until an expression has a value: cards are drawn when their data are there."""
    end = time.monotonic() + PATIENCE
    while browser.run(expression) != value:
        assert time.monotonic() < end, f"{expression} is {browser.run(expression)!r}, not {value!r}"
        time.sleep(0.02)


def go(browser: Browser, address: str, title: str) -> None:
    browser.run(f"location.hash = '{address}'")
    wait(browser, TITLE, title)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One SAE whose answers are known, two random ones in one file and in a folder, and 400 latents to scroll."""
    folder = tmp_path_factory.mktemp("latents")
    write_store(folder / "known", CONTEXTS)
    write_sae(folder / "sae")
    made = {"known": show(ShowSettings(sae=str(folder / "sae"), store=folder / "known", out=folder / "known.html"))}
    write_store(folder / "random", random_contexts(60, 9, 0), per_shard=7, scale=0.01)
    for name, d_sae, seed in (("left", 12, 1), ("right", 15, 2), ("many", 400, 3)):
        save(random_sae(len(WORDS), d_sae, 3, seed), folder / name)
    two = ShowSettings(
        sae=str(folder / "left"), beside=str(folder / "right"), store=folder / "random", out=folder / "two.html"
    )
    made["two"] = show(two)
    made["many"] = show(
        ShowSettings(
            sae=str(folder / "many"), store=folder / "random", latents=tuple(range(400)), out=folder / "many.html"
        )
    )
    before, latents_module.PAGE_BYTES = latents_module.PAGE_BYTES, 1000
    try:
        made["folder"] = show(two.model_copy(update={"out": folder / f"{ODD}.html"}))
    finally:
        latents_module.PAGE_BYTES = before
    return made


@pytest.mark.parametrize("name", ["known", "two", "many"])
def test_a_page_in_one_file_opens_without_a_complaint_and_asks_for_nothing(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name])
    wait(browser, f"Boolean({TITLE})")
    assert browser.told == [] and browser.asked == [pages[name].as_uri()]


def test_a_card_says_what_is_known_by_hand(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["known"])
    go(browser, "#L1", "Latent 1")
    said = browser.run("document.getElementById('card').textContent")
    for fact in ("24% of tokens", "6 of 25", "2.000", "token “ cat”", "precision 1.00, recall 1.00", "None found"):
        assert fact in said
    top = "[...document.querySelectorAll('#card > section')].find(s => s.textContent.startsWith('Top'))"
    values = f"[...{top}.querySelectorAll('.value')].map(v => v.textContent)"
    assert browser.run(values) == ["2.000", "1.750", "1.500", "1.000"]
    assert browser.run(f"[...{top}.querySelectorAll('.where')].map(v => v.textContent)") == [
        "row 22 · document 2, context 4, position 3",
        "row 17 · document 1, context 3, position 3",
        "row 10 · document 1, context 2, position 1",
        "row 0 · document 0, context 0, position 1",
    ]
    third = f"{top}.querySelectorAll('.text')[2]"
    assert browser.run(f"{third}.textContent") == "<bos> cat↵ dog⟨202E⟩⟨0007⟩ cat"
    assert browser.run(f"{third}.querySelector('i').textContent") == "<bos>"
    shades = f"[...{third}.querySelectorAll('.on')].map(e => [e.tagName, e.style.getPropertyValue('--a'), e.ariaLabel])"
    assert browser.run(shades) == [
        ["MARK", "0.75", "cat, fires at 75% of its largest"],
        ["SPAN", "0.75", "cat, fires at 75% of its largest"],
    ]


def test_hostile_tokens_show_as_text_and_run_nothing(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["known"])
    go(browser, "#L4", "Latent 4")
    assert browser.run("document.querySelector('#card mark').textContent") == "<script>document.title='ran'</script>"
    assert browser.run("document.title") == "Latents of sae" and browser.told == []
    assert browser.run("document.querySelectorAll('#card script').length") == 0


def test_the_policy_stops_a_script_that_got_into_the_page(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("known", "folder"):
        page = pages[name].read_text(encoding="utf-8")
        page = page.replace(
            "</main>",
            "<script>document.title = 'ran'</script><script src='https://example.invalid/x.js'></script></main>",
        )
        (tmp_path / "open.html").write_text(page, encoding="utf-8")
        if name == "folder":
            shutil.copytree(pages[name].with_name(f"{ODD}_data"), tmp_path / f"{ODD}_data")
        browser.open(tmp_path / "open.html")
        wait(browser, f"Boolean({TITLE})")
        assert browser.run("document.title") != "ran"
        assert sum("Content Security Policy" in told for told in browser.told) >= 2


def test_a_click_on_a_head_sorts_the_index_and_the_next_one_turns_it(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["known"])
    assert browser.run(INDEX) == ["1", "2", "3", "4", "5", "6"]
    browser.click("#index thead th:nth-child(3) button")
    counts = "[...document.querySelectorAll('#index tbody tr:not(.space) td:nth-child(3)')].map(c => parseFloat(c.textContent))"
    assert browser.run(counts) == sorted(browser.run(counts), reverse=True)
    assert browser.run("document.querySelectorAll('#index thead th')[2].ariaSort") == "descending"
    browser.click("#index thead th:nth-child(3) button")
    assert browser.run(counts) == sorted(browser.run(counts))
    browser.click("#index thead th:nth-child(1) button")
    assert browser.run(INDEX) == ["1", "2", "3", "4", "5", "6"]
    assert "latent, ascending" in browser.run("document.getElementById('status').textContent")


def test_search_finds_tokens_labels_and_numbers_and_enter_opens_the_first(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["known"])
    browser.choose("#search", "DOG")
    assert browser.run(INDEX) == ["2"]
    assert browser.run("document.getElementById('count').textContent") == "1 of 6 latents"
    browser.choose("#search", "↵")
    assert browser.run(INDEX) == ["3"]
    browser.choose("#search", "6")
    assert browser.run(INDEX) == ["6"]
    browser.run("document.getElementById('search').focus()")
    browser.press("Enter")
    wait(browser, TITLE, "Latent 6")
    assert browser.run("location.hash") == "#L6"
    browser.choose("#search", "no such thing")
    assert browser.run(INDEX) == [] and browser.told == []


def test_keys_step_through_the_index_as_it_is_sorted_and_slash_searches(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["known"])
    wait(browser, TITLE, "Latent 1")
    for key, title in (("j", "Latent 2"), ("j", "Latent 3"), ("k", "Latent 2")):
        browser.press(key)
        wait(browser, TITLE, title)
    browser.click("#index thead th:nth-child(1) button")
    browser.press("j")
    wait(browser, TITLE, "Latent 1")
    browser.press("/")
    assert browser.run("document.activeElement.id") == "search"
    browser.press("j")
    assert browser.run("document.getElementById('search').value") == "j", "keys are text there"
    browser.press("Escape")
    assert browser.run("document.activeElement.id") != "search"


def test_a_permalink_opens_its_latent_and_row_and_back_goes_back(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["known"])
    go(browser, "#L2", "Latent 2")
    go(browser, "#L1/R10", "Latent 1")
    here = "document.querySelector('.lines > li.here')?.dataset.row"
    wait(browser, here, "10")
    assert browser.run(
        "(b => b.top >= 0 && b.bottom <= innerHeight)(document.querySelector('.here').getBoundingClientRect())"
    )
    browser.run("history.back()")
    wait(browser, TITLE, "Latent 2")
    go(browser, "#L99", "Latent 99")
    assert "latents 0 to 6" in browser.run("document.getElementById('card').textContent")
    go(browser, "#L0", "Latent 0")
    assert "It fires on none of these rows" in browser.run("document.getElementById('card').textContent")


def test_an_index_of_many_draws_a_few_rows_and_all_can_be_reached(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["many"])
    drawn = browser.run(INDEX)
    assert drawn[0] == "0" and len(drawn) < 80
    assert browser.run("document.querySelector('#index table').getAttribute('aria-rowcount')") == "401"
    browser.run("document.getElementById('index').scrollTop = 1e6")
    wait(browser, f"{INDEX}.at(-1)", "399")
    assert len(browser.run(INDEX)) < 80
    go(browser, "#L200", "Latent 200")
    current = "document.querySelector('#index tr[aria-current]')"
    assert browser.run(f"{current}.cells[0].textContent") == "200"
    boxes = f"[document.getElementById('index'), {current}].map(e => e.getBoundingClientRect())"
    assert browser.run(f"(([box, row]) => row.top >= box.top && row.bottom <= box.bottom)({boxes})")


@pytest.mark.parametrize("name", ["two", "folder"])
def test_two_saes_stand_side_by_side_in_a_file_and_in_a_folder(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name])
    wait(browser, f"Boolean({TITLE})")
    first = browser.run(INDEX)[0]
    assert first.startswith("A")
    go(browser, f"#L{first[1:]}", f"Latent {first}")
    said = browser.run("document.getElementById('card').textContent")
    assert "match in B" in said and "status" in said and "outline: its match" in said
    match = browser.run("document.querySelector('#card .facts a').getAttribute('href')")
    assert match.startswith("#B")
    browser.click("#card .facts a")
    wait(browser, TITLE, f"Latent {match[1:]}")
    assert browser.run("document.getElementById('side').value") == "1" and browser.run(INDEX)[0].startswith("B")
    both = "[...document.querySelectorAll('#card .on')].filter(e => e.style.getPropertyValue('--a') && e.style.getPropertyValue('--b')).length"
    assert browser.run(both) > 0
    assert browser.told == []
    assert all(address.startswith("file://") for address in browser.asked)
    assert (len(browser.asked) > 1) == (name == "folder")


def test_a_folder_that_is_missing_is_told_in_a_sentence(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(pages["folder"], tmp_path / "alone.html")
    browser.open(tmp_path / "alone.html")
    wait(
        browser,
        f"document.querySelector('#card .warning')?.textContent.includes('keep the folder {ODD}_data beside this page')",
    )


def test_bars_of_concepts_add_up_and_their_pieces_are_links(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_lm.metrics.latent_survey.CONCEPT_ROWS", 10)
    folder = tmp_path_factory.mktemp("bars")
    write_store(folder / "store", random_contexts(60, 9, 0), per_shard=7, scale=0.01)
    save(random_sae(len(WORDS), 12, 3, 1), folder / "left")
    save(random_sae(len(WORDS), 15, 3, 2), folder / "right")
    page = show(
        ShowSettings(
            sae=str(folder / "left"), beside=str(folder / "right"), store=folder / "store", out=folder / "p.html"
        )
    )
    browser.open(page)
    concepts = browser.run("document.querySelectorAll('.bars > li').length")
    assert concepts > 3 and browser.run("document.querySelectorAll('.bars .bar').length") == 2 * concepts
    assert browser.run(
        "[...document.querySelectorAll('.cut')].every(cut => [...cut.children].reduce((sum, e) => sum + parseFloat(e.style.width), 0) <= 100.1)"
    )
    labels = "[...document.querySelectorAll('.cut')].map(cut => cut.ariaLabel)"
    assert all("no latent on" in label for label in browser.run(labels))
    link = browser.run("document.querySelector('.bars .cut a').getAttribute('href')")
    browser.click(".bars .cut a")
    wait(browser, TITLE, f"Latent {link[1:].replace('L', 'A')}")
    browser.choose("#concept-search", "no such concept")
    assert browser.run("document.querySelectorAll('.bars > li').length") == 0
    browser.choose("#concept-search", "")
    browser.choose("#verdict", "differs")
    verdicts = "[...document.querySelectorAll('.bars > li')].map(li => [...li.querySelectorAll('.bar > span:last-child')].map(s => s.textContent))"
    assert all(a != b for a, b in browser.run(verdicts))


def test_lines_with_the_same_text_are_hidden_with_their_number(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("same")
    write_store(folder / "store", [[0, 1, 2, 1, 2, 1, 2]] * 9 + [[0, 2, 2, 1, 3, 3, 3]], scale=0)
    write_sae(folder / "sae")
    browser.open(show(ShowSettings(sae=str(folder / "sae"), store=folder / "store", out=folder / "p.html")))
    go(browser, "#L1", "Latent 1")
    top = "[...document.querySelectorAll('#card > section')].find(s => s.textContent.startsWith('Top'))"
    shown = f"[...{top}.querySelectorAll('li')].filter(li => !li.hidden).length"
    assert browser.run(shown) == 2
    assert browser.run(f"{top}.querySelector('.more').textContent") == "8 with the same text"
    browser.run(f"{top}.querySelector('.more').click()")
    assert browser.run(shown) == 10


def test_characters_of_several_tokens_are_whole_and_their_parts_are_told(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("characters")
    store = write_store(folder / "store", [[0, 1, 2, 3, 1, 4], [0, 2, 3, 1, 2, 4]])
    words = ["<bos>", " cat", "\ufffd", "\ufffd", "x", "\u202e", "y"]
    write_json(folder / "store/vocabulary.json", words)
    write_json(folder / "store/token_bytes.json", {"2": "e4b8", "3": "ad"})
    manifest = read_manifest(folder / "store")
    for name in ("vocabulary.json", "token_bytes.json"):
        file = folder / "store" / name
        manifest.files[name] = FileRecord(bytes=file.stat().st_size, sha256=sha256(file))
    write_manifest(folder / "store", manifest)
    assert len(store) == 10
    write_sae(folder / "sae")
    page = show(ShowSettings(sae=str(folder / "sae"), store=folder / "store", out=folder / "p.html"))
    assert "\ufffd" not in page.read_text(encoding="utf-8") and "ufffd" not in page.read_text(encoding="utf-8")
    browser.open(page)
    go(browser, "#L3", "Latent 3")
    assert browser.run("[...document.querySelectorAll('#card mark')].every(m => m.textContent === '中')")
    where = browser.run("document.querySelector('#card .where').textContent")
    assert "part 2 of 2 of the character “中”" in where
    assert "“⟨0xAD⟩”" in browser.run("document.querySelector('#card').textContent")
    go(browser, "#L2", "Latent 2")
    texts = browser.run("[...document.querySelectorAll('#card .text')].map(t => t.textContent)")
    assert any("⟨0xE4⟩⟨0xB8⟩x" in text for text in texts), "a part without its other part is named by its bytes"


@pytest.mark.parametrize("name", ["known", "two", "many"])
def test_on_a_phone_the_page_does_not_scroll_sideways(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], width=390, height=800)
    wait(browser, f"Boolean({TITLE})")
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("document.documentElement.scrollWidth") == 390
    out = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, nav, svg, .unseen, .cut, .columns li') && e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"
    assert browser.run(out) == []
    browser.run("document.querySelectorAll('.index td.fig').forEach(cell => { cell.textContent = '0.025%'; })")
    cut = "[...document.querySelectorAll('.index td.fig')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth).length"
    assert browser.run(cut) == 0, "the share of a rare latent is shown whole"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["known", "two"])
def test_every_text_has_a_contrast_of_four_and_a_half_by_day_and_by_night(
    browser: Browser, pages: dict[str, Path], name: str, dark: bool
) -> None:
    browser.open(pages[name], dark=dark)
    wait(browser, f"Boolean({TITLE})")
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run(CONTRAST) == []


def test_whatever_takes_input_has_a_name_and_headings_skip_no_level(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    wait(browser, f"Boolean({TITLE})")
    nameless = "[...document.querySelectorAll('button, select, input, [role=region], [role=img], [role=group]')].filter(e => !(e.textContent.trim() || e.closest('label') || e.ariaLabel)).length"
    assert browser.run(nameless) == 0
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_without_javascript_the_page_says_that_it_needs_it(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["known"], script=False)
    assert "needs JavaScript" in browser.run("document.querySelector('noscript').innerHTML")
    shown = "[...document.querySelectorAll('.tools')].filter(e => e.getClientRects().length).length"
    assert browser.run(shown) == 0 and "25" in browser.run("document.querySelector('.facts').textContent")


def test_names_of_saes_and_concepts_are_text(browser: Browser, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=document.title='ran'>"
    write_store(tmp_path / "store", CONTEXTS)
    (tmp_path / hostile).mkdir()
    write_sae(tmp_path / hostile, arm=hostile, seed=0)
    (tmp_path / "labels.csv").write_text(f'token,label\n{json.dumps(" cat")},"{hostile}"\n')
    browser.open(
        show(
            ShowSettings(
                sae=str(tmp_path / hostile),
                store=tmp_path / "store",
                labels=tmp_path / "labels.csv",
                out=tmp_path / "p.html",
            )
        )
    )
    wait(browser, f"Boolean({TITLE})")
    assert browser.run("document.querySelectorAll('img').length") == 0 and browser.told == []
    assert hostile in browser.run("document.querySelector('h1').textContent")
