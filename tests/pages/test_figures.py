"""sae_lm.pages.figures: a report as PNG and SVG for a paper."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from example_report import HOSTILE, make_report

from sae_lm.pages.figures import write_figures


def test_figures_are_png_and_svg_with_names_as_text(tmp_path: Path) -> None:
    paths = write_figures(make_report(("none", "abs_cos:1", "abs_cos:3"), (8, 16), 1), tmp_path / "figures")
    names = ["fvu_l0", "differences", "coefficients", "nearest_cos"]
    assert [path.name for path in paths] == [f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            texts = "".join(ElementTree.parse(path).getroot().itertext())
            assert "abs_cos:1" in texts or "abs_cos, k = 8" in texts


def test_of_one_l0_the_figure_is_seed_by_seed_and_what_has_no_numbers_is_left_out(tmp_path: Path) -> None:
    report = make_report(("none",), seeds=1) | {"nearest_cos": {}}
    assert [path.name for path in write_figures(report, tmp_path)] == ["seeds.png", "seeds.svg"]


def test_figures_repeat_to_the_byte_and_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    before, pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    report = make_report(("none" + HOSTILE[0], "$x^1$"), seeds=2)
    first = {path.name: path.read_bytes() for path in write_figures(report, tmp_path)}
    assert {path.name: path.read_bytes() for path in write_figures(report, tmp_path)} == first
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot
