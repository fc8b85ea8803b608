"""From loaded results to the tables that reports and figures share, so that both show the same numbers.

An *entry* is a task in one language; every average is the mean over entries of the mean over queries,
the way published tables average. Intervals are paired by query and in closed form (`stats`).
Differences are variant minus base, in NDCG units. No text and no drawing here.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from colq_utils.report import labels, stats
from colq_utils.report.results import ENTRY, REFERENCES, Results

#: Two scores that print alike with five decimals count as unchanged.
UNCHANGED = 0.5e-5
#: What `study` averages over queries.
MEASURES = ("ndcg", "margin", "overlap", "top_changed")
ENTRY_COUNTS = ["improved", "unchanged", "degraded", "clearly_improved", "clearly_degraded"]


@dataclass(frozen=True)
class Study:
    """Results with what is computed from them: see `study`.

    Attributes:
        entries: a row per entry, in the order of the strata of all `Means`.
        names: the evaluated variants, in the order of the columns of all `Means`.
        paired: (n_queries, n_variants) NDCG@5 minus the base's.
        strata, clusters: (n_queries,) the entry and the source of each query, None where not known.
    """

    results: Results
    entries: pd.DataFrame
    names: list[str]
    ndcg: stats.Means
    margin: stats.Means
    overlap: stats.Means
    top_changed: stats.Means
    paired: np.ndarray
    strata: np.ndarray
    clusters: np.ndarray | None

    @property
    def experiment(self):
        return self.results.experiment

    @property
    def base_column(self) -> int:
        """The base's column in all `Means`."""
        return self.names.index(self.experiment.base)

    @property
    def counted(self) -> np.ndarray:
        return self.entries.counted.to_numpy(bool)

    @property
    def english(self) -> np.ndarray:
        language = self.entries.lang.str.lower().str.split("-").str[0]
        return self.counted & language.isin(["en", "eng", "english"]).to_numpy()

    @cached_property
    def labels(self) -> dict[str, str]:
        """Variant id -> what figures and tables call it."""
        named = labels.of(self.experiment)
        named[self.experiment.base] += " (base)"
        return named | {n: f"{named[n]} (fell back)" for n in self.fell_back & set(named)} | REFERENCES

    @cached_property
    def fell_back(self) -> set[str]:
        """Variants that are not what their name says: AutoRound failed, and a named fallback made them."""
        table = self.results.variants
        return set() if table is None or "fallback" not in table else set(table.variant[table.fallback != ""])

    @cached_property
    def suite(self) -> pd.DataFrame:
        return averages(self, self.counted)

    @cached_property
    def english_suite(self) -> pd.DataFrame:
        return averages(self, self.english)

    @cached_property
    def by_entry(self) -> pd.DataFrame:
        return entry_table(self)


def study(results: Results) -> Study:
    """Put the measures of every query into `stats.Means`, of which all averages that follow are made."""
    names, table = results.evaluated, per_query(results)
    strata, clusters = _strata(table)
    means = {
        measure: stats.means(table[[f"{measure} {n}" for n in names]], strata, clusters)
        for measure in MEASURES
    }
    entries = pd.DataFrame([s.split("\t") for s in means["ndcg"].strata], columns=ENTRY)
    scores = results.scores.drop_duplicates(ENTRY)[[*ENTRY, "n_queries", "n_pages", "counted", "group"]]
    entries = entries.merge(scores, on=ENTRY, how="left")
    paired = table[[f"ndcg {n}" for n in names]].sub(table[f"ndcg {results.base}"], axis=0).to_numpy()
    return Study(results, entries, names, **means, paired=paired, strata=strata, clusters=clusters)


def _strata(queries: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None]:
    """The entry of each query, and its source where the results name one."""
    clusters = queries.source.to_numpy(str) if "source" in queries else None
    return (queries.task + "\t" + queries.lang).to_numpy(str), clusters


def per_query(results: Results) -> pd.DataFrame:
    """A row per query with its `source` if known, and a column '<measure> <variant>' for each of `MEASURES`.

    overlap is the share of the base's top 5 that is kept; top_changed is 1 where another page is first.
    """
    keys = [*ENTRY, "query_id"]
    queries = results.queries[results.queries.variant.isin(results.evaluated)]
    wide = queries.pivot(index=keys, columns="variant", values=["ndcg_at_5", "margin", "top5"]).sort_index()
    table = pd.DataFrame(index=wide.index)
    for name in results.evaluated:
        table[f"ndcg {name}"] = wide["ndcg_at_5", name].astype(float)
        table[f"margin {name}"] = wide["margin", name].astype(float)
        kept = [_kept(*tops) for tops in zip(wide["top5", name], wide["top5", results.base])]
        table[f"overlap {name}"], table[f"top_changed {name}"] = np.transpose(kept)
    table = table.reset_index()
    if "source" in queries:  # queries that share their words, in another language or misspelt
        table = table.merge(queries.drop_duplicates(keys)[[*keys, "source"]], on=keys)
    return table


def _kept(top, base) -> tuple[float, float]:
    """Overlap and top_changed of one query; NaN where a variant has no ranking."""
    if np.ndim(top) == 0 or np.ndim(base) == 0 or len(base) == 0:
        return np.nan, np.nan
    return len({*top} & {*base}) / len({*base}), float(list(top[:1]) != list(base[:1]))


def against_base(study: Study, measured: stats.Estimate) -> dict[str, np.ndarray]:
    """Scores and differences to base with 95 % intervals, a value per variant."""
    difference = measured - measured.of([study.base_column])
    (low, high), (diff_low, diff_high) = measured.interval(), difference.interval()
    change = {"diff": difference.value, "diff_low": diff_low, "diff_high": diff_high}
    return {"score": measured.value, "low": low, "high": high} | change


def averages(study: Study, keep: np.ndarray) -> pd.DataFrame:
    """A row a variant, over the entries where `keep` is true: score, difference to base, tests, counts.

    Columns: score, low, high, se; diff, diff_low, diff_high, diff_se, mdd; p, p_holm
    (t test, Holm over the quantized variants); verdict; wins, ties, losses (queries);
    `ENTRY_COUNTS` (entries), clearly where an entry's own interval leaves 0 out.
    """
    measured = study.ndcg.suite(keep)
    difference = measured - measured.of([study.base_column])
    table = pd.DataFrame({"variant": study.names} | against_base(study, measured))
    margin, base = study.experiment.evaluation.margin, table.variant == study.experiment.base
    kept = np.array(study.ndcg.strata)[keep]
    rows = np.isin(study.strata, kept)
    verdicts = [stats.verdict(*limits, margin) for limits in zip(table.diff_low, table.diff_high)]
    table = table.assign(
        se=measured.se,
        diff_se=difference.se,
        mdd=stats.minimal_detectable(difference.se),
        p=np.where(base, np.nan, difference.p),
        p_holm=lambda t: stats.holm(t.p.where(t.variant.isin(study.experiment.compared))),
        verdict=np.where(base, "", verdicts),
    )
    table[["wins", "ties", "losses"]] = [stats.win_tie_loss(column) for column in study.paired[rows].T]
    entries = study.by_entry[(study.by_entry.task + "\t" + study.by_entry.lang).isin(kept)]
    return table.join(entries.groupby("variant")[ENTRY_COUNTS].sum(), on="variant")


def entry_table(study: Study) -> pd.DataFrame:
    """A row a variant and entry: the entry, the columns of `against_base`, and `ENTRY_COUNTS` as truths."""
    only = np.eye(len(study.entries), dtype=bool)
    compared = [pd.DataFrame(against_base(study, study.ndcg.suite(keep))) for keep in only]  # one an entry
    by_variant = [pd.concat([table.iloc[[v]] for table in compared]) for v in range(len(study.names))]
    tables = [
        study.entries.assign(variant=name, **columns.reset_index(drop=True))
        for name, columns in zip(study.names, by_variant)
    ]
    return pd.concat(tables, ignore_index=True).assign(
        improved=lambda t: t["diff"] >= UNCHANGED,
        unchanged=lambda t: t["diff"].abs() < UNCHANGED,
        degraded=lambda t: t["diff"] <= -UNCHANGED,
        clearly_improved=lambda t: t.diff_low > stats.ROUNDING,
        clearly_degraded=lambda t: t.diff_high < -stats.ROUNDING,
    )


def by_task(study: Study, keep: np.ndarray) -> pd.DataFrame:
    """As `entry_table`, averaged over the languages of each task."""
    tables = []
    for task in sorted(study.entries.task[keep].unique()):
        rows = keep & (study.entries.task == task).to_numpy()
        table = pd.DataFrame({"variant": study.names, "task": task, "languages": int(rows.sum())})
        n_queries = int(study.entries.n_queries[rows].sum())
        tables.append(table.assign(n_queries=n_queries, **against_base(study, study.ndcg.suite(rows))))
    return pd.concat(tables, ignore_index=True)


def drift(study: Study) -> pd.DataFrame:
    """Change against base by NDCG@5, score lead of the relevant page, and share of the top 5 kept.

    The overlap of any two runs is below 1 as soon as one page moves; it tells the bits only where it is
    below that of another rounding of the same weights (fp32), if the experiment has one.
    """
    tables = []
    for measure in ("ndcg", "margin", "overlap"):
        measured = getattr(study, measure).suite(study.counted)
        change = measured - measured.of([study.base_column])
        low, high = change.interval()
        table = pd.DataFrame({"variant": study.names, "measure": measure, "value": measured.value})
        tables.append(table.assign(diff=change.value, low=low, high=high))
    return pd.concat(tables, ignore_index=True).assign(resolved=lambda t: stats.resolved(t.low, t.high))


def top_page_changes(study: Study) -> pd.DataFrame:
    """A row per variant: share of queries whose first page is not the base's, with its 95 % interval."""
    changed = study.top_changed.suite(study.counted)
    low, high = changed.interval()
    columns = {"top_changed": changed.value, "top_changed_low": low, "top_changed_high": high}
    return pd.DataFrame({"variant": study.names} | columns)


def pairs(study: Study, wanted: list[tuple[str, str]]) -> pd.DataFrame:
    """Differences first minus second of the `wanted` pairs, by NDCG@5 and score lead (`margin` in results).

    The intervals hold for all pairs together: each has the level 1 - 0.05 / number of pairs (Bonferroni).
    """
    tables, level = [], 1 - (1 - stats.LEVEL) / max(1, len(wanted))
    first, second = ([pair[side] for pair in wanted] for side in (0, 1))
    for measure in ("ndcg", "margin"):
        measured = getattr(study, measure).suite(study.counted)
        a, b = ([study.names.index(name) for name in names] for names in (first, second))
        spread = measured.of(a) - measured.of(b)
        low, high = spread.interval(level)
        columns = {"measure": measure, "first": first, "second": second, "diff": spread.value}
        detectable = stats.minimal_detectable(spread.se, level)
        tables.append(pd.DataFrame(columns | {"low": low, "high": high, "mdd": detectable}))
    return pd.concat(tables, ignore_index=True).assign(resolved=lambda t: stats.resolved(t.low, t.high))


def sizes(results: Results) -> pd.DataFrame:
    """A row a variant: tensor bytes of its first export and of the base, reduction in percent.

    What is rounded at loading has the size of the checkpoint that it is made from.
    """
    columns = ["variant", "bytes", "base_bytes"]
    if results.variants is None:
        return pd.DataFrame(columns=[*columns, "reduction_pct"])
    first = results.variants.drop_duplicates("variant").rename(columns={"tensor_bytes": "bytes"})[columns]
    if results.base not in set(first.variant):
        base = [(results.base, size, size) for size in first.base_bytes.dropna()[:1]]
        first = pd.concat([pd.DataFrame(base, columns=columns), first], ignore_index=True)
    model = results.experiment.model.size
    stored = {n: v.stored(model) for n, v in results.experiment.by_id.items() if v.is_converted}
    made_from = [(n, w) for n, w in stored.items() if n != w and w in set(first.variant)]
    others = [first[first.variant == weights].assign(variant=name) for name, weights in made_from]
    first = pd.concat([first, *others], ignore_index=True)
    return first.assign(reduction_pct=100 * (1 - first["bytes"] / first.base_bytes))


def references(study: Study) -> pd.DataFrame:
    """BM25 and random weights over the counted entries that they were run on (`entries` of `of`)."""
    rows, counted = [], study.entries[study.counted][ENTRY]
    for name in REFERENCES:
        scores, queries = (
            table[table.variant == name].merge(counted, on=ENTRY)
            for table in (study.results.scores, study.results.queries)
        )
        if scores.empty:
            continue
        low = high = np.nan
        if len(queries):
            queries = queries.sort_values([*ENTRY, "query_id"])
            means = stats.means(queries.ndcg_at_5, *_strata(queries))
            low, high = np.ravel(means.suite().interval())
        rows.append((name, scores.ndcg_at_5.mean(), low, high, len(scores), len(counted)))
    return pd.DataFrame(rows, columns=["variant", "score", "low", "high", "entries", "of"])
