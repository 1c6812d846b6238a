"""The benchmarks that nothing else runs, in small: they go on working as what they measure changes."""

import importlib
import runpy
import sys
from pathlib import Path

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
