"""Products are in bfloat16 where the device has it, and a folder goes on as it was begun, whatever machine goes on."""

import json
from contextlib import contextmanager

import pytest
import torch
from train_runs import settings_for, stopped, weights

from sae_lm.commands import train as of_train
from sae_lm.commands.train import train
from sae_lm.data.store import open_store
from sae_lm.errors import SaeError
from sae_lm.penalties.arms import parse_arms
from sae_lm.runtime.device import has_bfloat16, imitation
from sae_lm.settings import TrainSettings
from sae_lm.training.locks import only_trainer
from sae_lm.training.recipe import TrainingRecipe


@pytest.fixture
def settings(tiny_store, tmp_path):
    def make(**changes):
        given = {"store": tiny_store, "arms": "none", "tokens": "3k", "matmul": "auto", "out": tmp_path / "runs"}
        return settings_for(**{**given, **changes})

    return make


@pytest.fixture
def machine(monkeypatch):
    def has(answer):
        monkeypatch.setattr("sae_lm.training.recipe.has_bfloat16", lambda device: answer)
        monkeypatch.setattr("sae_lm.runtime.device.has_bfloat16", lambda device: answer)

    return has


def recorded(folder):
    return json.loads((folder / "run.json").read_text())["facts"]["matmul"]


@pytest.mark.parametrize(
    ("asked", "there", "chosen"),
    [("auto", True, "bfloat16"), ("auto", False, "float32"), ("bfloat16", False, "bfloat16"), ("float32", True, "float32")],
)  # fmt: skip
def test_it_is_bfloat16_where_the_device_has_it_or_where_that_is_asked_for(
    tiny_store, monkeypatch, asked, there, chosen
):
    monkeypatch.setattr("sae_lm.training.recipe.has_bfloat16", {"cpu": not there, "cuda:1": there}.get)
    settings = TrainSettings(store=tiny_store, hook="1", d_sae=64, k=4, matmul=asked, out=tiny_store)
    recipe = TrainingRecipe.from_settings(settings, open_store(tiny_store), parse_arms(["none"]), "cuda:1")
    assert recipe.matmul == chosen and recipe.matmul_dtype == getattr(torch, chosen)


@pytest.mark.parametrize(
    ("name", "tells", "has"),
    [
        ("x86_64", {"_is_avx512_bf16_supported": True}, True),
        ("x86_64", {"_is_amx_tile_supported": True}, True),
        ("AMD64", {"_is_mkldnn_bf16_supported": True}, False),  # any AVX-512, where float32 is faster
        ("x86_64", {}, False),
        ("aarch64", {"_is_mkldnn_bf16_supported": True}, True),
        ("aarch64", {"_is_mkldnn_bf16_supported": False}, False),
        ("arm64", {"no oneDNN": True}, False),
    ],
)
def test_a_cpu_has_bfloat16_where_it_need_not_imitate_it(monkeypatch, name, tells, has):
    monkeypatch.setattr("platform.machine", lambda: name)
    for flag in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, flag, lambda flag=flag: flag in tells)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: "no oneDNN" not in tells)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: tells["_is_mkldnn_bf16_supported"])
    assert has_bfloat16("cpu") is has


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_has_float16_where_it_says_so(monkeypatch, has):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_fp16": has, "amx_fp16": False}, raising=False)
    assert (imitation(torch.float16, "cpu", "") == "") is has and imitation(torch.float32, "cpu", "") == ""
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # a torch that cannot tell: nothing is said
    assert imitation(torch.float16, "cpu", "") == ""


def test_of_several_cards_the_one_that_is_named_is_asked(monkeypatch):
    current = [0]

    @contextmanager
    def device(named):
        before, current[0] = current[0], torch.device(named).index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: [True, False][current[0]])
    assert (has_bfloat16("cuda:0"), has_bfloat16("cuda:1")) == (True, False)


@pytest.mark.parametrize("first", [True, False], ids=["bfloat16", "float32"])
def test_a_folder_goes_on_as_it_was_begun_on_a_machine_that_would_choose_otherwise(
    settings, machine, monkeypatch, tmp_path, capsys, first
):
    machine(first)
    whole = weights(train(settings(arms="none,max_cos:0.5", out=tmp_path / "whole")))
    stopped(settings(), 12, monkeypatch)
    machine(not first)
    out = train(settings())  # from the checkpoint
    train(settings(arms="none,max_cos:0.5"))  # beside the SAE
    assert weights(out) == whole
    note = f"note: this cpu only imitates bfloat16, which is many times slower; SAEs of {out} have it, for float32 give"
    assert capsys.readouterr().err.count(note) == (2 if first else 0)
    (out / "run.json").unlink()
    train(settings(arms="none,max_cos:1"))
    begun, other = ("bfloat16", "float32")[:: 1 if first else -1]
    with pytest.raises(SaeError, match=f'trained otherwise: matmul is "{begun}", asked for "{other}"; give another'):
        train(settings(matmul=other))


@pytest.mark.parametrize("changes", [{"matmul": "bfloat16"}, {"lr": 1e-3}], ids=str)
def test_a_command_that_a_checkpoint_refuses_leaves_everything_as_it_was(settings, machine, monkeypatch, changes):
    machine(False)
    stopped(settings(first_seed=1), 12, monkeypatch)
    out = settings().out
    before = (out / "run.json").read_bytes()
    for asked in ({"first_seed": 1}, {"seeds": 2}):  # the same SAE, and one before it
        with pytest.raises(SaeError, match=rf"seed1-\w+ was begun otherwise: {next(iter(changes))} is"):
            train(settings(**asked, **changes))
        assert (out / "run.json").read_bytes() == before and weights(out) == {}
    train(settings(first_seed=1))
    assert recorded(out) == "float32" and len(weights(out)) == 1


def test_a_command_under_which_nothing_was_trained_settles_nothing(settings, machine, monkeypatch):
    machine(True)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(of_train, "_train_groups", lambda *_: 1 / 0)
        train(settings())
    assert recorded(settings().out) == "bfloat16"
    machine(False)
    assert recorded(train(settings())) == "float32"


def test_a_command_follows_one_that_began_the_folder_in_the_same_moment(settings, machine, monkeypatch):
    machine(True)
    out = settings().out
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(of_train, "_train_groups", lambda *_: 1 / 0)
        train(settings())
    machine(False)
    answers, real = [None], of_train.begun_recipe
    monkeypatch.setattr(of_train, "begun_recipe", lambda *given: answers.pop() if answers else real(*given))
    with only_trainer(out, ["none-seed0"]):
        train(settings(arms="max_cos:1"))
    assert recorded(out) == "bfloat16"


def test_slow_training_that_was_asked_for_is_told(settings, machine, capsys):
    machine(False)
    train(settings(matmul="bfloat16"))
    assert "many times slower; give --matmul float32" in capsys.readouterr().err
