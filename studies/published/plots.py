"""Two figures: changes by task, and averages whose order depends on the report; no interval is published."""

from pathlib import Path

import pandas as pd

from colq_utils.report.figures import drawing
from studies.published import figures_data as pub
from studies.published.figures_data import LENGTHS, ORIGINAL, Published

CAPTIONS = {
    "difference_4b_english.png": "Change of NDCG@5 by English task of the 4B, as published; "
    "no intervals are published.",
    "averages.png": "Change of the published averages by calibration length; "
    "sample counts and batch sizes change with it.",
}


def draw(output: Path, p: Published) -> list[Path]:
    """Both figures, to `output`/figures/published."""
    folder = Path(output) / "figures" / "published"
    return [
        drawing.save(_tasks(p), folder / "difference_4b_english.png"),
        drawing.save(_averages(p), folder / "averages.png"),
    ]


def _tasks(p: Published):
    points = 100 * p.differences
    figure, axis = _dots(points, 1.7 + 0.3 * len(points), 0.22, 5)
    drawing.rows(axis, [drawing.short(task) for task in points.index])
    axis.set(
        title="Published: change of NDCG@5 of the 4B by English task",
        xlabel="points (NDCG@5 × 100), as published, without intervals",
    )
    return figure


def _averages(p: Published):
    """One row per model, report and task set."""
    places = p.changes.sort_values(["model", "scope", "source"])
    scores = pd.DataFrame(places.scores.tolist())
    changes = {name: pub.percent(scores[name], scores[ORIGINAL]) for name in LENGTHS}
    figure, axis = _dots(pd.DataFrame(changes), 1.6 + 0.48 * len(places), 0.18, 6.5)
    names = []
    for r in places.itertuples():
        entries = "entries not published" if pd.isna(r.entries) else f"{r.entries:.0f} entries"
        scope = r.scope.replace("english", "English")
        names.append(f"{r.model.upper()}, {scope}, {r.report} report\n({entries})")
    drawing.rows(axis, names)
    axis.grid(axis="y", visible=False)
    axis.set(
        title="Published averages by calibration length",
        xlabel="change of average NDCG@5 from the original (%); no intervals published",
    )
    return figure


def _dots(changes: pd.DataFrame, height: float, step: float, size: float):
    """A row per line of `changes` and in it a marker per length, `step` apart, as in other figures."""
    figure, axis = drawing.canvas(height)
    for i, ((name, column), (colour, marker)) in enumerate(zip(changes.items(), drawing.OTHERS)):
        places = [y + (i - 1) * step for y in range(len(column))]
        label = f"W4A16 AutoRound, {int(name.removeprefix('seqlen-')):,} tokens"
        axis.plot(column, places, marker, color=colour, markersize=size, label=label)
    for y in range(1, len(changes)):
        axis.axhline(y - 0.5, color="0.88", linewidth=0.8)
    axis.axvline(0, color="black", linewidth=1)
    drawing.legend(figure)
    return figure, axis
