"""Whoever has the source distribution can run the tests: it holds every file of the repository."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.egg-info", "*.safetensors")


def test_the_source_distribution_holds_tests_configs_and_documents(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    for room in ("sae_lm", "tests", "configs", ".ci"):
        shutil.copytree(ROOT / room, source / room, ignore=LEFT_OUT)
    for file in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / file, source)
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("sae_lm-*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    assert there <= held
