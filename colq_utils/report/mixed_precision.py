"""Must the corpus be embedded again? Queries of one precision against pages of another, beside the base.

Differences are paired by query, as all others are, so that a change here and one there can be compared.
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

    Columns: variant, label, verdict of keep; for each of keep (own queries, the base's pages), reverse, and
    again (own pages instead of the base's): *_change and *_shows in words, *_low and *_high.
    """
    if study.results.mixed is None:
        return None
    if "mixed" not in vars(study):  # kept with the study, as its own tables are: takes seconds
        vars(study)["mixed"] = _changes(study, study.results.mixed)
    return vars(study)["mixed"]


def _changes(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    keys, base, margin = [*ENTRY, "query_id"], study.base_column, study.experiment.evaluation.margin
    queries = study.results.queries
    asked = queries[queries.variant == study.experiment.base].sort_values(keys)[keys]  # as in `study.strata`
    wide = table.pivot(index=keys, columns=["variant", "queries"], values="ndcg_at_5")
    names = [name for name in study.names if name in set(table.variant)]
    columns = pd.MultiIndex.from_product([names, DIRECTIONS.values()])
    values = wide.reindex(index=pd.MultiIndex.from_frame(asked), columns=columns)
    mixed = stats.means(values, study.strata, study.clusters).suite(study.counted)
    full = study.ndcg.suite(study.counted)
    rows = []
    for i, name in enumerate(names):
        own, row = study.names.index(name), {"variant": name, "label": study.labels[name]}
        for j, column in enumerate(DIRECTIONS, 2 * i):
            row |= _change(column, mixed.of([j]) - full.of([base]))
            row[f"{column}_shows"] = wording.change(row[f"{column}_low"], row[f"{column}_high"], margin)
        row |= _change("again", full.of([own]) - mixed.of([2 * i]))
        row["again_shows"] = wording.pair(row["again_low"], row["again_high"])
        rows.append(row | {"verdict": stats.verdict(row["keep_low"], row["keep_high"], margin)})
    return pd.DataFrame(rows)


def of(study: Study, row: dict | None) -> dict | None:
    """The row of `changes` of one variant (a row with its id), None if that was not measured."""
    table = changes(study)
    rows = [] if table is None or row is None else table[table.variant == row["variant"]].to_dict("records")
    return rows[0] if rows and rows[0]["verdict"] != "not measured" else None


def _change(name: str, difference: stats.Estimate) -> dict:
    low, high = (float(end[0]) for end in difference.interval())
    words = change_ci(float(difference.value[0]), low, high)
    return {f"{name}_change": words, f"{name}_low": low, f"{name}_high": high}
