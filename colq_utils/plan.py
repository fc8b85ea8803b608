"""What an experiment would run, fetch, take and occupy, before any of it happens: ``colq plan tomoro-8b``.

Sizes follow from shapes, page and query counts from mteb's own description of its tasks, times from measured
rows of the same dimensions; no number is guessed. Nothing is downloaded: the hub is asked for the sizes of
data sets.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from colq_utils.base.config import ROOT, Documents, Experiment, Variant
from colq_utils.base.errors import ColqError
from colq_utils.base.names import PROJECTION
from colq_utils.model import footprint, hub
from colq_utils.report import markdown, prose

#: Bytes of a number of an embedding as stored.
WIDTH = {"bfloat16": 2, "float32": 4}
#: Visual tokens of a page where the experiment sets no limit.
PUBLISHED_TOKENS = 1280


@dataclass(frozen=True)
class Plan:
    """The tables of a plan; see `make`. Missing numbers are NaN."""

    experiment: Experiment
    tasks: pd.DataFrame
    downloads: pd.DataFrame
    hours: pd.DataFrame
    disk: pd.DataFrame


def make(experiment: Experiment, measured: Path | None = None) -> Plan:
    """Plan an experiment.

    Args:
        measured: results folder of benchmark rows in the same dimensions; results/h200-<size> by default.

    Raises:
        ColqError: an experiment that evaluates nothing.
    """
    from colq_utils.stages.evaluate import evaluate

    if "evaluate" not in experiment.stages:
        raise ColqError(
            f"{experiment.name} evaluates nothing; a plan is made of experiments that do: "
            "try EXPERIMENT=tomoro-4b"
        )
    own = experiment.evaluation.documents
    tasks = evaluate.tasks_of(experiment) if own is None else []
    table = task_table(experiment, tasks) if own is None else _documents(own)
    measured = measured or ROOT / "results" / f"h200-{experiment.model.size}"
    gpu_hours = hours(experiment, table, measured / "benchmark")
    return Plan(experiment, table, downloads(experiment, tasks), gpu_hours, disk(experiment, table))


def task_table(experiment: Experiment, tasks: list) -> pd.DataFrame:
    """A row a task: entries, queries (all languages), pages to embed; NaN where mteb does not describe it."""
    described = _minividore if experiment.evaluation.suite == "minividore" else _mteb
    rows = []
    for task in tasks:
        counts = pd.DataFrame(described(task), columns=["queries", "pages"])
        totals = {"queries": counts.queries.sum(min_count=1), "pages": counts.pages.max()}
        rows.append({"task": task.metadata.name, "entries": len(task.hf_subsets), **totals})
    return pd.DataFrame(rows)


def _documents(settings: Documents) -> pd.DataFrame:
    """As `task_table`, without drawing a page: phrases of text layers are not counted."""
    from colq_utils.data import documents

    survey = documents.survey(settings)
    pages, queries = survey.pages.sum(), sum(documents.expected(settings, survey).values())
    return pd.DataFrame([{"task": "your documents", "entries": 1, "queries": queries, "pages": pages}])


def _minividore(task) -> list[tuple[int, int]]:
    """Queries and pages of each language of a task of the embedded benchmark."""
    from colq_utils.data import minividore

    data, name = minividore.load(), task.metadata.name
    tables = (minividore.queries_of, minividore.corpus_of)
    return [tuple(len(table(data, name, lang)) for table in tables) for lang in task.hf_subsets]


def _mteb(task) -> list[tuple[int, int]]:
    """As `_minividore`, as mteb describes a task; pages that are the same picture count once."""
    stats = (task.metadata.descriptive_stats or {}).get(task.metadata.eval_splits[0])
    if stats is None:
        return []
    counts = []
    for part in (stats.get("hf_subset_descriptive_stats") or {"all": stats}).values():
        text = part["queries_text_statistics"]
        queries = round(text["total_text_length"] / text["average_text_length"])
        counts.append((queries, part["documents_image_statistics"]["unique_images"]))
    return counts


def tensors_of(experiment: Experiment) -> list[hub.Tensor]:
    """The base's tensors: of the folder, or of the published dimensions where that is a download.

    Raises:
        ColqError: a hub checkpoint of a size whose dimensions are not known here.
    """
    if experiment.model.is_local and Path(experiment.model_path).is_dir():
        return hub.read_headers(experiment.model_path)
    try:
        return footprint.from_config(footprint.real_config(experiment.model.size))
    except KeyError:
        raise ColqError(
            f"no dimensions are known here for size {experiment.model.size!r}: "
            f"download {experiment.model.path} and give its folder as model.path"
        ) from None


def downloads(experiment: Experiment, tasks: list) -> pd.DataFrame:
    """What comes from the hub, pinned: what, name, revision, bytes (NaN: not known without the hub)."""
    rows, wanted, base, text = [], [], experiment.model, experiment.calibration
    if not base.is_local:
        size = footprint.total(tensors_of(experiment))
        rows.append(("base checkpoint", base.path, base.revision, size))
    if not (ROOT / text.source).exists():
        wanted.append(("calibration text", text.source, text.revision, text.file))
    if experiment.evaluation.suite == "mteb":
        data = dict.fromkeys((t.metadata.dataset["path"], t.metadata.dataset["revision"]) for t in tasks)
        wanted += [("task", *pinned, None) for pinned in data]
    size = 0.0
    for what, name, revision, file in wanted:
        size = size if np.isnan(size) else hub_bytes(name, revision, file)  # if it is silent, asked once
        rows.append((what, name, revision, size))
    return pd.DataFrame(rows, columns=["what", "name", "revision", "bytes"])


def hub_bytes(name: str, revision: str, file: str | None = None) -> float:
    """Bytes of a data set (or of one file of it) as the hub says; NaN if it does not answer."""
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().dataset_info(name, revision=revision, files_metadata=True, timeout=10).siblings
    except Exception:  # the hub client raises a dozen kinds; each means "not to be had from here"
        return np.nan
    return float(sum(s.size or 0 for s in siblings if file is None or s.rfilename == file))


def hours(experiment: Experiment, tasks: pd.DataFrame, measured: Path) -> pd.DataFrame:
    """GPU-hours by variant: quantize_h, pages_h, queries_h, and the fastest measured row of its scheme
    without further options, on which they rest; NaN where there is none.
    """
    rows, cost = measured / "rows.csv", measured / "autoround_cost.json"
    columns = ["variant", "kind", "items_per_s", "tokens_per_call", "batch"]
    rows = pd.read_csv(rows) if rows.exists() else pd.DataFrame(columns=columns, dtype=object)
    cost = json.loads(cost.read_text()) if cost.exists() else {}
    base, size = experiment.variants[0], experiment.model.size
    floor = {"random-init": base} if experiment.evaluation.random_init else {}
    table = []
    for name, spec in {experiment.base: base, **experiment.compared, **floor}.items():
        plain = rows.variant.str.fullmatch(f"{size}-{spec.scheme}(-rtn|-pack|-autoround-[^-]+)?")
        rates = rows[plain].sort_values("items_per_s", ascending=False, kind="stable").groupby("kind").head(1)
        row = {"variant": name, "quantize_h": _tuning(experiment, spec, cost)}
        for kind in ("pages", "queries"):
            rate = rates.items_per_s[rates.kind == kind].max()
            row[f"{kind}_h"] = tasks[kind].sum(skipna=False) / rate / 3600
        row["rests_on"] = markdown.MISSING
        for page in rates[(rates.kind == "pages") & rates.items_per_s.notna()].itertuples():
            speed = f"{page.items_per_s:.3g} pages/s of {page.tokens_per_call / page.batch:,.0f} tokens"
            row["rests_on"] = f"{page.variant}, {speed} at batch {int(page.batch)}"
        table.append(row)
    return pd.DataFrame(table)


def _tuning(experiment: Experiment, spec: Variant, cost: dict) -> float:
    """Hours of AutoRound: measured seconds a block, scaled by iterations, tokens of a step and blocks."""
    if spec.method != "autoround":
        return 0.0
    text = next(s for s in experiment.calibration.sets if s.id == spec.calibration)
    if "block_s" not in cost or text.kind != "text":
        return np.nan
    scale = spec.iters * text.batch_rows * text.seqlen / (cost["iters"] * cost["batch_rows"] * cost["seqlen"])
    blocks = footprint.real_config(experiment.model.size)["text_config"]["num_hidden_layers"]
    return float(np.median(cost["block_s"])) * scale * blocks / 3600


def disk(experiment: Experiment, tasks: pd.DataFrame) -> pd.DataFrame:
    """Bytes that stay (checkpoints), and that come and go (embeddings of one variant, shared features)."""
    tensors, tokens = tensors_of(experiment), _page_tokens(experiment)
    stored = 0
    for variant in experiment.quantized.values():
        for export in variant.exports:
            stored += footprint.total(footprint.exported(tensors, variant, export))
    dim = next(tensor.shape[0] for tensor in tensors if tensor.name == PROJECTION)
    embeddings = _pages(experiment, tasks) * tokens * dim * WIDTH[experiment.runtime.dtype]
    kept = "build/, until `make clean-checkpoints`"
    rows = [
        ("quantized checkpoints", stored, kept),
        (f"page embeddings, {tokens} tokens x {dim}", embeddings, "build/, of one variant at a time"),
        ("the same of the base", embeddings, kept),
    ]
    if experiment.evaluation.share_vision:
        rows.append(("page features of the vision tower", np.nan, kept))
    return pd.DataFrame(rows, columns=["what", "bytes", "where"])


def _pages(experiment: Experiment, tasks: pd.DataFrame) -> float:
    """Pages to embed: of the embedded benchmark, whose tasks share pages, as many as are different."""
    if experiment.evaluation.suite != "minividore":
        return tasks.pages.sum(skipna=False)
    from colq_utils.data import minividore

    data, pages = minividore.load(), set()
    for name in tasks.task:
        scanned = minividore.TASKS[name].pages == "scanned"
        for lang in minividore.TASKS[name].languages:
            pages |= {(scanned, page) for page in minividore.corpus_of(data, name, lang).page_id}
    return float(len(pages))


def _page_tokens(experiment: Experiment) -> int:
    """The most visual tokens of a page: the experiment's limit, or that of the checkpoint's processor."""
    limit = experiment.model.max_visual_tokens
    if limit is not None or not experiment.model.is_local or experiment.model.is_random:
        return limit or PUBLISHED_TOKENS
    from colq_utils.model import processing

    images = processing.from_pretrained(experiment.model_path).image_processor
    return images.size["longest_edge"] // (images.patch_size * images.merge_size) ** 2


def text(plan: Plan) -> str:
    """The plan as markdown."""
    experiment, down, disk = plan.experiment, plan.downloads, plan.disk
    sets = [s for s in experiment.calibration.sets if s.kind == "text"]
    tuned = [v for v in experiment.quantized.values() if v.method == "autoround"]
    tasks = _with_total(plan.tasks, ["entries", "queries", "pages"], 0)
    gpu_hours = _with_total(plan.hours, ["quantize_h", "pages_h", "queries_h"], 3)
    down = zip(
        down.what, "`" + down.name + "`", down.revision.str[:12], _gigabytes(down, "not known offline")
    )
    disk = zip(disk.what, _gigabytes(disk, markdown.MISSING), disk["where"])
    return prose.render(
        "plan.md.j2",
        experiment=experiment,
        tokens=f"{sum(s.blocks * s.seqlen for s in sets):,}",
        tuned=tuned,
        iterations=f"{sum(v.iters for v in tuned):,}",
        evaluated=len(plan.hours),
        entries=plan.tasks.entries.sum(),
        n_tasks=len(plan.tasks),
        tasks=markdown.table(["Task", "Entries", "Queries", "Pages"], tasks),
        downloads=markdown.table(["What", "Name", "Revision", "GB"], down, 3) if len(plan.downloads) else "",
        hours=markdown.table(["Variant", "Tuning", "Pages", "Queries", "Pages rest on"], gpu_hours),
        disk=markdown.table(["What", "GB", "Where"], disk),
    )


def _with_total(frame: pd.DataFrame, columns: list[str], digits: int):
    """Rows of text of a frame, and one of the sums of `columns`."""
    total = {frame.columns[0]: "**all**", **frame[columns].sum(skipna=False)}
    frame = pd.concat([frame, pd.DataFrame([total])])
    written = {column: [markdown.number(value, digits) for value in frame[column]] for column in columns}
    return frame.assign(**written).fillna("").itertuples(index=False)


def _gigabytes(frame: pd.DataFrame, missing: str) -> list[str]:
    return [missing if np.isnan(size) else markdown.number(size / 1e9) for size in frame["bytes"]]
