"""A folder of runs on the tiny store, and the settings to compare it by."""

from sae_lm.commands.train import train
from sae_lm.settings import CompareSettings, TrainSettings

HOOK = "blocks.1.hook_out"


def two_arms(tiny_store, out):
    """Two arms, a ladder of two, two seeds, half of the tiny store held out."""
    settings = {"hook": HOOK, "d_sae": 48, "k": 4, "tokens": 3000, "batch_size": 64, "lr": 3e-3, "held_out": 0.5}
    settings |= {"matmul": "float32", "log_every": 3}  # a fall of FVU is read off four lines
    arms = "none@k=4/6,max_cos:0.5@k=4/6"
    return train(TrainSettings(store=tiny_store, arms=arms, seeds=2, dead_after=500, out=out, **settings))


def comparing(runs, out, **changes):
    values = {"min_words": 1, "probe_gate": 0.5, "per_type": 20, "contextual": False, "model": "none", "seed": 4}
    return CompareSettings(**{"runs": runs, "out": out, **values, **changes})
