"""the explorer's entries of a report -> JSON that can stand in a page, as much of it as there is room for."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sae_lm.pages.charts import is_baseline, ordered
from sae_lm.pages.schema import Report
from sae_lm.pages.text import visible

LETTERS = 300
"""Of an event's context, on either side, at most."""


def embedded(report: Report, room: int) -> str:
    """The explorer's data as JSON that stands in a page, of at most ``room`` bytes: first seeds, first events first.

    entries: [concept, seed, [absorbers of each arm], [[before, token, after, [side of each arm]], ...]].
    """
    arms = ordered(report)
    others = [arm for arm in arms if not is_baseline(report, arm)]
    explored = sorted(report["explorer"], key=lambda entry: entry["seed"])
    entries, queue = [], []
    for entry in explored:
        absorbers = [[_absorber(of) for of in entry["absorbers"].get(arm, ())] for arm in arms]
        entries.append([visible(entry["concept"]), entry["seed"], absorbers, []])
        queue += [(entry["seed"], turn, entries[-1][3], event) for turn, event in enumerate(entry["events"])]
    right = others[0] if others else arms[-1]
    left = next((a for a in arms if a not in others and report["arms"][a]["k"] == report["arms"][right]["k"]), arms[0])
    data = {"arms": [visible(arm) for arm in arms], "entries": entries, "left": arms.index(left)}
    data |= {"right": arms.index(right), "held": 0, "left_out": 0}
    used, held = len(_json(data)) + 40, 0
    for _, _, of, event in sorted(queue, key=lambda item: item[:2]):
        told = _event(event, arms)
        used += len(_json(told)) + 1
        if used > room:
            break
        of.append(told)
        held += 1
    return _json(data | {"held": held, "left_out": len(queue) - held}) if entries else "null"


def _event(event: Mapping[str, Any], arms: Sequence[str]) -> list[Any]:
    before, after = visible(event["before"]), visible(event["after"])
    sides = []
    for arm in arms:
        side = event["arms"].get(arm)
        sides.append(_side(side) if side else None)
    return [before[-LETTERS:], visible(event["token"]), after[:LETTERS], sides]


def _side(side: Mapping[str, Any]) -> list[Any]:
    main, of = [[of["latent"], _short(of["strength"])] for of in side["main"]], side["absorber"]
    if of is None:
        return [int(side["silent"]), main, None]
    figures = (_short(of[key]) for key in ("strength", "share", "cos_probe", "cos_parent"))
    return [int(side["silent"]), main, [of["latent"], *figures, visible(of["child"])]]


def _absorber(of: Mapping[str, Any]) -> list[Any]:
    figures = (_short(of[key]) for key in ("child_precision", "cos_probe", "cos_parent"))
    return [of["latent"], of["events"], *figures, visible(of["child"])]


def _short(value: float | int | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _json(value: Any) -> str:
    """JSON in ASCII that cannot end the block it stands in, nor open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
