"""Prose of the reports: Jinja2 templates filled with frames and numbers, which filters write.

A template that asks for a value nobody gave is an error, not an empty place.
"""

import re
from pathlib import Path

import jinja2
import pandas as pd

from colq_utils.report import markdown as md
from colq_utils.report.tables import table

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = {
    "table": table,
    "number": md.number,
    "significant": md.significant,
    "value_ci": md.value_ci,
    "listing": md.listing,
    "names": md.label_list,
}


def render(template: str, folder: Path = TEMPLATES, **values) -> str:
    """`template` of `folder` filled with `values`: sections one blank line apart, one newline at the end."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters |= FILTERS
    environment.tests["measured"] = pd.notna
    text = environment.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
