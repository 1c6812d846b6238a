"""sae_lm: does a sparse autoencoder split and absorb features, and does a decoder penalty help?

Make and compare SAEs::

    sae_lm.cache(sae_lm.CacheSettings(hooks="blocks.2.hook_out", tokens="1M", out="acts"))  # run a model, keep rows
    store = sae_lm.open_store("acts")             # rows, tokens, batches; a table in a notebook
    sae_lm.train(sae_lm.TrainSettings(store="acts", arms="none,max_cos:0.25", out="runs"))  # arms x seeds
    sae_lm.compare(sae_lm.CompareSettings(runs="runs", out="report"))                       # differences, verdicts
    sae_lm.show(sae_lm.ShowSettings(sae="runs/none-seed0", store="acts", out="latents.html"))

Use one::

    model = sae_lm.load_model("embedded")         # a TransformerBridge
    sae = sae_lm.load("runs/none-seed0")          # any known format; sae.provenance says what was decided
    sae_lm.check(model, sae)                      # is it loaded right?
    with sae_lm.splice(model, sae): ...           # the model computes with its reconstruction
    sae_lm.run_with_cache(model, tokens, sae)     # latents under SAELens' names
    sae_lm.generate(model, "Once", sae, steering=sae_lm.Steer(7, largest=20.0))
    sae_lm.attribute(model, tokens, metric, sae)  # which latents make the metric
    sae_lm.logit_effect(model, sae, [7])          # tokens that latents promote and suppress

Every command of ``sae-lm`` is a function here; those of many settings take the settings object of their name.
Mistakes of a user raise `SaeLmError` with one sentence. Names are imported on first use, so that ``import sae_lm``
needs neither torch nor TransformerLens.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lm.commands.cache import cache
    from sae_lm.commands.check import check
    from sae_lm.commands.compare import compare
    from sae_lm.commands.convert import convert
    from sae_lm.commands.estimate import estimate
    from sae_lm.commands.export import export
    from sae_lm.commands.inspect import inspect
    from sae_lm.commands.show import show
    from sae_lm.commands.train import train
    from sae_lm.commands.verify import verify
    from sae_lm.data.merge import merge
    from sae_lm.data.remote import pull, push
    from sae_lm.data.store import Store, open_store
    from sae_lm.errors import SaeLmError
    from sae_lm.interop.sae_repository import push_sae
    from sae_lm.interp.attribution import attribute, faithfulness
    from sae_lm.interp.cache import run_with_cache
    from sae_lm.interp.generation import generate
    from sae_lm.interp.logits import logit_difference, logit_effect
    from sae_lm.interp.splice import splice
    from sae_lm.interp.steering import Steer, largest_activations
    from sae_lm.lm.bridge import load_model
    from sae_lm.sae.load import load
    from sae_lm.sae.model import SAE
    from sae_lm.settings import (
        CacheSettings,
        CompareSettings,
        ConvertSettings,
        EstimateSettings,
        ExportSettings,
        MergeSettings,
        ShowSettings,
        TrainSettings,
    )

_HOMES = {
    "CacheSettings": "sae_lm.settings",
    "CompareSettings": "sae_lm.settings",
    "ConvertSettings": "sae_lm.settings",
    "ExportSettings": "sae_lm.settings",
    "EstimateSettings": "sae_lm.settings",
    "MergeSettings": "sae_lm.settings",
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
    "convert": "sae_lm.commands.convert",
    "estimate": "sae_lm.commands.estimate",
    "export": "sae_lm.commands.export",
    "faithfulness": "sae_lm.interp.attribution",
    "generate": "sae_lm.interp.generation",
    "inspect": "sae_lm.commands.inspect",
    "largest_activations": "sae_lm.interp.steering",
    "load": "sae_lm.sae.load",
    "load_model": "sae_lm.lm.bridge",
    "logit_difference": "sae_lm.interp.logits",
    "logit_effect": "sae_lm.interp.logits",
    "merge": "sae_lm.data.merge",
    "open_store": "sae_lm.data.store",
    "pull": "sae_lm.data.remote",
    "push": "sae_lm.data.remote",
    "push_sae": "sae_lm.interop.sae_repository",
    "run_with_cache": "sae_lm.interp.cache",
    "show": "sae_lm.commands.show",
    "splice": "sae_lm.interp.splice",
    "train": "sae_lm.commands.train",
    "verify": "sae_lm.commands.verify",
}

__all__ = [  # noqa: RUF022 (as sorted() has it, upper case first)
    "CacheSettings",
    "CompareSettings",
    "ConvertSettings",
    "EstimateSettings",
    "ExportSettings",
    "MergeSettings",
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
    "convert",
    "estimate",
    "export",
    "faithfulness",
    "generate",
    "inspect",
    "largest_activations",
    "load",
    "load_model",
    "logit_difference",
    "logit_effect",
    "merge",
    "open_store",
    "pull",
    "push",
    "push_sae",
    "run_with_cache",
    "show",
    "splice",
    "train",
    "verify",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae_lm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # a function shadows the submodule of its name, which importing has just set
    return value
