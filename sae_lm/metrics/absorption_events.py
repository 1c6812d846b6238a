"""Absorption token by token: where a concept's main latents are silent, and which latent fires in their place.

An event is a candidate row (the concept is there, the probe sees it) on which all main latents of at least one arm are
silent. Each is reported for every arm, so that one token can be followed from the baseline to a regularised arm. What
took over is the firing latent with the largest projection on the probe, whatever its share: the reader sees how
large that is, no gate decides.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.data.store import Store
from sae_lm.metrics.absorption import ConceptAtSae, Projections, probe_cosines, projections
from sae_lm.metrics.codes import TokenCodes, at_entries

BEFORE, AFTER = 24, 8
"""Tokens shown before and after the one an event is about."""
EVENTS, ABSORBERS = 12, 12
"""Events of a concept, absorbers of an arm, at most."""


class Children(NamedTuple):
    """Per latent, the token it fires on most, among sampled rows.

    Tokens are sampled a few times each, so a rare token counts for as much as a frequent one. Tokens that a user calls
    by one name are one child.
    """

    token: Int[Tensor, " d_sae"]
    """token id; of equals the one on which the latent fires more strongly; -1 for a latent that never fires"""
    precision: Float[Tensor, " d_sae"]
    """share of the rows the latent fires on that are this child; NaN for a latent that never fires"""
    names: Mapping[int, str]
    """what a user calls a token"""


class View(NamedTuple):
    """One arm's SAE, as far as a concept is concerned."""

    codes: TokenCodes
    """of all sampled rows"""
    x: Float[Tensor, "n d_in"]
    """these rows, as the SAE's decoder rebuilds them"""
    W_dec: Float[Tensor, "d_sae d_in"]
    main: list[int]
    """main latents, strongest first: the first is the parent that absorbers are compared with"""
    children: Children


class _Holes(NamedTuple):
    """One arm's candidates."""

    parts: Projections
    latent: Tensor
    """[n] the firing latent with the largest projection"""
    share: Tensor
    """[n] of the activation's projection on the probe; 0 where nothing fires along the probe"""
    strength: Tensor
    main: Tensor
    """[n, main] strengths of the main latents"""


def explore(
    store: Store,
    arms: Mapping[str, View],
    token_id: Int[Tensor, " n"],
    row: Int[Tensor, " n"],
    candidates: Int[Tensor, " found"],
    probe: Float[Tensor, " d_in"],
    events: int = EVENTS,
) -> dict[str, Any]:
    """``{"absorbers": {arm: [...]}, "events": [...]}`` of one concept and seed, ready for JSON.

    token_id: of the sampled rows, shared by all arms.
    row: their row numbers in the store; below 0 for a row that is not from it, which is shown without context.
    candidates: which of them have the concept, and a probe that says so.
    """
    holes = {arm: _holes(view, token_id, probe, candidates) for arm, view in arms.items()}
    chosen = choose(
        torch.stack([of_arm.parts.silent for of_arm in holes.values()], 1),
        torch.stack([of_arm.share for of_arm in holes.values()], 1),
        token_id[candidates],
        events,
    )
    shown = []
    for place in chosen:
        sample = int(candidates[place])
        before, token, after = window(store, int(row[sample]), int(token_id[sample]))
        sides = {arm: _side(view, holes[arm], place, probe, store) for arm, view in arms.items()}
        shown.append({"token": token, "before": before, "after": after, "arms": sides})
    absorbers = {arm: _absorbers(view, holes[arm], probe, store) for arm, view in arms.items()}
    return {"absorbers": absorbers, "events": shown}


def choose(silent: Tensor, share: Tensor, token_id: Int[Tensor, " n"], count: int) -> list[int]:
    """Which candidates to show, by their silence [n, arms] and their absorbers' share [n, arms]: no more than ``count``.

    Rows on which the arms differ come first, and of these every pattern (who is silent and who is not) in turn, so
    that holes that an arm closes and holes that it opens are both shown; within a pattern those with the largest
    absorbed share. A token type comes a second time only when all others have been shown.
    """
    rows = silent.any(1).nonzero().flatten().tolist()
    taken = torch.where(silent, share, 0.0).amax(1)
    rows.sort(key=lambda row: (bool(silent[row].all()), -float(taken[row]), row))
    again: dict[int, int] = {}
    queues: dict[tuple[bool, ...], list[tuple[int, int]]] = {}
    for row in rows:
        token = int(token_id[row])
        queues.setdefault(tuple(silent[row].tolist()), []).append((again.get(token, 0), row))
        again[token] = again.get(token, 0) + 1
    order = []
    for pattern, queue in queues.items():
        for turn, (repeat, row) in enumerate(sorted(queue, key=lambda entry: entry[0])):
            order.append((repeat > 0, all(pattern), turn, pattern, row))
    return [row for *_, row in sorted(order)[:count]]


def children(codes: TokenCodes, token_id: Int[Tensor, " n"], names: Mapping[int, str] | None = None) -> Children:
    """Every latent's child, for all latents at once. names: of tokens, a user's own."""
    names = names or {}
    types, kind = _alike(token_id, names).unique(return_inverse=True)
    pair = codes.latent.long() * len(types) + kind[codes.token]
    pair, place, count = pair.unique(return_inverse=True, return_counts=True)
    strength = torch.zeros(len(pair), dtype=torch.float64).index_add_(0, place, codes.strength.double())
    order = strength.argsort()
    order = order[count[order].argsort(stable=True)]
    latent = pair // max(1, len(types))
    order = order[latent[order].argsort(stable=True)]  # the last of each latent is its best
    last = torch.ones(len(order), dtype=torch.bool)
    last[:-1] = latent[order][1:] != latent[order][:-1]
    best = order[last]
    token = torch.full((codes.d_sae,), -1)
    token[latent[best]] = types[pair[best] % max(1, len(types))].long()
    firings = torch.bincount(codes.latent, minlength=codes.d_sae)
    hits = torch.zeros(codes.d_sae).index_put_((latent[best],), count[best].float())
    return Children(token, hits / firings, names)


def _alike(token_id: Tensor, names: Mapping[int, str]) -> Tensor:
    """Token ids, of those with one name the lowest for all."""
    types, kind = token_id.unique(return_inverse=True)
    first: dict[str, int] = {}
    lowest = [first.setdefault(names[token], token) if token in names else token for token in types.tolist()]
    return torch.tensor(lowest, dtype=torch.long)[kind]


def window(store: Store, row: int, token_id: int) -> tuple[str, str, str]:
    """Text before, text of, and text after a row's token, within its context."""
    if row < 0:
        return "", store.token_text(token_id), ""
    around = store.text_around(row, BEFORE, AFTER)
    return around.before, around.token, around.after


def _holes(view: View, token_id: Tensor, probe: Tensor, candidates: Tensor) -> _Holes:
    codes = view.codes.take(candidates)
    parts = projections(ConceptAtSae(codes, view.x[candidates], token_id[candidates], view.W_dec, probe), view.main)
    share = torch.where(parts.whole > 0, parts.top / parts.whole, 0.0).clamp_min(0)
    latent, strength = (at_entries(values, parts.top_entry) for values in (codes.latent, codes.strength))
    return _Holes(parts, latent, share, strength, codes.columns(view.main))


def _absorbers(view: View, holes: _Holes, probe: Tensor, store: Store) -> list[dict[str, Any]]:
    """The latents that take over most often."""
    latents, counts = holes.latent[holes.parts.silent & (holes.share > 0)].unique(return_counts=True)
    most = counts.argsort(descending=True, stable=True)[:ABSORBERS]
    return [
        {"events": int(counts[place]), **_describe(view, int(latents[place]), probe, store)} for place in most.tolist()
    ]


def _side(view: View, holes: _Holes, place: int, probe: Tensor, store: Store) -> dict[str, Any]:
    """One event in one arm."""
    silent, share = bool(holes.parts.silent[place]), float(holes.share[place])
    absorber = None
    if silent and share > 0:
        account = _describe(view, int(holes.latent[place]), probe, store)
        del account["child_precision"]  # stands beside the arm's absorbers
        absorber = {**account, "strength": float(holes.strength[place]), "share": share}
    main = zip(view.main, holes.main[place].tolist(), strict=True)
    return {
        "silent": silent,
        "main": [{"latent": latent, "strength": strength} for latent, strength in main],
        "absorber": absorber,
    }


def _describe(view: View, latent: int, probe: Tensor, store: Store) -> dict[str, Any]:
    """What the report has on an absorbing latent, wherever it occurs."""
    row, token = view.W_dec[latent : latent + 1], int(view.children.token[latent])
    return {
        "latent": latent,
        "child": view.children.names.get(token, store.token_text(token)),
        "child_precision": float(view.children.precision[latent]),
        "cos_probe": float(probe_cosines(row, probe)),
        "cos_parent": float(probe_cosines(row, view.W_dec[view.main[0]])),
    }
