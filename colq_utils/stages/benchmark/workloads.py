"""What the benchmark feeds the models: real queries and pages where they are embedded, made ones elsewhere.

Every variant gets the same items in the same order and batches. Length and size decide the time, so
both are realistic: headings and phrases of the embedded manuals with their regions, or, for the
published models, thirty-two questions and pages of text at the full pixel budget. Quality is not
measured with these.
"""

import io
import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

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

QUESTIONS = tuple(
    """
What was the total revenue of the company in the last fiscal year?
Which risks does the annual report name for the energy sector?
How is the dosage adjusted for patients with renal impairment?
Show the table that compares vaccination rates by region.
What is the maximum operating temperature of the pump?
Which clause covers the early termination of the lease?
How did household consumption develop during the pandemic?
What does the figure say about battery capacity after 500 cycles?
Who signed the audit statement on behalf of the board?
Which programming languages are supported by the software kit?
What are the eligibility criteria for the research grant?
How many employees worked in the European offices in 2022?
Which materials are used in the outer layer of the roof?
What is the recommended interval between two inspections?
Explain the difference between the two loan repayment schemes.
Where is the emergency exit located on the second floor?
Which countries increased their share of renewable electricity?
What percentage of students completed the course online?
How does the court define reasonable notice in this ruling?
Which side effects were reported most often in the trial?
What is the boiling point of the solvent listed in table 3?
How are deferred tax assets recognised in the balance sheet?
Which steps are required to replace the filter cartridge?
What was the average rainfall in the coastal area in June?
Which committee approves changes to the safety protocol?
How large is the memory of the controller described here?
What are the main findings of the customer survey?
Which patents are cited in the section on related work?
How is the emission factor for diesel engines calculated?
What does the contract say about intellectual property?
Which department is responsible for data protection requests?
How much did shipping costs rise compared with last year?
""".strip().splitlines()
)


def plan(experiment: Experiment) -> list[tuple[str, Workload]]:
    """Name and workload of everything that is timed: the published one (first: its peak memory holds nothing of another), then the experiment's own."""
    return [PUBLISHED] + [(w.kind, w) for w in experiment.benchmark.workloads]


def items(experiment: Experiment, work: Workload, count: int) -> list:
    """`count` query texts, or pages as encoded image files, spread evenly over the benchmark.

    Pages stay encoded until `batches` needs them: decoded, they would stand in the memory figures.

    Raises:
        ColqError: the embedded benchmark is not there.
    """
    source = work.source or ("embedded" if experiment.evaluation.suite == "minividore" else "made")
    if source == "made":
        return [
            QUESTIONS[i % len(QUESTIONS)] if work.kind == "queries" else drawn_page(i) for i in range(count)
        ]
    stored = (
        _column("queries.parquet", "text") if work.kind == "queries" else _column("pages.parquet", "image")
    )
    return [stored[i * len(stored) // count] for i in range(count)]


@lru_cache
def _column(file: str, name: str) -> list:
    """One column of the embedded benchmark."""
    import pyarrow.parquet

    path = ROOT / "data" / "minividore" / file
    if not path.exists():
        raise ColqError(
            f"the embedded benchmark has no {path.relative_to(ROOT)}; restore it with `git checkout -- data`"
        )
    return pyarrow.parquet.read_table(path, columns=[name])[name].to_pylist()


@lru_cache
def drawn_page(number: int) -> bytes:
    """An A4 page at 150 dpi filled with lines of text, different for each number, as a PNG file."""
    page = Image.new("RGB", (1240, 1754), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for line in range(52):
        draw.text(
            (100, 90 + 30 * line),
            f"{line + 1}  {QUESTIONS[(number + 5 * line) % len(QUESTIONS)]}",
            "black",
            font,
        )
    file = io.BytesIO()
    page.save(file, "PNG", compress_level=1)
    return file.getvalue()


def batches(loaded: "Loaded", items: list, kind: str, batch: int) -> Iterator[dict]:
    """Model inputs on the model's device without end, going round `items`; each distinct batch is prepared once, on the CPU."""
    starts = range(0, math.lcm(len(items), batch), batch)
    prepared: dict[int, dict] = {}
    for start in itertools.cycle(starts):
        if start not in prepared:
            chosen = [items[(start + i) % len(items)] for i in range(batch)]
            prepared[start] = (
                loaded.processor.queries(chosen)
                if kind == "queries"
                else loaded.processor.pages([Image.open(io.BytesIO(file)) for file in chosen])
            )
        yield {name: value.to(loaded.device) for name, value in prepared[start].items()}
