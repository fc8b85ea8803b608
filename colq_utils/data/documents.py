"""A folder of documents as pages to search, and the queries asked of them.

A page of a PDF becomes a picture at a stated resolution, kept on disk, so that an interrupted run goes on. A
file that cannot be read costs itself alone: it is named with its reason. Queries come from a file, with or
without the pages that answer them; where a PDF has a text layer, some are drawn from it as well.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pypdfium2
from PIL import Image, ImageOps, UnidentifiedImageError

from colq_utils.base import files
from colq_utils.base.config import ROOT, Documents
from colq_utils.base.errors import ColqError
from colq_utils.base.progress import bar

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
#: A page is drawn with at most this many pixels, whatever paper size it claims.
MAX_PIXELS = 16_000_000


class Unreadable(Exception):
    """A file that cannot be used, with the reason in a few words."""


@dataclass(frozen=True)
class Collection:
    """What a folder holds.

    pages: page_id, file (relative to the folder), page (from 1), path of the picture, text (or "").
    problems: file, reason; files that were left out, wholly or in part.
    """

    pages: pd.DataFrame
    problems: pd.DataFrame


def survey(settings: Documents) -> pd.DataFrame:
    """A row per document without drawing a page: file, pages, problem (empty where there is none).

    Raises:
        ColqError: no such folder, or no document in it.
    """
    folder = _place(settings.folder)
    if not folder.is_dir():
        raise ColqError(f"{folder} is not a folder: name one that holds PDFs or pictures of pages")
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in {".pdf", *PICTURES})
    if not paths:
        raise ColqError(f"{folder} holds no PDF and no picture ({', '.join(sorted(PICTURES))})")
    rows = [(path.relative_to(folder).as_posix(), *_count(path, settings.max_pages)) for path in paths]
    return pd.DataFrame(rows, columns=["file", "pages", "problem"])


def _count(path: Path, limit: int) -> tuple[int, str]:
    """Pages of a file that are used, and what is wrong with it."""
    try:
        if path.suffix.lower() != ".pdf":
            with _picture(path):
                return 1, ""
        with _opened(path) as pdf:
            used = f"the first {limit:,} are used (`max_pages` in the experiment file)"
            return (limit, f"{len(pdf):,} pages; {used}") if len(pdf) > limit else (len(pdf), "")
    except Unreadable as reason:
        return 0, str(reason)


@contextmanager
def _opened(path: Path) -> Iterator[pypdfium2.PdfDocument]:
    if path.stat().st_size == 0:
        raise Unreadable("empty file")
    try:
        pdf = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        encrypted = "encrypted; save it without a password" if "password" in str(error).lower() else ""
        raise Unreadable(encrypted or "not a PDF that can be read") from None
    try:
        if len(pdf) == 0:
            raise Unreadable("a PDF without pages")
        yield pdf
    finally:
        pdf.close()


def _picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.width * image.height > 4 * MAX_PIXELS:
                raise Unreadable(f"{image.width:,} x {image.height:,} pixels; scale it down")
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise Unreadable("not a picture that can be read") from None


def collect(settings: Documents, cache: Path) -> Collection:
    """Draw every page that is not in `cache` yet.

    Raises:
        ColqError: no page could be read.
    """
    table = survey(settings)
    rows, problems = [], table.loc[table.problem != "", ["file", "problem"]].values.tolist()
    with bar("pages of your documents", int(table.pages.sum()), "page") as progress:
        for file, n_pages in zip(table.file, table.pages):
            source = _place(settings.folder) / file
            folder = cache / _key(source, settings.dpi)
            for page in range(n_pages):
                try:
                    text = _draw(source, page, settings.dpi, folder)
                    picture = str(folder / f"{page + 1:05d}.png")
                    rows.append((page_id(file, page + 1), file, page + 1, picture, text))
                except Unreadable as reason:
                    problems.append((file, f"page {page + 1}: {reason}"))
                progress.update()
    if not rows:
        raise ColqError(f"no page could be read: {'; '.join(f'{file}: {why}' for file, why in problems[:5])}")
    pages = pd.DataFrame(rows, columns=["page_id", "file", "page", "path", "text"])
    return Collection(pages, pd.DataFrame(problems, columns=["file", "reason"]))


def page_id(file: str, page: int) -> str:
    """How results name a page."""
    return f"{file}, p. {page}"


def _key(path: Path, dpi: int) -> str:
    return f"{files.sha256(path)[:16]}-{dpi}"


def _draw(path: Path, page: int, dpi: int, folder: Path) -> str:
    """Write a page's picture and text unless they are there; returns the text, which is written last."""
    picture, note = folder / f"{page + 1:05d}.png", folder / f"{page + 1:05d}.json"
    if not (note.exists() and picture.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        image, text = (_picture(path), "") if path.suffix.lower() != ".pdf" else _rendered(path, page, dpi)
        with files.atomic(picture) as target:
            image.save(target, "PNG", compress_level=1)
        files.write_json(note, {"text": text})
    return json.loads(note.read_text())["text"]


def _rendered(path: Path, page: int, dpi: int) -> tuple[Image.Image, str]:
    with _opened(path) as pdf:
        try:
            sheet = pdf[page]
            width, height = sheet.get_size()  # points, 1/72 inch
            scale = min(dpi / 72, (MAX_PIXELS / max(1.0, width * height)) ** 0.5)
            image = sheet.render(scale=scale).to_pil().convert("RGB")
            text = sheet.get_textpage().get_text_bounded()
        except (pypdfium2.PdfiumError, ValueError, MemoryError) as error:
            raise Unreadable(f"cannot be drawn ({error})") from None
    return image, " ".join(text.encode("utf-8", "ignore").decode().split())


def questions(settings: Documents, pages: pd.DataFrame, seed: int) -> pd.DataFrame:
    """All queries: query_id, kind (of `names.DOCUMENT_QUERIES`), text, relevant ({page_id: grade} or {}).

    Raises:
        ColqError: a queries file that cannot be read so, or nothing to ask.
    """
    rows = _queries(settings, pages)
    rows += [("known-item", text, {page: 1}) for text, page in known_items(pages, settings.known_items, seed)]
    if not rows:
        raise ColqError(
            "nothing to ask: the documents have no text layer to draw queries from; "
            "give `queries`, a file with one query per line, or a CSV with columns query, file, page"
        )
    table = pd.DataFrame(rows, columns=["kind", "text", "relevant"])
    numbers = table.groupby("kind").cumcount() + 1
    return table.assign(query_id=table.kind + numbers.map("-{:04d}".format))


def expected(settings: Documents, table: pd.DataFrame) -> dict[str, int]:
    """Queries of the file by kind, checked against a `survey` alone, before a page is drawn.

    Raises:
        ColqError: as `questions`; no document that can be read.
    """
    if not table.pages.sum():
        raise ColqError(f"no document in {settings.folder} can be read: {table.problem[0]} ({table.file[0]})")
    rows = [(page_id(f, n), f) for f, count in zip(table.file, table.pages) for n in range(1, count + 1)]
    pages = pd.DataFrame(rows, columns=["page_id", "file"])
    asked = _queries(settings, pages)
    return pd.Series([kind for kind, _, _ in asked], dtype=str).value_counts().to_dict()


def _place(path: str) -> Path:
    """A path of an experiment file: relative ones start at the repository."""
    return ROOT / Path(path).expanduser()


def _queries(settings: Documents, pages: pd.DataFrame) -> list[tuple[str, str, dict]]:
    """Rows (kind, text, relevant) of the queries file, if one is given; ColqError if it asks nothing."""
    rows = _from_file(_place(settings.queries), pages) if settings.queries else []
    if settings.queries and not rows:
        raise ColqError(f"{settings.queries} holds no query; write one per line, or leave it out")
    return rows


def _from_file(path: Path, pages: pd.DataFrame) -> list[tuple[str, str, dict]]:
    """Rows (kind, text, relevant) of a CSV with a column `query`, or of a text with a query per line."""
    if not path.is_file():
        raise ColqError(f"no queries file {path}")
    try:
        if path.suffix.lower() != ".csv":
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
            return [("unlabelled", line, {}) for line in dict.fromkeys(lines) if line]
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ColqError(f"{path} cannot be read as UTF-8 text: {str(error).splitlines()[0]}") from None
    table.columns = table.columns.str.strip().str.lower()
    if not isinstance(table.index, pd.RangeIndex):  # so pandas takes the first of too many fields
        raise ColqError(
            f"{path}: a line has more fields than the header names columns; put texts with commas in quotes"
        )
    known, given = ["query", "file", "page", "grade"], list(table.columns)
    twice = len(set(given)) < len(given)
    if "query" not in given or set(given) - set(known) or ("page" in given and "file" not in given) or twice:
        raise ColqError(
            f"{path} has the columns {', '.join(given)}; it takes query, file, page, grade, or query alone"
        )
    table = table[table["query"].str.strip() != ""]
    if "file" not in table:
        return [("unlabelled", text.strip(), {}) for text in dict.fromkeys(table["query"])]
    return _labelled(path, table, pages)


def _labelled(path: Path, table: pd.DataFrame, pages: pd.DataFrame) -> list[tuple[str, str, dict]]:
    """Queries with the pages that answer them; a query on several lines has several answers."""
    names, ids = _names(pages), set(pages.page_id)
    relevant: dict[str, dict[str, int]] = {}
    for number, row in table.iterrows():
        where, text = f"{path}, line {number + 2}", row["query"].strip()
        file = names.get(row["file"].strip())
        if file is None or len(file) > 1:
            what = f"several files have the name; write {' or '.join(file or ())}"
            what = what if file else "no such document was read"
            raise ColqError(f"{where}: {row['file']!r}: {what}")
        page, grade = row.get("page", "") or "1", row.get("grade", "") or "1"
        if not (page.strip().isdecimal() and grade.strip().isdecimal()):
            raise ColqError(
                f"{where}: page {page!r}, grade {grade!r}: both are whole numbers (page from 1, grade from 0)"
            )
        answer = page_id(file[0], int(page))
        if answer not in ids:
            raise ColqError(f"{where}: {file[0]} has no page {page} among those read")
        relevant.setdefault(text, {})[answer] = int(grade)
    unanswered = [text for text, answers in relevant.items() if not any(answers.values())]
    if unanswered:
        raise ColqError(
            f"{path}: {unanswered[0]!r} has no page of grade 1 or more; give it one, or leave the query out"
        )
    return [("labelled", text, answers) for text, answers in relevant.items()]


def _names(pages: pd.DataFrame) -> dict[str, list[str]]:
    """How a queries file may name a document (path, or the bare name) -> the documents of that name."""
    names: dict[str, list[str]] = {}
    for file in pages.file.unique():
        for name in {file, Path(file).name}:
            names.setdefault(name, []).append(file)
    return names | {file: [file] for file in pages.file.unique()}


def known_items(pages: pd.DataFrame, count: int, seed: int) -> list[tuple[str, str]]:
    """Up to `count` pairs (phrase, page_id): three to six words in a row of a page that no other page has.

    They are weak labels: another page may answer as well in other words. Pages take turns, at most thrice.
    """
    rng = np.random.default_rng(seed)
    words = {page: re.findall(r"\w+", text) for page, text in zip(pages.page_id, pages.text)}
    running = {page: f" {' '.join(w).lower()} " for page, w in words.items()}
    usable, chosen = [page for page, w in words.items() if len(w) >= 20], {}
    for page in [page for _ in range(3) for page in rng.permutation(usable)]:
        if len(chosen) == count:
            break
        size = int(rng.integers(3, 7))
        at = int(rng.integers(0, len(words[page]) - size))
        phrase = " ".join(words[page][at : at + size])
        holders = sum(f" {phrase.lower()} " in text for text in running.values())
        if holders == 1 and not phrase.replace(" ", "").isdigit():
            chosen.setdefault(phrase, str(page))
    return list(chosen.items())


def fingerprint(pages: pd.DataFrame, asked: pd.DataFrame) -> str:
    """Identity of pages (which file, drawn how) and queries; no path of the machine enters it."""
    drawn = [(row.page_id, Path(row.path).parent.name) for row in pages.itertuples()]
    content = [*drawn, *zip(asked.query_id, asked.text, map(sorted, map(dict.items, asked.relevant)))]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
