"""Compare two SAEs with each other: which latents of one are found again in the other.

The other is of the next seed, of another arm, or of another width.

SAEs are loaded as they are asked for, two at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_lm.comparison.evaluate import batch_rows
from sae_lm.comparison.matching import Match
from sae_lm.comparison.runs import Key, Runs
from sae_lm.metrics.codes import TokenCodes, encode_sparse
from sae_lm.metrics.dictionaries import (
    DISTINCT,
    HUNGARIAN,
    STABLE,
    match_one_to_one,
    match_rows,
    novelty_threshold,
    split_curve,
    stability,
    stable_signal,
    stitch,
)
from sae_lm.metrics.genealogy import genealogy
from sae_lm.penalties.arms import Arm
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE

TRACED_ROWS = 16_384
"""Held-out rows on which it is seen what of one SAE fires with what of another, at most."""
Reader = Callable[[int], Iterator[Tensor]]
"""Rows at once -> the held-out rows, batch by batch."""


def compare_seeds(
    runs: Runs, alive: Mapping[Key, Tensor], signal: Mapping[Key, Tensor], matches: Mapping[Arm, Match], device: str
) -> dict[Key, dict[str, float]]:
    """How much of each SAE is found again at the next seed, of its own arm and of the baseline's.

    The share that the baseline lacks stands beside the same between the baseline's own seeds, so that the
    difference between the two is what the arm adds to the noise of training.

    alive: latents that fire. signal: mean squared strength of every latent. matches: of every arm to the baseline's
    ladder.
    Returns "seed_stability", "stable_signal" and "distinct" of every SAE; nothing with one seed.
    """
    if len(runs.seeds) < 2:
        return {}

    def rows(arm: Arm, seed: int) -> Tensor:
        W_dec = runs.by_key[arm, seed].load(device).W_dec
        return W_dec[alive[arm, seed]]

    # by width, not by how many live: dead latents must not decide how those of an arm are matched
    hungarian = HUNGARIAN if max(map(len, alive.values())) <= HUNGARIAN else 0
    figures: dict[Key, dict[str, float]] = {}
    with Progress("between seeds", len(runs.by_key), "SAE") as bar:
        for seed, other in zip(runs.seeds, [*runs.seeds[1:], runs.seeds[0]], strict=True):
            for arm in runs.arms:
                own = rows(arm, seed)
                lacking = match_rows(own, rows(matches[arm].rung, other)).of_a.cosine < DISTINCT
                theirs = rows(arm, other)
                matched = match_one_to_one(own, theirs, hungarian)
                figures[arm, seed] = {
                    "seed_stability": stability(matched, (len(own), len(theirs))),
                    "stable_signal": stable_signal(matched, signal[arm, seed][alive[arm, seed].cpu()]),
                    "distinct": float(lacking.double().mean()),
                }
                bar.update(1)
    return figures


def genealogies(runs: Runs, read: Reader, device: str) -> list[dict[str, Any]]:
    """From the baseline to every arm at the first seed, and to itself at the second."""
    rows, base, entries = _read_rows(read), runs.arms[0], []
    W_dec, codes = _encode(runs.by_key[base, runs.seeds[0]].load(device), rows)
    pairs = [(arm, runs.seeds[0]) for arm in runs.arms[1:]] + [(base, seed) for seed in runs.seeds[1:2]]
    with Progress("what became of latents", len(pairs), "pair") as bar:
        for arm, seed in pairs:
            other, other_codes = _encode(runs.by_key[arm, seed].load(device), rows)
            origins = genealogy(W_dec, other, codes, other_codes)
            pair = {"from": base.name, "to": arm.name, "seed": runs.seeds[0], "to_seed": seed}
            entries.append({**pair, **origins._asdict()})
            bar.update(1)
    return entries


class Widths(NamedTuple):
    """What the latents of narrower SAEs became in wider ones."""

    figures: dict[Key, dict[str, float]]
    """split_ratio and stitched_novel of every wider SAE that has a narrower one"""
    entries: list[dict[str, Any]]
    """one for each of these, as the report has them"""
    genealogy: list[dict[str, Any]]
    """at the first seed, as the report has them"""


def compare_widths(runs: Runs, narrower: Runs, read: Reader, device: str) -> Widths:
    """Trace the latents of a narrower SAE to those of a wider one of the same arm.

    The narrower SAE is of the next seed: of one seed both would begin at the same directions (the narrower's are the
    first of the wider's), and what they have in common would be that. With one seed there is no other. Where seeds
    differ, one narrower SAE may stand beside several (`share_narrower`).
    """
    rows, widths = _read_rows(read), Widths({}, [], [])
    arms = [arm for arm in runs.arms if arm in narrower.arms]
    with Progress("from narrower SAEs", len(arms) * len(runs.seeds), "SAE") as bar:
        for arm in arms:
            for seed in runs.seeds:
                near = _next(narrower.seeds, seed)
                a, b = narrower.by_key[arm, near].load(device), runs.by_key[arm, seed].load(device)
                pair = {"seed": near, "to_seed": seed, "from_latents": len(a.W_dec), "to_latents": len(b.W_dec)}
                (dec_a, codes_a), (dec_b, codes_b) = _encode(a, rows), _encode(b, rows)
                fires_a, fires_b = codes_a.firing_frequency() > 0, codes_b.firing_frequency() > 0
                novel = stitch(a, b, rows.split(batch_rows(b))).novel[fires_b]
                row, figures = _trace(dec_a[fires_a], dec_b[fires_b], novel)
                widths.entries.append({"arm": arm.name, **pair, **row})
                widths.figures[arm, seed] = figures
                if seed == runs.seeds[0]:
                    origins = genealogy(dec_a, dec_b, codes_a, codes_b)
                    widths.genealogy.append({"from": arm.name, "to": arm.name, **pair, **origins._asdict()})
                bar.update(1)
    return widths


def share_narrower(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether several SAEs of one arm were held to the same narrower one, so that their values are not independent."""
    used = [(entry["arm"], entry["seed"]) for entry in entries]
    return len({*used}) < len(used)


def _trace(narrow: Tensor, wide: Tensor, novel: Tensor) -> tuple[dict[str, Any], dict[str, float]]:
    """From the decoder rows that fire: the figures of one pair in the report's "widths", and the wider SAE's metrics.

    novel: which of the wider SAE's lower the narrower one's error when added to it alone.
    """
    matched = match_rows(narrow, wide)
    curve, roc = split_curve(matched), novelty_threshold(matched.of_b.cosine, novel)
    share = float(novel.double().mean())
    row = {"curve": [point._asdict() for point in curve], "stitched_novel": share, "novelty": roc and roc._asdict()}
    stable = next(point for point in curve if point.threshold == STABLE)
    return row, {"split_ratio": stable.split_ratio, "stitched_novel": share}


def _next(seeds: list[int], seed: int) -> int:
    """The seed after this one, in a circle; this one only where there is no other."""
    return next((other for other in seeds if other > seed), seeds[0] if seeds[0] != seed else seeds[-1])


def _read_rows(read: Reader) -> Tensor:
    return torch.cat(list(take_rows(read(TRACED_ROWS)))).float()


def _encode(sae: SAE, rows: Tensor) -> tuple[Tensor, TokenCodes]:
    return sae.W_dec.cpu(), encode_sparse(sae, rows.split(batch_rows(sae)))


def take_rows(parts: Iterator[Tensor], count: int = TRACED_ROWS) -> Iterator[Tensor]:
    """The first rows of batches, batch by batch."""
    for part in parts:
        yield part[:count]
        count -= len(part)
        if count <= 0:
            return
