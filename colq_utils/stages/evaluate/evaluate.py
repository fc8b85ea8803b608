"""NDCG@5 through mteb, page embeddings computed once, and every query's own score kept.

mteb does the scoring, of what a `Retriever` finds; scores of single queries come from the same ranking and
are checked against mteb's mean. Finished tasks are kept, under the digest of all that they depend on.
"""

import difflib
import hashlib
import os
import shutil
import warnings
from pathlib import Path

import mteb
import pandas as pd
import torch

from colq_utils.base import cache, files, process, provenance
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.base.progress import bar, track
from colq_utils.data import document_tasks, minividore, mteb_tasks
from colq_utils.data.document_tasks import DocumentsTask
from colq_utils.fast import load
from colq_utils.model import checkpoints, encode
from colq_utils.model.loading import Loaded
from colq_utils.stages.evaluate import mixed, references
from colq_utils.stages.evaluate.references import RANDOM_INIT, random_init
from colq_utils.stages.evaluate.retriever import Retriever
from colq_utils.stages.evaluate.store import VectorStore
from colq_utils.stages.evaluate.tasks import evaluate_task, languages

#: Packages that embeddings and scores depend on.
PACKAGES = (*provenance.PACKAGES, "tokenizers", "pillow")
#: A pass of the vision tower takes as long as evaluating about this many variants on what it gave.
TOWER = 6
#: Columns kept of a query: which one it is, and how it fared.
QUERY = ["variant", "task", "lang", "query_id", "source"]
OUTCOME = ["ndcg_at_5", "first_rank", "margin", "top5", "n_pages", "encoded_pages"]


def run_variant(
    experiment: Experiment, variant: str, tasks: list, data: str, failed: list[dict] | None = None
) -> pd.DataFrame:
    """Evaluate a variant on `tasks`; finished tasks of an interrupted run are kept.

    Args:
        data: what `data_fingerprint` gives.
        failed: receives a row a task that raised, and the others go on; None: the first failure ends the run.

    Returns:
        One row a query: the columns of `stored` and where it was measured.
    """
    folder, base_folder = (_folder(experiment, name, data) for name in (variant, experiment.base))
    paths = {task.metadata.name: folder / f"{task.metadata.name}.parquet" for task in tasks}
    crossed = {name: mixed.path(folder, name) for name in paths if mixed.is_scored(name)}
    if variant == experiment.base and not (folder / "pages").exists():
        for path in paths.values():  # its vectors are gone, and the other variants need them
            path.unlink(missing_ok=True)
    wanted = {name for name in crossed if (base_folder / f"{name}.parquet").exists()}
    wanted = wanted if variant in experiment.compared else set()
    lacking = {name for name in wanted if not crossed[name].exists()}
    lacking |= {name for name, path in paths.items() if not path.exists()}
    todo = [task for task in tasks if task.metadata.name in lacking]
    if todo:
        loaded = random_init(experiment) if variant == RANDOM_INIT else load.load(experiment, variant)
        features, width, base = _features(experiment, loaded), loaded.model.config.embed_dim, None
        if variant == experiment.base or variant in experiment.compared:
            base = mixed.BaseVectors(base_folder, width, loaded.model.dtype)
        retriever = Retriever(loaded, folder / "pages", features, experiment.evaluation.batch)
    for task in todo:
        name = task.metadata.name
        retriever.base = base if name in crossed else None
        try:
            frame = evaluate_task(retriever, task)
        except Exception as error:  # data that cannot be had, memory: whatever it is costs this task alone
            if failed is None:
                raise
            failed.append({"variant": variant, "task": name, "error": process.describe(error)})
        else:
            own, both = mixed.split(frame.assign(variant=variant, machine=provenance.machine()))
            files.write_table(paths[name], own)
            if name in wanted:
                files.write_table(crossed[name], both)
    finished = [path for path in paths.values() if path.exists()]
    if not finished:
        raise ColqError(f"{variant}: every task failed, the last with {failed[-1]['error']}")
    if len(finished) == len(paths) and variant != experiment.base:
        shutil.rmtree(folder / "pages", ignore_errors=True)  # else kept: a task that failed is tried again
    frames = [pd.read_parquet(path) for path in finished]
    _one_machine({path: frame["machine"].iloc[0] for path, frame in zip(finished, frames)})
    return pd.concat(frames, ignore_index=True)


def _folder(experiment: Experiment, variant: str, data: str) -> Path:
    """Where a variant's finished tasks are kept, for exactly these weights, data, settings and code."""
    if variant == RANDOM_INIT:
        spec, revision = experiment.by_id[experiment.base], f"{RANDOM_INIT}-{experiment.seed}"
    else:
        spec, revision = experiment.by_id[variant], checkpoints.revision(experiment, variant)
    settings = (spec.backend, spec.encode, experiment.evaluation.share_vision)
    stamp = repr((revision, data, settings, _surroundings(experiment)))
    return experiment.build("evaluate", f"{variant}-{files.sha256_bytes(stamp.encode())[:16]}")


def _surroundings(experiment: Experiment) -> tuple:
    """What embeddings depend on beside weights: processor, tokenizer, config, code, packages, settings.

    Variants take the base's processor; a hub id's revision pins its files, the seed decides random weights.
    """
    folder = Path(experiment.model_path)
    if experiment.model.is_random or not folder.is_dir():
        base = checkpoints.base_digest(experiment)
    else:
        kinds = (".json", ".txt", ".jinja", ".model")
        base = files.sha256(*sorted(path for path in folder.iterdir() if path.suffix in kinds))
    code, versions = cache.code(experiment, "evaluate"), [provenance.version_of(name) for name in PACKAGES]
    settings = (experiment.model.max_visual_tokens, experiment.runtime, experiment.evaluation.batch)
    return base, code, versions, settings


def _features(experiment: Experiment, loaded: Loaded) -> VectorStore | None:
    """The store of page features, for exactly this model's vision tower and all else that decides them."""
    if not experiment.evaluation.share_vision:
        return None
    dtype, tower = loaded.model.dtype, loaded.model.visual.state_dict()
    key = hashlib.sha256(repr((_surroundings(experiment), dtype, loaded.encode)).encode())
    for name in sorted(tower):
        key.update(name.encode() + tower[name].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    folder = experiment.build("features", key.hexdigest()[:16])
    return VectorStore(folder, encode.feature_width(loaded), dtype)


def _side_by_side(experiment: Experiment, names: list[str], tasks: list, data: str) -> None:
    """Evaluate variants in several processes at once; `run_variant` then finds their tasks done.

    One small model on two cores waits for itself more than two models on one core each do (and gives the same
    bits). What fails here is left to `run_variant`, which tries again and says why.
    """
    at_once = min(experiment.evaluation.processes, len(names))
    if experiment.runtime.device != "cpu" or at_once < 2:
        return
    shares = _shares(experiment, names, at_once)
    jobs = [{"experiment": experiment.model_dump(mode="json"), "variants": share} for share in shares]
    threads = max(1, (experiment.runtime.threads or os.cpu_count()) // at_once)
    folders = [_folder(experiment, name, data) for name in names]
    expected = [folder / f"{task.metadata.name}.parquet" for folder in folders for task in tasks]
    with bar("variants side by side", len(expected), "task") as progress:
        outcomes = process.side_by_side(
            f"{__name__}:run_some",
            jobs,
            threads,
            lambda: progress.update(sum(path.exists() for path in expected) - progress.n),
        )
    for share, outcome in zip(shares, outcomes, strict=True):
        if outcome.error:
            early = f"a process evaluating {', '.join(share)} ended early ({outcome.error})"
            warnings.warn(f"{early}; what it left is tried again here", stacklevel=2)


def _shares(experiment: Experiment, names: list[str], at_once: int) -> list[list[str]]:
    """Variants dealt to processes so that all end at about the same time.

    Those with one vision tower of their own go to one process: two would wait for each other's features.
    """
    towers = {}
    for name in names:
        towers.setdefault(experiment.by_id[name].vision or name, []).append(name)
    costs = {tower: len(group) + TOWER * (tower not in names) for tower, group in towers.items()}
    shares, loads = [[] for _ in range(at_once)], [0] * at_once
    for tower in sorted(towers, key=costs.get, reverse=True):
        idlest = loads.index(min(loads))
        shares[idlest] += towers[tower]
        loads[idlest] += costs[tower]
    return [share for share in shares if share]


def run_some(experiment: dict, variants: list[str]) -> None:
    """`run_variant` on all tasks, in a process of its own; arguments are JSON."""
    settings = Experiment.model_validate(experiment)
    tasks, data = tasks_of(settings), data_fingerprint(settings)
    for name in variants:
        run_variant(settings, name, tasks, data, [])


def _one_machine(machines: dict[Path, str]) -> None:
    """Scores of one table come from one kind of processor, or the files of the rarer kind are named."""
    kinds = sorted(set(machines.values()), key=list(machines.values()).count)
    if len(kinds) > 1:
        odd = ", ".join(str(path) for path, kind in machines.items() if kind == kinds[0])
        raise ColqError(
            f"scores measured on {' and on '.join(kinds)} do not go into one table; "
            f"remove {odd} and run the same command again"
        )


def summary(queries: pd.DataFrame) -> pd.DataFrame:
    """Scores a variant, task and language: queries, pages and mean NDCG@5."""
    return queries.groupby(["variant", "task", "lang"], sort=False, as_index=False).agg(
        n_queries=("query_id", "size"), n_pages=("n_pages", "first"), ndcg_at_5=("ndcg_at_5", "mean")
    )


def tasks_of(experiment: Experiment) -> list:
    """The tasks of an experiment, loaded from the repository or, by name, from mteb.

    Raises:
        ColqError: no task, or an unknown name; names those that come close.
    """
    names = experiment.evaluation.tasks
    if experiment.evaluation.suite == "minividore":
        return mteb_tasks.tasks(names)
    if experiment.evaluation.suite == "documents":
        return document_tasks.tasks(experiment)
    if not names:
        raise ColqError("suite mteb takes `evaluation.tasks`, one or more names of mteb's tasks")
    try:
        return [mteb.get_task(name) for name in names]
    except KeyError:
        known = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)}
        wrong = next(name for name in names if name not in known)
        close = ", ".join(difflib.get_close_matches(wrong, known, n=3))
        hint = f"; did you mean {close}?" if close else ""
        raise ColqError(f"mteb has no task {wrong!r}{hint}") from None


def describe(experiment: Experiment, tasks: list) -> pd.DataFrame:
    """The tasks as a table: group, whether it counts towards the suite's mean, languages, what is asked."""
    rows = []
    for task in tasks:
        name, group, counted, asks = task.metadata.name, "mteb", True, task.metadata.description
        if experiment.evaluation.suite == "minividore":
            counted = minividore.TASKS[name].counted
            group = "graded" if counted else name.removeprefix("MiniVidore").lower()
        elif isinstance(task, DocumentsTask):  # the first kind of query is the best labelled
            group, counted = "documents", task is tasks[0]
        rows.append((name, group, counted, asks, " ".join(sorted(languages(task).values()))))
    return pd.DataFrame(rows, columns=["task", "group", "counted", "asks", "languages"])


def data_fingerprint(experiment: Experiment) -> str:
    """Identity of the evaluation data: the embedded benchmark's digest, or the tasks' pinned revisions."""
    if experiment.evaluation.suite == "minividore":
        identity = sorted(minividore.verify().items())
    else:
        identity = [(task.metadata.name, task.metadata.revision) for task in tasks_of(experiment)]
    return files.sha256_bytes(repr(identity).encode())[:16]


def run_all(experiment: Experiment, tasks: list) -> pd.DataFrame:
    """Base, variants compared with it, random-weight floor and (embedded benchmark) BM25, one row a query.

    Tasks that raised are written to failures.csv; the same command tries them again.
    """
    base, rest = experiment.base, list(experiment.compared)
    for name in (base, *rest):
        checkpoints.revision(experiment, name)  # a missing checkpoint is said before hours of work, not after
    data, failed = data_fingerprint(experiment), []
    frames = [run_variant(experiment, base, tasks, data, failed)]  # first: the others use its page features
    _side_by_side(experiment, rest, tasks, data)
    frames += [run_variant(experiment, name, tasks, data, failed) for name in track(rest, "variants")]
    if experiment.evaluation.random_init:
        floor = references.kept_floor(experiment, tasks, data)
        frames.append(run_variant(experiment, RANDOM_INIT, tasks, data) if floor is None else floor)
    machines = {frame["variant"].iloc[0]: frame["machine"].iloc[0] for frame in frames if "machine" in frame}
    _one_machine({_folder(experiment, name, data): machine for name, machine in machines.items()})
    failures = pd.DataFrame(failed, columns=["variant", "task", "error"])
    files.write_table(experiment.results("evaluate") / "failures.csv", failures)
    if experiment.evaluation.suite == "documents":
        problems = document_tasks.read(experiment)[0].problems
        files.write_table(experiment.results("evaluate") / "documents.csv", problems)
    bundled = experiment.evaluation.suite == "minividore"
    # here a source links headings across tasks and their translations
    sources = minividore.sources(minividore.load()) if bundled else None
    folders = [_folder(experiment, name, data) for name in rest]
    mixed.write(experiment, [mixed.path(f, t.metadata.name) for f in folders for t in tasks], sources)
    if not bundled:
        return pd.concat(frames, ignore_index=True)
    queries = pd.concat([*frames, references.word_matching(tasks)], ignore_index=True)
    return queries.assign(source=queries["query_id"].map(sources))


def stored(queries: pd.DataFrame) -> pd.DataFrame:
    """The columns that are kept, in a fixed order."""
    return queries[QUERY + OUTCOME + (["ranking"] if "ranking" in queries else [])]


def suite_means(scores: pd.DataFrame) -> dict[str, float]:
    """Mean NDCG@5 over the counted entries (task and language) by variant."""
    means = scores[scores["counted"]].groupby("variant", sort=False)["ndcg_at_5"].mean()
    return means.dropna().round(6).to_dict()
