"""Mixed precision: the quantized model's queries against the base's page vectors, and the other way round.

It answers whether a corpus has to be embedded again. The base keeps its page and query vectors as long as its
folder in build/ lives; other variants, in whatever process, read them while they search with their own, so
that nothing is embedded for it. Where the base lacks a vector nothing is scored; that is no error.
Tasks of the bundled benchmark that its average leaves out are left out here too: MaxSim takes its time.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.data import minividore
from colq_utils.model.maxsim import maxsim
from colq_utils.stages.evaluate.store import VectorStore

#: Whose query vectors and whose page vectors meet.
OWN, FORWARD, BACKWARD = ("own", "own"), ("own", "base"), ("base", "own")
COLUMNS = ["variant", "queries", "pages", "task", "lang", "query_id", "source", "ndcg_at_5", "top5"]


class BaseVectors:
    """Vectors of the base: of pages by the digest of their image, of queries by their text.

    Args:
        folder: the base's evaluation folder.
        dtype: that of the variants, which all share it.
    """

    def __init__(self, folder: Path, width: int, dtype: torch.dtype):
        self.pages = VectorStore(folder / "pages", width, dtype)
        self.queries = VectorStore(folder / "queries", width, dtype)

    def keep(self, texts: list[str], vectors: list[torch.Tensor]) -> None:
        """Add the base's queries that are new."""
        new = {text: tokens for text, tokens in zip(texts, vectors) if text not in self.queries}
        self.queries.extend(list(new), list(new.values()))

    def scores(
        self, texts: list[str], vectors: list[torch.Tensor], keys: list[str], page: Callable, device
    ) -> dict[tuple[str, str], torch.Tensor]:
        """MaxSim ``(n_queries, n_pages)`` in both directions; none where the base lacks a query or a page.

        Args:
            vectors: the variant's of `texts`.
            page: gives the variant's vectors of one of `keys`.
        """
        if any(text not in self.queries for text in texts) or any(key not in self.pages for key in keys):
            return {}
        bases = [self.queries[text] for text in texts]
        return {
            FORWARD: maxsim(vectors, len(keys), lambda i: self.pages[keys[i]], device=device),
            BACKWARD: maxsim(bases, len(keys), lambda i: page(keys[i]), device=device),
        }


def is_scored(task: str) -> bool:
    """Whether a task is scored in mixed precision: all but the uncounted ones of the bundled benchmark."""
    return task not in minividore.TASKS or minividore.TASKS[task].counted


def path(folder: Path, task: str) -> Path:
    """Where a variant keeps a finished task's mixed scores, beside the task's own."""
    return folder / "mixed" / f"{task}.parquet"


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a task: the variant's own without the columns that say so, and the mixed ones."""
    own = (frame["queries"] == "own") & (frame["pages"] == "own")
    return frame[own].drop(columns=["queries", "pages"]), frame[~own]


def write(experiment: Experiment, paths: list[Path], sources: dict[str, str] | None) -> None:
    """Put the finished tasks of all variants into evaluate/mixed.parquet; no file where there are none.

    Args:
        sources: of queries, where they are not those that a task gives.
    """
    target = experiment.results("evaluate") / "mixed.parquet"
    tables = [pd.read_parquet(path) for path in paths if path.exists()]
    finished = [table for table in tables if len(table)]
    if not finished:
        target.unlink(missing_ok=True)
        return
    table = pd.concat(finished, ignore_index=True)
    if sources is not None:
        table["source"] = table["query_id"].map(sources)
    files.write_table(target, table[COLUMNS])
