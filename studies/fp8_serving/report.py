"""``fp8_serving.md``: every row of the published serving report beside what was measured, a verdict by rule.

Figures come from result files of the experiment, from ``results/nutrition-fp8-7b`` (H200, random weights at
7B dimensions) and from the transcription in ``data/published``. What was not measured says so. Sentences and
tables are in `templates`.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.report import markdown as md
from colq_utils.report import prose
from studies.fp8_serving import bench, plots
from studies.fp8_serving.settings import DetectionExperiment

TEMPLATES = Path(__file__).parent / "templates"
SEVEN = ROOT / "results" / "nutrition-fp8-7b"
#: What counts as no loss and as a gain: IoU that may be lost; share of bf16. All but the first were set
#: before any run; it took the place of a bar that no run could miss.
BARS = {"iou": 0.01, "latency_share": 0.75, "bytes_share": 0.55}
CAPTIONS = {
    "predictions.png": "Held-out pictures with the true box and those of bf16 and FP8; "
    "the first half are those where the two differ most.",
    "iou.png": "How FP8 changes the overlap with the true box, picture by picture.",
    "latency.png": "Warm requests to the demo detector.",
    "latency_7b.png": "Time of one request at 7B dimensions on the H200, by part.",
    "memory_7b.png": "Where the bytes are: measured at 7B dimensions, and as published.",
}


@dataclass(frozen=True)
class DetectorResults:
    """All result files that the report reads; None: that run, at 7B dimensions or of vLLM, is not there."""

    experiment: DetectionExperiment
    rows: pd.DataFrame
    samples: pd.DataFrame
    cold: pd.DataFrame
    memory: pd.DataFrame
    environment: dict
    variants: pd.DataFrame
    scores: pd.DataFrame
    answers: pd.DataFrame
    published: pd.DataFrame
    run: dict | None
    timed: pd.DataFrame | None
    on_gpu: pd.DataFrame | None
    vllm: dict | None

    @property
    def base(self) -> str:
        return self.experiment.variant_id("bf16")

    @property
    def fp8(self) -> str:
        return self.experiment.variant_id(self.experiment.variants[1])

    @property
    def first(self) -> pd.DataFrame:
        """Latency rows at the lowest concurrency, by variant."""
        return self.rows[self.rows.concurrency == self.rows.concurrency.min()].set_index("variant")


def load(experiment: DetectionExperiment) -> DetectorResults:
    """Read the results.

    Raises:
        ColqError: a stage has not run yet.
    """

    def read(stage: str, name: str):
        reader = files.read_json if name.endswith(".json") else files.read_table
        return reader(experiment.results(stage) / name, f"{stage} EXPERIMENT={experiment.name}")

    seven, checked = (SEVEN / "run.json").exists(), (experiment.results("vllm") / "check.json").exists()
    return DetectorResults(
        experiment=experiment,
        rows=read("benchmark", "rows.csv"),
        samples=read("benchmark", "samples.parquet"),
        cold=read("benchmark", "cold.csv"),
        memory=read("benchmark", "memory.csv"),
        environment=read("benchmark", "environment.json"),
        variants=read("quantize", "variants.csv"),
        scores=read("evaluate", "scores.csv"),
        answers=read("evaluate", "answers.parquet"),
        published=pd.read_csv(ROOT / "data" / "published" / "fp8_serving.csv"),
        run=files.read_json(SEVEN / "run.json", "help") if seven else None,
        timed=pd.read_parquet(SEVEN / "samples.parquet") if seven else None,
        on_gpu=pd.read_parquet(SEVEN / "embedded_answers.parquet") if seven else None,
        vllm=read("vllm", "check.json") if checked else None,
    )


def seven_rows(timed: pd.DataFrame) -> pd.DataFrame:
    """One line a variant and batch at 7B dimensions: latency of whole requests, mean of their parts."""
    groups = timed.assign(device_s=timed.prefill_s + timed.decode_s).groupby(["variant", "batch"], sort=False)
    parts = groups[["prepare_s", "prefill_s", "decode_s", "device_s"]].mean()
    latency = [bench.summarize(calls.latency_s) for _, calls in groups]
    return pd.DataFrame(latency, index=parts.index).join(parts)


def ratio(study: DetectorResults, batch: int = 1, column: str = "latency_s_mean") -> float:
    """FP8 over BF16 at 7B dimensions; NaN where that run is not there."""
    if study.timed is None:
        return float("nan")
    values = seven_rows(study.timed)[column]
    return float(values["fp8", batch] / values["bf16", batch])


def weight_share(study: DetectorResults) -> float:
    """Bytes of the quantized blocks over those in BF16, of the embedded detector."""
    return float(study.variants.set_index("variant").blocks_share[study.fp8])


def agrees(study: DetectorResults) -> bool:
    """Whether FP8 is shown to lose less overlap with the true box than the bar allows (non-inferiority)."""
    return bool(study.scores.set_index("variant").iou_diff_low[study.fp8] > -BARS["iou"])


def arithmetic_null(study: DetectorResults) -> float:
    """Share of pictures for which the base on the GPU answers as it does here; NaN where that was not run."""
    if study.on_gpu is None:
        return float("nan")
    here = study.answers[study.answers.variant == study.base].set_index("picture").text
    there = study.on_gpu.set_index("picture").bf16.reindex(here.index)
    return float((here == there).mean())


def ratio_by_round(study: DetectorResults) -> list[float]:
    """FP8 over BF16 in each round of whole requests at 7B dimensions: too few for an interval."""
    calls = study.timed[study.timed.batch == 1]
    means = calls.groupby(["round", "variant"]).latency_s.mean().unstack("variant")
    return (means["fp8"] / means["bf16"]).tolist()


def recommendation(study: DetectorResults) -> str:
    """The verdict that the bars give, and under it each bar."""
    return prose.render("recommendation.md.j2", TEMPLATES, **_verdict(study))


def _verdict(study: DetectorResults) -> dict:
    return {
        "md": md,
        "bars": BARS,
        "score": study.scores.set_index("variant").loc[study.fp8],
        "boxes_kept": agrees(study),
        "bytes_share": weight_share(study),
        "null": arithmetic_null(study),
        "whole": None if study.timed is None else ratio(study),
        "rounds": [] if study.timed is None else [md.number(r, 3) for r in ratio_by_round(study)],
        "device": ratio(study, column="device_s"),
        "percent": lambda share, digits: md.number(100 * share, digits, unit=" %"),
    }


def text(study: DetectorResults) -> str:
    """The report: question, answer, one table, one figure, what was not measured; everything else folded."""
    run, serve, scores = study.run, study.experiment.serving, study.scores.set_index("variant")

    def figures(*names: str) -> str:
        there = [name for name in names if (study.experiment.figures / name).exists()]
        folder = f"../../../figures/{study.experiment.name}"
        return "\n\n".join(md.picture(f"{folder}/{name}", CAPTIONS[name]) for name in there)

    def iou(variant: str) -> str:
        return md.value_ci(*scores.loc[variant, ["iou_mean", "iou_low", "iou_high"]], 4)

    return prose.render(
        "fp8_serving.md.j2",
        TEMPLATES,
        **_verdict(study),
        study=study,
        run=run,
        seven=seven_rows(study.timed) if run else None,
        serve=serve,
        server=serve.engine == "vllm",
        environment=study.environment,
        on_cpu=study.experiment.runtime.device == "cpu",
        stated=_stated(study),
        comparison=_comparison(study),
        configurations={
            "baseline (bfloat16)": _configuration(study, "original", study.base, "bf16"),
            "quantized (FP8)": _configuration(study, "quantized", study.fp8, "fp8"),
        },
        byte_rows=_byte_rows(run) if run else [],
        token_ms=_token_ms(study) if run else {},
        figures=figures,
        iou=iou,
        ratio=ratio,
    )


def _stated(study: DetectorResults, table: str = "Comparison") -> pd.DataFrame:
    """A table of the published report, by metric."""
    return study.published[study.published.table == table].set_index("metric")


def _seven(study: DetectorResults, name: str) -> dict:
    """Time and bytes of bf16 or fp8 at 7B dimensions, batch 1; empty where that run is not there."""
    if study.run is None:
        return {}
    weights = sum(study.run["bytes"][name].values())
    return {"weight_bytes": weights, **study.run["memory"][name], **seven_rows(study.timed).loc[name, 1]}


def _configuration(study: DetectorResults, column: str, variant: str, seven: str) -> dict:
    """What the published list of one configuration names, from the three sources."""
    memory, cold = (t.groupby("variant").mean(numeric_only=True) for t in (study.memory, study.cold))
    return {
        "variant": variant,
        "stated": _stated(study, "Results")[column],
        "row": study.first.loc[variant],
        "memory": memory.loc[variant],
        "cold": cold.loc[variant],
        "large": _seven(study, seven),
        "output": study.answers.set_index("variant").text[variant].iloc[0],
    }


def _comparison(study: DetectorResults) -> list[tuple[str, ...]]:
    """Cells of the rows that can be divided: metric, published, demo detector, 7B dimensions."""
    memory, large = study.memory.groupby("variant").mean(numeric_only=True), _seven(study, "bf16")
    small = {
        "model weights": memory.weight_bytes / 1e6,
        "total GPU memory": None,
        "steady-state latency": 1e3 * study.first.latency_s_p50,
    }
    keys = zip(("weight_bytes", "card_used_bytes", "latency_s_p50"), (1e-9, 1e-9, 1e3))
    rows = []
    for (metric, demo), (key, scale) in zip(small.items(), keys):
        stated = _stated(study).loc[metric]
        by_own_figures = 100 * (stated.quantized / stated.original - 1)
        off = abs(stated.change_pct - by_own_figures) > 0.5 + 1e-9
        remark = f"; by its own figures {md.number(by_own_figures, 0, True, ' %')}" if off else ""
        change = f"{stated.change_pct:+.0f} %{remark}"
        published = f"{stated.original:g} to {stated.quantized:g} {stated.unit} ({change})"
        ours, seven = f"{md.MISSING} (no GPU)", md.MISSING
        if demo is not None:
            ours = _from_to(demo[study.base], demo[study.fp8], 2, "ms" if stated.unit == "ms" else "MB")
        if large:
            seven = _from_to(scale * large[key], scale * _seven(study, "fp8")[key], 1, stated.unit)
        rows.append((metric, published, ours, seven))
    return rows


def _from_to(old: float, new: float, digits: int, unit: str) -> str:
    change = md.number(100 * (new / old - 1), 0, True, " %")
    return f"{md.number(old, digits)} to {md.number(new, digits)} {unit} ({change})"


def _byte_rows(run: dict) -> list[tuple[str, int, int]]:
    """Label, bytes in BF16 and in FP8 at 7B dimensions."""
    parts, memory = (pd.DataFrame(run[key])[["bf16", "fp8"]].T for key in ("bytes", "memory"))
    rows = {
        "blocks of the language model (quantized)": parts.blocks,
        "vision tower, BF16 in both": parts.vision,
        "lm_head and embedding, BF16 in both": parts["head"] + parts.other,
        "1. all weights": parts.sum(axis=1),
        "2. KV cache, one request": memory.kv_bytes,
        "3. taken on the card": memory.card_used_bytes,
    }
    return [(label, *values) for label, values in rows.items()]


def _token_ms(study: DetectorResults) -> dict[str, tuple[float, float]]:
    """Time of an answer token at 7B dimensions: to read the weights once, and as measured."""
    run, seven = study.run, seven_rows(study.timed)
    times = {}
    for name in ("bf16", "fp8"):
        read_bytes = run["bytes"][name]["blocks"] + run["bytes"][name]["head"]
        token_s = seven.decode_s[name, 1] / (run["answer_tokens"] - 1)
        times[name] = (1e3 * read_bytes / run["copy_bytes_per_s"], 1e3 * token_s)
    return times


def write(experiment: DetectionExperiment) -> Path:
    """Draw the figures and write ``reports/fp8_serving.md``; same results, same bytes."""
    study = load(experiment)
    plots.predictions(experiment, study.answers)
    plots.overlap(experiment, study.answers)
    plots.latency(experiment, study.samples)
    if study.run:
        plots.seven_latency(experiment, study.timed, study.run["device"])
        plots.seven_memory(experiment, study.run, study.published)
    return files.write_text(experiment.results("reports") / "fp8_serving.md", text(study))
