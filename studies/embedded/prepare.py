"""Gather what training reads into one folder.

`python -m studies.embedded.prepare --cache FOLDER --data FOLDER` fetches the documents of
data/training/documents.json with the package manager and writes `pdf/`, `texts/`, `fonts/`,
`documents.json`, `tokenizer.json` and the reading check `check.npz`. About 650 MB are downloaded,
50 MB are kept. The tokenizer is the checkpoint's; `--new-tokenizer` trains one instead, on
the texts and on the text layer of the training manuals.
"""

import argparse
import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from studies.embedded import check, documents, regions, sources, tokenizer
from studies.embedded.tiny_config import TinyConfig

ROOT = Path(__file__).resolve().parents[2]
#: Characters of help and manual-page text used of each language: most where manuals are few.
TEXT_LIMIT = {"en": 700_000, "fr": 800_000, "de": 800_000, "es": 1_800_000, "it": 1_800_000, "pt": 2_400_000}
TOKENIZER_TEXT, TOKENIZER_MANUALS = 700_000, 900_000  # characters a language, at most


def prepare(cache: Path, data: Path, manifest: Path, new_tokenizer: bool) -> None:
    """Write the data folder; raises documents.DocumentError where a package or file cannot be had."""
    entries = documents.read_manifest(manifest)
    paths = documents.fetch(entries, cache)
    for folder in ("pdf", "texts"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        shutil.copy(path, data / "pdf" / f"{name}.pdf")
    shutil.copy(manifest, data / "documents.json")
    for language, paragraphs in sources.texts(cache).items():
        with gzip.open(data / "texts" / f"{language}.txt.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(limited(paragraphs, TEXT_LIMIT[language])))
    sources.fonts(cache, data / "fonts")
    if new_tokenizer:
        train_tokenizer(entries, data).save(str(data / "tokenizer.json"))
    else:
        shutil.copy(ROOT / "models/tiny-colqwen3/tokenizer.json", data / "tokenizer.json")
    check.save(
        check.build([d for d in entries if d["split"] == "held_out"], data / "pdf"), data / "check.npz"
    )


def limited(lines, limit: int) -> Iterator[str]:
    """Yield lines until their length passes `limit` characters."""
    total = 0
    for line in lines:
        total += len(line)
        if total > limit:
            return
        yield line


def train_tokenizer(entries: list[dict], data: Path) -> Tokenizer:
    """Train the tokenizer on the texts (from their end) and on the training manuals."""
    lines = []
    for language in sources.LANGUAGES:
        texts = (
            gzip.decompress((data / "texts" / f"{language}.txt.gz").read_bytes()).decode("utf-8").splitlines()
        )
        lines += [line.removeprefix("# ") for line in limited(reversed(texts), TOKENIZER_TEXT)]
        names = [
            entry["name"] for entry in entries if entry["lang"] == language and entry["split"] == "train"
        ]
        lines += limited(
            (line for name in names for line in manual_lines(data / "pdf" / f"{name}.pdf")), TOKENIZER_MANUALS
        )
    return tokenizer.train(lines, TinyConfig().vocab_size)


def manual_lines(pdf: Path) -> Iterator[str]:
    """Yield the lines of a PDF's text layer."""
    for page in regions.open_pdf(str(pdf)):
        yield from tokenizer.clean(page.get_textpage().get_text_range()).splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="downloads go here and stay")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, default=ROOT / "data/training/documents.json")
    parser.add_argument("--new-tokenizer", action="store_true")
    args = parser.parse_args()
    prepare(args.cache, args.data, args.manifest, args.new_tokenizer)


if __name__ == "__main__":
    main()
