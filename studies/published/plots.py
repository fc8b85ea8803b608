"""Two figures of the published figures: changes by task, and averages whose order depends on the report. No interval is published, none is drawn."""

from pathlib import Path

import seaborn as sns

from colq_utils.report.figures import drawing
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
        drawing.save(_tasks(p), folder / "difference_4b_english.png"),
        drawing.save(_averages(p), folder / "averages.png"),
    ]


def _tasks(p: Published):
    table, colours = 100 * p.differences, sns.color_palette("colorblind")
    figure, axis = drawing.canvas(1.7 + 0.3 * len(table))
    for i, name in enumerate(LENGTHS):
        axis.plot(
            table[name],
            [y + (i - 1) * 0.22 for y in range(len(table))],
            drawing.MARKERS[i + 1],
            color=colours[i],
            markersize=5,
            label=name.replace("-", "="),
        )
    drawing.rows(axis, [drawing.short(task) for task in table.index], "0.88")
    axis.axvline(0, color="black", linewidth=1)
    axis.set(
        title="Published: change of NDCG@5 of the 4B by English task",
        xlabel="points (NDCG@5 × 100), as published, without intervals",
    )
    drawing.legend(figure)
    return figure


def _averages(p: Published):
    """One row per model, report and task set; a marker per calibration length."""
    groups = list(
        p.averages.drop_duplicates(["source", "model", "scope", "variant"]).groupby(
            ["model", "scope", "source"]
        )
    )
    figure, axis = drawing.canvas(1.6 + 0.48 * len(groups))
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
                drawing.MARKERS[i],
                color=colours[i],
                markersize=6.5,
                label=f"{int(length.removeprefix('seqlen-')):,} tokens" if y == 0 else None,
            )
    drawing.rows(axis, names, "0.88")
    axis.axvline(0, color="black", linewidth=1)
    axis.set(
        title="Published averages by calibration length",
        xlabel="change of average NDCG@5 from the original (%); no intervals published",
    )
    drawing.legend(figure)
    return figure
