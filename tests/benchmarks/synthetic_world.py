"""Rows of SAELens' synthetic worlds, fast enough for a CPU; needs sae-lens.

The world is SAELens' own: `build` makes a ``SyntheticModel`` of the published configuration. Two parts of it take hours
on one core and are done here in another way, to the same result. `make_incoherent` is the published orthogonalisation:
its objective, sum over pairs of cos^2, has a gradient by D^T D (39 GFLOP a step instead of 1,200). `Sampler` draws
what ``SyntheticModel.sample`` draws: a Gaussian copula of low rank, parents before children, one child at most where
children exclude each other. It keeps the 34 features that are on instead of 16,384 columns; measured: 1024 rows in .7 s
of a core, where SAELens takes 2.9. Tests compare both with SAELens' own on small worlds. SAEs are judged on rows that
SAELens' own sampler drew.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from safetensors.torch import load_file
from torch import Tensor

STEPS, LR = 100, 3e-4
"""Of the published orthogonalisation."""
AT_ONCE = 64
"""Rows drawn at once: their Gaussian numbers stay in a processor's cache."""


def build(
    features: int = 16_384, d_in: int = 768, roots: int = 128, vectors: Path | None = None, steps: int = STEPS
) -> SyntheticModel:
    """SynthSAEBench-16k by its published configuration and seed, or the same with other sizes.

    vectors: a file of the directions as an earlier call made them, which are then not made again.
    """
    config = SyntheticModelConfig(
        num_features=features,
        hidden_dim=d_in,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
        hierarchy=HierarchyConfig(
            total_root_nodes=roots,
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            mutually_exclusive_min_depth=0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=42,
    )
    model = SyntheticModel(config)
    directions = model.feature_dict.feature_vectors
    directions.data = load_file(vectors)["vectors"] if vectors else make_incoherent(directions.data, steps)
    return model


def make_incoherent(vectors: Tensor, steps: int = STEPS, lr: float = LR) -> Tensor:
    """[features, d_in] unit rows after the published steps of Adam on sum cos^2 + n sum (norm^2 - 1)^2."""
    rows = torch.nn.functional.normalize(vectors.clone(), dim=1)
    optimizer = torch.optim.Adam([rows], lr=lr)
    for _ in range(steps):
        squares = rows.square().sum(1, keepdim=True)
        off_diagonal = rows @ (rows.T @ rows) - squares * rows
        rows.grad = 4 * (off_diagonal + len(rows) * (squares - 1) * rows)
        optimizer.step()
    return torch.nn.functional.normalize(rows, dim=1)


class Tree(NamedTuple):
    """The forest by feature; -1 where there is none."""

    parent: np.ndarray
    depth: np.ndarray
    scaled: np.ndarray
    """whether a child's size is multiplied by its parent's over the parent's mean"""
    group: np.ndarray
    """children of one number exclude each other"""


def tree_of(model: SyntheticModel) -> Tree:
    count = model.cfg.num_features
    tree = Tree(*(np.full(count, -1) for _ in range(4)))
    tree.depth[:] = 0
    groups = iter(range(count))
    queue = [(root, -1, 0, False) for root in (model.hierarchy.roots if model.hierarchy else [])]
    while queue:
        node, parent, depth, scaled = queue.pop()
        feature = node.feature_index
        tree.parent[feature], tree.depth[feature], tree.scaled[feature] = parent, depth, scaled
        if node.mutually_exclusive_children:
            tree.group[[child.feature_index for child in node.children]] = next(groups)
        queue += [(child, feature, depth + 1, node.scale_children_by_parent) for child in node.children]
    return tree


class On(NamedTuple):
    """Features that are on, row by row."""

    row: np.ndarray
    feature: np.ndarray
    size: np.ndarray


class Sampler:
    """Draws rows of a world; a seed gives the same rows again."""

    def __init__(self, model: SyntheticModel, seed: int) -> None:
        generator = model.activation_generator
        assert generator.low_rank_correlation is not None and generator.correlation_thresholds is not None
        factor, spread = (part.numpy() for part in generator.low_rank_correlation)
        self.factor = np.ascontiguousarray((factor / spread[:, None]).T)
        self.threshold = generator.correlation_thresholds.numpy() / spread
        self.mean, self.deviation = (
            generator.mean_firing_magnitudes.numpy(),
            generator.std_firing_magnitudes.numpy(),
        )
        self.vectors, self.bias = model.feature_dict.feature_vectors.detach(), model.feature_dict.bias.detach()
        self.tree = tree_of(model)
        self.draw = np.random.default_rng(seed)
        self.features = len(self.mean)
        shape = (AT_ONCE, self.features)
        self.own, self.gaussian = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.on, self.sizes = np.empty(shape, bool), np.zeros(AT_ONCE * self.features, np.float32)

    def features_on(self, rows: int) -> On:
        """Of at most AT_ONCE rows."""
        own, gaussian, fires = self.own[:rows], self.gaussian[:rows], self.on[:rows]
        shared = self.draw.standard_normal((rows, len(self.factor)), dtype=np.float32)
        np.matmul(shared, self.factor, out=gaussian)
        gaussian += self.draw.standard_normal(out=own, dtype=np.float32)
        at = np.flatnonzero(np.greater(gaussian, self.threshold, out=fires))
        feature = at % self.features
        size = self.mean[feature] + self.deviation[feature] * self.draw.standard_normal(len(at), dtype=np.float32)
        size = np.maximum(size, 0)
        self.sizes[at] = size
        tree = self.tree
        depth, parent = tree.depth[feature], tree.parent[feature]
        for level in range(1, tree.depth.max() + 1):
            here = np.flatnonzero(depth == level)
            of_parent = self.sizes[at[here] - feature[here] + parent[here]]
            here, of_parent = here[of_parent > 0], of_parent[of_parent > 0]  # the rest cannot be on
            off = np.setdiff1d(np.flatnonzero(depth == level), here, assume_unique=True)
            off = np.concatenate([off, self._losers(here[size[here] > 0], at, feature)])
            factor = np.where(tree.scaled[feature[here]] > 0, of_parent / self.mean[parent[here]], 1)
            size[here] *= factor.astype(np.float32)
            size[off] = 0
            self.sizes[at[here]] = size[here]
            self.sizes[at[off]] = 0
        self.sizes[at] = 0
        on = size > 0
        return On(at[on] // self.features, feature[on], size[on])

    def _losers(self, entries: np.ndarray, at: np.ndarray, feature: np.ndarray) -> np.ndarray:
        """Of siblings that exclude each other and would all be on, all but one, drawn evenly."""
        group = self.tree.group[feature[entries]]
        entries, group = entries[group >= 0], group[group >= 0]
        family = at[entries] // self.features * self.features + group
        order = np.lexsort((self.draw.random(len(entries)), family))
        again = np.concatenate([[False], np.diff(family[order]) == 0])
        return entries[order][again]

    def rows(self, count: int) -> Iterator[Tensor]:
        """[up to AT_ONCE, d_in] float32 each."""
        for first in range(0, count, AT_ONCE):
            wanted = min(AT_ONCE, count - first)
            on = self.features_on(wanted)
            yield self.activations(on, wanted)

    def activations(self, on: On, rows: int) -> Tensor:
        starts = torch.from_numpy(np.searchsorted(on.row, np.arange(rows)))
        feature, size = torch.from_numpy(on.feature), torch.from_numpy(on.size)
        summed = torch.nn.functional.embedding_bag(feature, self.vectors, starts, mode="sum", per_sample_weights=size)
        return summed + self.bias


class Drawn(NamedTuple):
    """Rows that SAELens' own sampler drew, kept sparse; `sample` gives them again, as an ActivationGenerator would."""

    batches: list[Tensor]
    place: list[int]

    @classmethod
    def by_saelens(cls, model: SyntheticModel, rows: int, batch: int, seed: int) -> "Drawn":
        torch.manual_seed(seed)
        drawn = [model.activation_generator.sample(batch).to_sparse() for _ in range(rows // batch)]
        return cls(drawn, [0])

    def sample(self, batch_size: int) -> Tensor:
        batch = self.batches[self.place[0] % len(self.batches)].to_dense()
        self.place[0] += 1
        assert len(batch) == batch_size
        return batch


def facts(model: SyntheticModel) -> dict[str, Any]:
    """What there is in a world."""
    vectors = model.feature_dict.feature_vectors.detach()
    nearest = torch.cat([(part @ vectors.T).abs().topk(2, dim=1).values[:, 1] for part in vectors.split(512)])
    tree, sampler, batches = tree_of(model), Sampler(model, seed=0), 40
    often = np.bincount(
        np.concatenate([sampler.features_on(AT_ONCE).feature for _ in range(batches)]), minlength=len(vectors)
    )
    often = np.sort(often)[::-1] / (batches * AT_ONCE)
    return {
        "features": len(vectors),
        "on at once": float(often.sum()),
        "of these among the most frequent quarter": float(often[: len(often) // 4].sum()),
        "d_in": vectors.shape[1],
        "with a parent": int((tree.parent >= 0).sum()),
        "mean cosine to nearest": float(nearest.mean()),
    }
