"""The training recipe: every number that an SAE's weights depend on besides its arm and seed, with papers' defaults."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict

from sae_lm.errors import SettingsError, StoreError
from sae_lm.penalties.arms import Arm, check_held, check_nested
from sae_lm.penalties.controllers import RAMP
from sae_lm.penalties.term import SETTLING_SHARE, first_step
from sae_lm.runtime.device import has_bfloat16
from sae_lm.runtime.differences import SettingDifference, differences
from sae_lm.settings import TrainSettings
from sae_lm.training.schedules import learning_rate

if TYPE_CHECKING:
    from sae_lm.data.store import Store

MIN_BATCHES = 2000
"""By default, where the store is small. measured on 450,000 rows of the demo (2048 latents, k 16, batches of 512): FVU on
held-out rows .184 after 488 batches, .150 after 1953."""
BATCH, SMALL_BATCH, FEW_ROWS = 1024, 512, 500_000
"""Rows of a step, by default, and where an SAE sees fewer than so many. measured in tests/benchmarks/README.md: after
360,000 rows batches of 512 have a lower error than batches of 1024; after equal seconds of longer runs a higher one."""
WHERE_IT_RUNS = frozenset(
    (
        "store",
        "out",
        "device",
        "arms_at_once",
        "parallel",
        "checkpoint_seconds",
        "ranks_per_sae",
        "trackers",
    )
)
"""Settings of train that a registered file leaves free: they change no more than rounding, but for the store. A store is
known by its checksum and not by its place: each SAE and the report name the one that was used."""
NOT_IN_RECIPE = WHERE_IT_RUNS | {"arms", "seeds", "first_seed", "registered", "log_every"}
"""Settings that may differ between the runs of one folder: they do not change what an SAE is (another device
changes its rounding). A registered file holds log_every: whether an SAE counts as undertrained is read off its log."""

WITH_SPARSITY = ("relu", "jumprelu")
"""Architectures whose loss has a sparsity coefficient: a controller aims at k with it, unless it is fixed."""

MATMUL = ("float32", "bfloat16")

EQUAL_ROWS = 1e-12
"""Variance over mean squared norm at or below which rows are equal: the difference of two sums in float64 is rounding."""
SCALE_ROUNDING = 1e-9
"""Relative difference up to which scales are equal: a sum of n rows in float64 is known to about n * 1e-16 at worst."""


def default_lr(d_in: int, batch_size: int, optimizer: str) -> float:
    """.08 / sqrt(d_in) in batches of 512, rising with the root of the batch up to four times that; three fifths for Adam.

    A row of d_in numbers moves by lr * sqrt(d_in) a step, and how far a direction turns is what matters. measured in
    tests/benchmarks/README.md, with whitened rows: within a factor 1.5 either way FVU is within 2% of the best, at 2048
    latents of d_in 256 and 4096 of 576. Half and twice are no better at 512 latents, k 8 or 64, or (half) 50M rows.
    Rules for runs of 500 million rows (2e-4 / sqrt(d_sae / 2^14), Gao et al. 2024) leave shorter ones near their start.
    """
    return 0.08 / d_in**0.5 * min(batch_size / 512, 4.0) ** 0.5 * (0.6 if optimizer == "adam" else 1.0)


def default_batch_size(rows: int | None) -> int:
    """Of an SAE that sees so many rows; None: as many as there are by default, which are never few."""
    return BATCH if rows is None or rows >= FEW_ROWS else SMALL_BATCH


def rows_per_step(settings: TrainSettings) -> int:
    """As asked for, else the default."""
    return settings.batch_size or default_batch_size(settings.tokens)


def default_matmul(device: str) -> str:
    """bfloat16 where the device has it. measured: FVU is within 1% of float32's (tests/training/test_trainer.py)."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def default_widths(d_sae: int) -> tuple[int, ...]:
    """1/32, 3/32, 7/32, 15/32 and all of the latents: 2048 to 65,536 in Bussmann et al. 2025 (2503.17547), section 4.3."""
    return (*dict.fromkeys(d_sae * share // 32 for share in (1, 3, 7, 15) if d_sae * share >= 32), d_sae)


class TrainingRecipe(BaseModel):
    """What all arms and seeds of one folder of runs share, where an arm does not say otherwise.

    The fields in this order are what stands in ``run.json`` under ``facts`` and in each SAE's metadata under
    ``training`` (sae_lm.training.run_folder). Names are those of the settings; None is a default that is not a number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    hook: str
    """canonical name of the hook whose rows are trained on"""
    d_sae: int
    """latents"""
    k: int
    """active latents per row: exactly (topk), in the batch's mean (batchtopk, matryoshka), aimed at (relu, jumprelu)"""
    arch: str
    """relu, topk, batchtopk, jumprelu or matryoshka"""
    widths: tuple[int, ...] | None = None
    """matryoshka's nested prefixes, ascending, the last is d_sae; None: `default_widths`"""
    sparsity_coefficient: float | None = None
    """of L1 (relu) or L0 (jumprelu) in the loss; None: whatever gives k active latents"""
    bandwidth: float = 0.03
    """of jumprelu's straight-through estimators, in scaled units"""
    tokens: int
    """rows that each SAE sees, a multiple of batch_size"""
    batch_size: int
    """rows per step"""
    lr: float
    """peak learning rate"""
    optimizer: str = "adam"
    """row_rms or adam (sae_lm.training.optimizer)"""
    whiten: bool = False
    """whether the encoder's gradient is taken with whitened rows (sae_lm.training.whitening)"""
    warm_up: float
    """share of the steps in which the learning rate rises"""
    decay: float
    """share of the steps, at the end, in which it falls to 0"""
    held_out: float
    """share of the store that was asked to be kept out of training"""
    penalty_every: int = 10
    """steps for which a penalty's gradient is used before it is taken anew"""
    penalty_start: float = 0.0
    """share of the steps before the penalty begins"""
    penalty_warm_up: float = 0.0
    """share of the steps, from the penalty's start, over which its coefficient rises linearly from 0"""
    penalty_on: str = "decoder"
    """whose rows the penalty looks at: `decoder`, or `encoder` as the control"""
    aux_coefficient: float
    """weight of AuxK in the loss"""
    aux_k: int
    """dead latents that AuxK lets explain the residual"""
    dead_after: int
    """rows without firing after which a latent counts as dead"""
    resample_every: int = 0
    """steps between resamplings of dead latents; 0: never"""
    matmul: str = "bfloat16"
    """name of the dtype of products that may be rough: of the encoder, which selects latents, of AuxK and penalties"""
    store_id: str
    """checksum of the store's manifest (sae_lm.data.manifest)"""
    held_out_from_context: int
    """first context of the store that is held out"""
    held_out_from_row: int
    """its first row: rows from this one on are not trained on"""
    scale: float
    """root of the squared error of predicting the mean row; rows are divided by it, so that this costs 1"""

    @classmethod
    def from_settings(
        cls, settings: TrainSettings, store: "Store", arms: list[Arm], device: str = "cpu"
    ) -> "TrainingRecipe":
        """Work out what the settings leave open. Raises SettingsError for what cannot be trained on this store,
        StoreError for a damaged one."""
        hook = store.hook(settings.hook)
        context, row = store.held_out_from(settings.held_out)
        _check_latents(settings, arms)
        _check_aims(settings, arms)
        _check_held(settings, arms)
        batch_size = rows_per_step(settings)
        rows = _rows_to_train(settings, row, len(store))
        _check_schedules(settings, arms, rows // batch_size)
        moments = store.moments(hook, row)  # of training rows: held-out ones are not looked at
        if not math.isfinite(moments.variance):
            raise StoreError(
                f"store {settings.store}: rows of {hook} before row {row} hold a NaN or an infinity, which no store has when it "
                f"is written; run sae-lm verify {settings.store} --repair"
            )
        if moments.variance <= EQUAL_ROWS * moments.mean_squared_norm:
            raise SettingsError(
                f"store {settings.store}: all rows of {hook} are equal, there is nothing to learn; cache another hook"
            )
        worked_out = {
            "hook": hook,
            "tokens": rows // batch_size * batch_size,
            "batch_size": batch_size,
            "lr": settings.lr or default_lr(store.hooks[hook], batch_size, settings.optimizer),
            "aux_k": settings.aux_k or max(1, store.hooks[hook] // 2),
            "dead_after": settings.dead_after or max(1, min(10_000_000, rows // 10)),
            "matmul": default_matmul(device) if settings.matmul == "auto" else settings.matmul,
            "store_id": store.manifest.id,
            "held_out_from_context": context,
            "held_out_from_row": row,
            "scale": moments.variance**0.5,
        }
        return cls(**settings.model_dump(exclude=set(NOT_IN_RECIPE)) | worked_out)

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.tokens // self.batch_size

    @property
    def matmul_dtype(self) -> torch.dtype:
        return getattr(torch, self.matmul)

    @property
    def nested_widths(self) -> tuple[int, ...]:
        """matryoshka's nested prefixes."""
        return self.widths or default_widths(self.d_sae)

    def as_trained(self, arm: Arm) -> Arm:
        """The arm without an architecture or k that are the run's own: two that are equal so are trained alike."""
        arch = None if arm.arch == self.arch else arm.arch
        return arm._replace(arch=arch, k=None if arm.k == self.k else arm.k)

    def learning_rate(self, step: int) -> float:
        return learning_rate(step, self.steps, self.lr, self.warm_up, self.decay)

    def resamples(self, step: int) -> bool:
        """Whether dead latents are given new directions at this step: never while the learning rate falls."""
        every = self.resample_every
        return bool(every and step and step % every == 0 and step < (1 - self.decay) * self.steps)

    def record(self) -> dict[str, Any]:
        """As it is written to disk: JSON values, in the order of the fields."""
        return self.model_dump(mode="json")

    def differences(self, stored: Mapping[str, Any], *, but: str | None = None) -> list[SettingDifference]:
        """Where a recipe that was recorded, maybe by another version, is another than this one; ``but`` one field."""
        wanted = {key: value for key, value in self.record().items() if key != but}
        if "scale" in wanted and is_same_scale(stored.get("scale"), self.scale):
            wanted["scale"] = stored["scale"]
        return differences(with_defaults(stored), wanted)

    def as_begun(self, stored: Mapping[str, Any] | None, settings: TrainSettings) -> "TrainingRecipe":
        """With what another machine works out otherwise as a recipe of this folder has it: the scale, where it differs by
        rounding alone, and the precision of products, where the settings leave it open."""
        if stored is None:
            return self
        kept: dict[str, Any] = {}
        if is_same_scale(stored.get("scale"), self.scale):
            kept["scale"] = stored["scale"]
        if settings.matmul == "auto" and (matmul := with_defaults(stored)["matmul"]) in MATMUL:
            kept["matmul"] = matmul
        return self.model_copy(update=kept)


def with_defaults(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded recipe, with the defaults of the fields that its version did not have: that is what it did."""
    fields = TrainingRecipe.model_fields.items()
    return {name: field.default for name, field in fields if not field.is_required()} | dict(recorded)


def aimed_k(training: Mapping[str, Any], architecture: str, own: int | None = None) -> Any:
    """Active latents per row that training aimed at; None where a fixed sparsity coefficient left them open.

    training: the recorded recipe, of whatever version or program. architecture: as it was trained. own: its arm's k.
    """
    if architecture in WITH_SPARSITY and training.get("sparsity_coefficient"):
        return None
    return own or training.get("k")


def is_same_scale(stored: Any, scale: float) -> bool:
    """Whether two scales are of one sum, which another number of threads adds up in another order."""
    return isinstance(stored, float) and math.isclose(stored, scale, rel_tol=SCALE_ROUNDING)


def _check_latents(settings: TrainSettings, arms: list[Arm]) -> None:
    """Raises SettingsError where k or the nested widths do not fit the number of latents, or an arm its architecture."""
    k = max(arm.k or settings.k for arm in arms)
    if k > settings.d_sae:
        raise SettingsError(f"k is {k}, more than the {settings.d_sae} latents of d_sae; give a smaller one")
    widths = settings.widths
    if widths is not None and (sorted(set(widths)) != list(widths) or widths[0] < 1 or widths[-1] != settings.d_sae):
        raise SettingsError(
            f"widths is {', '.join(map(str, widths))}; expected ascending widths from 1, the last d_sae ({settings.d_sae})"
        )
    if rows_per_step(settings) < 2:
        raise SettingsError(
            f"batch_size is {settings.batch_size}, expected 2 or more: what dead latents are to explain is measured from "
            "the batch's mean"
        )
    for arm in arms:
        check_nested(arm.name, arm, arm.arch or settings.arch)
        nested = arm.widths or widths or default_widths(settings.d_sae)
        if (arm.arch or settings.arch) == "matryoshka" and arm.balance and not arm.prefixes and len(nested) < 2:
            raise SettingsError(
                f"arms: {arm.name} is matryoshka with the one width {settings.d_sae}, all of the latents, which is batchtopk; "
                "give a narrower width as well, or --arch batchtopk"
            )
        if arm.chunk is not None and arm.chunk >= settings.d_sae:
            raise SettingsError(
                f"arms: {arm.name} searches chunks of {arm.chunk} rows, of which there are {settings.d_sae} in all; "
                "leave out @chunk, or give @exact for a search of all"
            )
        if arm.widths is not None and arm.widths[-1] != settings.d_sae:
            raise SettingsError(
                f"arms: the widths of {arm.name!r} end at {arm.widths[-1]}; expected d_sae ({settings.d_sae}) as the last"
            )


def _check_aims(settings: TrainSettings, arms: list[Arm]) -> None:
    """Raises SettingsError where an arm names a k, and the coefficient is fixed that would have to bring it about."""
    for arm in arms:
        fixed = settings.sparsity_coefficient is not None and (arm.arch or settings.arch) in WITH_SPARSITY
        if arm.k is not None and fixed:
            raise SettingsError(
                f"arms: {arm.name!r} aims at k, which sparsity_coefficient {settings.sparsity_coefficient:g} leaves open; "
                "leave one of them out"
            )


def _check_schedules(settings: TrainSettings, arms: list[Arm], steps: int) -> None:
    """Raises SettingsError where a penalty would hardly act, or not at what its name says."""
    for arm in arms:
        if not arm.coefficient:
            continue
        start = settings.penalty_start if arm.start is None else arm.start
        warm_up = settings.penalty_warm_up if arm.warm_up is None else arm.warm_up
        if start + warm_up > 1:
            raise SettingsError(
                f"arms: {arm.name}: start ({start:g}) and warm_up ({warm_up:g}) are shares of the steps, one after the "
                "other; expected them to end at 1 or before"
            )
        if first_step(steps, start, arm) >= steps:
            raise SettingsError(
                f"arms: {arm.name} never acts in {steps} step{'s' * (steps != 1)}: it starts at {start:g} of them; give an "
                "earlier start, or more --tokens"
            )
        latest = 1 - RAMP - SETTLING_SHARE
        if (arm.fvu or arm.coherence) and start > latest:
            raise SettingsError(
                f"arms: {arm.name} is steered from {start + SETTLING_SHARE:g} of the steps on; it takes a quarter of them, "
                f"so give a start of {latest:g} at most"
            )


def _check_held(settings: TrainSettings, arms: list[Arm]) -> None:
    """Raises SettingsError where an arm holds at the start what the settings have moved, or penalises what is frozen."""
    for arm in arms:
        check_held(arm, arm.on or settings.penalty_on)
        if settings.resample_every and (arm.decoder or arm.encoder):
            raise SettingsError(
                f"resample_every is {settings.resample_every}, which gives dead latents new directions, and "
                f"{arm.name} holds them at their start; give --resample-every 0 or leave that arm out"
            )


def _rows_to_train(settings: TrainSettings, training_rows: int, store_rows: int) -> int:
    """Rows that each SAE sees, not yet in whole batches. Raises SettingsError for less than one batch."""
    if training_rows >= store_rows:
        raise SettingsError(
            f"held_out is {settings.held_out}, which keeps no context of {settings.store} back; give more"
        )
    batch_size = rows_per_step(settings)
    if training_rows < batch_size:
        raise SettingsError(
            f"store {settings.store} has {training_rows:,} rows for training, fewer than one batch of "
            f"{batch_size:,}; cache more tokens or give a smaller --batch-size"
        )
    rows = settings.tokens or max(training_rows, MIN_BATCHES * batch_size)
    if rows < batch_size:
        raise SettingsError(f"tokens is {rows}, fewer than one batch of {batch_size}; give more --tokens")
    return rows
