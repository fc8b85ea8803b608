"""Executed notebooks and Markdown reports as web pages in one folder, results/html, to open or send on.

A page holds its pictures and its style, and a policy that lets a browser run no script and load nothing from
elsewhere, whatever a notebook's output contains. HTML in a report stays text, but for folds (``<details>``).
"""

import base64
import mimetypes
import os
import re
from pathlib import Path

import jinja2
import mistune
import nbformat
import yaml
from nbconvert import HTMLExporter

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError
from colq_utils.report.prose import TEMPLATES

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, keep_trailing_newline=True
)
#: What of HTML in a report stays HTML.
FOLDED = re.compile(r"&lt;(/?(?:details|summary))&gt;")


class Report(mistune.HTMLRenderer):
    """The Markdown file `source` as HTML: pictures inside, links to reports led to their pages, anchors."""

    def __init__(self, source: Path):
        super().__init__(escape=True)
        self.source = source

    def heading(self, text: str, level: int, **attrs) -> str:
        words = re.sub(r"[^\w\- ]", "", re.sub(r"<[^>]+>", "", text).lower())
        return super().heading(text, level, id=words.strip().replace(" ", "-"))

    def block_html(self, html: str) -> str:
        return FOLDED.sub(r"<\1>", mistune.escape(html))

    inline_html = block_html

    def link(self, text: str, url: str, title: str | None = None) -> str:
        target, hash_, anchor = url.partition("#")
        if target and ":" not in target:
            path = (self.source.parent / target).resolve()
            if path.suffix == ".md" and path.parent.name == "reports":
                path = page_of(path)
            url = os.path.relpath(path, page_of(self.source).parent.resolve()) + hash_ + anchor
        return super().link(text, url, title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        path = self.source.parent / url
        kind = mimetypes.guess_type(path.name)[0] or ""
        if not kind.startswith("image/") or not path.is_file():
            return f"<em>[{text}]</em>"
        return f'<img alt="{text}" src="data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}">'


def documents(output: Path, name: str) -> list[Path]:
    """What there is to read of an experiment or study: its reports, then its executed notebooks."""
    folder = output / "results" / name
    return [*sorted(folder.glob("reports/*.md")), *sorted(folder.glob("notebooks/*.ipynb"))]


def page_of(source: Path) -> Path:
    """``results/html/<name>/<stem>.html`` for ``results/<name>/<reports or notebooks>/<stem>``."""
    results, name = source.parents[2], source.parents[1].name
    return results / "html" / name / f"{source.stem}.html"


def title_of(source: Path) -> str:
    """The first heading of a report or notebook, as plain text; without one, its name."""
    text = source.read_text()
    if source.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    heading = re.search(r"^# (.+)$", text, re.M)
    return re.sub(r"[`*]", "", heading[1]).strip() if heading else source.stem


def experiment_title(output: Path, name: str) -> str:
    """The title in the experiment's file, or else of its first report."""
    for path in [ROOT / "experiments" / f"{name}.yaml", *(ROOT / "studies").glob(f"*/{name}.yaml")]:
        if path.exists():
            return str(yaml.safe_load(path.read_text()).get("title", name))
    return title_of(documents(output, name)[0])


def page(source: Path, experiment: str) -> str:
    """The web page of a report or notebook; `experiment` is a title."""
    if source.suffix == ".md":
        body = mistune.create_markdown(renderer=Report(source), plugins=["table"])(source.read_text())
    else:
        exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
        body = exporter.from_notebook_node(nbformat.read(source, as_version=4))[0]
    template = PAGES.get_template("page.html.j2")
    return template.render(policy=POLICY, title=title_of(source), experiment=experiment, body=body)


def index(output: Path, names: list[str]) -> str:
    """The page that lists the pages there are, by experiment."""
    experiments = []
    for name in names:
        pages = {"Reports": [], "Notebooks": []}
        for source in documents(output, name):
            if page_of(source).exists():
                pages[source.parent.name.title()].append((page_of(source).name, title_of(source)))
        if any(pages.values()):
            experiments.append((name, experiment_title(output, name), pages))
    return PAGES.get_template("index.html.j2").render(policy=POLICY, experiments=experiments)


def render(output: Path, name: str | None = None) -> list[Path]:
    """Write the pages of an experiment or study (by default of all that have results), and last the index.

    Raises:
        ColqError: there is neither a report nor an executed notebook.
    """
    names = sorted(path.name for path in (output / "results").glob("*") if documents(output, path.name))
    chosen = names if name is None else [name]
    if not chosen or not set(chosen) <= set(names):
        first = f"run `make report EXPERIMENT={name or 'tiny'}` first"
        raise ColqError(f"results/{name or ''} holds no report and no executed notebook: {first}")
    written = []
    for this in chosen:
        title = experiment_title(output, this)
        sources = documents(output, this)
        written += [files.write_text(page_of(source), page(source, title)) for source in sources]
    return [*written, files.write_text(output / "results" / "html" / "index.html", index(output, names))]
