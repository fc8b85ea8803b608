"""Makes data/documents: two small PDFs of MiniVidore pages with an invisible text layer, and their queries.

They let `colq new` be tried offline on documents that the bundled model can read:
``python -m studies.embedded.sample_documents``.
"""

import csv
import ctypes
import textwrap
from pathlib import Path

import pypdfium2
import pypdfium2.raw as pdfium
from PIL import Image

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.data import minividore

FOLDER = ROOT / "data" / "documents"
DOCUMENTS = {"installation guide.pdf": "en__install_guide", "debian reference.pdf": "en__debian_reference"}
DPI = 150  # at which a page is drawn in the size it had in MiniVidore
INVISIBLE = 3  # text render mode, PDF 32000-1:2008, table 106


def write_pdf(path: Path, images: list[Image.Image], texts: list[str]) -> None:
    """A PDF with a picture per page and its text, invisible, over it."""
    pdf = pypdfium2.PdfDocument.new()
    for image, text in zip(images, texts, strict=True):
        width, height = ((side - 0.01) * 72 / DPI for side in image.size)  # a renderer rounds up
        page, picture = pdf.new_page(width, height), pypdfium2.PdfImage.new(pdf)
        picture.set_bitmap(pypdfium2.PdfBitmap.from_pil(image))
        picture.set_matrix(pypdfium2.PdfMatrix().scale(width, height))
        page.insert_obj(picture)
        lines = textwrap.wrap(text.encode("latin-1", "ignore").decode("latin-1"), 110)
        for number, line in enumerate(lines, 1):
            page.insert_obj(_text(pdf, line, 4, height - 5 * number))
        page.gen_content()
    with files.atomic(path) as target:
        pdf.save(target)
    pdf.close()


def _text(pdf, line: str, x: float, y: float) -> pypdfium2.PdfObject:
    handle = pdfium.FPDFPageObj_NewTextObj(pdf, b"Helvetica", ctypes.c_float(4.0))
    encoded = (line + "\0").encode("utf-16-le")
    pdfium.FPDFText_SetText(handle, ctypes.cast(encoded, pdfium.FPDF_WIDESTRING))
    pdfium.FPDFTextObj_SetTextRenderMode(handle, INVISIBLE)
    pdfium.FPDFPageObj_Transform(handle, 1, 0, 0, 1, x, y)
    return pypdfium2.PdfObject(handle, pdf=pdf)


def main() -> None:
    """Write the documents, queries.csv (with labels) and questions.txt (without)."""
    benchmark, rows = minividore.load(), []
    FOLDER.mkdir(exist_ok=True)
    asked = benchmark.queries[benchmark.queries.task.isin(["Headings", "Keywords", "Phrases"])]
    for name, document in DOCUMENTS.items():
        pages = benchmark.pages[benchmark.pages.document == document].head(16)
        write_pdf(
            FOLDER / name, [minividore.image(row) for row in pages.to_dict("records")], list(pages.text)
        )
        number = {page: n for n, page in enumerate(pages.page_id, 1)}
        for query in asked[asked.lang == "en"].itertuples():
            rows += [(query.text, name, number[page]) for page in query.relevant if page in number]
    with (
        files.atomic(FOLDER / "queries.csv") as target,
        open(target, "w", newline="", encoding="utf-8") as out,
    ):
        csv.writer(out).writerows([("query", "file", "page"), *rows])
    files.write_text(FOLDER / "questions.txt", "\n".join(dict.fromkeys(row[0] for row in rows)) + "\n")


if __name__ == "__main__":
    main()
