"""A hub whose answers are wrong: damaged, cut, of another length or status, pages for JSON, redirects in circles, late.

Targets of the fuzz (`fuzz_targets`): each loads, lists, reads or pushes while the stand-in answers so. What is asked
for is done all the same, as on a hub behind a bad line: only the answers are wrong.
"""

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hub_stand_in import HubStandIn
from mutations import of_bytes, of_json

PLAN = "plan.json"
"""Holds the seed of the wrong answers."""
STATUSES = (200, 204, 206, 304, 400, 401, 403, 404, 408, 409, 410, 412, 416, 429, 429, 500, 500, 502, 503, 504)
PAGE = b"<!doctype html><title>Sign in</title><h1>Your network wants you to sign in</h1>" * 20
PLACES = (
    "",
    "/elsewhere",
    "http://127.0.0.1:9/",
    "file:///etc/passwd",
    "//[",
    "http://",
    "\\..\\x",
    "/api/models/me/saes",
)
VALUES = (
    "",
    "../../../outside",
    '"../../outside"',
    "/etc/outside",
    "a" * 300,
    'W/"a"',
    "\x01",
    "-1",
    "9" * 30,
    "é",
    "main",
)
STALL = 1.5
"""Seconds, longer than the timeouts that the fuzz sets."""
_sleep = time.sleep


class Wrong:
    """Draws for each answer whether it is wrong and how; the first is, if no other."""

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.share = draw, draw.choice((0.05, 0.2, 0.5, 1.0))
        self.certain, self.stalled = draw.randrange(6), False

    def __call__(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> bool:
        """Answers in the handler's place; False where the answer is to be right."""
        self.certain -= 1
        if self.certain != -1 and self.draw.random() > self.share:
            return False
        ways = [self.json, self.body, self.cut, self.lengths, self.status, self.page, self.redirect, self.header]
        way = self.draw.choice([*ways, *ways, self.noise, self.slow, self.stall])
        way(handler, status, content, dict(headers))
        return True

    def json(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        try:
            content = of_json(content, self.draw)
        except (ValueError, RecursionError):
            content = of_bytes(content, self.draw)
        send(handler, status, content, headers)

    def body(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        send(handler, status, of_bytes(content, self.draw), headers)

    def cut(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        send(
            handler, status, content[: self.draw.randrange(len(content) + 1)], headers, length=len(content), close=True
        )

    def lengths(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        length = self.draw.choice((0, len(content) // 2, len(content) + 7, 10**15, -1, "many", ""))
        send(handler, status, content, headers, length=length, close=True)

    def status(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        codes = {
            "X-Error-Code": self.draw.choice(
                ("", "RepoNotFound", "GatedRepo", "EntryNotFound", "RevisionNotFound", "\x7f")
            )
        }
        after = {"Retry-After": self.draw.choice(("0", "1", "999999", "soon"))}
        content = self.draw.choice((b"", b"{}", b'{"error": "no"}', PAGE, content))
        send(handler, self.draw.choice(STATUSES), content, headers | codes | after)

    def page(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        send(handler, status, PAGE, {"Content-Type": "text/html"})

    def redirect(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.certain = 0 if self.draw.random() < 0.5 else self.certain  # round and round
        to = handler.path if self.draw.random() < 0.5 else self.draw.choice(PLACES)
        send(handler, self.draw.choice((301, 302, 303, 307, 308)), b"", headers | {"Location": to})

    def header(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        name = self.draw.choice(("ETag", "X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size", "Content-Type", "Content-Range",
                                 "Content-Encoding", "Link", "Transfer-Encoding"))  # fmt: skip
        value = self.draw.choice((*VALUES, "gzip", "chunked", '<http://127.0.0.1:9/>; rel="next"', "bytes 5-1/3"))
        send(handler, status, content, headers | {name: value})

    def noise(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        noise = self.draw.choice(
            (b"", b"\x00" * 50, b"HTTP/9.9 999 ?\r\n\r\n", b"HTTP/1.1 200\r\n" + b"a: b\r\n" * 500)
        )
        handler.wfile.write(noise)
        handler.hang_up()

    def slow(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        send(handler, status, content, headers, pause=0.01)

    def stall(self, handler: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        if not self.stalled:
            self.stalled = True
            _sleep(STALL)
        send(handler, status, content[: len(content) // 2], headers, length=len(content), close=True)


def send(
    handler: Any, status: int, content: bytes, headers: dict[str, str], length: object = None, close: bool = False,
    pause: float = 0.0,
) -> None:  # fmt: skip
    """An answer as it is told, whether or not it makes sense. pause: seconds between its parts."""
    head = [f"HTTP/1.1 {status} Answer"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    if length != "":
        head.append(f"Content-Length: {len(content) if length is None else length}")
    handler.wfile.write("\r\n".join([*head, "", ""]).encode("latin-1", "replace"))
    if handler.command != "HEAD":
        for at in range(0, len(content), max(1, len(content) // 4)) if pause else ():
            handler.wfile.write(content[at : at + max(1, len(content) // 4)])
            handler.wfile.flush()
            _sleep(pause)
        if not pause:
            handler.wfile.write(content)
    if close:
        handler.hang_up()


# --- the targets


def folder_of(scratch: Path, store: Path, sae: Path) -> Path:
    """A hub's repositories, and what is pushed, in one folder."""
    folder = scratch / "hub answers"
    for place in ("hub/datasets/me/acts", "store"):
        shutil.copytree(store, folder / place)
    for place in ("hub/models/me/saes/first", "hub/models/me/saes/second", "hub/models/me/one/only", "sae"):
        shutil.copytree(sae, folder / place)
    (folder / PLAN).write_text("null")
    return folder


def draw_plan(folder: Path, name: str, draw: random.Random) -> None:
    (folder / PLAN).write_text(json.dumps(draw.random()))


def reads_of(hub: HubStandIn) -> dict[str, Callable[[Path], object]]:
    """What is done while the hub answers wrongly: name -> read of a folder as `folder_of` makes it."""
    return {
        "hub answers, SAE": lambda folder: _done(hub, folder, _load),
        "hub answers, list": lambda folder: _done(hub, folder, _list),
        "hub answers, store": lambda folder: _done(hub, folder, _read),
        "hub answers, pull": lambda folder: _done(hub, folder, _pull),
        "hub answers, push": lambda folder: _done(hub, folder, _push),
        "hub answers, push of an SAE": lambda folder: _done(hub, folder, _push_sae),
    }


def _done(hub: HubStandIn, folder: Path, work: Callable[[Path, HubStandIn], object]) -> None:
    hub.root = folder / "hub"
    with hub.lock:
        for memory in (hub.requests, hub.commits, hub.objects, hub._branches, hub._pushed, hub.private):
            memory.clear()
    seed = json.loads((folder / PLAN).read_text())
    hub.disturb = Wrong(random.Random(seed)) if seed is not None else lambda *_: False
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        with _impatient() if seed is not None else nullcontext():
            work(folder, hub)
    finally:
        hub.disturb = lambda *_: False
        tempfile.tempdir = before


@contextmanager
def _impatient() -> Iterator[None]:
    """Pauses before a second try are short, and so is the wait for a hub."""
    from unittest.mock import patch

    from huggingface_hub import constants

    from sae_lm.hub import errors, repository, revision

    with (
        patch.object(time, "sleep", lambda seconds: _sleep(min(seconds, 0.002))),
        patch.multiple(revision, TIMEOUT=0.5, DEADLINE=1.0),
        patch.multiple(repository, WAIT=1.0, COURTESY=1.0),
        patch.object(errors, "WAIT", 1.0),
        patch.multiple(constants, HF_HUB_DOWNLOAD_TIMEOUT=1, HF_HUB_ETAG_TIMEOUT=1),
    ):
        yield


def _load(folder: Path, hub: HubStandIn) -> None:
    from sae_lm.sae.load import load

    load("me/one", "cpu")


def _list(folder: Path, hub: HubStandIn) -> None:
    from sae_lm.errors import SaeError
    from sae_lm.sae.load import load

    for name in ("me/saes", "me/sae:first"):  # one repository that holds several, one that is not there
        try:
            load(name, "cpu")
        except SaeError:
            continue  # where it is read all the same, the list lacked the others


def _read(folder: Path, hub: HubStandIn) -> None:
    from sae_lm.data.store import open_store

    store, whole = open_store("hf://datasets/me/acts"), open_store(folder / "store")
    if not store.rows(stop=40).equal(whole.rows(stop=40)) or store.vocabulary != whole.vocabulary:
        raise ValueError("silently wrong rows")


def _pull(folder: Path, hub: HubStandIn) -> None:
    from sae_lm.data.remote import pull

    pull("me/acts", folder / "pulled")
    _same(folder / "store", folder / "pulled")


def _push(folder: Path, hub: HubStandIn) -> None:
    from sae_lm.data.remote import push

    try:
        push(folder / "store", "me/new")
    finally:  # whether or not it ended well: what says that it is whole is whole
        if (folder / "hub/datasets/me/new/manifest.json").is_file():
            _same(folder / "store", folder / "hub/datasets/me/new")
    if not (folder / "hub/datasets/me/new/manifest.json").is_file():
        raise ValueError("silently not pushed")


def _push_sae(folder: Path, hub: HubStandIn) -> None:
    from sae_lm.interop.sae_repository import push_sae

    try:
        push_sae(folder / "sae", "me/new:layer/first")
    finally:
        if (place := folder / "hub/models/me/new/layer/first").is_dir():
            _same(folder / "sae", place)
    if not place.is_dir():
        raise ValueError("silently not pushed")


def _same(whole: Path, other: Path) -> None:
    """Raises ValueError where a file of one folder is not in the other as it is."""
    for path in whole.rglob("*"):
        if path.is_file() and path.read_bytes() != (other / path.relative_to(whole)).read_bytes():
            raise ValueError(f"silently wrong: {path.name}")
