"""Settings of what is done with files that are there: verify, inspect, merge, push, pull."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from sae_lm.fields import DeviceMap, Hooks, Positional, StoreAddress, parse_count, split_commas
from sae_lm.settings.base import Settings


class VerifySettings(Settings):
    """checksums of every file of a store or an SAE directory; exit 0 whole, 1 damaged."""

    path: Annotated[StoreAddress, Positional]
    """activation store or SAE directory"""
    repair: bool = False
    """cache the damaged shards of a store again, and only those"""
    model: str | None = None
    """for --repair: the language model, if the store was cached from a local folder"""
    text: str | None = None
    """for --repair: the text, if the store was cached from a local one"""
    device: str = "auto"
    """for --repair: `auto` (cuda if there is one), `cpu`, `cuda`"""
    device_map: DeviceMap | None = None
    """for --repair: lay the language model over all cards, as in `cache`"""


class InspectSettings(Settings):
    """what a store or an SAE directory is and holds, with some rows decoded."""

    path: Annotated[StoreAddress, Positional]
    """activation store (a folder, or hf://datasets/OWNER/NAME), or directory or file of an SAE of any known format"""
    rows: Annotated[int, BeforeValidator(parse_count), Field(ge=0)] = 5
    """rows to decode"""


class MergeSettings(Settings):
    """stores of the same model, hooks and contexts -> one store."""

    stores: Annotated[tuple[StoreAddress, ...], BeforeValidator(split_commas), Positional]
    """stores to lay one after another"""
    out: Path
    """the merged store's folder"""


class PushSettings(Settings):
    """store or SAE -> repository of the hub; what is there already is not sent again."""

    store: Annotated[Path, Positional]
    """activation store, or an SAE's directory or file of any known format"""
    repo: Annotated[str, Positional]
    """OWNER/NAME of the data set repository, or for an SAE OWNER/NAME:FOLDER of a model repository; made if it is not there"""
    private: bool = True
    """make a new repository private"""
    revision: str | None = None
    """branch to push to (default: main)"""


class PullSettings(Settings):
    """data set repository of the hub -> store on this disk, verified; goes on where it was interrupted."""

    address: Annotated[str, Positional]
    """OWNER/NAME or hf://datasets/OWNER/NAME, with @REVISION for another than the main branch"""
    hooks: Hooks | None = None
    """hooks to fetch, comma separated (default: all)"""
    out: Path
    """the store's folder"""
