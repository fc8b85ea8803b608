"""The band of arithmetic: how far draws of one base lie apart, and what that does to verdicts.

See `studies.seqlen.arithmetic`, which draws them on a device; here are tables alone.
"""

import numpy as np
import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import DTYPES
from colq_utils.report import stats
from studies.seqlen.analysis import ENTRY, SeqlenStudy, negative, over_seeds


def table(study: SeqlenStudy) -> pd.DataFrame:
    """A row per device and precision that was drawn: how many draws, and how far they lie apart.

    Columns: device, dtype, draws, queries; differ, the share of queries that two draws score differently,
    mean over pairs; anywhere, that of queries on which not all agree; sd, low, high: of the draws' mean over
    counted entries, in NDCG units, low and high from the mean of the draws (NaN for one draw).
    """
    rows = []
    for device in DTYPES:
        path = study.folder / f"arithmetic-{device}.parquet"
        if path.exists():
            told = files.read_json(path.with_suffix(".json"), "study")
            draws = pd.read_parquet(path)
            for dtype, same in draws.groupby(draws["draw"].str.split("-").str[0], sort=False):
                rows.append({"device": told["gpu"] or "CPU", "dtype": dtype} | _apart(study, same))
    return pd.DataFrame(rows)


def _apart(study: SeqlenStudy, draws: pd.DataFrame) -> dict:
    keys = [*ENTRY, "query_id"]
    wide = draws.pivot(index=keys, columns="draw", values="ndcg_at_5")
    values, n = wide.to_numpy(float), wide.shape[1]
    different = [np.mean(values[:, i] != values[:, j]) for i in range(n) for j in range(i)]
    counted = wide.join(study.asked.set_index(keys)["counted"])
    counted = counted[counted["counted"]].drop(columns="counted")
    means = counted.groupby(ENTRY).mean().mean()
    return {
        "draws": n,
        "queries": len(wide),
        "differ": float(np.mean(different)) if different else np.nan,
        "anywhere": float(np.mean(values.min(1) != values.max(1))),
        "sd": float(means.std()),
        "low": float(means.min() - means.mean()),
        "high": float(means.max() - means.mean()),
    }


def against_each(study: SeqlenStudy) -> dict | None:
    """How many single W4 runs of AutoRound in groups of 128 are within the margin, by the base they meet.

    Returns:
        runs; mean, against the mean of the arithmetics; least and most, against a single one of them; None
        where only the study's own run of the base is there.
    """
    if study.draws is None:
        return None
    runs = study.good[(study.good["method"] == "autoround") & (study.good["format"] == "w4")]
    names = runs["variant"][(runs["group_size"] == 128) & runs["sym"].astype(bool)].tolist()
    single = [study.base.of([i]) for i in range(len(study.base.value))]
    counts = [_within(study, names, base) for base in single]
    return {
        "runs": len(names),
        "mean": _within(study, names, study.base),
        "least": min(counts),
        "most": max(counts),
    }


def _within(study: SeqlenStudy, names: list[str], base: stats.Estimate) -> int:
    changes = [over_seeds(study.of([name]), negative(base)) for name in names]
    verdicts = [stats.verdict(change["low"], change["high"], study.spec.margin) for change in changes]
    return verdicts.count("non-inferior")
