"""Everything that is read from disk or hub, damaged by a seed; the long run is tests/benchmarks/fuzz.py."""

from collections import Counter

import pytest
from fuzzing import Bench

NUMBER = 15
"""Inputs for each target."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("fuzz"))


def test_damaged_files_are_read_or_refused_in_one_sentence_and_nothing_else_happens(bench):
    outcomes, faults = Counter(), []
    for target in bench.targets:
        faults += bench.run(target, range(NUMBER), 1, outcomes)
    assert not faults
    assert outcomes["read"] > NUMBER and outcomes["refused"] > NUMBER


def test_the_same_seed_makes_the_same_inputs_and_another_other_ones(bench):
    from random import Random

    from mutations import mutate

    content = bench.whole["store"]["manifest.json"]
    made = [mutate("manifest.json", content, Random(seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_the_judge_sees_a_traceback_a_write_elsewhere_a_program_and_a_terminal_that_is_told_what_to_do(bench, tmp_path):
    import subprocess

    from fuzz_targets import Target
    from fuzzing import judge

    from sae_lm.errors import SaeLmError

    def refuse(folder):
        raise SaeLmError("")

    def fail(folder):
        raise KeyError("a")

    reads = {
        "not one sentence": refuse,
        "KeyError": fail,
        "beyond its folder": lambda folder: (tmp_path / "elsewhere").write_text("x"),
        "or run": lambda folder: subprocess.run(["true"], check=True),
    }
    for said, read in reads.items():
        outcome, faults = judge(Target("t", tmp_path, [], read), tmp_path / "inside")
        assert outcome == "fault" and said in faults[0]
