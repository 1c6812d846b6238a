"""Behind a container's quota no more threads are started than it feeds."""

import os
import subprocess
import sys

import pytest

from sae_lm.runtime.quota import granted_cores, heed_quota


@pytest.fixture
def groups(tmp_path):
    def make(own, **files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "mount" / name.replace("__", "/").replace("cpu_", "cpu.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "mount", tmp_path / "own"

    return make


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu_max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu_max": "max 100000\n"}, None),
        ("0::/pod/box\n", {"pod__cpu_max": "300000 100000\n", "pod__box__cpu_max": "max 100000\n"}, 3),  # of the outer
        ("0::/pod/box\n", {"pod__cpu_max": "300000 100000\n", "pod__box__cpu_max": "100000 50000\n"}, 2),
        ("4:cpu,cpuacct:/box\n3:memory:/\n", {"cpu__box__cpu_cfs_quota_us": "400000", "cpu__box__cpu_cfs_period_us": "100000"}, 4),
        ("4:cpu,cpuacct:/\n", {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"}, None),
        ("4:cpuset:/\n", {"cpu_max": "100000 100000"}, None),
        ("", {}, None),
        ("nonsense\n", {"cpu_max": "two 100000"}, None),
        ("0::/\n", {"cpu_max": "100000 0"}, None),
    ],
)  # fmt: skip
def test_cores_are_the_least_that_any_group_around_the_process_grants(groups, own, files, cores):
    assert granted_cores(*groups(own, **files)) == cores


def test_a_system_without_control_groups_limits_nothing(tmp_path):
    assert granted_cores(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(
    ("quota", "given", "threads"), [(1, None, "1"), (1, "7", "7"), (3, None, "3"), (4, None, None), (99, None, None)]
)
def test_threads_follow_a_quota_that_is_less_than_the_cores_and_never_what_the_user_has_set(
    groups, monkeypatch, quota, given, threads
):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is as before in the end
        monkeypatch.delenv("OMP_NUM_THREADS")
    heed_quota(*groups("0::/\n", cpu_max=f"{quota}00000 100000"))
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_the_command_line_heeds_it_before_torch_is_loaded(groups):
    mount, own = groups("0::/\n", cpu_max="100000 100000")
    script = f"""
import os, sys
from pathlib import Path
from sae_lm.runtime import quota
os.cpu_count = lambda: 4
real = quota.heed_quota
import sae_lm.cli
sae_lm.cli.heed_quota = lambda: real(Path({str(mount)!r}), Path({str(own)!r}))
assert "torch" not in sys.modules
sae_lm.cli.main(["inspect", "nothing is here"])
import torch
print(torch.get_num_threads())
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["1"], done.stderr
