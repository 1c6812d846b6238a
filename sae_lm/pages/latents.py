"""Write the page of latents: one HTML file, or beside a larger one a folder of data that it loads as it needs them.

Nothing is asked for over a network. A browser that opens a page from disk may not read files, but may run scripts that
lie beside it, so each chunk of data is a script that hands its data over. Text from data goes into the page as text only.
"""

import base64
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lm.errors import SettingsError
from sae_lm.pages.latents_data import PageData
from sae_lm.pages.templates import asset, encode_page, fill
from sae_lm.runtime.files import PART, replace_folder, write_whole
from sae_lm.runtime.locks import only_writer

PAGE_BYTES = 5_000_000
"""Of the page, at most, as one file; a larger one gets a folder."""


def write_latents(path: Path, data: PageData, facts: Mapping[str, Any]) -> list[Path]:
    """Write the page whole, and its folder where it needs one; return what was written.

    facts: what the template shows. A folder that an earlier page had is replaced or removed. Where a folder of other
    files has its name it gets another; raises SettingsError where that is taken too.
    """
    folder, further = (path.with_name(f"{path.stem}{ending}") for ending in ("_data", "_latents_data"))
    inline = {name: to_json(chunk) for name, chunk in data.chunks.items()}
    page = encode_page(_page(data.head | {"folder": None}, inline, facts))
    with only_writer(path.absolute().parent):
        if len(page) > PAGE_BYTES:
            if folder.exists() and not _is_ours(folder):
                folder = further
            if folder.exists() and not _is_ours(folder):
                raise SettingsError(
                    f"{folder} is where the page's data would be, and holds other files; give another --out"
                )
            return _write_beside(path, folder, data, inline, facts)
        write_whole(path, lambda temporary: temporary.write_bytes(page) and None)
        for earlier in filter(_is_ours, (folder, further)):
            shutil.rmtree(earlier)
        return [path]


def _write_beside(
    path: Path, folder: Path, data: PageData, inline: Mapping[str, str], facts: Mapping[str, Any]
) -> list[Path]:
    """A page and its folder. The page comes last, and an earlier one goes before its folder does: none has another's."""
    aside = folder.with_name(folder.name + PART)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for name, chunk in inline.items():
            script = f'"use strict";saeLatents("{name}",{chunk});\n'.encode()
            write_whole(aside / f"{name}.js", lambda temporary, script=script: temporary.write_bytes(script) and None)
        path.unlink(missing_ok=True)
        replace_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    page = encode_page(_page(data.head | {"folder": folder.name}, {}, facts))
    write_whole(path, lambda temporary: temporary.write_bytes(page) and None)
    return [path, folder]


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but chunks of an earlier page."""
    return folder.is_dir() and all(
        file.suffix == ".js" and file.stem[:2] in ("a-", "b-", "c-") for file in folder.iterdir()
    )


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
