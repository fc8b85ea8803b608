"""What a variant's scores stand between: the same architecture with random weights, and BM25 on the text."""

import pandas as pd
import torch

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.data import minividore
from colq_utils.model import hub, loading
from colq_utils.stages.evaluate.scores import per_query

RANDOM_INIT = "random-init"
FLOOR = minividore.DEFAULT / "random_init.parquet"


def random_init(experiment: Experiment) -> loading.Loaded:
    """The base's architecture with random weights: the floor of every task."""
    base = loading.plain(
        experiment, experiment.base
    )  # a model converted for the fast path has no constructor
    torch.manual_seed(experiment.seed)
    model = type(base.model)(base.model.config).to(base.device, base.model.dtype)
    model.eval().requires_grad_(False)
    return loading.Loaded(RANDOM_INIT, model, base.processor, base.census, 0.0)


def kept_floor(experiment: Experiment, tasks: list, data: str) -> pd.DataFrame | None:
    """Scores of the random-weight model, kept beside the embedded benchmark, for they depend on no variant.

    None where anything of `floor_stamp` is not what they were measured with.
    """
    if not FLOOR.exists():
        return None
    kept, names = pd.read_parquet(FLOOR), {task.metadata.name for task in tasks}
    if set(kept["stamp"]) != {floor_stamp(experiment, data)} or not names <= set(kept["task"]):
        return None
    return kept[kept["task"].isin(names)].drop(columns="stamp")


def floor_stamp(experiment: Experiment, data: str) -> str:
    """What the random-weight model's scores depend on: benchmark, architecture, seed, dtype, visual tokens.

    Neither code nor packages: the scores are committed, and every change of either would measure them anew in
    each clone; `studies.embedded.floor` makes them again.
    """
    model, limit = experiment.model, experiment.model.max_visual_tokens
    config = files.sha256(hub.fetch(experiment.model_path, "config.json", model.revision))
    parts = [data, config, experiment.seed, experiment.runtime.dtype, *([] if limit is None else [limit])]
    return files.sha256_bytes(" ".join(map(str, parts)).encode())[:16]


def word_matching(tasks: list) -> pd.DataFrame:
    """BM25 over the text layer of the embedded pages, scored as the variants are."""
    benchmark, frames = minividore.load(), []
    for name in (task.metadata.name for task in tasks):
        bm25 = minividore.bm25_scores(benchmark, name)
        for lang in minividore.TASKS[name].languages:
            pages = minividore.corpus_of(benchmark, name, lang)["page_id"].tolist()
            queries = minividore.queries_of(benchmark, name, lang)
            ids = queries["query_id"].tolist()
            scores = torch.tensor([[bm25[query].get(page, 0.0) for page in pages] for query in ids])
            relevant = {query: dict.fromkeys(answers, 1) for query, answers in zip(ids, queries["relevant"])}
            frame = per_query(scores, ids, pages, [1] * len(ids), relevant)
            frames.append(frame.assign(task=name, lang=lang, n_pages=len(pages)))
    return pd.concat(frames, ignore_index=True).assign(variant="bm25", margin=float("nan"), encoded_pages=0)
