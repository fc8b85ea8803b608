"""What the scores of a variant stand between: the same architecture with random weights, and BM25 on the text layer."""

import pandas as pd
import torch

from colq_utils.base import files
from colq_utils.base.config import ROOT, Experiment
from colq_utils.data import minividore
from colq_utils.model import hub, loading
from colq_utils.model.loading import Loaded
from colq_utils.stages.evaluate.scores import per_query

RANDOM_INIT = "random-init"
FLOOR = ROOT / "data" / "minividore" / "random_init.parquet"


def random_init(experiment: Experiment) -> Loaded:
    """The base's architecture with random weights: the floor of every task."""
    base = loading.plain(
        experiment, experiment.base
    )  # the fast path is a converted model, which has no constructor
    torch.manual_seed(experiment.seed)
    model = (
        type(base.model)(base.model.config).to(base.model.dtype).to(base.device).eval().requires_grad_(False)
    )
    return Loaded(RANDOM_INIT, model, base.processor, base.census, 0.0)


def kept_floor(experiment: Experiment, tasks: list, data: str) -> pd.DataFrame | None:
    """Scores of the random-weight model, kept beside the embedded benchmark because they depend on no variant.

    None where benchmark, architecture, seed, dtype or visual tokens are not those they were measured with: then they have to
    be measured anew; `studies.embedded.floor` writes the file.
    """
    stamp, names = floor_stamp(experiment, data), [task.metadata.name for task in tasks]
    if FLOOR.exists():
        kept = pd.read_parquet(FLOOR)
        if set(kept["stamp"]) == {stamp} and set(names) <= set(kept["task"]):
            return kept[kept["task"].isin(names)].drop(columns="stamp")
    return None


def floor_stamp(experiment: Experiment, data: str) -> str:
    """What the random-weight model's scores depend on.

    Neither code nor packages: the scores are committed, and every change of either would measure them anew in each
    clone. `studies.embedded.floor` makes them again; what `_place` keeps for it does depend on both.
    """
    config = files.sha256(hub.fetch(experiment.model_path, "config.json", experiment.model.revision))
    limit = experiment.model.max_visual_tokens
    stamp = f"{data} {config} {experiment.seed} {experiment.runtime.dtype}" + (
        "" if limit is None else f" {limit}"
    )
    return files.sha256_bytes(stamp.encode())[:16]


def word_matching(tasks: list) -> pd.DataFrame:
    """BM25 over the text layer of the embedded pages, scored as the variants are."""
    benchmark, frames = minividore.load(), []
    for task in tasks:
        name = task.metadata.name
        found = minividore.bm25_scores(benchmark, name)
        for lang in minividore.TASKS[name].languages:
            pages = minividore.corpus_of(benchmark, name, lang)["page_id"].tolist()
            asked = minividore.queries_of(benchmark, name, lang)
            place = {page: i for i, page in enumerate(pages)}
            scores = torch.zeros(len(asked), len(pages))
            for row, query in enumerate(asked["query_id"]):
                for page, score in found[query].items():
                    scores[row, place[page]] = score
            relevant = {
                q: dict.fromkeys(r, 1) for q, r in zip(asked["query_id"], asked["relevant"], strict=True)
            }
            frame = per_query(scores, asked["query_id"].tolist(), pages, [1] * len(asked), relevant)
            frames.append(
                frame.assign(
                    variant="bm25",
                    task=name,
                    lang=lang,
                    n_pages=len(pages),
                    margin=float("nan"),
                    encoded_pages=0,
                )
            )
    return pd.concat(frames, ignore_index=True)
