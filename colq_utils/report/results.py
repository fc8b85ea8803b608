"""Result files of all stages as tidy tables, refused where they contradict each other.

The reports read nothing else. A file that a stage has not written yet is None (the report then says
'not measured'); only the scores are indispensable. Files are compared with each other before anything
is computed, because a cached score under a wrong revision looks exactly like a good one.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError

#: Rows of evaluate/scores.csv that are yardsticks, not variants of the model.
REFERENCES = {"bm25": "BM25 on the text layer", "random-init": "Random weights"}
ENTRY = ["task", "lang"]
#: Field of `Results` -> file below results/<experiment>/.
FILES = {
    "architecture": "inspect/architecture.json",
    "towers": "inspect/towers.csv",
    "predicted": "inspect/predicted.csv",
    "published": "inspect/published.csv",
    "sets": "calibrate/sets.csv",
    "corpus": "calibrate/corpus.csv",
    "variants": "quantize/variants.csv",
    "rows": "benchmark/rows.csv",
    "samples": "benchmark/samples.parquet",
    "memory": "benchmark/memory.csv",
    "census": "benchmark/census.csv",
    "ceilings": "benchmark/ceilings.json",
    "scores": "evaluate/scores.csv",
    "queries": "evaluate/queries.parquet",
    "failures": "evaluate/failures.csv",
    "quantize_environment": "quantize/environment.json",
    "benchmark_environment": "benchmark/environment.json",
    "evaluate_environment": "evaluate/environment.json",
}
COLUMNS = {
    "variants": {"variant", "export", "tensor_bytes", "base_bytes", "revision"},
    "rows": {"variant", "kind", "batch", "latency_s_mean", "latency_s_median", "n_samples", "error"},
    "samples": {"variant", "round", "kind", "batch", "latency_s"},
    "scores": {"variant", "task", "lang", "n_queries", "n_pages", "ndcg_at_5", "counted", "group"},
    "queries": {"variant", "task", "lang", "query_id", "ndcg_at_5", "margin", "top5"},
}


@dataclass(frozen=True)
class Results:
    """What the stages of `experiment` have written; None where a file is missing. Fields as in `FILES`."""

    experiment: Experiment
    scores: pd.DataFrame
    queries: pd.DataFrame
    architecture: dict | None = None
    towers: pd.DataFrame | None = None
    predicted: pd.DataFrame | None = None
    published: pd.DataFrame | None = None
    sets: pd.DataFrame | None = None
    corpus: pd.DataFrame | None = None
    variants: pd.DataFrame | None = None
    rows: pd.DataFrame | None = None
    samples: pd.DataFrame | None = None
    memory: pd.DataFrame | None = None
    census: pd.DataFrame | None = None
    ceilings: dict | None = None
    failures: pd.DataFrame | None = None
    quantize_environment: dict | None = None
    benchmark_environment: dict | None = None
    evaluate_environment: dict | None = None

    @property
    def base(self) -> str:
        return self.experiment.base

    @property
    def evaluated(self) -> list[str]:
        """Variants with scores, in the order of the experiment file."""
        present = set(self.queries.variant)
        return [name for name in self.experiment.by_id if name in present]


def calls(samples: pd.DataFrame | None, variant: str, kind: str, batch: int) -> list[np.ndarray]:
    """Seconds of every timed call of a variant and workload, an array a process; none without samples."""
    if samples is None:
        return []
    mine = samples[(samples.variant == variant) & (samples.kind == kind) & (samples.batch == batch)]
    return [part.latency_s.to_numpy() for _, part in mine.groupby("round")]


def load(experiment: Experiment) -> Results:
    """Read every result file of the experiment and compare them with each other.

    Raises:
        ColqError: the scores are missing (names the target that makes them), or two files contradict each other.
    """
    folder = experiment.output / "results" / experiment.name
    for essential in ("scores", "queries"):
        files.required(folder / FILES[essential], f"evaluate EXPERIMENT={experiment.name}")
    found = {field: _read(folder / path, field) for field, path in FILES.items() if (folder / path).exists()}
    results = Results(experiment=experiment, **found)
    _check_origin(results)
    _check_names(results)
    _check_revisions(results)
    _check_scores(results)
    _check_queries(results)
    return results


def _read(path: Path, field: str):
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text())
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:  # JSON, CSV and parquet errors are ValueErrors (ArrowInvalid too)
        raise ColqError(
            f"{path} cannot be read ({error}): remove it and {_again(path.parent.parent.name, path.parent.name)}"
        ) from None
    missing = COLUMNS.get(field, set()) - set(table.columns)
    if missing:
        raise ColqError(
            f"{path} has no column {', '.join(sorted(missing))}: {_again(path.parent.parent.name, path.parent.name)}"
        )
    for column in {"error", "fallback", "calibration"} & set(table.columns):
        table[column] = table[column].fillna("")
    return table


def _again(experiment: str, *stages: str) -> str:
    return "run " + " and ".join(f"`make {stage} EXPERIMENT={experiment}`" for stage in stages) + " again"


def _check_origin(results: Results) -> None:
    """Every stage's record names this experiment, one seed, one precision and one budget of visual tokens."""
    exp = results.experiment
    name, seed = exp.name, exp.seed
    for stage in ("quantize", "benchmark", "evaluate"):
        record = getattr(results, f"{stage}_environment") or {}
        for key, wanted in (
            ("experiment", name),
            ("seed", seed),
            ("dtype", exp.runtime.dtype),
            ("max_visual_tokens", exp.model.max_visual_tokens),
        ):
            if record.get(key, wanted) != wanted:
                raise ColqError(
                    f"results/{name}/{stage}/environment.json was made with {key} {record[key]!r}, the experiment "
                    f"file says {wanted!r}: {_again(name, stage)}"
                )


def _check_names(results: Results) -> None:
    """No table speaks of a variant that the experiment does not have."""
    name, known = results.experiment.name, set(results.experiment.by_id) | set(REFERENCES)
    for field in ("variants", "rows", "samples", "scores", "queries"):
        table = getattr(results, field)
        unknown = [] if table is None else sorted(set(table.variant) - known)
        if unknown:
            raise ColqError(
                f"{FILES[field]} speaks of {', '.join(unknown)}, which the experiment file does not have: "
                f"{_again(name, FILES[field].split('/')[0])}"
            )
    if results.base not in set(results.queries.variant):
        raise ColqError(
            f"{FILES['queries']} has no scores of the base {results.base}: {_again(name, 'evaluate')}"
        )
    for field, keys in (
        ("scores", ["variant", *ENTRY]),
        ("queries", ["variant", *ENTRY, "query_id"]),
        ("rows", ["variant", "kind", "batch"]),
        ("variants", ["variant", "export"]),
    ):
        if getattr(results, field) is not None:
            _unique(getattr(results, field), keys, FILES[field], name)


def _unique(table: pd.DataFrame, keys: list[str], path: str, experiment: str) -> None:
    twice = table[table.duplicated(keys)]
    if len(twice):
        raise ColqError(
            f"{path} has two rows for {', '.join(str(v) for v in twice.iloc[0][keys])}: "
            f"remove the file and {_again(experiment, path.split('/')[0])}"
        )


def _check_revisions(results: Results) -> None:
    """Two quantized variants under one revision would share cached scores."""
    if results.variants is None or "revision" not in results.variants:
        return
    quantized = results.variants[results.variants.variant.isin(results.experiment.quantized)].dropna(
        subset="revision"
    )
    for revision, names in quantized.groupby("revision").variant:
        if names.nunique() > 1:
            raise ColqError(
                f"{FILES['variants']}: {' and '.join(sorted(set(names)))} have one revision, {revision}; scores are "
                f"cached by revision, so one of them may be the other's: {_again(results.experiment.name, 'quantize', 'evaluate')}, or drop one "
                "of them from the experiment if their weights are the same"
            )


def _check_scores(results: Results) -> None:
    """The mean over the queries is the score, for each variant, task and language."""
    keys = ["variant", *ENTRY]
    means = results.queries.groupby(keys).ndcg_at_5.agg(["mean", "size"]).reset_index()
    both = results.scores.merge(means, on=keys, how="outer", indicator=True)
    lost = both[
        (both._merge == "right_only") | ((both._merge == "left_only") & ~both.variant.isin(REFERENCES))
    ]
    off = both[
        (both._merge == "both")
        & (((both["mean"] - both.ndcg_at_5).abs() > 1e-4) | (both["size"] != both.n_queries))
    ]
    for rows, what in ((lost, "only one of them has"), (off, "they disagree on")):
        if len(rows):
            raise ColqError(
                f"{FILES['scores']} and {FILES['queries']} contradict each other: {what} "
                f"{', '.join(str(v) for v in rows.iloc[0][keys])}: {_again(results.experiment.name, 'evaluate')}"
            )


def _check_queries(results: Results) -> None:
    """A paired comparison needs the same queries under every variant."""
    queries = results.queries.sort_values("query_id")
    asked = queries.groupby([*ENTRY, "variant"]).query_id.agg(tuple)
    for entry, sets in asked.groupby(level=ENTRY):
        if sets.nunique() > 1:
            raise ColqError(
                f"{FILES['queries']}: the variants answered different queries of {' '.join(entry)}: {_again(results.experiment.name, 'evaluate')}"
            )


def of_benchmark(experiment: Experiment, name: str):
    """A file of this stage as a table or dict, or an error that says how to make it."""
    path = experiment.results("benchmark") / name
    return (files.read_json if path.suffix == ".json" else files.read_table)(
        path, f"benchmark EXPERIMENT={experiment.name}"
    )


def memory_table(experiment: Experiment) -> pd.DataFrame:
    """Bytes by variant and metric in MB (10^6): mean over rounds, the largest over workloads."""
    table = of_benchmark(experiment, "memory.csv")
    largest = table.groupby(["variant", "round", "metric"], sort=False)["bytes"].max() / 1e6
    wide = largest.groupby(["variant", "metric"], sort=False).mean().unstack("metric")
    return wide.loc[[name for name in experiment.benchmark.variants if name in wide.index]]
