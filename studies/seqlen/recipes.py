"""Every recipe of the study as one row, and which of them is the smallest that keeps its quality.

A recipe is everything about a checkpoint but its seed: format, method, group size, symmetry, scope, vision tower,
calibration set and iterations. Its seeds are pooled, and its interval covers queries and seeds.
"""

import numpy as np
import pandas as pd

from colq_utils.report import markdown as md
from studies.seqlen import analysis
from studies.seqlen.analysis import SeqlenStudy

RECIPE = ["format", "method", "group_size", "sym", "scope", "visual", "set", "iters"]
#: An interval that ends this close to the margin (points) is too close for a verdict: the arithmetic of another device moves it further.
NEAR = 0.05


def table(study: SeqlenStudy) -> pd.DataFrame:
    """One row per recipe that changes the base: label, vision, names, seeds, bytes, diff, diff_low, diff_high (NDCG units).

    Runs of family `order` are left out: they repeat one recipe on one text to see what the batches alone do.
    """
    runs = study.runs[(study.runs["error"] == "") & ~study.runs["family"].isin(["base", "order"])]
    rows = []
    for _, same in runs.groupby(RECIPE, dropna=False, sort=False):
        names = same["variant"].tolist()
        mean = analysis.mean_score(study, names)
        rows.append(
            {
                "label": label(study, same.iloc[0]),
                "vision": same["visual"].iloc[0] != "bf16",
                "names": names,
                "seeds": len(names),
                "bytes": same["bytes"].iloc[0],
                **{key: mean[key] for key in ("diff", "diff_low", "diff_high")},
            }
        )
    return pd.DataFrame(rows)


def smallest(recipes: pd.DataFrame, margin: float) -> pd.Series | None:
    """The recipe of fewest bytes whose whole interval lies above -margin; of several the one of the higher mean."""
    clear = recipes[recipes["diff_low"] > -margin].sort_values(["bytes", "diff"], ascending=[True, False])
    return None if clear.empty else clear.iloc[0]


def label(study: SeqlenStudy, run: pd.Series) -> str:
    """A recipe in words, from the row of one of its runs."""
    form = str(run["format"]).upper()
    parts = [
        f"{form} AutoRound"
        if run["method"] == "autoround"
        else f"{form} rounded to nearest"
        if form != "BF16"
        else "language model in bf16"
    ]
    if run["method"] == "autoround":
        chosen = study.spec.set(run["set"])
        what = {
            "p": "-token rows, sample count as published",
            "b": f"-token rows, {chosen.seqlen * chosen.blocks:,} tokens in all",
        }
        kind = (
            "-token rows of pages and queries"
            if chosen.kind == "pages"
            else what.get(run["set"][0], "-token rows")
        )
        parts += [f"{chosen.seqlen:,}{kind}", f"{int(run['iters']):,} iterations"]
    parts += [f"groups of {run['group_size']}"] if run["group_size"] != 128 else []
    parts += [] if run["sym"] else ["asymmetric"]
    parts += [f"{run['scope']} alone"] if run["scope"] != "all" else []
    parts += [f"vision tower {run['visual'].upper()}"] if run["visual"] != "bf16" else []
    return ", ".join(parts)


def verdict(low: float, high: float, margin: float) -> str:
    """What an interval of (variant - base) in NDCG units says about a loss of `margin`, in words."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return md.MISSING
    points = md.number(100 * margin, 1)
    if min(abs(low + margin), abs(high + margin)) <= NEAR / 100:
        return f"at the margin of {points}"
    if low > 0:
        return "gains"
    if low > -margin:
        return f"loses less than {points}"
    if high < -margin:
        return f"loses more than {points}"
    return "loses, by how much is open" if high < 0 else "undecided"
