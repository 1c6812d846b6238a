"""Score an SAE whose true features are known: what it has found, and where a parent falls silent under its child.

For a feature f, l(f) is the latent whose decoder row has the largest |cosine| with it. What is counted is over inputs
of known features, so there is no probe and no threshold of absorption: a hole is a hole. Matching and per-latent scores
are those of SynthSAEBench (sae_lens.synthetic, evals.py of SAELens 6), which has no measure of absorption; gap, merge,
suppression and events are this project's.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.sae.directions import unit_rows

MERGED = 0.1
"""Cosine of a child's row with its parent from which a hole counts as taken over by the child's latent."""


class FeatureScores(NamedTuple):
    """Of one SAE. Means over (parent, child) pairs or over features; NaN where there are none."""

    fvu: float
    l0: float
    dead: float
    """share of latents that never fire"""
    hole: float
    """share of the inputs with a child on which its parent's latent is silent"""
    weakened: float
    """one less the mean strength of the parent's latent on inputs with a child, over that without one: 1 where absorption is
    whole, between where a parent is coded in part, which holes do not see. Left out: pairs with one latent for both,
    and parents whose latent is silent even without a child"""
    gap: float
    """share of the parent's inputs without a child on which its latent fires, less that with this child: a latent that
    misses its parent everywhere has holes and no gap. Pairs with one latent for both are left out, as below"""
    absorbed: float
    """share of the inputs with a child on which the parent's latent is silent, the child's fires and carries
    the parent (merge of .1 or more)"""
    merge: float
    """cosine of the child's decoder row with the parent"""
    suppression: float
    """cosine of the parent's encoder row with the child: below 0 where the child switches the parent off"""
    shared: float
    """share of pairs with one latent for both"""
    parent_f1: float
    """F1 of a parent's latent as a detector of the parent: what holes may not be bought with"""
    mcc: float
    """mean |cosine| of rows and features matched one to one (Hungarian)"""
    recovered: float
    """share of features whose latent has a cosine of .95 or more"""
    uniqueness: float
    """distinct features that are some latent's nearest, over latents"""
    f1: float
    """mean over latents that fire of F1 for their nearest feature"""
    nearest_cos: float
    """mean over rows of the cosine to the nearest other row"""


RECOVERED = 0.95
"""Cosine from which a feature counts as recovered."""


class KnownInputs(NamedTuple):
    """Inputs of one seed, and the features that they are made of."""

    x: Float[Tensor, "n d_in"]
    sizes: Float[Tensor, "n features"]
    """of each feature on each input, 0 where it is off"""
    weight: Float[Tensor, " n"]
    """sums to 1"""
    features: Float[Tensor, "features d_in"]
    """their directions"""
    pairs: list[tuple[int, int]]
    """(parent, child)"""


class CodedInputs(NamedTuple):
    """What one SAE makes of these inputs."""

    codes: Float[Tensor, "n d_sae"]
    residual: Float[Tensor, "n d_in"]
    """input less reconstruction"""
    W_dec: Float[Tensor, "d_sae d_in"]
    """rows of norm 1"""
    encoder: Float[Tensor, "d_sae d_in"]


def score(known: KnownInputs, coded: CodedInputs) -> FeatureScores:
    """Judge one SAE by its codes of inputs whose features are known."""
    codes, W_dec, features = coded.codes, coded.W_dec.double(), known.features.double()
    fires, on, w = (codes > 0).double(), (known.sizes > 0).double(), known.weight.double()
    both = (fires * w[:, None]).T @ on  # [d_sae, features]: share of inputs with latent and feature
    fired, occurs = fires.T @ w, on.T @ w
    cosines = _cosines(W_dec, features)
    likeness = cosines.abs()
    latent_of, feature_of = likeness.argmax(0), likeness.argmax(1)
    f1 = 2 * both / (fired[:, None] + occurs).clamp_min(1e-300)  # of every latent for every feature
    x_mean = (known.x.double() * w[:, None]).sum(0)
    variance = ((known.x.double() - x_mean).square().sum(1) * w).sum()
    alive = fired > 0
    parents = sorted({parent for parent, _ in known.pairs})
    gram = _cosines(W_dec, W_dec).fill_diagonal_(-1)
    encoder_cosines = _cosines(coded.encoder.double(), features)
    return FeatureScores(
        fvu=float((coded.residual.double().square().sum(1) * w).sum() / variance),
        l0=float(fired.sum()),
        dead=float((~alive).double().mean()),
        **_pair_scores(codes.double(), on, w, latent_of, cosines, encoder_cosines, known.pairs),
        parent_f1=float(f1[latent_of[parents], parents].mean()) if parents else float("nan"),
        mcc=_matched_cosine(likeness),
        recovered=float((likeness.amax(0) >= RECOVERED).double().mean()),
        uniqueness=len(feature_of.unique()) / len(W_dec),
        f1=float(f1[torch.arange(len(W_dec)), feature_of][alive].mean()),
        nearest_cos=float(gram.amax(1).mean()),
    )


def _pair_scores(
    codes: Float[Tensor, "n d_sae"],
    on: Float[Tensor, "n features"],
    weight: Float[Tensor, " n"],
    latent_of: Int[Tensor, " features"],
    cosines: Float[Tensor, "d_sae features"],
    encoder_cosines: Float[Tensor, "d_sae features"],
    pairs: list[tuple[int, int]],
) -> dict[str, float]:
    holes, weaker, gaps, events, merges, suppressions, shared = [], [], [], [], [], [], []
    fires = (codes > 0).double()
    for parent, child in pairs:
        children = [c for p, c in pairs if p == parent]
        with_child = weight * on[:, parent] * on[:, child]
        alone = weight * on[:, parent] * (on[:, children].sum(1) == 0)
        if with_child.sum() == 0 or alone.sum() == 0:
            continue  # too rare for these inputs
        latent, other = latent_of[parent], latent_of[child]
        fires_with_child = (with_child @ fires[:, latent]) / with_child.sum()
        shared.append(float(latent == other))
        holes.append(1 - fires_with_child)
        merge = cosines[other, parent]
        taken = (1 - fires[:, latent]) * fires[:, other] if merge >= MERGED else torch.zeros_like(weight)
        events.append((with_child @ taken) / with_child.sum())
        if latent != other:
            gaps.append((alone @ fires[:, latent]) / alone.sum() - fires_with_child)
            whole = (alone @ codes[:, latent]) / alone.sum()
            if whole > 0:
                weaker.append(1 - (with_child @ codes[:, latent]) / with_child.sum() / whole)
            merges.append(merge)
            suppressions.append(encoder_cosines[latent, child])
    return {
        "hole": _mean(holes),
        "weakened": _mean(weaker),
        "gap": _mean(gaps),
        "absorbed": _mean(events),
        "merge": _mean(merges),
        "suppression": _mean(suppressions),
        "shared": _mean(shared),
    }


def _mean(values: list) -> float:
    return float(sum(values) / len(values)) if values else float("nan")


def _cosines(rows: Float[Tensor, "m d"], others: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    return unit_rows(rows) @ unit_rows(others).T


def _matched_cosine(cosines: Float[Tensor, "d_sae features"]) -> float:
    from scipy.optimize import linear_sum_assignment  # half a second's import

    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    return float(cosines.numpy()[rows, columns].mean())
