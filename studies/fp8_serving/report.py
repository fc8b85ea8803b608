"""``fp8_serving.md``: every row of the published serving report beside what was measured here, and a recommendation by rule.

Figures come from result files of the experiment, from ``results/nutrition-fp8-7b`` (H200, random weights at 7B
dimensions) and from the transcription in ``data/published``. What was not measured says so.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.report import markdown as md
from studies.fp8_serving import bench, plots
from studies.fp8_serving.settings import DetectionExperiment

#: Agreement that counts as none lost, and the share of the latency that counts as a gain; both stated before any run.
EXACT, SHIFT_PX, FASTER, WEIGHTS = 0.98, 1.0, 0.75, 0.55
SEVEN = ROOT / "results" / "nutrition-fp8-7b"


@dataclass(frozen=True)
class DetectorResults:
    """All result files that the report reads; `seven` parts are None where that run's files are not there."""

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


def load(experiment: DetectionExperiment) -> DetectorResults:
    """Read the results.

    Raises:
        ColqError: a stage has not run yet.
    """

    def table(stage: str, name: str):
        return files.read_table(experiment.results(stage) / name, f"{stage} EXPERIMENT={experiment.name}")

    there = (SEVEN / "run.json").exists()
    return DetectorResults(
        experiment,
        table("benchmark", "rows.csv"),
        table("benchmark", "samples.parquet"),
        table("benchmark", "cold.csv"),
        table("benchmark", "memory.csv"),
        files.read_json(experiment.results("benchmark") / "environment.json", "benchmark"),
        table("quantize", "variants.csv"),
        table("evaluate", "scores.csv"),
        table("evaluate", "answers.parquet"),
        pd.read_csv(ROOT / "data" / "published" / "fp8_serving.csv"),
        files.read_json(SEVEN / "run.json", "help") if there else None,
        pd.read_parquet(SEVEN / "samples.parquet") if there else None,
        pd.read_parquet(SEVEN / "embedded_answers.parquet") if there else None,
        files.read_json(experiment.results("vllm") / "check.json", "vllm-check")
        if (experiment.results("vllm") / "check.json").exists()
        else None,
    )


def seven_rows(timed: pd.DataFrame) -> pd.DataFrame:
    """One line a variant and batch at 7B dimensions: latency of whole requests, and the mean of their parts."""
    rows = []
    for (variant, batch), calls in timed.groupby(["variant", "batch"], sort=False):
        rows.append(
            {
                "variant": variant,
                "batch": batch,
                **bench.summarize(calls["latency_s"].tolist()),
                **calls[["prepare_s", "prefill_s", "decode_s"]].mean().to_dict(),
                "device_s": (calls["prefill_s"] + calls["decode_s"]).mean(),
            }
        )
    return pd.DataFrame(rows).set_index(["variant", "batch"])


def ratio(study: DetectorResults, batch: int = 1, column: str = "latency_s_mean") -> float:
    """FP8 over BF16 at 7B dimensions; NaN where that run is not there."""
    if study.timed is None:
        return np.nan
    rows = seven_rows(study.timed)
    return rows.loc[("fp8", batch), column] / rows.loc[("bf16", batch), column]


def weight_share(study: DetectorResults) -> float:
    """Bytes of the quantized blocks over those in BF16, of the embedded detector."""
    return float(study.variants.set_index("variant").loc[study.fp8, "blocks_share"])


def agrees(study: DetectorResults) -> bool:
    """Whether FP8 answers as the base does: exact boxes, or a mean shift of at most a pixel."""
    row = study.scores.set_index("variant").loc[study.fp8]
    return bool(row["same_box"] >= EXACT or row["shift_px_mean"] <= SHIFT_PX)


def recommendation(study: DetectorResults) -> str:
    """The verdict that the bars give, which were set before any run, and under it each bar."""
    row = study.scores.set_index("variant").loc[study.fp8]
    whole, device = ratio(study), ratio(study, column="device_s")
    lines = [
        f"- Bytes of the quantized layers: {md.number(100 * weight_share(study), 1)} % of bf16 (bar: at most {md.number(100 * WEIGHTS, 0)} %), "
        + ("met." if weight_share(study) <= WEIGHTS else "missed."),
        f"- Boxes: {md.number(100 * row.same_box, 1)} % are exactly those of bf16, and the edges move by {md.number(row.shift_px_mean, 2)} px on average "
        f"(bar: at least {md.number(100 * EXACT, 0)} % exact, or at most {md.number(SHIFT_PX, 0)} px), "
        + ("met." if agrees(study) else "missed."),
        f"- Time of a whole request at 7B dimensions (bar: at most {FASTER} of bf16): {_speed_word(whole, device)}",
    ]
    return _verdict(study, whole) + "\n\n" + "\n".join(lines)


def _speed_word(whole: float, device: float) -> str:
    """The measured share of the time, and what it means for the bar."""
    if np.isnan(whole):
        return f"{md.MISSING}."
    if whole <= FASTER:
        return f"{md.number(whole, 3)}, met."
    part = f"{md.number(whole, 3)}, missed; the part on the GPU alone takes {md.number(device, 3)}"
    return f"{part}, which would meet it." if device <= FASTER else f"{part}."


def _verdict(study: DetectorResults, whole: float) -> str:
    check = "Check the boxes of your own fine-tune first: speed is measured on random weights of 7B dimensions, agreement on a far smaller model."
    if not (agrees(study) and weight_share(study) <= WEIGHTS):
        return "**Keep bf16**: FP8 misses a bar on boxes or bytes that was set before the run."
    if np.isnan(whole):
        return "**FP8 saves weights and keeps the boxes; whether it is faster is not measured here.** Decide on memory alone."
    if whole <= FASTER:
        return (
            f"**Use FP8 with dynamic scales** for a detector like this one on a GPU with FP8 units. {check}"
        )
    if whole < 1:
        return (
            f"**FP8 keeps the boxes, saves memory and is faster, but misses the bar of {FASTER} for a whole request.** It is the better server on a GPU "
            f"with FP8 units if a request does not wait for its picture to be prepared on the processor. {check}"
        )
    return "**FP8 keeps the boxes and saves memory, but is not faster.** Decide on memory alone."


def _setup(study: DetectorResults) -> str:
    run, environment, serve = study.run, study.environment, study.experiment.serving
    rows = [
        (
            "Hardware",
            "RTX 6000 Ada, 48 GB",
            environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores",
            run and run["device"],
        ),
        (
            "Engine",
            "vLLM 0.11.0",
            f"{serve.engine}, in process" if serve.engine == "transformers" else "vllm, OpenAI API",
            "in process, compiled, CUDA graphs",
        ),
        (
            "Software",
            "container vllm-openai",
            f"torch {environment['packages']['torch']}, transformers {environment['packages']['transformers']}",
            run and f"torch {run['torch']}, CUDA {run['cuda']}",
        ),
        (
            "Model",
            "Qwen2-VL-7B, fine-tuned",
            "bundled Qwen2-VL of 3.7 million parameters",
            run and "Qwen2-VL-7B dimensions, random weights",
        ),
        (
            "Commit",
            "-",
            f"{environment['commit']}{', with uncommitted code' if environment['uncommitted_code'] else ''}",
            run and run.get("commit", md.MISSING),
        ),
        (
            "GPU memory utilization",
            "0.5",
            str(serve.memory) if serve.engine == "vllm" else "no reservation",
            "no reservation",
        ),
        (
            "Maximum length",
            "4,096 tokens",
            f"{serve.max_model_len:,} tokens" if serve.engine == "vllm" else "prompt and 32 tokens",
            run and f"{run['prompt_tokens'] + run['answer_tokens']:,} tokens",
        ),
        (
            "Picture",
            "1024 x 759",
            "448 x 336, 336 x 448 or 392 x 392",
            run and " x ".join(map(str, run["picture"])),
        ),
        (
            "Requests",
            "5, the first included",
            f"{study.rows['n'].max()} warm ones per variant and concurrency",
            run and f"{study.timed.groupby(['variant', 'batch']).size().max()} warm ones per variant",
        ),
    ]
    return md.table(["Setup", "Published", "Demo detector", "7B dimensions"], rows, left=4)


def _variant(study: DetectorResults, column: str, variant: str, seven: str) -> str:
    """The published list of one configuration, row by row."""
    stated = study.published[study.published["table"] == "Results"].set_index("metric")[column]
    row = study.rows[
        (study.rows["variant"] == variant) & (study.rows["concurrency"] == study.rows["concurrency"].min())
    ].iloc[0]
    memory, cold = (
        study.memory[study.memory["variant"] == variant].mean(numeric_only=True),
        study.cold[study.cold["variant"] == variant].mean(numeric_only=True),
    )
    there = study.timed is not None
    large = seven_rows(study.timed).loc[(seven, 1)] if there else pd.Series(dtype=float)
    held = study.run["memory"][seven] if there else {}
    size = sum(study.run["bytes"][seven].values()) if there else None
    ms = md.milliseconds
    rows = [
        (
            "GPU memory (MB)",
            f"{stated['GPU memory']:,.0f}",
            md.MISSING + " (no GPU)"
            if study.experiment.runtime.device == "cpu"
            else md.megabytes(memory["total_bytes"], 0),
            md.megabytes(held.get("card_used_bytes"), 0),
        ),
        ("Process memory (MB)", md.MISSING, md.megabytes(memory["total_bytes"], 0), md.MISSING),
        (
            "Model weights (MB)",
            f"{1e3 * stated['model weights']:,.0f}" if "model weights" in stated else md.MISSING,
            md.megabytes(memory["weight_bytes"], 2),
            md.megabytes(size, 0),
        ),
        (
            "KV cache reserved (MB)",
            md.MISSING,
            md.megabytes(memory["kv_bytes"], 2),
            md.megabytes(held.get("kv_bytes"), 1),
        ),
        (
            "Mean latency (ms)",
            f"{stated['mean latency']:,.0f} (with the first)",
            ms(row["latency_s_mean"]),
            ms(large.get("latency_s_mean")),
        ),
        (
            "Minimum latency (ms)",
            f"{stated['minimum latency']:,.0f}",
            ms(row["latency_s_min"]),
            ms(large.get("latency_s_min")),
        ),
        (
            "Maximum latency (ms)",
            f"{stated['maximum latency']:,.0f} (the first)",
            ms(row["latency_s_max"]),
            ms(large.get("latency_s_max")),
        ),
    ]
    rows += [
        (f"{name} latency (ms)", md.MISSING, ms(row[key]), ms(large.get(key)))
        for name, key in (("p50", "latency_s_p50"), ("p90", "latency_s_p90"), ("p99", "latency_s_p99"))
    ]
    rows += [
        (
            "Steady-state latency (ms)",
            f"~{stated['steady-state latency']:,.0f}",
            f"{ms(row['latency_s_p50'])} (p50)",
            f"{ms(large.get('latency_s_p50'))} (p50)",
        ),
        (
            "Cold start (ms)",
            f"{stated['maximum latency']:,.0f} (first request)",
            f"{ms(cold['cold_start_s'], 0)} (process start to first answer)",
            md.MISSING + " (one process for both: who came second found kernels compiled)"
            if there
            else md.MISSING,
        ),
        (
            "Output",
            "[0.05, 0.38, 0.55, 0.6]",
            f"{study.answers[study.answers['variant'] == variant].iloc[0]['text']} (first held-out picture)",
            "random weights",
        ),
    ]
    return md.table(["", "Published", f"Demo detector ({variant})", "7B dimensions, H200"], rows)


def _comparison(study: DetectorResults) -> str:
    stated = study.published[study.published["table"] == "Comparison"].set_index("metric")
    run = study.run
    score = study.scores.set_index("variant")
    memory = study.memory.groupby("variant").mean(numeric_only=True)
    first = study.rows[study.rows["concurrency"] == study.rows["concurrency"].min()].set_index("variant")

    def change(new, old) -> str:
        return md.number(100 * (new / old - 1), 0, True, " %")

    large = (
        {name: sum(run["bytes"][name].values()) for name in ("bf16", "fp8")}
        if run
        else {"bf16": np.nan, "fp8": np.nan}
    )
    card = (
        {name: run["memory"][name]["card_used_bytes"] for name in ("bf16", "fp8")}
        if run
        else {"bf16": np.nan, "fp8": np.nan}
    )
    lines = []
    for metric, unit, demo, big in (
        (
            "model weights",
            "MB",
            [memory.loc[v, "weight_bytes"] / 1e6 for v in (study.base, study.fp8)],
            [large[n] / 1e9 for n in ("bf16", "fp8")],
        ),
        ("total GPU memory", "MB", None, [card[n] / 1e9 for n in ("bf16", "fp8")]),
        (
            "steady-state latency",
            "ms",
            [1e3 * first.loc[v, "latency_s_p50"] for v in (study.base, study.fp8)],
            [
                1e3 * seven_rows(study.timed).loc[(n, 1), "latency_s_p50"] if run else np.nan
                for n in ("bf16", "fp8")
            ],
        ),
    ):
        row = stated.loc[metric]
        off = abs(row.change_pct - 100 * (row.quantized / row.original - 1)) > 0.5 + 1e-9
        own = f"; by its own figures {change(row.quantized, row.original)}" if off else ""
        published = f"{row.original:g} to {row.quantized:g} {row.unit} ({row.change_pct:+.0f} %{own})"
        small = (
            md.MISSING + " (no GPU)"
            if demo is None
            else f"{md.number(demo[0], 2)} to {md.number(demo[1], 2)} {unit} ({change(demo[1], demo[0])})"
        )
        lines.append(
            (
                metric,
                published,
                small,
                f"{md.number(big[0], 1)} to {md.number(big[1], 1)} {row.unit} ({change(big[1], big[0])})"
                if run
                else md.MISSING,
            )
        )
    row = score.loc[study.fp8]
    gpu = (
        md.number(
            100 * float((study.on_gpu["bf16"] == study.on_gpu["fp8"]).mean()),
            1,
            unit=" % of the demo detector's answers equal on this GPU",
        )
        if run
        else md.MISSING
    )
    lines.append(
        (
            "prediction accuracy",
            "identical on one picture",
            f"IoU {md.value_ci(score.loc[study.base, 'iou_mean'], score.loc[study.base, 'iou_low'], score.loc[study.base, 'iou_high'], 4)} to "
            f"{md.value_ci(row.iou_mean, row.iou_low, row.iou_high, 4)}; {md.number(100 * row.same_box, 1)} % exact boxes, shift {md.number(row.shift_px_mean, 2)} px",
            gpu,
        )
    )
    return md.table(
        [
            "Metric",
            "Published",
            "Demo detector (CPU)" if study.experiment.runtime.device == "cpu" else "Demo detector",
            "7B dimensions, H200",
        ],
        lines,
        left=4,
    ) + (
        "\n\nOn a CPU, FP8 numbers are multiplied in fp32, so the latency of the demo detector says nothing about FP8."
        if study.experiment.runtime.device == "cpu"
        else ""
    )


def _memory(study: DetectorResults) -> str:
    stated = study.published[study.published["table"] == "Comparison"].set_index("metric")
    rest = {
        c: stated.loc["total GPU memory", c] - stated.loc["model weights", c]
        for c in ("original", "quantized")
    }
    text = (
        "The published report wonders why FP8 did not lower GPU memory. The answer is accounting: a server takes a fixed share of the card (0.5 of 48 GB there) and gives "
        f"the KV cache whatever weights and activations leave. By the published figures that rest is {rest['original']:.1f} GB with BF16 and {rest['quantized']:.1f} GB with FP8: the weights went down "
        f"by {stated.loc['model weights', 'original'] - stated.loc['model weights', 'quantized']:.1f} GB and the room for requests went up by about as much. "
        "The total says how much the server was told to take, not what the model needs."
    )
    if study.run:
        parts, held = study.run["bytes"], study.run["memory"]
        kv = {n: held[n]["kv_bytes"] for n in held}
        text += (
            "\n\nWithout a reservation the saving shows in full. Measured at 7B dimensions on the H200, one model at a time:\n\n"
            + md.table(
                ["MB (10^6 bytes)", "BF16", "FP8", "FP8 / BF16"],
                [
                    (label, md.megabytes(a, 0), md.megabytes(b, 0), md.number(b / a, 3))
                    for label, a, b in (
                        (
                            "blocks of the language model (quantized)",
                            parts["bf16"]["blocks"],
                            parts["fp8"]["blocks"],
                        ),
                        ("vision tower, BF16 in both", parts["bf16"]["vision"], parts["fp8"]["vision"]),
                        (
                            "lm_head and embedding, BF16 in both",
                            parts["bf16"]["head"] + parts["bf16"]["other"],
                            parts["fp8"]["head"] + parts["fp8"]["other"],
                        ),
                        ("1. all weights", sum(parts["bf16"].values()), sum(parts["fp8"].values())),
                        ("2. KV cache, one request", kv["bf16"], kv["fp8"]),
                        (
                            "3. taken on the card",
                            held["bf16"]["card_used_bytes"],
                            held["fp8"]["card_used_bytes"],
                        ),
                    )
                ],
            )
        )
    return text


def _latency(study: DetectorResults) -> str:
    rows = [
        (
            r.variant,
            r.concurrency,
            r.n,
            *(
                md.milliseconds(getattr(r, f"latency_s_{k}"))
                for k in ("mean", "min", "max", "p50", "p90", "p99")
            ),
            md.number(r.requests_per_s, 1),
            r.failed,
        )
        for r in study.rows.itertuples()
    ]
    text = (
        "Demo detector, "
        + (
            "on the CPU, where FP8 is computed in fp32 from the FP8 numbers: this tests the function, and "
            "**nothing about speed follows from this table.**"
            if study.experiment.runtime.device == "cpu"
            else "on the GPU."
        )
        + "\n\n"
        + md.table(
            [
                "Variant",
                "In flight",
                "n",
                "mean (ms)",
                "min",
                "max",
                "p50",
                "p90",
                "p99",
                "requests/s",
                "failed",
            ],
            rows,
        )
    )
    if study.run:
        seven, copy = seven_rows(study.timed), study.run["copy_bytes_per_s"]
        rows = [
            (
                name,
                batch,
                int(r.n),
                *(
                    md.milliseconds(r[k], 1)
                    for k in (
                        "latency_s_mean",
                        "latency_s_min",
                        "latency_s_max",
                        "latency_s_p50",
                        "latency_s_p90",
                        "prepare_s",
                        "prefill_s",
                        "decode_s",
                    )
                ),
            )
            for (name, batch), r in seven.iterrows()
        ]
        steps = study.run["answer_tokens"] - 1
        floors = {
            n: 1e3 * (study.run["bytes"][n]["blocks"] + study.run["bytes"][n]["head"]) / copy
            for n in ("bf16", "fp8")
        }
        took = {n: 1e3 * seven.loc[(n, 1), "decode_s"] / steps for n in ("bf16", "fp8")}
        text += (
            "\n\n7B dimensions on the H200, bf16 and FP8 taking turns in one process:\n\n"
            + md.table(
                [
                    "Variant",
                    "Batch",
                    "n",
                    "mean (ms)",
                    "min",
                    "max",
                    "p50",
                    "p90",
                    "JPEG to patches",
                    "picture and prompt",
                    "answer",
                ],
                rows,
            )
            + f"\n\nFP8 over BF16: {md.number(ratio(study), 3)} for a whole request, {md.number(ratio(study, column='device_s'), 3)} for the part on the GPU, "
            f"{md.number(ratio(study, 8), 3)} in batches of 8. Preparing the picture (resizing on one processor core) and the vision tower are the same in both; "
            f"reading prompt and picture is bound by multiplication, partly in that tower. Each answer token reads every weight once: at the measured {copy / 1e12:.2f} TB/s that takes "
            f"{floors['bf16']:.2f} ms in BF16 and {floors['fp8']:.2f} ms in FP8; it took {took['bf16']:.2f} and {took['fp8']:.2f} ms. "
            + _scaled_mm(seven)
            + "`fp8` uses a kernel that reads each weight once (`studies/fp8_serving/kernels.py`). Kernels of one request, by total time:\n\n"
            + "\n\n".join(
                f"{name}:\n\n"
                + md.table(
                    ["Kernel", "Calls", "ms"],
                    [(f"`{e['kernel'][:70]}`", e["calls"], e["ms"]) for e in events[:8]],
                )
                for name, events in study.run["profile"].items()
                if "scaled_mm" not in name
            )
        )
    return text


def _hardware(study: DetectorResults) -> str:
    text = (
        "The published note explains the unchanged memory by missing FP8 units in the RTX 6000 Ada. The reservation explains it (see *Memory impact*), and that card has FP8 units: its compute capability is 8.9, "
        "for which [vLLM multiplies in FP8](https://docs.vllm.ai/en/stable/features/quantization/fp8/). Cards before it run FP8 weights through Marlin. What the unit decides is the matrix multiplication: "
        "without it, weights are turned back into 16 bits on the fly, which still halves the bytes read for each answer token but saves nothing where multiplication is the limit."
    )
    if study.run:
        seven = seven_rows(study.timed)
        text += (
            f" With it, reading a batch of 8 pictures and prompts took {md.number(seven.loc[('fp8', 8), 'prefill_s'] / seven.loc[('bf16', 8), 'prefill_s'], 2)} of the BF16 time, "
            f"and the answers {md.number(seven.loc[('fp8', 8), 'decode_s'] / seven.loc[('bf16', 8), 'decode_s'], 2)}."
        )
    return text


def _quality(study: DetectorResults) -> str:
    rows = [
        (
            r.variant,
            r.pictures,
            md.value_ci(r.iou_mean, r.iou_low, r.iou_high, 4),
            "-"
            if r.variant == study.base
            else md.value_ci(r.iou_diff, r.iou_diff_low, r.iou_diff_high, 4, True),
            md.number(r.iou_min, 2),
            md.number(100 * r.same_text, 1),
            md.number(100 * r.same_box, 1),
            md.number(r.shift_px_mean, 2),
            md.number(r.shift_px_max, 1),
            r.failed,
        )
        for r in study.scores.itertuples()
    ]
    loads = [
        (
            r.variant,
            "yes" if r.loads else "no",
            f"{r.transformers:g} of {r.of}"
            if pd.notna(r.transformers)
            else f"{md.MISSING} (compressed-tensors is not installed)",
            md.megabytes(r.blocks_bytes),
            md.number(100 * r.blocks_share, 1),
            md.number(100 * r.model_share, 1),
        )
        for r in study.variants.itertuples()
    ]
    return (
        md.table(
            [
                "Variant",
                "Pictures",
                "IoU with the truth",
                "Difference",
                "Lowest",
                "Same text (%)",
                "Same box (%)",
                "Shift (px)",
                "Largest",
                "Failed",
            ],
            rows,
        )
        + "\n\nIoU is the overlap of two boxes over their union. Brackets are 95 % intervals over pictures. *Shift* is the mean distance of the four edges from the box of bf16. A failed answer (no box, or a picture that does not decode) counts as IoU 0.\n\n"
        + md.table(
            [
                "Checkpoint",
                "Loads here",
                "Same answer from transformers",
                "Blocks (MB)",
                "of BF16 (%)",
                "Whole model, of BF16 (%)",
            ],
            loads,
        )
    )


def _interoperability(study: DetectorResults) -> str:
    if study.vllm is None:
        return f"Answers of a real vLLM server: {md.MISSING} (`make vllm-check` measures it)."
    rows = []
    for v in study.vllm["variants"]:
        same = (
            [
                f"{v[key]} of {v['pictures']}"
                for key in ("equal_to_transformers", "equal_to_transformers_fp32", "equal_to_in_process")
            ]
            if "refused" not in v
            else [v["refused"], "-", "-"]
        )
        rows.append(
            (
                v["variant"],
                v["pictures"],
                *same,
                *(["-", "-"] if "refused" in v else [md.number(v["shift_px_max"], 2), v["failed"]]),
            )
        )
    return (
        f"The exported checkpoints were served by a real vLLM ({study.vllm['vllm']}, a CPU build) that computes in fp32 around the FP8 multiplications. The reference is transformers in fp64, which adds "
        "no rounding of its own; the table compares with its answers in fp32 and with the engine in process as well:\n\n"
        + md.table(
            [
                "Checkpoint",
                "Pictures",
                "Same answer as transformers",
                "in fp32",
                "as in process",
                "Largest shift (px)",
                "Failed",
            ],
            rows,
        )
        + _unsteady(study.vllm["variants"])
    )


def _unsteady(variants: list[dict]) -> str:
    """Whether the answers that differ in fp32 are those that transformers itself does not hold there."""
    lines = []
    for v in variants:
        apart = v["pictures"] - v["equal_to_transformers_fp32"] if "refused" not in v else 0
        if apart:
            lines.append(
                f"`{v['variant']}` in fp32: {apart} answers differ. Every layer rounds its inputs to three bits of mantissa again, so a difference in the last digit of fp32 can become one of up to 12 %. "
                f"With random noise of {v['grain']:g} on the inputs of the layers, drawn {v['draws']} times, {v['unsteady']} of the {v['pictures']} answers change at least once, {v['apart_and_unsteady']} of those {apart} among them."
            )
    return "".join(f"\n\n{line}" for line in lines)


CAPTIONS = {
    "predictions.png": "Held-out pictures with the true box and those of bf16 and FP8; the first half are those where the two differ most.",
    "iou.png": "How FP8 changes the overlap with the true box, picture by picture.",
    "latency.png": "Warm requests to the demo detector.",
    "latency_7b.png": "Time of one request at 7B dimensions on the H200, by part.",
    "memory_7b.png": "Where the bytes are: measured at 7B dimensions, and as published.",
}


def _figures(study: DetectorResults, *names: str) -> str:
    """Those of the named figures that were drawn."""
    return "\n\n".join(
        md.picture(f"../../../figures/{study.experiment.name}/{name}", CAPTIONS[name])
        for name in names
        if (study.experiment.figures / name).exists()
    )


def _question(study: DetectorResults) -> str:
    return (
        "A vision-language model looks at a product photograph and answers with the box of its nutrition label. Does it still find the box when its language "
        "model is stored and computed in FP8 (8-bit floating point), and what does that save? Three sources stand side by side; they are not one experiment:\n\n"
        "- **published**: the figures of a published serving report, read from its text;\n"
        f"- the **demo detector**, a small model trained for this repository ({int(study.scores['pictures'].max()):,} held-out pictures), which says whether the boxes stay;\n"
        "- **7B dimensions with random weights** on an H200, which say what FP8 does to time and memory at the published size, and nothing about accuracy."
    )


def _not_measured(study: DetectorResults) -> str:
    lines = [
        "A fine-tuned 7B model. The published pictures are photographs; the demo detector sees drawn ones with one table each.",
        "Accuracy at 7B dimensions: random weights have no outlier channels, so time and bytes carry over to trained weights and agreement does not.",
        "More than one seed of training and of calibration. The intervals cover the pictures only.",
        "Speed of a server: scheduling, HTTP and continuous batching come on top of what is measured in process (engine `vllm` measures it).",
    ]
    lines += ["Time and memory at 7B dimensions: that run's files are missing."] if study.run is None else []
    lines += (
        ["Answers of a real vLLM server (`make vllm-check` measures them)."] if study.vllm is None else []
    )
    return "\n".join(f"- {line}" for line in lines)


def _scaled_mm(seven: pd.DataFrame) -> str:
    """What torch's own FP8 multiplication makes of single tokens."""
    if ("fp8 scaled_mm", 1) not in seven.index:
        return ""
    share = seven.loc[("fp8 scaled_mm", 1), "decode_s"] / seven.loc[("bf16", 1), "decode_s"]
    return f"`fp8 scaled_mm` uses torch's FP8 multiplication for single tokens too, with tiles made for many tokens: the answer takes {md.number(share, 2)} of the BF16 time. "


def text(study: DetectorResults) -> str:
    """The report: question, answer, one table, one figure, what was not measured; everything else folded."""
    shots = _figures(study, "predictions.png", "iou.png")
    folded = (
        ("Do the boxes stay? Overlap, exact boxes and shift", f"{_quality(study)}\n\n{shots}"),
        ("Do other engines read the exported checkpoints?", _interoperability(study)),
        ("Memory impact", f"{_memory(study)}\n\n{_figures(study, 'memory_7b.png')}"),
        ("Latency impact", f"{_latency(study)}\n\n{_figures(study, 'latency.png')}"),
        ("Every published row: baseline (bfloat16)", _variant(study, "original", study.base, "bf16")),
        ("Every published row: quantized (FP8)", _variant(study, "quantized", study.fp8, "fp8")),
        ("Hardware note: which GPUs have FP8 units", _hardware(study)),
        ("Experimental setup", _setup(study)),
    )
    return md.document(
        f"# {study.experiment.title}",
        "## The question",
        _question(study),
        "## The answer",
        recommendation(study),
        "## The numbers",
        _comparison(study),
        _figures(study, "latency_7b.png"),
        "## What was not measured",
        _not_measured(study),
        *(md.fold(title, body) for title, body in folded),
    )


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
