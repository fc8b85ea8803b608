"""What the benchmark feeds the models: real queries and pages where they are embedded, made ones elsewhere.

Every variant gets the same items in the same order and batches. Length and size decide the time, so both are
realistic: headings and phrases of the embedded manuals with their regions, or, for the published models,
thirty-two questions and pages of text at the full pixel budget. Quality is not measured with these.
"""

import io
import itertools
import math
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from colq_utils.base.config import ROOT, Experiment, Workload
from colq_utils.base.errors import ColqError

if TYPE_CHECKING:  # transformers takes seconds to import, and the parent of the benchmark loads no model
    from colq_utils.model.loading import Loaded

#: The text workload of the published 8B report: 32 texts, batches of 8, 3 warm-up steps, 10 timed.
PUBLISHED = (
    "queries_published",
    Workload(kind="queries", batch=8, iterations=10, warmup=3, items=32, source="made"),
)
#: Real queries and pages, and made questions.
EMBEDDED, MADE = ROOT / "data" / "minividore", ROOT / "data" / "made" / "questions.txt"


def plan(experiment: Experiment) -> list[tuple[str, Workload]]:
    """Name and workload of all that is timed; the published one first: its peak memory holds nothing else."""
    return [PUBLISHED] + [(w.kind, w) for w in experiment.benchmark.workloads]


def items(experiment: Experiment, work: Workload, count: int) -> list:
    """`count` query texts, or pages as encoded image files, spread evenly over the benchmark.

    Pages stay encoded until `batches` needs them: decoded, they would stand in the memory figures.

    Raises:
        ColqError: the embedded benchmark is not there.
    """
    source = work.source or ("embedded" if experiment.evaluation.suite == "minividore" else "made")
    if source == "made" and work.kind == "pages":
        return [drawn_page(i) for i in range(count)]
    if source == "made":
        return [questions()[i % len(questions())] for i in range(count)]
    stored = _column("queries", "text") if work.kind == "queries" else _column("pages", "image")
    return [stored[i * len(stored) // count] for i in range(count)]


@lru_cache
def questions() -> tuple[str, ...]:
    """Made queries, all different."""
    return tuple(MADE.read_text().splitlines())


@lru_cache
def _column(table: str, name: str) -> list:
    """One column of the embedded benchmark."""
    path = EMBEDDED / f"{table}.parquet"
    if not path.exists():
        raise ColqError(
            f"the embedded benchmark has no {path.relative_to(ROOT)}; restore it with `git checkout -- data`"
        )
    return pd.read_parquet(path, columns=[name])[name].tolist()


@lru_cache
def drawn_page(number: int) -> bytes:
    """An A4 page at 150 dpi filled with lines of text, different for each number, as a PNG file."""
    page = Image.new("RGB", (1240, 1754), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for line in range(52):
        text = questions()[(number + 5 * line) % len(questions())]
        draw.text((100, 90 + 30 * line), f"{line + 1}  {text}", "black", font)
    file = io.BytesIO()
    page.save(file, "PNG", compress_level=1)
    return file.getvalue()


def batches(loaded: "Loaded", items: list, kind: str, batch: int) -> Iterator[dict]:
    """Model inputs on the model's device, round `items` without end; a batch is prepared once, on the CPU."""

    @cache
    def prepared(start: int) -> dict:
        chosen = [items[(start + i) % len(items)] for i in range(batch)]
        if kind == "queries":
            return loaded.processor.queries(chosen)
        return loaded.processor.pages([Image.open(io.BytesIO(file)) for file in chosen])

    for start in itertools.cycle(range(0, math.lcm(len(items), batch), batch)):
        yield {name: value.to(loaded.device) for name, value in prepared(start).items()}
