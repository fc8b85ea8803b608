"""Pages become regions of one size; words lie on their ink; running headers are gone."""

import numpy as np
import pytest

pytest.importorskip(
    "pypdfium2", reason="only the study that built the benchmark needs it: pip install .[studies]"
)

from studies.embedded import documents, regions


@pytest.fixture(scope="module")
def pdf(tmp_path_factory):
    """A PDF of 8 A4 pages with a running header, a page number at the foot and 40 lines of text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    path = tmp_path_factory.mktemp("pdf") / "manual.pdf"
    with PdfPages(path) as pages:
        for number in range(8):
            figure = Figure(figsize=(8.27, 11.69))
            figure.text(0.1, 0.95, "Header of the manual", size=9)
            figure.text(0.5, 0.04, str(number + 1), size=9)
            for line in range(40):
                figure.text(0.1, 0.88 - line * 0.019, f"Line {line} of page {number} says something", size=10)
            pages.savefig(figure)
    return path


def test_headers_and_footers_are_stripped_and_the_body_is_not(pdf):
    texts = [word.text for word in regions.render(pdf, 3).words]
    assert "Header" not in texts and texts.count("Line") == 40


def test_regions_have_one_size_and_hold_every_word_once(pdf):
    page = regions.render(pdf, 2)
    parts = regions.cut(page)
    assert all(
        part.image.shape == (regions.HEIGHT, regions.WIDTH) and part.image.dtype == np.uint8 for part in parts
    )
    assert [word.text for part in parts for word in part.words] == [word.text for word in page.words]


def test_words_lie_on_their_ink(pdf):
    for part in regions.cut(regions.render(pdf, 5)):
        covered = np.zeros_like(part.image, dtype=bool)
        for word in part.words:
            x0, y0, x1, y1 = word.box
            assert (part.image[y0:y1, x0:x1] < 128).any(), word
            covered[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = True
        ink = part.image < 128
        assert (ink & covered).sum() > 0.99 * ink.sum()


def test_a_cut_falls_between_lines(pdf):
    for part in regions.cut(regions.render(pdf, 1)):
        assert (part.image[0] == 255).all() and (part.image[-1] > 200).all()


def test_a_page_that_is_not_there_is_refused(pdf):
    with pytest.raises(IndexError, match="no page 99"):
        regions.render(pdf, 99)


def test_a_missing_package_and_a_wrong_checksum_are_named(tmp_path):
    entry = {
        "name": "en__none",
        "lang": "en",
        "deb": "no-such-package-of-ours 1",
        "path_in_deb": "/none.pdf",
        "license": "none",
    }
    with pytest.raises(documents.DocumentError, match="no-such-package-of-ours"):
        documents.fetch([entry], tmp_path)
    (tmp_path / "pdf").mkdir(exist_ok=True)
    (tmp_path / "pdf" / "en__none.pdf").write_bytes(b"not the manual")
    with pytest.raises(documents.DocumentError, match="sha256"):
        documents.fetch([{**entry, "sha256": "0" * 64}], tmp_path)
