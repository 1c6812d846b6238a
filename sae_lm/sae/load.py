"""Load an SAE of any known format from a directory, from the hub, or by its name in SAELens."""

import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.fields import flag
from sae_lm.runtime.device import pick_device
from sae_lm.sae.fetch import find
from sae_lm.sae.model import SAE
from sae_lm.sae.source import LARGEST_FACTOR, Source, shown

FORMATS = (
    "saelens",
    "dictionary_learning",
    "sparsify",
    "openai",
    "gemma_scope",
    "gemma_scope_2",
    "llama_scope",
    "qwen_scope",
    "goodfire",
    "connor_rob",
)
"""Each is a module of ``sae_lm.sae.formats`` with a function ``read(source)``."""
_ASKS = re.compile(r"; give (?:the )?(hook|k|format|input_scale)\b")
"""In an error: which option would tell what the files leave open."""


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    *,
    format: str = "auto",
    hook: str | int | None = None,
    k: int | None = None,
    input_scale: float | None = None,
) -> SAE:
    """Load an SAE, in float32, with what was decided on the way in its ``provenance``.

    path: an SAE's directory or file; a hub id with an optional revision and folder (or file) inside,
        ``user/repo``, ``user/repo:folder``, ``user/repo@revision:folder``; or, where sae_lens is installed, the name of
        a release of SAELens and an id in it, ``gpt2-small-res-jb:blocks.8.hook_resid_pre``.
    device: `auto` (cuda if there is one), `cpu`, `cuda`, `cuda:1`, `mps`.
    format: one of FORMATS where the files do not tell; ``dictionary_learning/BatchTopKSAE`` names the class too.
    hook, k: which activation it is for (a hook, or a layer's number for its residual stream) and how many latents fire,
        where the files do not say, or say it wrong.
    input_scale: what activations are multiplied by, where an SAE expects that and its files do not say by what:
        sqrt(d_in) / mean norm of the activations.

    Nothing is guessed: what the files leave open is asked for. Raises SaeError for what is missing, damaged, ambiguous
    or of another kind, SettingsError for the device.
    """
    _check_kinds(path, device, format, hook, k, input_scale)
    device = pick_device(device)
    kind, _, variant = format.partition("/")
    if kind != "auto" and kind not in FORMATS:
        raise SaeError(f"format is {format!r}; expected auto, {', '.join(FORMATS)}")
    if input_scale is not None and not 0 < input_scale < LARGEST_FACTOR:
        raise SaeError(f"input_scale is {shown(input_scale)}, expected a number above 0 and below {LARGEST_FACTOR:g}")
    source, suggested = find(os.fspath(path))
    source.hook, source.variant = None if hook is None else str(hook), variant
    source.k = None if k is None else int(k)  # numpy's numbers do not go into JSON
    source.input_scale = None if input_scale is None else float(input_scale)
    if kind == "auto":
        kind = _format_of_keys(source) if suggested == "torch" else suggested
        source.note(f"format {kind} by the names of its {'tensors' if suggested == 'torch' else 'files'}")
    if variant and kind != "dictionary_learning":
        raise source.error(f"format is {format!r}; only of dictionary_learning a class may be named")
    read: Callable[[Source], SAE] = import_module(f"sae_lm.sae.formats.{kind}").read
    try:
        sae = read(source)
    except SaeError as problem:
        if any(str(place) in str(problem) for place in (source.name, *source.files.values())):
            raise
        raise source.error(str(problem)) from None
    _check_given(source, sae)
    return sae.to(device)


def load_as_recorded(path: str | os.PathLike[str], device: str) -> SAE:
    """`load` for commands that cannot be told what the files leave open: the error names the command that can."""
    try:
        return load(path, device)
    except SaeError as problem:
        if asked := _ASKS.search(str(problem)):
            raise SaeError(f"{problem}, or run sae-lm convert with {flag(asked[1])} first") from None
        raise


def _check_kinds(path: object, device: object, format: object, hook: object, k: object, input_scale: object) -> None:
    """Raises SaeError where an argument is of another kind than it can be."""
    for name, value, kinds, expected in (
        ("path", path, (str, os.PathLike), "the name of a directory, a file or a hub id"),
        ("device", device, (str, torch.device), "auto, cpu, cuda, cuda:1 or another of torch's"),
        ("format", format, (str,), "auto or the name of a format"),
        ("hook", hook, (str, Integral, type(None)), "a hook as blocks.8.hook_out, or the layer's number"),
        ("k", k, (Integral, type(None)), "a whole number"),
        ("input_scale", input_scale, (Real, type(None)), "a number above 0"),
    ):
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise SaeError(f"{name} is {value!r}, a {type(value).__name__}; expected {expected}")


def _check_given(source: Source, sae: SAE) -> None:
    """Raises SaeError where what the user gave was of no use."""
    if source.k is not None and sae.config.k != source.k:
        raise source.error(
            f"k={source.k} is given, but this SAE is {sae.config.architecture} and has no k; leave it out"
        )
    if source.input_scale is not None and not source.scale_used:
        raise source.error(
            f"input_scale={source.input_scale:g} is given, but this SAE takes activations as they are; leave it out"
        )


def _format_of_keys(source: Source) -> str:
    """The format of one torch file, by the names and shapes in it. Raises SaeError where more than one would fit."""
    content = source.tensors(source.only_file)
    content = content["sae"] if isinstance(content.get("sae"), Mapping) else content
    if "latent_bias" in content:
        return "openai"
    if "encoder_linear.weight" in content:
        return "goodfire"
    if "W_E" in content:
        return "llama_scope"
    if "W_enc" in content and any(file.endswith("_cfg.json") for file in source.files):
        return "connor_rob"
    if "W_enc" in content and not {"k", "threshold"} & {*content}:
        return _orientation(source, content)
    if "encoder.weight" in content or "W_enc" in content:
        return "dictionary_learning"
    raise source.error(
        f"holds {', '.join(map(str, [*content][:8])) or 'nothing'}, the tensors of no format known here; expected an SAE of "
        f"{', '.join(FORMATS)}"
    )


def _orientation(source: Source, content: Mapping[str, Any]) -> str:
    """W_enc, b_enc, W_dec, b_dec and no more: Qwen-Scope has W_enc [d_sae, d_in]."""
    W_enc, b_dec = content["W_enc"], content.get("b_dec")
    if isinstance(W_enc, Tensor) and isinstance(b_dec, Tensor) and W_enc.ndim == 2 and b_dec.ndim == 1:
        rows, columns = W_enc.shape
        if rows != columns and columns == len(b_dec):
            return "qwen_scope"
        if rows == columns:
            raise source.error(
                f"W_enc is square, {rows} x {columns}, so that it may as well be its transpose; give format='qwen_scope' "
                "where its rows are latents"
            )
    raise source.error(
        "holds W_enc, b_enc, W_dec and b_dec alone, which do not tell whether b_dec is subtracted from the input, nor which "
        "latents fire; give format="
    )
