"""Made-up result files of every stage, for tests of statistics, figures and reports; never committed."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from colq_utils.base import config

EXPERIMENT = """
title: A made-up study
seed: 42
model: {path: models/made-up, size: toy}
calibration:
  source: data/calibration
  sets:
    - {id: s256, seqlen: 256, blocks: 8, batch_rows: 4}
    - {id: s1024, seqlen: 1024, blocks: 2, batch_rows: 1}
variants:
  - {scheme: bf16}
  - {scheme: fp32}
  - {scheme: w4a16, method: rtn}
  - {scheme: w4a16, method: autoround, calibration: s256, iters: 5}
  - {scheme: w4a16, method: autoround, calibration: s1024, iters: 5}
  - {scheme: w3a16, method: rtn}
  - {scheme: w2a16, method: rtn}
benchmark: {variants: [toy-bf16, toy-w4a16-rtn], workloads: [{kind: queries, batch: 8, iterations: 10}]}
evaluation: {tasks: []}
"""
TASKS = {"MadePhrases": "graded", "MadeHeadings": "graded", "MadeShort": "graded", "MadeReading": "reading"}
LOSS = {"w4a16": 0.01, "w3a16": 0.03, "w2a16": 0.6}
BYTES = {"fp8": 25_000_000, "w4a16": 20_000_000, "nf4": 20_000_000, "w3a16": 19_000_000, "w2a16": 18_000_000}


def experiment(folder: Path, text: str = EXPERIMENT) -> config.Experiment:
    """An experiment that lives in `folder` alone."""
    (folder / "toy.yaml").write_text(text)
    return config.load(str(folder / "toy.yaml"), folder)


def write(exp: config.Experiment, queries: int = 30, languages=("de", "en", "fr"), tasks=TASKS) -> None:
    """All result files of `exp`, random but the same each time."""
    write_scores(exp, made_queries(exp, queries, languages, tasks), tasks)
    write_quantize(exp)
    write_benchmark(exp)
    write_inspect(exp)
    for stage in ("quantize", "benchmark", "evaluate"):
        record = {
            "experiment": exp.name,
            "seed": exp.seed,
            "python": "3.11.9",
            "packages": {"torch": "2.13.0"},
            "cpu": "A made-up CPU",
            "cores": 2,
            "threads": 2,
            "gpu": None,
            "cuda": None,
            "commit": "0123456789ab",
            "uncommitted_code": False,
        }
        (exp.results(stage) / "environment.json").write_text(json.dumps(record))


def made_queries(exp, queries, languages, tasks) -> pd.DataFrame:
    """Per-query scores that fall with the number of bits."""
    rng, rows = np.random.default_rng(0), []
    gains = np.array([1, 0.6309, 0.5, 0.4307, 0.3869, 0])
    for task in tasks:
        for lang in languages:
            rank = rng.choice(6, queries, p=[0.6, 0.12, 0.08, 0.05, 0.05, 0.1])
            margin = rng.normal(0.05, 0.05, queries)
            for name, variant in exp.by_id.items():
                loss = LOSS.get(variant.scheme, 0.001 if name != exp.base else 0) * (
                    0.7 if variant.method == "autoround" else 1
                )
                moved = np.where(
                    rng.random(queries) < 2 * loss,
                    np.clip(rank + rng.choice([-1, 1, 2, 5], queries), 0, 5),
                    rank,
                )
                for q in range(queries):
                    pages = [f"page{q}-{i}" for i in range(5)]
                    if rng.random() < 5 * loss:
                        pages[4] = "another"
                    rows.append(
                        (
                            name,
                            task,
                            lang,
                            f"q{q}",
                            gains[moved[q]],
                            moved[q] + 1,
                            margin[q] - loss * abs(rng.normal(0.2, 0.1)),
                            pages,
                        )
                    )
    return pd.DataFrame(
        rows, columns=["variant", "task", "lang", "query_id", "ndcg_at_5", "first_rank", "margin", "top5"]
    )


def write_scores(exp, queries: pd.DataFrame, tasks=TASKS) -> None:
    """queries.parquet and the scores.csv that belongs to it, with the two reference rows."""
    queries = queries[queries.variant.isin(exp.by_id)]
    scores = (
        queries.groupby(["variant", "task", "lang"])
        .ndcg_at_5.agg(n_queries="size", ndcg_at_5="mean")
        .reset_index()
    )
    base = scores[scores.variant == exp.base]
    scores = pd.concat(
        [
            scores,
            base.assign(variant="bm25", ndcg_at_5=0.9),
            base.assign(variant="random-init", ndcg_at_5=0.05),
        ]
    )
    scores["n_pages"], scores["group"] = 100, scores.task.map(tasks)
    scores["counted"] = scores.group == "graded"
    bm25 = queries[queries.variant == exp.base].assign(variant="bm25", ndcg_at_5=0.9, margin=float("nan"))
    queries = pd.concat([queries, bm25])  # the other reference without its queries
    queries.to_parquet(exp.results("evaluate") / "queries.parquet", index=False)
    scores.to_csv(exp.results("evaluate") / "scores.csv", index=False)


def write_quantize(exp) -> None:
    """quantize/variants.csv and calibrate/sets.csv."""
    rows = []
    for i, (name, variant) in enumerate(exp.quantized.items()):
        for export in variant.exports:
            rows.append(
                dict(
                    variant=name,
                    scheme=variant.scheme,
                    method=variant.method,
                    calibration=variant.calibration,
                    group_size=variant.group_size,
                    sym=variant.sym,
                    iters=variant.iters,
                    export=export,
                    backend="ark",
                    quantize_s=10.0 + i,
                    tensor_bytes=BYTES[variant.scheme],
                    base_bytes=30_000_000,
                    predicted_bytes=BYTES[variant.scheme],
                    loads=True,
                    runs=True,
                    finite=True,
                    cosine_query_mean=0.991,
                    cosine_query_min=0.95,
                    cosine_page_mean=0.985,
                    cosine_page_min=0.93,
                    accepted=variant.scheme != "w2a16",
                    fallback="",
                    revision=f"{i:040d}",
                )
            )
    pd.DataFrame(rows).to_csv(exp.results("quantize") / "variants.csv", index=False)
    sets = [
        dict(
            set=s.id,
            kind=s.kind,
            seqlen=s.seqlen,
            blocks=s.blocks,
            batch_rows=s.batch_rows,
            tokens=s.blocks * s.seqlen,
            distinct_tokens=900,
            padding_pct=0.0,
            fingerprint="ab12",
            overlap_8grams=0,
        )
        for s in exp.calibration.sets
    ]
    pd.DataFrame(sets).to_csv(exp.results("calibrate") / "sets.csv", index=False)


def write_benchmark(exp) -> None:
    """benchmark/rows.csv and its companions: 4 bits slower, one failed row."""
    rows, samples = [], []
    for name in exp.benchmark.variants:
        for load in exp.benchmark.workloads:
            latency = 0.020 if name == exp.base else 0.030
            samples += [
                (name, load.kind, load.batch, r, latency * slow) for r in (1, 2) for slow in (0.99, 1.0, 1.01)
            ]
            rows.append(
                dict(
                    variant=name,
                    scheme=exp.by_id[name].scheme,
                    kernel="torch float32" if name == exp.base else "ark",
                    kind=load.kind,
                    batch=load.batch,
                    n_samples=100,
                    items_per_s=load.batch / latency,
                    latency_s_mean=latency,
                    latency_s_median=latency * 0.99,
                    latency_s_std=latency * 0.05,
                    latency_s_p90=latency * 1.1,
                    latency_s_p99=latency * 1.2,
                    first_call_s=latency * 3,
                    load_s=0.5,
                    tokens_per_call=24 * load.batch,
                    floor_s=latency / 4,
                    times_floor=4.0,
                    error="",
                )
            )
    rows.append(
        {"variant": exp.benchmark.variants[-1], "kind": "pages", "batch": 64, "error": "MemoryError: made up"}
    )
    folder = exp.results("benchmark")
    pd.DataFrame(rows).to_csv(folder / "rows.csv", index=False)
    pd.DataFrame(samples, columns=["variant", "kind", "batch", "round", "latency_s"]).to_parquet(
        folder / "samples.parquet", index=False
    )
    pd.DataFrame(
        [
            dict(variant=name, tower="language_model", kernel="ark", weight_bits=4, layers=42)
            for name in exp.benchmark.variants
        ]
    ).to_csv(folder / "census.csv", index=False)
    memory = [
        dict(
            variant=name,
            scheme=exp.by_id[name].scheme,
            round=r,
            kind=kind,
            batch=None,
            metric=metric,
            bytes=value + 2e6 * r,
        )
        for name in exp.benchmark.variants
        for r in (1, 2)
        for kind, metric, value in (
            (None, "tensors_bytes", 3e7 if name == exp.base else 2e7),
            (None, "rss_loaded_bytes", 5e8),
            ("queries", "peak_rss_bytes", 6e8),
            ("pages", "peak_rss_bytes", 7e8),
        )
    ]
    pd.DataFrame(memory).to_csv(folder / "memory.csv", index=False)
    (folder / "ceilings.json").write_text(
        json.dumps({"device": "cpu", "threads": 2, "copy_bytes_per_s": 1.2e10, "float32_flop_per_s": 4e11})
    )


def write_inspect(exp) -> None:
    """inspect/towers.csv and architecture.json."""
    folder = exp.results("inspect")
    pd.DataFrame(
        [
            ("language_model", 60, 8_000_000, 16_000_000, 0.533),
            ("visual", 90, 6_900_000, 13_800_000, 0.46),
            ("projection", 2, 100_000, 200_000, 0.007),
        ],
        columns=["tower", "tensors", "parameters", "bytes", "share"],
    ).to_csv(folder / "towers.csv", index=False)
    (folder / "architecture.json").write_text(json.dumps({"model_type": "colqwen3"}))
