"""Gather arms into families that differ in one number alone: the coefficients of a penalty, values of one option."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sae_lm.penalties.arms import Arm

MOST_SPELLED = 4
"""Values that a family's name lists."""
NO_SCALE = ("penalty", "coefficient", "k", "decoder", "encoder")
"""Fields that no family differs in, but for the coefficient, which is looked at first. A control that is held at its
start is no weaker or stronger form of the arm that is free."""


class Family(NamedTuple):
    name: str
    """as the ladder is written: ``coactive:0.1/0.3@anchored``; of a single arm its name; without k, but where two
    rungs of one penalty have one L0"""
    number: str | None
    """what differs: ``coefficient`` or an option; None of a single arm"""
    arms: tuple[Arm, ...]
    """in the order of that number, its default first"""
    begins: Arm | None
    """the arm that a penalty's family has at coefficient 0, where it is another than the baseline and was trained"""


def families(arms: Sequence[Arm]) -> list[Family]:
    """Every arm is in one family: that of its coefficient, else of the first option in which others differ alone.

    arms: of one L0, without the baseline.
    """
    found: dict[int, Family] = {}
    left = list(arms)
    for field in ("coefficient", *(field for field in Arm._fields if field not in NO_SCALE)):
        default = Arm._field_defaults.get(field)
        groups: dict[Arm, list[Arm]] = {}
        for arm in left:
            if _is_number(getattr(arm, field)):
                groups.setdefault(arm._replace(**{field: 0.0 if field == "coefficient" else default}), []).append(arm)
        for group in groups.values():
            if len(group) > 1:
                in_order = sorted(group, key=_by_number(field, default))
                found[arms.index(group[0])] = Family(
                    _name(in_order, field), field, tuple(in_order), _zero(group[0], arms)
                )
                left = [arm for arm in left if arm not in group]
    for arm in left:
        found[arms.index(arm)] = Family(arm.family.name, None, (arm,), _zero(arm, arms))
    names = [family.name for family in found.values()]
    return [
        family._replace(name=f"{family.name}@k={family.arms[0].k}")
        if names.count(family.name) > 1 and family.arms[0].k is not None
        else family
        for family in (found[place] for place in sorted(found))
    ]


def _is_number(value: Any) -> bool:
    """Or nothing, which an option without a number is by default."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _by_number(field: str, default: Any) -> Callable[[Arm], tuple[bool, float]]:
    return lambda arm: (getattr(arm, field) != default, getattr(arm, field) or 0.0)


def _zero(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The arm's own architecture without its penalty; an architecture that is compared as an arm has none."""
    return arm.baseline if arm.penalty != "none" and arm.baseline in arms else None


def _name(in_order: Sequence[Arm], field: str) -> str:
    """The ladder's text; an arm that has the option at its default stands before it."""
    names = [arm.family.name for arm in in_order]
    given = [name for name in names if _spelled(name, field)]
    values = [_spelled(name, field) for name in given]
    if len(values) > MOST_SPELLED:
        values = [values[0], "…", values[-1]]
    before, after = f"@{field}=" if field != "coefficient" else ":", "/".join(values)
    ladder = given[0].replace(before + _spelled(given[0], field), before + after, 1)
    return " and ".join([*(name for name in names if name not in given), ladder])


def _spelled(name: str, field: str) -> str:
    """A number as it stands in an arm's name, or nothing."""
    head, *options = name.split("@")
    if field == "coefficient":
        return head.partition(":")[2]
    return next((value for option, _, value in (text.partition("=") for text in options) if option == field), "")
