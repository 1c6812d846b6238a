"""The rule by which a soak says flat or growing; the hour itself is tests/benchmarks/soak.py."""

import json
import random
import sys

import pytest
from soaking import NAMES, draw, growth, judge, take

SECONDS = [20.0 * number for number in range(200)]


def noise(seed, size=3.0):
    """What comes and goes, as memory that is used again does."""
    draw, level, values = random.Random(seed), 0.0, []
    for _ in SECONDS:
        level = 0.7 * level + draw.gauss(0, size)
        values.append(level)
    return values


def test_memory_that_comes_and_goes_is_flat_and_a_leak_beneath_it_is_found():
    true = 0.4 * 150  # over the last three quarters
    for seed in range(20):
        assert growth(SECONDS, [800 + value for value in noise(seed)], 16).verdict == "flat"
        leaking = [800 + value + 0.4 * number for number, value in enumerate(noise(seed))]
        found = growth(SECONDS, leaking, 16)
        assert found.verdict == "growing" and abs(found.rise - true) < 10


def test_what_is_taken_and_kept_at_the_beginning_is_no_leak():
    values = [800 + min(number, 30) * 10 + value for number, value in enumerate(noise(1))]
    assert growth(SECONDS, values, 16).verdict == "flat"


def test_a_file_that_stays_open_now_and_then_is_found_and_a_wide_interval_is_undecided():
    assert growth(SECONDS, [9 + number // 30 for number in range(200)]).verdict == "growing"
    assert growth(SECONDS, [9.0] * 200) == (9.0, 0.0, 0.0, 0.0, "flat")
    assert growth(SECONDS, noise(3, 40.0), 16).verdict == "undecided"


def test_too_few_values_are_no_verdict():
    with pytest.raises(ValueError, match="too few"):
        growth(SECONDS[:20], [1.0] * 20)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux'")
def test_open_files_and_temporary_ones_are_counted_and_drawn(tmp_path):
    (tmp_path / "temporary").mkdir()
    before = take(tmp_path / "temporary")
    with open(tmp_path / "temporary" / "a", "w"):
        during = take(tmp_path / "temporary")
    assert during["open files"] == before["open files"] + 1
    assert (before["temporary files"], during["temporary files"]) == (0, 1)
    assert during["resident MiB"] > 50 and during["threads"] >= 1 and set(NAMES) < set(during)
    lines = [before | {"seconds": 20.0 * number} for number in range(60)]
    lines += [{"seconds": 20.0 * number, "peak MiB of commands": 400 + 2 * number} for number in range(40)]
    (tmp_path / "samples").write_text("".join(json.dumps(line) + "\n" for line in lines))
    verdicts = {name: found.verdict for name, found in judge(tmp_path / "samples").items()}
    assert verdicts == {**dict.fromkeys(NAMES, "flat"), "peak MiB of commands": "growing"}
    draw(tmp_path / "samples", tmp_path / "a.png")
    assert 5_000 < (tmp_path / "a.png").stat().st_size < 60_000
