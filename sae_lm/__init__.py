"""sae_lm: does a sparse autoencoder split and absorb features, and does a decoder penalty help?

Names are imported on first use, so that ``import sae_lm`` needs neither torch nor TransformerLens.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lm.commands.cache import cache
    from sae_lm.commands.check import check
    from sae_lm.commands.compare import compare
    from sae_lm.commands.show import show
    from sae_lm.commands.train import train
    from sae_lm.data.store import Store, open_store
    from sae_lm.errors import SaeLmError
    from sae_lm.interp.attribution import attribute, faithfulness
    from sae_lm.interp.cache import run_with_cache
    from sae_lm.interp.generation import generate
    from sae_lm.interp.logits import logit_difference, logit_effect
    from sae_lm.interp.splice import splice
    from sae_lm.interp.steering import Steer, largest_activations
    from sae_lm.lm.bridge import load_model
    from sae_lm.sae.load import load
    from sae_lm.sae.model import SAE
    from sae_lm.settings import CacheSettings, CompareSettings, ShowSettings, TrainSettings

_HOMES = {
    "CacheSettings": "sae_lm.settings",
    "CompareSettings": "sae_lm.settings",
    "SAE": "sae_lm.sae.model",
    "SaeLmError": "sae_lm.errors",
    "ShowSettings": "sae_lm.settings",
    "Steer": "sae_lm.interp.steering",
    "Store": "sae_lm.data.store",
    "TrainSettings": "sae_lm.settings",
    "attribute": "sae_lm.interp.attribution",
    "cache": "sae_lm.commands.cache",
    "check": "sae_lm.commands.check",
    "compare": "sae_lm.commands.compare",
    "faithfulness": "sae_lm.interp.attribution",
    "generate": "sae_lm.interp.generation",
    "largest_activations": "sae_lm.interp.steering",
    "load": "sae_lm.sae.load",
    "load_model": "sae_lm.lm.bridge",
    "logit_difference": "sae_lm.interp.logits",
    "logit_effect": "sae_lm.interp.logits",
    "open_store": "sae_lm.data.store",
    "run_with_cache": "sae_lm.interp.cache",
    "show": "sae_lm.commands.show",
    "splice": "sae_lm.interp.splice",
    "train": "sae_lm.commands.train",
}

__all__ = [  # noqa: RUF022 (as sorted() has it, upper case first)
    "CacheSettings",
    "CompareSettings",
    "SAE",
    "SaeLmError",
    "ShowSettings",
    "Steer",
    "Store",
    "TrainSettings",
    "attribute",
    "cache",
    "check",
    "compare",
    "faithfulness",
    "generate",
    "largest_activations",
    "load",
    "load_model",
    "logit_difference",
    "logit_effect",
    "open_store",
    "run_with_cache",
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
