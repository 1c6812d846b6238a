"""Which latent carries a concept on each row that has it: the cut of one bar per concept and SAE.

The concept's direction is that of a least-squares line: w = (cov x + ridge)^-1 cov(x, label). What a latent brings on a
row is its activation times the product of its decoder row with w, in the units of the line: the line's mean over rows
with the concept is higher than over the others by `gap`. A row belongs to the latent that brings most, if that is at
least a quarter of the gap; else to none. The main latent of a concept is the one that brings as much on most rows.

Verdicts, the first that holds:

missing: at least half of the rows belong to none.
clean: the main latent owns at least 90% of the rows that are not none's.
absorbed: the main latent is not narrow and owns at least a third of the rows that are not none's, and latents that are
    *narrow and instead of* it own at least a tenth of the concept's rows. Narrow: three quarters of a latent's own rows are
    of one token. Instead: on at least half of its own rows the main latent is silent.
split: two or more latents that are not narrow own at least a tenth each.
by token: narrow latents own at least half of the rows that are not none's.
scattered: none of these; among many latents.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.metrics.stored_codes import StoredCodes

BROUGHT = 0.25
"""Share of the gap that a latent must bring to own a row."""
NONE, CLEAN, MOST, LARGE, NARROW, INSTEAD = 0.5, 0.9, 1 / 3, 0.1, 0.75, 0.5
"""Shares of the definitions above."""
RIDGE = 1e-3
"""Of the mean variance, added to the covariance."""
LEAST_CORRELATION = 0.3
"""Of the line with the label; concepts that a line reads worse are left out."""
SEGMENTS = 12
"""Latents of a bar that are told apart, at most."""


class Direction(NamedTuple):
    """The line that reads one concept off the rows."""

    weight: Float[Tensor, " d_in"]
    gap: float
    """its mean over rows with the concept less its mean over the others"""
    correlation: float
    """of the line with the label, 0 at least"""


class Segment(NamedTuple):
    """The rows of a concept that belong to one latent."""

    latent: int
    rows: int
    token: int
    """token most of them are of"""
    token_share: float
    main_silent: float
    """share of them on which the main latent is silent"""
    kind: str
    """main, broad, instead (narrow, the main latent is silent) or beside (narrow, it fires)"""


class Bar(NamedTuple):
    """One concept in one SAE."""

    rows: int
    """that have the concept"""
    none: int
    """of these, which no latent owns"""
    main: int
    """the main latent, -1 without one"""
    main_recall: float
    """share of the rows on which the main latent fires at all"""
    segments: list[Segment]
    """the largest, at most `SEGMENTS`, the main one first"""
    rest: int
    """rows of all other latents"""
    others: int
    """how many these are"""
    verdict: str


@torch.no_grad()
def concept_directions(x: Float[Tensor, "n d_in"], labels: Bool[Tensor, "n concepts"]) -> list[Direction]:
    """The line of each concept, fitted on the first half of the rows; one solve for all. It is 0 where they do not vary.

    Gap and correlation are those of the second half: on its own rows a line reads noise, with a correlation of
    (d_in / rows)^.5. Rows come as they lie in a store, so that the halves have hardly a document in common.
    """
    half = (len(x) + 1) // 2
    x, y = x.double(), labels.double()
    mean = x[:half].mean(0)
    centred, target = x[:half] - mean, y[:half] - y[:half].mean(0)
    covariance = centred.T @ centred / half
    ridge = RIDGE * float(covariance.diagonal().mean()) or 1.0
    covariance += ridge * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(covariance, centred.T @ target / half)
    read, y = (x[half:] - mean) @ weight, y[half:]
    with_it = (read * y).sum(0) / y.sum(0).clamp_min(1)
    without = (read * (1 - y)).sum(0) / (1 - y).sum(0).clamp_min(1)
    gap = with_it - without
    of_label, of_line = ((each - each.mean(0)).square().mean(0) for each in (y, read))
    correlation = (gap * (of_label / of_line).sqrt()).nan_to_num(0).clamp_min(0)  # 0 where either does not vary
    return [Direction(*each) for each in zip(weight.T.float(), gap.tolist(), correlation.tolist(), strict=True)]


def concept_bars(
    codes: StoredCodes,
    W_dec: Float[Tensor, "d_sae d_in"],
    directions: Sequence[Direction],
    has: np.ndarray,
    token_id: np.ndarray,
) -> list[Bar]:
    """The bar of each concept. has: [rows, concepts] bool, of all the rows of the codes."""
    owners = [_owners(codes, W_dec, direction, has[:, c]) for c, direction in enumerate(directions)]
    mains = [int(brings.argmax()) if brings.any() else -1 for _, brings in owners]
    fires = _main_fires(codes, mains, has)
    return [
        _bar(owner, main, fired, token_id[has[:, c]])
        for c, ((owner, _), main, fired) in enumerate(zip(owners, mains, fires, strict=True))
    ]


def _owners(codes: StoredCodes, W_dec: Tensor, direction: Direction, has: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(owner of each row with the concept or -1, on how many of these each latent brings enough)."""
    along = (W_dec.float().cpu() @ direction.weight).numpy()
    least = BROUGHT * max(direction.gap, 1e-12)
    owner, brings = [], np.zeros(codes.d_sae, np.int64)
    for part in codes.parts():
        taken = part.take(np.flatnonzero(has[part.first - codes.start :][: len(part)]))
        brought = taken.value * along[taken.latent]
        enough = np.flatnonzero(brought >= least)
        latent, row = taken.latent[enough], taken.entry_row[enough]
        brings += np.bincount(latent, minlength=codes.d_sae)
        order = np.lexsort((-latent, brought[enough], row))  # the last of each row brings most, of equals the first
        here = np.full(len(taken), -1)
        here[row[order]] = latent[order]
        owner.append(here)
    return np.concatenate(owner), brings


def _main_fires(codes: StoredCodes, mains: Sequence[int], has: np.ndarray) -> list[np.ndarray]:
    """Per concept, on which of its rows its main latent fires."""
    known = np.array([max(0, main) for main in mains], np.int64)
    parts = []
    for part in codes.parts():
        parts.append(part.matrix(codes.d_sae).tocsc()[:, known].toarray() > 0)
    fires = np.concatenate(parts)
    return [fires[has[:, c], c] if main >= 0 else np.zeros(int(has[:, c].sum()), bool) for c, main in enumerate(mains)]


def _bar(owner: np.ndarray, main: int, main_fires: np.ndarray, token_id: np.ndarray) -> Bar:
    latents, counts = np.unique(owner[owner >= 0], return_counts=True)
    segments = [_segment(int(latent), owner == latent, main, main_fires, token_id) for latent in latents]
    segments.sort(key=lambda segment: (segment.kind != "main", -segment.rows, segment.latent))
    rows, none = len(owner), int((owner < 0).sum())
    shown = segments[:SEGMENTS]
    rest = int(counts.sum()) - sum(segment.rows for segment in shown)
    verdict = _verdict(rows, none, segments)
    recall = float(main_fires.mean()) if rows else 0.0
    return Bar(rows, none, main, recall, shown, rest, len(segments) - len(shown), verdict)


def _segment(latent: int, mine: np.ndarray, main: int, main_fires: np.ndarray, token_id: np.ndarray) -> Segment:
    tokens, counts = np.unique(token_id[mine], return_counts=True)
    share, silent = float(counts.max() / counts.sum()), float((~main_fires[mine]).mean())
    narrow = "instead" if silent >= INSTEAD else "beside"
    kind = "main" if latent == main else narrow if share >= NARROW else "broad"
    return Segment(latent, int(mine.sum()), int(tokens[counts.argmax()]), share, silent, kind)


def _verdict(rows: int, none: int, segments: Sequence[Segment]) -> str:
    def owned(*kinds: str) -> int:
        return sum(segment.rows for segment in segments if segment.kind in kinds)

    if not rows or none >= NONE * rows:
        return "missing"
    if owned("main") >= CLEAN * (rows - none):
        return "clean"
    narrow_main = sum(s.rows for s in segments if s.kind == "main" and s.token_share >= NARROW)
    if not narrow_main and owned("main") >= MOST * (rows - none) and owned("instead") >= LARGE * rows:
        return "absorbed"
    broad = owned("main") >= LARGE * rows and not narrow_main
    if broad + sum(s.kind == "broad" and s.rows >= LARGE * rows for s in segments) >= 2:
        return "split"
    return "by token" if owned("instead", "beside") + narrow_main >= NONE * (rows - none) else "scattered"


def as_json(bar: Bar) -> dict[str, Any]:
    """A bar as the page has it."""
    return {**bar._asdict(), "segments": [list(segment) for segment in bar.segments]}
