"""Result files of all stages as tidy tables, refused where they contradict each other.

The reports read nothing else. A file that a stage has not written yet is None (the report then says
'not measured'); only the scores are indispensable. Files are compared with each other before anything
is computed, because a cached score under a wrong revision looks exactly like a good one.
"""

from collections.abc import Iterable
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


#: Stage -> the files that are read; the stem of a name is its field in `Results`.
STAGES = {
    "inspect": ("towers.csv", "published.csv", "architecture.json"),
    "calibrate": ("sets.csv",),
    "quantize": ("variants.csv", "environment.json"),
    "benchmark": (
        "rows.csv",
        "samples.parquet",
        "memory.csv",
        "census.csv",
        "ceilings.json",
        "environment.json",
    ),
    "evaluate": (
        "scores.csv",
        "queries.parquet",
        "mixed.parquet",
        "failures.csv",
        "documents.csv",
        "environment.json",
    ),
}
#: Field of `Results` -> file below results/<experiment>/.
FILES = {
    f"{stage}_environment" if name == "environment.json" else Path(name).stem: f"{stage}/{name}"
    for stage, names in STAGES.items()
    for name in names
}
#: Columns that a table must have; no two rows agree in those of `KEYS`.
COLUMNS = {
    "variants": {"variant", "export", "tensor_bytes", "base_bytes", "revision"},
    "rows": {"variant", "kind", "batch", "latency_s_mean", "latency_s_median", "n_samples", "error"},
    "samples": {"variant", "round", "kind", "batch", "latency_s"},
    "scores": {"variant", "task", "lang", "n_queries", "n_pages", "ndcg_at_5", "counted", "group"},
    "queries": {"variant", "task", "lang", "query_id", "ndcg_at_5", "margin", "top5"},
    "mixed": {"variant", "queries", "pages", "task", "lang", "query_id", "ndcg_at_5"},
}
KEYS = {
    "variants": ["variant", "export"],
    "rows": ["variant", "kind", "batch"],
    "scores": ["variant", *ENTRY],
    "queries": ["variant", *ENTRY, "query_id"],
    "mixed": ["variant", "queries", "pages", *ENTRY, "query_id"],
}


@dataclass(frozen=True)
class Results:
    """What the stages of `experiment` have written; None where a file is missing. Fields as in `FILES`."""

    experiment: Experiment
    scores: pd.DataFrame
    queries: pd.DataFrame
    towers: pd.DataFrame | None = None
    architecture: dict | None = None
    published: pd.DataFrame | None = None
    sets: pd.DataFrame | None = None
    variants: pd.DataFrame | None = None
    rows: pd.DataFrame | None = None
    samples: pd.DataFrame | None = None
    memory: pd.DataFrame | None = None
    census: pd.DataFrame | None = None
    ceilings: dict | None = None
    mixed: pd.DataFrame | None = None
    failures: pd.DataFrame | None = None
    documents: pd.DataFrame | None = None
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
    rows = samples[(samples.variant == variant) & (samples.kind == kind) & (samples.batch == batch)]
    return [process.latency_s.to_numpy() for _, process in rows.groupby("round")]


def load(experiment: Experiment) -> Results:
    """Read every result file of the experiment and compare them with each other.

    Raises:
        ColqError: the scores are missing (says which target makes them), or two files contradict each other.
    """
    folder = experiment.output / "results" / experiment.name
    for essential in ("scores", "queries"):
        files.required(folder / FILES[essential], f"evaluate EXPERIMENT={experiment.name}")
    present = {field: folder / path for field, path in FILES.items() if (folder / path).exists()}
    results = Results(experiment, **{field: _read(path, field) for field, path in present.items()})
    _check_origin(results)
    _check_rows(results)
    _check_revisions(results)
    _check_scores(results)
    _check_queries(results)
    return results


def _read(path: Path, field: str):
    again = _again(path.parent.parent.name, path.parent.name)
    try:
        content = files.read_json(path, "") if path.suffix == ".json" else files.read_table(path, "")
    except (ValueError, OSError) as error:  # JSON, CSV and parquet errors are ValueErrors (ArrowInvalid too)
        raise ColqError(f"{path} cannot be read ({error}): remove it and {again}") from None
    missing = COLUMNS.get(field, set()) - set(content)
    if missing:
        raise ColqError(f"{path} has no column {', '.join(sorted(missing))}: {again}")
    if path.suffix != ".json":
        texts = list({"error", "fallback", "calibration"} & set(content))
        content[texts] = content[texts].fillna("")
    return content


def _again(experiment: str, *stages: str) -> str:
    return "run " + " and ".join(f"`make {stage} EXPERIMENT={experiment}`" for stage in stages) + " again"


def _refused(results: Results, problem: str, *stages: str) -> ColqError:
    return ColqError(f"{problem}: {_again(results.experiment.name, *stages)}")


def _check_origin(results: Results) -> None:
    """Every stage's record names this experiment, one seed, one precision and one budget of visual tokens."""
    exp = results.experiment
    wanted = {"experiment": exp.name, "seed": exp.seed, "dtype": exp.runtime.dtype}
    wanted |= {"max_visual_tokens": exp.model.max_visual_tokens}
    for stage in ("quantize", "benchmark", "evaluate"):
        record = getattr(results, f"{stage}_environment") or {}
        for key, value in wanted.items():
            if record.get(key, value) != value:
                made = f"results/{exp.name}/{stage}/environment.json was made with {key} {record[key]!r}"
                raise _refused(results, f"{made}, the experiment file says {value!r}", stage)


def _check_rows(results: Results) -> None:
    """No table speaks of an unknown variant, or twice of one thing; the base has scores."""
    known = {*results.experiment.by_id, *REFERENCES}
    tables = {field: getattr(results, field) for field in COLUMNS if getattr(results, field) is not None}
    for field, table in tables.items():
        path, stage = FILES[field], FILES[field].split("/")[0]
        unknown = ", ".join(sorted(set(table.variant) - known))
        if unknown:
            problem = f"{path} speaks of {unknown}, which the experiment file does not have"
            raise _refused(results, problem, stage)
        twice = table[table.duplicated(KEYS[field])] if field in KEYS else table.head(0)
        if len(twice):
            problem = f"{path} has two rows for {_first(twice, KEYS[field])}"
            raise ColqError(f"{problem}: remove the file and {_again(results.experiment.name, stage)}")
    if results.base not in set(results.queries.variant):
        raise _refused(results, f"{FILES['queries']} has no scores of the base {results.base}", "evaluate")


def _first(rows: pd.DataFrame, keys: list[str]) -> str:
    return ", ".join(str(value) for value in rows.iloc[0][keys])


def _check_revisions(results: Results) -> None:
    """Two quantized variants under one revision would share cached scores."""
    if results.variants is None:
        return
    quantized = results.variants[results.variants.variant.isin(results.experiment.quantized)]
    for revision, names in quantized.dropna(subset="revision").groupby("revision").variant:
        if names.nunique() > 1:
            raise ColqError(
                f"{FILES['variants']}: {' and '.join(sorted(set(names)))} have one revision, {revision}; "
                "scores are cached by revision, so one of them may be the other's: "
                f"{_again(results.experiment.name, 'quantize', 'evaluate')}, or drop one of them from the "
                "experiment if their weights are the same"
            )


def _check_scores(results: Results) -> None:
    """The mean over the queries is the score, for each variant, task and language."""
    keys = KEYS["scores"]
    means = results.queries.groupby(keys).ndcg_at_5.agg(["mean", "size"]).reset_index()
    both = results.scores.merge(means, on=keys, how="outer", indicator=True)
    in_one = (both._merge == "right_only") | ((both._merge == "left_only") & ~both.variant.isin(REFERENCES))
    apart = ((both["mean"] - both.ndcg_at_5).abs() > 1e-4) | (both["size"] != both.n_queries)
    for rows, what in (
        (both[in_one], "only one of them has"),
        (both[apart & (both._merge == "both")], "they disagree on"),
    ):
        if len(rows):
            problem = f"{FILES['scores']} and {FILES['queries']} contradict each other: {what}"
            raise _refused(results, f"{problem} {_first(rows, keys)}", "evaluate")


def _check_queries(results: Results) -> None:
    """A paired comparison needs the same queries under every variant."""
    queries = results.queries.sort_values("query_id")
    asked = queries.groupby([*ENTRY, "variant"]).query_id.agg(tuple)
    for entry, sets in asked.groupby(level=ENTRY):
        if sets.nunique() > 1:
            problem = f"the variants answered different queries of {' '.join(entry)}"
            raise _refused(results, f"{FILES['queries']}: {problem}", "evaluate")


def of_benchmark(experiment: Experiment, name: str):
    """A file of this stage as a table or dict, or an error that says how to make it."""
    read = files.read_json if name.endswith(".json") else files.read_table
    return read(experiment.results("benchmark") / name, f"benchmark EXPERIMENT={experiment.name}")


def memory_table(table: pd.DataFrame, variants: Iterable[str]) -> pd.DataFrame:
    """Bytes of `memory.csv` by variant and metric: the largest over workloads, the mean over rounds."""
    largest = table.groupby(["variant", "round", "metric"], sort=False)["bytes"].max()
    wide = largest.groupby(["variant", "metric"], sort=False).mean().unstack("metric")
    return wide.loc[[name for name in variants if name in wide.index]]
