"""A picture of what arms cost and gain by both rankings of main latents, from one report or several.

    python tests/benchmarks/both_rankings.py reports/a reports/b --picture both.png

Each is a folder of `sae-lm compare --rank-latents both`. Against an arm's FVU above the baseline's stand its differences
in holes at equal false alarms and in the fraction, with 95% over seeds: filled by the L1 probe, hollow by the F1 of
firing. Reports have seeds of their own, so that arms of one are paired and those of two are not.
"""

import argparse
import json
from pathlib import Path
from typing import Any

OUTCOMES = {"equal_hole_rate": "holes at equal false alarms", "absorption_fraction": "absorption, fraction"}
RANKINGS = {"": "by the L1 probe", "_by_f1": "ranked by F1"}
"""What a ranking adds to an outcome's name -> how it is called."""
APART = 6e-5
"""FVU by which the second ranking stands to the right of the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reports", type=Path, nargs="+", help="folders of sae-lm compare --rank-latents both")
    parser.add_argument("--picture", type=Path, required=True, help="a .png to draw")
    options = parser.parse_args()
    arms = [arm for folder in options.reports for arm in of_report(folder)]
    draw(arms, options.picture)


def of_report(folder: Path) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Each arm with its differences by metric. Raises SystemExit for a report of one ranking."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for difference in json.loads((folder / "report.json").read_text())["differences"]:
        found.setdefault(difference["arm"], {})[difference["metric"]] = difference
    for arm, metrics in found.items():
        for metric in OUTCOMES:
            for ranking in RANKINGS:
                if metric + ranking not in metrics:
                    raise SystemExit(f"{folder} has no {metric + ranking} of {arm}; compare with --rank-latents both")
    return [*found.items()]


def draw(arms: list[tuple[str, dict[str, dict[str, Any]]]], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, len(OUTCOMES))
    for (metric, title), ax in zip(OUTCOMES.items(), axes, strict=True):
        ax.axhline(0, color="grey", lw=0.8)
        ax.plot([0], [0], "o", color="black", ms=6, label="none")
        for number, (arm, metrics) in enumerate(arms):
            for place, ranking in enumerate(RANKINGS):
                change, x = metrics[metric + ranking], metrics["fvu"]["mean"] + place * APART
                ax.plot([x, x], [change["low"], change["high"]], color=f"C{number}", lw=1.2)
                fill, label = ("white", None) if ranking else (f"C{number}", arm)
                ax.plot([x], [change["mean"]], "o", color=f"C{number}", mfc=fill, ms=6, label=label)
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel("FVU above the baseline's", fontsize=9)
        ax.set_ylabel("change", fontsize=9)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    how = ", ".join(f"{mark} {words}" for mark, words in zip(("filled", "hollow"), RANKINGS.values(), strict=True))
    look: dict[str, Any] = {"fontsize": 8, "title_fontsize": 8, "frameon": False, "ncols": len(arms) + 1}
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", title=how, **look)
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main()
