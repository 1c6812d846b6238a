"""Damage files as disks, editors and forgers do: by bits, by cuts, and by their structure, all of it drawn from a seed.

draw = random.Random(0)
damaged = mutate("cfg.json", content, draw)
"""

import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

DEEP = 20_000
"""Brackets inside brackets."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, 2**31, 2**40, 2**63, -(2**63), 10**30, 10**400,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "none", "nan", "²", "6abc", "1e5", "topk", "jumprelu",
    "../../outside", "/etc/passwd", "..\\outside", "C:\\outside", "~/outside", "a\x00b", "\x1b[2J\x1b]0;title\x07", "\ud800",
    "\u202egnp.exe", "line\nbreak", "x" * 5000, "-1", "blocks.1.hook_out", "hf://datasets/a/b", "٣", [], {}, [[]], [None], [1, 2, 3],
    {"": ""}, {"a": {"b": []}}, ["../x"],
)  # fmt: skip
WORDS = (
    b"\x00", b"\x1b[2J", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b"\\", b"\n", b"\r", b",", b"[", b"{", b"]]", b"= ", b"NaN",
    b"1e999", b"-1", b"99999999999999999999", b"9" * 5000, b"../", b"/", b"null", b"true", b"#", b"'''", b'"""', b"\xed\xa0\x80",
    b"1979-05-27T07:32:00Z", b"0x", b"[" * DEEP, b'{"a":' * DEEP, b"inf", b"\x85", b"\xe2\x80\xa8",
)  # fmt: skip


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    """One to four of: a flipped bit, a cut, a piece gone, a piece twice, a word put in, zeros over a piece."""
    out = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(out) + 1)
        end = min(len(out), at + draw.choice((1, 4, 16, 200)))
        way = draw.randrange(6)
        if way == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << draw.randrange(8)
        elif way == 1:
            del out[at:]
        elif way == 2:
            del out[at:end]
        elif way == 3:
            out[at:at] = out[at:end]
        elif way == 4:
            out[at:at] = draw.choice(WORDS)
        else:
            out[at:end] = bytes(end - at)
    return bytes(out)


def of_value(value: Any, draw: random.Random) -> Any:
    """A value of JSON with one to three changes at random places."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = _changed(value, draw)
    return value


def _changed(value: Any, draw: random.Random) -> Any:
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.02:
        return _other(value, draw)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, way = draw.choice(keys), draw.random()
    if isinstance(value[key], (dict, list)) and value[key] and way < 0.7:
        value[key] = _changed(value[key], draw)
    elif way < 0.8:
        value[key] = _other(value[key], draw)
    elif way < 0.87:
        del value[key]
    elif way < 0.93 and isinstance(value, dict):
        value[str(draw.choice(VALUES))] = value.pop(key) if draw.random() < 0.5 else value[key]
    elif isinstance(value, list):
        value.insert(key, draw.choice([*value, draw.choice(VALUES)]))
    else:
        value[key] = value[draw.choice(keys)]
    return value


def _other(value: Any, draw: random.Random) -> Any:
    if isinstance(value, (int, float)) and draw.random() < 0.4:
        return draw.choice((value + 1, value - 1, -value, value * 2, value * 10**6, [value], str(value)[:400], 2.0**60))
    if isinstance(value, str) and value and draw.random() < 0.3:
        at = draw.randrange(len(value))
        return value[:at] + str(draw.choice(VALUES))[:40] + value[at + draw.randrange(2) :]
    return draw.choice(VALUES)


def json_text(value: Any, draw: random.Random) -> bytes:
    """Sometimes with a key twice, or with brackets inside brackets in the place of a value."""
    text = json.dumps(value, indent=draw.choice((None, 1)), ensure_ascii=draw.random() < 0.5)
    if draw.random() < 0.03 and '": ' in text:
        at = draw.choice([i for i in range(len(text)) if text.startswith('": ', i)]) + 3
        text = text[:at] + "[" * DEEP + "]" * DEEP * draw.randrange(2) + text[at:]
    if draw.random() < 0.03 and isinstance(value, dict) and value:
        text = text[:-1] + f", {json.dumps(draw.choice([*value]))}: {json.dumps(draw.choice(VALUES))}}}"
    return text.encode("utf-8", "surrogatepass")


def of_json(content: bytes, draw: random.Random) -> bytes:
    return json_text(of_value(json.loads(content), draw), draw)


def of_json_lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = json_text(of_value(json.loads(lines[at]), draw), draw).replace(b"\n", b"")
    return b"\n".join(lines) + b"\n"


def of_safetensors(content: bytes, draw: random.Random) -> bytes:
    """Another header, or another length of it, before the same numbers; or other numbers."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + size], content[8 + size :]
    if draw.random() < 0.2 and data:
        return content[: 8 + size] + of_bytes(data, draw)
    header = of_json(header, draw) if draw.random() < 0.8 else of_bytes(header, draw)
    length = len(header) if draw.random() < 0.85 else draw.choice((0, 1, 7, 2**20, 2**32, 2**63, 2**64 - 1))
    return struct.pack("<Q", length) + header + data


def of_zip(content: bytes, draw: random.Random) -> bytes:
    """A member of the archive changed, left out, twice, or under another name; what torch and numpy write are archives."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at, way = draw.randrange(len(members)), draw.random()
    name, inside = members[at]
    if way < 0.7:
        members[at] = name, of_bytes(inside, draw)
    elif way < 0.8:
        del members[at]
    else:
        other = draw.choice(("../../outside", "/outside", members[draw.randrange(len(members))][0], name + "x"))
        members[at] = other, inside
    packed = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(packed, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive,
    ):
        for name, inside in members:
            warnings.simplefilter("ignore")  # that a name is there twice
            archive.writestr(zipfile.ZipInfo(name), inside)
    return packed.getvalue()


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": of_json,
    ".jsonl": of_json_lines,
    ".safetensors": of_safetensors,
    ".pt": of_zip,
    ".pth": of_zip,
    ".npz": of_zip,
}


def mutate(name: str, content: bytes, draw: random.Random) -> bytes:
    """A file's content, damaged in a way that its name's ending suggests, or in its bytes."""
    structured = STRUCTURED.get(PurePosixPath(name).suffix)
    if structured is not None and content and draw.random() < 0.8:
        try:
            return structured(content, draw)
        except (ValueError, KeyError, OSError, struct.error, RecursionError):  # of what is no such file
            pass
    return of_bytes(content, draw)
