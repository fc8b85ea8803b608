"""Executed notebooks and Markdown reports as web pages in one folder, results/html, that can be opened anywhere or sent on.

A page holds its pictures and its style, and a policy that lets a browser run no script and load nothing from elsewhere,
whatever a notebook's output contains. HTML in a report stays text, but for folded sections (``<details>``).
"""

import base64
import html
import mimetypes
import os
import re
from collections.abc import Iterable
from pathlib import Path

import mistune
import nbformat
import yaml
from nbconvert import HTMLExporter

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body{font:16px/1.55 system-ui,"Segoe UI","DejaVu Sans",sans-serif;max-width:62rem;margin:2rem auto 5rem;padding:0 1.2rem;color:#1d2126}
h1{font-size:1.7rem;line-height:1.25}h2{font-size:1.3rem;margin-top:2.4rem}h3{font-size:1.1rem}a{color:#0b5394}a.anchor-link{display:none}
nav,.id{font-size:.85rem;color:#5b6570}img,svg{max-width:100%;height:auto}summary{cursor:pointer;color:#0b5394}
table{display:block;width:max-content;max-width:100%;overflow-x:auto;border:0;border-collapse:collapse;font-size:.85rem;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{border:0;border-bottom:1px solid #d9dde2;padding:.3rem .6rem;text-align:left;vertical-align:top}th{white-space:nowrap}.dataframe td{text-align:right}
code,pre{font:.82rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace}code{background:#f2f4f6;border-radius:3px;padding:.1em .25em}
pre{background:#f2f4f6;padding:.7rem .9rem;border-radius:4px;overflow-x:auto}pre code{padding:0}.output pre{background:none;padding:.2rem .9rem}
.k,.kn,.kc,.ow{color:#7a2a8f}.s1,.s2,.sa,.si{color:#1c6b3a}.c1{color:#68717b}.mi,.mf{color:#a3480b}
"""
#: What of HTML in a report stays HTML.
FOLDED = re.compile(r"&lt;(/?(?:details|summary))&gt;")


class Report(mistune.HTMLRenderer):
    """Markdown of the file `source` to HTML: pictures put inside, links to other reports led to their pages, headings with anchors."""

    def __init__(self, source: Path, page: Path):
        super().__init__(escape=True)
        self.source, self.page = source, page

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
            url = os.path.relpath(path, self.page.parent.resolve()) + hash_ + anchor
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
    """Where the page of ``results/<name>/<reports or notebooks>/<stem>`` goes: ``results/html/<name>/<stem>.html``."""
    experiment = source.parents[1]
    return experiment.parent / "html" / experiment.name / f"{source.stem}.html"


def title_of(source: Path) -> str:
    """The first heading of a report or notebook, as plain text; without one, its name."""
    text = source.read_text()
    if source.suffix == ".ipynb":
        text = "\n".join(
            cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "markdown"
        )
    heading = re.search(r"^# (.+)$", text, re.M)
    return re.sub(r"[`*]", "", heading[1]).strip() if heading else source.stem


def experiment_title(output: Path, name: str) -> str:
    """The title in the experiment's file, or else of its first report."""
    for path in [ROOT / "experiments" / f"{name}.yaml", *(ROOT / "studies").glob(f"*/{name}.yaml")]:
        if path.exists():
            return str(yaml.safe_load(path.read_text()).get("title", name))
    return title_of(documents(output, name)[0])


def body_of(source: Path) -> str:
    """The HTML of a report or notebook, without head and navigation."""
    if source.suffix == ".md":
        return mistune.create_markdown(renderer=Report(source, page_of(source)), plugins=["table"])(
            source.read_text()
        )
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    return exporter.from_notebook_node(nbformat.read(source, as_version=4))[0]


def page(title: str, body: str, navigation: str = "") -> str:
    """A whole page; `body` and `navigation` are HTML, `title` is text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>{navigation}\n{body}\n</body></html>\n"
    )


def index(output: Path, names: Iterable[str]) -> str:
    """The page that lists the pages there are, by experiment."""
    sections = [
        "<h1>ColQ: results</h1>",
        "<p>What it costs to quantize a visual-document retriever, and what is gained: "
        "the reports, and the notebooks that they come from with their outputs.</p>",
    ]
    for name in names:
        sections.append(
            f'<h2>{html.escape(experiment_title(output, name))}</h2><p class="id">results/{html.escape(name)}</p>'
        )
        for heading, folder in (("Reports", "reports"), ("Notebooks", "notebooks")):
            links = [
                f'<a href="{html.escape(f"{name}/{page_of(source).name}")}">{html.escape(title_of(source))}</a>'
                for source in documents(output, name)
                if source.parent.name == folder and page_of(source).exists()
            ]
            sections.append(f"<p>{heading}: {' | '.join(links)}</p>" if links else "")
    return page("ColQ: results", "\n".join(filter(None, sections)))


def render(output: Path, name: str | None = None) -> list[Path]:
    """Write the pages of an experiment or study (by default of all that have results), and the index; the index comes last.

    Raises:
        ColqError: there is neither a report nor an executed notebook.
    """
    names = sorted(p.name for p in (output / "results").glob("*") if documents(output, p.name))
    chosen = names if name is None else [name]
    if not chosen or not set(chosen) <= set(names):
        raise ColqError(
            f"results/{name or ''} holds no report and no executed notebook: run `make report EXPERIMENT={name or 'tiny'}` first"
        )
    written = []
    for this in chosen:
        up = f'<nav><a href="../index.html">All results</a> · {html.escape(experiment_title(output, this))}</nav>'
        written += [
            files.write_text(page_of(source), page(title_of(source), body_of(source), up))
            for source in documents(output, this)
        ]
    shown = [n for n in names if any(page_of(source).exists() for source in documents(output, n))]
    return [*written, files.write_text(output / "results" / "html" / "index.html", index(output, shown))]
