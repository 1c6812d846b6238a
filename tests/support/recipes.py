"""A training recipe for tests: what matters to a test is given, all else is small and fixed."""

from typing import Any

from sae_lm.training.recipe import TrainingRecipe


def training_recipe(steps: int = 100, **changes: Any) -> TrainingRecipe:
    """A recipe of ``steps`` steps, in whatever batches a test makes."""
    values = {
        "hook": "blocks.0.hook_out",
        "d_sae": 24,
        "k": 3,
        "arch": "topk",
        "tokens": steps,
        "batch_size": 1,
        "lr": 1e-3,
        "warm_up": 0.05,
        "decay": 0.2,
        "held_out": 0.1,
        "aux_coefficient": 1 / 32,
        "aux_k": 4,
        "dead_after": 10_000_000,
        "store_id": "0" * 64,
        "held_out_from_context": 0,
        "held_out_from_row": 0,
        "scale": 1.0,
        "optimizer": "row_rms",
    }
    return TrainingRecipe(**{**values, **changes})
