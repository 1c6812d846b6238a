"""Which concepts a model's layers carry, and how uneven their rows are: what to know before a layer is chosen for SAEs.

    sae-lm cache --model MODEL --text TEXT --hooks 'blocks.*.hook_out' --tokens 250k --out layers
    python tests/benchmarks/layers.py layers [layers-2 ...] [--hooks blocks.2.hook_out ...] [--json found.json]

Of every hook of a store (or of stores that are alike, whose rows are laid end to end) it prints each concept's probe F1,
by the rows, splits, probes and gates of `sae-lm compare`, and how many concepts pass. No SAE is trained or loaded, so that
a layer chosen by this table is chosen on probes alone, before any comparison. It prints as well how much a few rows or
dimensions make of the variance: quantiles of the rows' norms over their median, gamma (norm of the mean row over the
root of the variance), the largest share of the variance in one dimension, and in the 1% of rows farthest from the mean.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from sae_lm.concepts.probes import Probe, fit_probes
from sae_lm.concepts.rows import contextual_rows, inflected_rows, sample_rows
from sae_lm.data.merge import merge
from sae_lm.data.store import Store, open_store
from sae_lm.settings import MergeSettings

HIGH = 0.85
"""F1 of a concept that a layer carries well."""
SPREAD_ROWS = 32_768
"""Rows from which the spread is measured, from the store's end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--hooks", nargs="+", help="default: all of the store")
    parser.add_argument("--per-type", type=int, default=16)
    parser.add_argument("--min-words", type=int, default=8)
    parser.add_argument("--gate", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merged", type=Path, default=Path("merged"), help="where several stores are laid end to end")
    parser.add_argument("--json", type=Path, help="where all figures are written as well, layer by layer")
    options = parser.parse_args()
    path = options.stores[0]
    if len(options.stores) > 1:
        path = merge(MergeSettings(stores=tuple(map(str, options.stores)), out=options.merged))
    store = open_store(path)
    found: dict[str, dict[str, Any]] = {}
    for name in options.hooks or store.hooks:
        hook = store.hook(name)
        probes = probed(store, hook, options)
        found[hook] = {
            "spread": spread(store, hook),
            "concepts": {probe.name: told(probe) for probe in probes},
        }
        print(line(hook, found[hook], options.gate), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    print(table(found, options.gate))


def probed(store: Store, hook: str, options: argparse.Namespace) -> list[Probe]:
    """The probes of all concepts on all rows of the store."""
    sampled = sample_rows(store, hook, 0, options.per_type, options.seed)
    sets = [sampled, inflected_rows(sampled, store.vocabulary, options.seed)]
    sets += contextual_rows(store, hook, 0, options.per_type, options.seed)
    return [probe for rows in sets for probe in fit_probes(rows, options.min_words, options.gate, options.seed)]


def told(probe: Probe) -> dict[str, Any]:
    f1 = None if math.isnan(probe.f1) else round(probe.f1, 3)
    return {"kind": probe.kind, "types": probe.types, "rows": probe.rows, "f1": f1, "skipped": probe.skipped}


def spread(store: Store, hook: str) -> dict[str, float]:
    """How uneven the rows are."""
    x = store.rows(hook, max(0, len(store) - SPREAD_ROWS)).float()
    norms = x.norm(dim=1)
    mean = x.mean(0)
    squares = (x - mean).square()
    of_row, of_dimension = squares.sum(1), squares.sum(0)
    total = float(of_row.sum())
    return {
        "median norm": float(norms.median()),
        "p99 / median": float(norms.quantile(0.99) / norms.median()),
        "max / median": float(norms.max() / norms.median()),
        "gamma": float(mean.norm()) / math.sqrt(total / len(x)),
        "largest dimension": float(of_dimension.max()) / total,
        "top 1% of rows": float(of_row.topk(max(1, len(x) // 100)).values.sum()) / total,
    }


def passing(layer: dict[str, Any]) -> list[dict[str, Any]]:
    return [concept for concept in layer["concepts"].values() if concept["skipped"] is None]


def line(hook: str, layer: dict[str, Any], gate: float) -> str:
    good = passing(layer)
    contextual = sum(concept["kind"] == "contextual" for concept in good)
    high = sum(concept["f1"] >= HIGH for concept in good)
    uneven = ", ".join(f"{name} {value:.3g}" for name, value in layer["spread"].items())
    return f"{hook}: {len(good)} concepts pass at F1 {gate:g}, {contextual} of them contextual, {high} at {HIGH:g}; {uneven}"


def table(found: dict[str, dict[str, Any]], gate: float) -> str:
    """F1 of each concept in each layer; - where there were too few tokens, in brackets what does not pass."""
    names = list(dict.fromkeys(name for layer in found.values() for name in layer["concepts"]))
    wide = max(map(len, names))
    lines = [" " * wide + "".join(f"{hook.split('.')[1]:>7}" for hook in found)]
    for name in names:
        cells = [layer["concepts"].get(name, {"f1": None, "skipped": ""}) for layer in found.values()]
        shown = ["-" if c["f1"] is None else f"{c['f1']:.2f}" if c["skipped"] is None else f"({c['f1']:.2f})" for c in cells]  # fmt: skip
        lines.append(f"{name:{wide}}" + "".join(f"{cell:>7}" for cell in shown))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
