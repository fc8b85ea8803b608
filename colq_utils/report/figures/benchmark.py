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
PART_COLOURS = dict(zip(PARTS, ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#BBBBBB", "#777777"), strict=True))
_PAPER = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
PART_NAMES = {"language_model": "language model blocks", "embedding": "embedding table", "visual": "vision tower",
              "projection": "projection", "lm_head": "lm_head (stored, never used)", "other": "other"}


def bytes_per_tower(experiment: Experiment) -> Figure:
    """Stacked bars of a checkpoint's bytes by part: as stored, and predicted under each scheme in groups of 128."""
    towers = read_table(experiment.results("inspect") / "towers.csv", "inspect").set_index("tower")["bytes"]
    predicted = read_table(experiment.results("inspect") / "predicted.csv", "inspect")
    chosen = predicted[(predicted.group_size == 128) & (predicted.packing == "auto_round")].set_index("scheme").predicted_bytes
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
    axes[0].set(ylabel=f"tensor bytes on disk, {name}", ylim=(0, 1.2 * table.sum().max() / unit),
                title="Only the language model's blocks shrink (predicted, groups of 128; % against bf16 without head)")
    axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return _save(experiment, figure, "bytes_per_tower")


def throughput(experiment: Experiment, kind: str) -> Figure:
    """Items a second by batch size and variant; bars at the median call, lines over the middle 80 % of calls."""
    samples = results.of_benchmark(experiment, "samples.parquet").query("kind == @kind")
    kernels = results.of_benchmark(experiment, "rows.csv").drop_duplicates("variant").set_index("variant")["kernel"]
    variants = [v for v in experiment.benchmark.variants if v in set(samples.variant)]
    batches = sorted(samples.batch.unique())
    figure, (axis,) = _axes(1, height=3.6)
    width = 0.8 / max(len(variants), 1)
    for i, variant in enumerate(variants):
        groups = samples[samples.variant == variant].groupby("batch").latency_s
        low, middle, high = (pd.Series(groups.quantile(q)).rdiv(groups.first().index.to_series()).reindex(batches) for q in (0.9, 0.5, 0.1))
        at = [x + (i - (len(variants) - 1) / 2) * width for x in range(len(batches))]
        axis.bar(at, middle, width * 0.92, color=OKABE_ITO[i % len(OKABE_ITO)], label=f"{variant}\n{kernels.get(variant)}",
                 yerr=[middle - low, high - middle], capsize=3, error_kw={"elinewidth": 1, "ecolor": "#333333"})
        for x, value in zip(at, middle, strict=True):
            axis.annotate(_short(value), (x, 0), (0, 3), textcoords="offset points", ha="center", fontsize=8, bbox=_PAPER, rotation=_turn(variants))
    sizes = samples.groupby(["batch", "variant"]).size().groupby("batch").agg(["min", "max"])
    axis.set_xticks(range(len(batches)), [f"batch {b}\nn = {'–'.join(dict.fromkeys(map(str, sizes.loc[b])))}" for b in batches])
    axis.set(ylabel=f"{kind} / s", title=f"Throughput of {kind}: median of n calls, line = middle 80 % of them")
    axis.margins(y=0.12)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="variant, kernel")
    return _save(experiment, figure, f"throughput_{kind}")


def memory(experiment: Experiment) -> Figure:
    """Tensors by part beside what the process (CPU) or allocator (CUDA) holds after loading and at its peak."""
    table = results.of_benchmark(experiment, "memory.csv")
    names = [v for v in experiment.benchmark.variants if v in set(table.variant)]
    tensors = table[table.metric.str.fullmatch(r"tensors_.+_bytes")].groupby(["metric", "variant"]).bytes.first().unstack()
    tensors.index = tensors.index.str.removeprefix("tensors_").str.removesuffix("_bytes")
    tensors = tensors.reindex([p for p in PARTS if p in tensors.index])[names].fillna(0.0)
    figure, (left, right) = _axes(2, height=4.4)
    unit, name = _unit(tensors.sum().max())
    _stack(left, tensors, unit)
    for x, variant in enumerate(names):
        left.text(x, tensors[variant].sum() / unit, f"{tensors[variant].sum() / unit:.1f}", ha="center", va="bottom", fontsize=8)
    left.set(ylabel=f"bytes of tensors in memory, {name}", title="Weights: exact bytes, by part of the model")
    left.margins(y=0.1)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, fontsize=8)
    _process_bars(right, table, names, experiment.runtime.device)
    for axis in (left, right):
        axis.tick_params(axis="x", labelsize=8)
    return _save(experiment, figure, "memory")


def _process_bars(axis, table: pd.DataFrame, names: list[str], device: str) -> None:
    """Grouped bars of process or device memory, mean and range over rounds."""
    shown = ({"rss_before_load_bytes": "libraries only", "rss_loaded_bytes": "model loaded", "peak_rss_bytes": "peak of any workload"}
             if device == "cpu" else
             {"allocated_bytes": "model loaded", "peak_allocated_bytes": "peak allocated of any workload", "peak_reserved_bytes": "peak reserved of any workload"})
    largest = table[table.metric.isin(shown)].groupby(["variant", "metric", "round"]).bytes.max()
    unit, name = _unit(largest.max() if len(largest) else 0)
    width, rounds = 0.8 / len(shown), "–".join(dict.fromkeys(map(str, sorted(table.groupby("variant")["round"].nunique()))))
    for i, (metric, label) in enumerate(shown.items()):
        found = [largest.get((v, metric), pd.Series(dtype=float)) / unit for v in names]
        mean = [values.mean() for values in found]
        spread = [[m - v.min() for m, v in zip(mean, found, strict=True)], [v.max() - m for m, v in zip(mean, found, strict=True)]]
        at = [x + (i - 1) * width for x in range(len(names))]
        axis.bar(at, mean, width * 0.92, yerr=spread, capsize=3, color=("#BBBBBB", "#009E73", "#D55E00")[i], label=label,
                 error_kw={"elinewidth": 1, "ecolor": "#333333"})
        for x, value in zip(at, mean, strict=True):
            axis.annotate(_short(value) if unit == 1e9 else f"{value:.0f}", (x, 0), (0, 3), textcoords="offset points",
                          ha="center", fontsize=8, bbox=_PAPER, rotation=_turn(names))
    axis.set_xticks(range(len(names)), [_label(name) for name in names])
    axis.margins(y=0.1)
    where = "Process (resident set)" if device == "cpu" else "GPU allocator"
    axis.set(ylabel=f"bytes, {name}", title=f"{where}: mean and range of {rounds} process{'' if rounds == '1' else 'es'}")
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
        axis.bar(range(len(values)), values / unit, 0.7, bottom=bottom / unit, color=PART_COLOURS[part],
                 label=PART_NAMES[part] if visible[part] else None)
        bottom += values
    axis.set_xticks(range(len(table.columns)), [_label(name) for name in table.columns])


def _axes(count: int, height: float):
    """A figure about 900 pixels wide with `count` plain axes."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": False}):
        figure, axes = plt.subplots(1, count, figsize=(9, height), dpi=110, layout="constrained", squeeze=False)
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
    """Time of a layer's products against tokens a call, by kernel, over the floors of bandwidth and arithmetic; None where not measured."""
    path = experiment.results("benchmark") / "gemms.csv"
    if not path.exists():
        return None
    table = read_table(path, "benchmark").dropna(subset=["layer_s"])
    limits = results.of_benchmark(experiment, "ceilings.json")
    figure, (axis,) = _axes(1, height=4.2)
    for i, (kernel, some) in enumerate(table.groupby("kernel", sort=False)):
        axis.plot(some.tokens, some.layer_s * 1e6, marker="o", markersize=4, color=OKABE_ITO[i], label=f"W4A16, {kernel}" if kernel in ON_GPU else kernel)
    base = table[table.kernel == "bf16"].sort_values("tokens")
    floor = [max(w / limits["copy_bytes_per_s"], f / limits["bfloat16_flop_per_s"]) * 1e6 for w, f in zip(base.weight_bytes, base.flop, strict=True)]
    axis.plot(base.tokens, floor, linestyle="--", color="#777777", label="floor of bf16 (measured ceilings)")
    axis.set(xscale="log", yscale="log", xlabel="tokens a call (batch × tokens of a query, or of a page)", ylabel="µs a decoder layer, products alone",
             title=f"{experiment.model.size.upper()}: below the crossing 4 bits save reading; above it everyone multiplies")
    axis.set_xticks(ticks := [8, 24, 64, 192, 512, 1024, 4096, 8192], [str(t) for t in ticks], minor=False)
    axis.minorticks_off()
    axis.legend(loc="upper left", frameon=False)
    return _save(experiment, figure, "gemms")
