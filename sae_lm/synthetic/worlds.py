"""Worlds: features whose truth is known, how they come on together, and inputs made of them.

A world is a set of directions and a forest of depth two: roots come on by themselves, children with their parent
(of one parent's children one at most), or, where they stray, without it. Every input is the sum of what is on.
Directions are drawn anew for each seed, orthonormal or, in superposition, at random.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.runtime.seeds import derive
from sae_lm.sae.directions import unit_rows

MOST_LISTED = 12
"""Features up to which every combination can be listed, 4096 of them."""
HELD_OUT = 20_000
"""Inputs on which SAEs of a world that is not listed are judged."""


class World(NamedTuple):
    """What there is to find."""

    d_in: int
    parent: tuple[int | None, ...]
    """per feature; None for a root. A parent is a root and stands before its children"""
    probability: tuple[float, ...]
    """that a root is on; that a child is, given its parent"""
    stray: tuple[float, ...] | None = None
    """that a child is on without its parent; only of only children. None: 0"""
    spread: tuple[float, ...] | None = None
    """standard deviation of each feature's size, whose mean is 1; None: 0"""
    superposed: bool = False
    """random directions instead of orthonormal ones"""
    listed: bool = False
    """every input there is, weighted by its probability, instead of a sample: no noise from sampling"""

    @property
    def size(self) -> int:
        """features"""
        return len(self.parent)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(parent, child)"""
        return [(p, child) for child, p in enumerate(self.parent) if p is not None]


class Inputs(NamedTuple):
    """Some inputs by the features that make them, one set per seed."""

    sizes: Float[Tensor, "seeds n features"]
    """of each feature; 0 where it is off"""
    weight: Float[Tensor, " n"]
    """sums to 1"""


class Trees(NamedTuple):
    """Equal trees: roots, and children of which one at most is on with its root."""

    roots: int
    probability: float
    """that a root is on"""
    children: int
    """of each root"""
    child_probability: float
    """that a child is on, given its root"""


class Singles(NamedTuple):
    """Features that belong to no tree."""

    features: int = 0
    probability: float = 0.0


NO_SINGLES = Singles()


def forest(
    d_in: int, trees: Trees, singles: Singles = NO_SINGLES, superposed: bool = False, spread: float = 0.0
) -> World:
    """Trees and singles; a tree's features stand together, its root first."""
    parent: list[int | None] = []
    for _ in range(trees.roots):
        root = len(parent)
        parent += [None, *[root] * trees.children]
    size = len(parent) + singles.features
    return World(
        d_in=d_in,
        parent=(*parent, *[None] * singles.features),
        probability=(
            *[trees.probability if p is None else trees.child_probability for p in parent],
            *[singles.probability] * singles.features,
        ),
        spread=(spread,) * size if spread else None,
        superposed=superposed,
    )


def directions(world: World, seed: int) -> Float[Tensor, "features d_in"]:
    """One seed's unit directions."""
    generator = torch.Generator().manual_seed(derive("directions", seed))
    if world.superposed:
        return unit_rows(torch.randn(world.size, world.d_in, generator=generator))
    return torch.linalg.qr(torch.randn(world.d_in, world.size, generator=generator)).Q.T.contiguous()


def all_inputs(world: World, seeds: int) -> Inputs:
    """Every combination that has a probability, the same for each seed; for worlds whose sizes do not spread."""
    assert world.size <= MOST_LISTED and world.spread is None
    on = (torch.arange(2**world.size)[:, None] >> torch.arange(world.size)) & 1 == 1
    weight = torch.ones(len(on), dtype=torch.float64)
    probability = torch.tensor(world.probability, dtype=torch.float64)
    stray = torch.tensor(world.stray or (0.0,) * world.size, dtype=torch.float64)
    for root in (i for i, p in enumerate(world.parent) if p is None):
        weight *= torch.where(on[:, root], probability[root], 1 - probability[root])
        children = [child for p, child in world.pairs if p == root]
        if children:
            weight *= torch.where(
                on[:, root],
                _one_at_most(on[:, children], probability[children]),
                _one_at_most(on[:, children], stray[children]),
            )
    possible = weight > 0
    return Inputs(on[possible].float().expand(seeds, -1, -1), weight[possible].float())


def _one_at_most(on: Bool[Tensor, "n children"], probability: Float[Tensor, " children"]) -> Float[Tensor, " n"]:
    """Probability of these children's states, one of which is on at most."""
    one = (on * probability).sum(1)
    return torch.where(on.sum(1) == 0, 1 - probability.sum(), torch.where(on.sum(1) == 1, one, 0.0))


def some_inputs(world: World, n: int, generators: list[torch.Generator]) -> Inputs:
    """n inputs for each seed, drawn from its generator."""
    bounds = _bounds(world)
    sizes = torch.stack([_draw(world, bounds, n, generator) for generator in generators])
    return Inputs(sizes, torch.full((n,), 1 / n))


class _Bounds(NamedTuple):
    """A root is on where its own uniform number is within its bounds; the children of one parent share a number."""

    roots: list[int]
    children: list[int]
    parent: Int[Tensor, " children"]
    low: Float[Tensor, " features"]
    high: Float[Tensor, " features"]


def _bounds(world: World) -> _Bounds:
    roots = [i for i, p in enumerate(world.parent) if p is None]
    low, filled = torch.zeros(world.size), dict.fromkeys(range(world.size), 0.0)
    for p, child in world.pairs:
        low[child] = filled[p]
        filled[p] += world.probability[child]
    children = [child for _, child in world.pairs]
    parent = torch.tensor([p for p, _ in world.pairs], dtype=torch.long)
    return _Bounds(roots, children, parent, low, low + torch.tensor(world.probability))


def _draw(world: World, bounds: _Bounds, n: int, generator: torch.Generator) -> Float[Tensor, "n features"]:
    number = torch.rand(n, world.size, generator=generator)
    on = number < bounds.high  # roots, whose lower bound is 0
    if bounds.children:
        shared = torch.rand(n, world.size, generator=generator)[:, bounds.parent]
        within = (shared >= bounds.low[bounds.children]) & (shared < bounds.high[bounds.children])
        strays = torch.zeros_like(within)
        if world.stray is not None:
            strays = shared < torch.tensor(world.stray)[bounds.children]
        on[:, bounds.children] = torch.where(on[:, bounds.parent], within, strays)
    if world.spread is None:
        return on.float()
    sizes = 1 + torch.tensor(world.spread) * torch.randn(n, world.size, generator=generator)
    return on * sizes.clamp_min(0)


def inputs(world: World, seeds: int, n: int, purpose: Literal["held out", "moments"]) -> Inputs:
    """Inputs of a purpose that training does not see: all there are, or n for each seed."""
    if world.listed:
        return all_inputs(world, seeds)
    return some_inputs(world, n, [torch.Generator().manual_seed(derive(purpose, seed)) for seed in range(seeds)])
