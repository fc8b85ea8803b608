"""Benchmark and evaluation of a detection study: cold start, warm requests, memory, and the answers.

In process, every variant runs in a fresh process, twice, in turns. With vLLM, a server is started for each
variant and stopped. The cold start (process start to the first answer) is never part of the latency of warm
requests. Requests of one concurrency are in flight together: threads against a server; in process, batches
of one picture size.
"""

import contextlib
import time
from collections import Counter

import numpy as np
import pandas as pd

from colq_utils.base import files, process
from colq_utils.base.progress import track
from colq_utils.report import stats
from studies.fp8_serving import boxes, engine, fp8, make, pictures
from studies.fp8_serving.server import Remote, Server, serving
from studies.fp8_serving.settings import DetectionExperiment

#: Fewest samples from which a 99th percentile is given.
ENOUGH_FOR_P99 = 100
#: Fields of an answer that are stored with each sample.
_KEPT = ("reason", "detail", "latency_s", "prepare_s", "prefill_s", "decode_s", "tokens")


def run(experiment: DetectionExperiment) -> pd.DataFrame:
    """Measure every variant; write ``rows.csv``, ``samples.parquet``, ``cold.csv``, ``memory.csv``.

    Raises:
        ColqError: a checkpoint that is not there, no CUDA device, a server that cannot be used.
    """
    for variant in experiment.variants:
        engine.ready(experiment, variant)
    measure = _in_process if experiment.serving.engine == "transformers" else _served
    jobs = [(n, variant) for n in range(experiment.serving.rounds) for variant in experiment.variants]
    parts = []
    for number, variant in track(jobs, "benchmark"):
        place = {"variant": experiment.variant_id(variant), "round": number}
        parts.append(place | measure(experiment, variant))
    return _write(experiment, parts)


def _in_process(experiment: DetectionExperiment, variant: str) -> dict:
    arguments = {"experiment": experiment.model_dump(mode="json"), "variant": variant, "start": time.time()}
    outcome = process.call("studies.fp8_serving.bench:child", arguments, experiment.runtime.threads)
    return outcome.value if outcome.error is None else {"error": outcome.error}


def child(experiment: dict, variant: str, start: float) -> dict:
    """The side of the fresh process; see `run`. `start` is when the parent began to start it."""
    settings = DetectionExperiment.model_validate(experiment)
    runner = engine.in_process(settings, variant)
    measured = _measure(settings, runner, {"ready_s": time.time() - start, "load_s": runner.load_s})
    memory = {
        "weight_bytes": sum(make.stored_bytes(settings.folder(variant)).values()),
        "kv_bytes": runner.cache_bytes,
        "total_bytes": engine.card_used_bytes() if runner.device == "cuda" else process.resident(),
    }
    return measured | {"census": fp8.census(runner.model), "memory": memory}


def _served(experiment: DetectionExperiment, variant: str) -> dict:
    """Start (or use) a server for a variant and measure it."""
    with _server(experiment, variant, f"{variant}.log") as server:
        runner = Remote(server, experiment.serving.timeout_s)
        measured = _measure(experiment, runner, {"ready_s": server.healthy_s})
        stored = sum(p.stat().st_size for p in experiment.folder(variant).glob("*.safetensors"))
        memory = {"weight_bytes": stored, "kv_bytes": None} | server.memory()
        memory["total_bytes"] = engine.card_used_bytes() or server.resident_bytes()
        return measured | {"census": {}, "memory": memory}


def _server(
    experiment: DetectionExperiment, variant: str, log: str
) -> contextlib.AbstractContextManager[Server]:
    name, log_file = experiment.variant_id(variant), experiment.build("servers", log)
    return serving(experiment.folder(variant), name, experiment.serving, log_file)


def _measure(experiment: DetectionExperiment, runner, cold: dict) -> dict:
    """First answer, then warm requests at every concurrency; JSON-ready."""
    serve, held_out = experiment.serving, pictures.load()
    start = time.perf_counter()
    first = runner.answer([held_out[0].data])[0]
    cold |= {"first_answer_s": time.perf_counter() - start, "first_failed": first.reason}
    per_round, samples, walls = -(-serve.requests // serve.rounds), [], {}
    # Pictures of one size stand together, so that a batch is full; each is met once before the clock starts.
    asked = sorted((held_out[i % len(held_out)] for i in range(per_round)), key=lambda p: (p.width, p.height))
    for concurrency in serve.concurrency:
        runner.batch = concurrency
        for width in dict.fromkeys(p.width for p in asked):
            warm = [p.data for p in asked if p.width == width]
            runner.answer(warm[: max(concurrency, serve.warmup // 3)])
        start = time.perf_counter()
        answers = runner.answer([p.data for p in asked])
        walls[str(concurrency)] = time.perf_counter() - start
        for picture, answer in zip(asked, answers):
            sample = {"concurrency": concurrency, "picture": picture.id}
            samples.append(sample | {field: getattr(answer, field) for field in _KEPT})
    return {"cold": cold, "samples": samples, "wall_s": walls}


def summarize(latency_s) -> dict:
    """Mean, extremes and percentiles in seconds; the 99th only from 100 samples."""
    if not len(latency_s):
        return {"n": 0}
    values = np.asarray(latency_s)
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {
        "n": len(values),
        "latency_s_mean": values.mean(),
        "latency_s_min": values.min(),
        "latency_s_max": values.max(),
        "latency_s_p50": p50,
        "latency_s_p90": p90,
        "latency_s_p99": p99 if len(values) >= ENOUGH_FOR_P99 else np.nan,
    }


def _write(experiment: DetectionExperiment, parts: list[dict]) -> pd.DataFrame:
    columns = ["variant", "round", "concurrency", "picture", *_KEPT]
    samples = pd.DataFrame(_lines(parts, "samples"), columns=columns)
    rows = []
    for name in map(experiment.variant_id, experiment.variants):
        own = [part for part in parts if part["variant"] == name]
        errors = [part["error"] for part in own if "error" in part]
        for concurrency in experiment.serving.concurrency:
            asked = samples[(samples["variant"] == name) & (samples["concurrency"] == concurrency)]
            answered = asked[asked["reason"].isna()]
            wall_s = sum(part["wall_s"][str(concurrency)] for part in own if "wall_s" in part)
            row = {"variant": name, "engine": experiment.serving.engine, "concurrency": concurrency}
            row |= summarize(answered["latency_s"])
            row["requests_per_s"] = len(answered) / wall_s if wall_s else np.nan
            row |= {"failed": len(asked) - len(answered), "error": errors[0] if errors else None}
            rows.append(row)
    cold = pd.DataFrame(_lines(parts, "cold"))
    if len(cold):
        cold["cold_start_s"] = cold["ready_s"] + cold["first_answer_s"]
    failures = {name: dict(Counter(own["reason"].dropna())) for name, own in samples.groupby("variant")}
    files.write_json(experiment.results("benchmark") / "failures.json", failures)
    tables = {"samples.parquet": samples, "rows.csv": pd.DataFrame(rows), "cold.csv": cold}
    make.store(
        experiment,
        "benchmark",
        tables | {"memory.csv": pd.DataFrame(_lines(parts, "memory"))},
        engine=experiment.serving.engine,
        device=experiment.runtime.device,
        rounds=experiment.serving.rounds,
        census={part["variant"]: part["census"] for part in parts if "census" in part},
    )
    return tables["rows.csv"]


def _lines(parts: list[dict], key: str) -> list[dict]:
    """What the parts hold under `key`, one entry or several, each with its variant and round."""
    lines = []
    for part in parts:
        entries = part.get(key, [])
        for entry in [entries] if isinstance(entries, dict) else entries:
            lines.append({"variant": part["variant"], "round": part["round"], **entry})
    return lines


def evaluate(experiment: DetectionExperiment) -> pd.DataFrame:
    """Answers of every variant to the held-out pictures; write ``answers.parquet`` and ``scores.csv``."""
    held_out, serve = pictures.load(count=experiment.pictures.count), experiment.serving
    given, batch, answers = [p.data for p in held_out], max(serve.concurrency), {}
    for variant in track(experiment.variants, "evaluate"):
        name = experiment.variant_id(variant)
        if serve.engine == "vllm":
            with _server(experiment, variant, f"{variant}-evaluate.log") as server:
                answers[name] = Remote(server, serve.timeout_s, batch).answer(given)
        else:
            answers[name] = engine.in_process(experiment, variant, batch).answer(given)
    frame = answer_table(held_out, answers)
    table = scores(frame)
    tables = {"answers.parquet": frame, "scores.csv": table}
    make.store(experiment, "evaluate", tables, engine=serve.engine, pictures=len(held_out))
    return table


def answer_table(held_out: list[pictures.Picture], answers: dict[str, list[engine.Answer]]) -> pd.DataFrame:
    """One line a variant and picture: answer, IoU with the truth, agreement with the first variant."""
    rows, base = [], next(iter(answers.values()))
    for name, own in answers.items():
        for picture, answer, reference in zip(held_out, own, base, strict=True):
            row = {"variant": name, "picture": picture.id, "package": picture.package}
            row |= {"text": answer.text, "reason": answer.reason}
            row |= dict(zip(("x1", "y1", "x2", "y2"), answer.box or [np.nan] * 4))
            row["iou"] = boxes.iou(answer.box, picture.box)
            row["same_text"] = answer.text is not None and answer.text == reference.text
            row["same_box"] = answer.box is not None and answer.box == reference.box
            row["shift_px"] = boxes.shift_px(answer.box, reference.box, picture.width, picture.height)
            rows.append(row)
    return pd.DataFrame(rows)


def scores(frame: pd.DataFrame) -> pd.DataFrame:
    """One line a variant: agreement, failures, IoU and its difference to the first variant.

    Intervals are t intervals at 95 % over pictures, those of differences paired.
    """
    names = list(dict.fromkeys(frame["variant"]))
    iou = frame.pivot(index="picture", columns="variant", values="iou")[names]
    measured = stats.means(iou, np.zeros(len(iou))).suite()
    (low, high), (diff_low, diff_high) = measured.interval(), (measured - measured.of([0])).interval()
    by_variant, mean = frame.groupby("variant", sort=False), iou.mean()
    table = {
        "pictures": by_variant.size(),
        "iou_mean": mean,
        "iou_low": low,
        "iou_high": high,
        "iou_diff": mean - mean.iloc[0],
        "iou_diff_low": diff_low,
        "iou_diff_high": diff_high,
        "iou_min": iou.min(),
        "iou_above_half": (iou > 0.5).mean(),
        "same_text": by_variant["same_text"].mean(),
        "same_box": by_variant["same_box"].mean(),
        "shift_px_mean": by_variant["shift_px"].mean(),
        "shift_px_max": by_variant["shift_px"].max(),
        "failed": by_variant["reason"].count(),
        "reasons": by_variant["reason"].agg(_counted),
    }
    return pd.DataFrame(table).rename_axis("variant").reset_index()


def _counted(reasons: pd.Series) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in Counter(reasons.dropna()).items())
