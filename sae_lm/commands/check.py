"""sae-lm check: is an SAE loaded right, and does it belong to this model and hook?

Its reconstruction is measured on real text and held to what its files claim. Then the usual mistakes of loading are
tried on the same activations (`sae_lm.metrics.fit`), and a sentence says what fits best.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sae_lm.data.manifest import MANIFEST
from sae_lm.data.recipe import model_of
from sae_lm.data.store import Store, open_store
from sae_lm.data.text import Text, open_text
from sae_lm.errors import SaeError, SettingsError
from sae_lm.fields import with_home
from sae_lm.interp.max_activating import same_model
from sae_lm.interp.value_biases import refuse_stored
from sae_lm.lm.device_map import input_device
from sae_lm.metrics.contexts import Contexts, contexts_of
from sae_lm.metrics.fit import POOR, Fit, find_fit
from sae_lm.metrics.language_model import CrossEntropy, HeldOutText, cross_entropies, looks_ahead
from sae_lm.pages.fit import fit_html, fit_text
from sae_lm.runtime.device import pick_device
from sae_lm.sae.load import load
from sae_lm.sae.model import SAE
from sae_lm.settings import CheckSettings
from sae_lm.training.recipe import aimed_k

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge

CONTEXTS_AT_ONCE, TOKENS_AT_ONCE = 16, 4096
"""Of one forward pass, at most: a bridge's attention holds contexts x heads x tokens x tokens numbers."""
LOSS_CONTEXTS = 64
"""Contexts for the cross-entropy, at most."""
NEAR_L0 = 1.5
"""Factor from the L0 that is claimed up to which a measured one agrees: texts differ."""
NOTICED = 0.98
"""Share of the FVU as loaded below which a change is remarked."""
SAME_MODEL = 0.05
"""Relative difference between stored and recomputed rows up to which the models are one; bfloat16 rows differ by .004."""
SUMMED = "figures are summed in"
"""What needs float64, for the message of a device without it."""


class Check(NamedTuple):
    """What ``sae_lm.check`` found. ``str`` of it is the report of ``sae-lm check``; notebooks show a table."""

    sae: SAE
    hook: str
    rows: int
    """token positions measured, without special tokens"""
    fit: Fit
    """FVU, L0, dead share and norms as loaded, and of every change that was tried"""
    losses: CrossEntropy | None
    """cross-entropy and KL divergence with the SAE in place, as in ``compare``; None without a model that
    predicts the next token"""
    claims: list[tuple[str, str, str, bool]]
    """(what, as the files claim, as measured, whether they agree)"""
    verdict: str
    """a sentence: loaded right, or what fits better"""
    remarks: list[str]

    @property
    def fits(self) -> bool:
        """Nothing that was tried is better, FVU is not poor, and what the files claim is so."""
        return not self.fit.best.changes and self.fit.loaded.fvu < POOR and all(agrees for *_, agrees in self.claims)

    def __str__(self) -> str:
        return fit_text(self)

    def _repr_html_(self) -> str:
        return fit_html(self)


def check(
    model: "TransformerBridge | None",
    sae: SAE,
    source: "Store | Text | str | Path | Sequence[str]" = "embedded",
    *,
    hook: str | None = None,
    tokens: int = 8_192,
    context_size: int | None = None,
) -> Check:
    """Measure an SAE on activations, and try whether another way of loading it would fit them better.

    model: a TransformerBridge; None: the store's rows alone, without cross-entropy and other hooks.
    source: an activation store or its folder; or text: a string, several, or what ``sae-lm cache`` takes (a file, a
        data set). A string that reads like a path or a hub id is one, though nothing is there; in a list it is text.
    hook: in place of the SAE's own.
    tokens: positions to measure, at most.
    context_size: tokens per context of a text; default: as the SAE was trained, else 128, at most what the model takes.

    A text is cut into contexts as ``sae-lm cache --no-pack`` does, with a BOS unless the SAE was trained without.

    Raises SaeError where the SAE does not fit the model's or the store's width, ModelError and StoreError for a hook
    that is not there, SettingsError for a source that is no text, for contexts that are too long for the model or of a
    store, which has its own, and for a device without float64.
    """
    from sae_lm.interp.splice import expect, place

    expect(model, sae)
    for device in {sae.W_dec.device} if model is None else {sae.W_dec.device, input_device(model)}:
        pick_device(str(device), float64_for=SUMMED)
    name = hook or sae.config.metadata.get("hook_name")
    if not name:
        raise SaeError("this SAE does not say which hook it belongs to; give hook='blocks.N.hook_out' (--hook)")
    source = _opened(source, context_size)
    store = source if isinstance(source, Store) else None
    remarks: list[str] = []
    losses = None
    with torch.no_grad():
        if model is None:
            if store is None:
                raise SettingsError("check needs a language model to read text with; give one, or an activation store")
            rows = _stored_rows(store, sae, str(name), tokens)
        else:
            (sae,) = place(model, {str(name): sae}).values()  # raises where hook or width do not fit
            contexts = contexts_of(model, source, tokens, context_size, sae.config.metadata)
            rows = _model_rows(model, sae, str(name), contexts)
            if looks_ahead(model, contexts.tokens[0]):
                remarks.append(
                    "Cross-entropy is left out: this model's predictions change with tokens that come after them."
                )
            else:
                losses = _losses(model, sae, str(name), contexts)
            remarks += _other_model(model, sae, contexts)
            if store is not None:
                remarks += _other_rows(store, rows, str(name))
        fit = find_fit(sae, rows)
    claims = _claims(sae, fit)
    verdict = _verdict(fit, losses, claims)
    remarks += _a_little_better(fit)
    return Check(sae, str(name), len(next(iter(rows.values()))), fit, losses, claims, verdict, remarks)


# --- activations


def _opened(source: Any, context_size: int | None = None) -> Any:
    """A folder that is a store as a store: its manifest is no text to measure on. Raises StoreError, SettingsError."""
    if isinstance(source, str | Path):
        path = with_home(source)
        if path.startswith("hf://") or os.path.isfile(os.path.join(path, MANIFEST)):
            source = open_store(path)
    if isinstance(source, Store) and context_size is not None:
        raise SettingsError("context_size is of no use with a store, whose contexts are cut; leave it out")
    return source


def _stored_rows(store: Store, sae: SAE, name: str, tokens: int) -> dict[str, Tensor]:
    """From the store's end, which training holds out. Raises StoreError, SaeError."""
    refuse_stored(sae)
    own = store.hook(_canonical(name))
    if store.hooks[own] != sae.config.d_in:
        raise SaeError(f"this SAE has d_in {sae.config.d_in}, the store's {own} has width {store.hooks[own]}")
    start = max(0, len(store) - tokens)
    others = [other for other, width in store.hooks.items() if other != own and width == sae.config.d_in]
    return {hook: store.rows(hook, start).to(sae.W_enc) for hook in (own, *others)}


def _model_rows(model: Any, sae: SAE, name: str, contexts: Contexts) -> dict[str, Tensor]:
    """Where -> rows [n, d_in] of the positions that are not special: the SAE's hook, its neighbours, without BOS."""
    from sae_lm.lm.bridge import resolve_hook

    own = resolve_hook(model, name)
    wanted = ~contexts.special
    mask = torch.ones_like(wanted) if contexts.mask is None else contexts.mask
    rows = _activations(model, [own, *_neighbours(model, own)], contexts.tokens, wanted, mask, sae)
    if contexts.bos and contexts.tokens.shape[1] > 2:
        shorter = _activations(model, [own], contexts.tokens[:, 1:], wanted[:, 1:], mask[:, 1:], sae)
        rows["contexts without their BOS"] = shorter[own]
    return rows


def _neighbours(model: Any, own: str) -> list[str]:
    """Hooks that are mistaken for this one: of the blocks before and after, and inside its own."""
    found = re.fullmatch(r"blocks\.(\d+)\..+", own)
    if not found:
        return []
    layer = int(found[1])
    inside = ("hook_in", "hook_resid_mid", "hook_attn_out", "hook_mlp_out", "hook_out")
    names = [
        f"blocks.{layer - 1}.hook_out",
        *(f"blocks.{layer}.{hook}" for hook in inside),
        f"blocks.{layer + 1}.hook_out",
    ]
    if layer > 0:
        names.remove(f"blocks.{layer}.hook_in")  # the output of the block before
        own = f"blocks.{layer - 1}.hook_out" if own == f"blocks.{layer}.hook_in" else own
    return [name for name in names if name in model.hook_dict and name != own]


def _activations(
    model: Any, names: Sequence[str], tokens: Tensor, wanted: Tensor, mask: Tensor, sae: SAE
) -> dict[str, Tensor]:
    from sae_lm.lm.bridge import FORWARD_KWARGS

    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    seen: dict[str, Tensor] = {}
    device = input_device(model)

    def keep(tensor: Tensor, hook: Any) -> None:
        seen[hook.name] = tensor

    at_once = _at_once(tokens)
    for ids, chosen, attended in zip(*(column.split(at_once) for column in (tokens, wanted, mask)), strict=True):
        seen.clear()
        attention = None if bool(attended.all()) else attended.long()
        with model.hooks(fwd_hooks=[(name, keep) for name in names]):
            model(ids.to(device), return_type=None, attention_mask=attention, **FORWARD_KWARGS)
        for name in names:
            x = seen.get(model.hook_dict[name].name)
            if x is not None and x.flatten(2).shape[-1] == sae.config.d_in:
                parts[name].append(x.flatten(2)[chosen.to(x.device)].to(sae.W_enc))
    return {name: torch.cat(found) for name, found in parts.items() if found}


def _losses(model: Any, sae: SAE, name: str, contexts: Contexts) -> CrossEntropy:
    text = HeldOutText(contexts.tokens, contexts.special, name).split(LOSS_CONTEXTS)[0]
    return cross_entropies(model, text, {name: sae}, _at_once(text.blocks))[name]


def _at_once(tokens: Tensor) -> int:
    return max(1, min(CONTEXTS_AT_ONCE, TOKENS_AT_ONCE // tokens.shape[1]))


# --- what is claimed, and what is said


def _other_model(model: Any, sae: SAE, contexts: Contexts) -> Iterator[str]:
    """Whether the model and its contexts are as the SAE was trained."""
    claimed = sae.config.metadata.get("model_name")
    here = getattr(getattr(model.original_model, "config", None), "_name_or_path", "") or model.cfg.model_name
    here = str(here).rstrip("/")
    if isinstance(claimed, str) and claimed not in ("", "embedded") and not same_model(claimed.rstrip("/"), here):
        yield f"The SAE names the model {claimed}, this one is {here.split('/')[-1].lower()}."
    if sae.config.metadata.get("prepend_bos") is True and not contexts.bos:
        yield "The SAE was trained on contexts that begin with a BOS, here none does."


def _other_rows(store: Store, rows: dict[str, Tensor], name: str) -> Iterator[str]:
    """Whether the model's activations are the store's."""
    own = _canonical(name)
    if own not in store.hooks:
        yield f"The store has no {own}, only {', '.join(store.hooks)}: its text was read, its rows were not."
        return
    computed = next(iter(rows.values()))
    stored = store.rows(own, max(0, len(store) - len(computed))).to(computed)
    if stored.shape == computed.shape:
        difference = float((stored - computed).norm() / stored.norm().clamp_min(1e-30))
        if difference > SAME_MODEL:
            yield f"The model's activations are not the store's: they differ by {difference:.0%} of their norm."


def _canonical(name: str) -> str:
    from sae_lm.lm.hooks import canonical_hook

    return canonical_hook(name)


def _claims(sae: SAE, fit: Fit) -> list[tuple[str, str, str, bool]]:
    metadata, got = sae.config.metadata, fit.loaded.quality
    training = metadata.get("training")
    arm = re.search(r"@k=(\d+)", str(metadata.get("arm", "")))
    k = aimed_k(  # what it was trained for: the configuration's k makes itself true
        training if isinstance(training, dict) else {},
        str(metadata.get("training_architecture")),
        int(arm[1]) if arm else None,
    )
    claimed = next((l0 for l0 in (metadata.get("claimed_l0"), k, sae.config.k) if isinstance(l0, int | float)), None)
    claims = []
    if claimed:
        agrees = claimed / NEAR_L0 <= got.l0 <= claimed * NEAR_L0
        claims.append(("L0", f"{claimed:g}", f"{got.l0:.3g}", agrees))
    return claims


def _verdict(fit: Fit, losses: CrossEntropy | None, claims: Sequence[tuple[str, str, str, bool]]) -> str:
    loaded, best = fit.loaded, fit.best
    if best.changes:
        return (
            f"Not loaded right: it fits better {' and '.join(map(_phrase, best.changes))} "
            f"(FVU {best.fvu:.3f}, as loaded {loaded.fvu:.3f})."
        )
    wrong = "; ".join(f"{what} is {got}, claimed {claimed}" for what, claimed, got, agrees in claims if not agrees)
    if not loaded.fvu < POOR:
        clearly = " clearly better" if any(reading.fvu < POOR for reading in fit.readings) else ""
        return (
            f"It does not fit (FVU {loaded.fvu:.3f}), and nothing that was tried makes it fit{clearly}: another model, "
            f"another text, or an SAE that is hardly trained{f'; {wrong}' if wrong else ''}."
        )
    if wrong:
        return f"It reconstructs (FVU {loaded.fvu:.3f}) and nothing that was tried does better, but {wrong}."
    cost = f", {losses.spliced - losses.clean:+.3f} nats" if losses else ""
    return (
        f"Loaded right, as far as one can see: FVU {loaded.fvu:.3f}{cost}; nothing that was tried fits clearly better."
    )


def _a_little_better(fit: Fit) -> Iterator[str]:
    """Of a change that lowers FVU, though too little for a verdict: of a small bias no more can be seen."""
    least = min(fit.readings, key=lambda reading: (not reading.fvu < POOR, reading.fvu))
    if not fit.best.changes and least.fvu < NOTICED * fit.loaded.fvu:
        yield (
            f"It fits a little better {' and '.join(map(_phrase, least.changes))} (FVU {least.fvu:.3f}): too little to call "
            "it a mistake; compare with the source."
        )


def _phrase(change: str) -> str:
    return change if change.startswith("on ") else f"with {change}"


def _source(settings: CheckSettings) -> "Store | Text":
    """What to measure on, opened before anything large is loaded. What --text names is never a text itself."""
    if settings.store is not None and settings.text is not None:
        raise SettingsError("check: --store and --text are both given; give one, rows or text")
    source = _opened(settings.text or "embedded") if settings.store is None else open_store(settings.store)
    if not isinstance(source, Store):
        return open_text(source)
    if settings.context_size is not None:
        raise SettingsError(
            "--context-size is of no use with a store, whose contexts are cut; leave out --context-size"
        )
    return source


def run(settings: CheckSettings) -> int:
    """0 where it fits, 1 where it does not."""
    source = _source(settings)
    device = pick_device(settings.device, float64_for=SUMMED)
    sae = load(
        settings.sae,
        device,
        format=settings.format,
        hook=settings.hook,
        k=settings.k,
        input_scale=settings.input_scale,
    )
    store = source if isinstance(source, Store) and settings.store is not None else None
    model = None
    name = settings.model or (store.manifest.recipe.model["id"] if store else None)
    if settings.model != "none" and (settings.model or not store or name == "embedded"):
        from sae_lm.lm.bridge import load_model

        named, revision = name or sae.config.metadata.get("model_name"), None
        if not isinstance(named, str):
            raise SettingsError("check: --model is required: the SAE does not say which language model it is for")
        if store is not None:
            named, revision = model_of(store.manifest.recipe, store.path, settings.model)
        placed: dict[str, Any] = {"device_map": settings.device_map} if settings.device_map else {"device": device}
        model = load_model(named, revision=revision, **placed)
    found = check(model, sae, source, tokens=settings.tokens, context_size=settings.context_size)
    print(found)
    return 0 if found.fits else 1
