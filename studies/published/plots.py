"""Two figures of the published figures: changes by task, and averages whose order depends on the report. No interval is published, none is drawn."""

from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns

from colq_utils.base.files import atomic
from colq_utils.report.figures import quality
from studies.published import figures_data as pub
from studies.published.figures_data import LENGTHS, ORIGINAL, Published

CAPTIONS = {
    "difference_4b_english.png": "Change of NDCG@5 by English task of the 4B, as published; no intervals are published.",
    "averages.png": "Change of the published averages by calibration length; sample counts and batch sizes change with it.",
}


def draw(output: Path, p: Published) -> list[Path]:
    """Both figures, to `output`/figures/published."""
    folder = Path(output) / "figures" / "published"
    return [
        _save(folder / "difference_4b_english.png", _tasks(p)),
        _save(folder / "averages.png", _averages(p)),
    ]


def _save(path: Path, figure) -> Path:
    with atomic(path) as target:
        figure.savefig(target, dpi=quality.DPI, metadata={"Software": None})
    plt.close(figure)
    return path


def _tasks(p: Published):
    table, colours = 100 * p.differences, sns.color_palette("colorblind")
    figure, axis = quality.canvas(1.7 + 0.3 * len(table))
    for i, name in enumerate(LENGTHS):
        axis.plot(
            table[name],
            [y + (i - 1) * 0.22 for y in range(len(table))],
            quality.MARKERS[i + 1],
            color=colours[i],
            markersize=5,
            label=name.replace("-", "="),
        )
    quality.rows(axis, [quality.short(task) for task in table.index])
    for y in range(1, len(table)):
        axis.axhline(y - 0.5, color="0.88", linewidth=0.8)
    axis.axvline(0, color="black", linewidth=1)
    axis.set(
        title="Published: change of NDCG@5 of the 4B by English task",
        xlabel="points (NDCG@5 × 100), as published, without intervals",
    )
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    return figure


def _averages(p: Published):
    """One row per model, report and task set; a marker per calibration length."""
    groups = list(
        p.averages.drop_duplicates(["source", "model", "scope", "variant"]).groupby(
            ["model", "scope", "source"]
        )
    )
    figure, axis = quality.canvas(1.6 + 0.48 * len(groups))
    names, colours = [], sns.color_palette("colorblind")
    for y, ((model, scope, source), group) in enumerate(groups):
        scores = group.set_index("variant").ndcg_at_5
        count = p.counts[
            (p.counts.source == source) & (p.counts.model == model) & (p.counts.scope == scope)
        ].entries
        report = "comparison" if source.startswith("comparison") else "analysis"
        names.append(
            f"{model.upper()}, {scope.replace('english', 'English')}, {report} report\n({f'{int(count.iloc[0])} entries' if len(count) else 'entries not published'})"
        )
        for i, length in enumerate(LENGTHS):
            axis.plot(
                pub.percent(scores[length], scores[ORIGINAL]),
                y + (i - 1) * 0.18,
                quality.MARKERS[i],
                color=colours[i],
                markersize=6.5,
                label=f"{int(length.removeprefix('seqlen-')):,} tokens" if y == 0 else None,
            )
    quality.rows(axis, names)
    for y in range(1, len(groups)):
        axis.axhline(y - 0.5, color="0.88", linewidth=0.8)
    axis.grid(axis="y", visible=False)
    axis.axvline(0, color="black", linewidth=1)
    axis.set(
        title="Published averages by calibration length",
        xlabel="change of average NDCG@5 from the original (%); no intervals published",
    )
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    return figure
