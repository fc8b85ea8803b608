"""Build data/minividore: choose pages of parallel manuals, cut them into regions, write queries.

Run as `python -m studies.embedded.build_benchmark --cache FOLDER`; the manuals come from Debian
packages (see documents.py), so it needs Debian or Ubuntu and a network. The result is committed,
and nothing else in the project runs this module. Pages are chosen by section: the same section in
all six languages, so that one corpus holds six translations of everything and cross-lingual
queries have answers. All regions of a chosen page go in, as distractors of each other. Pixels are
kept at 16 grey levels, which halves the size and leaves the text as it was; scans are not stored,
they are computed when a task is loaded.
"""

import argparse
import io
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from colq_utils.data.minividore import DEFAULT, fingerprint, write_fingerprint
from colq_utils.data.words import contains, tokens
from studies.embedded import documents, regions
from studies.embedded.queries import Heading, Recipe, write_queries

SEED = 20240229
LANGUAGES = ("en", "fr", "de", "es", "it", "pt")
PAGES = {"install_guide": 12, "debian_reference": 13, "edu_bullseye": 10, "lshort": 11, "eyes17": 21}
WITHOUT_LSHORT = {
    "install_guide": 14,
    "debian_reference": 15,
    "edu_bullseye": 13,
}  # German: not free to share
PARALLEL = ("install_guide", "debian_reference", "edu_bullseye")
MIN_WORDS = {"eyes17": 15}  # figures take the place of words there
DEFAULT_MIN_WORDS = 45
READING_REGIONS = 50
STOPWORDS = {
    "en": "the of and to in is for that are with this be on as or it you can by not if from will an which at",
    "fr": "le la les des et en est pour que dans une un du qui sur pas vous par avec ce sont plus ou au",
    "de": "der die das und zu den mit ist sie von ein eine nicht auf für werden wird im dem oder des es auch "
    "kann als",
    "es": "el los las del y en que para una con se por es su al como no puede más o lo este esta si",
    "it": "il di e la che per un una in del è con le non si da i della al sono può come dei nel gli",
    "pt": "o os as do da e em que para uma um com se por não é no na ao como pode mais ou dos das seu",
}


@dataclass(frozen=True)
class Entry:
    """A line of a document's outline: its number in six parallel outlines, dotted section, title, page."""

    number: int
    section: str
    title: str
    page: int


def outline(pdf: Path) -> list[Entry]:
    """Return a PDF's outline; the same number is the same section in every translation."""
    entries, counters = [], []
    for number, mark in enumerate(regions.open_pdf(str(pdf)).get_toc()):
        target = mark.get_dest()
        counters = counters[: mark.level + 1] + [0] * (mark.level + 1 - len(counters))
        counters[mark.level] += 1
        page = target.get_index() if target else None
        entries.append(
            Entry(
                number, ".".join(map(str, counters)), mark.get_title().strip(), -1 if page is None else page
            )
        )
    return entries


def choose_pages(outlines: dict[str, list[Entry]], lengths: dict[str, int]) -> dict[str, list[int]]:
    """Return the pages (from 0) to use of each document, the same sections of parallel documents."""
    rng = random.Random(SEED)
    chosen = {}
    for family in PARALLEL:
        names = {lang: f"{lang}__{family}" for lang in LANGUAGES}
        order = list(range(min(len(outlines[name]) for name in names.values())))
        rng.shuffle(order)
        for lang, name in names.items():
            wanted = (WITHOUT_LSHORT if lang == "de" else PAGES)[family]
            pages = [outlines[name][number].page for number in order]
            chosen[name] = sorted(list(dict.fromkeys(page for page in pages if page >= 0))[:wanted])
    for name, length in lengths.items():
        if name not in chosen:
            body = range(int(0.08 * length), int(0.95 * length))
            chosen[name] = sorted(rng.sample(body, PAGES[name.split("__")[1]]))
    return chosen


def speaks(words: list[str], lang: str) -> bool:
    """Say whether a text is running text of the language, by its commonest words."""
    counts = {each: sum(word in known for word in words) for each, known in _STOP.items()}
    return counts[lang] == max(counts.values()) and counts[lang] >= 0.08 * len(words)


_STOP = {lang: frozenset(words.split()) for lang, words in STOPWORDS.items()}


def page_rows(name: str, pdf: Path, pages: list[int]) -> list[dict]:
    """Render pages and return a row for each region with enough words of the document's language."""
    lang, family = name.split("__")
    rows = []
    for index in pages:
        for part, region in enumerate(regions.cut(regions.render(pdf, index))):
            text = " ".join(word.text for word in region.words)
            words = tokens(text)
            if len(words) < MIN_WORDS.get(family, DEFAULT_MIN_WORDS) or not speaks(words, lang):
                continue
            row = {"page_id": f"{name}:{index + 1:03d}:{part}", "document": name, "lang": lang}
            row |= {"page": index + 1, "part": part, "image": encode(region.image)}
            row |= {"width": regions.WIDTH, "height": regions.HEIGHT, "text": text}
            row["words"] = [word.text for word in region.words]
            row["boxes"] = [word.box for word in region.words]
            rows.append(row)
    return rows


def encode(image: np.ndarray) -> bytes:
    """Return a grey image (height, width) uint8 as lossless WebP of 16 grey levels."""
    levels = (np.round(image / 17.0) * 17).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).convert("RGB").save(buffer, "WEBP", lossless=True, quality=75, method=4)
    return buffer.getvalue()


def find_headings(outlines: dict[str, list[Entry]], rows: list[dict]) -> list[Heading]:
    """Return the outline's titles that stand in a region of the page the outline names."""
    by_page = defaultdict(list)
    for row in rows:
        by_page[row["document"], row["page"]].append((row["page_id"], tokens(row["text"])))
    headings = []
    for name, entries in outlines.items():
        lang, family = name.split("__")
        for entry in entries:
            for page_id, words in by_page[name, entry.page + 1]:
                if tokens(entry.title) and contains(words, tokens(entry.title)):
                    headings.append(Heading(lang, family, entry.number, entry.section, entry.title, page_id))
                    break
    return headings


def mark_pools(rows: list[dict]) -> None:
    """Set `scanned` on the regions of every other page and `reading` on about 50 regions of each language."""
    pages = sorted({(row["document"], row["page"]) for row in rows})
    scans = set(pages[::2])
    for row in rows:
        row["scanned"] = (row["document"], row["page"]) in scans
        row["reading"] = False
    for lang in LANGUAGES:
        candidates = [row for row in rows if row["lang"] == lang and not row["document"].endswith("eyes17")]
        for row in random.Random(f"{SEED} {lang}").sample(candidates, READING_REGIONS):
            row["reading"] = True


def build(cache: Path, out: Path = DEFAULT, recipe: Recipe | None = None) -> dict:
    """Write pages.parquet, queries.parquet and fingerprint.json to out and return the fingerprint."""
    manifest = documents.read_manifest(out / "documents.json")
    paths = documents.fetch(manifest, cache)
    outlines = {name: outline(path) for name, path in paths.items()}
    lengths = {name: len(regions.open_pdf(str(path))) for name, path in paths.items()}
    rows = []
    for name, pages in choose_pages(outlines, lengths).items():
        rows += page_rows(name, paths[name], pages)
    mark_pools(rows)
    headings = find_headings(outlines, rows)
    queries = write_queries(rows, headings, recipe or Recipe())
    columns = [
        "page_id",
        "document",
        "lang",
        "page",
        "part",
        "image",
        "width",
        "height",
        "text",
        "scanned",
        "reading",
    ]
    pages = pd.DataFrame(rows)[columns]
    pages.to_parquet(out / "pages.parquet", compression="zstd", index=False)
    queries.to_parquet(out / "queries.parquet", compression="zstd", index=False)
    write_fingerprint(out)
    return fingerprint(out)


def main() -> None:
    """Build the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for packages and PDFs")
    parser.add_argument("--out", type=Path, default=DEFAULT)
    arguments = parser.parse_args()
    print(build(arguments.cache, arguments.out))


if __name__ == "__main__":
    main()
