"""Fill the templates that lie beside this file; everything is escaped."""

from pathlib import Path
from typing import Any

from sae_lm.pages.charts import mean
from sae_lm.pages.text import MARKS, k_name, number, p_value, signed, spread, visible
from sae_lm.runtime.files import write_whole


def render(template: str, path: Path, **values: Any) -> None:
    """Fill a template that lies beside this file, everything escaped, and write the page whole."""
    page = encode_page(fill(template, **values))
    write_whole(path, lambda temporary: temporary.write_bytes(page) and None)


def fill(template: str, **values: Any) -> str:
    """A template that lies beside this file, filled, everything escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "spread": spread, "visible": visible}
    environment.filters |= {"mean": mean, "p_value": p_value, "k_name": k_name}
    environment.globals["marks"] = MARKS
    return environment.get_template(template).render(**values)


def asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def encode_page(page: str) -> bytes:
    return page.encode("utf-8", "backslashreplace")
