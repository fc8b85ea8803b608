"""Write the cards of the embedded data from the data: what is in it, from where, under which licence.

Run as `python -m studies.embedded.cards` after a build; every number in a card is counted here.
"""

from pathlib import Path

import pandas as pd

from colq_utils.data import minividore
from colq_utils.data.words import tokens
from colq_utils.report.prose import render
from studies.embedded import documents

CALIBRATION = minividore.DEFAULT.parent / "calibration"

TEMPLATES = Path(__file__).parent / "templates"


def benchmark_card(root: Path = minividore.DEFAULT) -> str:
    """Return the card of the benchmark in a folder."""
    benchmark, languages = minividore.load(root), minividore.LANGUAGES
    regions, tasks = benchmark.pages.document.value_counts(), []
    for name, task in minividore.TASKS.items():
        counts = [len(minividore.queries_of(benchmark, name, lang)) for lang in languages]
        tasks.append((name, task, counts))
    return render(
        "benchmark_card.md.j2",
        TEMPLATES,
        pages=len(benchmark.pages),
        queries=len(benchmark.queries),
        languages=languages,
        tasks=tasks,
        documents=[
            entry | {"regions": regions.get(entry["name"], 0)}
            for entry in documents.read_manifest(root / "documents.json")
        ],
        source=_source,
    )


def calibration_card(root: Path = CALIBRATION) -> str:
    """Return the card of the calibration corpus in a folder."""
    corpus, sources = pd.read_parquet(root / "corpus.parquet"), []
    for entry in documents.read_manifest(root / "documents.json"):
        texts = corpus.text[corpus.document == entry["name"]]
        sources.append(entry | {"passages": len(texts), "characters": texts.str.len().sum()})
    return render(
        "calibration_card.md.j2",
        TEMPLATES,
        passages=len(corpus),
        characters=corpus.text.str.len().sum(),
        words=sum(len(tokens(text)) for text in corpus.text),
        documents=sources,
        source=_source,
    )


def _source(entry: dict) -> str:
    package, _, version = entry["deb"].partition(" ")
    return f"| {entry['name'].split('__')[1]} | {entry['lang']} | {package} | {version} | {entry['license']}"


def main() -> None:
    """Write both cards beside their data."""
    (minividore.DEFAULT / "README.md").write_text(benchmark_card(), encoding="utf-8")
    (CALIBRATION / "README.md").write_text(calibration_card(), encoding="utf-8")


if __name__ == "__main__":
    main()
