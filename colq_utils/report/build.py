"""Writes the reports and the README's snippet from a `Study`; same results, same bytes, no dates."""
from pathlib import Path

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.report import analysis, findings, results
from colq_utils.report import benchmark_cpu as report_benchmark
from colq_utils.report import english as report_english
from colq_utils.report import markdown as md
from colq_utils.report import quantization as report_analysis
from colq_utils.report.analysis import Study

REPORTS = {"quantization_analysis.md": report_analysis.write, "comparison_english.md": report_english.write, "benchmark.md": report_benchmark.write}
MARKER = "<!-- headline -->"


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
    """Put the snippet of an experiment's scores into the README."""
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
