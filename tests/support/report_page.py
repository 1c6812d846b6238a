"""Read a page of a report: its text, its plots, the data in it."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sae_lm.pages.report import write_html


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


def words_of(page: str) -> str:
    """Its text, cell by cell."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
