"""Writes the reports and the README's snippet from a `Study`; same results, same bytes, no dates."""
from pathlib import Path

from . import analysis, files, findings, report_analysis, report_benchmark, report_english, results
from . import markdown as md
from .analysis import Study
from .config import Experiment
from .errors import ColqError

REPORTS = {"quantization_analysis.md": report_analysis.write, "comparison_english.md": report_english.write, "benchmark.md": report_benchmark.write}
MARKER = "<!-- headline -->"
#: Around the README's snippet of a study of speed.
SPEED_MARKER = "<!-- speed -->"


def write(study: Study) -> list[Path]:
    """Write every report to results/<experiment>/reports/. Draw the figures first: reports link those that exist."""
    folder = study.experiment.results("reports")
    return [files.write_text(folder / name, text) for name, text in render(study).items()]


def render(study: Study) -> dict[str, str]:
    """File name -> text of every report."""
    return {name: text(study) for name, text in REPORTS.items()}


def headline(study: Study) -> str:
    """The README's snippet: a short table and one sentence."""
    sizes = analysis.sizes(study.results)
    table = study.suite.merge(sizes, on="variant", how="left")
    rows = [(study.labels[r.variant], md.megabytes(r["bytes"]), md.score_ci(r.score, r.low, r.high),
             "-" if r.variant == study.experiment.base else md.points_ci(r["diff"], r.diff_low, r.diff_high), r.verdict or "-")
            for _, r in table.iterrows() if r.variant == study.experiment.base or r.variant in study.experiment.quantized]
    header = ["Variant", "Checkpoint (MB)", "NDCG@5", "Change (points)", f"At a margin of {findings.points(study)} points"]
    n = study.entries[study.counted]
    return md.table(header, rows) + (f"\n\nMean over {len(n)} tasks x languages, {int(n.n_queries.sum()):,} queries; brackets are 95 % intervals. "
                                     + findings.recommend(study).text)


def refresh_readme(path: Path, experiment: Experiment) -> Path:
    """Put the snippet of an experiment's results into the README: of its scores, or of its speed."""
    if experiment.task == "speed":
        from . import report_gpu  # which needs torch; the other reports do not
        return update_readme(path, report_gpu.headline(report_gpu.Speed(experiment)), SPEED_MARKER)
    return update_readme(path, headline(analysis.study(results.load(experiment))))


def update_readme(path: str | Path, snippet: str, marker: str = MARKER) -> Path:
    """Put `snippet` between the two markers of a file.

    Raises:
        ColqError: the file has not exactly two markers.
    """
    parts = Path(path).read_text().split(marker)
    if len(parts) != 3:
        raise ColqError(f"{path} holds the marker {marker} {len(parts) - 1} times; put it twice, around the place of the table")
    return files.write_text(Path(path), f"{parts[0]}{marker}\n{snippet.strip()}\n{marker}{parts[2]}")
