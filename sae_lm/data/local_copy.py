"""Say of a data set that is read from the local hub cache that it may be a part, and refuse one that is seen to be one.

Where the hub is out of reach nobody knows which files a commit has: a download that was broken off, or that fetched
some files only, looks like a whole one. The names of numbered files tell how many there are.
"""

import re
import warnings
from pathlib import Path

from sae_lm.errors import SaeLmWarning, TextError
from sae_lm.hub.quiet import quiet

NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)(?!\d)")
"""train-00001-of-00004.parquet; behind it may stand a hash, another one in each file."""


def check_local_copy(name: str, snapshot: Path, configuration: str | None, split: str) -> None:
    """Warn that a copy is read. Raises TextError where numbered files of the split are missing."""
    for file in _files_of(snapshot, configuration, split):
        if (numbered := NUMBERED.match(file.name)) is None:
            continue
        prefix, _, total = numbered.groups()
        beside = (NUMBERED.match(other.name) for other in file.parent.iterdir() if other.is_file())
        here = {int(other[2]) for other in beside if other and (other[1], other[3]) == (prefix, total)}
        if len(here) < int(total):
            raise TextError(
                f"{name}: the hub is out of reach, and the local hub cache holds {len(here)} of the {int(total)} files "
                f"{prefix}*-of-{total}; connect, or fetch them all with `hf download {name.partition(':')[0]} --repo-type dataset`"
            )
    warnings.warn(
        f"{name}: the hub is out of reach; the copy in the local hub cache is read, which may be a part of the data set",
        SaeLmWarning,
        stacklevel=3,
    )


def _files_of(snapshot: Path, configuration: str | None, split: str) -> list[Path]:
    """Files that datasets reads for a split; none where it does not say."""
    from datasets import load_dataset_builder

    with quiet("datasets"):
        files = load_dataset_builder(str(snapshot), configuration).config.data_files
    return [Path(file) for file in (files or {}).get(split, ())]
