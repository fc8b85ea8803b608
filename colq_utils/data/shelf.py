"""The pages and queries that the evaluation notebook shows, by id, whichever suite they come from.

Scanned pages of the embedded benchmark are left out: a shelf has one picture per page.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from PIL import Image

from colq_utils.base.config import Experiment
from colq_utils.base.names import DOCUMENT_QUERIES
from colq_utils.data import document_tasks, minividore

#: A query of the embedded benchmark whose match is seen at a glance; pages searched for a query of one's own.
BY_HAND, SAMPLE = "headings-0043", 16


@dataclass(frozen=True)
class Shelf:
    """What can be shown of a suite.

    queries: by query_id: text, kind (its language, or what is known of its answer), relevant (page ids).
    tasks: those that search the pages as they are shown. by_hand: a query and a page, a match where one is
    known. sample: a few page ids. image: page id -> picture, RGB.
    """

    queries: pd.DataFrame
    tasks: tuple[str, ...]
    by_hand: tuple[str, str]
    sample: list[str]
    image: Callable[[str], Image.Image]


def of(experiment: Experiment) -> Shelf | None:
    """The shelf of an experiment's suite; None for a suite of mteb's, whose pages are not kept."""
    suites = {"minividore": _embedded, "documents": _documents}
    suite = experiment.evaluation.suite
    return suites[suite](experiment) if suite in suites else None


def _embedded(experiment: Experiment) -> Shelf:
    benchmark = minividore.load()
    pages = benchmark.pages.set_index("page_id")
    queries = benchmark.queries.rename(columns={"lang": "kind"}).set_index("query_id")
    clean = tuple(name for name, task in minividore.TASKS.items() if task.pages != "scanned")
    sample = pages.index[pages.reading & (pages.lang == "en")][:SAMPLE].tolist()
    by_hand = BY_HAND, queries.relevant[BY_HAND][0]
    return Shelf(queries, clean, by_hand, sample, lambda key: minividore.image(pages.loc[key]))


def _documents(experiment: Experiment) -> Shelf:
    collection, asked = document_tasks.read(experiment)
    paths = collection.pages.set_index("page_id").path
    queries = asked.set_index("query_id")
    answers = [[page for page, grade in graded.items() if grade > 0] for graded in queries.relevant]
    queries = queries.assign(relevant=answers)
    answered = queries[queries.relevant.str.len() > 0]
    by_hand = (
        (answered.index[0], answered.relevant.iloc[0][0])
        if len(answered)
        else (queries.index[0], paths.index[0])
    )
    tasks = tuple(name for name, _ in DOCUMENT_QUERIES.values())
    sample = paths.index[:SAMPLE].tolist()
    return Shelf(queries, tasks, by_hand, sample, lambda key: Image.open(paths[key]).convert("RGB"))
