"""Files of rows that are read as text, and what is read or said of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sae_lm.data.text import Text, open_text
from sae_lm.errors import SaeLmError


def write_rows(path: Path, *rows: Mapping[str, object]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def documents(text: Text) -> list[str]:
    return list(text.documents())


def message(source: object, **options: str) -> str:
    """What is said when the source cannot be opened or read."""
    with pytest.raises(SaeLmError) as caught:
        documents(open_text(str(source), **options))
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"
