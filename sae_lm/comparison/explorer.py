"""Choose which SAEs the report's explorer shows side by side, and collect what it shows of them, concept by concept."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from sae_lm.comparison.evaluate import rows_decoded
from sae_lm.comparison.evaluation_set import EvaluationSet
from sae_lm.comparison.matching import is_equal_l0
from sae_lm.data.store import Store
from sae_lm.metrics.absorption_events import Children, View, children, explore
from sae_lm.metrics.codes import TokenCodes
from sae_lm.metrics.splitting import Split
from sae_lm.penalties.arms import Arm
from sae_lm.sae.model import SAE

MOST_SHOWN = 4
"""Arms side by side in the explorer, at most."""


class ShownSae(NamedTuple):
    """What the explorer needs of one SAE."""

    W_dec: Tensor
    codes: list[TokenCodes]
    """of every concept set"""
    splits: list[Split]
    """of every concept in use"""
    children: list[Children]
    """of every concept set"""
    rows: list[Float[Tensor, "n d_in"]]
    """of every concept set, as its decoder rebuilds them"""


def is_shown(arm: Arm, rung: Arm, ladder: Sequence[Arm], l0: Mapping[Arm, float]) -> bool:
    """Whether the explorer shows an arm beside this rung of the baseline: the rung itself, and arms of its k or L0."""
    if arm in ladder:
        return arm == rung
    return arm.k == rung.k or is_equal_l0(l0[arm], l0[rung])


def keep_for_explorer(
    sae: SAE, codes: list[TokenCodes], splits: list[Split], evaluation_set: EvaluationSet
) -> ShownSae:
    """codes, splits: as `sae_lm.comparison.evaluate` has them of this SAE."""
    sets = [
        children(codes_of_set, concepts.rows.token_id[: len(codes_of_set)], concepts.rows.child)
        for codes_of_set, concepts in zip(codes, evaluation_set.sets, strict=True)
    ]
    rows = [rows_decoded(sae, concepts.rows.x) for concepts in evaluation_set.sets]
    return ShownSae(sae.W_dec.cpu(), codes, splits, sets, rows)


def explorer_entries(
    store: Store, evaluation_set: EvaluationSet, shown: Mapping[Arm, ShownSae], common: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """The report's "explorer": one entry for each concept whose rows are known by place, at one seed.

    common: how many main latents every SAE gets, per concept.
    """
    entries = []
    for number, (candidates, k) in enumerate(zip(evaluation_set.candidates, common, strict=True)):
        rows = evaluation_set.sets[candidates.set].rows
        if rows.row is None:
            continue
        views = {
            arm.name: View(
                sae.codes[candidates.set],
                sae.rows[candidates.set],
                sae.W_dec,
                sae.splits[number].ranking[:k],
                sae.children[candidates.set],
            )
            for arm, sae in shown.items()
        }
        events = explore(store, views, rows.token_id, rows.row, candidates.rows, candidates.probe.weight)
        entries.append({"concept": candidates.probe.name, "seed": seed, **events})
    return entries
