"""The benchmarks that nothing else runs, in small: they go on working as what they measure changes."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from sae_lm.metrics.codes import firing_codes

BENCHMARKS = Path(__file__).parent / "benchmarks"


def test_what_penalties_cost_is_measured_for_every_arm(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    small = ["--d-in", "8", "--d-sae", "64", "--batch", "40", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["penalties.py", *small])
    told = runpy.run_path(str(BENCHMARKS / "penalties.py"), run_name="__main__")
    head, *lines = capsys.readouterr().out.splitlines()
    assert "8 -> 64" in head
    assert [line.split(" ")[0] for line in lines] == ["none", *told["ARMS"]]


def test_the_parts_of_a_comparison_that_are_timed_are_where_they_are_looked_for():
    parts = runpy.run_path(str(BENCHMARKS / "comparing.py"))["PARTS"]
    there = [(module, name) for module, names in parts.items() for name in names]
    assert [pair for pair in there if not callable(getattr(importlib.import_module(pair[0]), pair[1], None))] == []


def test_held_out_rows_are_measured_for_every_sae_of_a_folder(tiny_store, tmp_path, monkeypatch, capsys):
    from sae_lm.commands.train import train
    from sae_lm.settings import TrainSettings

    settings = {"hook": "blocks.1.hook_out", "d_sae": 64, "k": 4, "arms": "none@k=2/4", "seeds": 1, "tokens": 640}
    out = train(TrainSettings(store=tiny_store, **settings, batch_size=64, out=tmp_path / "runs"))
    monkeypatch.setattr(sys, "argv", ["held_out.py", str(out)])
    capsys.readouterr()
    runpy.run_path(str(BENCHMARKS / "held_out.py"), run_name="__main__")
    _, *lines = capsys.readouterr().out.splitlines()
    assert torch.is_grad_enabled(), "what is switched off for it is on again, for the tests that follow"
    found = {name: [float(value) for value in values] for name, *values in map(str.split, lines)}
    assert list(found) == ["none@k=2-seed0", "none@k=4-seed0"]
    for k, (fvu, l0, projection, start) in zip((2, 4), found.values(), strict=True):
        assert 0 < fvu < 1.5 and l0 == k and projection > 0 and 0.5 < start <= 1


def test_a_sweep_of_the_recipe_changes_schedule_and_architecture_and_refuses_what_it_does_not_know(
    tiny_store, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    told = runpy.run_path(str(BENCHMARKS / "convergence.py"))
    job = told["read_options"]("arm=none@arch=relu@k=3,warm_up=0.5,decay=0.25,batch=64,lr=1e-2")
    assert job == {"arm": "none@arch=relu@k=3", "warm_up": 0.5, "decay": 0.25, "batch": 64, "lr": 0.01}
    sizes = {"steps": 100, "d_sae": 64, "k": 4, "d_in": 8, "matmul": "float32"}
    recipe = importlib.import_module("training_steps").recipe({**sizes, **job})
    assert recipe.learning_rate(24) == 0.005 and recipe.learning_rate(75) == 0.01 > recipe.learning_rate(76)
    with pytest.raises(SystemExit, match="unknown rows; expected lr, batch"):
        told["read_options"]("rows=5")

    small = ["--rows", "256", "--unseen", "64", "--d-sae", "64", "--k", "4", "--threads", "1"]
    ours = ["--ours", "batch=64", "batch=64,arm=none@arch=relu"]
    monkeypatch.setattr(sys, "argv", ["convergence.py", str(tiny_store), "--hook", "blocks.1.hook_out", *small, *ours])
    told["main"]()
    _, plain, relu = capsys.readouterr().out.splitlines()
    assert "batch=64,arm=none@arch=relu" in relu and plain.split()[-1] != relu.split()[-1]


def test_families_on_one_curve_are_told_apart_far_from_what_was_trained_and_seldom_near_it(capsys):
    told = runpy.run_path(str(BENCHMARKS / "false_claims.py"))
    told["main"](1, 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip().startswith(kind) for line, kind in zip(lines[2:], told["KINDS"], strict=False)] == [True] * 4
    plain, corrected = (int(number) for number in re.findall(r"in (\d+)", lines[-1]))
    assert corrected <= plain
    ladder, line = ([0.002, 0.004], [0.0029, 0.0058], 0.0029), ([0.0022, 0.0062], [0.0049], 0.003)
    near, far = (told["told_apart"](case, (0.004, 0.0002), 40) for case in (ladder, line))
    assert near.compared > 30 and near.apart_by_rule <= 20, "two of 40 worlds are by chance"
    assert far.worlds > 30 and far.apart > 90 and far.compared == 0


def test_other_rankings_of_main_latents_are_those_of_the_dense_columns():
    told = runpy.run_path(str(BENCHMARKS / "rankings.py"))
    draw = torch.Generator().manual_seed(0)
    dense = torch.rand(300, 6, generator=draw) * 5 * (torch.rand(300, 6, generator=draw) < 0.4)
    labels = torch.stack([dense[:, 2] > 0, torch.rand(300, generator=draw) < 0.2], 1)
    codes = firing_codes(dense, torch.arange(6).expand(300, 6), 6)
    got = {name: rank_by(codes, labels, 0) for name, rank_by in told["RANKED_BY"].items()}
    for concept, there in enumerate(labels.T):
        difference = dense[there].mean(0) - dense[~there].mean(0)
        torch.testing.assert_close(got["mean difference"][:, concept].float(), difference)
        both = torch.corrcoef(torch.cat([dense.T, there[None].float()]))
        torch.testing.assert_close(got["correlation"][:, concept].float(), both[-1, :-1])
    assert all(weights[:, 0].argmax() == 2 for weights in got.values())
    published, longer = got["l1_probe"], got["l1_probe, 300 epochs"]
    assert longer.abs().max() > 2 * published.abs().max() and torch.equal(told["l1_probe"](codes, labels, 0), published)


def test_reports_of_several_lengths_are_told_in_the_order_of_rows_and_of_no_other_difference(
    tmp_path, monkeypatch, capsys
):
    told = runpy.run_path(str(BENCHMARKS / "standstill.py"))

    def report(name, tokens, holes, **training):
        values = {metric: [0.25, 0.75] for metric in told["FIGURES"]}
        arms = {"none": {"values": values}, "max_cos:1": {"values": values | {"equal_hole_rate": holes}}}
        arms["abs_cos:1"] = arms["max_cos:1"]
        written = {"training": {"tokens": tokens, "lr": 1e-3, **training}, "arms": arms, "baseline": "none"}
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(written))
        return str(tmp_path / name)

    long, short = report("long", 2_000_000, [0.125, 0.5]), report("short", 1_000_000, [0.5, 1.0])
    picture = tmp_path / "curve.png"
    monkeypatch.setattr(sys, "argv", ["standstill.py", long, short, "--picture", str(picture), "--arms", "max_cos:1"])
    told["main"]()
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if "max_cos" in line]
    assert [line[0] for line in lines[:3]] == ["1M", "2M", "1M"] and "abs_cos" not in out
    assert [line[3] for line in lines[:2]] == ["0.7500", "0.3125"], "means of equal holes"
    (holes,) = (" ".join(line) for line in lines if line[0] == "2M" and line[2:4] == ["equal", "holes"])
    assert holes.endswith("-0.1875 (-0.125, -0.250)") and picture.stat().st_size > 1000

    for name, wrong in (
        ("other", report("other", 4_000_000, [0, 0], lr=2e-3)),
        ("again", report("again", 2_000_000, [0, 0])),
    ):
        monkeypatch.setattr(sys, "argv", ["standstill.py", long, wrong])
        with pytest.raises(SystemExit, match={"other": "differ in lr too", "again": "one of each length"}[name]):
            told["main"]()


def test_cost_and_gain_by_both_rankings_are_drawn_and_a_report_of_one_is_refused(tmp_path, monkeypatch):
    told = runpy.run_path(str(BENCHMARKS / "both_rankings.py"))
    metrics = ["fvu", *(metric + ranking for metric in told["OUTCOMES"] for ranking in told["RANKINGS"])]
    differences = [{"arm": "max_cos:1", "metric": metric, "mean": 0.1, "low": 0.0, "high": 0.2} for metric in metrics]
    report, picture = tmp_path / "report.json", tmp_path / "both.png"
    report.write_text(json.dumps({"differences": differences}))
    monkeypatch.setattr(sys, "argv", ["both_rankings.py", str(tmp_path), "--picture", str(picture)])
    told["main"]()
    assert picture.stat().st_size > 1000
    report.write_text(json.dumps({"differences": differences[:-1]}))
    with pytest.raises(
        SystemExit, match=r"no absorption_fraction_by_f1 of max_cos:1; compare with --rank-latents both"
    ):
        told["main"]()
