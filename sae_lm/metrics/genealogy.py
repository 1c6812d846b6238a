"""What became of one SAE's latents in another: kept, split, merged, absorbed, novel or lost.

A is the SAE compared from (narrower, the baseline, another seed), B the one compared to. A cosine alone cannot tell
a piece of a latent from a copy, nor see what was absorbed; firing on the same tokens can.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.metrics.codes import TokenCodes
from sae_lm.metrics.dictionaries import match_rows
from sae_lm.sae.directions import unit_rows
from sae_lm.sae.nearest import NO_COSINE

KEPT = 0.6
"""Genealogy's cosine. Below 1 / sqrt(2), that of a sum of two equal orthogonal directions with either, so that what
merges or composes is within reach."""
INSIDE = 0.5
"""Share of a latent's tokens from which it counts as firing inside another, or another as silent on them."""
MIN_PARENT_COSINE = 0.1
"""Least cosine of an absorbing latent with the parent; SAEBench 0.6.0 gates by the same number."""

BLOCK = 1024
"""Latents of B whose products with all of A's codes are held at a time."""
Sparse = scipy.sparse.csc_array


class Genealogy(NamedTuple):
    threshold: float
    counts: dict[str, int]
    """kept, split, merged, absorbed, novel: latents of B; lost: latents of A"""
    trees: list[dict[str, Any]]
    """{"parent": latent of A, "children": [{"latent", "cos", "kind"}]}, those with most children first"""


def genealogy(
    W_dec_a: Float[Tensor, "m d_in"],
    W_dec_b: Float[Tensor, "n d_in"],
    codes_a: TokenCodes,
    codes_b: TokenCodes,
    threshold: float = KEPT,
    most_trees: int = 20,
    most_children: int = 12,
) -> Genealogy:
    """Where each latent of B comes from, by decoder cosine and by firing on the same tokens.

    Latents that do not fire on these tokens are left out. Firing *inside*: on tokens of which the other fires on at
    least half, and at least twice the other's share of all tokens (in a dense latent everything would lie). A latent
    of B is the first of these that holds:

    merged: the nearest, at the threshold or above, of two or more latents of A that each fire inside it.
    kept: it and a latent of A are each other's nearest, at the threshold or above; it is the other's counterpart.
    absorbed: it fires inside a latent of A, at a cosine of MIN_PARENT_COSINE or more, whose counterpart is silent on at least
        half of the tokens they share, and at least twice as often as on all of that latent's tokens. The parent is
        the one with the highest cosine among these.
    split: its nearest in A is at the threshold or above, and it fires inside it. Since it is not kept, that latent
        has another in B as near or nearer: it is then in two pieces or more.
    novel: none of these; no latent of A has both its direction and its tokens.

    A latent of A is lost if no latent of B is at the threshold or above. This project's own definitions; between
    two seeds of one arm they count what chance does.
    """
    fires_a, fires_b = ones(firing(codes_a)), ones(firing(codes_b))
    ids_a, ids_b = (np.flatnonzero(fires.sum(0)) for fires in (fires_a, fires_b))
    fires_a, fires_b = fires_a[:, ids_a], fires_b[:, ids_b]
    a, b = unit_rows(W_dec_a[torch.from_numpy(ids_a)].cpu()), unit_rows(W_dec_b[torch.from_numpy(ids_b)].cpu())
    counts = dict.fromkeys(("kept", "split", "merged", "absorbed", "novel", "lost"), 0)
    if not len(a) or not len(b):
        return Genealogy(threshold, counts | {"novel": len(b), "lost": len(a)}, [])
    kinds, edges, lost = origins(a, b, fires_a, fires_b, threshold)
    names, numbers = np.unique(kinds, return_counts=True)
    counts |= dict(zip(names.tolist(), numbers.tolist(), strict=True)) | {"lost": lost}
    trees = [
        {
            "parent": int(ids_a[parent]),
            "children": [
                {"latent": int(ids_b[child]), "cos": cosine, "kind": str(kinds[child])} for child, cosine in children
            ],
        }
        for parent, children in _largest_families(a, b, edges, most_trees, most_children)
    ]
    return Genealogy(threshold, counts, trees)


class Edges(NamedTuple):
    """Parents and children, one pair each; a merged latent has several parents."""

    parent: np.ndarray
    """row of A"""
    child: np.ndarray
    """row of B"""


def origins(a: Tensor, b: Tensor, fires_a: Sparse, fires_b: Sparse, threshold: float) -> tuple[np.ndarray, Edges, int]:
    """By the rules of `genealogy`: the kind of each row of B, its parents, and how many rows of A are lost."""
    match = match_rows(a, b)
    (near_b, of_a), (near_a, of_b) = ((n.cosine.numpy() >= threshold, n.row.numpy()) for n in match)
    every_a, every_b = np.arange(len(a)), np.arange(len(b))
    feeds = near_b & _inside(fires_a, fires_b[:, of_a])
    merged = np.bincount(of_a[feeds], minlength=len(b)) >= 2
    mutual = near_b & (of_b[of_a] == every_a)
    kept = np.zeros(len(b), dtype=bool)
    kept[of_a[mutual]] = True
    heir = np.flatnonzero(mutual)
    absorber_parent, absorbed = _absorbed(a, b, fires_a[:, heir], fires_b, heir, of_a[heir])
    split = near_a & _inside(fires_b, fires_a[:, of_b])
    kinds = np.select([merged, kept, absorbed, split], ["merged", "kept", "absorbed", "split"], "novel")
    parent = np.where(kinds == "absorbed", absorber_parent, of_b)
    single, several = np.isin(kinds, ["kept", "absorbed", "split"]), feeds & merged[of_a]
    edges = Edges(np.concatenate([parent[single], every_a[several]]), np.concatenate([every_b[single], of_a[several]]))
    return kinds, edges, int((~near_b).sum())


def _largest_families(
    a: Tensor, b: Tensor, edges: Edges, most: int, most_children: int
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """(parent, its nearest children with their cosines), for the parents with the most children, two at least."""
    cosines = (a[edges.parent] * b[edges.child]).sum(1).numpy()
    order = np.lexsort((edges.child, -cosines, edges.parent))
    sizes = np.bincount(edges.parent, minlength=len(a))
    largest = np.argsort(-sizes, kind="stable")[:most]
    for parent in largest[sizes[largest] > 1]:
        family = order[edges.parent[order] == parent][:most_children]
        yield int(parent), [(int(edges.child[e]), float(cosines[e])) for e in family]


def _inside(fires: Sparse, others: Sparse) -> np.ndarray:
    """Whether each latent fires inside the other of its column; see `genealogy`."""
    shared = fires.multiply(others).sum(0)
    return shared >= fires.sum(0) * _least_inside(others)


def _least_inside(others: Sparse) -> np.ndarray:
    """Share of a latent's tokens on which the other must fire."""
    return np.maximum(INSIDE, 2 * others.mean(0))  # entries are 1


def _absorbed(
    a: Tensor, b: Tensor, fires_a: Sparse, fires_b: Sparse, heir: np.ndarray, counterpart: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each latent of B a parent among ``heir``, the latents of A that have a counterpart; whether there is one."""
    alone = (fires_a - fires_a.multiply(fires_b[:, counterpart])).tocsc()  # the parent fires, its counterpart does not
    alone.eliminate_zeros()
    tokens_a = fires_a.sum(0)
    least_inside = _least_inside(fires_a)
    least_silent = np.maximum(INSIDE, 2 * alone.sum(0) / tokens_a)
    parent, best = np.zeros(len(b), dtype=np.int64), np.full(len(b), NO_COSINE)
    for first in range(0, len(b), BLOCK):
        part = fires_b[:, first : first + BLOCK]
        tokens_b = part.sum(0)
        i, j, silent = products(alone, part)
        shared = np.asarray((fires_a.T @ part).tocsr()[i, j])
        chosen = (shared >= least_inside[i] * tokens_b[j]) & (silent >= least_silent[i] * shared)
        i, j = heir[i[chosen]], j[chosen] + first
        cosine = (a[i] * b[j]).sum(1).numpy()
        order = np.argsort(cosine, kind="stable")  # the last one written is the highest
        parent[j[order]], best[j[order]] = i[order], cosine[order]
    return parent, best >= MIN_PARENT_COSINE


def firing(codes: TokenCodes) -> Sparse:
    """Strengths [tokens, latents] as a sparse matrix in float64."""
    return Sparse(codes.matrix().astype(np.float64))


def products(left: Sparse, right: Sparse) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of the entries of left.T @ right, ordered: where signs and patterns of two products are
    the same, so are their rows and columns."""
    product = (left.T @ right).tocsc()
    product.sort_indices()
    return product.indices, np.repeat(np.arange(product.shape[1]), np.diff(product.indptr)), product.data


def ones(matrix: Sparse) -> Sparse:
    """1 where the matrix has an entry."""
    return Sparse((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)
