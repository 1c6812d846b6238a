"""two SAEs of one hook -> which latents of one are in the other: matching, distinct features, stitching, co-firing.

A is the SAE compared from (narrower, the baseline, another seed), B the one compared to. Decoders are compared by
cosine, whatever their norms, and never as a whole matrix of cosines; firing by sparse products of codes of the
same tokens. Every figure has a floor: what two seeds of one arm give. Latents that do not fire are left out by the
caller, who gives rows of the living.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from sae_lm.metrics.codes import Codes, active, decode_active
from sae_lm.metrics.geometry import CELLS, cosine_tiles, nearest_below
from sae_lm.sae.directions import row_products, unit_rows
from sae_lm.sae.model import SAE

THRESHOLDS = (0.5, 0.6, 0.7, 0.8)
"""Cosines from which a latent of B counts as a child of one of A."""
STABLE = 0.7
"""Cosine from which a matched pair counts as one latent found twice (Paulo and Belrose 2025, 2501.16615)."""
HUNGARIAN = 4096
"""Latents up to which pairs are matched optimally."""
DISTINCT = 0.2
"""Cosine below which a latent has nothing like it in the other dictionary (OrtSAE, 2509.22033)."""
BLOCK = 1024
"""Latents of B whose products with all of A's codes are held at a time."""


Sparse = scipy.sparse.csc_array


# --- matching by decoder cosine


class Nearest(NamedTuple):
    cosine: Float[Tensor, " n"]
    row: Int[Tensor, " n"]
    """of the nearest among the others"""


class Match(NamedTuple):
    """Both directions of one search."""

    of_a: Nearest
    """for each row of A the nearest of B"""
    of_b: Nearest


@torch.no_grad()
def match_rows(a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"], cells: int = CELLS) -> Match:
    """Nearest by signed cosine, exact, in one pass of tiles; of equal ones the first. Of no rows none is the nearest:
    the cosine is then -1, the row -1."""
    a, b = as_unit(a), as_unit(b)
    if not len(a) or not len(b):
        rows = (torch.full((len(of),), -1, dtype=torch.long, device=a.device) for of in (a, b))
        return Match(*(Nearest(row.to(a.dtype), row) for row in rows))
    cosine, index = [], []
    best = a.new_full((len(b),), -2.0)
    where = torch.zeros(len(b), dtype=torch.long, device=a.device)
    for first, cosines in cosine_tiles(a, b, cells):
        found = cosines.max(1)
        cosine.append(found.values)
        index.append(found.indices)
        down = cosines.max(0)
        higher = down.values > best
        best, where = torch.where(higher, down.values, best), torch.where(higher, down.indices + first, where)
    return Match(Nearest(torch.cat(cosine), torch.cat(index)), Nearest(best, where))


def as_unit(rows: Tensor) -> Tensor:
    return unit_rows(rows if rows.dtype == torch.float64 else rows.float())


class Children(NamedTuple):
    """At one threshold, how the latents of A are found again in B (metrics of two widths, or arms, or seeds)."""

    threshold: float
    split_ratio: float
    """mean number of children per parent that has one; each latent of B is a child of its nearest in A"""
    novel: float
    """share of B without a parent"""
    lost: float
    """share of A without a latent of B at the threshold"""


def children(found: Match, thresholds: Sequence[float] = THRESHOLDS) -> list[Children]:
    """The curve over thresholds; NaN where no latent of A has a child."""
    curve = []
    for threshold in thresholds:
        child = found.of_b.cosine >= threshold
        parents = len(found.of_b.row[child].unique())
        curve.append(
            Children(
                threshold,
                split_ratio=int(child.sum()) / parents if parents else float("nan"),
                novel=float((~child).double().mean()),
                lost=float((found.of_a.cosine < threshold).double().mean()),
            )
        )
    return curve


class Stability(NamedTuple):
    share: float
    """share of the smaller dictionary matched at a cosine of STABLE or more"""
    mean_cos: float
    """mean cosine of the matched pairs"""
    method: str
    """hungarian, or mutual nearest"""


@torch.no_grad()
def seed_stability(
    a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"], threshold: float = STABLE, hungarian: int = HUNGARIAN
) -> Stability:
    """How much of one dictionary is in the other, each latent used once.

    Up to ``hungarian`` latents pairs are matched for the largest sum of cosines (Hungarian method). Beyond, a pair
    is two latents that are each other's nearest: fewer pairs, of the same kind, and the share is a little lower.
    """
    if max(len(a), len(b)) <= hungarian:
        cosines = (as_unit(a) @ as_unit(b).T).cpu().numpy()
        row, column = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
        matched, method = torch.from_numpy(cosines[row, column]).double(), "hungarian"
    else:
        of_a, of_b = match_rows(a, b)
        mutual = of_b.row[of_a.row] == torch.arange(len(a), device=of_a.row.device)
        matched, method = of_a.cosine[mutual].double(), "mutual nearest"
    share = int((matched >= threshold).sum()) / max(1, min(len(a), len(b)))
    return Stability(share, float(matched.mean()), method)


class Distinct(NamedTuple):
    """Latents that an arm has and another has not."""

    arm: str
    other: str
    share: float
    """share of the arm's latents with no cosine of DISTINCT or more to any latent of the other arm at another seed"""
    floor: float
    """the same between seeds of the arm itself: what training noise alone makes distinct; NaN with one seed"""
    share_same_seed: float
    """between arms at one seed, which start from the same weights: these resemble each other for that alone"""
    null: float
    """chance that a random direction counts as distinct. Where it is not near 1, chance neighbours hide what is
    distinct: the cosine is too low for so many latents in so few dimensions"""


def distinct_features(
    decoders: Mapping[str, Mapping[int, Float[Tensor, "_ d_in"]]], below: float = DISTINCT
) -> list[Distinct]:
    """For ordered pairs of arms; decoders[arm][seed] are the living rows. Means over all pairs of seeds.

    OrtSAE compares single SAEs, and counts seed noise as discovery; only a share above the floor is the arm's doing.
    """

    def mean(arm: str, other: str, same: bool) -> float:
        shares = [
            float((match_rows(rows, others).of_a.cosine < below).double().mean())
            for seed, rows in decoders[arm].items()
            for other_seed, others in decoders[other].items()
            if (seed == other_seed) == same
        ]
        return float(np.mean(shares)) if shares else float("nan")

    def null(other: str) -> float:
        sizes = [rows.shape for rows in decoders[other].values()]
        return float(np.mean([nearest_below(np.array([below]), m + 1, d_in) for m, d_in in sizes]))

    floors = {arm: mean(arm, arm, same=False) for arm in decoders}
    return [
        Distinct(arm, other, mean(arm, other, same=False), floors[arm], mean(arm, other, same=True), null(other))
        for arm in decoders
        for other in decoders
        if arm != other
    ]


# --- stitching


class Stitching(NamedTuple):
    """What each latent of B would do to the reconstruction of A."""

    change: Float[Tensor, " d_sae"]
    """mean over rows of the change in squared error, float64; 0 where the latent never fires"""
    fires: Bool[Tensor, " d_sae"]

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
    change, fires = torch.zeros(d_sae, dtype=torch.float64), torch.zeros(d_sae, dtype=torch.bool)
    squares = b.W_dec.square().sum(1)
    for x in batches:
        x = x.to(b.W_dec)
        z, latent = active(b, x)
        along = row_products(x - decode_active(a, *active(a, x)), b.W_dec, latent)
        terms = z.square() * squares[latent] - 2 * z * along
        change += torch.bincount(latent.flatten(), terms.flatten().double(), d_sae).cpu()
        fires[latent[z > 0].cpu()] = True
        rows += len(x)
    return Stitching(change / max(1, rows), fires)


class Roc(NamedTuple):
    threshold: float
    """latents of B with a lower cosine to their nearest in A are called novel"""
    auc: float
    """chance that a novel latent has a lower cosine than a reconstruction latent; .5: the cosine says nothing"""
    true_positive: float
    false_positive: float


def novelty_threshold(cosine: Float[Tensor, " n"], novel: Bool[Tensor, " n"]) -> Roc | None:
    """The cosine that tells novel latents best (largest true less false positive rate); None if all are of one kind.

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


# --- similarity by activations


def firing(codes: Codes) -> Sparse:
    """Strengths [tokens, latents] as a sparse matrix in float64."""
    on = codes.strength > 0
    row = on.nonzero()[:, 0].numpy()
    values = codes.strength[on].double().numpy()
    return Sparse((values, (row, codes.latent[on].numpy())), shape=(len(on), codes.d_sae))


class Alike(NamedTuple):
    """For each latent of B the most similar latent of A by activations; row -1 where none fires on its tokens."""

    either: Nearest
    """cosine over the tokens where either fires"""
    inside: Nearest
    """the larger of the cosines over the tokens where one of the two fires (Bricken et al. 2023)"""
    directed: Nearest
    """cosine over the tokens where the latent of B fires, times its largest strength over that of A's (2503.17547:
    a child whose parent fires with it and as strongly); it may exceed 1"""


def activation_similarity(a: Codes, b: Codes) -> Alike:
    """Cosines of strengths over tokens, from codes of the same tokens; only pairs that fire together are looked at."""
    left, right = firing(a), firing(b)
    norms_a, norms_b = (np.sqrt(matrix.power(2).sum(0)) for matrix in (left, right))
    peak_a, peak_b = (np.maximum(matrix.max(axis=0).toarray().ravel(), 1e-30) for matrix in (left, right))
    parts: list[list[Nearest]] = []
    for first in range(0, b.d_sae, BLOCK):
        part = right[:, first : first + BLOCK]
        (i, j, shared), (*_, squares_a), (*_, squares_b) = (
            products(left, part),
            products(left.power(2), ones(part)),
            products(ones(left), part.power(2)),
        )
        own_a, own_b = norms_a[i], norms_b[j + first]
        within_b = shared / (np.sqrt(squares_a) * own_b)
        scores = (
            shared / (own_a * own_b),
            np.maximum(within_b, shared / (own_a * np.sqrt(squares_b))),
            within_b * peak_b[j + first] / peak_a[i],
        )
        parts.append([_best(score, i, j, part.shape[1]) for score in scores])
    either, inside, directed = (
        Nearest(torch.cat([found.cosine for found in of]), torch.cat([found.row for found in of]))
        for of in zip(*parts, strict=True)
    )
    return Alike(either, inside, directed)


def products(left: Sparse, right: Sparse) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of the entries of left.T @ right, ordered: where signs and patterns of two products are
    the same, so are their rows and columns."""
    product = (left.T @ right).tocsc()
    product.sort_indices()
    return product.indices, np.repeat(np.arange(product.shape[1]), np.diff(product.indptr)), product.data


def ones(matrix: Sparse) -> Sparse:
    """1 where the matrix has an entry."""
    return Sparse((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)


def _best(score: np.ndarray, i: np.ndarray, j: np.ndarray, columns: int) -> Nearest:
    """Per column the highest score and its row; of equal ones the first."""
    order = np.lexsort((i, -score, j))
    column, first = np.unique(j[order], return_index=True)
    value, index = np.zeros(columns), np.full(columns, -1)
    value[column], index[column] = score[order][first], i[order][first]
    return Nearest(torch.from_numpy(value), torch.from_numpy(index))
