"""Decide which positions of a forward pass an SAE leaves alone: special tokens, named tokens, a mask, or none.

SAEs are trained on rows without special tokens. Those have activations of their own kind, often many times as long,
on which attention rests: a reconstruction in their place costs the model more than all others together.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lm.data.tokens import special_token_ids
from sae_lm.errors import SaeError
from sae_lm.lm.bridge import token_ids

Rule: TypeAlias = "Callable[[Int[Tensor, 'batch pos']], Bool[Tensor, 'batch pos']]"
Keep: TypeAlias = "Literal['special'] | Rule | Collection[int] | Bool[Tensor, 'batch pos'] | None"
"""What may be given as ``keep``; all but a mask fit forward passes of any shape."""

Marks: TypeAlias = "Callable[[Tensor], Bool[Tensor, 'batch pos'] | None]"
"""activation of the forward pass that is under way -> positions that are left alone"""

EXPECTED = '"special", token ids, a function of token ids, a boolean mask [batch, pos], or None for no position'


@contextmanager
def kept_positions(model: Any, keep: Any) -> Iterator[Marks]:
    """Inside the block, the function that is yielded tells which positions of the pass under way stay as they are.

    Raises SaeError for a ``keep`` that means nothing, and in a pass that a mask does not fit or that has no token ids.
    """
    if keep is None:
        yield lambda x: None
    elif isinstance(keep, Tensor):
        if keep.dtype != torch.bool:
            raise SaeError(f"keep is a tensor of dtype {keep.dtype}; expected {EXPECTED}")
        yield lambda x: _fitting(keep, x)
    else:
        rule = _rule(model, keep)
        with token_ids(model) as current:
            yield lambda x: _marked(rule, current(), x)


def special_ids(model: Any) -> list[int]:
    """Ids of the tokens that are no text, which have no rows in activation stores either: what the tokenizer calls
    special, chat marks among them. Without a tokenizer, BOS, EOS and padding of the model's configuration."""
    if model.tokenizer is not None:
        return sorted(special_token_ids(model.tokenizer))
    config = getattr(model.original_model, "config", None)
    ids: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        ids.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return sorted(ids)


def _rule(model: Any, keep: Any) -> Any:
    if callable(keep):
        return keep
    if isinstance(keep, str) and keep == "special":
        keep = special_ids(model)
    if isinstance(keep, str) or not isinstance(keep, Collection) or any(type(item) is not int for item in keep):
        raise SaeError(f"keep is {keep!r}; expected {EXPECTED}")
    ids = torch.tensor(sorted(keep), dtype=torch.long)
    return lambda tokens: torch.isin(tokens, ids.to(tokens.device))


def _marked(rule: Rule, tokens: Tensor | None, x: Tensor) -> Tensor:
    if tokens is None or tokens.shape != x.shape[:2]:
        got = "no token ids" if tokens is None else f"token ids of shape {tuple(tokens.shape)}"
        raise SaeError(
            f"keep needs the token ids of {tuple(x.shape[:2])} positions, this forward pass was given {got}; "
            "give keep as a boolean mask, or None to leave no position alone"
        )
    marks = rule(tokens)
    if not isinstance(marks, Tensor) or marks.dtype != torch.bool or marks.shape != tokens.shape:
        got = f"{marks.dtype} {tuple(marks.shape)}" if isinstance(marks, Tensor) else type(marks).__name__
        raise SaeError(f"the function given as keep returned {got}, expected a boolean tensor {tuple(tokens.shape)}")
    return marks


def _fitting(mask: Tensor, x: Tensor) -> Tensor:
    if mask.shape != x.shape[:2]:
        raise SaeError(
            f"keep has shape {tuple(mask.shape)}, the forward pass has {tuple(x.shape[:2])}; a mask fits passes of one "
            'shape, so for generation give keep="special", token ids, or a function of token ids'
        )
    return mask
