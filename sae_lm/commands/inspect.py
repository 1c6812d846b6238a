"""sae-lm inspect: describe a store or an SAE, and decode some rows."""

from pathlib import Path

import torch

from sae_lm.data.batches import shuffle_quality
from sae_lm.data.store import Store, open_store
from sae_lm.fields import with_home
from sae_lm.pages.terminal import columns
from sae_lm.pages.text import visible
from sae_lm.runtime.seeds import derive
from sae_lm.sae.load import load_as_recorded
from sae_lm.sae.locations import is_one_sae
from sae_lm.sae.model import SAE
from sae_lm.settings import InspectSettings
from sae_lm.training.convergence import sae_start_cosines, state_of_training
from sae_lm.training.folder_kind import is_sae
from sae_lm.training.run_folder import numbers_of

SHOWN_QUANTILES = (0.01, 0.5, 0.99, 1.0)
QUALITY_BATCH = 2048


def inspect(path: str | Path, rows: int = 5) -> str:
    """A human's summary of a store (a folder or an hf:// address) with ``rows`` decoded rows, or of an SAE."""
    folder = Path(with_home(path))
    if not str(path).startswith("hf://") and (is_one_sae(folder) or is_sae(folder)):
        return _shown(_sae(load_as_recorded(path, "cpu")))
    return _shown(_store(open_store(path), rows))


def _shown(text: str) -> str:
    """What files hold as names and texts cannot tell a terminal what to do."""
    return "\n".join(map(visible, text.split("\n")))


def _store(store: Store, rows: int) -> str:
    manifest, recipe, model = store.manifest, store.manifest.recipe, store.manifest.recipe.model
    total = sum(file.bytes for file in manifest.all_files().values())
    special = sum(shard.special_tokens for shard in manifest.shards)
    padding, sinks = (sum(getattr(shard, key) for shard in manifest.shards) for key in ("padding", "sinks"))
    at = f" at {revision[:12]}" if (revision := model.get("revision")) else ""
    split = f", split {recipe.text['split']}" if recipe.text.get("split") else ""
    table_rows = {
        "store": f"{store.path} (format {manifest.version}, id {manifest.id[:12]})",
        "model": f"{model.get('id')}{at}, {model.get('architecture')}, {model.get('n_layers')} layers, "
        f"{model.get('dtype')}; forward by {recipe.forward}",
        "text": f"{recipe.text.get('id')}{split}{', ended before all rows were there' if manifest.text_ended else ''}",
        "rows": f"{len(store):,} in {len(manifest.shards):,} shards, {total / 1e9:.3f} GB of {recipe.dtype}",
        "contexts": f"{manifest.contexts:,} of {recipe.context_size} tokens, "
        f"{'packed' if recipe.pack else 'one document each'}, from {manifest.documents:,} documents",
        "without a row": f"{special:,} special tokens{' (kept)' if recipe.keep_special else ''}, {padding:,} of padding, "
        f"{sinks:,} attention sinks",
        **{hook: _hook(store, hook, width) for hook, width in store.hooks.items()},
    }
    if len(store) >= 2 * QUALITY_BATCH:
        quality = shuffle_quality(store, QUALITY_BATCH)
        table_rows["shuffling"] = (
            f"batches of {QUALITY_BATCH} hold {quality:.1%} of the documents that rows drawn uniformly would"
        )
    table = columns([*table_rows], [[*table_rows.values()]], heads=False, left=True)
    return "\n".join([*table, *_decoded(store, rows)])


def _hook(store: Store, hook: str, width: int) -> str:
    moments, norms = store.moments(hook), store.norm_quantiles(hook)
    shown = ", ".join(f"{norms[share]:.4g} ({share:.0%})" for share in SHOWN_QUANTILES)
    return (
        f"width {width}, norms {shown}; mean row's norm {float(moments.mean.norm()):.4g}, "
        f"variance {moments.variance:.4g}, {store.non_finite(hook)} rows not finite"
    )


def _decoded(store: Store, rows: int) -> list[str]:
    generator = torch.Generator().manual_seed(derive("inspect"))
    numbers = sorted(set(torch.randint(len(store), (rows,), generator=generator).tolist()))
    hook = next(iter(store.hooks))
    lines = [f"{len(numbers)} rows (token in brackets, first values of {hook}):"] if numbers else []
    for number in numbers:
        around = store.text_around(number, 8, 3)
        text = f"{around.before}[{around.token}]{around.after}"
        values = ", ".join(f"{value:.3g}" for value in store.rows(hook, number, number + 1)[0, :4].tolist())
        part = f", token {around.part[0]} of {around.part[1]} of its character" if around.part else ""
        where = f"document {around.document}, position {around.position}{part}"
        lines.append(f"  {number:>9,}  {where}: {text!r}  {values}, ...")
    return lines


def _sae(sae: SAE) -> str:
    keys = ("model_name", "hook_name", "arm", "seed", "dataset_path")
    metadata_lines = [f"{key}: {sae.config.metadata[key]}" for key in keys if key in sae.config.metadata]
    cosines = (
        (sae.W_enc * sae.W_dec.T).sum(0)
        / sae.W_enc.norm(dim=0).clamp_min(1e-12)
        / sae.W_dec.norm(dim=1).clamp_min(1e-12)
    )
    metadata_lines += _training(sae)
    metadata_lines += [f"loaded: {sentence}" for sentence in sae.provenance]
    return "\n".join([repr(sae), *metadata_lines, f"decoder norms {float(sae.W_dec.norm(dim=1).min()):.3f} to {float(sae.W_dec.norm(dim=1).max()):.3f}; "
                      f"median cosine of encoder and decoder {float(cosines.median()):.3f}"])  # fmt: skip


def _training(sae: SAE) -> list[str]:
    """How far its training came, of an SAE of ``sae-lm train``; of one before such was recorded, over all latents."""
    metadata = sae.config.metadata
    arm, seed, recorded = (metadata.get(key) for key in ("arm", "seed", "convergence"))
    if not isinstance(recorded, dict) and isinstance(seed, int) and "training" in metadata:
        recorded = sae_start_cosines(sae, seed, torch.ones(sae.config.d_sae, dtype=torch.bool))
    line = state_of_training({str(arm): [numbers_of(recorded)]})
    return [line] if line else []


def run(settings: InspectSettings) -> int:
    print(inspect(settings.path, settings.rows))
    return 0
