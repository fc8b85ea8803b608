"""What an experiment would run, fetch, take and occupy, before any of it happens: ``make plan EXPERIMENT=tomoro-8b``.

Sizes follow from shapes, page and query counts from mteb's own description of its tasks, times from measured
benchmark rows of the same dimensions. A number whose source is not there is called so; none is guessed. Nothing is
downloaded: the sizes of data sets come from the hub if it answers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from colq_utils.base.config import ROOT, STAGES, Experiment, Variant
from colq_utils.base.errors import ColqError
from colq_utils.model import footprint, hub
from colq_utils.report import markdown
from colq_utils.report.markdown import MISSING

#: Bytes of a number of an embedding as stored.
WIDTH = {"bfloat16": 2, "float32": 4}
#: Visual tokens of a page where the experiment sets no limit.
PUBLISHED_TOKENS = 1280
UNKNOWN = "not known offline"


@dataclass(frozen=True)
class Plan:
    """The tables of a plan; see `make`. Missing numbers are NaN."""

    experiment: Experiment
    stages: pd.DataFrame
    tasks: pd.DataFrame
    downloads: pd.DataFrame
    hours: pd.DataFrame
    disk: pd.DataFrame


def make(experiment: Experiment, measured: Path | None = None) -> Plan:
    """Plan an experiment.

    Args:
        measured: results folder of benchmark rows in the same dimensions; results/h200-<size> by default.

    Raises:
        ColqError: a study of another kind than retrieval.
    """
    from colq_utils.stages.evaluate import evaluate

    if "evaluate" not in experiment.stages:
        raise ColqError(
            f"{experiment.name} evaluates nothing; a plan is made of experiments that do: try EXPERIMENT=tomoro-4b"
        )
    tasks = evaluate.tasks_of(experiment)
    table = task_table(experiment, tasks)
    measured = measured or ROOT / "results" / f"h200-{experiment.model.size}"
    return Plan(
        experiment,
        stages(experiment, table),
        table,
        downloads(experiment, tasks),
        hours(experiment, table, measured),
        disk(experiment, table),
    )


def stages(experiment: Experiment, tasks: pd.DataFrame) -> pd.DataFrame:
    """What each stage does, in numbers."""
    text = [s for s in experiment.calibration.sets if s.kind == "text"]
    tuned = [v for v in experiment.quantized.values() if v.method == "autoround"]
    variants = _evaluated(experiment)
    does = {
        "inspect": "headers of the base checkpoint",
        "calibrate": f"{len(experiment.calibration.sets)} sets, {sum(s.blocks * s.seqlen for s in text):,} tokens of text from {experiment.calibration.source}",
        "quantize": f"{len(experiment.quantized)} checkpoints, {len(tuned)} of them tuned ({sum(v.iters for v in tuned):,} iterations a layer block)",
        "benchmark": f"{len(experiment.benchmark.variants)} variants x {len(experiment.benchmark.workloads) + 1} workloads x {experiment.benchmark.rounds} rounds",
        "evaluate": f"{len(variants)} variants x {len(tasks)} tasks ({int(tasks.entries.sum())} task x language entries), each page once a variant",
        "report": "reports and figures",
    }
    return pd.DataFrame(
        [(f"{i:02d} {stage}", does[stage]) for i, stage in enumerate(STAGES, 1)], columns=["stage", "runs"]
    )


def _evaluated(experiment: Experiment) -> list[str]:
    return [experiment.base, *experiment.quantized] + (
        ["random-init"] if experiment.evaluation.random_init else []
    )


def task_table(experiment: Experiment, tasks: list) -> pd.DataFrame:
    """A row a task: entries, queries (all languages), pages to embed; NaN where mteb does not describe the task."""
    rows = []
    for task in tasks:
        subsets = _described(experiment, task)
        rows.append(
            {
                "task": task.metadata.name,
                "entries": len(task.hf_subsets),
                "queries": sum(q for q, _ in subsets) if subsets else np.nan,
                "pages": max(p for _, p in subsets) if subsets else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _described(experiment: Experiment, task) -> list[tuple[int, int]]:
    """(queries, pages) of each language of a task; pages that are the same picture count once."""
    if experiment.evaluation.suite == "minividore":
        from colq_utils.data import minividore

        benchmark, name = minividore.load(), task.metadata.name
        return [
            (
                len(minividore.queries_of(benchmark, name, lang)),
                len(minividore.corpus_of(benchmark, name, lang)),
            )
            for lang in task.hf_subsets
        ]
    stats = (task.metadata.descriptive_stats or {}).get(task.metadata.eval_splits[0])
    if stats is None:
        return []
    parts = (stats.get("hf_subset_descriptive_stats") or {"all": stats}).values()
    return [
        (
            round(
                p["queries_text_statistics"]["total_text_length"]
                / p["queries_text_statistics"]["average_text_length"]
            ),
            p["documents_image_statistics"]["unique_images"],
        )
        for p in parts
    ]


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
            f"no dimensions are known here for size {experiment.model.size!r}: download {experiment.model.path} and give its folder "
            "as model.path"
        ) from None


def downloads(experiment: Experiment, tasks: list) -> pd.DataFrame:
    """What comes from the hub, pinned: what, name, revision, bytes (NaN: not known without the hub)."""
    rows, source, wanted = [], experiment.calibration, []
    if not experiment.model.is_local:
        rows.append(
            (
                "base checkpoint",
                experiment.model.path,
                experiment.model.revision,
                footprint.total(tensors_of(experiment)),
            )
        )
    if not (ROOT / source.source).exists():
        wanted.append(("calibration text", source.source, source.revision, source.file))
    if experiment.evaluation.suite == "mteb":
        wanted += [
            ("task", *key, None)
            for key in dict.fromkeys(
                (t.metadata.dataset["path"], t.metadata.dataset["revision"]) for t in tasks
            )
        ]
    answers = True
    for what, name, revision, file in wanted:
        size = hub_bytes(name, revision, file) if answers else np.nan
        answers = answers and not np.isnan(size)  # a hub that does not answer is asked once
        rows.append((what, name, revision, size))
    return pd.DataFrame(rows, columns=["what", "name", "revision", "bytes"])


def hub_bytes(name: str, revision: str, file: str | None = None) -> float:
    """Bytes of a data set (or of one file of it) at a revision, as the hub says; NaN if it does not answer."""
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().dataset_info(name, revision=revision, files_metadata=True, timeout=10).siblings
    except Exception:  # the hub client raises a dozen kinds; each means "not to be had from here"
        return np.nan
    return float(sum(s.size or 0 for s in siblings if file is None or s.rfilename == file))


def hours(experiment: Experiment, tasks: pd.DataFrame, measured: Path) -> pd.DataFrame:
    """GPU-hours by variant: quantize_h, pages_h, queries_h, and the measured rows they rest on; NaN where none is."""
    rows, cost = (
        _read(measured / "benchmark" / "rows.csv"),
        _read(measured / "benchmark" / "autoround_cost.json"),
    )
    table = []
    for name in _evaluated(experiment):
        spec = experiment.by_id.get(name, experiment.by_id[experiment.base])
        page, query = (_fastest(rows, experiment.model.size, spec, kind) for kind in ("pages", "queries"))
        table.append(
            {
                "variant": name,
                "quantize_h": _tuning(experiment, spec, cost),
                "pages_h": _time(tasks.pages.sum(skipna=False), page),
                "queries_h": _time(tasks.queries.sum(skipna=False), query),
                "rests_on": MISSING
                if page is None
                else f"{page.variant}, {page.items_per_s:.3g} pages/s of {page.tokens_per_call / page.batch:,.0f} tokens at batch {int(page.batch)}",
            }
        )
    return pd.DataFrame(table)


def _read(path: Path):
    if not path.exists():
        return None
    return json.loads(path.read_text()) if path.suffix == ".json" else pd.read_csv(path)


def _fastest(rows: pd.DataFrame | None, size: str, spec: Variant, kind: str):
    """The fastest measured row of a scheme without further options, over batch sizes."""
    if rows is None:
        return None
    plain = rows.variant.str.fullmatch(f"{size}-{spec.scheme}(-rtn|-pack|-autoround-[^-]+)?")
    mine = rows[plain & (rows.kind == kind) & rows.items_per_s.notna()]
    return mine.loc[mine.items_per_s.idxmax()] if len(mine) else None


def _time(count: float, row) -> float:
    return np.nan if row is None else count / row.items_per_s / 3600


def _tuning(experiment: Experiment, spec: Variant, cost: dict | None) -> float:
    """Hours of AutoRound: measured seconds a block, scaled by iterations, tokens of a step and number of blocks; 0 where nothing is tuned."""
    if spec.method != "autoround":
        return 0.0
    text = next(s for s in experiment.calibration.sets if s.id == spec.calibration)
    if cost is None or "block_s" not in cost or text.kind != "text":
        return np.nan
    scale = spec.iters * text.batch_rows * text.seqlen / (cost["iters"] * cost["batch_rows"] * cost["seqlen"])
    return (
        float(np.median(cost["block_s"]))
        * scale
        * footprint.real_config(experiment.model.size)["text_config"]["num_hidden_layers"]
        / 3600
    )


def disk(experiment: Experiment, tasks: pd.DataFrame) -> pd.DataFrame:
    """Bytes that stay (checkpoints) and bytes that come and go (embeddings of one variant at a time, features if shared)."""
    tensors = tensors_of(experiment)
    kept = sum(
        footprint.total(footprint.quantized(tensors, v.bits, v.group_size, export))
        for v in experiment.quantized.values()
        for export in v.exports
    )
    tokens, pages = _page_tokens(experiment), _pages(experiment, tasks)
    dim = next(t.shape[0] for t in tensors if t.name == "embedding_proj_layer.weight")
    rows = [
        ("quantized checkpoints", kept, "build/, until `make clean-checkpoints`"),
        (
            f"page embeddings, {tokens} tokens x {dim}",
            pages * tokens * dim * WIDTH[experiment.runtime.dtype],
            "build/, one variant at a time",
        ),
    ]
    if experiment.evaluation.share_vision:
        rows.append(("page features of the vision tower", np.nan, "build/, until `make clean-checkpoints`"))
    return pd.DataFrame(rows, columns=["what", "bytes", "where"])


def _pages(experiment: Experiment, tasks: pd.DataFrame) -> float:
    """Pages to embed: of the embedded benchmark, whose tasks share pages, as many as are different."""
    if experiment.evaluation.suite != "minividore":
        return tasks.pages.sum(skipna=False)
    from colq_utils.data import minividore

    benchmark = minividore.load()
    return float(
        len(
            {
                (minividore.TASKS[name].pages == "scanned", page)
                for name in tasks.task
                for lang in minividore.TASKS[name].languages
                for page in minividore.corpus_of(benchmark, name, lang)["page_id"]
            }
        )
    )


def _page_tokens(experiment: Experiment) -> int:
    """The most visual tokens of a page: the experiment's limit, or that of the checkpoint's image processor."""
    limit = experiment.model.max_visual_tokens
    if limit is not None or not experiment.model.is_local or experiment.model.is_random:
        return limit or PUBLISHED_TOKENS
    from colq_utils.model import processing

    images = processing.from_pretrained(experiment.model_path).image_processor
    return images.size["longest_edge"] // (images.patch_size * images.merge_size) ** 2


def text(plan: Plan) -> str:
    """The plan as markdown."""
    exp, tasks, hours_, disk_, down = plan.experiment, plan.tasks, plan.hours, plan.disk, plan.downloads
    number, gigabytes = markdown.number, lambda b: UNKNOWN if pd.isna(b) else markdown.number(b / 1e9, 2)
    total = lambda column: hours_[column].sum(skipna=False)  # noqa: E731
    rows = [
        (r.variant, *(number(v, 3) for v in (r.quantize_h, r.pages_h, r.queries_h)), r.rests_on)
        for r in hours_.itertuples()
    ]
    rows.append(("**all**", *(number(total(c), 3) for c in ("quantize_h", "pages_h", "queries_h")), ""))
    return markdown.document(
        f"# Plan of {exp.name}: {exp.title}",
        "Nothing of this has run. GB are 10^9 bytes.",
        "## Stages",
        markdown.table(["Stage", "Runs"], plan.stages.itertuples(index=False), left=2),
        "## Tasks",
        markdown.table(
            ["Task", "Entries", "Queries", "Pages"],
            [(r.task, r.entries, *(number(v, 0) for v in (r.queries, r.pages))) for r in tasks.itertuples()]
            + [
                (
                    "**all**",
                    int(tasks.entries.sum()),
                    number(tasks.queries.sum(skipna=False), 0),
                    number(tasks.pages.sum(skipna=False), 0),
                )
            ],
        ),
        "Pages are distinct pictures of a task, by mteb's description of it; a picture that two tasks share is embedded once and counted twice here."
        if exp.evaluation.suite == "mteb"
        else "Tasks share pages: each is embedded once, whatever the sum says.",
        "## Downloads",
        markdown.table(
            ["What", "Name", "Revision", "GB"],
            [
                (r.what, f"`{r.name_}`", r.revision[:12], gigabytes(r.bytes))
                for r in down.rename(columns={"name": "name_"}).itertuples()
            ],
            left=3,
        )
        if len(down)
        else "None.",
        "## GPU-hours",
        *(
            ["None: it runs on a CPU."]
            if exp.runtime.device != "cuda"
            else [
                markdown.table(["Variant", "Tuning", "Pages", "Queries", "Pages rest on"], rows),
                f"Rates are those measured in results/h200-{exp.model.size} (random weights in the published dimensions, no decoding of images, no MaxSim), on the GPU "
                "named there; tuning is extrapolated from single blocks, in proportion to iterations and tokens of a step. Reading pages and MaxSim come on top.",
            ]
        ),
        "## Disk",
        markdown.table(
            ["What", "GB", "Where"],
            [
                (r.what, MISSING if pd.isna(r.bytes) else number(r.bytes / 1e9, 2), r.where)
                for r in disk_.itertuples()
            ],
        ),
        "Downloads come on top, in the hub's cache.",
    )
