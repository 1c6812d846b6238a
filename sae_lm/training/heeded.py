"""Refuse settings of training that would do nothing: they would be recorded as what the SAEs were trained with."""

from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import OPTIONS, Arm
from sae_lm.settings import TrainSettings
from sae_lm.training.recipe import WITH_SPARSITY, TrainingRecipe


def check_heeded(settings: TrainSettings, arms: list[Arm], recipe: TrainingRecipe) -> None:
    """Raises SettingsError where no arm heeds a setting, or the run is too short for it.

    For the first command of a folder: later ones add arms to SAEs that may heed it.
    """
    _check_run_is_long_enough(settings, recipe)
    architectures = {arm.arch or settings.arch for arm in arms}
    if settings.widths is not None and "matryoshka" not in architectures:
        raise SettingsError(
            f"widths is {', '.join(map(str, settings.widths))}, and no arm is matryoshka, which alone has nested prefixes; "
            "leave it out, or give --arch matryoshka"
        )
    if settings.differs("bandwidth") and "jumprelu" not in architectures:
        raise SettingsError(
            f"bandwidth is {settings.bandwidth:g}, and no arm is jumprelu, whose thresholds alone have one; leave it out, or "
            "give --arch jumprelu"
        )
    for option in ("every", "start", "warm_up", "on"):
        value = getattr(settings, setting := f"penalty_{option}")
        having = [arm for arm in arms if arm.coefficient and arm.penalty in OPTIONS[option].penalties]
        heeding = [arm for arm in having if getattr(arm, option) is None]
        if settings.differs(setting) and not heeding:
            raise SettingsError(
                f"{setting} is {value}, and no arm has a penalty that heeds it; leave it out, or name one that does, without "
                f"@{option}"
            )
    if settings.aux_k is not None and not settings.aux_coefficient:
        raise SettingsError(
            f"aux_k is {settings.aux_k}, and with aux_coefficient 0 there is no AuxK; leave one of them out"
        )
    if settings.sparsity_coefficient is not None and architectures.isdisjoint(WITH_SPARSITY):
        raise SettingsError(
            f"sparsity_coefficient is {settings.sparsity_coefficient:g}, and no arm is {' or '.join(WITH_SPARSITY)}, which "
            f"alone have one; leave it out, or give --arch {WITH_SPARSITY[0]}"
        )


def _check_run_is_long_enough(settings: TrainSettings, recipe: TrainingRecipe) -> None:
    """Raises SettingsError where no latent ever counts as dead, or none is ever resampled."""
    rows, every = recipe.tokens, recipe.resample_every
    if settings.dead_after is not None and recipe.dead_after >= rows:
        raise SettingsError(
            f"dead_after is {recipe.dead_after:,}, and the run has {rows:,} rows, so no latent would ever count as dead and be "
            "revived; give fewer, or leave it out"
        )
    if not every:
        return
    latest = max(filter(recipe.resamples, range(every, recipe.steps, every)), default=0)
    if not latest:
        raise SettingsError(
            f"resample_every is {every:,}, and latents are resampled before the learning rate falls, in the first "
            f"{(1 - recipe.decay) * recipe.steps:g} of {recipe.steps:,} steps; give fewer than that, or 0 for never"
        )
    if recipe.dead_after > latest * recipe.batch_size:
        raise SettingsError(
            f"resample_every is {every:,}, so latents are resampled at step {latest:,} at the latest, and dead_after is "
            f"{recipe.dead_after:,} rows, more than come before it ({latest * recipe.batch_size:,}); give a smaller one"
        )
