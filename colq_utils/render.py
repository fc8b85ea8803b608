"""Executed notebooks and reports to HTML pages that can be mailed: one file each, nothing to fetch."""
import html
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from colq_utils.base import files
from colq_utils.base.config import Experiment

_STYLE = ("body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:3rem auto;padding:0 1rem;color:#222}"
          "li{margin:.4rem 0}a{color:#0b5394}")


def page(notebook: Path) -> str:
    """A notebook as one HTML page, pictures inside, no script from elsewhere."""
    exporter = HTMLExporter(template_name="lab", embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True,
                            mathjax_url="", require_js_url="", jquery_url="")
    content = nbformat.read(notebook, as_version=4)
    body, _ = exporter.from_notebook_node(content, resources={"metadata": {"name": notebook.stem}})
    return body


def render(experiment: Experiment) -> list[Path]:
    """Write ``results/<experiment>/html/``: a page a notebook, and an index that also links the reports.

    Raises:
        ColqError: no notebook has been executed yet.
    """
    folder = experiment.results("html")
    source = experiment.output / "results" / experiment.name
    files.required(source / "notebooks", f"report EXPERIMENT={experiment.name}")
    written, items = [], []
    for name in (experiment.notebook(stage).name for stage in experiment.stages):
        notebook = source / "notebooks" / name
        if notebook.exists():
            written.append(files.write_text(folder / f"{notebook.stem}.html", page(notebook)))
            items.append(f'<li><a href="{notebook.stem}.html">{notebook.stem}</a></li>')
    reports = [f'<li><a href="../reports/{p.name}">{p.stem}</a> (Markdown)</li>' for p in sorted((source / "reports").glob("*.md"))]
    body = (f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(experiment.title)}</title><style>{_STYLE}</style>"
            f"<h1>{html.escape(experiment.title)}</h1><h2>Notebooks</h2><ul>{''.join(items)}</ul>"
            f"<h2>Reports</h2><ul>{''.join(reports)}</ul></html>\n")
    return [*written, files.write_text(folder / "index.html", body)]
