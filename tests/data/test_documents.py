"""Documents of one's own: what a folder holds, what is asked, one clear line for each thing that is wrong."""

import shutil

import pandas as pd
import pypdfium2
import pytest
from PIL import Image

from colq_utils.base.config import ROOT, Documents
from colq_utils.base.errors import ColqError
from colq_utils.data import documents

SAMPLE = ROOT / "data" / "documents"


@pytest.fixture
def folder(tmp_path):
    """A folder with accents and spaces: a PDF of 16 pages, a picture, and one file of every damaged kind."""
    place = tmp_path / "my documénts"
    (place / "sub").mkdir(parents=True)
    shutil.copy(SAMPLE / "installation guide.pdf", place / "guide é.pdf")
    Image.new("RGB", (300, 200), "white").save(place / "sub" / "photo.JPG")
    (place / "empty.pdf").write_bytes(b"")
    (place / "broken.pdf").write_bytes((SAMPLE / "debian reference.pdf").read_bytes()[:3000])
    (place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (place / "notes.txt").write_text("not a document")
    return place


def settings(folder, **fields) -> Documents:
    return Documents(folder=str(folder), **fields)


def test_a_page_is_drawn_as_it_was():
    """The sample PDFs give back the pages of the bundled benchmark, pixel for pixel, with their text."""
    from colq_utils.data import minividore

    rows = minividore.load().pages
    first = rows[rows.document == "en__debian_reference"].iloc[0]
    image, text = documents._rendered(SAMPLE / "debian reference.pdf", 0, 150)
    assert image.tobytes() == minividore.image(first).tobytes()
    assert text.split()[:5] == first.text.split()[:5]


def test_good_files_go_on_and_bad_ones_are_named(folder, tmp_path):
    collection = documents.collect(settings(folder, max_pages=4), tmp_path / "cache")
    assert collection.pages.file.value_counts().to_dict() == {"guide é.pdf": 4, "sub/photo.JPG": 1}
    reasons = collection.problems.set_index("file").reason
    assert reasons["guide é.pdf"].startswith("16 pages; the first 4 are used")
    assert reasons["empty.pdf"] == "empty file"
    assert reasons["broken.pdf"] == "not a PDF that can be read"
    assert reasons["broken.png"] == "not a picture that can be read"
    assert len(reasons) == 4


def test_an_encrypted_file_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise pypdfium2.PdfiumError("Failed to load document (PDFium: Incorrect password error).")

    shutil.copy(SAMPLE / "debian reference.pdf", tmp_path / "secret.pdf")
    monkeypatch.setattr(pypdfium2, "PdfDocument", refuse)
    assert documents.survey(settings(tmp_path)).problem[0] == "encrypted; save it without a password"


def test_pages_are_drawn_once(folder, tmp_path, monkeypatch):
    """An interrupted run goes on: what is drawn stays, a picture without its note is drawn again."""
    first = documents.collect(settings(folder), tmp_path / "cache").pages
    (tmp_path / "cache" / first.path[0]).with_suffix(".json").unlink()
    drawn = []
    rendered = documents._rendered
    monkeypatch.setattr(documents, "_rendered", lambda *a: drawn.append(a) or rendered(*a))
    pd.testing.assert_frame_equal(documents.collect(settings(folder), tmp_path / "cache").pages, first)
    assert len(drawn) == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ("query,file,page\nx,guide é.pdf,99\n", "line 2.*no page 99"),
        ("query,file,page\nx,other.pdf,1\n", "'other.pdf'.*no such document"),
        ("query,file,page\nx,guide é.pdf,two\n", "whole numbers"),
        ("query,file,page,grade\nx,guide é.pdf,1,0\n", "no page of grade 1"),
        ("question,file\nx,y\n", "has the columns question, file; it takes query"),
        ("", "cannot be read"),
    ],
)
def test_a_queries_file_that_cannot_be(folder, tmp_path, content, message):
    pages = documents.collect(settings(folder), tmp_path / "cache").pages
    (tmp_path / "q.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ColqError, match=message):
        documents.questions(settings(folder, queries=str(tmp_path / "q.csv")), pages, 1)


def test_two_documents_of_one_name(folder, tmp_path):
    shutil.copy(folder / "guide é.pdf", folder / "sub" / "guide é.pdf")
    pages = documents.collect(settings(folder), tmp_path / "cache").pages
    (tmp_path / "q.csv").write_text("query,file,page\nx,guide é.pdf,1\n", encoding="utf-8")
    asked = documents.questions(settings(folder, queries=str(tmp_path / "q.csv")), pages, 1)
    assert asked.relevant[0] == {"guide é.pdf, p. 1": 1}  # the whole path wins over the bare name
    shutil.move(folder / "guide é.pdf", folder / "sub" / "x.pdf")
    (folder / "other").mkdir()
    shutil.copy(folder / "sub" / "x.pdf", folder / "other" / "guide é.pdf")
    pages = documents.collect(settings(folder), tmp_path / "cache").pages
    with pytest.raises(ColqError, match="several files have the name"):
        documents.questions(settings(folder, queries=str(tmp_path / "q.csv")), pages, 1)


def test_three_kinds_of_queries(folder, tmp_path):
    pages = documents.collect(settings(folder), tmp_path / "cache").pages
    (tmp_path / "q.csv").write_text(
        "Query,File,Page,Grade\nhow,guide é.pdf,2,2\nhow,photo.JPG,1,1\n", encoding="utf-8-sig"
    )
    (tmp_path / "q.txt").write_text("first\n\nsecond\nfirst\n", encoding="utf-8")
    labelled = documents.questions(settings(folder, queries=str(tmp_path / "q.csv"), known_items=5), pages, 1)
    assert labelled.kind.tolist() == ["labelled"] + ["known-item"] * 5
    assert labelled.relevant[0] == {"guide é.pdf, p. 2": 2, "sub/photo.JPG, p. 1": 1}
    plain = documents.questions(settings(folder, queries=str(tmp_path / "q.txt"), known_items=0), pages, 1)
    assert plain[["kind", "text"]].values.tolist() == [["unlabelled", "first"], ["unlabelled", "second"]]
    with pytest.raises(ColqError, match="nothing to ask"):
        documents.questions(settings(folder, known_items=0), pages, 1)


def test_a_known_item_stands_on_one_page_alone(folder, tmp_path):
    pages = documents.collect(settings(folder), tmp_path / "cache").pages
    items = documents.known_items(pages, 30, seed=7)
    texts = pages.set_index("page_id").text.str.lower()
    assert len(items) == len(dict(items)) == 30 and items == documents.known_items(pages, 30, seed=7)
    assert len({page for _, page in items}) >= 14  # pages take turns
    for phrase, page in items[:10]:
        first = phrase.lower().split()[0]
        assert first in texts[page] and 3 <= len(phrase.split()) <= 6


def test_a_folder_without_documents(tmp_path):
    with pytest.raises(ColqError, match="holds no PDF and no picture"):
        documents.survey(settings(tmp_path))
    with pytest.raises(ColqError, match="is not a folder"):
        documents.survey(settings(tmp_path / "none"))
    (tmp_path / "a.pdf").write_bytes(b"")
    with pytest.raises(ColqError, match=r"no page could be read: a\.pdf: empty file"):
        documents.collect(settings(tmp_path), tmp_path / "cache")
