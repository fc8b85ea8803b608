"""The same weights scored by `evaluate`: how far another device, kernel and batch move them."""

from pathlib import Path

import numpy as np
import pandas as pd

from colq_utils.base import files
from colq_utils.report import stats
from studies.seqlen.analysis import ENTRY, SeqlenStudy

#: Variant of a study -> the same weights in an experiment, after its size.
TWINS = {"bf16": "bf16"} | {f"w{bits}-rtn": f"w{bits}a16-rtn" for bits in (8, 4, 3, 2)}


def table(study: SeqlenStudy, reference: Path) -> pd.DataFrame:
    """Compare with `reference`, a queries.parquet of the evaluate stage.

    Returns:
        A row a pair: queries, share with equal NDCG@5, share with an equal first rank, mean change of the
        margin (without sign), suite scores of both, and the other's minus this study's with its interval over
        queries.
    """
    other, rows = files.read_table(reference, "evaluate"), []
    for ours, twin in TWINS.items():
        theirs = f"{study.spec.model.size}-{twin}"
        if ours in study.names and theirs in set(other["variant"]):
            rows.append(
                {"variant": ours, "other": theirs} | _pair(study, ours, other[other["variant"] == theirs])
            )
    return pd.DataFrame(rows)


def _pair(study: SeqlenStudy, ours: str, theirs: pd.DataFrame) -> dict:
    key, own = [*ENTRY, "query_id"], study.queries[study.queries["variant"] == ours]
    both = own.merge(theirs, on=key, suffixes=("", "_other")).drop(columns="source", errors="ignore")
    counted = both.merge(study.asked.loc[study.asked["counted"], [*key, "source"]], on=key)
    strata = (counted["task"] + "\t" + counted["lang"]).to_numpy(str)
    values, sources = counted[["ndcg_at_5", "ndcg_at_5_other"]], counted["source"].to_numpy(str)
    measured = stats.means(values, strata, sources).suite()
    score, other_score = measured.value
    low, high = np.ravel((measured.of([1]) - measured.of([0])).interval())
    return {
        "queries": len(both),
        "equal_ndcg": (both["ndcg_at_5"] - both["ndcg_at_5_other"]).abs().lt(1e-5).mean(),
        "equal_rank": (both["first_rank"] == both["first_rank_other"]).mean(),
        "margin_change": (both["margin"] - both["margin_other"]).abs().mean(),
        "score": score,
        "other_score": other_score,
        "diff": other_score - score,
        "diff_low": low,
        "diff_high": high,
    }
