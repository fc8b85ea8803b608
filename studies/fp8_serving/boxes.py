"""The detector's answer as text and numbers: ``[x1, y1, x2, y2]``, fractions of width and height."""

import re

import numpy as np

PROMPT = "Where is the nutrition table? Answer with its box [x1, y1, x2, y2]."
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")


def text(box) -> str:
    """A box as the model learns to write it, two decimals, no trailing zeros: ``[0.05, 0.38, 0.55, 0.6]``."""
    return str([round(float(value), 2) for value in box])


def parse(answer: str) -> list[float] | None:
    """The box in an answer; None where there is none, more than one, or one outside the picture or empty."""
    matches = _BOX.findall(answer)
    if len(matches) != 1:
        return None
    x1, y1, x2, y2 = box = [float(value) for value in matches[0]]
    return box if 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 else None


def iou(a, b) -> float:
    """Intersection over union of two boxes in one unit; 0 where one is None."""
    if a is None or b is None:
        return 0.0
    overlap = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.clip(overlap, 0, None)))
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (area[0] + area[1] - shared)


def shift_px(a, b, width: int, height: int) -> float:
    """Mean distance of the four edges of two boxes, in pixels of the picture; NaN where one is None."""
    if a is None or b is None:
        return float("nan")
    return float(np.mean(np.abs(np.subtract(a, b)) * [width, height, width, height]))
