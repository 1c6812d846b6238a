"""sae_lm.training.run_folder: its docstring is the format on disk, and reading it needs little."""

import json
import math
import subprocess
import sys

import pytest

from sae_lm.commands.train import train
from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import parse_arm
from sae_lm.settings import TrainSettings
from sae_lm.training import run_folder
from sae_lm.training.recipe import TrainingRecipe
from sae_lm.training.run_folder import log_file, read_run, read_sae, read_saes, sae_folder
from sae_lm.training.trackers import read_lines


@pytest.fixture(scope="module")
def runs(tiny_store, tmp_path_factory):
    return train(
        TrainSettings(
            store=tiny_store, hook="1", d_sae=128, k=4, tokens="3k", batch_size=100, arms="none@arch=batchtopk,max_cos:0.5@arch=relu",
            seeds=1, dead_after=100, out=tmp_path_factory.mktemp("folder") / "runs",
        )
    )  # fmt: skip


def written(runs):
    """Keys of run.json, of an SAE's metadata, of all lines of the logs."""
    run = json.loads((runs / "run.json").read_text())
    metadata = json.loads((runs / "max_cos_0.5@arch=relu-seed0" / "cfg.json").read_text())["metadata"]
    lines = [json.loads(line) for log in runs.glob("*.metrics.jsonl") for line in log.read_text().splitlines()]
    return (
        list(run),
        set(metadata) - {"sae_lens_version", "weights_sha256", "config_sha256"},
        {key for line in lines for key in line},
    )


def test_the_docstring_names_every_key_on_disk(runs):
    text = run_folder.__doc__
    run, metadata, log = written(runs)
    assert run == ["settings", "arms", "first_seed", "seeds", "store", "facts", "registered", "versions"]
    for key in run:
        assert f"\n    {key} " in text, key
    for key in metadata | log - {"nearest_cos_50", "nearest_cos_90"}:
        assert f"``{key}``" in text, key
    assert {"aux", "penalty", "sparsity", "threshold", "nearest_cos_90"} <= log


def test_run_json_and_every_sae_hold_the_same_recipe(runs):
    run = read_run(runs)
    recipe = TrainingRecipe(**run["facts"])
    assert [sae.directory.name for sae in read_saes(runs)] == [
        sae_folder(parse_arm(arm), 0) for arm in sorted(run["arms"])
    ]
    for sae in read_saes(runs):
        assert sae.training == run["facts"] == recipe.record()
        assert (sae.arm, sae.seed) in [(arm, 0) for arm in run["arms"]]
    assert {sae.architecture for sae in read_saes(runs)} == {"batchtopk", "relu"}  # as they were trained


@pytest.mark.parametrize("metadata", [None, [], {}, {"arm": 3, "seed": "0", "training": []}])
def test_of_another_programs_sae_arm_seed_and_recipe_are_not_known(tmp_path, metadata):
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "standard", "metadata": metadata}))
    assert read_sae(tmp_path) == (tmp_path, None, None, None, "standard")


def test_reading_a_folder_of_runs_needs_neither_torch_nor_the_trainer(runs):
    program = (
        "import sys; from pathlib import Path; from sae_lm.training.run_folder import read_run, read_saes; "
        f"folder = Path({str(runs)!r}); assert len(read_saes(folder)) == len(read_run(folder)['arms']) == 2; "
        "print([m for m in ('torch', 'numpy', 'sae_lm.training.trainer', 'sae_lm.data.store') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("asked", [{"first_seed": 123_456}, {"seeds": 200_000}, {"seeds": 10**14}])
def test_seeds_that_lie_so_far_apart_that_nothing_would_read_them_are_refused_before_the_work(runs, asked):
    before = (runs / "run.json").read_text()
    settings = TrainSettings(**{**json.loads(before)["settings"], **asked})
    with pytest.raises(SettingsError, match=r"seeds 0 to \d+; expected at most 100000 .*--first-seed or another"):
        train(settings)
    assert (runs / "run.json").read_text() == before
    read_run(runs)


def test_an_sae_that_was_steered_says_what_it_began_at_and_what_it_ended_at(tiny_store, tmp_path):
    arms = "none,max_cos:0.1@fvu=0.01,none@arch=matryoshka@fvu=0.01,max_cos:0.1@coherence=0.1"
    settings = {"hook": "blocks.1.hook_out", "d_sae": 48, "k": 4, "arms": arms, "seeds": 1, "tokens": 1280}
    out = train(TrainSettings(store=tiny_store, **settings, batch_size=64, out=tmp_path / "runs"))
    of_arm = {
        found["arm"]: found for path in out.glob("*/cfg.json") for found in [json.loads(path.read_text())["metadata"]]
    }
    for arm, keys in (
        ("max_cos:0.1@fvu=0.01", ("coefficient", "cost")),
        ("none@arch=matryoshka@fvu=0.01", ("balance", "cost")),
        ("max_cos:0.1@coherence=0.1", ("coefficient", "coherence")),
    ):
        last = read_lines(out / log_file(parse_arm(arm), 0))[-1]
        assert of_arm[parse_arm(arm).name]["steered_to"] == {key: last[key] for key in keys}
        assert keys[0] == "balance" or last["coefficient"] != 0.1
    assert of_arm["max_cos:0.1@fvu=0.01"]["coefficient"] == 0.1
    assert "steered_to" not in of_arm["none"]


@pytest.mark.usefixtures("unchecked")
def test_a_cost_that_no_coefficient_brings_about_ends_with_a_sentence_and_not_with_an_endless_coefficient(
    tiny_store, tmp_path, capsys
):
    """No two rows have such a cosine, so that the penalty is 0 whatever its coefficient."""
    arms = "none,max_cos:0.1@margin=0.99@fvu=0.01,max_cos:0.1@fvu=0.01"
    settings = {"hook": "blocks.1.hook_out", "d_sae": 48, "k": 4, "arms": arms, "seeds": 1, "tokens": 60_000}
    out = train(TrainSettings(store=tiny_store, **settings, batch_size=64, out=tmp_path / "runs"))
    said = capsys.readouterr().out
    arm = "max_cos:0.1@margin=0.99@fvu=0.01"
    assert f"{arm} was to cost 0.01 FVU and costs 0.0000: its coefficient does not bring that about" in said
    assert said.count("was to cost") == 1
    last = read_lines(out / log_file(parse_arm(arm), 0))[-1]
    assert last["coefficient"] == pytest.approx(0.1 * math.exp(6)) and last["cost"] == 0


@pytest.mark.usefixtures("unchecked")
def test_a_coherence_that_no_coefficient_brings_about_ends_with_a_sentence_too(tiny_store, tmp_path, capsys):
    """48 directions of 16 dimensions are not that far apart."""
    arms = "none,max_cos:0.1@coherence=0.01"
    settings = {"hook": "blocks.1.hook_out", "d_sae": 48, "k": 4, "arms": arms, "seeds": 1, "tokens": 90_000}
    out = train(TrainSettings(store=tiny_store, **settings, batch_size=64, out=tmp_path / "runs"))
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "was to have" in line]
    last = read_lines(out / log_file(parse_arm("max_cos:0.1@coherence=0.01"), 0))[-1]
    assert f"mean cosine to the nearest of 0.01 and has {last['coherence']:.3f}: its coefficient does not" in said
    assert last["coherence"] > 0.1 and last["coefficient"] == pytest.approx(0.1 * math.exp(6))
