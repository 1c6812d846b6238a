"""A report as a notebook shows it: the answer, the main outcomes of every arm, and what is missing."""

from typing import Any

from sae_lm.pages.charts import headline, order_arms
from sae_lm.pages.summary import differences_by_arm, summary_rows
from sae_lm.pages.terminal import text_table
from sae_lm.pages.text import signed, spread, visible
from sae_lm.runtime.html import facts_html, table_html


class Comparison(dict[str, Any]):
    """What report.json holds (`sae_lm.pages.schema.Report`), with the table of ``sae-lm compare`` as its ``str``."""

    def __str__(self) -> str:
        return text_table(self)  # pyright: ignore[reportArgumentType]

    def _repr_html_(self) -> str:
        return report_html(self)


def report_html(report: Any) -> str:
    """report: a `sae_lm.pages.schema.Report`."""
    keys, differences = headline(report), differences_by_arm(report)
    heads = ["arm", *(report["metrics"][key]["label"] for key in keys)]
    rows = []
    for arm in order_arms(report):
        cells = []
        for key in keys:
            difference = differences.get(arm, {}).get(key)
            change = ""
            if difference and difference["mean"] is not None:
                change = f" ({signed(difference['mean'])}, {difference['verdict']})"
            cells.append(spread(report["arms"][arm]["values"][key]) + change)
        rows.append([visible(arm), *cells])
    facts = [*summary_rows(report), *(("partial", visible(sentence)) for sentence in report["partial"])]
    return facts_html(visible(report["answer"]), facts) + table_html(heads, rows)
