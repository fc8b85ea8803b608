"""Figures of 01_inspect and 04_benchmark, drawn from their result files, one message each.

A variant has the colour and the name of the other figures; a part of the model has one colour of its own.
MB and GB are 10^6 and 10^9 bytes.
"""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from colq_utils.base.config import Experiment
from colq_utils.base.files import read_table
from colq_utils.report import labels, results
from colq_utils.report.figures import drawing

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
#: Kernel of a GEMM -> its scheme, name and line.
KERNELS = {
    "bf16": ("bf16", "BF16", "-"),
    "fp8": ("fp8", "FP8", "-"),
    "fp8 inputs ready": ("fp8", "FP8, inputs already converted", ":"),
}
BARS = {"elinewidth": 1.2, "ecolor": "0.55", "capsize": 2.5}


def bytes_per_tower(experiment: Experiment) -> Figure:
    """Stacked bars of a checkpoint's bytes by part: as stored, and predicted per scheme in groups of 128."""
    towers = read_table(experiment.results("inspect") / "towers.csv", "inspect").set_index("tower")["bytes"]
    predicted = read_table(experiment.results("inspect") / "predicted.csv", "inspect")
    base = predicted.predicted_bytes.iloc[0]
    chosen = predicted[(predicted.group_size == 128) & (predicted.packing == "auto_round")]
    rest = towers.drop(["language_model", "lm_head"], errors="ignore")
    table = pd.DataFrame({"as stored": towers})
    for r in chosen.itertuples():
        name = f"{r.scheme.upper()}, predicted"
        table[name] = rest
        table.loc["language_model", name] = r.predicted_bytes - rest.sum()
    figure, axis = drawing.canvas(1.9 + 0.36 * table.shape[1])
    notes = [f"  (−{100 * (1 - table[name].sum() / base):.1f} %)" for name in table.columns[1:]]
    largest, name = _stack(axis, table, table.columns, ["", *notes])
    axis.set(
        xlabel=f"tensor bytes on disk, {name}; groups of 128; % against bf16 without lm_head",
        xlim=(0, 1.22 * largest),
        title="Only the language model's blocks shrink",
    )
    drawing.legend(figure, 4)
    return _save(experiment, figure, "bytes_per_tower")


def throughput(experiment: Experiment, kind: str) -> Figure:
    """Items per second by batch size and variant: bars of the median call, lines over the middle 80 %."""
    samples = results.of_benchmark(experiment, "samples.parquet").query("kind == @kind")
    variants = [v for v in experiment.benchmark.variants if v in set(samples.variant)]
    batches = sorted(samples.batch.unique())
    height = 1.4 + 0.58 * len(variants)
    figure, axes = drawing.canvas(height, max(len(batches), 1), squeeze=False, sharey=True)
    for axis, batch in zip(axes[0], batches):  # one empty axis where nothing of this kind was timed
        calls = samples[samples.batch == batch].groupby("variant").latency_s
        low, middle, high = (batch / calls.quantile(q).reindex(variants) for q in (0.9, 0.5, 0.1))
        for y, (name, value, start, end) in enumerate(zip(variants, middle, low, high)):
            if pd.notna(value):
                _bar(axis, y, value, (start, end), 0.66, drawing.style(experiment, name)["color"])
                _note(axis, _short(value), end, y)
        axis.set(title=f"batch {batch}\nn = {_range(calls.size())} calls", xlim=(0, 1.5 * high.max()))
        axis.locator_params(axis="x", nbins=3)
        axis.xaxis.set_major_formatter("{x:,.0f}")
    _rows(axes[0], _names(experiment, variants))
    title = f"Encoding {kind}: median call, lines over the middle 80 % of calls"
    figure.suptitle(title, x=0.01, ha="left")
    figure.supxlabel(f"{kind} per second", fontsize=10)
    return _save(experiment, figure, f"throughput_{kind}")


def memory(experiment: Experiment) -> Figure:
    """Tensors by part beside what the process (CPU) or allocator (CUDA) holds when loaded and at its peak."""
    table = results.of_benchmark(experiment, "memory.csv")
    variants = [v for v in experiment.benchmark.variants if v in set(table.variant)]
    parts = table.assign(part=table.metric.str.extract("^tensors_(.+)_bytes$")[0]).dropna(subset="part")
    figure, (left, right) = drawing.canvas(2.2 + 0.62 * len(variants), 2, sharey=True)
    names = _names(experiment, variants)
    largest, name = _stack(left, parts.groupby(["part", "variant"]).bytes.first().unstack()[variants], names)
    left.set(xlabel=f"bytes of tensors in memory, {name}", title="Weights, by part", xlim=(0, 1.2 * largest))
    _process_bars(right, table, variants, experiment.runtime.device)
    _rows([left, right], names)
    for axis, place in ((left, "left"), (right, "right")):
        shown = axis.get_legend_handles_labels()
        figure.legend(*shown, loc=f"outside lower {place}", fontsize=8.5, frameon=False, ncols=1)
    return _save(experiment, figure, "memory")


def _process_bars(axis, table: pd.DataFrame, variants: list[str], device: str) -> None:
    """Grouped bars of process or device memory, mean and range over rounds."""
    shown = PROCESS[device]
    largest = table[table.metric.isin(shown)].groupby(["metric", "variant", "round"]).bytes.max()
    unit, name = _unit(largest.max() if len(largest) else 0)
    ends = (largest / unit).groupby(["metric", "variant"]).agg(["min", "mean", "max"])
    height = 0.8 / len(shown)
    for i, (metric, label) in enumerate(shown.items()):
        for y, variant in enumerate(variants):
            low, mean, high = ends.reindex([(metric, variant)]).iloc[0]
            at = y + (i - 1) * height
            _bar(axis, at, mean, (low, high), 0.92 * height, PROCESS_COLOURS[i], label if y == 0 else None)
            if pd.notna(mean):
                _note(axis, _short(mean) if unit == 1e9 else f"{mean:.0f}", high, at)
    where = "Process" if device == "cpu" else "GPU allocator"
    rounds = _range(table.groupby("variant")["round"].nunique())
    of = "1 process" if rounds == "1" else f"mean and range of {rounds} processes"
    kind = "resident bytes" if device == "cpu" else "bytes"
    axis.set(
        xlabel=f"{kind}, {name}\n{of}", title=where, xlim=(0, 1.2 * ends["max"].max() if len(ends) else 1)
    )


def gemms(experiment: Experiment) -> Figure | None:
    """Time of a layer's GEMMs by tokens per call and kernel, beside bf16's roofline; None if not measured."""
    path = experiment.results("benchmark") / "gemms.csv"
    if not path.exists():
        return None
    table = read_table(path, "benchmark").dropna(subset=["layer_s"])
    limits = results.of_benchmark(experiment, "ceilings.json")
    figure, axis = drawing.canvas(4.4)
    lines = iter(("-", ":", "-."))
    for i, (kernel, rows) in enumerate(table.groupby("kernel", sort=False)):
        scheme, label, line = KERNELS.get(kernel) or ("w4a16", f"W4A16, {kernel} kernel", next(lines))
        look = {"color": drawing.ROUNDED[scheme][0], "linestyle": line, "label": label}
        axis.plot(rows.tokens, rows.layer_s * 1e6, marker="osD^vP"[i % 6], markersize=4.5, **look)
    base = table[table.kernel == "bf16"].sort_values("tokens")
    moved_s = base.weight_bytes / limits["copy_bytes_per_s"]
    limit_s = np.maximum(moved_s, base.flop / limits["bfloat16_flop_per_s"])
    axis.plot(base.tokens, limit_s * 1e6, "--", color="0.45", label="roofline limit of bf16")
    size = experiment.model.size.upper()
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="tokens per call (batch × tokens of a query or page)",
        ylabel="time per decoder layer, GEMMs alone (µs)",
        title=f"{size} dimensions: the matrix multiplications (GEMMs) of one decoder layer",
    )
    low, high = axis.get_ylim()
    tokens = (8, 24, 64, 192, 512, 1024, 4096, 8192)
    times = [t for t in (20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= t <= high]
    axis.set_xticks(tokens, [f"{t:,}" for t in tokens])
    axis.set_yticks(times, [f"{t:,}" for t in times])
    axis.minorticks_off()
    axis.legend(loc="upper left", frameon=False, fontsize=9)
    return _save(experiment, figure, "gemms")


def _stack(axis, table: pd.DataFrame, names, notes: list[str] | None = None) -> tuple[float, str]:
    """One bar per column of `table`, its parts stacked, the sum and a note at its end.

    Parts too small to see stay out of the legend. Returns the longest bar and the name of its unit.
    """
    table = table.reindex([part for part in PARTS if part in table.index]).fillna(0.0)
    totals, places, start = table.sum(), range(len(table.columns)), 0
    unit, name = _unit(totals.max())
    for part, values in table.iterrows():
        words, colour = PARTS[part]
        label = words if values.max() > 0.005 * totals.max() else None
        axis.barh(places, values / unit, 0.66, left=start / unit, color=colour, label=label, linewidth=0)
        start += values
    for y, (total, note) in enumerate(zip(totals, notes or [""] * len(totals), strict=True)):
        _note(axis, f"{total / unit:.1f}{note}", total / unit, y)
    _rows([axis], list(names))
    return totals.max() / unit, name


def _bar(axis, y: float, value: float, ends: tuple, height: float, colour, label: str | None = None) -> None:
    """A bar to `value`, with a line between its `ends`."""
    line = {"xerr": [[value - ends[0]], [ends[1] - value]], "error_kw": BARS}
    axis.barh(y, value, height, color=colour, label=label, alpha=0.8, linewidth=0, **line)


def _rows(axes, names: list[str]) -> None:
    """Names of bars, the first on top; no grid, since each bar has its number."""
    for axis in axes:
        drawing.rows(axis, names)
        axis.grid(visible=False)
        axis.tick_params(axis="y", labelsize=8.5)


def _names(experiment: Experiment, variants: list[str]) -> list[str]:
    """Variants on lines that fit beside bars, each with its kernel."""
    rows, words = (
        results.of_benchmark(experiment, "rows.csv").drop_duplicates("variant"),
        labels.of(experiment),
    )
    kernels = rows.set_index("variant").kernel
    return [f"{textwrap.fill(words[v], 26)}\nkernel: {kernels.get(v)}" for v in variants]


def _note(axis, text: str, x: float, y: float) -> None:
    """A number beside the end of a bar."""
    axis.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5)


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _range(counts: pd.Series) -> str:
    """'5', or '3–5' where they differ."""
    return "–".join(dict.fromkeys(map(str, (counts.min(), counts.max()))))


def _unit(largest: float) -> tuple[float, str]:
    return (1e9, "GB") if largest >= 2e9 else (1e6, "MB")


def _save(experiment: Experiment, figure: Figure, name: str) -> Figure:
    """Write the figure as PNG and return it for the notebook to show."""
    drawing.save(figure, experiment.figures / f"{name}.png")
    return figure
