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
class Study:
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


def load(experiment: DetectionExperiment) -> Study:
    """Read the results.

    Raises:
        ColqError: a stage has not run yet.
    """
    def table(stage: str, name: str):
        return files.read_table(experiment.results(stage) / name, f"{stage} EXPERIMENT={experiment.name}")

    there = (SEVEN / "run.json").exists()
    return Study(experiment, table("benchmark", "rows.csv"), table("benchmark", "samples.parquet"), table("benchmark", "cold.csv"),
                 table("benchmark", "memory.csv"), files.read_json(experiment.results("benchmark") / "environment.json", "benchmark"),
                 table("quantize", "variants.csv"), table("evaluate", "scores.csv"), table("evaluate", "answers.parquet"),
                 pd.read_csv(ROOT / "data" / "published" / "fp8_serving.csv"),
                 files.read_json(SEVEN / "run.json", "help") if there else None,
                 pd.read_parquet(SEVEN / "samples.parquet") if there else None, pd.read_parquet(SEVEN / "embedded_answers.parquet") if there else None,
                 files.read_json(experiment.results("vllm") / "check.json", "vllm-check") if (experiment.results("vllm") / "check.json").exists() else None)


def seven_rows(timed: pd.DataFrame) -> pd.DataFrame:
    """One line a variant and batch at 7B dimensions: latency of whole requests, and the mean of their parts."""
    rows = []
    for (variant, batch), mine in timed.groupby(["variant", "batch"], sort=False):
        rows.append({"variant": variant, "batch": batch, **bench.summarize(mine["latency_s"].tolist()),
                     **mine[["prepare_s", "prefill_s", "decode_s"]].mean().to_dict(), "device_s": (mine["prefill_s"] + mine["decode_s"]).mean()})
    return pd.DataFrame(rows).set_index(["variant", "batch"])


def ratio(study: Study, batch: int = 1, column: str = "latency_s_mean") -> float:
    """FP8 over BF16 at 7B dimensions; NaN where that run is not there."""
    if study.timed is None:
        return np.nan
    rows = seven_rows(study.timed)
    return rows.loc[("fp8", batch), column] / rows.loc[("bf16", batch), column]


def weight_share(study: Study) -> float:
    """Bytes of the quantized blocks over those in BF16, of the embedded detector."""
    return float(study.variants.set_index("variant").loc[study.fp8, "blocks_share"])


def agrees(study: Study) -> bool:
    """Whether FP8 answers as the base does: exact boxes, or a mean shift of at most a pixel."""
    row = study.scores.set_index("variant").loc[study.fp8]
    return bool(row["same_box"] >= EXACT or row["shift_px_mean"] <= SHIFT_PX)


def recommendation(study: Study) -> str:
    """The production recommendation that the stated bars give."""
    row = study.scores.set_index("variant").loc[study.fp8]
    lines = [
        f"- Weights of the quantized part at most {md.number(100 * WEIGHTS, 0)} % of BF16: {md.number(100 * weight_share(study), 1)} %, "
        + ("met." if weight_share(study) <= WEIGHTS else "missed."),
        f"- At least {md.number(100 * EXACT, 0)} % exact boxes, or a mean shift of at most {md.number(SHIFT_PX, 0)} px: {md.number(100 * row.same_box, 1)} % exact, "
        f"{md.number(row.shift_px_mean, 2)} px, " + ("met." if agrees(study) else "missed."),
        f"- Latency at most {FASTER} of BF16 on a GPU with FP8 units: {md.number(ratio(study), 3)} for a whole request, "
        f"{md.number(ratio(study, column='device_s'), 3)} for the part on the GPU, "
        + ("met." if ratio(study) <= FASTER else "met on the GPU, missed with the picture's preparation." if ratio(study, column="device_s") <= FASTER else "missed.")]
    good = agrees(study) and weight_share(study) <= WEIGHTS
    if good and ratio(study) <= FASTER:
        verdict = ("**Use FP8 with dynamic scales** for a detector like this one on a GPU with FP8 units, and check the boxes of your own fine-tune first: "
                   "speed is measured on random weights of its dimensions, agreement on a far smaller model.")
    elif good and ratio(study) < 1:
        verdict = (f"**FP8 keeps the boxes, saves the weights and is faster, but a whole request misses the bar of {FASTER}** that was set before the run. On a GPU with FP8 units it is the better "
                   "server where preparing the picture is not what a request waits for. Check the boxes of your own fine-tune first: speed is measured on random weights of its dimensions, "
                   "agreement on a far smaller model.")
    elif good:
        verdict = "**FP8 saves weights and keeps the boxes; whether it is faster is not measured here.** Decide on memory alone."
    else:
        verdict = "**Keep BF16**: a bar that was set before the run is missed."
    return verdict + "\n\n" + "\n".join(lines)


def _setup(study: Study) -> str:
    run, environment, serve = study.run, study.environment, study.experiment.serving
    rows = [
        ("Hardware", "RTX 6000 Ada, 48 GB", environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores", run and run["device"]),
        ("Engine", "vLLM 0.11.0", f"{serve.engine}, in process" if serve.engine == "transformers" else "vllm, OpenAI API", "in process, compiled, CUDA graphs"),
        ("Software", "container vllm-openai", f"torch {environment['packages']['torch']}, transformers {environment['packages']['transformers']}",
         run and f"torch {run['torch']}, CUDA {run['cuda']}"),
        ("Model", "Qwen2-VL-7B, fine-tuned", "embedded Qwen2-VL of 3.7 million parameters", run and "Qwen2-VL-7B dimensions, random weights"),
        ("Commit", "-", f"{environment['commit']}{', with uncommitted code' if environment['uncommitted_code'] else ''}", run and run.get("commit", md.MISSING)),
        ("GPU memory utilization", "0.5", str(serve.memory) if serve.engine == "vllm" else "no reservation", "no reservation"),
        ("Maximum length", "4,096 tokens", f"{serve.max_model_len:,} tokens" if serve.engine == "vllm" else "prompt and 32 tokens", run and f"{run['prompt_tokens'] + run['answer_tokens']:,} tokens"),
        ("Picture", "1024 x 759", "448 x 336, 336 x 448 or 392 x 392", run and " x ".join(map(str, run["picture"]))),
        ("Requests", "5, the first included", f"{study.rows['n'].max()} warm ones a variant and concurrency", run and f"{study.timed.groupby(['variant', 'batch']).size().max()} warm ones a variant")]
    return md.table(["Setup", "Published", "Embedded detector", "7B dimensions"], rows, left=4)


def _variant(study: Study, title: str, column: str, variant: str, seven: str) -> str:
    """The published list of one configuration, row by row."""
    stated = study.published[study.published["table"] == "Results"].set_index("metric")[column]
    mine = study.rows[(study.rows["variant"] == variant) & (study.rows["concurrency"] == study.rows["concurrency"].min())].iloc[0]
    memory, cold = study.memory[study.memory["variant"] == variant].mean(numeric_only=True), study.cold[study.cold["variant"] == variant].mean(numeric_only=True)
    there = study.timed is not None
    large = seven_rows(study.timed).loc[(seven, 1)] if there else pd.Series(dtype=float)
    held = study.run["memory"][seven] if there else {}
    size = sum(study.run["bytes"][seven].values()) if there else None
    ms = md.milliseconds
    rows = [("GPU memory (MB)", f"{stated['GPU memory']:,.0f}", md.MISSING + " (no GPU)" if study.experiment.runtime.device == "cpu" else md.megabytes(memory["total_bytes"], 0),
             md.megabytes(held.get("card_used_bytes"), 0)),
            ("Process memory (MB)", md.MISSING, md.megabytes(memory["total_bytes"], 0), md.MISSING),
            ("Model weights (MB)", f"{1e3 * stated['model weights']:,.0f}" if "model weights" in stated else md.MISSING, md.megabytes(memory["weight_bytes"], 2), md.megabytes(size, 0)),
            ("KV cache reserved (MB)", md.MISSING, md.megabytes(memory["kv_bytes"], 2), md.megabytes(held.get("kv_bytes"), 1)),
            ("Mean latency (ms)", f"{stated['mean latency']:,.0f} (with the first)", ms(mine["latency_s_mean"]), ms(large.get("latency_s_mean"))),
            ("Minimum latency (ms)", f"{stated['minimum latency']:,.0f}", ms(mine["latency_s_min"]), ms(large.get("latency_s_min"))),
            ("Maximum latency (ms)", f"{stated['maximum latency']:,.0f} (the first)", ms(mine["latency_s_max"]), ms(large.get("latency_s_max")))]
    rows += [(f"{name} latency (ms)", md.MISSING, ms(mine[key]), ms(large.get(key))) for name, key in (("p50", "latency_s_p50"), ("p90", "latency_s_p90"), ("p99", "latency_s_p99"))]
    rows += [("Steady-state latency (ms)", f"~{stated['steady-state latency']:,.0f}", f"{ms(mine['latency_s_p50'])} (p50)", f"{ms(large.get('latency_s_p50'))} (p50)"),
             ("Cold start (ms)", f"{stated['maximum latency']:,.0f} (first request)", f"{ms(cold['cold_start_s'], 0)} (process start to first answer)",
              md.MISSING + " (one process for both: who came second found kernels compiled)" if there else md.MISSING),
             ("Output", "[0.05, 0.38, 0.55, 0.6]", f"{study.answers[study.answers['variant'] == variant].iloc[0]['text']} (first held-out picture)", "random weights")]
    return f"### {title}\n\n" + md.table(["", "Published", f"Embedded ({variant})", "7B dimensions, H200"], rows)


def _comparison(study: Study) -> str:
    stated = study.published[study.published["table"] == "Comparison"].set_index("metric")
    run = study.run
    score = study.scores.set_index("variant")
    memory = study.memory.groupby("variant").mean(numeric_only=True)
    first = study.rows[study.rows["concurrency"] == study.rows["concurrency"].min()].set_index("variant")

    def change(new, old) -> str:
        return md.number(100 * (new / old - 1), 0, True, " %")

    large = {name: sum(run["bytes"][name].values()) for name in ("bf16", "fp8")} if run else {"bf16": np.nan, "fp8": np.nan}
    card = {name: run["memory"][name]["card_used_bytes"] for name in ("bf16", "fp8")} if run else {"bf16": np.nan, "fp8": np.nan}
    lines = []
    for metric, unit, mine, big in (
            ("model weights", "MB", [memory.loc[v, "weight_bytes"] / 1e6 for v in (study.base, study.fp8)], [large[n] / 1e9 for n in ("bf16", "fp8")]),
            ("total GPU memory", "MB", None, [card[n] / 1e9 for n in ("bf16", "fp8")]),
            ("steady-state latency", "ms", [1e3 * first.loc[v, "latency_s_p50"] for v in (study.base, study.fp8)],
             [1e3 * seven_rows(study.timed).loc[(n, 1), "latency_s_p50"] if run else np.nan for n in ("bf16", "fp8")])):
        row = stated.loc[metric]
        off = abs(row.change_pct - 100 * (row.quantized / row.original - 1)) > 0.5 + 1e-9
        own = f"; by its own figures {change(row.quantized, row.original)}" if off else ""
        published = f"{row.original:g} to {row.quantized:g} {row.unit} ({row.change_pct:+.0f} %{own})"
        small = md.MISSING + " (no GPU)" if mine is None else f"{md.number(mine[0], 2)} to {md.number(mine[1], 2)} {unit} ({change(mine[1], mine[0])})"
        lines.append((metric, published, small, f"{md.number(big[0], 1)} to {md.number(big[1], 1)} {row.unit} ({change(big[1], big[0])})" if run else md.MISSING))
    row = score.loc[study.fp8]
    gpu = md.number(100 * float((study.on_gpu["bf16"] == study.on_gpu["fp8"]).mean()), 1, unit=" % of the embedded detector's answers alike on this GPU") if run else md.MISSING
    lines.append(("prediction accuracy", "identical on one picture", f"IoU {md.value_ci(score.loc[study.base, 'iou_mean'], score.loc[study.base, 'iou_low'], score.loc[study.base, 'iou_high'], 4)} to "
                  f"{md.value_ci(row.iou_mean, row.iou_low, row.iou_high, 4)}; {md.number(100 * row.same_box, 1)} % exact boxes, shift {md.number(row.shift_px_mean, 2)} px", gpu))
    return md.table(["Metric", "Published", "Embedded detector", "7B dimensions, H200"], lines, left=4)


def _memory(study: Study) -> str:
    stated = study.published[study.published["table"] == "Comparison"].set_index("metric")
    rest = {c: stated.loc["total GPU memory", c] - stated.loc["model weights", c] for c in ("original", "quantized")}
    text = ("The published puzzle is one of accounting. A server takes a stated share of the card (0.5 of 48 GB there) and gives to the KV cache whatever weights and "
            f"activations leave of it. By the published figures that rest is {rest['original']:.1f} GB with BF16 and {rest['quantized']:.1f} GB with FP8: the weights went down "
            f"by {stated.loc['model weights', 'original'] - stated.loc['model weights', 'quantized']:.1f} GB and the room for requests went up by about as much. "
            "The total says how much the server was told to take, not what the model needs. It is no sign of missing FP8 units.")
    if study.run:
        parts, held = study.run["bytes"], study.run["memory"]
        kv = {n: held[n]["kv_bytes"] for n in held}
        text += ("\n\nWithout a reservation the saving shows in full. At 7B dimensions on the H200, one model at a time:\n\n" + md.table(
            ["MB (10^6 bytes)", "BF16", "FP8", "FP8 / BF16"],
            [(label, md.megabytes(a, 0), md.megabytes(b, 0), md.number(b / a, 3)) for label, a, b in (
                ("blocks of the language model (quantized)", parts["bf16"]["blocks"], parts["fp8"]["blocks"]),
                ("vision tower, BF16 in both", parts["bf16"]["vision"], parts["fp8"]["vision"]),
                ("lm_head and embedding, BF16 in both", parts["bf16"]["head"] + parts["bf16"]["other"], parts["fp8"]["head"] + parts["fp8"]["other"]),
                ("1. all weights", sum(parts["bf16"].values()), sum(parts["fp8"].values())),
                ("2. KV cache, one request", kv["bf16"], kv["fp8"]),
                ("3. taken on the card", held["bf16"]["card_used_bytes"], held["fp8"]["card_used_bytes"]))]))
    return text


def _latency(study: Study) -> str:
    rows = [(r.variant, r.concurrency, r.n, *(md.milliseconds(getattr(r, f"latency_s_{k}")) for k in ("mean", "min", "max", "p50", "p90", "p99")),
             md.number(r.requests_per_s, 1), r.failed) for r in study.rows.itertuples()]
    text = ("Embedded detector, " + ("on the CPU: here FP8 is computed in fp32 from the FP8 numbers. It tests the function and is slower by design; "
                                     "**no statement about speed follows from this table.**" if study.experiment.runtime.device == "cpu" else "on the GPU.")
            + "\n\n" + md.table(["Variant", "In flight", "n", "mean (ms)", "min", "max", "p50", "p90", "p99", "requests/s", "failed"], rows))
    if study.run:
        seven, copy = seven_rows(study.timed), study.run["copy_bytes_per_s"]
        rows = [(name, batch, int(r.n), *(md.milliseconds(r[k], 1) for k in ("latency_s_mean", "latency_s_min", "latency_s_max", "latency_s_p50", "latency_s_p90", "prepare_s", "prefill_s", "decode_s")))
                for (name, batch), r in seven.iterrows()]
        steps = study.run["answer_tokens"] - 1
        floors = {n: 1e3 * (study.run["bytes"][n]["blocks"] + study.run["bytes"][n]["head"]) / copy for n in ("bf16", "fp8")}
        took = {n: 1e3 * seven.loc[(n, 1), "decode_s"] / steps for n in ("bf16", "fp8")}
        text += ("\n\n7B dimensions on the H200, base and FP8 in one process and in turns:\n\n"
                 + md.table(["Variant", "Batch", "n", "mean (ms)", "min", "max", "p50", "p90", "JPEG to patches", "picture and prompt", "answer"], rows)
                 + f"\n\nFP8 over BF16: {md.number(ratio(study), 3)} for a whole request, {md.number(ratio(study, column='device_s'), 3)} for the part on the GPU, "
                 f"{md.number(ratio(study, 8), 3)} in batches of 8. Where the rest goes: preparing the picture (resizing on one processor core) and the vision tower are the same in both; "
                 f"reading prompt and picture is bound by multiplication and partly by that tower. An answer token reads every weight once: at the measured {copy / 1e12:.2f} TB/s that takes "
                 f"{floors['bf16']:.2f} ms in BF16 and {floors['fp8']:.2f} ms in FP8; it took {took['bf16']:.2f} and {took['fp8']:.2f} ms. "
                 "`fp8 scaled_mm` uses torch's FP8 product for single tokens as well: its tiles are made for many tokens, and it gains nothing. "
                 "`fp8` uses a product that reads each weight once (`studies/fp8_serving/kernels.py`). Kernels of one request, by total time:\n\n"
                 + "\n\n".join(f"{name}:\n\n" + md.table(["Kernel", "Calls", "ms"], [(f"`{e['kernel'][:70]}`", e["calls"], e["ms"]) for e in events[:8]])
                               for name, events in study.run["profile"].items() if "scaled_mm" not in name))
    return text


def _hardware(study: Study) -> str:
    text = ("The published note blames a missing FP8 unit of the RTX 6000 Ada for the unchanged memory; the reservation explains it (above), and that card has FP8 units: its compute capability is 8.9, "
            "for which [vLLM multiplies in FP8](https://docs.vllm.ai/en/stable/features/quantization/fp8/). Cards before it run FP8 weights through Marlin. What the unit decides is the product itself: "
            "without one, weights are turned back into 16 bits on the fly, which still halves the bytes read for each answer token, and saves nothing where multiplication is the limit.")
    if study.run:
        seven = seven_rows(study.timed)
        text += (f" With it, reading a batch of 8 pictures and prompts took {md.number(seven.loc[('fp8', 8), 'prefill_s'] / seven.loc[('bf16', 8), 'prefill_s'], 2)} of the BF16 time, "
                 f"and the answers {md.number(seven.loc[('fp8', 8), 'decode_s'] / seven.loc[('bf16', 8), 'decode_s'], 2)}.")
    return text


def _quality(study: Study) -> str:
    rows = [(r.variant, r.pictures, md.value_ci(r.iou_mean, r.iou_low, r.iou_high, 4), "-" if r.variant == study.base else md.value_ci(r.iou_diff, r.iou_diff_low, r.iou_diff_high, 4, True),
             md.number(r.iou_min, 2), md.number(100 * r.same_text, 1), md.number(100 * r.same_box, 1), md.number(r.shift_px_mean, 2), md.number(r.shift_px_max, 1), r.failed)
            for r in study.scores.itertuples()]
    loads = [(r.variant, "yes" if r.loads else "no", f"{r.transformers:g} of {r.of}" if pd.notna(r.transformers) else f"{md.MISSING} (compressed-tensors is not installed)",
              md.megabytes(r.blocks_bytes), md.number(100 * r.blocks_share, 1), md.number(100 * r.model_share, 1)) for r in study.variants.itertuples()]
    return (md.table(["Variant", "Pictures", "IoU with the truth", "Difference", "Lowest", "Same text (%)", "Same box (%)", "Shift (px)", "Largest", "Failed"], rows)
            + "\n\nBrackets: 95 % intervals over pictures. Shift: mean distance of the four edges from the base's box. A failed answer (no box, picture that does not decode) has IoU 0 and is counted.\n\n"
            + md.table(["Checkpoint", "Loads here", "Same answer from transformers", "Blocks (MB)", "of BF16 (%)", "Whole model, of BF16 (%)"], loads))


def _interoperability(study: Study) -> str:
    if study.vllm is None:
        return f"Answers of a real vLLM server: {md.MISSING} (`make vllm-check` measures it)."
    rows = []
    for v in study.vllm["variants"]:
        same = [f"{v[key]} of {v['pictures']}" for key in ("equal_to_transformers", "equal_to_transformers_fp32", "equal_to_in_process")] if "refused" not in v else [v["refused"], "-", "-"]
        rows.append((v["variant"], v["pictures"], *same, *(["-", "-"] if "refused" in v else [md.number(v["shift_px_max"], 2), v["failed"]])))
    return (f"The exported checkpoints through a real server ({study.vllm['vllm']}, a CPU build) that computes in fp32 around the FP8 products. The reference is transformers in fp64, which adds "
            "no rounding of its own; its answers in fp32 and those of the engine in process stand beside it:\n\n"
            + md.table(["Checkpoint", "Pictures", "Same answer as transformers", "in fp32", "as in process", "Largest shift (px)", "Failed"], rows) + _unsteady(study.vllm["variants"]))


def _unsteady(variants: list[dict]) -> str:
    """Whether the answers that part in fp32 are those that transformers itself does not hold there."""
    lines = []
    for v in variants:
        apart = v["pictures"] - v["equal_to_transformers_fp32"] if "refused" not in v else 0
        if apart:
            lines.append(f"`{v['variant']}` in fp32: {apart} answers part, because every layer rounds its inputs to three bits of mantissa again and a difference in the last digit of fp32 can become one of up to 12 %. "
                         f"With a disturbance of {v['grain']:g} on what enters the layers, {v['draws']} draws of it, {v['unsteady']} of the {v['pictures']} answers change at least once, {v['apart_and_unsteady']} of those {apart} among them.")
    return "".join(f"\n\n{line}" for line in lines)


def text(study: Study) -> str:
    """The report."""
    there = [name for name in ("predictions.png", "iou.png", "latency.png", "latency_7b.png", "memory_7b.png") if (study.experiment.figures / name).exists()]
    captions = {"predictions.png": "Held-out pictures with the true box, the base's and FP8's; the first half are those where the two differ most",
                "iou.png": "IoU of all held-out pictures", "latency.png": "Warm requests to the embedded detector",
                "latency_7b.png": "A request at 7B dimensions on the H200, by part", "memory_7b.png": "Where the bytes are: measured at 7B dimensions, and as published"}

    def figures(*names: str) -> str:
        return "\n\n".join(md.picture(f"../../../figures/{study.experiment.name}/{name}", captions[name]) for name in names if name in there)

    return md.document(
        f"# {study.experiment.title}",
        "What FP8 costs and gains a vision-language model that answers a product photograph with the box of its nutrition label. Three columns stand side by side and are not one experiment: "
        "the published figures; the **embedded detector**, small and trained for this repository, which says whether the boxes stay; and **7B dimensions with random weights** on an H200, "
        "which say what FP8 does to time and memory at the published size and nothing about accuracy.",
        "## Experimental setup", _setup(study),
        "## Results", _variant(study, "Baseline (bfloat16)", "original", study.base, "bf16"), _variant(study, "Quantized (FP8)", "quantized", study.fp8, "fp8"),
        "## Comparison", _comparison(study), figures("latency_7b.png"),
        "## Do the boxes stay?", _quality(study), _interoperability(study), figures("predictions.png", "iou.png"),
        "## Analysis", "### Memory impact", _memory(study), figures("memory_7b.png"), "### Latency impact", _latency(study), figures("latency.png"),
        "## Production recommendation", recommendation(study), "## Hardware note", _hardware(study),
        "## What these results cannot tell", "\n".join(f"- {line}" for line in (
            "The published pictures are photographs; here they are drawn, with one table each. A fine-tuned 7B model was not run.",
            "Random weights have no outlier channels: time and bytes carry over to trained weights, agreement does not.",
            "One seed of training and of calibration. The intervals cover the pictures only.",
            "A server adds scheduling, HTTP and continuous batching to what is measured in process; with engine `vllm` the same notebooks measure it.")))


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
