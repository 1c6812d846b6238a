"""Put the explorer's entries of a report into the page as JSON, as many events as there is room for."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sae_lm.pages.charts import is_baseline, order_arms
from sae_lm.pages.schema import Report
from sae_lm.pages.text import visible

LETTERS = 300
"""Of an event's context, on either side, at most."""


def explorer_json(report: Report, room: int) -> str:
    """The explorer's data as JSON that stands in a page, of at most ``room`` bytes: first seeds, first events first.

    entries: [concept, seed, [absorbers of each arm], [[before, token, after, [side of each arm]], ...]]. Arms are those
    that events were taken of, which are some of the report's. null stands for one that was not in an entry.
    """
    explored = sorted(report["explorer"], key=lambda entry: entry["seed"])
    arms = [arm for arm in order_arms(report) if any(arm in entry["absorbers"] for entry in explored)]
    others = [arm for arm in arms if not is_baseline(report, arm)]
    entries, queue = [], []
    for entry in explored:
        of = entry["absorbers"]
        absorbers = [[_absorber(latent) for latent in of[arm]] if arm in of else None for arm in arms]
        entries.append([visible(entry["concept"]), entry["seed"], absorbers, []])
        queue += [(entry["seed"], turn, entries[-1][3], event) for turn, event in enumerate(entry["events"])]
    if not arms:
        return "null"
    right = others[0] if others else arms[-1]
    left = next((a for a in arms if a not in others and report["arms"][a]["k"] == report["arms"][right]["k"]), arms[0])
    data = {"arms": [visible(arm) for arm in arms], "entries": entries, "left": arms.index(left)}
    data |= {"right": arms.index(right), "shown": 0, "left_out": 0}
    used, shown = len(_json(data)) + 40, 0
    for _, _, events, event in sorted(queue, key=lambda item: item[:2]):
        packed = _event(event, arms)
        used += len(_json(packed)) + 1
        if used > room:
            break
        events.append(packed)
        shown += 1
    return _json(data | {"shown": shown, "left_out": len(queue) - shown})


def _event(event: Mapping[str, Any], arms: Sequence[str]) -> list[Any]:
    before, after = visible(event["before"]), visible(event["after"])
    sides = []
    for arm in arms:
        side = event["arms"].get(arm)
        sides.append(_side(side) if side else None)
    return [before[-LETTERS:], visible(event["token"]), after[:LETTERS], sides]


def _side(side: Mapping[str, Any]) -> list[Any]:
    main = [[latent["latent"], _short(latent["strength"])] for latent in side["main"]]
    absorber = side["absorber"]
    if absorber is None:
        return [int(side["silent"]), main, None]
    figures = (_short(absorber[key]) for key in ("strength", "share", "cos_probe", "cos_parent"))
    return [int(side["silent"]), main, [absorber["latent"], *figures, visible(absorber["child"])]]


def _absorber(latent: Mapping[str, Any]) -> list[Any]:
    figures = (_short(latent[key]) for key in ("child_precision", "cos_probe", "cos_parent"))
    return [latent["latent"], latent["events"], *figures, visible(latent["child"])]


def _short(value: float | int | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _json(value: Any) -> str:
    """JSON in ASCII that cannot end the block it stands in, nor open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
