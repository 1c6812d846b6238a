"""sae-lm compare: measure trained SAEs and write report.json, report.csv, report.html and figures/.

Every arm is measured on the same held-out rows, and differences are paired by seed (`sae_lm.comparison`).
"""

import csv
import io
import shutil
from pathlib import Path
from typing import cast

from sae_lm.comparison.foreign import is_foreign, read_foreign
from sae_lm.comparison.kept import kept_parts
from sae_lm.comparison.measure import measure
from sae_lm.comparison.registered import check_registered
from sae_lm.comparison.report import make_report
from sae_lm.comparison.runs import find_store, read_runs
from sae_lm.errors import SaeLmError, SettingsError
from sae_lm.pages.figures import figure_paths
from sae_lm.pages.notebook import Comparison
from sae_lm.pages.schema import Report
from sae_lm.runtime.device import pick_device
from sae_lm.runtime.distributed import is_one_of_many
from sae_lm.runtime.files import PART, check_folder, write_json, write_whole
from sae_lm.runtime.locks import only_writer
from sae_lm.settings import CompareSettings

FILES, FIGURES = ("report.json", "report.csv", "report.html"), "figures"
"""In the order in which they come to their places."""
LATENTS = "latents.html"
"""A page of `sae-lm show`; where one lies beside the report, the report links to it."""


def compare(settings: CompareSettings) -> Report:
    """Measure every SAE below ``settings.runs``; write report.json, .csv, .html and figures/; return the report.

    The files are made aside and moved to their places together, over those of an earlier report. What is measured is
    kept until then, so that the same command goes on where a killed one was (`sae_lm.comparison.kept`).
    A folder of SAEs of other programs is measured too, each SAE for itself (`sae_lm.comparison.foreign`).
    Where an arm lacks a seed, the seeds that all arms have are compared, and "partial" says so. Raises SaeError for a
    folder without runs, runs of different stores or hooks, a missing baseline; SettingsError for a device without
    float64, and under torchrun.
    """
    if is_one_of_many():
        raise SettingsError(
            "compare was started by torchrun beside other processes, expected one; start it without torchrun"
        )
    device = pick_device(settings.device, float64_for="figures are summed in")
    foreign = is_foreign(settings.runs)
    if settings.hook is not None and not foreign:
        raise SettingsError(
            f"compare: --hook is for SAEs of other programs, and {settings.runs} was written by sae-lm train, whose SAEs all "
            "say one hook; leave it out"
        )
    runs = read_foreign(settings) if foreign else read_runs(settings.runs, settings.baseline)
    registered = None if foreign else check_registered(settings)
    store = find_store(settings, runs.training["store_id"])
    # before the work, so that a bad path or a damaged SAE costs none
    check_folder(settings.out)
    check_folder(settings.out / FIGURES)
    for name in FILES:
        if (settings.out / name).is_dir():
            raise SaeLmError(f"{settings.out / name} is a folder, where the report's file would be; give another --out")
    runs.check()
    with kept_parts(settings, store, runs, device) as kept:
        if parts := kept.parts():
            print(
                f"{len(parts)} parts of an unfinished comparison are in {kept.folder}; those of these SAEs and settings are used"
            )
        if kept.folder is None:
            print(f"another comparison is writing to {settings.out}: this one keeps no parts, and measures one by one")
        report = make_report(settings, store, runs, measure(settings, store, runs, kept, device), registered)
        _write(report, settings.out)
        kept.remove()
    return cast(Report, Comparison(report))


def _write(report: Report, out: Path) -> None:
    """Make the files aside and move them to their places. The page moves last, and an earlier one goes first.

    So a kill between leaves no page, and where a page lies, all files are of one comparison.
    """
    from sae_lm.pages.figures import write_figures
    from sae_lm.pages.report import write_html

    aside = out / f"report{PART}"
    with only_writer(out):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            write_json(aside / "report.json", report)
            write_csv(report, aside / "report.csv")
            write_html(report, aside / "report.html", LATENTS if (out / LATENTS).is_file() else None)
            figures = write_figures(report, aside / FIGURES)
            for path in [*(out / name for name in reversed(FILES)), *figure_paths(out / FIGURES)]:
                path.unlink(missing_ok=True)
            for path in [*figures, *(aside / name for name in FILES)]:
                path.replace(out / path.relative_to(aside))
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def write_csv(report: Report, path: Path) -> None:
    """The report's values, one row for each arm, seed and metric that has one; the controls without a seed."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["arm", "seed", "metric", "value"])
    for arm, about in report["arms"].items():
        for key, per_seed in about["values"].items():
            rows = zip(report["seeds"], per_seed, strict=True)
            table.writerows([arm, seed, key, repr(value)] for seed, value in rows if value is not None)
    for name, figures in report["controls"].items():
        table.writerows([name, "", key, repr(value)] for key, value in figures.items() if value is not None)
    write_whole(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def run(settings: CompareSettings) -> int:
    print(compare(settings))
    print(f"report: {settings.out / 'report.html'}")
    return 0
