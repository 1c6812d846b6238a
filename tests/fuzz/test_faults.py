"""Faults put into running and finished work, a few by a seed; the long run is tests/benchmarks/faults.py."""

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "faults.py"


def test_after_kills_full_disks_jumping_clocks_and_two_at_once_nothing_is_lost_or_silently_wrong():
    """Without too little memory: what then ends, and how, depends on the processor and on libraries."""
    options = ["--faults", "20", "--seconds", "90", "--seed", "3", "--without", "memory"]
    command = [sys.executable, str(BENCHMARK), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "0 lost, 0 silently wrong, 0 no sentence" in done.stdout
