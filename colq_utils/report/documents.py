"""What the summary says of one's own documents: which labels there are, and agreement with the base.

Agreement needs no labels. It says what a person who searches would see change, not whether that is worse.
"""

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from colq_utils.base.names import DOCUMENT_QUERIES
from colq_utils.report import analysis
from colq_utils.report.analysis import Study
from colq_utils.report.markdown import change_ci, value_ci
from colq_utils.report.results import ENTRY

#: Task -> the column of its change; without labels there is none.
COLUMNS = {"DocumentsLabelled": "labelled", "DocumentsKnownItem": "known"}
#: Rank correlation looks at this many first pages of the base.
FIRST = 20


def kinds(study: Study) -> list[tuple[str, int]]:
    """What each kind of query is, and how many there are."""
    counts = study.entries.set_index("task").n_queries
    return [(words, int(counts[task])) for task, words in DOCUMENT_QUERIES.values() if task in counts]


def values(study: Study) -> dict:
    """What documents.md.j2 says; nothing where the documents of a benchmark were searched."""
    if study.experiment.evaluation.documents is None:
        return {"agreement": None}
    detectable = study.suite.set_index("variant").mdd.drop(study.experiment.base).max()
    told = {"kinds": kinds(study), "agreement": agreement(study), "detectable": detectable}
    return told | {"problems": study.results.documents}


def agreement(study: Study) -> pd.DataFrame:
    """A row per quantized variant: label, change by kind of label, and what is as with the base."""
    everything = np.ones(len(study.entries), bool)
    top_changed = study.top_changed.suite(everything)
    shared = study.overlap.suite(everything).value
    correlation = rank_correlation(study)
    changed, (low, high) = top_changed.value, top_changed.interval()
    frame = pd.DataFrame(
        {
            "variant": study.names,
            "label": [study.labels[name] for name in study.names],
            "same": [value_ci(1 - c, 1 - h, 1 - lo, 1, scale=100) for c, lo, h in zip(changed, low, high)],
            "five_share": shared,
            "correlation_score": [correlation[name] for name in study.names],
        }
    )
    for task, column in COLUMNS.items():
        keep = (study.entries.task == task).to_numpy()
        if keep.any():
            table = analysis.averages(study, keep)
            changes = table[["diff", "diff_low", "diff_high"]].to_numpy()
            frame[column] = [change_ci(*change) for change in changes]
    return frame[frame.variant != study.experiment.base]


def rank_correlation(study: Study) -> dict[str, float]:
    """Variant -> mean over queries of Kendall's tau between its order of the base's first pages and theirs.

    A page that a variant ranks beyond what was kept counts as last. Source: Kendall, A New Measure of Rank
    Correlation (Biometrika 1938); tau-b, as scipy has it.
    """
    if "ranking" not in study.results.queries:
        return dict.fromkeys(study.names, float("nan"))
    wide = study.results.queries.pivot(index=[*ENTRY, "query_id"], columns="variant", values="ranking")
    base = wide[study.experiment.base]
    return {name: float(np.nanmean([_tau(*pair) for pair in zip(base, wide[name])])) for name in study.names}


def _tau(base, other) -> float:
    first, place = list(base)[:FIRST], {page: rank for rank, page in enumerate(other)}
    if len(first) < 2:
        return float("nan")
    return kendalltau(range(len(first)), [place.get(page, len(place)) for page in first]).statistic
