"""One task searched with one variant and scored, query by query, beside mteb's own score."""

import time

import mteb
import pandas as pd

from colq_utils.base import files
from colq_utils.base.errors import ColqError
from colq_utils.data import minividore
from colq_utils.data.document_tasks import DocumentsTask
from colq_utils.stages.evaluate import mixed
from colq_utils.stages.evaluate.retriever import Ranking, Retriever, Search
from colq_utils.stages.evaluate.scores import per_query, rankings


def evaluate_task(retriever: Retriever, task) -> pd.DataFrame:
    """Run one mteb task; one row a query, and with vectors of the base two more, with task, lang and counts.

    Raises:
        ColqError: the per-query mean disagrees with mteb's own NDCG@5.
    """
    name, search = task.metadata.name, Search(retriever)
    if isinstance(task, DocumentsTask) and not task.has_labels:
        return _unlabelled(retriever, task)
    task.load_data()  # what is loaded beforehand mteb leaves in place; the relevant pages are needed below
    before, start = retriever.encoded, time.perf_counter()
    result = mteb.evaluate(search, [task], cache=None, co2_tracker=False, show_progress_bar=False)[0]
    ((split, entries),) = result.scores.items()
    frames = []
    for entry in entries:
        subset, theirs = entry["hf_subset"], entry["ndcg_at_5"]
        found, relevant = search.rankings[subset], task.dataset[subset][split]["relevant_docs"]
        frame = per_query(found.scores, found.query_ids, found.page_ids, found.lengths, relevant)
        ours = frame["ndcg_at_5"].mean()
        if abs(ours - theirs) > 1e-4:
            raise ColqError(f"{name} {subset}: per-query NDCG@5 averages {ours:.5f}, mteb says {theirs:.5f}")
        if isinstance(task, DocumentsTask):
            frame["ranking"] = frame["query_id"].map(dict(zip(found.query_ids, _first(found))))
        frames_by = {mixed.OWN: frame}
        for whose, scores in found.mixed.items():
            frames_by[whose] = per_query(scores, found.query_ids, found.page_ids, found.lengths, relevant)
        parts = [part.assign(queries=whose[0], pages=whose[1]) for whose, part in frames_by.items()]
        frame, images = pd.concat(parts, ignore_index=True), dict(zip(found.page_ids, found.digests))
        frame["source"] = [source(name, relevant[query], images) for query in frame["query_id"]]
        n_pages, lang = len(found.page_ids), languages(task)[subset]
        frames.append(frame.assign(lang=lang, n_pages=n_pages, mteb_ndcg_at_5=theirs))
    task.unload_data()
    cost = {"encoded_pages": retriever.encoded - before, "seconds": time.perf_counter() - start}
    return pd.concat(frames, ignore_index=True).assign(task=name, **cost)


def _first(found: Ranking) -> list[list[str]]:
    return rankings(found.scores, found.page_ids)


def _unlabelled(retriever: Retriever, task: DocumentsTask) -> pd.DataFrame:
    """Rankings of queries that nothing is known to answer: no score, no margin."""
    before, start = retriever.encoded, time.perf_counter()
    retriever.index(task.content["corpus"], task.metadata.name)
    found = retriever.rank(task.content["queries"])
    first = _first(found)
    frame = pd.DataFrame(
        {"query_id": found.query_ids, "top5": [pages[:5] for pages in first], "ranking": first}
    )
    frame = frame.assign(source=found.query_ids, ndcg_at_5=float("nan"), first_rank=float("nan"))
    cost = {"encoded_pages": retriever.encoded - before, "seconds": time.perf_counter() - start}
    place = {"task": task.metadata.name, "lang": "any", "n_pages": len(found.page_ids)}
    place |= dict(zip(("queries", "pages"), mixed.OWN))
    return frame.assign(margin=float("nan"), **place, **cost)


def source(task: str, relevant: dict[str, int], images: dict[str, str]) -> str:
    """What a query shares with its translations: the task and the graded images that answer it.

    Two questions with the same answers share it too, which makes an interval wider, never narrower.
    """
    answers = sorted((images.get(page, page), grade) for page, grade in relevant.items() if grade > 0)
    return files.sha256_bytes(repr((task, answers)).encode())[:16]


def languages(task) -> dict[str, str]:
    """Subset of a task -> its language as reports name it; its own name where that is not one language."""
    names = {"und": "any"} | {code: name for name, code in minividore.LANGUAGES.items()}
    scripts = {subset: task.metadata.hf_subsets_to_langscripts[subset] for subset in task.hf_subsets}
    codes = {subset: listed[0].split("-")[0] for subset, listed in scripts.items()}
    one_each = all(len(listed) == 1 for listed in scripts.values()) and len(set(codes.values())) == len(codes)
    return {subset: names.get(code, code) if one_each else subset for subset, code in codes.items()}
