"""Must the corpus be embedded again? Queries of one precision against pages of another, beside the base.

The same queries are drawn as for every other average, so that a change here and one there are a pair.
"""

import pandas as pd

from colq_utils.report import stats, wording
from colq_utils.report.analysis import Study
from colq_utils.report.markdown import change_ci
from colq_utils.report.results import ENTRY

#: Column -> whose queries search the other's pages.
DIRECTIONS = {"keep": "own", "reverse": "base"}


def changes(study: Study) -> pd.DataFrame | None:
    """A row per variant: change against the base in both directions, and what embedding again would change.

    Columns: variant, label; for each of keep (own queries, the base's pages), reverse, and again (own pages
    instead of the base's): *_change in words, *_low and *_high; keep_shows and reverse_shows; verdict of keep.
    """
    table = study.results.mixed
    if table is None:
        return None
    keys, base, margin = [*ENTRY, "query_id"], study.base_column, study.experiment.evaluation.margin
    queries = study.results.queries
    asked = queries[queries.variant == study.experiment.base].sort_values(keys)[keys]  # as in `study.strata`
    wide = table.pivot(index=keys, columns=["variant", "queries"], values="ndcg_at_5")
    names = [name for name in study.names if name in set(table.variant)]
    columns = pd.MultiIndex.from_product([names, DIRECTIONS.values()])
    values = wide.reindex(index=pd.MultiIndex.from_frame(asked), columns=columns)
    draws, seed = len(study.ndcg.replicates), study.experiment.seed
    means = stats.bootstrap(values, study.strata, study.clusters, draws, seed)
    value, drawn = means.suite(study.counted)
    full, full_drawn = study.ndcg.suite(study.counted)
    rows = []
    for i, name in enumerate(names):
        own, row = study.names.index(name), {"variant": name, "label": study.labels[name]}
        for j, column in enumerate(DIRECTIONS, 2 * i):
            row |= _change(column, value[j] - full[base], drawn[:, j] - full_drawn[:, base])
            row[f"{column}_shows"] = wording.change(row[f"{column}_low"], row[f"{column}_high"], margin)
        row |= _change("again", full[own] - value[2 * i], full_drawn[:, own] - drawn[:, 2 * i])
        row["again_shows"] = wording.pair(row["again_low"], row["again_high"])
        rows.append(row | {"verdict": stats.verdict(row["keep_low"], row["keep_high"], margin)})
    return pd.DataFrame(rows)


def of(study: Study, row: dict | None) -> dict | None:
    """The row of `changes` of one variant (a row with its id), None if that was not measured."""
    table = changes(study)
    rows = [] if table is None or row is None else table[table.variant == row["variant"]].to_dict("records")
    return rows[0] if rows and rows[0]["verdict"] != "not measured" else None


def _change(name: str, difference: float, replicates) -> dict:
    low, high = stats.interval(replicates)
    words = change_ci(difference, low, high)
    return {f"{name}_change": words, f"{name}_low": float(low), f"{name}_high": float(high)}
