"""A hub that answers wrongly, by a seed; in a process of its own, as the hub's address is read when it is imported."""

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"


def test_wrong_answers_of_the_hub_are_read_or_refused_in_one_sentence_and_nothing_else_happens():
    command = [sys.executable, str(BENCHMARK), "--only", "hub answers", "--inputs", "150", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "150 inputs of 6 targets" in done.stdout and "0 failed in 0 ways" in done.stdout
