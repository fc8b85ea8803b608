"""Every recipe of the study as one row, and which of them is the smallest that keeps its quality.

A recipe is everything about a checkpoint but its seed: format, method, group size, symmetry, scope, vision
tower, calibration set and iterations. Its seeds are pooled, and its interval covers queries and seeds.
"""

import pandas as pd

from colq_utils.report import stats
from studies.seqlen import analysis
from studies.seqlen.analysis import SeqlenStudy

RECIPE = ["format", "method", "group_size", "sym", "scope", "visual", "set", "iters"]


def table(study: SeqlenStudy) -> pd.DataFrame:
    """One row per recipe: label, vision, names, seeds, bytes, diff, diff_low, diff_high, verdict.

    Differences are in NDCG units; the base has no row.
    Runs of family `order` are left out: they repeat one recipe on one text to see what the batches alone do.
    """
    runs, rows = study.good[~study.good["family"].isin(["base", "order"])], []
    for _, same in runs.groupby(RECIPE, dropna=False, sort=False):
        mean = analysis.mean_score(study, same["variant"].tolist())
        row = {key: mean[key] for key in ("seeds", "diff", "diff_low", "diff_high")}
        row |= {"label": label(study, same.iloc[0]), "names": same["variant"].tolist()}
        rows.append(row | {"vision": same["visual"].iloc[0] != "bf16", "bytes": same["bytes"].iloc[0]})
    recipes = pd.DataFrame(rows)
    limits = zip(recipes["diff_low"], recipes["diff_high"])
    return recipes.assign(verdict=[stats.verdict(*ends, study.spec.margin) for ends in limits])


def smallest(recipes: pd.DataFrame) -> pd.Series | None:
    """The recipe of fewest bytes that is shown to stay within the margin; of several the best mean."""
    clear = recipes[recipes["verdict"] == "non-inferior"]
    clear = clear.sort_values(["bytes", "diff"], ascending=[True, False])
    return None if clear.empty else clear.iloc[0]


def nearly(recipes: pd.DataFrame) -> pd.Series | None:
    """Of tuned four-bit recipes whose interval ends at the margin the best mean, if all else is in bf16."""
    tuned = recipes[recipes["label"].str.startswith("W4 AutoRound") & (recipes["verdict"] == "at the margin")]
    tuned = tuned[(tuned["diff_high"] > 0) & ~tuned["vision"]].sort_values("diff", ascending=False)
    return None if tuned.empty else tuned.iloc[0]


def label(study: SeqlenStudy, run: pd.Series) -> str:
    """A recipe in words, from the row of one of its runs."""
    form = str(run["format"]).upper()
    if run["method"] == "autoround":
        parts = [f"{form} AutoRound", _rows(study, run), f"{int(run['iters']):,} iterations"]
    else:
        parts = ["language model in bf16" if form == "BF16" else f"{form} rounded to nearest"]
    parts += [f"groups of {run['group_size']}"] if run["group_size"] != 128 else []
    parts += [] if run["sym"] else ["asymmetric"]
    parts += [f"{run['scope']} alone"] if run["scope"] != "all" else []
    parts += [f"vision tower {run['visual'].upper()}"] if run["visual"] != "bf16" else []
    return ", ".join(parts)


def _rows(study: SeqlenStudy, run: pd.Series) -> str:
    """The calibration set of a run in words."""
    wanted = study.spec.set(run["set"])
    kinds = {
        "content": " of pages and queries",
        "confounded": ", sample count as published",
        "budget": f", {wanted.seqlen * wanted.blocks:,} tokens in all",
    }
    return f"{wanted.seqlen:,}-token rows{kinds.get(run['family'], '')}"


def checkpoints(study: SeqlenStudy) -> pd.DataFrame:
    """One row per kind of checkpoint, seeds pooled: group, label, bytes, diff and its interval."""
    table, columns = analysis.scores(study), ["bytes", "diff", "diff_low", "diff_high"]
    single = table[table["family"].isin(["rtn", "float", "vision"])]
    rows = [{"group": row["family"], "label": shape(row), **row[columns]} for _, row in single.iterrows()]
    tuned = table[
        (table["iters"] == 200)
        & ((table["family"] == "tuned") | ((table["family"] == "length") & (table["set"] == "s512")))
    ]
    for _, subset in tuned.groupby(["format", "group_size", "sym"]):
        mean = analysis.mean_score(study, subset["variant"].tolist()) | {"bytes": subset["bytes"].iloc[0]}
        cells = {column: mean[column] for column in columns}
        rows.append({"group": "tuned", "label": shape(subset.iloc[0]), **cells})
    return pd.DataFrame(rows)


def shape(run: pd.Series) -> str:
    """Format, group size and symmetry of a run, and the vision tower's format where it is rounded too."""
    text = str(run["format"]).upper()
    if run["visual"] != "bf16":
        return f"{text.replace('BF16', 'bf16')}, vision {run['visual'].upper()}"
    if not text.startswith("W"):
        return text
    return f"{text} g{run['group_size']}{'' if run['sym'] else ' asym.'}"


#: Variants without seeds that figures and tables of drift show before those of AutoRound, and after them.
ROUNDED_FIRST = {
    "FP32": "fp32",
    "W8": "w8-rtn",
    "FP8": "fp8-rtn",
    "W4, groups of 32": "w4-rtn-g32",
    "MXFP4": "mxfp4-rtn",
    "W4": "w4-rtn",
}
ROUNDED_LAST = {"W3": "w3-rtn", "W2": "w2-rtn", "vision tower W4 alone": "bf16-vision-w4"}


def groups(study: SeqlenStudy) -> dict[str, list[str]]:
    """Variants that figures and tables of drift show, seeds together."""
    arms = {
        f"W4 AutoRound, {study.spec.length(name):,} tokens, {iters:,} it.": ("length", iters, name, "w4")
        for iters in (200, 1000)
        for name in ("s256", "s512", "s1024")
    }
    arms["W4 AutoRound, pages+queries, 200 it."] = ("content", 200, "pq512", "w4")
    for form in ("w3", "w2"):
        arms[f"{form.upper()} AutoRound, 512 tokens, 200 it."] = ("tuned", 200, "s512", form)
    tuned = {}
    for label, (family, iters, name, form) in arms.items():
        tuned[label] = study.arm(family, iters=iters, set=name, format=form)["variant"].tolist()
    first, last = (
        {label: [name] for label, name in table.items() if name in study.names}
        for table in (ROUNDED_FIRST, ROUNDED_LAST)
    )
    return first | {label: variants for label, variants in tuned.items() if variants} | last
