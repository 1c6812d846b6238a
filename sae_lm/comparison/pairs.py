"""SAE beside SAE -> what the one has of the other: at another seed, in another arm, at another width.

SAEs are loaded as they are asked for, two at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sae_lm.comparison.evaluate import batch_rows
from sae_lm.comparison.matching import match_rung
from sae_lm.comparison.runs import Key, Runs
from sae_lm.metrics.codes import TokenCodes, encode_sparse
from sae_lm.metrics.dictionaries import (
    DISTINCT,
    STABLE,
    match_rows,
    novelty_threshold,
    seed_stability,
    split_curve,
    stitch,
)
from sae_lm.metrics.genealogy import genealogy
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE

TRACED_ROWS = 16_384
"""Held-out rows on which it is seen what of one SAE fires with what of another, at most."""
Reader = Callable[[int], Iterator[Tensor]]
"""Rows at once -> the held-out rows, batch by batch."""


def between_seeds(
    runs: Runs,
    alive: dict[Key, Tensor],
    ladder: list[str],
    device: str,
    figures: dict[Key, dict[str, float]],
) -> None:
    """How much of each SAE is found again at the next seed, of its own arm and of the baseline's; needs two seeds.

    The share that the baseline lacks stands beside the same between the baseline's own seeds, so that the
    difference between the two is what the arm adds to the noise of training. Of a ladder each arm is held to the rung
    of its L0.
    """
    if len(runs.seeds) < 2:
        return

    def rows(arm: str, seed: int) -> Tensor:
        W_dec = runs.of[arm, seed].load(device).W_dec
        return W_dec[alive[arm, seed]]

    l0 = {arm: [figures[arm, seed]["l0"] for seed in runs.seeds] for arm in runs.arms}
    bases = {arm: match_rung(arm, ladder, l0).name for arm in runs.arms}
    with Progress("between seeds", len(runs.of), "SAE") as bar:
        for place, seed in enumerate(runs.seeds):
            other = runs.seeds[(place + 1) % len(runs.seeds)]
            for arm in runs.arms:
                mine = rows(arm, seed)
                apart = match_rows(mine, rows(bases[arm], other)).of_a.cosine < DISTINCT
                figures[arm, seed] |= {
                    "seed_stability": seed_stability(mine, rows(arm, other)),
                    "distinct": float(apart.double().mean()),
                }
                bar.update(1)


def genealogies(runs: Runs, read: Reader, device: str) -> list[dict[str, Any]]:
    """From the baseline to every arm at the first seed, and to itself at the second."""
    rows, base, told = _traced(read), runs.arms[0], []
    W_dec, codes = _coded(runs.of[base, runs.seeds[0]].load(device), rows)
    pairs = [(arm, runs.seeds[0]) for arm in runs.arms[1:]] + [(base, seed) for seed in runs.seeds[1:2]]
    with Progress("what became of latents", len(pairs), "pair") as bar:
        for arm, seed in pairs:
            other, other_codes = _coded(runs.of[arm, seed].load(device), rows)
            found = genealogy(W_dec, other, codes, other_codes)
            told.append({"from": base, "to": arm, "seed": runs.seeds[0], "to_seed": seed, **found._asdict()})
            bar.update(1)
    return told


def widened(
    runs: Runs, narrower: Runs, read: Reader, device: str, figures: dict[Key, dict[str, float]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the latents of a narrower SAE became in a wider one of the same arm: "widths" and more of "genealogy".

    The narrower SAE is of the next seed: of one seed both would begin at the same directions (the narrower's are the
    first of the wider's), and what they have in common would be that. With one seed there is no other.
    """
    rows, widths, traced = _traced(read), [], []
    arms = [arm for arm in runs.arms if arm in narrower.arms]
    with Progress("from narrower SAEs", len(arms) * len(runs.seeds), "SAE") as bar:
        for arm in arms:
            for seed in runs.seeds:
                bar.update(1)
                near = _next(narrower.seeds, seed)
                a, b = narrower.of[arm, near].load(device), runs.of[arm, seed].load(device)
                (dec_a, codes_a), (dec_b, codes_b) = _coded(a, rows), _coded(b, rows)
                added = stitch(a, b, rows.split(batch_rows(b)))
                lives_a, lives_b = codes_a.firing_frequency() > 0, codes_b.firing_frequency() > 0
                found = match_rows(dec_a[lives_a], dec_b[lives_b])
                curve, novel = split_curve(found), added.novel[lives_b]
                roc = novelty_threshold(found.of_b.cosine, novel)
                pair = {"seed": near, "to_seed": seed, "from_latents": len(dec_a), "to_latents": len(dec_b)}
                share = float(novel.double().mean())
                widths.append(
                    {
                        "arm": arm,
                        **pair,
                        "curve": [of._asdict() for of in curve],
                        "stitched_novel": share,
                        "novelty": roc and roc._asdict(),
                    }
                )
                stable = next(of for of in curve if of.threshold == STABLE)
                figures[arm, seed] |= {"split_ratio": stable.split_ratio, "stitched_novel": share}
                if seed == runs.seeds[0]:
                    kinds = genealogy(dec_a, dec_b, codes_a, codes_b)
                    traced.append({"from": arm, "to": arm, **pair, **kinds._asdict()})
    return widths, traced


def _next(seeds: list[int], seed: int) -> int:
    """The seed after this one, in a circle; this one only where there is no other."""
    return next((other for other in seeds if other > seed), seeds[0] if seeds[0] != seed else seeds[-1])


def _traced(read: Reader) -> Tensor:
    return torch.cat([part for part in _first(read(TRACED_ROWS), TRACED_ROWS)]).float()


def _coded(sae: SAE, rows: Tensor) -> tuple[Tensor, TokenCodes]:
    return sae.W_dec.cpu(), encode_sparse(sae, rows.split(batch_rows(sae)))


def _first(parts: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    for part in parts:
        yield part[:count]
        count -= len(part)
        if count <= 0:
            return
