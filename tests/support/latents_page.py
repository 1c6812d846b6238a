"""Read a page of latents as its script does: the head, the chunks in it or beside it, and the lines of a card."""

import base64
import json
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

GROUPS = ("random", "fifth 1", "fifth 2", "fifth 3", "fifth 4", "fifth 5", "top", "near misses")


class Line(NamedTuple):
    value: float
    row: int
    document: int
    context: int
    position: int
    window: list[str]
    """texts of the tokens shown"""
    levels: list[dict[int, float]]
    """per SAE: offset from the line's token -> share of the latent's largest activation"""


class LatentsPage:
    def __init__(self, path: Path) -> None:
        self.path, self.html = path, path.read_text(encoding="utf-8")
        blocks = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', self.html, re.DOTALL)
        self.blocks = {name: json.loads(text) for name, text in blocks}
        self.head = self.blocks["head"]

    def chunk(self, name: str) -> Any:
        if self.head["folder"] is None:
            return self.blocks[f"chunk-{name}"]
        text = (self.path.parent / self.head["folder"] / f"{name}.js").read_text(encoding="utf-8")
        found = re.fullmatch(rf'"use strict";saeLatents\("{name}",(.*)\);\n', text, re.DOTALL)
        assert found
        return json.loads(found[1])

    def latents(self, side: int = 0) -> list[int]:
        return self.head["saes"][side]["columns"]["latent"]

    def column(self, key: str, latent: int, side: int = 0) -> Any:
        return self.head["saes"][side]["columns"][key][self.latents(side).index(latent)]

    def label(self, latent: int, side: int = 0) -> str:
        return self.head["saes"][side]["labels"][self.column("label", latent, side)]

    def entry(self, latent: int, side: int = 0) -> dict[str, Any]:
        place = self.latents(side).index(latent)
        return self.chunk(f"{'ab'[side]}-{place // self.head['perChunk'][0]}")[str(latent)]

    def lines(self, latent: int, side: int = 0) -> dict[str, list[Line]]:
        entry, size = self.entry(latent, side), self.head["size"]
        raw, at, lines = base64.b64decode(entry["x"]), 0, []
        while at < len(raw):
            place, value = struct.unpack_from("<If", raw, at)
            at += 8
            levels = []
            for _ in self.head["saes"]:
                n = raw[at]
                pairs = struct.unpack_from("<" + "bB" * n, raw, at + 1)
                levels.append({pairs[i]: pairs[i + 1] / 255 for i in range(0, 2 * n, 2)})
                at += 1 + 2 * n
            lines.append(self._line(value, place // size, place % size, levels))
        return {name: [lines[i] for i in group] for name, group in zip(GROUPS, entry["g"], strict=True)}

    def _line(self, value: float, number: int, position: int, levels: list[dict[int, float]]) -> Line:
        per = self.head["perChunk"][1]
        context, first, documents, rowless, _, packed = self.chunk(f"c-{number // per}")[number % per]
        raw, size = base64.b64decode(packed), self.head["size"]
        ids = struct.unpack(f"<{size}{'H' if len(raw) == 2 * size else 'I'}", raw)
        row = first + sum(p not in rowless for p in range(position))
        document = [of for begin, of in documents if begin <= position][-1]
        window = ids[max(0, position - self.head["before"]) : position + self.head["after"] + 1]
        return Line(value, row, document, context, position, [self.head["tokens"][i] for i in window], levels)
