"""Figures of a detection study: predictions on pictures, latency, memory."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from colq_utils.report.figures import drawing
from studies.fp8_serving import pictures
from studies.fp8_serving.settings import DetectionExperiment

TRUTH, BASE, OTHER, THIRD = "#009E73", "black", "#D55E00", "#CC79A7"
WEIGHTS = "#0072B2"
#: Variants of the run at 7B dimensions.
_SEVEN = {"bf16": "BF16", "fp8": "FP8", "fp8 scaled_mm": "FP8, torch._scaled_mm"}
_PARTS = {
    "prepare_s": ("JPEG to patches", "#999999"),
    "prefill_s": ("picture and prompt", "#0072B2"),
    "decode_s": ("answer tokens", "#E69F00"),
}
_SPOKEN = {"bf16": "BF16", "fp8-dynamic": "FP8, dynamic scales", "fp8-static": "FP8, static scales"}
#: Upper ends of the classes of a change of IoU, and what they are called.
_CHANGES = {
    -0.01: "worse by more than 0.01",
    -1e-9: "worse by 0.01 or less",
    1e-9: "the same",
    0.01: "better by 0.01 or less",
    np.inf: "better by more than 0.01",
}


def _saved(experiment: DetectionExperiment, figure: Figure, name: str) -> Figure:
    drawing.save(figure, experiment.figures / name, dpi=130)
    return figure


def _tiles(count: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of `count` axes, three in a row, each `width` by `height` inches, and those axes."""
    columns = min(3, count)
    rows = -(-count // columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes.flat[:count]


def spoken(variant: str) -> str:
    """A variant in the words of the figures."""
    name = variant.split("-", 1)[1]
    return _SPOKEN.get(name, name)


def predictions(experiment: DetectionExperiment, answers: pd.DataFrame) -> Figure:
    """Held-out pictures with the true box, the base's and the first FP8 variant's.

    Half of them are those where the two differ most, half as they come.
    """
    names = list(dict.fromkeys(answers["variant"]))[:2]
    base, other = (answers[answers["variant"] == name].set_index("picture") for name in names)
    count = experiment.pictures.shown
    moved = other.sort_values("shift_px", ascending=False).index[: count // 2].tolist()
    chosen = moved + [name for name in other.index if name not in moved][: count - len(moved)]
    held_out = {p.id: p for p in pictures.load(count=experiment.pictures.count)}
    styles = ((TRUTH, "-", 3.2), (BASE, "-", 1.8), (OTHER, "--", 1.8))
    figure, axes = _tiles(count, 4.2, 3.9)
    for axis, name in zip(axes, chosen, strict=False):
        picture = held_out[name]
        axis.imshow(pictures.decode(picture.data))
        given = [table.loc[name, ["x1", "y1", "x2", "y2"]] for table in (base, other)]
        for box, (colour, line, width) in zip((picture.box, *given), styles):
            x1, y1, x2, y2 = np.asarray(box, float) * (2 * (picture.width, picture.height))
            edge = {"edgecolor": colour, "linestyle": line, "linewidth": width}
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **edge))
        overlap = f"IoU {base.loc[name, 'iou']:.2f} BF16, {other.loc[name, 'iou']:.2f} FP8"
        shift = f"edges move by {other.loc[name, 'shift_px']:.1f} px"
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{name}: {overlap}\n{shift}", fontsize=10)
    for axis in axes[len(chosen) :]:
        axis.axis("off")
    handles = [plt.Line2D([], [], color=c, linestyle=line, linewidth=2.5) for c, line, _ in styles]
    labels = ["truth", *map(spoken, names)]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return _saved(experiment, figure, "predictions.png")


def overlap(experiment: DetectionExperiment, answers: pd.DataFrame) -> Figure:
    """How many pictures each FP8 variant changes, and by how much: IoU with the true box, against bf16."""
    wide = answers.pivot(index="picture", columns="variant", values="iou")
    base, *others = dict.fromkeys(answers["variant"])
    figure, axis = plt.subplots(figsize=(8, 1.6 + 0.5 * len(_CHANGES)), layout="constrained")
    height = 0.8 / len(others)
    for i, (name, colour) in enumerate(zip(others, (OTHER, THIRD))):
        place = np.searchsorted(list(_CHANGES), (wide[name] - wide[base]).to_numpy())
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
        title=f"IoU with the true box, against BF16 (n = {len(wide)} pictures)",
    )
    axis.set_yticklabels(_CHANGES.values())
    axis.grid(visible=False, axis="y")
    axis.legend(frameon=False, loc="lower right")
    return _saved(experiment, figure, "iou.png")


def latency(experiment: DetectionExperiment, samples: pd.DataFrame) -> Figure:
    """Every warm request: a column per variant, a panel per concurrency."""
    levels = sorted(samples["concurrency"].unique())
    size = (4.4 * len(levels), 4)
    figure, axes = plt.subplots(1, len(levels), figsize=size, layout="constrained", squeeze=False)
    names, rng = list(dict.fromkeys(samples["variant"])), np.random.default_rng(0)
    for axis, level in zip(axes.flat, levels):
        together = samples[samples["concurrency"] == level]
        for x, (name, colour) in enumerate(zip(names, (BASE, OTHER, THIRD))):
            values = 1e3 * together.loc[together["variant"] == name, "latency_s"].dropna()
            places = x + rng.uniform(-0.2, 0.2, len(values))
            axis.plot(places, values, ".", color=colour, alpha=0.5, markersize=5)
            axis.hlines(values.median(), x - 0.3, x + 0.3, color="black", linewidth=1.5)
        axis.set(
            xticks=range(len(names)),
            xticklabels=[spoken(n).replace(", ", ",\n") for n in names],
            ylim=(0, None),
            ylabel="latency (ms)",
            title=f"{level} in flight (n = {len(values)} each)",
        )
    place = f"engine {experiment.serving.engine}, {experiment.runtime.device}"
    figure.suptitle(f"Warm requests, {place}; line: median", fontsize=11)
    return _saved(experiment, figure, "latency.png")


def seven_latency(experiment: DetectionExperiment, samples: pd.DataFrame, device: str) -> Figure:
    """Mean time of a request at 7B dimensions by part: a bar per variant, a panel per batch size."""
    widths = samples.groupby("batch")["variant"].nunique()
    figure, axes = plt.subplots(
        1, len(widths), figsize=(9.5, 4.2), layout="constrained", squeeze=False, width_ratios=widths.tolist()
    )
    for axis, batch in zip(axes.flat, widths.index):
        by_variant = samples[samples["batch"] == batch].groupby("variant", sort=False)
        means = 1e3 * by_variant[list(_PARTS)].mean().rename(index=_SEVEN)
        bottom = np.zeros(len(means))
        for part, (label, colour) in _PARTS.items():
            axis.bar(means.index, means[part], bottom=bottom, color=colour, label=label, width=0.6)
            bottom += means[part]
        spread = 1e3 * by_variant["latency_s"].std()
        axis.errorbar(means.index, bottom, spread, fmt="none", ecolor="black", capsize=4)
        for x, total in enumerate(bottom):
            height = total + spread.max() + 0.015 * bottom.max()
            axis.text(x, height, f"{total:.0f} ms", ha="center", va="bottom")
        title = f"batch {batch} (n = {by_variant.size().min()} calls each)"
        axis.set(ylim=(0, 1.18 * bottom.max()), ylabel="latency (ms)", title=title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    model = "A request at Qwen2-VL-7B dimensions, random weights"
    figure.suptitle(f"{model}, {device} (lines: standard deviation)", fontsize=11)
    return _saved(experiment, figure, "latency_7b.png")


def seven_memory(experiment: DetectionExperiment, run: dict, published: pd.DataFrame) -> Figure:
    """Where the bytes are: measured at 7B dimensions in process, and the published server's.

    The server fills its share of the card whatever the weights.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained", sharey=True)
    stated = published[published["table"] == "Comparison"].set_index("metric")
    measured, served = {}, {}
    for name, column in (("bf16", "original"), ("fp8", "quantized")):
        stored, memory = run["bytes"][name], run["memory"][name]
        blocks, others = stored["blocks"], sum(stored.values()) - stored["blocks"]
        parts = {"quantized blocks": blocks, "other weights": others, "KV cache": memory["kv_bytes"]}
        parts["graphs, activations, context"] = memory["card_used_bytes"] - sum(parts.values())
        measured[name] = parts
        weights, total = 1e9 * stated.loc[["model weights", "total GPU memory"], column]
        served[name] = {"weights": weights, "the rest: KV reservation and others": total - weights}
    _stacked(left, measured, (WEIGHTS, "#56B4E9", "#E69F00", "#999999"), "In process, cache of one request")
    _stacked(right, served, (WEIGHTS, "#E69F00"), "As published: server with half of a 48 GB card")
    return _saved(experiment, figure, "memory_7b.png")


def _stacked(axis, bars: dict[str, dict[str, float]], colours: tuple[str, ...], title: str) -> None:
    """A bar per variant, of bytes by part."""
    for name, parts in bars.items():
        bottom = 0.0
        for (part, size), colour in zip(parts.items(), colours):
            label = part if name == "bf16" else None
            axis.bar(_SEVEN[name], size / 1e9, bottom=bottom, color=colour, label=label, width=0.55)
            bottom += size / 1e9
        axis.text(_SEVEN[name], bottom + 0.3, f"{bottom:.1f} GB", ha="center")
    axis.set(title=title, ylabel="GB (10⁹ bytes)", ylim=(0, 30))
    axis.legend(frameon=False, fontsize=8.5, loc="upper center", ncols=2)


def training(log) -> Figure:
    """Loss and check of a training log."""
    frame = pd.read_csv(log)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    left.plot(frame["elapsed_s"], frame["loss"], "o-", color=BASE)
    left.set(ylabel="cross-entropy (nats per token)", yscale="log", title="Loss, mean between two checks")
    right.plot(frame["elapsed_s"], frame["check_iou"], "o-", color=BASE, label="mean IoU")
    parsed = "answers that overlap at all"
    right.plot(frame["elapsed_s"], frame["check_parsed"], "s--", color=OTHER, label=parsed)
    right.set(ylabel="share", ylim=(0, 1.02), title="Check on 192 other scenes, greedy answers")
    right.legend(frameon=False, loc="lower right")
    for axis in (left, right):
        axis.set_xlabel("training time (s)")
    plt.close(figure)
    return figure


def gallery(shown: list) -> Figure:
    """Pictures side by side, three in a row."""
    figure, axes = _tiles(len(shown), 3.6, 3.2)
    for axis, picture in zip(axes, shown):
        axis.axis("off")
        axis.imshow(picture)
    plt.close(figure)
    return figure
