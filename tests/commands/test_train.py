"""Training goes on where it was killed, bit for bit, whatever the architecture; ranks share it out; bad ends are said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import flags_of
from recipes import training_recipe
from safetensors.torch import load_file, save_file
from train_runs import HOOK, contents, settings_for, stop_at, untimed

import sae_lm
from sae_lm.commands.train import train
from sae_lm.errors import SaeError, SettingsError, Stopped
from sae_lm.penalties.arms import parse_arms
from sae_lm.runtime.files import sha256

SUPPORT = Path(__file__).parents[1] / "support"
ARMS = "none,max_cos:0.25@fvu=0.01,none@arch=batchtopk,none@arch=matryoshka,coactive@arch=relu,none@arch=jumprelu"
"""Every architecture, a controller, a penalty with memory, one with codes."""


@pytest.fixture
def train_settings(tiny_store, tmp_path):
    return lambda out="runs", **changes: settings_for(**{"store": tiny_store, "out": tmp_path / out, **changes})


def test_training_stopped_at_any_step_ends_with_the_same_bits(train_settings, monkeypatch):
    whole = contents(train(train_settings("whole", arms=ARMS)))
    assert len([name for name in whole if name.endswith(".safetensors")]) == 6
    settings = train_settings(arms=ARMS)
    for step in (1, 17, 42, 58):
        with monkeypatch.context() as patch, pytest.raises(Stopped, match=f"step {step + 1} of 60, seed 0, is kept"):
            stop_at(step, patch)
            train(settings)
        assert not list(settings.out.glob("*-seed0"))
    assert contents(train(settings)) == whole


HELD = (
    "c2r@arch=jumprelu,silent@fvu=0.01,align:0.1@arch=matryoshka,none@decoder=0.95,none@decoder=frozen@arch=batchtopk,"
    "c2r@anchored@encoder=frozen@arch=relu"
)
"""Penalties through activations and encoder, and rows that are held: what they keep between steps."""


def test_controls_and_penalties_on_more_than_the_decoder_end_with_the_same_bits(train_settings, monkeypatch):
    whole = contents(train(train_settings("whole", arms=HELD, tokens="3k")))
    settings = train_settings(arms=HELD, tokens="3k")
    for step in (1, 17):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_at(step, patch)
            train(settings)
    assert contents(train(settings)) == whole


def test_training_killed_again_and_again_ends_with_the_same_bits(train_settings, tmp_path):
    settings = train_settings(arms="none,max_cos:0.5@arch=batchtopk", tokens="20k", checkpoint_seconds=0.05, seeds=2)
    values = settings.model_dump(mode="json") | {"out": str(tmp_path)}
    (tmp_path / "settings.json").write_text(json.dumps(values))
    command = [sys.executable, str(SUPPORT / "kills.py"), "train", str(tmp_path / "settings.json"), "6", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 6


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(train_settings, monkeypatch, capsys):
    whole = contents(train(train_settings("whole")))
    settings = train_settings(checkpoint_seconds=0)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(30, patch)
        train(settings)
    checkpoints = sorted(settings.out.glob("state/*/[0-9]*"))
    assert [int(path.name) for path in checkpoints] == [30, 31]
    victim = checkpoints[-1] / "001.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert contents(train(settings)) == whole
    said = capsys.readouterr().out
    assert "a damaged checkpoint is passed over" in said and "continuing at step 30" in said


def test_an_unfinished_run_is_not_continued_with_other_settings(train_settings, monkeypatch):
    settings = train_settings()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(30, patch)
        train(settings)
    with pytest.raises(SaeError, match=r"was begun otherwise: lr is 0.002, asked for 0.001; give the same settings"):
        train(train_settings(lr=1e-3))


def test_a_checkpoint_that_lacks_something_is_refused_in_one_sentence(train_settings, monkeypatch):
    settings = train_settings(arms="none")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(30, patch)
        train(settings)
    (folder,) = settings.out.glob("state/*/[0-9]*")
    tensors = load_file(folder / "000.safetensors")
    del tensors["rows_since_fired"]
    save_file(tensors, folder / "000.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state["files"]["000.safetensors"] = sha256(folder / "000.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(SaeError, match=r"does not hold what this version continues from \('rows_since_fired'\); go on"):
        train(settings)


def test_an_arm_added_to_an_unfinished_run_changes_none_of_the_others(train_settings, monkeypatch):
    whole = contents(train(train_settings("whole", arms="none,max_cos:0.5,abs_cos:1")))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(30, patch)
        train(train_settings())
    assert contents(train(train_settings(arms="none,max_cos:0.5,abs_cos:1"))) == whole


def test_an_arm_that_does_not_heed_a_setting_is_added_to_a_folder_whose_first_arms_do(train_settings):
    with pytest.raises(SettingsError, match="sparsity_coefficient is 0.1, and no arm is relu or jumprelu"):
        train(train_settings(arms="none", sparsity_coefficient=0.1, tokens="1k"))
    out = train(train_settings(arms="none@arch=relu", sparsity_coefficient=0.1, tokens="1k"))
    train(train_settings(arms="none", sparsity_coefficient=0.1, tokens="1k"))
    assert (out / "none-seed0").is_dir()


def test_arms_one_at_a_time_are_the_arms_together(train_settings):
    together = contents(train(train_settings("together", arms=ARMS)))
    apart = contents(
        train(train_settings("apart", arms=ARMS, arms_at_once=1))
    )  # the steered arm has its baseline beside it
    assert apart == together


def test_ladders_are_arms_of_one_line(train_settings):
    runs = train(train_settings(arms="none@k=2/4,max_cos:0.1/1", tokens="1k"))
    assert sorted(path.name for path in runs.glob("*-seed0")) == [
        "max_cos_0.1-seed0", "max_cos_1-seed0", "none@k=2-seed0", "none@k=4-seed0",
    ]  # fmt: skip
    assert [sae_lm.load(runs / f"none@k={k}-seed0").config.k for k in (2, 4)] == [2, 4]
    with pytest.raises(SettingsError, match="k is 65, more than the 64 latents"):
        train(train_settings(arms="none@k=65"))


def started(settings, ranks, threads=1):
    """`sae-lm train` under torchrun."""
    flags = flags_of(settings)
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    return subprocess.Popen(
        [*run, "-m", "sae_lm", "train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )


def test_ranks_share_out_arms_and_seeds(train_settings):
    alone = contents(train(train_settings("alone", seeds=2)))
    settings = train_settings(seeds=2)
    run = started(settings, 3, threads=torch.get_num_threads())
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 0, said[-3000:]
    assert contents(settings.out) == alone


TOGETHER = f"{ARMS},coactive:0.3@anchored@exact,freq_cos:0.1@exact,max_cos@coherence=0.3"


@pytest.mark.parametrize(
    ("arms", "resample_every", "count"), [(TOGETHER, 9, 9), (HELD, 0, 6)], ids=["resampling", "held"]
)
def test_two_ranks_train_one_sae_to_what_a_single_process_gives(train_settings, arms, resample_every, count):
    """To rounding: in float32, over AuxK, resampling, every architecture and penalties that read the whole batch's codes.

    Where rounding tips which entry of a batch is its last, one latent or two go on otherwise.
    """
    both = {"arms": arms, "tokens": "3k", "matmul": "float32", "dead_after": 300, "resample_every": resample_every}
    alone = train(train_settings("alone", **both))
    settings = train_settings("two", ranks_per_sae=2, **both)
    run = started(settings, 2)
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 0, said[-3000:]
    names = sorted(path.name for path in alone.glob("*-seed0"))
    assert len(names) == count
    for name in names:
        mine, its = (load_file(runs / name / "sae_weights.safetensors") for runs in (settings.out, alone))
        for key in its:
            torch.testing.assert_close(
                mine[key], its[key], rtol=0.1, atol=1e-2, msg=lambda text, n=name: f"{n}: {text}"
            )
            other = ~torch.isclose(mine[key], its[key], rtol=2e-3, atol=2e-4)
            assert other.float().mean() < 0.05, f"{name}: {key}: {int(other.sum())} of {other.numel()} differ"
        logs = [untimed((runs / f"{name}.metrics.jsonl").read_bytes())[-1] for runs in (settings.out, alone)]
        for key in ("loss", "fvu", "l0", "dead"):
            assert logs[0][key] == pytest.approx(logs[1][key], rel=2e-3), (name, key)


NESTED = (
    "none@arch=matryoshka@fvu=0.02,none@arch=matryoshka@balance=0.5@prefixes=2,"
    "coactive:0.3@anchored@exact@arch=matryoshka@widths=8+64@fvu=0.02"
)
"""A balance that is steered beside batchtopk, drawn prefixes, a penalty's coefficient beside its own nesting."""


def test_nested_arms_stopped_at_any_step_end_with_the_same_bits(train_settings, monkeypatch):
    whole = contents(train(train_settings("whole", arms=NESTED, tokens="3k")))
    settings = train_settings("stopped", arms=NESTED, tokens="3k")
    stop_at(13, monkeypatch)
    with pytest.raises(Stopped):
        train(settings)
    assert contents(train(settings)) == whole
    names = {path.name for path in settings.out.glob("*-seed0")}
    assert names == {f"{arm.name.replace(':', '_')}-seed0" for arm in parse_arms(NESTED.split(","))}


def test_two_ranks_draw_the_same_prefixes_and_steer_to_the_same_balance(train_settings):
    both = {"arms": NESTED, "tokens": "3k", "matmul": "float32"}
    alone, settings = train(train_settings("alone", **both)), train_settings("two", ranks_per_sae=2, **both)
    run = started(settings, 2)
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 0, said[-3000:]
    logs = sorted(path.name for path in alone.glob("*.jsonl"))
    assert len(logs) == 3
    for name in logs:
        mine, its = (untimed((runs / name).read_bytes())[-1] for runs in (settings.out, alone))
        for key in {"loss", "fvu", "l0", "balance", "coefficient"} & its.keys():
            # a controller sums up what rounding does to a cost
            near = 2e-2 if key in ("balance", "coefficient") else 5e-3
            assert mine[key] == pytest.approx(its[key], rel=near), (name, key)


def test_a_team_that_is_told_to_stop_keeps_a_checkpoint_and_goes_on(train_settings):
    whole = train_settings("whole", ranks_per_sae=2, arms="none@arch=batchtopk", tokens="30k")
    run = started(whole, 2)
    assert run.wait(timeout=240) == 0
    settings = train_settings("stopped", ranks_per_sae=2, arms="none@arch=batchtopk", tokens="30k")
    run = started(settings, 2)
    log = settings.out / "none@arch=batchtopk-seed0.metrics.jsonl"
    while run.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    run.wait(timeout=240)
    if not (settings.out / "none@arch=batchtopk-seed0").exists():
        assert list((settings.out / "state").glob("seed0-*/[0-9]*/state.json"))
        run = started(settings, 2)
        said, _ = run.communicate(timeout=240)
        assert run.returncode == 0 and "continuing at step" in said, said[-2000:]
    assert contents(settings.out) == contents(whole.out)


def test_ranks_that_do_not_divide_are_refused(train_settings):
    run = started(train_settings(ranks_per_sae=2), 3)
    said, _ = run.communicate(timeout=240)
    assert run.returncode != 0 and "ranks_per_sae is 2, which does not divide 3 processes" in said, said[-2000:]


def test_a_tracker_whose_library_is_missing_is_refused_before_the_work(train_settings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="trackers names wandb, whose library is not installed; pip install wandb"):
        train(train_settings(trackers="wandb"))
    with pytest.raises(SettingsError, match="trackers.*mlflow"):
        train_settings(trackers="mlflow")


def test_a_signal_from_outside_ends_training_with_a_checkpoint(train_settings):
    settings = train_settings(tokens="2M", arms="none")
    flags = flags_of(settings)
    process = subprocess.Popen([sys.executable, "-m", "sae_lm", "train", *flags], stderr=subprocess.PIPE, text=True)
    log = settings.out / "none-seed0.metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "of 20000, seed 0, is kept" in said and len(list(settings.out.glob("state/*/[0-9]*"))) == 1


def test_a_nan_in_a_batch_is_named_and_the_last_checkpoint_kept(train_settings, tiny_store, tmp_path):
    import shutil

    broken = shutil.copytree(tiny_store, tmp_path / "broken")
    file = broken / HOOK / "00004.safetensors"
    tensors = load_file(file)
    tensors["rows"][3, 2] = float("nan")
    save_file(tensors, file)
    settings = train_settings(store=broken, checkpoint_seconds=0, log_every=5)
    with pytest.raises(
        SaeError, match=r"arm none, seed 0: batch \d+ holds a NaN .* --repair; the checkpoint of step \d+ is kept"
    ):
        train(settings)
    assert list(settings.out.glob("state/*/[0-9]*"))


def test_a_loss_that_runs_away_names_step_and_arm(train_settings):
    with pytest.raises(
        SaeError,
        match=r"arm none, seed 0: the loss or a weight became NaN or infinite by step \d+; lower --lr with another",
    ):
        train(train_settings(lr=1e30, arms="none"))


@pytest.mark.parametrize(
    ("seeds", "arms", "teams", "longest", "together"),
    [
        (3, 3, 1, 9, 3),
        (3, 3, 2, 5, 2),
        (3, 3, 4, 3, 3),
        (3, 3, 5, 2, 2),
        (3, 3, 8, 2, 2),
        (1, 6, 2, 3, 3),
        (2, 1, 8, 1, 1),
    ],
)
def test_teams_get_shares_that_let_the_last_end_earliest(
    train_settings, monkeypatch, seeds, arms, teams, longest, together
):
    import sae_lm.commands.train as command

    monkeypatch.setattr(command, "is_done", lambda *_: False)
    monkeypatch.setattr(command, "read_unfinished", lambda *_: [])
    settings = train_settings(seeds=seeds)
    groups, missing = command._share_out(
        settings, training_recipe(), parse_arms([f"none@k={k}" for k in range(1, arms + 1)]), teams
    )
    assert missing == seeds * arms == sum(len(group.arms) for group in groups)
    shares = command._shares(groups, teams)
    assert max(sum(len(group.arms) for group in share) for share in shares) == longest
    assert sorted(map(id, groups)) == sorted(id(group) for share in shares for group in share)
    assert max(len(group.arms) for group in groups) == together


def test_an_sae_that_names_its_own_k_is_reused_whatever_the_runs(train_settings):
    out = train(train_settings(arms="none@k=2", tokens="1k"))
    before = (out / "none@k=2-seed0" / "sae_weights.safetensors").stat().st_mtime_ns
    train(train_settings(arms="none@k=2,none@k=3", tokens="1k", k=8))
    assert (out / "none@k=2-seed0" / "sae_weights.safetensors").stat().st_mtime_ns == before
    train(train_settings(arms="none", tokens="1k"))
    with pytest.raises(SaeError, match="trained otherwise: k is 4, asked for 8"):
        train(train_settings(arms="none", tokens="1k", k=8))
