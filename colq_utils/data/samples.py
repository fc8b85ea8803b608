"""A fixed handful of real queries and pages of the embedded benchmark, for comparing embeddings.

Used by the acceptance check of every experiment, the real checkpoints' too: they need no download and
are real pages. Nothing is tuned on them.
"""

import numpy as np
from PIL import Image

from colq_utils.base.config import Experiment
from colq_utils.data import minividore


def queries(experiment: Experiment, n: int) -> list[str]:
    """`n` query texts, drawn with the experiment's seed."""
    texts = minividore.load().queries["text"].drop_duplicates()
    return texts.iloc[_draw(experiment, len(texts), n)].tolist()


def pages(experiment: Experiment, n: int) -> list[Image.Image]:
    """`n` page images (RGB), drawn with the experiment's seed."""
    table = minividore.load().pages
    return [minividore.image(table.iloc[i]) for i in _draw(experiment, len(table), n)]


def _draw(experiment: Experiment, available: int, n: int) -> np.ndarray:
    return np.sort(np.random.default_rng(experiment.seed).permutation(available)[:n])
