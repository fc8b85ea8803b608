"""Prose of the reports: Jinja2 templates filled with numbers, words and tables that Python computed.

A template that asks for a value nobody gave is an error, not an empty place.
"""

import re
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, folder: Path = TEMPLATES, **values) -> str:
    """`<folder>/<template>` filled with `values`: sections one blank line apart, one newline at the end."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    text = environment.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
