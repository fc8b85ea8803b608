"""A seeded bad scan of a page: the pixels a copier, a fax or a phone would have left.

Scanned pages are computed when a task is loaded and never stored, so that the strength can be
changed and the data stays small. Everything random follows from the page's id. The steps are those
of Pillow and numpy; with the pinned versions the result is the same on every machine, with other
versions of the JPEG library single pixels may differ by a grey level.
"""

import hashlib
import io

import numpy as np
from PIL import Image, ImageFilter


def scan(image: Image.Image, page_id: str, strength: float) -> Image.Image:
    """An RGB page as a bad scan of the same size.

    strength: 0 leaves the page as it is, 1 is hard to read for people; with it grow skew (to 1.5°), loss of
    resolution (to 45 %), blur, uneven light, loss of contrast, noise and JPEG compression (quality from 90
    down to 20). Raises ValueError outside 0..1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"scan strength must lie in 0..1, not {strength}")
    if strength == 0:
        return image.convert("RGB")
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(page_id.encode()).digest()[:8], "big"))
    page = image.convert("L")
    width, height = page.size
    skew = strength * 1.5 * rng.uniform(-1, 1)
    page = page.rotate(skew, Image.Resampling.BICUBIC, fillcolor=255)
    share = 1 - strength * rng.uniform(0.35, 0.55)
    page = page.resize((round(width * share), round(height * share)), Image.Resampling.BILINEAR)
    page = page.filter(ImageFilter.GaussianBlur(strength * rng.uniform(0.2, 0.6)))
    pixels = _light(np.asarray(page, np.float32), strength, rng)
    page = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=round(90 - 70 * strength * rng.uniform(0.7, 1)))
    page = Image.open(buffer).convert("L")
    return page.resize((width, height), Image.Resampling.BILINEAR).convert("RGB")


def _light(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Grey pixels (height, width) float32 with less contrast, uneven light and noise."""
    height, width = pixels.shape
    ink, paper = 90 * strength * rng.uniform(0.3, 1), 255 - 60 * strength * rng.uniform(0.3, 1)
    pixels = ink + pixels / 255 * (paper - ink)
    across, down = np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height)
    slope_x, slope_y = 50 * strength * rng.uniform(-1, 1, 2)
    pixels = pixels + slope_x * across[None, :] + slope_y * down[:, None]
    return pixels + rng.normal(0, 16 * strength, pixels.shape)
