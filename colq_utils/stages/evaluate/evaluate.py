"""NDCG@5 through mteb, page embeddings computed once, and every query's own score kept.

mteb's stock path encodes a corpus again for each language and pads it into one fp32 tensor in memory.
Here a `Retriever` implements mteb's search protocol over a store on disk: a page is known by the digest
of its image, so a page shared by tasks, languages or variants is decoded, run through the vision tower
and embedded once. mteb does the scoring; per-query scores come from the same ranking and are checked
against mteb's mean.
"""

import difflib
import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import mteb
import pandas as pd
import torch

from colq_utils.base import cache, files, process, provenance
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.base.progress import bar, track
from colq_utils.data import mteb_tasks
from colq_utils.fast import load
from colq_utils.model import checkpoints, encode
from colq_utils.model.loading import Loaded
from colq_utils.stages.evaluate import references
from colq_utils.stages.evaluate.references import RANDOM_INIT, random_init
from colq_utils.stages.evaluate.retriever import Retriever
from colq_utils.stages.evaluate.scores import per_query
from colq_utils.stages.evaluate.store import VectorStore

#: Language codes of the tasks (ISO 639-3) -> as results and reports name them.
LANGUAGES = {"eng": "en", "fra": "fr", "deu": "de", "spa": "es", "ita": "it", "por": "pt"}
#: Packages that do.
_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "pillow",
    "mteb",
    "auto-round",
    "auto-round-lib",
    "humming-kernels",
    "gptqmodel",
)


def evaluate_task(retriever: Retriever, task) -> pd.DataFrame:
    """Run one mteb task; one row a query with task, lang and counts.

    Raises:
        ColqError: the per-query mean disagrees with mteb's own NDCG@5.
    """
    retriever.rankings.clear()
    task.load_data()  # what is loaded beforehand mteb leaves in place; the relevant pages are needed below
    before, start = retriever.encoded, time.perf_counter()
    result = mteb.evaluate(retriever, [task], cache=None, co2_tracker=False, show_progress_bar=False)[0]
    (split,) = result.scores
    frames = []
    for entry in result.scores[split]:
        subset = entry["hf_subset"]
        scores, query_ids, page_ids, lengths, images = retriever.rankings[subset]
        relevant = task.dataset[subset][split]["relevant_docs"]
        frame = per_query(scores, query_ids, page_ids, lengths, relevant)
        if abs(frame["ndcg_at_5"].mean() - entry["ndcg_at_5"]) > 1e-4:
            raise ColqError(
                f"{task.metadata.name} {subset}: per-query NDCG@5 averages {frame['ndcg_at_5'].mean():.5f}, mteb says {entry['ndcg_at_5']:.5f}"
            )
        sources = [source(task.metadata.name, relevant[query], images) for query in frame["query_id"]]
        frames.append(
            frame.assign(
                lang=languages(task)[subset],
                source=sources,
                n_pages=len(page_ids),
                mteb_ndcg_at_5=entry["ndcg_at_5"],
            )
        )
    task.unload_data()
    return pd.concat(frames, ignore_index=True).assign(
        task=task.metadata.name, encoded_pages=retriever.encoded - before, seconds=time.perf_counter() - start
    )


def source(task: str, relevant: dict[str, int], images: dict[str, str]) -> str:
    """What a query shares with its translations: the task and the graded pages that answer it, by their images.

    Two questions with the same answers share it too, which makes an interval wider, never narrower.
    """
    answers = sorted((images.get(page, page), grade) for page, grade in relevant.items() if grade > 0)
    return files.sha256_bytes(repr((task, answers)).encode())[:16]


def languages(task) -> dict[str, str]:
    """Subset of a task -> its language as reports name it, the subset's own name where that is not one language."""
    scripts = task.metadata.hf_subsets_to_langscripts
    codes = {
        subset: [LANGUAGES.get(s.split("-")[0], s.split("-")[0]) for s in scripts[subset]]
        for subset in task.hf_subsets
    }
    single = all(len(c) == 1 for c in codes.values()) and len({c[0] for c in codes.values()}) == len(codes)
    return {subset: c[0] if single else subset for subset, c in codes.items()}


def run_variant(
    experiment: Experiment,
    variant: str,
    tasks: Iterable,
    data_fingerprint: str,
    failed: list[dict] | None = None,
) -> pd.DataFrame:
    """Evaluate a variant on `tasks`; finished tasks of an interrupted run are kept.

    Args:
        failed: receives a row a task that raised, and the others go on; None: the first failure ends the run.

    Returns:
        One row a query: variant, task, lang, query_id, source, ndcg_at_5, first_rank, margin, top5, n_pages, encoded_pages.
    """
    revision, done = _place(experiment, variant, data_fingerprint)
    todo = [task for task in tasks if not (done / f"{task.metadata.name}.parquet").exists()]
    if todo:
        loaded = random_init(experiment) if variant == RANDOM_INIT else load.load(experiment, variant)
        retriever = Retriever(
            loaded, revision, done / "pages", _features(experiment, loaded), experiment.evaluation.batch
        )
        for task in todo:
            try:
                frame = evaluate_task(retriever, task)
            except (
                Exception
            ) as error:  # data that cannot be had, memory: whatever it is costs this task alone
                if failed is None:
                    raise
                failed.append(
                    {
                        "variant": variant,
                        "task": task.metadata.name,
                        "error": f"{type(error).__name__}: {_first_line(error)}",
                    }
                )
                continue
            files.write_table(
                done / f"{task.metadata.name}.parquet",
                frame.assign(variant=variant, machine=provenance.machine()),
            )
        if all((done / f"{task.metadata.name}.parquet").exists() for task in todo):
            shutil.rmtree(done / "pages", ignore_errors=True)  # else kept: a task that failed is tried again
    made = [path for task in tasks if (path := done / f"{task.metadata.name}.parquet").exists()]
    if not made:
        raise ColqError(f"{variant}: every task failed, the last with {failed[-1]['error']}")
    frames = [pd.read_parquet(path) for path in made]
    _one_machine({path: frame["machine"].iloc[0] for path, frame in zip(made, frames)})
    return pd.concat(frames, ignore_index=True)


def _place(experiment: Experiment, variant: str, data_fingerprint: str) -> tuple[str, Path]:
    """A variant's revision, and the folder that keeps its finished tasks for exactly these weights, data, settings, code and packages."""
    revision = (
        f"{RANDOM_INIT}-{experiment.seed}"
        if variant == RANDOM_INIT
        else checkpoints.revision(experiment, variant)
    )
    spec = experiment.by_id[experiment.base if variant == RANDOM_INIT else variant]
    stamp = repr(
        (
            revision,
            data_fingerprint,
            cache.code(experiment, "evaluate"),
            _surroundings(experiment),
            spec.backend,
            spec.encode,
            experiment.evaluation.share_vision,
        )
    )
    return revision, experiment.build("evaluate", f"{variant}-{files.sha256_bytes(stamp.encode())[:16]}")


def _surroundings(experiment: Experiment) -> tuple:
    """What embeddings depend on beside weights and code: packages, configuration, processor and tokenizer, settings.

    Variants take the base's processor. A hub id's revision pins those files; random weights follow from size and seed.
    """
    folder = Path(experiment.model_path)
    if experiment.model.is_random or not folder.is_dir():
        base = checkpoints.base_digest(experiment)
    else:
        base = files.sha256(
            *sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".jinja", ".model"))
        )
    versions = tuple(provenance.version_of(name) for name in _PACKAGES)
    return (
        base,
        versions,
        experiment.model.max_visual_tokens,
        experiment.runtime.model_dump_json(),
        experiment.evaluation.batch,
    )


def _side_by_side(experiment: Experiment, names: list[str], tasks: list, data_fingerprint: str) -> None:
    """Evaluate variants in several processes at once; `run_variant` then finds their tasks done.

    One small model on two cores waits for itself more than two models on one core each do (and gives the same bits).
    What fails here is left to `run_variant`, which tries again and says why.
    """
    at_once = min(experiment.evaluation.processes, len(names))
    if experiment.runtime.device != "cpu" or at_once < 2:
        return
    shares = [names[i::at_once] for i in range(at_once)]
    jobs = [{"experiment": experiment.model_dump(mode="json"), "variants": share} for share in shares]
    places = [_place(experiment, name, data_fingerprint)[1] for name in names]
    expected = [place / f"{task.metadata.name}.parquet" for place in places for task in tasks]
    with bar("variants side by side", len(expected), "task") as progress:
        outcomes = process.side_by_side(
            "colq_utils.stages.evaluate.evaluate:run_some",
            jobs,
            max(1, (experiment.runtime.threads or os.cpu_count()) // at_once),
            lambda: progress.update(sum(path.exists() for path in expected) - progress.n),
        )
    for share, outcome in zip(shares, outcomes, strict=True):
        if outcome.error:
            warnings.warn(
                f"a process evaluating {', '.join(share)} ended early ({outcome.error}); what it left is tried again here",
                stacklevel=2,
            )


def run_some(experiment: dict, variants: list[str]) -> None:
    """`run_variant` on all tasks, in a process of its own; arguments are JSON."""
    settings = Experiment.model_validate(experiment)
    tasks, data = tasks_of(settings), data_fingerprint(settings)
    for name in variants:
        run_variant(settings, name, tasks, data, [])


def _one_machine(found: dict[Path, str]) -> None:
    """Scores of one table come from one kind of processor.

    Raises:
        ColqError: they do not; names the files of the rarer kind.
    """
    kinds = sorted(set(found.values()), key=list(found.values()).count)
    if len(kinds) > 1:
        odd = [str(path) for path, kind in found.items() if kind == kinds[0]]
        raise ColqError(
            f"scores measured on {' and on '.join(kinds)} do not go into one table; remove {', '.join(odd)} and run the same command again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _features(experiment: Experiment, loaded: Loaded) -> VectorStore | None:
    """The store of page features for this model's vision tower and all else that decides them, keyed by their digest."""
    if not experiment.evaluation.share_vision:
        return None
    state = loaded.model.visual.state_dict()
    key = hashlib.sha256(
        repr(
            (cache.code(experiment, "evaluate"), _surroundings(experiment), loaded.model.dtype, loaded.encode)
        ).encode()
    )
    for name in sorted(state):
        key.update(name.encode() + state[name].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return VectorStore(
        experiment.build("features", key.hexdigest()[:16]), encode.feature_width(loaded), loaded.model.dtype
    )


def summary(queries: pd.DataFrame) -> pd.DataFrame:
    """Scores a variant, task and language: queries, pages and mean NDCG@5."""
    table = queries.groupby(["variant", "task", "lang"], sort=False).agg(
        n_queries=("query_id", "size"), n_pages=("n_pages", "first"), ndcg_at_5=("ndcg_at_5", "mean")
    )
    return table.reset_index()


def tasks_of(experiment: Experiment) -> list:
    """The tasks of an experiment, loaded from the repository or, by name, from mteb.

    Raises:
        ColqError: unknown task name; names those that come close.
    """
    names = experiment.evaluation.tasks
    if experiment.evaluation.suite == "minividore":
        return mteb_tasks.tasks(names or None)
    try:
        return [mteb.get_task(name) for name in names]
    except KeyError:
        known = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)}
        wrong = next(name for name in names if name not in known)
        close = difflib.get_close_matches(wrong, known, n=3)
        raise ColqError(
            f"mteb has no task {wrong!r}" + (f"; did you mean {', '.join(close)}?" if close else "")
        ) from None


def describe(experiment: Experiment, tasks: list) -> pd.DataFrame:
    """The tasks as a table: group, whether it counts towards the suite's mean, languages, what is asked."""
    rows = []
    for task in tasks:
        name, row = task.metadata.name, {"group": "mteb", "counted": True, "asks": task.metadata.description}
        if experiment.evaluation.suite == "minividore":
            from colq_utils.data import minividore

            known = minividore.TASKS[name]
            row = {
                "group": "graded" if known.counted else name.removeprefix("MiniVidore").lower(),
                "counted": known.counted,
                "asks": known.description,
            }
        rows.append({"task": name, **row, "languages": " ".join(sorted(languages(task).values()))})
    return pd.DataFrame(rows)


def variants(experiment: Experiment) -> list[str]:
    """Variants to evaluate: the base and the quantized; another float format of the base is only benchmarked."""
    return [name for name in experiment.by_id if name == experiment.base or name in experiment.quantized]


def data_fingerprint(experiment: Experiment) -> str:
    """Identity of the evaluation data: the embedded benchmark's digest, or the tasks' pinned revisions."""
    if experiment.evaluation.suite == "minividore":
        from colq_utils.data import minividore

        return files.sha256_bytes(repr(sorted(minividore.verify().items())).encode())[:16]
    return files.sha256_bytes(
        repr([(t.metadata.name, t.metadata.revision) for t in tasks_of(experiment)]).encode()
    )[:16]


def run_all(experiment: Experiment, tasks: list) -> pd.DataFrame:
    """Every variant, the random-weight floor and (embedded benchmark) BM25; one row a query and variant.

    Tasks that raised are written to failures.csv; the same command tries them again.
    """
    for name in variants(experiment):
        checkpoints.revision(experiment, name)  # a missing checkpoint is said before hours of work, not after
    data = data_fingerprint(experiment)
    failed: list[dict] = []
    frames = [
        run_variant(experiment, experiment.base, tasks, data, failed)
    ]  # first: the others use its page features
    rest = variants(experiment)[1:]
    _side_by_side(experiment, rest, tasks, data)
    frames += [run_variant(experiment, name, tasks, data, failed) for name in track(rest, "variants")]
    if experiment.evaluation.random_init:
        kept = references.kept_floor(experiment, tasks, data)
        frames.append(run_variant(experiment, RANDOM_INIT, tasks, data) if kept is None else kept)
    if experiment.evaluation.suite == "minividore":
        frames.append(references.word_matching(tasks))
    _one_machine(
        {
            _place(experiment, f["variant"].iloc[0], data)[1]: f["machine"].iloc[0]
            for f in frames
            if "machine" in f
        }
    )
    files.write_table(
        experiment.results("evaluate") / "failures.csv",
        pd.DataFrame(failed, columns=["variant", "task", "error"]),
    )
    return with_sources(experiment, pd.concat(frames, ignore_index=True))


def with_sources(experiment: Experiment, queries: pd.DataFrame) -> pd.DataFrame:
    """Per-query rows with `source`: in the embedded benchmark it links headings across tasks and their translations."""
    if experiment.evaluation.suite != "minividore":
        return queries
    from colq_utils.data import minividore

    return queries.assign(source=queries["query_id"].map(minividore.sources(minividore.load())))


def stored(queries: pd.DataFrame) -> pd.DataFrame:
    """The columns that are kept, in a fixed order."""
    return queries[
        [
            "variant",
            "task",
            "lang",
            "query_id",
            "source",
            "ndcg_at_5",
            "first_rank",
            "margin",
            "top5",
            "n_pages",
            "encoded_pages",
        ]
    ]


def suite_means(scores: pd.DataFrame) -> dict[str, float]:
    """Mean NDCG@5 over the counted entries (task and language) by variant."""
    return scores[scores["counted"]].groupby("variant", sort=False)["ndcg_at_5"].mean().round(6).to_dict()
