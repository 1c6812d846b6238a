"""SAE beside SAE -> what the one has of the other: at another seed, in another arm.

SAEs are loaded as they are asked for, two at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sae_lm.evaluating import batch_rows
from sae_lm.metrics.codes import Codes, encode_sparse
from sae_lm.metrics.dictionaries import DISTINCT, match_rows, seed_stability
from sae_lm.metrics.genealogy import genealogy
from sae_lm.progress import Progress
from sae_lm.runs import Key, Runs
from sae_lm.verdicts import read_arm

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
    difference between the two is what the arm adds to the noise of training.
    """
    if len(runs.seeds) < 2:
        return

    def rows(arm: str, seed: int) -> Tensor:
        W_dec = runs.of[arm, seed].load(device).W_dec
        return W_dec[alive[arm, seed]]

    with Progress("between seeds", len(runs.of), "SAE") as bar:
        for place, seed in enumerate(runs.seeds):
            other = runs.seeds[(place + 1) % len(runs.seeds)]
            for arm in runs.arms:
                k = read_arm(arm).k
                base = next((rung for rung in ladder if read_arm(rung).k == k), ladder[0])
                mine = rows(arm, seed)
                apart = match_rows(mine, rows(base, other)).of_a.cosine < DISTINCT
                figures[arm, seed] |= {
                    "seed_stability": seed_stability(mine, rows(arm, other)).share,
                    "distinct": float(apart.double().mean()),
                }
                bar.update(1)


def genealogies(runs: Runs, read: Reader, device: str) -> list[dict[str, Any]]:
    """From the baseline to every arm at the first seed, and to itself at the second."""
    rows = torch.cat([part for part in _first(read(TRACED_ROWS), TRACED_ROWS)]).float()

    def coded(arm: str, seed: int) -> tuple[Tensor, Codes]:
        sae = runs.of[arm, seed].load(device)
        return sae.W_dec.cpu(), encode_sparse(sae, rows.split(batch_rows(sae)))

    base, told = runs.arms[0], []
    W_dec, codes = coded(base, runs.seeds[0])
    pairs = [(arm, runs.seeds[0]) for arm in runs.arms[1:]] + [(base, seed) for seed in runs.seeds[1:2]]
    with Progress("what became of latents", len(pairs), "pair") as bar:
        for arm, seed in pairs:
            other, other_codes = coded(arm, seed)
            found = genealogy(W_dec, other, codes, other_codes)
            told.append({"from": base, "to": arm, "seed": runs.seeds[0], "to_seed": seed, **found._asdict()})
            bar.update(1)
    return told


def _first(parts: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    for part in parts:
        yield part[:count]
        count -= len(part)
        if count <= 0:
            return
