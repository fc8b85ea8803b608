"""How far vectors and scores move from the base's, by variant, length, language, query and page."""

from itertools import combinations, product

import numpy as np
import pandas as pd

from colq_utils.report import stats
from studies.seqlen.analysis import SeqlenStudy, scores, seed_reach

#: Columns of the results and what their means are called here.
MEANS = {"cosine": "query_cosine", "drift": "score_drift", "kept": "top5_kept"}
#: Tasks that say more of a query than its type does.
KIND_BY_TASK = {
    "MiniVidoreCrosslingual": "heading in another language",
    "MiniVidoreMisspelt": "misspelt phrase",
}


def by_variant(study: SeqlenStudy) -> pd.DataFrame:
    """Mean token cosine of queries and pages, MaxSim drift per query token, share of the top five kept."""
    pages = study.pages.assign(total=study.pages["cosine_mean"] * study.pages["tokens"]).groupby("variant")
    sums, means = pages[["total", "tokens"]].sum(), study.queries.groupby("variant")[list(MEANS)].mean()
    table = means.rename(columns=MEANS).assign(
        page_cosine=sums["total"] / sums["tokens"], page_cosine_min=pages["cosine_min"].min()
    )
    table["top5_kept"] /= 5
    return table.reindex(study.names).join(study.runs.set_index("variant")[["not_finite"]])


def pairs(study: SeqlenStudy, table: pd.DataFrame) -> pd.DataFrame:
    """Every two sets of `lengths.blocks`, longer minus shorter; the t intervals hold together."""
    drift = by_variant(study)
    measures = ("query_cosine", "page_cosine", "score_drift")
    wanted = list(product(measures, combinations(table.columns, 2)))
    level, rows = 1 - (1 - stats.LEVEL) / len(wanted), []
    for measure, (second, first) in wanted:
        row = {"measure": measure, "first": first, "second": second}
        rows.append(row | difference(drift[measure], table[first], table[second], level))
    rows = pd.DataFrame(rows)
    return rows.assign(resolved=stats.resolved(rows["low"], rows["high"]))


def difference(values: pd.Series, first: pd.Series, second: pd.Series, level: float = stats.LEVEL) -> dict:
    """Mean of `values` of one arm minus another, seed by seed, with the t interval over seeds."""
    each = values[first].to_numpy() - values[second].to_numpy()
    mean, reach = each.mean(), seed_reach(each, level)
    return {"diff": mean, "low": mean - reach, "high": mean + reach}


def kind_of_query(task: str, kind: str) -> str:
    """What a query is, in the words of the report: by its task where that says more than the type."""
    if task in KIND_BY_TASK:
        return KIND_BY_TASK[task]
    return next((word for word in ("heading", "phrase") if kind.startswith(word)), "keywords")


def by_query(study: SeqlenStudy, groups: dict[str, list[str]], by: str) -> pd.DataFrame:
    """Drift and change of NDCG@5 of groups of variants (their mean) by `lang` or `kind` of query; all tasks.

    Columns: group, by's value, n, diff with an interval over queries, query_cosine, score_drift, top5_kept.
    """
    kinds = [kind_of_query(task, kind) for task, kind in zip(study.asked["task"], study.asked["type"])]
    asked, places = study.asked.assign(kind=kinds), pd.Index(study.names)
    columns = [places.get_indexer(variants) for variants in groups.values()]

    def group_means(column: str) -> np.ndarray:  # (n_queries, n_groups)
        wide = study.wide(column)
        return np.stack([wide[:, c].mean(1) for c in columns], axis=1)

    means = {name: group_means(column) for column, name in MEANS.items()}
    base = study.ndcg[:, [places.get_loc(study.spec.base)]]
    change = np.stack([study.ndcg[:, c].mean(1) for c in columns], axis=1) - base
    rows = []
    for value, subset in asked.groupby(by, sort=True):
        at, sources = subset.index.to_numpy(), subset["source"].to_numpy(str)
        one_stratum = np.zeros(len(at), int)
        measured = stats.means(change[at], one_stratum, sources).suite()
        low, high = measured.interval()
        for i, label in enumerate(groups):
            row = {"group": label, by: value, "n": len(at)}
            row |= {"diff": measured.value[i], "low": low[i], "high": high[i]}
            rows.append(row | {name: mean[at, i].mean() for name, mean in means.items()})
    return pd.DataFrame(rows).assign(top5_kept=lambda t: t["top5_kept"] / 5)


def by_page(study: SeqlenStudy, groups: dict[str, list[str]]) -> pd.DataFrame:
    """Mean and least token cosine of pages by group of variants, language and kind of page."""
    parts = []
    for label, variants in groups.items():
        pages = study.pages[study.pages["variant"].isin(variants)].groupby(
            ["lang", "scanned"], as_index=False
        )
        cosines = pages.agg(cosine_mean=("cosine_mean", "mean"), cosine_min=("cosine_min", "min"))
        parts.append(cosines.assign(group=label))
    return pd.concat(parts, ignore_index=True)


def sensitivity(study: SeqlenStudy) -> pd.DataFrame:
    """The one-at-a-time variants: their scores and drift."""
    table = scores(study)
    table = table[table["family"].isin(["layers", "kinds"])]
    return table.join(by_variant(study).drop(columns="not_finite"), on="variant")
