"""The words of a PDF page with boxes in pixels: letters joined, ligatures and loose accents resolved."""

import ctypes
import unicodedata
from dataclasses import dataclass

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

HYPHEN = "\ufffe"  # PDFium's mark for a hyphen at a line's end
LIGATURES = {
    "\ufb00": "ff",
    "\ufb01": "fi",
    "\ufb02": "fl",
    "\ufb03": "ffi",
    "\ufb04": "ffl",
    "\ufb05": "st",
    "\ufb06": "st",
}
ACCENTS = {
    "´": "\u0301",
    "`": "\u0300",
    "¨": "\u0308",
    "ˆ": "\u0302",
    "^": "\u0302",
    "˜": "\u0303",
    "¸": "\u0327",
}


@dataclass(frozen=True)
class Word:
    """A word and its box (x0, y0, x1, y1) in pixels; of a hyphenated word the box of its longer part."""

    text: str
    box: tuple[int, int, int, int]


def page_words(page: pdfium.PdfPage, scale: float) -> list[Word]:
    """Return the words of a page with their boxes in pixels of the uncropped page."""
    words, text, parts, last = [], [], [], None

    def finish() -> None:
        boxes = [part for part in parts if part]
        if text and boxes:
            longest = max(boxes, key=len)  # a hyphenated word has one part on each line
            corners = np.array(longest)
            box = (*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0))
            words.append(Word(unicodedata.normalize("NFC", "".join(text)), outward(box)))
        text.clear(), parts.clear()

    for char, box in _characters(page, scale):
        if char == HYPHEN:
            text.append(HYPHEN), parts.append([])
        elif char.isspace() or unicodedata.category(char) in ("Cc", "Cs", "Cn", "Co"):
            finish()
        else:
            if text and text[-1] == HYPHEN:  # a capital follows a real hyphen, as in Debian-System
                text[-1] = "-" if char.isupper() else ""
            if last in ACCENTS and text and text[-1] == last and parts and _over(parts[-1][-1:], box):
                text[-1] = char + ACCENTS[last]  # old TeX fonts set an accent and a letter apart
            else:
                text.append(LIGATURES.get(char, char))
            if not parts:
                parts.append([])
            if box:
                parts[-1].append(box)
        last = char
    finish()
    return [Word(word.text.replace(HYPHEN, "-"), word.box) for word in words]


def _characters(page: pdfium.PdfPage, scale: float) -> list[tuple[str, tuple | None]]:
    """Return (character, box in pixels or None) in reading order; unpaired surrogates are dropped."""
    textpage = page.get_textpage()
    to_pixels = _transform(page, scale)
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    characters, high = [], None
    for i in range(textpage.count_chars()):
        code = pdfium_c.FPDFText_GetUnicode(textpage, i)
        if 0xD800 <= code < 0xDC00:
            high = code
            continue
        if 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((high - 0xD800) << 10) + code - 0xDC00 if high else 0
        high = None
        if not 0 < code <= 0x10FFFF:
            continue
        pdfium_c.FPDFText_GetCharBox(textpage, i, left, right, bottom, top)
        (x0, y0), (x1, y1) = to_pixels(left.value, bottom.value), to_pixels(right.value, top.value)
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        char = HYPHEN if code in (0x02, 0xFFFE) else chr(code)  # both mark a hyphen at a line's end
        characters.append((char, (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None))
    textpage.close()
    return characters


def _transform(page: pdfium.PdfPage, scale: float):
    """Return the affine map from page coordinates (points, origin as the file says) to pixels."""
    fine = 1000
    width, height = round(page.get_width() * scale * fine), round(page.get_height() * scale * fine)
    x, y = ctypes.c_int(), ctypes.c_int()

    def device(px: float, py: float) -> np.ndarray:
        pdfium_c.FPDF_PageToDevice(page, 0, 0, width, height, 0, px, py, x, y)
        return np.array([x.value, y.value]) / fine

    origin = device(0, 0)
    (ax, ay), (bx, by) = (device(1000, 0) - origin) / 1000, (device(0, 1000) - origin) / 1000
    ox, oy = origin
    return lambda px, py: (ox + ax * px + bx * py, oy + ay * px + by * py)


def _over(accent: list[tuple], letter: tuple | None) -> bool:
    if not accent or letter is None:
        return False
    return letter[0] <= (accent[0][0] + accent[0][2]) / 2 <= letter[2]


def outward(box: tuple) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    return int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)), int(np.ceil(y1))
