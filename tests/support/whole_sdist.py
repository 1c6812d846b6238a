"""The source distribution holds what the repository does: tests, configs and documents too, which setuptools leaves out."""

from pathlib import Path

from setuptools.command.sdist import sdist

ROOMS = ("sae_lm", "tests", "configs", ".ci")
LEFT_OUT = {"__pycache__", ".hypothesis"}


class WholeSdist(sdist):
    """Named in pyproject.toml, under tool.setuptools.cmdclass."""

    def make_release_tree(self, base_dir, files):
        found = [path for room in ROOMS for path in Path(room).rglob("*") if path.is_file()]
        kept = [path.as_posix() for path in found if not LEFT_OUT.intersection(path.parts)]
        super().make_release_tree(base_dir, sorted({*files, *kept, ".gitignore"}))
