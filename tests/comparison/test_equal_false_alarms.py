"""What costs nothing is no less absorption: edits of trained SAEs, through the whole comparison."""

import json
from dataclasses import replace
from statistics import median

import pytest

import sae_lm
from sae_lm.commands.compare import compare
from sae_lm.commands.train import train
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.model import SAE
from sae_lm.settings import CompareSettings, TrainSettings

pytestmark = pytest.mark.transformer_lens_3

SEEDS = 5
EDITS = {"abs_cos:1.2": 1.2, "abs_cos:1.4": 1.4}
"""Names that edited SAEs go by, and what their main latents are turned up by."""


def comparing(runs, out):
    return CompareSettings(
        runs=runs, out=out, min_words=1, probe_gate=0.5, per_type=20, contextual=False, model="none", seed=4, max_k=1
    )


def write_turned_up(runs, arm, seed, main, factor):
    """A copy of the baseline's SAE in which the encoders of its main latents are louder and their decoder rows quieter."""
    sae = sae_lm.load(runs / f"none-seed{seed}")
    weights = {name: value.clone() for name, value in sae.named_parameters()}
    weights["W_enc"][:, main] *= factor
    weights["b_enc"][main] *= factor
    weights["W_dec"][main] /= factor
    metadata = {**sae.config.metadata, "arm": arm, "penalty": "abs_cos", "coefficient": factor}
    folder = runs / f"{arm.replace(':', '_')}-seed{seed}"
    save(SAE(replace(sae.config, metadata=metadata), weights), folder)
    config = json.loads((folder / "cfg.json").read_text())
    config["rescale_acts_by_decoder_norm"] = False  # else the norms would be moved back into the encoder
    (folder / "cfg.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def report(tiny_store, tmp_path_factory, few_words):
    """The baseline, and itself with its main latents turned up."""
    folder = tmp_path_factory.mktemp("edited")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("sae_lm.pages.figures.write_figures", lambda report, folder: [])
    settings = {
        "hook": "blocks.1.hook_out",
        "d_sae": 48,
        "k": 4,
        "tokens": 3000,
        "batch_size": 64,
        "lr": 3e-3,
        "optimizer": "adam",
        "whiten": False,
        "matmul": "float32",
    }
    runs = train(
        TrainSettings(
            store=tiny_store, arms="none", seeds=SEEDS, held_out=0.5, dead_after=500, out=folder / "runs", **settings
        )
    )
    before = compare(comparing(runs, folder / "before"))["per_concept"]
    for arm, factor in EDITS.items():
        for seed in range(SEEDS):
            of_seed = [entry["latents"] for entry in before if (entry["arm"], entry["seed"]) == ("none", seed)]
            write_turned_up(runs, arm, seed, sorted({latent for latents in of_seed for latent in latents}), factor)
    yield compare(comparing(runs, folder / "after"))
    monkeypatch.undo()


def difference(report, arm, metric):
    (found,) = (d for d in report["differences"] if (d["arm"], d["metric"]) == (arm, metric))
    return found


def test_main_latents_that_are_turned_up_lower_the_plain_hole_rate_and_claim_nothing(report):
    for arm in EDITS:
        plain, equal = difference(report, arm, "hole_rate"), difference(report, arm, "equal_hole_rate")
        assert plain["mean"] < -0.02 and max(plain["per_seed"]) <= 0
        assert equal["verdict"] in ("equivalent", "not distinguishable")
        # of most SAEs: in one of five a concept may get another main latent, as others have become louder
        assert abs(median(equal["per_seed"])) < abs(median(plain["per_seed"])) / 5
    assert difference(report, "abs_cos:1.4", "hole_rate")["verdict"] == "lower"
    (said,) = (finding for finding in report["findings"] if finding.startswith("abs_cos:1.4"))
    assert "no claim on absorption" in said and "which main latents that fire more often give for nothing" in said
    assert "No difference in absorption or splitting from none is shown" in report["answer"]


def test_with_the_same_main_latents_holes_at_equal_false_alarms_are_the_same(report):
    """But for what other concepts' main latents, louder too, take from them: up to a row or two here."""
    figures = {(entry["arm"], entry["seed"], entry["concept"]): entry for entry in report["per_concept"]}
    same = 0
    for (arm, seed, concept), edited in figures.items():
        own = figures["none", seed, concept]
        if arm in EDITS and edited["latents"] == own["latents"]:
            assert edited["equal_hole_rate"] == pytest.approx(own["equal_hole_rate"], abs=0.03)
            assert edited["gate_ratio"] == pytest.approx(EDITS[arm] * own["gate_ratio"], rel=0.1)
            assert edited["firing_rate"] >= own["firing_rate"]
            same += 1
    assert same >= SEEDS


def test_false_alarms_of_the_baseline_are_on_average_what_all_are_brought_to(report):
    """On rows of other words than holes are counted on, so that here they are near each other and no more."""
    at = [value for arm in report["arms"].values() for value in arm["values"]["equal_false_alarms"]]
    own = report["arms"]["none"]["values"]["main_false_alarms"]
    assert max(at) - min(at) < 0.2 and abs(sum(at) / len(at) - sum(own) / len(own)) < 0.1
