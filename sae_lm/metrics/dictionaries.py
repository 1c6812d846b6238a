"""Compare two SAEs of one hook: which latents of one are in the other, by matching decoder rows and by stitching.

A is the SAE compared from (narrower, the baseline, another seed), B the one compared to. Decoders are compared by
cosine, whatever their norms, and in tiles of the matrix of cosines. Every figure has a floor: what
two seeds of one arm give. Latents that do not fire are left out by the caller, who gives rows of the living.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from sae_lm.metrics.codes import active, decode_active
from sae_lm.metrics.geometry import CELLS, tile_rows
from sae_lm.sae.directions import row_products, unit_rows
from sae_lm.sae.model import SAE
from sae_lm.sae.nearest import NO_COSINE, cosine_tiles

THRESHOLDS = (0.5, 0.6, 0.7, 0.8)
"""Cosines from which a latent of B counts as a child of one of A."""
STABLE = 0.7
"""Cosine from which a matched pair counts as one latent found twice (Paulo and Belrose 2025, 2501.16615)."""
HUNGARIAN = 4096
"""Latents up to which pairs are matched optimally."""
DISTINCT = 0.2
"""Cosine below which a latent has nothing like it in the other dictionary (OrtSAE, 2509.22033)."""


# --- matching by decoder cosine


class Nearest(NamedTuple):
    cosine: Float[Tensor, " n"]
    row: Int[Tensor, " n"]
    """of the nearest among the others"""


class NearestBothWays(NamedTuple):
    """Both directions of one search."""

    of_a: Nearest
    """for each row of A the nearest of B"""
    of_b: Nearest


@torch.no_grad()
def match_rows(a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"], cells: int = CELLS) -> NearestBothWays:
    """Nearest by signed cosine, exact, in one pass of tiles; of equal ones the first. Of no rows none is the nearest:
    the cosine is then -1, the row -1."""
    a, b = unit_rows(a), unit_rows(b)
    if not len(a) or not len(b):
        rows = (torch.full((len(some),), -1, dtype=torch.long, device=a.device) for some in (a, b))
        return NearestBothWays(*(Nearest(row.to(a.dtype), row) for row in rows))
    cosine, index = [], []
    best = a.new_full((len(b),), NO_COSINE)
    where = torch.zeros(len(b), dtype=torch.long, device=a.device)
    for first, cosines in cosine_tiles(a, b, tile_rows(len(b), cells)):
        nearest = cosines.max(1)
        cosine.append(nearest.values)
        index.append(nearest.indices)
        down = cosines.max(0)
        higher = down.values > best
        best, where = torch.where(higher, down.values, best), torch.where(higher, down.indices + first, where)
    return NearestBothWays(Nearest(torch.cat(cosine), torch.cat(index)), Nearest(best, where))


class SplitAtThreshold(NamedTuple):
    """At one threshold, how the latents of A are found again in B (metrics of two widths, or arms, or seeds)."""

    threshold: float
    split_ratio: float
    """mean number of children per parent that has one; each latent of B is a child of its nearest in A"""
    novel: float
    """share of B without a parent"""
    lost: float
    """share of A without a latent of B at the threshold"""


def split_curve(nearest: NearestBothWays, thresholds: Sequence[float] = THRESHOLDS) -> list[SplitAtThreshold]:
    """The curve over thresholds; NaN where no latent of A has a child."""
    curve = []
    for threshold in thresholds:
        child = nearest.of_b.cosine >= threshold
        parents = len(nearest.of_b.row[child].unique())
        curve.append(
            SplitAtThreshold(
                threshold,
                split_ratio=int(child.sum()) / parents if parents else float("nan"),
                novel=float((~child).double().mean()),
                lost=float((nearest.of_a.cosine < threshold).double().mean()),
            )
        )
    return curve


class Matched(NamedTuple):
    """Pairs of one latent each, every latent used once."""

    row: Int[Tensor, " pairs"]
    """of A"""
    column: Int[Tensor, " pairs"]
    """of B"""
    cosine: Float[Tensor, " pairs"]
    """float64"""


def stability(matched: Matched, lengths: tuple[int, int], threshold: float = STABLE) -> float:
    """How much of one dictionary is in the other: pairs at the threshold or above, over the smaller's latents.

    matched: by `match_one_to_one`. lengths: latents of the two.
    """
    return int((matched.cosine >= threshold).sum()) / max(1, min(lengths))


def stable_signal(matched: Matched, signal: Float[Tensor, " n"], threshold: float = STABLE) -> float:
    """The part of A's signal that latents with a partner in B carry, at the threshold or above; NaN without a signal.

    signal: of each latent of A (`sae_lm.metrics.codes.mean_square_strength`). Latents that seeds do not share carry
    little of it (2606.12138), so that this is higher than the plain share once SAEs are trained.
    """
    whole = float(signal.double().sum())
    found = matched.row[matched.cosine >= threshold].to(signal.device)
    return float(signal.double()[found].sum()) / whole if whole > 0 else float("nan")


@torch.no_grad()
def match_one_to_one(a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"], hungarian: int = HUNGARIAN) -> Matched:
    """Match each latent of A to at most one of B.

    Up to ``hungarian`` latents pairs are matched for the largest sum of cosines (Hungarian method). Beyond, a pair
    is two latents that are each other's nearest: fewer pairs, of the same kind, and fewer of them at any cosine.
    """
    if not len(a) or not len(b):
        none = torch.zeros(0, dtype=torch.long)
        return Matched(none, none, none.double())
    if max(len(a), len(b)) <= hungarian:
        cosines = (unit_rows(a) @ unit_rows(b).T).cpu().numpy()
        row, column = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
        return Matched(torch.from_numpy(row), torch.from_numpy(column), torch.from_numpy(cosines[row, column]).double())
    of_a, of_b = match_rows(a, b)
    mutual = (of_b.row[of_a.row] == torch.arange(len(a), device=of_a.row.device)).nonzero().flatten()
    return Matched(mutual, of_a.row[mutual], of_a.cosine[mutual].double())


# --- stitching


class Stitching(NamedTuple):
    """What each latent of B would do to the reconstruction of A."""

    change: Float[Tensor, " d_sae"]
    """mean over rows of the change in squared error, float64; 0 where the latent never fires"""

    @property
    def novel(self) -> Bool[Tensor, " d_sae"]:
        """Those that help: A lacks them. The other latents that fire are variants of what A has: reconstruction latents."""
        return self.change < 0


@torch.no_grad()
def stitch(a: SAE, b: SAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Stitching:
    """Insert each latent of B alone into A (Leask et al. 2025, 2502.04878), with its own encoder, bias and decoder.

    A's code stays as it is, and the latent's activation in B, times its decoder row, is added to A's reconstruction.
    Where latents compete (topk, and the thresholds of batchtopk) that is the latent as B uses it: it fires where
    it does in B, and takes no place from A's. With e = x - x_hat_A the squared error changes by
    -2 z_j e.d_j + z_j^2 ||d_j||^2, exact, for all latents at once.
    """
    d_sae, rows = b.config.d_sae, 0
    change = torch.zeros(d_sae, dtype=torch.float64)
    squares = b.W_dec.square().sum(1)
    for x in batches:
        x = x.to(b.W_dec)
        z, latent = active(b, x)
        along = row_products(x - decode_active(a, *active(a, x), x), b.W_dec, latent)
        terms = z.square() * squares[latent] - 2 * z * along
        change += torch.bincount(latent.flatten(), terms.flatten().double(), d_sae).cpu()
        rows += len(x)
    return Stitching(change / max(1, rows))


class Roc(NamedTuple):
    threshold: float
    """latents of B with a lower cosine to their nearest in A are called novel"""
    auc: float
    """chance that a novel latent has a lower cosine than a reconstruction latent; .5: the cosine says nothing"""
    true_positive: float
    false_positive: float


def novelty_threshold(cosine: Float[Tensor, " n"], novel: Bool[Tensor, " n"]) -> Roc | None:
    """The cosine that separates novel latents best (largest true less false positive rate); None if all are of one kind.

    cosine: to the nearest in A, of latents that fire. novel: by stitching.
    """
    if novel.all() or not novel.any():
        return None
    truth, score = novel.cpu().numpy(), -cosine.double().cpu().numpy()
    false, true, levels = roc_curve(truth, score, drop_intermediate=False)
    best = int((true - false).argmax())
    lower = score[score < levels[best]]
    # between the last that is called novel and the first that is not
    threshold = -(levels[best] + lower.max()) / 2 if len(lower) else np.inf
    return Roc(float(threshold), float(roc_auc_score(truth, score)), float(true[best]), float(false[best]))
