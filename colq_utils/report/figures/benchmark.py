"""Figures of 01_inspect and 04_benchmark, drawn from their result files, one message each.

Okabe and Ito's colours stay apart for colour-blind readers; the same variant and the same part of the
model have one colour in every figure. Sizes suit a README 900 pixels wide. MB and GB are 10^6 and 10^9 bytes.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from colq_utils.base.backends import ON_GPU
from colq_utils.base.config import Experiment, Variant
from colq_utils.base.files import read_table
from colq_utils.report import results
from colq_utils.report.figures import drawing

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
#: Part of a model -> its name and colour.
PARTS = {
    "language_model": ("language model blocks", "#0072B2"),
    "embedding": ("embedding table", "#56B4E9"),
    "visual": ("vision tower", "#E69F00"),
    "projection": ("projection", "#009E73"),
    "lm_head": ("lm_head (stored, never used)", "#BBBBBB"),
    "other": ("other", "#777777"),
}
#: Device -> metric -> name of its bars.
PROCESS = {
    "cpu": {
        "rss_before_load_bytes": "libraries only",
        "rss_loaded_bytes": "model loaded",
        "peak_rss_bytes": "peak of any workload",
    },
    "cuda": {
        "allocated_bytes": "model loaded",
        "peak_allocated_bytes": "peak allocated of any workload",
        "peak_reserved_bytes": "peak reserved of any workload",
    },
}
PROCESS_COLOURS = ("#BBBBBB", "#009E73", "#D55E00")
KERNELS = {"bf16": "bf16", "fp8": "FP8", "fp8 inputs ready": "FP8, inputs already converted"}
BARS = {"elinewidth": 1, "ecolor": "#333333"}


def bytes_per_tower(experiment: Experiment) -> Figure:
    """Stacked bars of a checkpoint's bytes by part: as stored, and predicted per scheme in groups of 128."""
    towers = read_table(experiment.results("inspect") / "towers.csv", "inspect").set_index("tower")["bytes"]
    predicted = read_table(experiment.results("inspect") / "predicted.csv", "inspect")
    base = predicted.predicted_bytes.iloc[0]
    chosen = predicted[(predicted.group_size == 128) & (predicted.packing == "auto_round")]
    rest = towers.drop(["language_model", "lm_head"], errors="ignore")
    table = pd.DataFrame({"stored": towers})
    for r in chosen.itertuples():
        table[r.scheme] = rest
        table.loc["language_model", r.scheme] = r.predicted_bytes - rest.sum()
    figure, (axis,) = _axes(1, height=3.9)
    notes = [f"\n−{100 * (1 - total / base):.1f} %" for total in table[chosen.scheme].sum()]
    unit, name = _stack(axis, table, 9, ["", *notes])
    axis.set(
        ylabel=f"tensor bytes on disk, {name}",
        ylim=(0, 1.2 * table.sum().max() / unit),
        title="Only the language model's blocks shrink (predicted, groups of 128; "
        "% against bf16 without head)",
    )
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return _save(experiment, figure, "bytes_per_tower")


def throughput(experiment: Experiment, kind: str) -> Figure:
    """Items per second by batch size and variant: bars of the median call, lines over the middle 80 %."""
    samples = results.of_benchmark(experiment, "samples.parquet").query("kind == @kind")
    rows = results.of_benchmark(experiment, "rows.csv").drop_duplicates("variant").set_index("variant")
    variants = [v for v in experiment.benchmark.variants if v in set(samples.variant)]
    places = range(len(variants))
    colours = [OKABE_ITO[i % len(OKABE_ITO)] for i in places]
    labels = [f"{_spoken(experiment.by_id[v])}\n{rows.kernel.get(v)}" for v in variants]
    batches = sorted(samples.batch.unique())
    figure, axes = _axes(max(len(batches), 1), height=1.2 + 0.42 * len(variants))
    for axis, batch in zip(axes, batches):  # one empty axis where nothing of this kind was timed
        calls = samples[samples.batch == batch].groupby("variant").latency_s
        low, middle, high = (batch / calls.quantile(q).reindex(variants) for q in (0.9, 0.5, 0.1))
        lines = {"xerr": [middle - low, high - middle], "capsize": 2.5, "error_kw": BARS}
        axis.barh(places, middle, 0.7, color=colours, **lines)
        for y, (value, end) in enumerate(zip(middle, high, strict=True)):
            if pd.notna(value):
                _note(axis, _short(value), (end, y), (4, 0), va="center", fontsize=8.5)
        axis.set(
            title=f"batch {batch}\nn = {_range(calls.size())} calls",
            xlabel=f"{kind} per second",
            xlim=(0, 1.32 * high.max()),
            ylim=(len(variants) - 0.5, -0.5),
        )
        axis.set_yticks(places, labels if axis is axes[0] else [])
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=3)
    title = f"Encoding {kind}: median call, lines over the middle 80 % of calls"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    return _save(experiment, figure, f"throughput_{kind}")


def memory(experiment: Experiment) -> Figure:
    """Tensors by part beside what the process (CPU) or allocator (CUDA) holds when loaded and at its peak."""
    table = results.of_benchmark(experiment, "memory.csv")
    names = [v for v in experiment.benchmark.variants if v in set(table.variant)]
    parts = table.assign(part=table.metric.str.extract("^tensors_(.+)_bytes$")[0]).dropna(subset="part")
    figure, (left, right) = _axes(2, height=4.4)
    _, name = _stack(left, parts.groupby(["part", "variant"]).bytes.first().unstack()[names], 8)
    left.set(ylabel=f"bytes of tensors in memory, {name}", title="Weights: exact bytes, by part of the model")
    _process_bars(right, table, names, experiment.runtime.device)
    for axis in (left, right):
        axis.margins(y=0.1)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
    return _save(experiment, figure, "memory")


def _process_bars(axis, table: pd.DataFrame, names: list[str], device: str) -> None:
    """Grouped bars of process or device memory, mean and range over rounds."""
    shown = PROCESS[device]
    largest = table[table.metric.isin(shown)].groupby(["metric", "variant", "round"]).bytes.max()
    unit, name = _unit(largest.max() if len(largest) else 0)
    ends = (largest / unit).groupby(["metric", "variant"]).agg(["min", "mean", "max"])
    width = 0.8 / len(shown)
    paper = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    look = {"ha": "center", "fontsize": 8, "bbox": paper, "rotation": 90 if len(names) > 4 else 0}
    for i, (metric, label) in enumerate(shown.items()):
        bars = ends.reindex([(metric, variant) for variant in names])
        at, mean = np.arange(len(names)) + (i - 1) * width, bars["mean"].to_numpy()
        lines = {"yerr": [mean - bars["min"], bars["max"] - mean], "capsize": 3, "error_kw": BARS}
        axis.bar(at, mean, width * 0.92, color=PROCESS_COLOURS[i], label=label, **lines)
        for x, value in zip(at, mean, strict=True):
            _note(axis, _short(value) if unit == 1e9 else f"{value:.0f}", (x, 0), (0, 3), **look)
    axis.set_xticks(range(len(names)), [_label(variant) for variant in names])
    where = "Process (resident set)" if device == "cpu" else "GPU allocator"
    rounds = _range(table.groupby("variant")["round"].nunique())
    title = f"{where}: mean and range of {rounds} process{'' if rounds == '1' else 'es'}"
    axis.set(ylabel=f"bytes, {name}", title=title)


def gemms(experiment: Experiment) -> Figure | None:
    """Time of a layer's GEMMs by tokens per call and kernel, beside bf16's roofline; None if not measured."""
    path = experiment.results("benchmark") / "gemms.csv"
    if not path.exists():
        return None
    table = read_table(path, "benchmark").dropna(subset=["layer_s"])
    limits = results.of_benchmark(experiment, "ceilings.json")
    figure, (axis,) = _axes(1, height=4.4)
    for i, (kernel, rows) in enumerate(table.groupby("kernel", sort=False)):
        label = f"W4A16, {kernel} kernel" if kernel in ON_GPU else KERNELS.get(kernel, kernel)
        look = {"marker": "osD^vP"[i % 6], "markersize": 4.5, "color": OKABE_ITO[i], "label": label}
        axis.plot(rows.tokens, rows.layer_s * 1e6, **look)
    base = table[table.kernel == "bf16"].sort_values("tokens")
    moved_s = base.weight_bytes / limits["copy_bytes_per_s"]
    limit_s = np.maximum(moved_s, base.flop / limits["bfloat16_flop_per_s"])
    axis.plot(base.tokens, limit_s * 1e6, "--", color="#777777", label="roofline limit of bf16")
    size = experiment.model.size.upper()
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="tokens per call (batch × tokens of a query or page)",
        ylabel="time per decoder layer, GEMMs alone (µs)",
        title=f"{size} dimensions: time of the matrix multiplications (GEMMs) of one decoder layer",
    )
    low, high = axis.get_ylim()
    tokens = (8, 24, 64, 192, 512, 1024, 4096, 8192)
    times = [t for t in (20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= t <= high]
    axis.set_xticks(tokens, [f"{t:,}" for t in tokens])
    axis.set_yticks(times, [f"{t:,}" for t in times])
    axis.minorticks_off()
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.legend(loc="upper left", frameon=False, fontsize=9)
    return _save(experiment, figure, "gemms")


def _stack(axis, table: pd.DataFrame, fontsize: int, notes: list[str] | None = None) -> tuple[float, str]:
    """One bar per column of `table`, its parts stacked, the sum and a note on top; returns unit and its name.

    Parts too small to see stay out of the legend.
    """
    table = table.reindex([part for part in PARTS if part in table.index]).fillna(0.0)
    totals, places, bottom = table.sum(), range(len(table.columns)), 0
    unit, name = _unit(totals.max())
    for part, values in table.iterrows():
        words, colour = PARTS[part]
        label = words if values.max() > 0.005 * totals.max() else None
        axis.bar(places, values / unit, 0.7, bottom=bottom / unit, color=colour, label=label)
        bottom += values
    axis.set_xticks(places, [_label(column) for column in table])
    for x, (total, note) in enumerate(zip(totals, notes or [""] * len(totals), strict=True)):
        axis.text(x, total / unit, f"{total / unit:.1f}{note}", ha="center", va="bottom", fontsize=fontsize)
    return unit, name


def _spoken(variant: Variant) -> str:
    """A variant in words that fit beside a bar."""
    words = [
        variant.scheme.replace("w", "W").replace("a16", "A16").replace("fp8", "FP8").replace("nf4", "NF4"),
        {"autoround": "AutoRound", "rtn": "to nearest"}.get(variant.method),
        variant.calibration and f"({variant.calibration})",
        variant.embedding and f"+ {variant.embedding} table",
        variant.vision and f"+ {variant.vision.upper()} vision",
        variant.group,
    ]
    return " ".join(filter(None, words)) + (f", {variant.encode} path" if variant.encode else "")


def _label(name: str) -> str:
    """A variant id on lines: size and scheme, then method and options, broken where they get long."""
    parts = name.split("-")
    return "\n".join(["-".join(parts[:2]), *textwrap.wrap(" ".join(parts[2:]), 10)]).replace(" ", "-")


def _note(axis, text: str, at: tuple, offset: tuple, **look) -> None:
    axis.annotate(text, at, offset, textcoords="offset points", **look)


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _range(counts: pd.Series) -> str:
    """'5', or '3–5' where they differ."""
    return "–".join(dict.fromkeys(map(str, (counts.min(), counts.max()))))


def _unit(largest: float) -> tuple[float, str]:
    return (1e9, "GB") if largest >= 2e9 else (1e6, "MB")


def _axes(count: int, height: float):
    """A figure about 900 pixels wide with `count` plain axes."""
    plain = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": False}
    with plt.rc_context(plain):
        size = {"figsize": (9, height), "dpi": 110, "layout": "constrained"}
        figure, axes = plt.subplots(1, count, squeeze=False, **size)
    return figure, axes[0]


def _save(experiment: Experiment, figure: Figure, name: str) -> Figure:
    """Write the figure as PNG and return it for the notebook to show."""
    for axis in figure.axes:
        axis.title.set_fontsize(10)
    drawing.save(figure, experiment.figures / f"{name}.png", dpi="figure")
    return figure
