"""Write the cards of the embedded data from the data: what is in it, from where, under which licence.

Run as `python -m studies.embedded.cards` after a build; every number in a card is counted here.
"""

from pathlib import Path

import pandas as pd

from colq_utils.data import minividore
from colq_utils.data.words import tokens
from studies.embedded import documents

CALIBRATION = minividore.DEFAULT.parent / "calibration"

BENCHMARK_CARD = """# MiniVidore

{pages} regions of real document pages in six languages and {queries} queries, for measuring visual-document
retrievers offline and in minutes. Regions are {width} x {height} pixels, grey, rendered at 1.4 pixels a point
from parallel manuals, without running headers and footers. All languages lie in one corpus, with every region
of a chosen page and the same sections in all six languages, so that each page has near twins.

| task | what is asked | searched | in the mean | {languages} |
|---|---|---|---|{rules}|
{tasks}

Scanned pages are not stored: `colq_utils.data.minividore.scan` computes them, seeded by the page's id. The
reading check asks for easy things among few pages; the cross-lingual task asks for the section whose title
was translated, among the pages of the other languages. Both are reported apart.

**What it can tell**: whether a retriever reads these pages, and what a change of its weights costs. **What it
cannot**: how well a retriever understands questions. Queries were made by rule from words in print
(`studies/embedded/queries.py`; its knobs are in `Recipe`); nobody wrote or judged them. Relevant is every
region that holds the words. The text of the pages is stored for BM25 and overlap checks; no retriever sees
it.

Files: `pages.parquet`, `queries.parquet`, `documents.json` (packages, paths, sha256 of the PDFs),
`fingerprint.json` (sha256 of ids, text and pixels; `colq_utils.data.minividore.verify` checks it),
`licenses/`. Rebuild: `python -m studies.embedded.build_benchmark --cache FOLDER` on Debian or Ubuntu.

## Documents

The pages are excerpts of the documents below, cut and reduced to 16 grey levels; they stay under the licences
of their documents. Copyright notices of the source packages and licence texts are in `licenses/`; each LaTeX
introduction (lshort) states its licence on its second page. Sources are in the Debian source packages of the
same names.

| document | language | package | version | licence | regions |
|---|---|---|---|---|---|
{documents}
"""

CALIBRATION_CARD = """# Calibration corpus

{passages} passages ({characters:.1f} million characters, {words:.2f} million words) of technical manuals in
six languages, for choosing the roundings of a quantized language model. The documents are not in the
benchmark, and no passage shares eight consecutive words with a page or a query of it
(`colq_utils.data.overlap.eight_gram_overlap`). Headers and footers are stripped; passages that are not
running text of their language, or that repeat others, are left out.

Files: `corpus.parquet` (document, lang, text), `documents.json`, `licenses/` (the GPL and the GFDL are in
`../minividore/licenses/`). Rebuild: `python -m studies.embedded.build_calibration --cache FOLDER`.

| document | language | package | version | licence | passages | characters |
|---|---|---|---|---|---|---|
{documents}
"""


def benchmark_card(root: Path = minividore.DEFAULT) -> str:
    """Return the card of the benchmark in a folder."""
    benchmark = minividore.load(root)
    regions = benchmark.pages.document.value_counts()
    lines = []
    for entry in documents.read_manifest(root / "documents.json"):
        lines.append(f"{_source(entry)} | {regions.get(entry['name'], 0)} |")
    tasks = []
    for name, task in minividore.TASKS.items():
        counts = [len(minividore.queries_of(benchmark, name, lang)) or "" for lang in minividore.LANGUAGES]
        tasks.append(
            f"| {name} | {task.description} | {task.pages} | {'yes' if task.counted else 'no'} |"
            + " |".join(f" {count}" for count in counts) + " |"
        )  # fmt: skip
    return BENCHMARK_CARD.format(
        pages=len(benchmark.pages), queries=len(benchmark.queries), width=704, height=384,
        languages=" | ".join(minividore.LANGUAGES), rules="---|" * (len(minividore.LANGUAGES) - 1) + "---",
        tasks="\n".join(tasks), documents="\n".join(lines),
    )  # fmt: skip


def calibration_card(root: Path = CALIBRATION) -> str:
    """Return the card of the calibration corpus in a folder."""
    corpus = pd.read_parquet(root / "corpus.parquet")
    lines = []
    for entry in documents.read_manifest(root / "documents.json"):
        texts = corpus.text[corpus.document == entry["name"]]
        lines.append(f"{_source(entry)} | {len(texts)} | {texts.str.len().sum():,} |")
    return CALIBRATION_CARD.format(
        passages=len(corpus), characters=corpus.text.str.len().sum() / 1e6,
        words=sum(len(tokens(text)) for text in corpus.text) / 1e6, documents="\n".join(lines),
    )  # fmt: skip


def _source(entry: dict) -> str:
    package, _, version = entry["deb"].partition(" ")
    return f"| {entry['name'].split('__')[1]} | {entry['lang']} | {package} | {version} | {entry['license']}"


def main() -> None:
    """Write both cards beside their data."""
    (minividore.DEFAULT / "README.md").write_text(benchmark_card(), encoding="utf-8")
    (CALIBRATION / "README.md").write_text(calibration_card(), encoding="utf-8")


if __name__ == "__main__":
    main()
