"""sae_lm: does a sparse autoencoder split and absorb features, and does a decoder penalty help?

Names are imported on first use, so that ``import sae_lm`` needs neither torch nor TransformerLens.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lm.caching import cache
    from sae_lm.comparison import compare
    from sae_lm.data.activations import load_model
    from sae_lm.data.store import Store, open_store
    from sae_lm.errors import SaeLmError
    from sae_lm.sae.checkpoint import load
    from sae_lm.sae.model import SAE
    from sae_lm.sae.splice import splice
    from sae_lm.settings import CacheSettings, CompareSettings, ShowSettings, TrainSettings
    from sae_lm.showing import show
    from sae_lm.training import train

_HOMES = {
    "SAE": "sae_lm.sae.model",
    "CacheSettings": "sae_lm.settings",
    "CompareSettings": "sae_lm.settings",
    "SaeLmError": "sae_lm.errors",
    "ShowSettings": "sae_lm.settings",
    "Store": "sae_lm.data.store",
    "TrainSettings": "sae_lm.settings",
    "cache": "sae_lm.caching",
    "compare": "sae_lm.comparison",
    "load": "sae_lm.sae.checkpoint",
    "load_model": "sae_lm.data.activations",
    "open_store": "sae_lm.data.store",
    "show": "sae_lm.showing",
    "splice": "sae_lm.sae.splice",
    "train": "sae_lm.training",
}

__all__ = [  # noqa: RUF022 (as sorted() has it, upper case first)
    "CacheSettings",
    "CompareSettings",
    "SAE",
    "SaeLmError",
    "ShowSettings",
    "Store",
    "TrainSettings",
    "cache",
    "compare",
    "load",
    "load_model",
    "open_store",
    "show",
    "splice",
    "train",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae_lm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # a function shadows the submodule of its name, which importing has just set
    return value
