"""Figures of a detection study: predictions on pictures, latency, memory."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from studies.fp8_serving import pictures
from studies.fp8_serving.settings import DetectionExperiment

TRUTH, BASE, OTHER = "#009E73", "#0072B2", "#D55E00"
_PARTS = {
    "prepare_s": ("JPEG to patches", "#999999"),
    "prefill_s": ("picture and prompt", "#0072B2"),
    "decode_s": ("answer tokens", "#E69F00"),
}


def _saved(experiment: DetectionExperiment, figure: Figure, name: str) -> Figure:
    figure.savefig(experiment.figures / name, dpi=130)
    plt.close(figure)
    return figure


def predictions(experiment: DetectionExperiment, answers: pd.DataFrame) -> Figure:
    """Held-out pictures with the true box, the base's and the first FP8 variant's: half where the two differ most, half as they come."""
    base, other = list(dict.fromkeys(answers["variant"]))[:2]
    wide = answers[answers["variant"] == other].set_index("picture")
    count = experiment.pictures.shown
    moved = wide.sort_values("shift_px", ascending=False).index[: count // 2].tolist()
    chosen = moved + [name for name in wide.index if name not in moved][: count - len(moved)]
    held = {p.id: p for p in pictures.load(count=experiment.pictures.count)}
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.9 * rows), layout="constrained", squeeze=False
    )
    by = {name: answers[answers["variant"] == name].set_index("picture") for name in (base, other)}
    for axis, name in zip(axes.flat, chosen, strict=False):
        picture = held[name]
        axis.imshow(pictures.decode(picture.data))
        lines = (
            (picture.box, TRUTH, "-", 3.2),
            (by[base].loc[name, ["x1", "y1", "x2", "y2"]], BASE, "-", 1.8),
            (by[other].loc[name, ["x1", "y1", "x2", "y2"]], OTHER, "--", 1.8),
        )
        for box, colour, style, width in lines:
            x1, y1, x2, y2 = np.asarray(box, float) * (2 * (picture.width, picture.height))
            axis.add_patch(
                Rectangle(
                    (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=style, linewidth=width
                )
            )
        axis.set(xticks=[], yticks=[])
        axis.set_title(
            f"{name}: IoU {by[base].loc[name, 'iou']:.2f} bf16, {by[other].loc[name, 'iou']:.2f} FP8\nedges move by {wide.loc[name, 'shift_px']:.1f} px",
            fontsize=10,
        )
    for axis in axes.flat[len(chosen) :]:
        axis.axis("off")
    handles = [
        plt.Line2D([], [], color=c, linestyle=s, linewidth=2.5)
        for c, s in ((TRUTH, "-"), (BASE, "-"), (OTHER, "--"))
    ]
    figure.legend(
        handles, ["truth", spoken(base), spoken(other)], loc="outside lower center", ncols=3, frameon=False
    )
    return _saved(experiment, figure, "predictions.png")


#: Upper ends of the classes of a change of IoU, and what they are called.
_CHANGES = (
    (-0.01, "worse by more than 0.01"),
    (-1e-9, "worse by 0.01 or less"),
    (1e-9, "the same"),
    (0.01, "better by 0.01 or less"),
    (np.inf, "better by more than 0.01"),
)


def spoken(variant: str) -> str:
    """A variant in the words of the figures."""
    name = variant.split("-", 1)[1]
    return {"bf16": "bf16", "fp8-dynamic": "FP8, dynamic scales", "fp8-static": "FP8, static scales"}.get(
        name, name
    )


def overlap(experiment: DetectionExperiment, answers: pd.DataFrame) -> Figure:
    """How many pictures each FP8 variant changes, and by how much: change of the IoU with the true box from bf16."""
    wide = answers.pivot(index="picture", columns="variant", values="iou")
    base, *others = dict.fromkeys(answers["variant"])
    figure, axis = plt.subplots(figsize=(8, 1.6 + 0.5 * len(_CHANGES)), layout="constrained")
    height = 0.8 / len(others)
    for i, (name, colour) in enumerate(zip(others, (OTHER, "#CC79A7"))):
        place = np.searchsorted([end for end, _ in _CHANGES], (wide[name] - wide[base]).to_numpy())
        counts = np.bincount(place, minlength=len(_CHANGES))
        at = np.arange(len(_CHANGES)) + (i - (len(others) - 1) / 2) * height
        axis.barh(at, counts, 0.92 * height, color=colour, label=spoken(name))
        for y, count in zip(at, counts):
            axis.annotate(str(count), (count, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set(
        yticks=range(len(_CHANGES)),
        ylim=(len(_CHANGES) - 0.5, -0.5),
        xlim=(0, 1.1 * len(wide)),
        xlabel="pictures",
        title=f"Change of the IoU with the true box from bf16 (n = {len(wide)} pictures)",
    )
    axis.set_yticklabels([label for _, label in _CHANGES])
    axis.grid(visible=False, axis="y")
    axis.legend(frameon=False, loc="lower right")
    return _saved(experiment, figure, "iou.png")


def latency(experiment: DetectionExperiment, samples: pd.DataFrame) -> Figure:
    """Every warm request: a column per variant, a panel per concurrency."""
    levels = sorted(samples["concurrency"].unique())
    figure, axes = plt.subplots(
        1, len(levels), figsize=(4.4 * len(levels), 4), layout="constrained", squeeze=False
    )
    names, rng = list(dict.fromkeys(samples["variant"])), np.random.default_rng(0)
    for axis, level in zip(axes.flat, levels):
        for x, (name, colour) in enumerate(zip(names, (BASE, OTHER, "#CC79A7"))):
            values = (
                1e3
                * samples[(samples["variant"] == name) & (samples["concurrency"] == level)][
                    "latency_s"
                ].dropna()
            )
            axis.plot(
                x + rng.uniform(-0.2, 0.2, len(values)), values, ".", color=colour, alpha=0.5, markersize=5
            )
            axis.hlines(values.median(), x - 0.3, x + 0.3, color="black", linewidth=1.5)
        axis.set(
            xticks=range(len(names)),
            xticklabels=[spoken(n).replace(", ", ",\n") for n in names],
            ylim=(0, None),
            ylabel="latency (ms)",
            title=f"{level} in flight (n = {len(values)} each)",
        )
    figure.suptitle(
        f"Warm requests, engine {experiment.serving.engine}, {experiment.runtime.device}; line: median",
        fontsize=11,
    )
    return _saved(experiment, figure, "latency.png")


def seven_latency(experiment: DetectionExperiment, samples: pd.DataFrame, device: str) -> Figure:
    """Mean time of a request at 7B dimensions by part: a bar per variant, a panel per batch size."""
    batches = sorted(samples["batch"].unique())
    widths = [samples[samples["batch"] == b]["variant"].nunique() for b in batches]
    figure, axes = plt.subplots(
        1, len(batches), figsize=(9.5, 4.2), layout="constrained", squeeze=False, width_ratios=widths
    )
    for axis, batch in zip(axes.flat, batches):
        calls = samples[samples["batch"] == batch]
        means = 1e3 * calls.groupby("variant", sort=False)[list(_PARTS)].mean()
        bottom = np.zeros(len(means))
        for part, (label, colour) in _PARTS.items():
            axis.bar(means.index, means[part], bottom=bottom, color=colour, label=label, width=0.6)
            bottom += means[part]
        spread = 1e3 * calls.groupby("variant", sort=False)["latency_s"].std()
        axis.errorbar(means.index, bottom, spread, fmt="none", ecolor="black", capsize=4)
        for x, total in enumerate(bottom):
            axis.text(
                x, total + spread.max() + 0.015 * bottom.max(), f"{total:.0f} ms", ha="center", va="bottom"
            )
        axis.set(
            ylim=(0, 1.18 * bottom.max()),
            ylabel="latency (ms)",
            title=f"batch {batch} (n = {calls.groupby('variant').size().min()} calls each)",
        )
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"A request at Qwen2-VL-7B dimensions, random weights, {device} (lines: standard deviation)",
        fontsize=11,
    )
    return _saved(experiment, figure, "latency_7b.png")


def seven_memory(experiment: DetectionExperiment, run: dict, published: pd.DataFrame) -> Figure:
    """Where the bytes are: measured at 7B dimensions in process, and the published server's, which fills its share of the card whatever the weights."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained", sharey=True)
    rows = {
        name: {
            "quantized blocks": run["bytes"][name]["blocks"],
            "other weights": sum(run["bytes"][name].values()) - run["bytes"][name]["blocks"],
            "KV cache": run["memory"][name]["kv_bytes"],
        }
        for name in ("bf16", "fp8")
    }
    for name, parts in rows.items():
        parts["graphs, activations, context"] = run["memory"][name]["card_used_bytes"] - sum(parts.values())
    stated = published[published["table"] == "Comparison"].set_index("metric")
    served = {}
    for name, column in (("bf16", "original"), ("fp8", "quantized")):
        weights, total = (
            1e9 * stated.loc[metric, column] for metric in ("model weights", "total GPU memory")
        )
        served[name] = {"weights": weights, "the rest: KV reservation and others": total - weights}
    for axis, bars, title in (
        (axes[0], rows, "in process, cache of one request"),
        (axes[1], served, "as published: server with half of a 48 GB card"),
    ):
        colours = dict(
            zip(
                next(iter(bars.values())),
                ("#0072B2", "#56B4E9", "#E69F00", "#999999")
                if len(next(iter(bars.values()))) > 2
                else ("#0072B2", "#E69F00"),
            )
        )
        for name, parts in bars.items():
            bottom = 0.0
            for part, size in parts.items():
                axis.bar(
                    name,
                    size / 1e9,
                    bottom=bottom,
                    color=colours[part],
                    label=part if name == "bf16" else None,
                    width=0.55,
                )
                bottom += size / 1e9
            axis.text(name, bottom + 0.3, f"{bottom:.1f} GB", ha="center")
        axis.set(title=title, ylabel="GB (10^9 bytes)", ylim=(0, 30))
        axis.legend(frameon=False, fontsize=8.5, loc="upper center", ncols=2)
    return _saved(experiment, figure, "memory_7b.png")


def training(log) -> Figure:
    """Loss and check of a training log."""
    frame = pd.read_csv(log)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    left.plot(frame["elapsed_s"], frame["loss"], "o-", color=BASE)
    left.set(
        xlabel="training time (s)",
        ylabel="cross-entropy (nats per token)",
        yscale="log",
        title="Loss, mean between two checks",
    )
    right.plot(frame["elapsed_s"], frame["check_iou"], "o-", color=BASE, label="mean IoU")
    right.plot(
        frame["elapsed_s"], frame["check_parsed"], "s--", color=OTHER, label="answers that overlap at all"
    )
    right.set(
        xlabel="training time (s)",
        ylabel="share",
        ylim=(0, 1.02),
        title="Check on 192 other scenes, greedy answers",
    )
    right.legend(frameon=False, loc="lower right")
    plt.close(figure)
    return figure


def gallery(shown: list) -> Figure:
    """Pictures side by side, three in a row."""
    columns = min(3, len(shown))
    figure, axes = plt.subplots(
        -(-len(shown) // columns),
        columns,
        figsize=(3.6 * columns, 3.2 * -(-len(shown) // columns)),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture in zip(axes.flat, shown, strict=False):
        axis.imshow(picture)
    plt.close(figure)
    return figure
