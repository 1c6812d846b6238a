"""Attribute what a language model says to latents of SAEs: by gradients, by integrated gradients, or by ablation.

All three ask what a metric of the logits owes to one latent at one position, with the SAE's error left in place: the
model computes with x + decode(edited latents) - decode(latents). Ablation sets each latent that fires to 0 in turn,
which is exact and costs a forward pass each. Gradient times activation is its first-order estimate, of all latents in
one backward pass (attribution patching). Integrated gradients average the gradient on the way from no latents to all.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.interp.positions import Keep, kept_positions
from sae_lm.interp.splice import SAEs, SplicedSAE, place
from sae_lm.interp.steering import is_whole
from sae_lm.lm.bridge import FORWARD_KWARGS, replace_activation

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge

Metric: TypeAlias = "Callable[[Float[Tensor, 'batch pos d_vocab']], Tensor]"
"""Logits -> one number for each prompt [batch], or one number where there is one prompt."""
SAME = 1e-2
"""Difference, relative and absolute, up to which a metric or an activation is the same: other devices round otherwise."""
Edit = Callable[[Tensor], Tensor]
"""Latents [batch, pos, d_sae] -> latents to go on with."""


class Entry(NamedTuple):
    """What one latent at one position contributes to the metric."""

    hook: str
    prompt: int
    position: int
    latent: int
    activation: float
    attribution: float


@dataclass(frozen=True, eq=False)
class Attribution:
    """Attributions of all latents that fire at positions that are not left alone, the largest in size first."""

    method: str
    hooks: tuple[str, ...]
    """names of the SAEs' hooks, as they were given"""
    widths: tuple[int, ...]
    """d_sae of each"""
    shape: tuple[int, int]
    """prompts, positions"""
    metric: Float[Tensor, " batch"]
    """of the model as it is"""
    hook: Int[Tensor, " n"]
    """index into ``hooks``"""
    prompt: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]
    activation: Float[Tensor, " n"]
    attribution: Float[Tensor, " n"]
    """in units of the metric: about what it would lose without the latent there"""

    def __len__(self) -> int:
        return len(self.latent)

    def __repr__(self) -> str:
        return f"Attribution({self.method}, {len(self):,} latents at {', '.join(self.hooks)}, {self.shape[0]} prompts)"

    def top(self, count: int = 10) -> list[Entry]:
        """The entries of largest size."""
        count = _count("count", count, least=0)
        columns = (self.prompt, self.position, self.latent, self.activation, self.attribution)
        rows = zip(self.hook[:count].tolist(), *(column[:count].tolist() for column in columns), strict=True)
        return [Entry(self.hooks[hook], *rest) for hook, *rest in rows]

    def head(self, count: int) -> "Attribution":
        """The same with the entries of largest size alone."""
        return self._rows(torch.arange(min(_count("count", count, least=0), len(self))))

    def by_latent(self, hook: str | None = None) -> Float[Tensor, " d_sae"]:
        """Each latent's attribution, summed over prompts and positions. hook: which SAE, where there are several."""
        return self.dense(hook).sum((0, 1))

    def dense(self, hook: str | None = None) -> Float[Tensor, "batch pos d_sae"]:
        """Every latent's attribution at every position, 0 where it does not fire."""
        if hook is None and len(self.hooks) > 1:
            raise SaeError(f"there are SAEs at {', '.join(self.hooks)}; name one hook of them")
        number = self.hooks.index(hook) if hook in self.hooks else -1
        if hook is not None and number < 0:
            raise SaeError(f"no SAE is at hook {hook!r}; there are SAEs at {', '.join(self.hooks)}")
        number, out = max(number, 0), torch.zeros(*self.shape, self.widths[number])
        rows = self.hook == number
        out[self.prompt[rows], self.position[rows], self.latent[rows]] = self.attribution[rows]
        return out

    def _rows(self, rows: Tensor) -> "Attribution":
        columns = (self.hook, self.prompt, self.position, self.latent, self.activation, self.attribution)
        return Attribution(
            self.method, self.hooks, self.widths, self.shape, self.metric, *(column[rows] for column in columns)
        )


class Faithfulness(NamedTuple):
    """How far an attribution agrees with ablating each latent."""

    correlation: float
    """Pearson's; NaN for fewer than three entries, or where one of the two never varies"""
    attributed: Float[Tensor, " n"]
    ablated: Float[Tensor, " n"]


def attribute(
    model: "TransformerBridge",
    tokens: "str | Int[Tensor, 'batch pos'] | Int[Tensor, ' pos']",
    metric: Metric,
    saes: SAEs,
    *,
    method: Literal["gradient", "integrated", "ablation"] = "gradient",
    keep: Keep = "special",
    attention_mask: "Int[Tensor, 'batch pos'] | None" = None,
    steps: int = 16,
    of: Attribution | None = None,
    batch_size: int = 16,
) -> Attribution:
    """What a metric of the model's logits owes to each latent at each position.

    tokens: a prompt, or token ids. metric: logits [batch, pos, d_vocab] -> [batch], see ``logit_difference``.
    saes, keep: as in ``splice``. attention_mask: for padded prompts, of which a metric
        has to read each one's own last token (``position`` of `logit_difference`).
    method: "gradient": one forward and one backward pass. "integrated": ``steps`` of both for each SAE; the
        attributions of one SAE sum up to what the metric loses without all of its latents. "ablation": exact, a forward
        pass for each latent that fires (``batch_size`` of them at once).
    of: with "ablation", ablate the entries of this attribution of the same prompts only, such as
        ``attribution.head(50)``; it may be of another metric.

    With several SAEs a latent's attribution is that of all its effects, those by way of later SAEs' latents and errors
    included. Raises SaeError for a metric that does not give one number for each prompt, for an ``of`` of other
    prompts or SAEs or with another method, and for gradients in ``torch.inference_mode()``.
    """
    if method not in ("gradient", "integrated", "ablation"):
        raise SaeError(f"method is {method!r}, expected gradient, integrated or ablation")
    if of is not None and method != "ablation":
        raise SaeError(f"of names entries to ablate, method is {method!r}; give method='ablation', or leave of out")
    steps, batch_size = _count("steps", steps), _count("batch_size", batch_size)
    if method != "ablation" and torch.is_inference_mode_enabled():
        raise SaeError(
            f"method {method} needs gradients, which torch.inference_mode() rules out; call attribute outside of it, or give "
            "method='ablation'"
        )
    run = _Run(model, tokens, metric, saes, keep, attention_mask)
    if method == "ablation":
        found = run.firing(method) if of is None else _of_run(of, run)
        return _sorted(found, _ablated(run, found, batch_size), method)
    gradients = _gradients(run) if method == "gradient" else _integrated(run, steps)
    found = run.firing(method)
    parts = zip(found.hook.tolist(), found.prompt.tolist(), found.position.tolist(), found.latent.tolist(), strict=True)
    slope = torch.tensor([float(gradients[hook][prompt, position, latent]) for hook, prompt, position, latent in parts])
    return _sorted(found, slope * found.activation, method)


def faithfulness(
    model: "TransformerBridge",
    tokens: "str | Int[Tensor, 'batch pos'] | Int[Tensor, ' pos']",
    metric: Metric,
    saes: SAEs,
    attribution: Attribution,
    *,
    top: int = 50,
    keep: Keep = "special",
    attention_mask: "Int[Tensor, 'batch pos'] | None" = None,
    batch_size: int = 16,
) -> Faithfulness:
    """Correlation of the largest attributions with what ablating each of these latents does to the metric.

    All else is given as it was to ``attribute``. Raises SaeError for an attribution of other prompts, SAEs or another
    metric.
    """
    batch_size = _count("batch_size", batch_size)
    first = attribution.head(_count("top", top))
    run = _Run(model, tokens, metric, saes, keep, attention_mask)
    here = _of_run(first, run)
    if not torch.allclose(first.metric, here.metric, rtol=SAME, atol=SAME):
        raise SaeError(
            f"the attribution is of a metric that is {_few(first.metric)}, here it is {_few(here.metric)}; give the prompts "
            "and the metric that it was made with"
        )
    ablated = _ablated(run, here, batch_size)
    pair = torch.stack([first.attribution, ablated]).double()
    varies = len(first) > 2 and bool((pair.std(1) > 0).all())
    return Faithfulness(float(torch.corrcoef(pair)[0, 1]) if varies else float("nan"), first.attribution, ablated)


def _count(name: str, value: Any, least: int = 1) -> int:
    """Raises SaeError for what is no whole number from ``least`` on."""
    if not is_whole(value) or value < least:
        raise SaeError(f"{name} is {value!r}, expected a whole number from {least} on")
    return int(value)


def _of_run(found: Attribution, run: "_Run") -> Attribution:
    """The same entries with this run's metric and activations. Raises SaeError for one of other SAEs or prompts."""
    theirs = dict(zip(found.hooks, found.widths, strict=True))
    ours = {name: one.sae.config.d_sae for name, one in run.spliced.items()}
    if theirs != ours:
        told = (", ".join(f"{hook} with {width} latents" for hook, width in of.items()) for of in (theirs, ours))
        raise SaeError("the attribution is of SAEs at {}, given are {}; give the same".format(*told))
    if found.shape != tuple(run.tokens.shape):
        told = (f"{prompts} of {length} tokens" for prompts, length in (found.shape, tuple(run.tokens.shape)))
        raise SaeError("the attribution is of prompts {}, given are {}; give the same".format(*told))
    own = torch.empty_like(found.activation)
    for number, name in enumerate(found.hooks):
        rows = found.hook == number
        at = found.prompt[rows], found.position[rows], found.latent[rows]
        own[rows] = run.latents[name][at].float().cpu()
    other = (~torch.isclose(found.activation, own, rtol=SAME, atol=SAME)).nonzero().flatten()
    if len(other):
        entry = int(other[0])
        raise SaeError(
            f"latent {found.latent[entry]} has activation {found.activation[entry]:.4g} in the attribution at prompt "
            f"{found.prompt[entry]}, position {found.position[entry]}, here it is {own[entry]:.4g}; give the prompts, the "
            "SAEs and the positions left alone that it was made with"
        )
    return replace(found, metric=run.clean[0].float().cpu(), activation=own)


def _few(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:3].tolist()) + ", ..." * (len(values) > 3)


class _Run:
    """One set of prompts, run through the model with SAEs whose latents are edited."""

    def __init__(
        self, model: Any, tokens: Any, metric: Metric, saes: SAEs, keep: Any, attention_mask: Tensor | None
    ) -> None:
        self.model, self.metric, self.mask = model, metric, attention_mask
        tokens = model.to_tokens(tokens) if isinstance(tokens, str) else tokens
        if not isinstance(tokens, Tensor) or tokens.ndim not in (1, 2):
            got = f"of shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
            raise SaeError(
                f"tokens is {got}, expected a prompt or token ids [batch, pos]; several prompts: model.to_tokens(prompts), "
                "and where it pads them, in the metric each prompt's own last position"
            )
        self.tokens = tokens[None] if tokens.ndim == 1 else tokens
        self.spliced = {name: SplicedSAE(sae) for name, sae in place(model, saes).items()}
        self.latents: dict[str, Tensor] = {}  # 0 where activations are left alone
        self.kept: Tensor | None = None
        with ExitStack() as stack, torch.no_grad():
            marks = stack.enter_context(kept_positions(model, keep))
            for name in self.spliced:
                stack.enter_context(replace_activation(model, name, self._note(name, marks)))
            self.clean = self.values(self.logits(1), 1)
        self.latents = {name: self.latents[name] for name in self.spliced}  # hooks fire in the model's order

    def _note(self, name: str, marks: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor]:
        def note(x: Tensor) -> Tensor:
            z = self.spliced[name].at(x.device).encode(x.flatten(2))
            self.kept = marks(x)
            self.latents[name] = z if self.kept is None else z.masked_fill(self.kept.to(z.device)[..., None], 0.0)
            return x

        return note

    def logits(self, copies: int) -> Tensor:
        """[copies * prompts, pos, d_vocab]: the prompts so many times over."""
        mask = None if self.mask is None else self.mask.repeat(copies, 1)
        return self.model(self.tokens.repeat(copies, 1), attention_mask=mask, return_type="logits", **FORWARD_KWARGS)

    def values(self, logits: Tensor, copies: int) -> Float[Tensor, "copies batch"]:
        rows = []
        for part in logits.chunk(copies):
            value = self.metric(part)
            if isinstance(value, Tensor) and value.ndim == 0 and len(self.tokens) == 1:
                value = value[None]
            if not isinstance(value, Tensor) or value.shape != self.tokens.shape[:1]:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise SaeError(f"the metric gave {got}, expected one number for each of {len(self.tokens)} prompts")
            rows.append(value)
        return torch.stack(rows)

    def slope(self) -> Float[Tensor, ""]:
        """The metric, summed over prompts, as part of a graph. Raises SaeError where the metric left that."""
        value = self.values(self.logits(1), 1).sum()
        if not value.requires_grad:
            raise SaeError(
                "the metric has no gradient to the logits; leave out detach, argmax and no_grad there, or give "
                "method='ablation'"
            )
        return value

    @contextmanager
    def edited(self, edits: dict[str, Edit], copies: int = 1) -> Iterator[None]:
        """Inside the block these SAEs' latents are edited, and their errors stay in place."""

        def replaced(name: str, edit: Edit) -> Callable[[Tensor], Tensor]:
            def function(x: Tensor) -> Tensor:
                sae = self.spliced[name].at(x.device)
                flat = x.flatten(2).detach()
                z = sae.encode(flat)
                moved = sae.decode(edit(z), flat) - sae.decode(z, flat)
                if self.kept is not None:
                    moved = moved.masked_fill(self.kept.to(x.device).repeat(copies, 1)[..., None], 0.0)
                return x + moved.to(x.dtype).view(x.shape)

            return function

        with ExitStack() as stack:
            for name, edit in edits.items():
                stack.enter_context(replace_activation(self.model, name, replaced(name, edit)))
            yield

    def firing(self, method: str) -> Attribution:
        """Every latent that fires where activations are not left alone; attributions are 0."""
        columns: list[Tensor] = []
        for number, z in enumerate(self.latents.values()):
            place = (z > 0).nonzero().cpu()
            columns.append(torch.cat([torch.full((len(place), 1), number), place], 1))
        hook, prompt, position, latent = torch.cat(columns).unbind(1)
        strength = torch.cat(
            [z[tuple(rows[:, 1:].T)].float().cpu() for z, rows in zip(self.latents.values(), columns, strict=True)]
        )
        names, widths = tuple(self.spliced), tuple(one.sae.config.d_sae for one in self.spliced.values())
        shape = (len(self.tokens), self.tokens.shape[1])
        clean = self.clean[0].float().cpu()
        return Attribution(
            method, names, widths, shape, clean, hook, prompt, position, latent, strength, torch.zeros_like(strength)
        )


def _gradients(run: _Run) -> list[Tensor]:
    """The metric's gradient to each SAE's latents, in one backward pass for all."""
    offsets = {name: torch.zeros_like(z, requires_grad=True) for name, z in run.latents.items()}
    edits: dict[str, Edit] = {name: (lambda z, name=name: z + offsets[name]) for name in offsets}
    with torch.enable_grad(), run.edited(edits):
        return list(torch.autograd.grad(run.slope(), list(offsets.values())))


def _integrated(run: _Run, steps: int) -> list[Tensor]:
    """The mean gradient over latents scaled by 1/2n, 3/2n, ... of their own, one SAE after the other."""
    means = []
    for name, own in run.latents.items():
        total = torch.zeros_like(own)
        for step in range(steps):
            offset = torch.zeros_like(own, requires_grad=True)
            share = (step + 0.5) / steps
            with torch.enable_grad(), run.edited({name: lambda z, share=share, offset=offset: share * z + offset}):
                total += torch.autograd.grad(run.slope(), offset)[0]
        means.append(total / steps)
    return means


@torch.no_grad()
def _ablated(run: _Run, found: Attribution, copies: int) -> Float[Tensor, " n"]:
    """What the metric loses without each entry. Copy c of the prompts has the c-th entry of each prompt ablated."""
    out = torch.zeros(len(found), dtype=torch.float32)
    order = [(found.prompt == prompt).nonzero()[:, 0] for prompt in range(len(run.tokens))]
    for first in range(0, max(map(len, order), default=0), copies):
        turns = [rows[first : first + copies] for rows in order]
        count = max(map(len, turns))
        entry = torch.cat(turns)
        copy = torch.cat([torch.arange(len(rows)) for rows in turns])
        row = copy * len(run.tokens) + found.prompt[entry]
        edits = {}
        for number, name in enumerate(found.hooks):
            mine = found.hook[entry] == number
            if mine.any():
                edits[name] = _zero(row[mine], found.position[entry][mine], found.latent[entry][mine])
        with run.edited(edits, count):
            values = run.values(run.logits(count), count).float().cpu()
        out[entry] = run.clean[0].float().cpu()[found.prompt[entry]] - values[copy, found.prompt[entry]]
    return out


def _zero(*index: Tensor) -> Edit:
    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        z[index] = 0
        return z

    return edit


def _sorted(found: Attribution, attribution: Tensor, method: str) -> Attribution:
    order = attribution.abs().sort(descending=True, stable=True).indices
    columns = (found.hook, found.prompt, found.position, found.latent, found.activation, attribution)
    return Attribution(
        method, found.hooks, found.widths, found.shape, found.metric, *(column[order] for column in columns)
    )
