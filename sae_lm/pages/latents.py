"""Write the page of latents: one HTML file, or beside a larger one a folder of data that it loads as it needs them.

Nothing is asked for over a network. A browser that opens a page from disk may not read files, but may run scripts that
lie beside it, so each chunk of data is a script that hands its data over. Text from data goes into the page as text only.
"""

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from sae_lm.pages.latents_data import PageData
from sae_lm.pages.templates import asset, encode_page, fill
from sae_lm.runtime.files import parse_json, whole_folder, write_whole
from sae_lm.runtime.locks import only_writer

PAGE_BYTES = 5_000_000
"""Of the page, at most, as one file; a larger one gets a folder."""
HEAD = re.compile(r'<script type="application/json" id="head">(.*?)</script>', re.DOTALL)
"""Of a page, what names its folder."""


def write_latents(path: Path, data: PageData, facts: Mapping[str, Any]) -> list[Path]:
    """Write the page whole, and its folder where it needs one; return what was written.

    facts: what the template shows. The folder has a name that is free. An earlier page at ``path`` stays as it is, with
    its folder, until the new one is there; then its folder is removed, and no other.
    """
    inline = {name: to_json(chunk) for name, chunk in data.chunks.items()}
    page = encode_page(_page(data.head | {"folder": None}, inline, facts))
    with only_writer(path.absolute().parent):
        earlier, written = _folder_of(path), [path]
        if len(page) > PAGE_BYTES:
            written.append(_write_beside(path, data, inline, facts))
        else:
            write_whole(path, lambda temporary: temporary.write_bytes(page) and None)
        if earlier is not None:
            shutil.rmtree(earlier, ignore_errors=True)
        return written


def _write_beside(path: Path, data: PageData, inline: Mapping[str, str], facts: Mapping[str, Any]) -> Path:
    """A page and its folder, which is returned. The page comes last, so that none names a folder not its own."""
    names = chain([f"{path.stem}_data"], (f"{path.stem}_data_{number}" for number in count(2)))
    folder = next(folder for name in names if not os.path.lexists(folder := path.with_name(name)))
    with whole_folder(folder) as aside:
        for name, chunk in inline.items():
            (aside / f"{name}.js").write_bytes(f'"use strict";saeLatents("{name}",{chunk});\n'.encode())
    try:
        page = encode_page(_page(data.head | {"folder": folder.name}, {}, facts))
        write_whole(path, lambda temporary: temporary.write_bytes(page) and None)
    except BaseException:
        if _folder_of(path) != folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _folder_of(path: Path) -> Path | None:
    """The folder of the page at ``path``, where it has one that is a page's and its own.

    A page that was copied or renamed names another page's. One whose folder holds other files keeps that.
    """
    try:
        head = HEAD.search(path.read_text(encoding="utf-8"))
        name = parse_json(head[1])["folder"] if head else None
    except (OSError, ValueError, KeyError, TypeError):  # no file, or no page of latents
        return None
    if not isinstance(name, str) or not re.fullmatch(rf"{re.escape(path.stem)}_data(_\d+)?", name):
        return None
    folder = path.with_name(name)
    return folder if _holds_chunks(folder) else None


def _holds_chunks(folder: Path) -> bool:
    """Whether a folder holds chunks of a page, and nothing else."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    ours = [file.suffix == ".js" and file.stem[:2] in ("a-", "b-", "c-") for file in folder.iterdir()]
    return bool(ours) and all(ours)


def _page(head: Mapping[str, Any], chunks: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    script = asset("latents.js")
    return fill(
        "latents.html.jinja",
        style=asset("report.css") + asset("latents.css"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        head=to_json(head),
        chunks=chunks,
        folder=head["folder"],
        two=len(head["saes"]) == 2,
        **facts,
    )


def to_json(value: Any) -> str:
    """JSON in ASCII that cannot end the block it stands in, nor open a comment; a script as well."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
