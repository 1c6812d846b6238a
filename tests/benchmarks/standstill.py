"""Do outcomes stand still when SAEs see more rows? Reports of one experiment at several lengths, side by side.

    python tests/benchmarks/standstill.py reports/1M reports/2M reports/4M --picture curve.png

Each is a folder of `sae-lm compare`; their SAEs have to differ in the rows that they saw alone. Printed are means over
seeds, then each arm beside the baseline, seed by seed. In the picture a dot is a seed, a line goes through the means;
hollow dots and a dotted line are of main latents ranked by F1, where reports have both rankings.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

FIGURES = {"fvu": "FVU", "equal_hole_rate": "equal holes", "absorption_fraction": "fraction",
           "equal_hole_rate_by_f1": "holes, F1", "absorption_fraction_by_f1": "frac., F1",
           "main_f1": "F1", "start_cos": "start", "seed_stability": "shared", "stable_signal": "signal"}  # fmt: skip
"""Metric in report.json -> a word for it."""
DRAWN = ("fvu", "equal_hole_rate", "absorption_fraction", "main_f1")
DIFFERENCES = (
    "fvu", "equal_hole_rate", "equal_hole_rate_by_f1", "absorption_fraction", "absorption_fraction_by_f1"
)  # fmt: skip

Report = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reports", type=Path, nargs="+", help="folders of sae-lm compare")
    parser.add_argument("--picture", type=Path, help="a .png to draw")
    parser.add_argument("--arms", nargs="+", help="these alone, beside the baseline")
    options = parser.parse_args()
    reports = in_order([json.loads((folder / "report.json").read_text()) for folder in options.reports])
    for report in reports if options.arms else ():
        kept = {report["baseline"], *options.arms}
        report["arms"] = {arm: entry for arm, entry in report["arms"].items() if arm in kept}
    print(f"{'rows, arm':<42}" + "".join(f"{word:>12}" for word in FIGURES.values()))
    for report in reports:
        for arm in report["arms"]:
            cells = "".join(f"{mean(values(report, arm, metric)):>12.4f}" for metric in FIGURES)
            print(f"{in_short(rows(report)) + ' ' + arm:<42}{cells}")
    print("\nbeside the baseline")
    for report in reports:
        for arm in report["arms"]:
            for metric in DIFFERENCES if arm != report["baseline"] else ():
                print(f"{in_short(rows(report)) + ' ' + arm:<42}{FIGURES[metric]:<12}{beside(report, arm, metric)}")
    if options.picture:
        draw(reports, options.picture)


def in_order(reports: list[Report]) -> list[Report]:
    """By the rows that their SAEs saw. Raises SystemExit where they differ in more than that, or not in it."""
    reports = sorted(reports, key=rows)
    alike = [{name: value for name, value in report["training"].items() if name not in ("tokens", "dead_after")}
             for report in reports]  # fmt: skip
    for other in alike[1:]:
        if different := [name for name in alike[0] if alike[0][name] != other.get(name)]:
            raise SystemExit(f"the reports' SAEs differ in {', '.join(different)} too, not in the rows they saw alone")
    if len({rows(report) for report in reports}) < len(reports):
        raise SystemExit("two of the reports are of SAEs that saw as many rows; give one of each length")
    return reports


def rows(report: Report) -> int:
    return report["training"]["tokens"]


def in_short(number: int) -> str:
    return f"{number / 1e6:.2g}M"


def values(report: Report, arm: str, metric: str) -> list[float]:
    """Of each seed that has one."""
    return [value for value in report["arms"][arm]["values"].get(metric, []) if value is not None]


def mean(numbers: list[float]) -> float:
    return fmean(numbers) if numbers else float("nan")


def beside(report: Report, arm: str, metric: str) -> str:
    """The mean difference, and that of each seed."""
    pairs = zip(values(report, arm, metric), values(report, report["baseline"], metric), strict=True)
    of_seeds = [one - other for one, other in pairs]
    return f"{mean(of_seeds):+.4f} ({', '.join(f'{value:+.3f}' for value in of_seeds)})"


def draw(reports: list[Report], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.6), layout="constrained")
    arms = list(dict.fromkeys(arm for report in reports for arm in report["arms"]))
    for metric, ax in zip(DRAWN, figure.subplots(1, len(DRAWN)), strict=True):
        for number, arm in enumerate(arms):
            there = [report for report in reports if arm in report["arms"]]
            x = [rows(report) for report in there]
            for key, line, fill in ((metric, "-", f"C{number}"), (f"{metric}_by_f1", ":", "white")):
                of_seeds = [values(report, arm, key) for report in there]
                if not any(of_seeds):
                    continue
                label = {"label": arm} if key == metric else {}
                ax.plot(x, [mean(numbers) for numbers in of_seeds], line, color=f"C{number}", lw=1.2, **label)
                for at, numbers in zip(x, of_seeds, strict=True):
                    ax.plot([at] * len(numbers), numbers, "o", color=f"C{number}", mfc=fill, ms=3)
        ax.set_xscale("log", base=2)
        ax.set_xticks([rows(report) for report in reports], [in_short(rows(report)) for report in reports])
        ax.minorticks_off()
        ax.set_title(FIGURES[metric], fontsize=9, loc="left")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("rows seen", fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main()
