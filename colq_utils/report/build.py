"""Writes reports, cards and the README's snippet from a `Study`; same results, same bytes, no dates."""

from pathlib import Path

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.report import analysis, benchmark_cpu, cards, english, quantization, results, summary
from colq_utils.report.analysis import Study
from colq_utils.report.summary import headline

REPORTS = {
    "summary.md": summary.write,
    "quantization_analysis.md": quantization.write,
    "comparison_english.md": english.write,
    "benchmark.md": benchmark_cpu.write,
}
MARKER = "<!-- headline -->"


def write(study: Study) -> list[Path]:
    """Write every report to results/<experiment>/reports/, then the cards; draw the figures first, or they
    are not linked.
    """
    folder = study.experiment.results("reports")
    reports = [files.write_text(folder / name, text) for name, text in render(study).items()]
    return reports + cards.write(study)


def render(study: Study) -> dict[str, str]:
    """File name -> text of every report, the summary first."""
    return {name: text(study) for name, text in REPORTS.items()}


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
        times = f"{path} holds the marker {marker} {len(parts) - 1} times"
        raise ColqError(f"{times}; put it twice, around the place of the table")
    return files.write_text(Path(path), f"{parts[0]}{marker}\n{snippet.strip()}\n{marker}{parts[2]}")
