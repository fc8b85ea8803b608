"""Panels on a package: nutrition tables, and what resembles them, such as ingredients and timetables.

Drawn with PIL in the fonts that matplotlib brings, at the size at which they are seen. Words and numbers are
made up; a table's energy in kcal follows from its fat, carbohydrate and protein.
"""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

Ink = tuple[int, int, int]
Rng = np.random.Generator

_BOLD = {
    "DejaVuSans": "DejaVuSans-Bold",
    "DejaVuSerif": "DejaVuSerif-Bold",
    "DejaVuSansMono": "DejaVuSansMono-Bold",
    "STIXGeneral": "STIXGeneralBol",
}
#: Words of a nutrition table by language: the title, the heads of two columns, the nutrients in their order.
WORDS = pd.read_csv(Path(__file__).with_name("words.csv"), index_col=0, keep_default_na=False).T.to_dict()
_ABROAD = [language for language in WORDS if language != "en-us"]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_EXTRAS = _listed(
    "Vitamin A, Vitamin C, Vitamin D, Calcium, Iron, Potassium, Magnesium, Zinc, Vitamin B12, Folic acid"
)
_FOODS = _listed(
    "oats, wheat flour, sugar, palm oil, cocoa butter, skimmed milk powder, salt, barley malt, hazelnuts, "
    "soya lecithin, tomato, onion, rapeseed oil, vinegar, garlic, pepper, rice, maize starch, yeast, honey, "
    "almonds, raisins"
)
_STEPS = _listed(
    "Pour into a bowl., Add cold milk., Heat for two minutes., Stir well., Leave to stand., Serve at once., "
    "Keep dry., Shake before use., Boil the water., Drain and rinse., Season to taste., "
    "Store below 20 degrees."
)
_DAYS = _listed(
    "Monday, Tuesday, Thursday, Saturday, Small cup, Large pan, Oven, Grill, Microwave, Soft, Firm"
)
_BADGES = _listed("BIO, NEW, 500 g, VEGAN, 2+1, EXTRA, 1 L")


@lru_cache(512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A typeface that matplotlib brings, `size` in pixels."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def typeface(rng: Rng) -> tuple[str, str]:
    """A regular face and its bold one."""
    name = list(_BOLD)[rng.choice(4, p=(0.55, 0.2, 0.1, 0.15))]
    return name, _BOLD[name]


def colour(rng: Rng, low: int = 0, high: int = 256) -> Ink:
    """A colour with each channel from `low` to below `high`."""
    return tuple(rng.integers(low, high, 3).tolist())


def colours(rng: Rng, paper: Ink) -> tuple[Ink, Ink]:
    """Ground and ink of a panel: white, tinted, the package's own, or dark with light ink."""
    kind = rng.random()
    if kind < 0.5:
        ground = colour(rng, 235)
    elif kind < 0.7:
        ground = colour(rng, 190, 250)
    elif kind < 0.87:
        ground = paper
    else:
        ground = colour(rng, 10, 70)
    return ground, colour(rng, 0, 60) if sum(ground) > 390 else colour(rng, 225)


def _blank(width: int, height: int, ground: Ink) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), ground)
    return image, ImageDraw.Draw(image)


def _framed(image: Image.Image, ink: Ink, rng: Rng) -> Image.Image:
    if rng.random() < 0.4:
        ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline=ink, width=1)
    return image


def _amounts(rng: Rng) -> dict[str, float]:
    """Grams per 100 g that add up to at most 100, and the energy that follows."""
    carbohydrate, fat, protein = rng.dirichlet((2.0, 1.0, 0.8)) * rng.uniform(20, 98)
    return {
        "energy": 4 * carbohydrate + 9 * fat + 4 * protein,
        "fat": fat,
        "saturates": fat * rng.uniform(0.1, 0.7),
        "carbohydrate": carbohydrate,
        "sugars": carbohydrate * rng.uniform(0.05, 0.9),
        "fibre": rng.uniform(0, 9),
        "protein": protein,
        "salt": rng.uniform(0, 2.5),
    }


def _cells(rng: Rng, key: str, value: float, portion: float, american: bool) -> tuple[str, str]:
    """The two values of a nutrient's row."""
    if american and key == "energy":
        return f"{value * portion:.0f}", ""
    if american:
        return f"{value * portion:.0f} g", f"{value * portion * rng.uniform(1, 3):.0f} %"
    if key == "energy":
        first = f"{value * 4.184:.0f} kJ" if rng.random() < 0.5 else f"{value:.0f} kcal"
        return first, f"{value * portion:.0f} kcal"
    return f"{value:.1f} g", f"{value * portion:.1f} g"


def _rows(rng: Rng, words: dict[str, str], american: bool) -> list[tuple[str, str, str, bool]]:
    """Name, value, second value and whether the name is indented, a table row each."""
    amounts, portion = _amounts(rng), rng.uniform(0.2, 0.6)
    rows = []
    for key, value in amounts.items():
        if key == "fibre" and rng.random() < 0.4:
            continue
        rows.append((words[key], *_cells(rng, key, value, portion, american), key in ("saturates", "sugars")))
    for name in rng.permutation(_EXTRAS)[: rng.integers(0, 6) if rng.random() < 0.5 else 0]:
        amount = f"{rng.integers(2, 900)} {'mg' if rng.random() < 0.7 else 'µg'}"
        rows.append((str(name), amount, f"{rng.integers(2, 90)} %", False))
    return rows


def nutrition(rng: Rng, paper: Ink, size: int) -> Image.Image:
    """A nutrition table in type of `size` pixels; the whole image is the label, its edge the truth."""
    american = rng.random() < 0.45
    words = WORDS["en-us" if american else str(rng.choice(_ABROAD))]
    regular, bold = typeface(rng)
    body, strong = font(regular, size), font(bold, size)
    larger = rng.uniform(1.4, 2.0) if american else rng.uniform(1.0, 1.4)
    title = font(bold, max(size, round(size * larger)))
    rows, two = _rows(rng, words, american), bool(rng.random() < 0.65)
    ground, ink = colours(rng, paper)
    pad, step = max(2, round(size * rng.uniform(0.3, 0.7))), round(size * rng.uniform(1.25, 1.6))
    heads = (words["first"], "% DV*" if american else words["second"])
    headed = two or not american
    names = max(body.getlength(name) + size * indented for name, _, _, indented in rows)
    values = max(body.getlength(text) for text in (heads[0] if headed else "", *(row[1] for row in rows)))
    seconds = max(body.getlength(text) for text in (heads[1], *(row[2] for row in rows))) if two else 0
    gap = size * rng.uniform(0.7, 2.2)
    inside = max(names + values + seconds + gap * (2 if two else 1), title.getlength(words["title"]))
    width = round(inside + 2 * pad + 2)
    head, foot = round(title.size * 1.25), step if american or rng.random() < 0.3 else 0
    height = head + (step if headed else 0) + len(rows) * step + foot + 2 * pad

    image, pen = _blank(width, height, ground)
    pen.text((pad, pad), words["title"], fill=ink, font=title)
    y = pad + head
    thick = max(1, round(size * rng.uniform(0.1, 0.45))) if american else 1
    pen.rectangle((pad, y - 1, width - pad - 1, y - 2 + thick), fill=ink)
    right, middle = width - pad - 1, width - pad - 1 - (seconds + gap if two else 0)
    ends = [middle, right] if two else [middle]  # of the columns of values
    if headed:
        for x, text in zip(ends, heads):
            pen.text((x, y + thick), text, fill=ink, font=body, anchor="ra")
        y += step
    ruled, banded = rng.random() < 0.75, rng.random() < 0.2
    shade = tuple(round(0.86 * g + 0.14 * i) for g, i in zip(ground, ink))
    for number, (name, *texts, indented) in enumerate(rows):
        if banded and number % 2:
            pen.rectangle((pad, y, right, y + step - 1), fill=shade)
        if ruled:
            pen.line((pad, y, right, y), fill=ink, width=1)
        heavy = strong if american and not indented else body
        pen.text((pad + size * indented, y + step // 2), name, fill=ink, font=heavy, anchor="lm")
        for x, text in zip(ends, texts):
            pen.text((x, y + step // 2), text, fill=ink, font=body, anchor="rm")
        y += step
    if foot:
        pen.line((pad, y, right, y), fill=ink, width=max(1, thick // 2))
        note = "* Reference intake of an average adult"[: max(8, int(width / size * 1.7))]
        pen.text((pad, y + 1), note, fill=ink, font=font(regular, max(5, size - 2)))
    if two and rng.random() < 0.35:
        x = round(middle - values - gap / 2)
        pen.line((x, pad + head, x, height - foot - pad), fill=ink, width=1)
    if rng.random() < 0.75:
        frame = 1 if size < 9 else int(rng.integers(1, 3))
        pen.rectangle((0, 0, width - 1, height - 1), outline=ink, width=frame)
    return image


def ingredients(rng: Rng, paper: Ink, size: int) -> Image.Image:
    """A paragraph of ingredients, framed or not."""
    ground, ink = colours(rng, paper)
    regular, bold = typeface(rng)
    face, width = font(regular, size), int(rng.integers(60, 190))
    foods = rng.choice(_FOODS, rng.integers(8, 26))
    shares = [f" ({rng.integers(1, 60)} %)" if rng.random() < 0.2 else "" for _ in foods]
    lines, line = [], "Ingredients:" if rng.random() < 0.7 else "Zutaten:"
    for word in " ".join(f"{food}{share}," for food, share in zip(foods, shares)).split():
        if face.getlength(f"{line} {word}") > width - 8:
            lines.append(line)
            line = word
        else:
            line += " " + word
    step = round(size * 1.25)
    image, pen = _blank(width, (len(lines) + 1) * step + 8, ground)
    first = font(bold, size) if rng.random() < 0.5 else face
    for number, content in enumerate([*lines, line.rstrip(",") + "."]):
        pen.text((4, 4 + number * step), content, fill=ink, font=face if number else first)
    return _framed(image, ink, rng)


def barcode(rng: Rng, paper: Ink, size: int) -> Image.Image:
    """Bars of one to four units with digits below."""
    unit, bars = 1 if size < 9 else 2, int(rng.integers(22, 40))
    widths = rng.integers(1, 5, 2 * bars) * unit
    height = int(rng.integers(24, 60))
    image, pen = _blank(int(widths.sum()) + 12, height + 12, (255, 255, 255))
    x = 6
    for bar, space in widths.reshape(-1, 2):
        pen.rectangle((x, 4, x + bar - 1, height), fill=(0, 0, 0))
        x += int(bar + space)
    digits = " ".join(map(str, rng.integers(0, 10, 13)))
    pen.text((8, height + 1), digits, fill=(0, 0, 0), font=font("DejaVuSans", 9))
    return image.rotate(90, expand=True) if rng.random() < 0.25 else image


def directions(rng: Rng, paper: Ink, size: int) -> Image.Image:
    """A numbered list of what to do, short lines under a bold title."""
    ground, ink = colours(rng, paper)
    regular, bold = typeface(rng)
    steps = [f"{i}. {step}" for i, step in enumerate(rng.permutation(_STEPS)[: rng.integers(3, 7)], 1)]
    face, step = font(regular, size), round(size * rng.uniform(1.3, 1.8))
    width = round(max(face.getlength(line) for line in steps)) + 10
    image, pen = _blank(width, (len(steps) + 1) * step + 10, ground)
    for number, line in enumerate(["Directions", *steps]):
        pen.text((5, 5 + number * step), line, fill=ink, font=face if number else font(bold, size))
    return _framed(image, ink, rng)


def timetable(rng: Rng, paper: Ink, size: int) -> Image.Image:
    """The nearest thing to a nutrition table: two ruled columns, but minutes and few rows."""
    ground, ink = colours(rng, paper)
    regular, bold = typeface(rng)
    face, step = font(regular, size), round(size * 1.6)
    rows = [(str(day), f"{rng.integers(2, 60)} min") for day in rng.permutation(_DAYS)[: rng.integers(2, 5)]]
    width = round(face.getlength("Cooking times") + size * rng.uniform(1, 5)) + 10
    image, pen = _blank(width, (len(rows) + 1) * step + 8, ground)
    pen.rectangle((0, 0, width, step), fill=ink)
    pen.text((5, step // 2), "Cooking times", fill=ground, font=font(bold, size), anchor="lm")
    for number, (name, value) in enumerate(rows, 1):
        pen.text((5, 4 + number * step), name, fill=ink, font=face)
        pen.text((width - 5, 4 + number * step), value, fill=ink, font=face, anchor="ra")
    return _framed(image, ink, rng)


def badge(rng: Rng, paper: Ink, size: int) -> Image.Image:
    """A coloured disc or ribbon with a word."""
    width, height = int(rng.integers(30, 90)), int(rng.integers(20, 60))
    image, pen = _blank(width, height, paper)
    fill = colour(rng)
    (pen.ellipse if rng.random() < 0.6 else pen.rectangle)((0, 0, width - 1, height - 1), fill=fill)
    ink = (255, 255, 255) if sum(fill) < 390 else (20, 20, 20)
    word, face = str(rng.choice(_BADGES)), font("DejaVuSans-Bold", int(rng.integers(8, 16)))
    pen.text((width // 2, height // 2), word, fill=ink, font=face, anchor="mm")
    return image


DISTRACTORS = (ingredients, barcode, directions, timetable, badge)
