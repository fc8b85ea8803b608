"""Build data/calibration: running text of the training manuals in six languages.

Run as `python -m studies.embedded.build_calibration --cache FOLDER`; documents come from Debian
packages as the benchmark's do, and the result is committed. The text is that of the pages without
running headers and footers, cut into passages of some 150 words; a passage stays if it is running
text of its language, is not a repetition and shares no eight consecutive words with any page or
query of the benchmark. Calibration needs text like the pages the model reads, not good prose.
"""

import argparse
from pathlib import Path

import pandas as pd

from colq_utils.data import minividore
from colq_utils.data.overlap import eight_gram_overlap, ngrams
from colq_utils.data.words import tokens
from studies.embedded import documents, regions
from studies.embedded.build_benchmark import speaks

DEFAULT = minividore.DEFAULT.parent / "calibration"
PASSAGE = 150  # words
CHARACTERS = 1_150_000  # of each language at most
PER_DOCUMENT = 260_000  # characters of one document at most
FEW = ("pt",)  # too few documents to limit each


def page_texts(pdf: Path) -> list[str]:
    """Return the text of each page without running header and footer."""
    top, bottom = regions.body(str(pdf))
    texts = []
    for page in regions.open_pdf(str(pdf)):
        height = page.get_height()
        words = regions.page_words(page, 1.0)
        texts.append(
            " ".join(
                w.text for w in words if w.box[1] >= top * height - 2 and w.box[3] <= bottom * height + 2
            )
        )
        page.close()
    return texts


def passages(texts: list[str], lang: str) -> list[str]:
    """Cut page texts into passages of about 150 words and keep the running text of a language."""
    kept = []
    for text in texts:
        words = text.split()
        count = max(1, round(len(words) / PASSAGE))
        size = -(-len(words) // count) if words else 1
        pieces = (words[i : i + size] for i in range(0, len(words), size))
        kept += [" ".join(piece) for piece in pieces if is_prose(piece, lang)]
    return kept


def is_prose(words: list[str], lang: str) -> bool:
    """Say whether words are running text of a language: enough of them, mostly letters, its own."""
    plain = [word for word in tokens(" ".join(words)) if word.isalpha()]
    letters = sum(char.isalpha() for word in words for char in word)
    share = letters / max(1, sum(map(len, words)))
    return len(words) >= 40 and share > 0.75 and speaks(plain, lang) and "\ufffd" not in "".join(words)


def without_repetitions(texts: list[str]) -> list[str]:
    """Return the texts less those of which more than a third of the 8-grams came before."""
    seen, kept = set(), []
    for text in texts:
        grams = ngrams(text)
        if len(grams & seen) <= len(grams) / 3:
            kept.append(text)
        seen |= grams
    return kept


def build(cache: Path, out: Path = DEFAULT) -> pd.DataFrame:
    """Write corpus.parquet (document, lang, text) for the documents of documents.json; return it."""
    manifest = documents.read_manifest(out / "documents.json")
    paths = documents.fetch(manifest, cache)
    benchmark = minividore.load()
    exclude = [*benchmark.pages.text, *benchmark.queries.text]
    frames, used = [], dict.fromkeys(minividore.LANGUAGES, 0)
    for entry in manifest:
        texts = without_repetitions(passages(page_texts(paths[entry["name"]]), entry["lang"]))
        shared = eight_gram_overlap(texts, exclude)
        texts = [text for text, count in zip(texts, shared, strict=True) if not count]
        room = CHARACTERS - used[entry["lang"]]
        texts = take(texts, room if entry["lang"] in FEW else min(room, PER_DOCUMENT))
        used[entry["lang"]] += sum(map(len, texts))
        frames.append(pd.DataFrame({"document": entry["name"], "lang": entry["lang"], "text": texts}))
    corpus = pd.concat(frames, ignore_index=True)
    corpus.to_parquet(out / "corpus.parquet", compression="zstd", compression_level=19, index=False)
    return corpus


def take(texts: list[str], characters: int) -> list[str]:
    """Return texts spread over the whole list that hold at most so many characters together."""
    total = sum(map(len, texts))
    if total <= characters:
        return texts
    step, kept, due = characters / total, [], 0.0
    for text in texts:
        due += step
        if due >= 1:
            kept.append(text)
            due -= 1
    return kept


def main() -> None:
    """Build the calibration corpus from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for packages and PDFs")
    arguments = parser.parse_args()
    corpus = build(arguments.cache)
    print(
        corpus.groupby(["lang", "document"])
        .text.agg(["size", lambda texts: texts.str.len().sum()])
        .to_string()
    )


if __name__ == "__main__":
    main()
