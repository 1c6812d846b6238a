"""The benchmarks of training that nothing else runs, in small: they go on working as what they measure changes."""

import runpy
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_what_penalties_cost_is_measured_for_every_arm(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    small = ["--d-in", "8", "--d-sae", "64", "--batch", "40", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["penalties.py", *small])
    told = runpy.run_path(str(BENCHMARKS / "penalties.py"), run_name="__main__")
    head, *lines = capsys.readouterr().out.splitlines()
    assert "8 -> 64" in head
    assert [line.split(" ")[0] for line in lines] == ["none", *told["ARMS"]]
