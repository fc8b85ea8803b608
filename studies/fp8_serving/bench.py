"""Benchmark and evaluation of a detection study: cold start, warm requests, memory, and the answers themselves.

In process, every variant runs in a fresh process, twice, in turns. With vLLM, a server is started for each variant and
stopped. The cold start (process start to the first answer) is never part of the latency of warm requests. Requests of
one concurrency are in flight together: threads against a server; in process, batches of pictures of one size.
"""

import time
from collections import Counter

import numpy as np
import pandas as pd
import torch

from colq_utils.base import files, process, provenance
from colq_utils.base.errors import ColqError
from colq_utils.base.progress import track
from colq_utils.report import stats
from studies.fp8_serving import boxes, engine, fp8, make, pictures
from studies.fp8_serving.server import Remote, serving
from studies.fp8_serving.settings import DetectionExperiment

#: Fewest samples from which a 99th percentile is given.
ENOUGH_FOR_P99 = 100


def run(experiment: DetectionExperiment) -> pd.DataFrame:
    """Measure every variant; write ``rows.csv``, ``samples.parquet``, ``cold.csv``, ``memory.csv``.

    Raises:
        ColqError: a checkpoint that is not there, no CUDA device, a server that cannot be used.
    """
    for variant in experiment.variants:
        files.required(
            experiment.folder(variant) / "model.safetensors", f"quantize EXPERIMENT={experiment.name}"
        )
    if experiment.runtime.device == "cuda" and not torch.cuda.is_available():
        raise ColqError(
            "the experiment asks for device cuda and no CUDA device is visible; set runtime.device to cpu"
        )
    measure = _in_process if experiment.serving.engine == "transformers" else _served
    jobs = [
        (number, variant) for number in range(experiment.serving.rounds) for variant in experiment.variants
    ]
    parts = [
        {"variant": experiment.variant_id(variant), "round": number, **measure(experiment, variant)}
        for number, variant in track(jobs, "benchmark")
    ]
    return _write(experiment, parts)


def _in_process(experiment: DetectionExperiment, variant: str) -> dict:
    start = time.time()
    outcome = process.call(
        "studies.fp8_serving.bench:child",
        {"experiment": experiment.model_dump(mode="json"), "variant": variant, "start": start},
        experiment.runtime.threads,
    )
    return outcome.value if outcome.error is None else {"error": outcome.error}


def child(experiment: dict, variant: str, start: float) -> dict:
    """The side of the fresh process; see `run`. `start` is when the parent began to start it."""
    settings = DetectionExperiment.model_validate(experiment)
    runner = engine.in_process(settings, variant)
    found = _measure(settings, runner, {"ready_s": time.time() - start, "load_s": runner.load_s})
    cuda = settings.runtime.device == "cuda"
    total = torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0] if cuda else process.resident()
    return found | {
        "census": fp8.census(runner.model),
        "memory": {
            "weight_bytes": sum(make.stored_bytes(settings.folder(variant)).values()),
            "kv_bytes": runner.cache_bytes,
            "total_bytes": total,
        },
    }


def _served(experiment: DetectionExperiment, variant: str) -> dict:
    """Start (or use) a server for a variant and measure it."""
    serve, log = experiment.serving, experiment.build("servers", f"{variant}.log")
    with serving(experiment.folder(variant), experiment.variant_id(variant), serve, log) as server:
        runner = Remote(server, serve.timeout_s)
        found = _measure(experiment, runner, {"ready_s": server.healthy_s})
        said = server.memory()
        total = (
            torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0]
            if torch.cuda.is_available()
            else server.resident_bytes()
        )
        stored = sum(p.stat().st_size for p in experiment.folder(variant).glob("*.safetensors"))
        return found | {
            "census": {},
            "memory": {
                "weight_bytes": said.get("weight_bytes", stored),
                "kv_bytes": said.get("kv_bytes"),
                "total_bytes": total,
            },
        }


def _measure(experiment: DetectionExperiment, runner, cold: dict) -> dict:
    """First answer, then warm requests at every concurrency; JSON-ready."""
    serve, held = experiment.serving, pictures.load()
    start = time.perf_counter()
    first = runner.answer([held[0].data])[0]
    cold |= {"first_answer_s": time.perf_counter() - start, "first_failed": first.reason}
    per_round, samples, walls = -(-serve.requests // serve.rounds), [], {}
    for concurrency in serve.concurrency:
        runner.batch = concurrency
        # Pictures of one size stand together, so that a batch is full; every size is met once before the clock starts.
        order = sorted((held[i % len(held)] for i in range(per_round)), key=lambda p: (p.width, p.height))
        for width in dict.fromkeys(p.width for p in order):
            runner.answer([p.data for p in order if p.width == width][: max(concurrency, serve.warmup // 3)])
        start = time.perf_counter()
        answers = runner.answer([p.data for p in order])
        walls[str(concurrency)] = time.perf_counter() - start
        samples += [
            {"concurrency": concurrency, "picture": p.id, **{k: getattr(a, k) for k in _KEPT}}
            for p, a in zip(order, answers)
        ]
    return {"cold": cold, "samples": samples, "wall_s": walls}


_KEPT = ("reason", "detail", "latency_s", "prepare_s", "prefill_s", "decode_s", "tokens")


def summarize(latency_s: list[float]) -> dict:
    """Mean, extremes and percentiles in seconds; the 99th only from 100 samples."""
    if not len(latency_s):
        return {"n": 0}
    values = np.asarray(latency_s)
    names = {"p50": 50, "p90": 90, "p99": 99}
    found = {f"latency_s_{name}": np.percentile(values, rank) for name, rank in names.items()}
    if len(values) < ENOUGH_FOR_P99:
        found["latency_s_p99"] = np.nan
    return {
        "n": len(values),
        "latency_s_mean": values.mean(),
        "latency_s_min": values.min(),
        "latency_s_max": values.max(),
        **found,
    }


def _write(experiment: DetectionExperiment, parts: list[dict]) -> pd.DataFrame:
    folder = experiment.results("benchmark")
    samples = pd.DataFrame(
        [{"variant": p["variant"], "round": p["round"], **s} for p in parts for s in p.get("samples", [])],
        columns=["variant", "round", "concurrency", "picture", *_KEPT],
    )
    files.write_table(folder / "samples.parquet", samples)
    rows = []
    for name in map(experiment.variant_id, experiment.variants):
        mine, errors = (
            [p for p in parts if p["variant"] == name],
            [p["error"] for p in parts if p["variant"] == name and "error" in p],
        )
        for concurrency in experiment.serving.concurrency:
            some = samples[(samples["variant"] == name) & (samples["concurrency"] == concurrency)]
            good = some[some["reason"].isna()]
            wall = sum(p["wall_s"][str(concurrency)] for p in mine if "wall_s" in p)
            rows.append(
                {
                    "variant": name,
                    "engine": experiment.serving.engine,
                    "concurrency": concurrency,
                    **summarize(good["latency_s"].tolist()),
                    "requests_per_s": len(good) / wall if wall else np.nan,
                    "failed": len(some) - len(good),
                    "error": errors[0] if errors else None,
                }
            )
    table = pd.DataFrame(rows)
    files.write_table(folder / "rows.csv", table)
    cold = pd.DataFrame(
        [{"variant": p["variant"], "round": p["round"], **p["cold"]} for p in parts if "cold" in p]
    )
    if len(cold):
        cold["cold_start_s"] = cold["ready_s"] + cold["first_answer_s"]
    files.write_table(folder / "cold.csv", cold)
    files.write_table(
        folder / "memory.csv",
        pd.DataFrame(
            [{"variant": p["variant"], "round": p["round"], **p["memory"]} for p in parts if "memory" in p]
        ),
    )
    files.write_json(
        folder / "failures.json",
        {v: dict(Counter(rows_["reason"].dropna())) for v, rows_ in samples.groupby("variant")},
    )
    files.write_json(
        folder / "environment.json",
        provenance.collect(experiment)
        | {
            "engine": experiment.serving.engine,
            "device": experiment.runtime.device,
            "rounds": experiment.serving.rounds,
            "census": {p["variant"]: p["census"] for p in parts if "census" in p},
        },
    )
    return table


def evaluate(experiment: DetectionExperiment) -> pd.DataFrame:
    """Answers of every variant to the held-out pictures; write ``answers.parquet`` and ``scores.csv``."""
    held, serve = pictures.load(count=experiment.pictures.count), experiment.serving
    given, tables = [p.data for p in held], {}
    for variant in track(experiment.variants, "evaluate"):
        if serve.engine == "vllm":
            with serving(
                experiment.folder(variant),
                experiment.variant_id(variant),
                serve,
                experiment.build("servers", f"{variant}-evaluate.log"),
            ) as server:
                answers = Remote(server, serve.timeout_s, max(serve.concurrency)).answer(given)
        else:
            answers = engine.in_process(experiment, variant, max(serve.concurrency)).answer(given)
        tables[experiment.variant_id(variant)] = answers
    frame = answer_table(held, tables)
    files.write_table(experiment.results("evaluate") / "answers.parquet", frame)
    table = scores(frame, experiment.seed)
    files.write_table(experiment.results("evaluate") / "scores.csv", table)
    files.write_json(
        experiment.results("evaluate") / "environment.json",
        provenance.collect(experiment) | {"engine": serve.engine, "pictures": len(held)},
    )
    return table


def answer_table(held: list[pictures.Picture], tables: dict[str, list[engine.Answer]]) -> pd.DataFrame:
    """One line a variant and picture: text, box, reason of failure, IoU with the truth, exactness and shift against the first variant."""
    rows, base = [], next(iter(tables.values()))
    for name, answers in tables.items():
        for picture, answer, reference in zip(held, answers, base, strict=True):
            both = answer.box is not None and reference.box is not None
            rows.append(
                {
                    "variant": name,
                    "picture": picture.id,
                    "package": picture.package,
                    "text": answer.text,
                    "reason": answer.reason,
                    **dict(zip(("x1", "y1", "x2", "y2"), answer.box or [np.nan] * 4)),
                    "iou": boxes.iou(answer.box, picture.box),
                    "same_text": answer.text is not None and answer.text == reference.text,
                    "same_box": both and answer.box == reference.box,
                    "shift_px": boxes.shift_px(answer.box, reference.box, picture.width, picture.height)
                    if both
                    else np.nan,
                }
            )
    return pd.DataFrame(rows)


def scores(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One line a variant: IoU and its difference to the first variant with 95 % intervals over pictures, agreement, failures."""
    wide = frame.pivot(index="picture", columns="variant", values="iou")[
        list(dict.fromkeys(frame["variant"]))
    ]
    drawn = np.random.default_rng(seed).integers(0, len(wide), (2000, len(wide)))
    means = wide.to_numpy()[drawn].mean(1)  # (resamples, variants)
    low, high = stats.interval(means)
    diff_low, diff_high = stats.interval(means - means[:, :1])
    rows = []
    for i, (name, mine) in enumerate(frame.groupby("variant", sort=False)):
        rows.append(
            {
                "variant": name,
                "pictures": len(mine),
                "iou_mean": mine["iou"].mean(),
                "iou_low": low[i],
                "iou_high": high[i],
                "iou_diff": wide[name].mean() - wide.iloc[:, 0].mean(),
                "iou_diff_low": diff_low[i],
                "iou_diff_high": diff_high[i],
                "iou_min": mine["iou"].min(),
                "iou_above_half": (mine["iou"] > 0.5).mean(),
                "same_text": mine["same_text"].mean(),
                "same_box": mine["same_box"].mean(),
                "shift_px_mean": mine["shift_px"].mean(),
                "shift_px_max": mine["shift_px"].max(),
                "failed": int(mine["reason"].notna().sum()),
                "reasons": "; ".join(f"{k}: {v}" for k, v in Counter(mine["reason"].dropna()).items()),
            }
        )
    return pd.DataFrame(rows)
