"""Names of hooks: what layer numbers, aliases and glob patterns stand for."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from sae_lm.errors import ModelError

_ALIASES = {"hook_resid_post": "hook_out", "hook_resid_pre": "hook_in"}
_RESIDUAL = re.compile(r"blocks\.([^.]+)\.(hook_in|hook_out|hook_resid_pre|hook_resid_post)")


def canonical_hook(name: str) -> str:
    """``blocks.3.hook_resid_post`` -> ``blocks.3.hook_out``: residual streams have one name on disk.

    A number is a layer: ``3`` -> ``blocks.3.hook_out``, the residual stream after block 3.
    """
    if re.fullmatch(r"\d+", name):
        return f"blocks.{name}.hook_out"
    parsed = re.fullmatch(r"(blocks\.[^.]+)\.(hook_resid_post|hook_resid_pre)", name)
    return f"{parsed[1]}.{_ALIASES[parsed[2]]}" if parsed else name


def layer_of(hook: str) -> tuple[int, str] | None:
    """``blocks.3.hook_out`` -> (3, "hook_out"); None for what is no residual stream at a block's border."""
    parsed = re.fullmatch(r"blocks\.(\d+)\.(hook_in|hook_out)", hook)
    return (int(parsed[1]), parsed[2]) if parsed else None


def expand_hooks(patterns: Iterable[str], layers: int, names: Iterable[str] | None = None) -> list[str] | None:
    """Every hook the patterns stand for, each once, in the order of the patterns and within one of the layers.

    A pattern is a name, a layer number (-1 the last), or a glob whose ``*``, ``?`` and ``[0-4]`` stay between
    two dots: ``blocks.*.hook_out``. Residual streams are known from the number of layers alone; for anything
    else the model's hook ``names`` are needed, and without them the answer is None. Raises ModelError for a
    pattern that stands for nothing.
    """
    known = list(names) if names is not None else None
    expanded: list[str] = []
    for pattern in patterns:
        wanted = canonical_hook(pattern)
        if re.fullmatch(r"-\d+", pattern):
            wanted = f"blocks.{layers + int(pattern)}.hook_out"
        if residual := _RESIDUAL.fullmatch(wanted):
            hits = [f"blocks.{i}.{residual[2]}" for i in range(layers) if fnmatchcase(str(i), residual[1])]
        elif known is None:
            return None
        else:
            hits = list(dict.fromkeys(canonical_hook(name) for name in known if _matches(name, wanted)))
        if not hits:
            raise ModelError(
                f"hook {pattern!r} is not a hook point of this model, which has {layers} layers; residual streams are "
                f"0 to {layers - 1}, that is blocks.0.hook_out (after block 0) to blocks.{layers - 1}.hook_out, or blocks.*.hook_out"
            )
        expanded += hits
    return list(dict.fromkeys(expanded))


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
