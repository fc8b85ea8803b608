"""Figures of 01_inspect and 04_benchmark, drawn from their result files, one message each.

Okabe and Ito's colours stay apart for colour-blind readers; the same variant and the same part of the
model have one colour in every figure. Sizes suit a README 900 pixels wide. MB and GB are 10^6 and 10^9 bytes.
"""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from colq_utils.base.backends import ON_GPU
from colq_utils.base.config import Experiment
from colq_utils.base.files import atomic, read_table
from colq_utils.base.names import PARTS
from colq_utils.report import results

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
PART_COLOURS = dict(
    zip(PARTS, ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#BBBBBB", "#777777"), strict=True)
)
_PAPER = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
PART_NAMES = {
    "language_model": "language model blocks",
    "embedding": "embedding table",
    "visual": "vision tower",
    "projection": "projection",
    "lm_head": "lm_head (stored, never used)",
    "other": "other",
}


def bytes_per_tower(experiment: Experiment) -> Figure:
    """Stacked bars of a checkpoint's bytes by part: as stored, and predicted under each scheme in groups of 128."""
    towers = read_table(experiment.results("inspect") / "towers.csv", "inspect").set_index("tower")["bytes"]
    predicted = read_table(experiment.results("inspect") / "predicted.csv", "inspect")
    chosen = (
        predicted[(predicted.group_size == 128) & (predicted.packing == "auto_round")]
        .set_index("scheme")
        .predicted_bytes
    )
    base = predicted.predicted_bytes.iloc[0]
    unchanged = towers.drop(["language_model", "lm_head"], errors="ignore")
    columns = {"stored": towers} | {scheme: unchanged.copy() for scheme in chosen.index}
    for scheme, size in chosen.items():
        columns[scheme]["language_model"] = size - unchanged.sum()
    table = pd.DataFrame(columns).reindex([p for p in PARTS if p in towers.index]).fillna(0.0)
    figure, axes = _axes(1, height=3.9)
    unit, name = _unit(table.sum().max())
    _stack(axes[0], table, unit)
    for x, scheme in enumerate(table):
        total = table[scheme].sum()
        note = "" if scheme == "stored" else f"\n−{100 * (1 - total / base):.1f} %"
        axes[0].text(x, total / unit, f"{total / unit:.1f}{note}", ha="center", va="bottom", fontsize=9)
    axes[0].set(
        ylabel=f"tensor bytes on disk, {name}",
        ylim=(0, 1.2 * table.sum().max() / unit),
        title="Only the language model's blocks shrink (predicted, groups of 128; % against bf16 without head)",
    )
    axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return _save(experiment, figure, "bytes_per_tower")


def throughput(experiment: Experiment, kind: str) -> Figure:
    """Items per second, a panel per batch size and a bar per variant: bars at the median call, lines over the middle 80 % of calls."""
    samples = results.of_benchmark(experiment, "samples.parquet").query("kind == @kind")
    kernels = (
        results.of_benchmark(experiment, "rows.csv").drop_duplicates("variant").set_index("variant")["kernel"]
    )
    variants = [v for v in experiment.benchmark.variants if v in set(samples.variant)]
    batches = sorted(samples.batch.unique())
    figure, axes = _axes(max(len(batches), 1), height=1.2 + 0.42 * len(variants))
    for axis, batch in zip(axes, batches, strict=True):
        groups = samples[samples.batch == batch].groupby("variant").latency_s
        low, middle, high = (batch / groups.quantile(q).reindex(variants) for q in (0.9, 0.5, 0.1))
        axis.barh(
            range(len(variants)),
            middle,
            0.7,
            color=[OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(variants))],
            xerr=[middle - low, high - middle],
            capsize=2.5,
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
        )
        for y, (value, end) in enumerate(zip(middle, high, strict=True)):
            if pd.notna(value):
                axis.annotate(
                    _short(value), (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5
                )
        counts = "–".join(dict.fromkeys(map(str, groups.size().agg(["min", "max"]))))
        axis.set(
            title=f"batch {batch}\nn = {counts} calls",
            xlabel=f"{kind} per second",
            xlim=(0, 1.32 * high.max()),
            ylim=(len(variants) - 0.5, -0.5),
        )
        axis.set_yticks(
            range(len(variants)),
            [f"{_spoken(experiment, v)}\n{kernels.get(v)}" for v in variants] if axis is axes[0] else [],
        )
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=3)
    figure.suptitle(
        f"Encoding {kind}: median call, lines over the middle 80 % of calls", x=0.01, ha="left", fontsize=10.5
    )
    return _save(experiment, figure, f"throughput_{kind}")


def _spoken(experiment: Experiment, variant: str) -> str:
    """A variant in words that fit beside a bar."""
    spec = experiment.by_id[variant]
    words = [spec.scheme.replace("w", "W").replace("a16", "A16").replace("fp8", "FP8")]
    words += {"autoround": ["AutoRound"], "rtn": ["to nearest"]}.get(spec.method, [])
    words += [f"({spec.calibration})"] if spec.calibration else []
    words += [f"+ {spec.embedding} table"] if spec.embedding else []
    words += [f"+ {spec.vision.upper()} vision"] if spec.vision else []
    words += [f"g{spec.group_size}"] if spec.group_size != 128 else []
    path = f", {spec.encode} path" if spec.encode else ""
    return " ".join(words) + path


def memory(experiment: Experiment) -> Figure:
    """Tensors by part beside what the process (CPU) or allocator (CUDA) holds after loading and at its peak."""
    table = results.of_benchmark(experiment, "memory.csv")
    names = [v for v in experiment.benchmark.variants if v in set(table.variant)]
    tensors = (
        table[table.metric.str.fullmatch(r"tensors_.+_bytes")]
        .groupby(["metric", "variant"])
        .bytes.first()
        .unstack()
    )
    tensors.index = tensors.index.str.removeprefix("tensors_").str.removesuffix("_bytes")
    tensors = tensors.reindex([p for p in PARTS if p in tensors.index])[names].fillna(0.0)
    figure, (left, right) = _axes(2, height=4.4)
    unit, name = _unit(tensors.sum().max())
    _stack(left, tensors, unit)
    for x, variant in enumerate(names):
        left.text(
            x,
            tensors[variant].sum() / unit,
            f"{tensors[variant].sum() / unit:.1f}",
            ha="center",
            va="bottom",
            fontsize=8,
        )
    left.set(ylabel=f"bytes of tensors in memory, {name}", title="Weights: exact bytes, by part of the model")
    left.margins(y=0.1)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, fontsize=8)
    _process_bars(right, table, names, experiment.runtime.device)
    for axis in (left, right):
        axis.tick_params(axis="x", labelsize=8)
    return _save(experiment, figure, "memory")


def _process_bars(axis, table: pd.DataFrame, names: list[str], device: str) -> None:
    """Grouped bars of process or device memory, mean and range over rounds."""
    shown = (
        {
            "rss_before_load_bytes": "libraries only",
            "rss_loaded_bytes": "model loaded",
            "peak_rss_bytes": "peak of any workload",
        }
        if device == "cpu"
        else {
            "allocated_bytes": "model loaded",
            "peak_allocated_bytes": "peak allocated of any workload",
            "peak_reserved_bytes": "peak reserved of any workload",
        }
    )
    largest = table[table.metric.isin(shown)].groupby(["variant", "metric", "round"]).bytes.max()
    unit, name = _unit(largest.max() if len(largest) else 0)
    width, rounds = (
        0.8 / len(shown),
        "–".join(dict.fromkeys(map(str, sorted(table.groupby("variant")["round"].nunique())))),
    )
    for i, (metric, label) in enumerate(shown.items()):
        found = [largest.get((v, metric), pd.Series(dtype=float)) / unit for v in names]
        mean = [values.mean() for values in found]
        spread = [
            [m - v.min() for m, v in zip(mean, found, strict=True)],
            [v.max() - m for m, v in zip(mean, found, strict=True)],
        ]
        at = [x + (i - 1) * width for x in range(len(names))]
        axis.bar(
            at,
            mean,
            width * 0.92,
            yerr=spread,
            capsize=3,
            color=("#BBBBBB", "#009E73", "#D55E00")[i],
            label=label,
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
        )
        for x, value in zip(at, mean, strict=True):
            axis.annotate(
                _short(value) if unit == 1e9 else f"{value:.0f}",
                (x, 0),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                bbox=_PAPER,
                rotation=_turn(names),
            )
    axis.set_xticks(range(len(names)), [_label(name) for name in names])
    axis.margins(y=0.1)
    where = "Process (resident set)" if device == "cpu" else "GPU allocator"
    axis.set(
        ylabel=f"bytes, {name}",
        title=f"{where}: mean and range of {rounds} process{'' if rounds == '1' else 'es'}",
    )
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, fontsize=8)


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _turn(names: list) -> int:
    """Degrees by which the numbers on bars are turned, so that those of many variants stay apart."""
    return 90 if len(names) > 4 else 0


def _stack(axis, table: pd.DataFrame, unit: float) -> None:
    """One bar a column of `table`, its parts stacked; parts too small to see stay out of the legend."""
    bottom = pd.Series(0.0, index=table.columns)
    visible = table.max(axis=1) > 0.005 * table.sum().max()
    for part, values in table.iterrows():
        axis.bar(
            range(len(values)),
            values / unit,
            0.7,
            bottom=bottom / unit,
            color=PART_COLOURS[part],
            label=PART_NAMES[part] if visible[part] else None,
        )
        bottom += values
    axis.set_xticks(range(len(table.columns)), [_label(name) for name in table.columns])


def _axes(count: int, height: float):
    """A figure about 900 pixels wide with `count` plain axes."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": False}):
        figure, axes = plt.subplots(
            1, count, figsize=(9, height), dpi=110, layout="constrained", squeeze=False
        )
    return figure, axes[0]


def _label(name: str) -> str:
    """A variant id on lines of its own: size and scheme, then method and options, broken where they get long."""
    parts = name.split("-")
    return "\n".join(["-".join(parts[:2]), *textwrap.wrap(" ".join(parts[2:]), 10)]).replace(" ", "-")


def _unit(largest: float) -> tuple[float, str]:
    return (1e9, "GB") if largest >= 2e9 else (1e6, "MB")


def _save(experiment: Experiment, figure: Figure, name: str) -> Figure:
    """Write the figure as PNG and return it for the notebook to show."""
    for axis in figure.axes:
        axis.title.set_fontsize(10)
    with atomic(experiment.figures / f"{name}.png") as target:
        figure.savefig(target, format="png", metadata={"Software": None})
    plt.close(figure)  # shown once, as the cell's value
    return figure


def gemms(experiment: Experiment) -> Figure | None:
    """Time of all GEMMs of a layer against tokens per call, by kernel, beside the roofline limit of bf16; None where not measured."""
    path = experiment.results("benchmark") / "gemms.csv"
    if not path.exists():
        return None
    table = read_table(path, "benchmark").dropna(subset=["layer_s"])
    limits = results.of_benchmark(experiment, "ceilings.json")
    figure, (axis,) = _axes(1, height=4.4)
    names = {"bf16": "bf16", "fp8": "FP8", "fp8 inputs ready": "FP8, inputs already converted"}
    for i, (kernel, rows) in enumerate(table.groupby("kernel", sort=False)):
        label = f"W4A16, {kernel} kernel" if kernel in ON_GPU else names.get(kernel, kernel)
        axis.plot(
            rows.tokens,
            rows.layer_s * 1e6,
            marker="osD^vP"[i % 6],
            markersize=4.5,
            color=OKABE_ITO[i],
            label=label,
        )
    base = table[table.kernel == "bf16"].sort_values("tokens")
    limit = [
        max(w / limits["copy_bytes_per_s"], f / limits["bfloat16_flop_per_s"]) * 1e6
        for w, f in zip(base.weight_bytes, base.flop, strict=True)
    ]
    axis.plot(base.tokens, limit, linestyle="--", color="#777777", label="roofline limit of bf16")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="tokens per call (batch × tokens of a query or page)",
        ylabel="time per decoder layer, GEMMs alone (µs)",
        title=f"{experiment.model.size.upper()} dimensions: time of the matrix multiplications (GEMMs) of one decoder layer",
    )
    axis.set_xticks(ticks := [8, 24, 64, 192, 512, 1024, 4096, 8192], [f"{t:,}" for t in ticks], minor=False)
    low, high = axis.get_ylim()
    axis.set_yticks(
        ticks := [t for t in (20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= t <= high],
        [f"{t:,}" for t in ticks],
        minor=False,
    )
    axis.minorticks_off()
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.legend(loc="upper left", frameon=False, fontsize=9)
    return _save(experiment, figure, "gemms")
