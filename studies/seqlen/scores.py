"""A variant's scores and drift on the embedded benchmark, without mteb, on whatever device the model is.

The benchmark is read once into a `Questions`: every page (and every page as a bad scan) and every query
with the pages that its task searches. Page features come from the vision tower once for all variants that
share it. What is kept of a query is what `evaluate` keeps, plus how far its token vectors and its scores
have drifted from the base's. `tests/studies/test_study.py` and the provenance record say how closely the
scores agree with those of `evaluate`.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from colq_utils.data import minividore
from colq_utils.model import encode
from colq_utils.model.loading import Loaded
from colq_utils.model.maxsim import maxsim
from colq_utils.stages.evaluate.scores import per_query

#: Similarities held at once on the device, query tokens x page tokens.
BLOCK = 1 << 28
SCANNED = "@scan"


@dataclass(frozen=True)
class Questions:
    """The embedded benchmark, flat.

    pages: page_id, lang, scanned (whether this row is the scan); a scan has an id of its own.
    queries: query_id, task (as mteb names it), lang, type, text, relevant (page ids).
    corpora: (task, lang) -> row numbers in `pages`.
    """

    pages: pd.DataFrame
    queries: pd.DataFrame
    corpora: dict[tuple[str, str], np.ndarray]
    images: tuple

    @property
    def page_ids(self) -> list[str]:
        return self.pages["page_id"].tolist()

    def rows(self, task: str, lang: str) -> np.ndarray:
        """Row numbers in `queries` of a task in one language."""
        return np.flatnonzero((self.queries["task"] == task) & (self.queries["lang"] == lang))


def bench(tasks: tuple[str, ...] = (), languages: tuple[str, ...] = ()) -> Questions:
    """Read MiniVidore, or a choice of its tasks and languages with the pages they search."""
    whole = minividore.load()
    rows = whole.pages.to_dict("records")
    clean = [
        {"page_id": r["page_id"], "lang": r["lang"], "scanned": False, "row": i} for i, r in enumerate(rows)
    ]
    scans = [
        {"page_id": r["page_id"] + SCANNED, "lang": r["lang"], "scanned": True, "row": i}
        for i, r in enumerate(rows)
        if r["scanned"]
    ]
    pages = pd.DataFrame(clean + scans)
    queries, searched = [], {}
    for task in tasks or minividore.TASKS:
        suffix = SCANNED if minividore.TASKS[task].pages == "scanned" else ""
        for lang in minividore.TASKS[task].languages:
            if not languages or lang in languages:
                searched[task, lang] = [
                    p + suffix for p in minividore.corpus_of(whole, task, lang)["page_id"]
                ]
                asked = minividore.queries_of(whole, task, lang)
                queries.append(
                    asked.assign(task=task, relevant=[[p + suffix for p in r] for r in asked["relevant"]])
                )
    pages = pages[pages["page_id"].isin(set().union(*searched.values()))].reset_index(drop=True)
    place = {page: i for i, page in enumerate(pages["page_id"])}
    corpora = {entry: np.array([place[p] for p in ids]) for entry, ids in searched.items()}
    return Questions(
        pages.drop(columns="row"),
        pd.concat(queries, ignore_index=True),
        corpora,
        tuple((rows[i], scanned) for i, scanned in zip(pages["row"], pages["scanned"])),
    )


def picture(entry: tuple[dict, bool]):
    """The image of an entry of `Questions.images`; scans come of the clean page, the same ones each time."""
    row, scanned = entry
    if not scanned:
        return minividore.image(row)
    return minividore.scanned(row)


@torch.inference_mode()
def page_features(
    towers: dict[str, Loaded], questions: Questions, batch: int = 16
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """What several vision towers make of every page, each page decoded once.

    Returns:
        Tower name -> ``(n_pages, n_visual_tokens, feature_width)`` in the model's dtype, on the CPU, and the
        one grid ``[time, height, width]`` that all pages share.

    Raises:
        ValueError: pages of several sizes.
    """
    processor, keys = next(iter(towers.values())).processor, list(range(len(questions.images)))

    def prepare(subset):
        images = [picture(questions.images[key]).convert("RGB") for key in subset]
        return processor.image_processor(images=images, return_tensors="pt")

    features, grid = {}, None
    for _, inputs in encode.prefetch(prepare, keys, batch):
        grids = inputs["image_grid_thw"].tolist()
        grid = grid or grids[0]
        if any(g != grid for g in grids):
            raise ValueError("pages of several sizes: their features do not fit one tensor")
        for name, tower in towers.items():
            output = tower.model.page_features(
                inputs["pixel_values"].to(tower.device), inputs["image_grid_thw"].to(tower.device)
            )
            parts = [torch.stack(list(part)) for part in (output.pooler_output, *output.deepstack_features)]
            features.setdefault(name, []).append(
                torch.cat(parts, dim=-1).cpu()
            )  # (n, n_visual_tokens, feature_width)
    return {name: torch.cat(parts) for name, parts in features.items()}, grid


@dataclass(frozen=True)
class Embedded:
    """Vectors on the CPU: pages ``(n_pages, n_tokens, dim)``, a tensor ``(n_tokens, dim)`` per query."""

    pages: torch.Tensor
    queries: list[torch.Tensor]


@torch.inference_mode()
def embed(
    loaded: Loaded, features: torch.Tensor, grid: list[int], texts: list[str], batch: int = 64
) -> Embedded:
    """Run the language model on page features and on the queries."""
    pages = []
    for subset in features.split(batch):  # (n, n_visual_tokens, feature_width)
        pages += encode.pages_from_features(loaded, subset, [grid] * len(subset))
    return Embedded(torch.stack(pages), encode.queries(loaded, texts, batch=128))


def score_matrix(questions: Questions, vectors: Embedded, device: torch.device) -> torch.Tensor:
    """Scores of every query on the pages that its task searches, NaN elsewhere: ``(n_queries, n_pages)``."""
    matrix = torch.full((len(questions.queries), len(questions.pages)), float("nan"))
    scanned = questions.pages["scanned"].to_numpy()
    tasks = {task for task, spec in minividore.TASKS.items() if spec.pages == "scanned"}
    on_scans = questions.queries["task"].isin(tasks).to_numpy()
    for rows, columns in (
        (np.flatnonzero(~on_scans), np.flatnonzero(~scanned)),
        (np.flatnonzero(on_scans), np.flatnonzero(scanned)),
    ):
        if len(rows):
            pages = vectors.pages[columns]
            queries = [vectors.queries[i] for i in rows]
            matrix[np.ix_(rows, columns)] = maxsim(queries, len(pages), pages.__getitem__, BLOCK, device)
    for (task, lang), columns in questions.corpora.items():
        outside = np.setdiff1d(np.arange(len(questions.pages)), columns)
        matrix[np.ix_(questions.rows(task, lang), outside)] = float("nan")
    return matrix


@dataclass(frozen=True)
class Reference:
    """What drift is measured against: the base's vectors and scores."""

    vectors: Embedded
    scores: torch.Tensor


def query_rows(
    questions: Questions, vectors: Embedded, scores: torch.Tensor, base: Reference
) -> pd.DataFrame:
    """One row a query: task, lang, query_id, ndcg_at_5, first_rank, margin, kept (how many of the base's top
    five), cosine (mean over its tokens with the base's) and drift (mean over the searched pages of the change
    of MaxSim a query token, without sign).

    The last digits are rounded off: a study has half a million rows, and they would be most of its bytes.
    """
    frames, ids = [], questions.page_ids
    for (task, lang), columns in questions.corpora.items():
        rows = questions.rows(task, lang)
        asked, lengths = questions.queries.iloc[rows], [len(vectors.queries[i]) for i in rows]
        relevant = {q: dict.fromkeys(r, 1) for q, r in zip(asked["query_id"], asked["relevant"], strict=True)}
        own, theirs = (m[np.ix_(rows, columns)] for m in (scores, base.scores))
        names = [ids[i] for i in columns]
        frame = per_query(own.nan_to_num(-1e9), asked["query_id"].tolist(), names, lengths, relevant)
        reference = per_query(theirs, asked["query_id"].tolist(), names, lengths, relevant)
        change = (own - theirs) / torch.tensor(lengths)[:, None]
        frames.append(
            frame.assign(
                task=task,
                lang=lang,
                kept=[len(set(a) & set(b)) for a, b in zip(frame["top5"], reference["top5"])],
                drift=change.abs().mean(1).numpy(),
                cosine=[cosine(vectors.queries[i], base.vectors.queries[i]).mean().item() for i in rows],
            )
        )
    table = pd.concat(frames, ignore_index=True)
    floats, whole = ("ndcg_at_5", "margin", "cosine", "drift"), {"first_rank": "int16", "kept": "int8"}
    types = dict.fromkeys(floats, "float32") | whole
    table = table[
        ["task", "lang", "query_id", "ndcg_at_5", "first_rank", "margin", "kept", "cosine", "drift"]
    ]
    return table.round({"margin": 4, "cosine": 5, "drift": 5}).astype(types)


def cosine(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Cosine along the last dimension, in fp32."""
    return torch.cosine_similarity(ours.float(), theirs.float(), dim=-1)


def page_rows(questions: Questions, vectors: Embedded, base: Reference) -> pd.DataFrame:
    """By language and kind of page: tokens, and mean, first percentile and minimum of the token cosine."""
    values = cosine(vectors.pages, base.vectors.pages)  # (n_pages, n_tokens)
    rows = []
    for (lang, scanned), subset in questions.pages.groupby(["lang", "scanned"], sort=True):
        cosines = values[torch.tensor(subset.index.tolist())].flatten()
        few = len(cosines) < 1 << 24  # torch's quantile takes no more
        p01 = cosines.quantile(0.01) if few else np.quantile(cosines.numpy(), 0.01)
        row = {"lang": lang, "scanned": bool(scanned), "pages": len(subset), "tokens": len(cosines)}
        row |= {"cosine_mean": cosines.mean().item(), "cosine_p01": float(p01)}
        rows.append(row | {"cosine_min": cosines.min().item()})
    return pd.DataFrame(rows)


def not_finite(vectors: Embedded) -> int:
    """How many numbers of all vectors are NaN or infinite."""
    return sum(int((~torch.isfinite(tensor)).sum()) for tensor in (vectors.pages, *vectors.queries))
