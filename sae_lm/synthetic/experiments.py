"""The suite's worlds, and which arms are tried on each.

Coefficients are those of ``sae-lm train``: inputs are scaled so that predicting their mean costs 1. An experiment has
a short list of arms, for a look within a minute, and a long one whose ladders show how each penalty responds:
not monotonely.
"""

from typing import NamedTuple

from sae_lm.penalties.arms import Arm, parse_arms
from sae_lm.synthetic import ab_toy
from sae_lm.synthetic.batched_training import ToyRecipe, ToyTrial
from sae_lm.synthetic.worlds import Singles, Trees, World, forest

BASELINE = ToyTrial(Arm("none", 0.0))


class Experiment(NamedTuple):
    """One world, one recipe, two lists of trials. The first trial is the baseline; an empty list leaves the world out."""

    key: str
    title: str
    world: World
    recipe: ToyRecipe
    short: tuple[ToyTrial, ...]
    long: tuple[ToyTrial, ...]
    shown: tuple[str, ...] = (
        "fvu",
        "hole",
        "weakened",
        "gap",
        "merge",
        "suppression",
        "shared",
        "mcc",
        "uniqueness",
        "f1",
    )
    """metrics in the table, in its order"""
    told: bool = False
    """whether the figures of `compare` are taken as well, to hold them against the truth"""


def _trials(*arms: str, stop: float = 1.0, margin: float = 0.0) -> tuple[ToyTrial, ...]:
    """Trials of these arms; ``margin`` also for coactive, whose cosines have none in training."""
    return tuple(ToyTrial(arm._replace(margin=margin) if margin else arm, stop) for arm in parse_arms(arms))


SMALL = ToyRecipe(d_sae=4, arch="relu", steps=3000, lr=0.01, l1=0.02, start="inputs", bias=False)
PAIR = World(d_in=50, parent=(None, 0, None, None), probability=(0.25, 0.2, 0.05, 0.05), listed=True)
"""Chanin et al. 2024, 2409.14507, section 3: four features, one of which comes on only with another."""
ONE_EACH = (BASELINE, *_trials("abs_cos:0.3", "sq_cos:1", "max_cos:0.3", "coactive:0.3", "freq_cos:0.3",
                           "max_cos:0.3@on=encoder"))  # fmt: skip
LADDERS = (BASELINE, *_trials("abs_cos:0.03/0.1/0.3/1/3", "sq_cos:0.1/0.3/1/3/10", "max_cos:0.03/0.1/0.3/1/3",
                          "coactive:0.1/0.3/1/3", "coactive:0.1/0.3/1/3@anchored", "freq_cos:0.1/0.3/1/3",
                          "c2r:5/50", "silent:0.3/1/3", "align:0.03/0.1/0.3",
                          "abs_cos:0.3@on=encoder", "max_cos:0.3@on=encoder"))  # fmt: skip
FEW = (BASELINE, *_trials("abs_cos:0.3/3", "sq_cos:1/10", "max_cos:0.1/0.3/1", "coactive:0.3/1/3@anchored", "freq_cos:0.3/1/3",
                      "c2r:5/50", "silent:0.3/1/3", "align:0.03/0.1/0.3", "max_cos:0.3@on=encoder"))  # fmt: skip
RIVALS = _trials("none@arch=batchtopk", "none@arch=matryoshka")

TREES = forest(64, Trees(8, 0.12, children=4, child_probability=0.2))
CROWDED = forest(32, Trees(16, 0.06, children=4, child_probability=0.2), superposed=True)
IN_CROWD = ToyRecipe(d_sae=96, arch="topk", steps=2500, lr=3e-3, k=3)
TWO_LEVELS = ToyTrial(RIVALS[1].arm, widths=(16, 96))
"""Matryoshka whose first prefix has as many latents as there are parents."""
TRUTH = (ToyTrial(BASELINE.arm, truth="start"), ToyTrial(BASELINE.arm, truth="fixed"))
CROWD_SHOWN = ("fvu", "l0", "hole", "gap", "absorbed", "merge", "shared", "parent_f1", "mcc", "uniqueness", "f1")

TOLD_SHOWN = ("fvu", "l0", "hole", "gap", "absorbed", "told_hole", "told_equal_hole", "told_fraction", "told_full",
              "told_precision", "mcc", "dead")  # fmt: skip
SPREAD = _trials("max_cos:1", "sq_cos:10", "coactive:0.4/1@anchored", "c2r:20", "silent:1", "align:0.3",
                 "none@decoder=frozen/0.8", "none@encoder=frozen")  # fmt: skip
"""Arms that do much and little, good and harm: for figures to be put in order."""
NESTED = _trials("none@arch=matryoshka", "none@arch=matryoshka@balance=0.25", "none@arch=matryoshka@prefixes=2",
                 "coactive:0.4@anchored@arch=matryoshka")  # fmt: skip

EXPERIMENTS = (
    Experiment(
        "composition",
        "A/B: two features often on together, three latents (ReLU, L1)",
        ab_toy.WORLD,
        ToyRecipe(d_sae=3, arch="relu", steps=3000, lr=0.01, l1=0.07, start="inputs", bias=False),
        (*ONE_EACH, *_trials("abs_cos:6", "abs_cos:0.4@on=encoder")),
        (*LADDERS, *_trials("abs_cos:6", "abs_cos:0.1/0.4@on=encoder")),
        ("composite", "recovered", "fvu", "dead", "nearest_cos"),
    ),
    Experiment(
        "absorption",
        "Chanin's toy: a child that comes only with its parent, four features and latents (ReLU, L1)",
        PAIR, SMALL, ONE_EACH, LADDERS,
    ),
    Experiment(
        "absorption-95",
        "... one child in twenty without its parent",
        PAIR._replace(probability=(0.25, 0.19, 0.05, 0.05), stray=(0, 0.0025 / 0.75, 0, 0)),
        SMALL, (), LADDERS,
    ),
    Experiment(
        "absorption-sizes",
        "... the parent's size spread by .1",
        PAIR._replace(spread=(0.1, 0, 0, 0), listed=False), SMALL, (), LADDERS,
    ),
    Experiment(
        "absorption-batchtopk",
        "... twelve features and latents, BatchTopK 2",
        World(d_in=50, parent=(None, 0, *[None] * 10), probability=(0.4, 0.6, *[0.15] * 10)),
        ToyRecipe(d_sae=12, arch="batchtopk", steps=2500, lr=3e-3, k=2),
        (), LADDERS,
    ),
    Experiment(
        "tree",
        "Matryoshka's tree: three parents of three children, eight features alone, 20 latents (ReLU, L1)",
        forest(20, Trees(3, 0.15, children=3, child_probability=0.2), Singles(8, 0.05)),
        ToyRecipe(d_sae=20, arch="relu", steps=2500, lr=0.01, l1=0.02, start="inputs", bias=False),
        (), (*LADDERS, *RIVALS),
    ),
    Experiment(
        "trees-relu",
        "Eight parents of four children, orthogonal in 64 dimensions, 40 latents (ReLU, L1)",
        TREES,
        ToyRecipe(d_sae=40, arch="relu", steps=2500, lr=3e-3, l1=0.02, start="inputs", bias=False),
        (), FEW,
    ),
    Experiment(
        "trees-topk",
        "Eight parents of four children, orthogonal in 64 dimensions, 40 latents (TopK 4)",
        TREES,
        ToyRecipe(d_sae=40, arch="topk", steps=2500, lr=3e-3, k=4),
        (), (*FEW, *TRUTH, *RIVALS),
    ),
    Experiment(
        "superposition",
        "Sixteen parents of four children, 80 random directions in 32 dimensions, 96 latents (TopK 3)",
        CROWDED,
        IN_CROWD,
        (BASELINE, *_trials("coactive:0.7@anchored")),
        (
            BASELINE, *TRUTH,
            *_trials("abs_cos:1/3", "abs_cos:3@margin=0.2", "sq_cos:1/10/100", "max_cos:0.1/0.25/0.5/1",
                     "max_cos:1@margin=0.15", "max_cos:0.1/0.35/1@anchored", "freq_cos:0.3/1", "coactive:0.1/0.3",
                     "coactive:0.2/0.7/1.2/2@anchored", "max_cos:0.5@on=encoder", "coactive:0.3@on=encoder",
                     "c2r:5/20", "silent:0.3/1/3", "align:0.1/0.3/1", "none@decoder=frozen/0.8", "none@encoder=frozen",
                     "coactive:0.7/1.2@anchored@start=0.5", "coactive:1@anchored@start=0.8"),
            *_trials("coactive:0.7/2/5@anchored", margin=0.15),
            *_trials("coactive:2@anchored", stop=0.5),
            *_trials("coactive:2@anchored", "max_cos:1", stop=0.8),
            *_trials("none@arch=batchtopk@k=2/3"),
        ),
        CROWD_SHOWN,
    ),
    Experiment(
        "superposition-batchtopk",
        "The same, BatchTopK 3",
        CROWDED,
        IN_CROWD._replace(arch="batchtopk"),
        (BASELINE, *_trials("coactive:0.4@anchored"), TWO_LEVELS),
        (
            BASELINE, *TRUTH,
            *_trials("abs_cos:1", "abs_cos:3@margin=0.2", "sq_cos:1/10", "max_cos:0.1/0.25/0.5/1",
                     "max_cos:0.35@anchored", "freq_cos:0.3/1", "coactive:0.1/0.3",
                     "coactive:0.2/0.4/0.7/1.2@anchored", "none@arch=matryoshka",
                     "c2r:5/20", "silent:0.3/1/3", "align:0.1/0.3/1", "none@decoder=frozen/0.8", "none@encoder=frozen"),
            TWO_LEVELS,
            *_trials("coactive:0.7/2@anchored", margin=0.15),
            *_trials("coactive:0.7@anchored", stop=0.8),
        ),
        CROWD_SHOWN,
    ),
    Experiment(
        "told",
        "Eight parents of four children, 40 random directions in 20 dimensions, 48 latents (BatchTopK 3), as compare sees it",
        forest(20, Trees(8, 0.12, children=4, child_probability=0.2), superposed=True),
        ToyRecipe(d_sae=48, arch="batchtopk", steps=1500, lr=3e-3, k=3),
        (), (BASELINE, *SPREAD, *NESTED),
        TOLD_SHOWN, True,
    ),
)  # fmt: skip
