"""From loaded results to the tables that reports and figures share, so that both show the same numbers.

An *entry* is a task in one language; every average is the mean over entries of the mean over queries,
the way published tables average. Intervals come from one set of resamples for all variants (`stats`).
Differences are variant minus base, in NDCG units. No text and no drawing here.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from colq_utils.base.config import Variant
from colq_utils.report import stats
from colq_utils.report.results import ENTRY, REFERENCES, Results

#: Two scores that print alike with five decimals count as unchanged.
UNCHANGED = 0.5e-5
METHODS = {"rtn": "RTN", "autoround": "AutoRound", "base": ""}


@dataclass(frozen=True)
class Study:
    """Results with what is computed from them: see `study`."""

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
    def counted(self) -> np.ndarray:
        return self.entries.counted.to_numpy(bool)

    @property
    def english(self) -> np.ndarray:
        return (
            self.counted
            & self.entries.lang.str.lower().str.split("-").str[0].isin(["en", "eng", "english"]).to_numpy()
        )

    def group(self, name: str) -> np.ndarray:
        return (self.entries.group == name).to_numpy()

    @cached_property
    def labels(self) -> dict[str, str]:
        """Variant id -> what figures and tables call it."""
        lengths = calibration_words(self.experiment)
        named = {name: label(variant, lengths) for name, variant in self.experiment.by_id.items()}
        named[self.experiment.base] += " (base)"
        return (
            named | {name: f"{named[name]} (fell back)" for name in self.fell_back & set(named)} | REFERENCES
        )

    @cached_property
    def fell_back(self) -> set[str]:
        """Variants that were not made as their name says: AutoRound failed, and a named fallback made them."""
        table = self.results.variants
        return set() if table is None or "fallback" not in table else set(table.variant[table.fallback != ""])

    @cached_property
    def suite(self) -> pd.DataFrame:
        return averages(self, self.counted)

    @cached_property
    def known_averages(self) -> dict[bytes, pd.DataFrame]:
        """What `averages` has computed, by the entries averaged over."""
        return {}

    @cached_property
    def by_entry(self) -> pd.DataFrame:
        return entry_table(self)


def label(variant: Variant, calibrations: dict[str, str]) -> str:
    """A variant in words: scheme, method, what departs from group 128 and symmetric, then the calibration in words."""
    parts = [
        variant.scheme.upper(),
        METHODS[variant.method],
        f"g{variant.group_size}" if variant.group_size != 128 else "",
        "" if variant.sym else "asym",
    ]
    words = " ".join(part for part in parts if part)
    return (
        f"{words}, {calibrations.get(variant.calibration, variant.calibration)}"
        if variant.calibration
        else words
    )


def calibration_words(experiment) -> dict[str, str]:
    """Calibration set -> '1,024 tokens' or 'pages', with the set's id where two sets in use would read alike."""
    used = {variant.calibration for variant in experiment.by_id.values()}
    words = {
        s.id: f"{s.seqlen:,} tokens" if s.kind == "text" else "pages"
        for s in experiment.calibration.sets
        if s.id in used
    }
    return {
        name: text if list(words.values()).count(text) == 1 else f"{text} ({name})"
        for name, text in words.items()
    }


def study(results: Results, resamples: int = stats.RESAMPLES) -> Study:
    """Resample the queries once for all averages that follow; a few seconds for thousands of queries."""
    names, table = results.evaluated, per_query(results)
    strata = (table.task + "\t" + table.lang).to_numpy(str)
    clusters = table.source.to_numpy(str) if "source" in table else None
    draw = {
        column: stats.bootstrap(
            table[[f"{column} {n}" for n in names]], strata, clusters, resamples, results.experiment.seed
        )
        for column in ("ndcg", "margin", "overlap", "top_changed")
    }
    scores = results.scores.drop_duplicates(ENTRY)[[*ENTRY, "n_queries", "n_pages", "counted", "group"]]
    labels = pd.DataFrame([s.split("\t") for s in draw["ndcg"].strata], columns=ENTRY)
    values = table[[f"ndcg {n}" for n in names]].to_numpy()
    return Study(
        results,
        labels.merge(scores, on=ENTRY, how="left"),
        names,
        paired=values - values[:, [names.index(results.base)]],
        strata=strata,
        clusters=clusters,
        **draw,
    )


def per_query(results: Results) -> pd.DataFrame:
    """A row per query: '<measure> <variant>' for ndcg, margin, overlap (share of the base's top 5 that is kept) and top_changed
    (1 where another page than the base's is ranked first)."""
    keys = [*ENTRY, "query_id"]
    queries = results.queries[results.queries.variant.isin(results.evaluated)]
    wide = queries.pivot(index=keys, columns="variant", values=["ndcg_at_5", "margin", "top5"]).sort_index()
    top = {name: [_pages(pages) for pages in wide["top5", name]] for name in results.evaluated}
    table = {}
    for name in results.evaluated:
        table[f"ndcg {name}"] = wide["ndcg_at_5", name].astype(float)
        table[f"margin {name}"] = wide["margin", name].astype(float)
        table[f"overlap {name}"] = [_shared(a, b) for a, b in zip(top[name], top[results.base])]
        table[f"top_changed {name}"] = [
            _moved(a, b) for a, b in zip(wide["top5", name], wide["top5", results.base])
        ]
    table = pd.DataFrame(table, index=wide.index).reset_index()
    if "source" in queries:  # queries that share their words, in another language or misspelt
        table = table.merge(queries.drop_duplicates(keys)[[*keys, "source"]], on=keys)
    return table


def _pages(pages) -> set | None:
    return set(pages) if isinstance(pages, (list, tuple, np.ndarray)) else None


def _shared(ours: set | None, theirs: set | None) -> float:
    return np.nan if ours is None or not theirs else len(ours & theirs) / len(theirs)


def _moved(ours, theirs) -> float:
    """1 where the first of two rankings differs, 0 where it is the same page, NaN where one has no ranking."""
    if _pages(ours) is None or not _pages(theirs):
        return np.nan
    return float(len(ours) == 0 or ours[0] != theirs[0])


def averages(study: Study, keep) -> pd.DataFrame:
    """A row a variant, over the entries where `keep` is true: score, difference to base, tests, counts.

    Columns: score, low, high, se; diff, diff_low, diff_high, mdd, relative (percent of the base); p, p_holm
    (randomization test, Holm over the quantized variants); verdict; wins, ties, losses (queries);
    improved, unchanged, degraded (entries), of which clearly_improved and clearly_degraded by their intervals.
    """
    key = np.asarray(keep, bool).tobytes()
    if key not in study.known_averages:
        study.known_averages[key] = _averages(study, keep)
    return study.known_averages[key].copy()


def _averages(study: Study, keep) -> pd.DataFrame:
    base = study.names.index(study.experiment.base)
    value, replicates = study.ndcg.suite(keep)
    low, high = stats.interval(replicates)
    diff, spread = value - value[base], replicates - replicates[:, [base]]
    diff_low, diff_high = stats.interval(spread)
    table = pd.DataFrame(
        {
            "variant": study.names,
            "score": value,
            "low": low,
            "high": high,
            "se": stats.standard_error(replicates),
            "diff": diff,
            "diff_low": diff_low,
            "diff_high": diff_high,
            "mdd": stats.minimal_detectable(stats.standard_error(spread)),
            "relative": 100 * diff / value[base],
        }
    )
    table["p"], table["p_holm"] = _tests(study, keep)
    margin = study.experiment.evaluation.margin
    table["verdict"] = [stats.verdict(a, b, margin) for a, b in zip(diff_low, diff_high)]
    table.loc[base, ["verdict"]] = ""
    rows = np.isin(study.strata, np.array(study.ndcg.strata)[np.asarray(keep, bool)])
    table[["wins", "ties", "losses"]] = [stats.win_tie_loss(column) for column in study.paired[rows].T]
    return table.join(_entry_counts(study, keep), on="variant")


def _tests(study: Study, keep) -> tuple[np.ndarray, np.ndarray]:
    rows = np.isin(study.strata, np.array(study.ndcg.strata)[np.asarray(keep, bool)])
    clusters = None if study.clusters is None else study.clusters[rows]
    p = stats.randomization_test(study.paired[rows], study.strata[rows], clusters, seed=study.experiment.seed)
    quantized = np.array([name in study.experiment.quantized for name in study.names])
    p[study.names.index(study.experiment.base)] = np.nan
    return p, stats.holm(np.where(quantized, p, np.nan))


def _entry_counts(study: Study, keep) -> pd.DataFrame:
    kept = np.array(study.ndcg.strata)[np.asarray(keep, bool)]
    table = study.by_entry[(study.by_entry.task + "\t" + study.by_entry.lang).isin(kept)]
    return table.groupby("variant").apply(
        lambda t: pd.Series(
            {
                "improved": (t["diff"] >= UNCHANGED).sum(),
                "unchanged": (t["diff"].abs() < UNCHANGED).sum(),
                "degraded": (t["diff"] <= -UNCHANGED).sum(),
                "clearly_improved": (t.diff_low > stats.ROUNDING).sum(),
                "clearly_degraded": (t.diff_high < -stats.ROUNDING).sum(),
            }
        ),
        include_groups=False,
    )


def entry_table(study: Study) -> pd.DataFrame:
    """A row a variant and entry: score, low, high, diff, diff_low, diff_high and the entry's columns."""
    base, tables = study.names.index(study.experiment.base), []
    for v, name in enumerate(study.names):
        spread = study.ndcg.replicates[:, :, v] - study.ndcg.replicates[:, :, base]
        (low, high), (diff_low, diff_high) = (
            stats.interval(study.ndcg.replicates[:, :, v]),
            stats.interval(spread),
        )
        tables.append(
            study.entries.assign(
                variant=name,
                score=study.ndcg.value[:, v],
                low=low,
                high=high,
                diff=study.ndcg.value[:, v] - study.ndcg.value[:, base],
                diff_low=diff_low,
                diff_high=diff_high,
            )
        )
    return pd.concat(tables, ignore_index=True)


def by_task(study: Study, keep) -> pd.DataFrame:
    """As `entry_table`, averaged over the languages of each task."""
    tables = []
    for task in sorted(study.entries.task[keep].unique()):
        rows = keep & (study.entries.task == task).to_numpy()
        value, replicates = study.ndcg.suite(rows)
        base = study.names.index(study.experiment.base)
        (low, high), (diff_low, diff_high) = (
            stats.interval(replicates),
            stats.interval(replicates - replicates[:, [base]]),
        )
        tables.append(
            pd.DataFrame(
                {
                    "variant": study.names,
                    "task": task,
                    "languages": int(rows.sum()),
                    "n_queries": int(study.entries.n_queries[rows].sum()),
                    "score": value,
                    "low": low,
                    "high": high,
                    "diff": value - value[base],
                    "diff_low": diff_low,
                    "diff_high": diff_high,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def drift(study: Study, keep=None) -> pd.DataFrame:
    """Change against base by three measures: NDCG@5, score margin of the relevant page, share of the top 5 kept.

    The overlap of any two runs is below 1 as soon as one page moves; it tells the bits only where it is
    below that of another rounding of the same weights (fp32), if the experiment has one.
    """
    keep, base, tables = study.counted if keep is None else keep, study.names.index(study.experiment.base), []
    for measure in ("ndcg", "margin", "overlap"):
        value, replicates = getattr(study, measure).suite(keep)
        low, high = stats.interval(replicates - replicates[:, [base]])
        tables.append(
            pd.DataFrame(
                {
                    "variant": study.names,
                    "measure": measure,
                    "value": value,
                    "diff": value - value[base],
                    "low": low,
                    "high": high,
                }
            )
        )
    return pd.concat(tables, ignore_index=True).assign(resolved=lambda t: stats.resolved(t.low, t.high))


def top_page_changes(study: Study, keep=None) -> pd.DataFrame:
    """A row per variant: share of queries whose first page is not the base's (mean over entries), with its 95 % interval."""
    value, replicates = study.top_changed.suite(study.counted if keep is None else keep)
    low, high = stats.interval(replicates)
    return pd.DataFrame(
        {"variant": study.names, "top_changed": value, "top_changed_low": low, "top_changed_high": high}
    )


def pairs(study: Study, wanted: list[tuple[str, str]], keep=None) -> pd.DataFrame:
    """Differences first minus second of the `wanted` pairs, by NDCG@5 and score margin.

    The intervals hold for all pairs together: each has the level 1 - 0.05 / number of pairs (Bonferroni).
    """
    keep, rows = study.counted if keep is None else keep, []
    level = 1 - (1 - stats.LEVEL) / max(1, len(wanted))
    for measure in ("ndcg", "margin"):
        value, replicates = getattr(study, measure).suite(keep)
        for first, second in wanted:
            a, b = study.names.index(first), study.names.index(second)
            spread = replicates[:, a] - replicates[:, b]
            low, high = stats.interval(spread, level)
            rows.append(
                {
                    "measure": measure,
                    "first": first,
                    "second": second,
                    "diff": value[a] - value[b],
                    "low": low,
                    "high": high,
                    "mdd": float(stats.minimal_detectable(stats.standard_error(spread), level)),
                }
            )
    columns = ["measure", "first", "second", "diff", "low", "high", "mdd"]
    return pd.DataFrame(rows, columns=columns).assign(resolved=lambda t: stats.resolved(t.low, t.high))


def sizes(results: Results) -> pd.DataFrame:
    """A row a variant: tensor bytes of its first export, of the base, reduction in percent, as far as measured."""
    if results.variants is None:
        return pd.DataFrame(columns=["variant", "bytes", "base_bytes", "reduction_pct"])
    first = results.variants.drop_duplicates("variant").rename(columns={"tensor_bytes": "bytes"})[
        ["variant", "bytes", "base_bytes"]
    ]
    known = first.base_bytes.dropna()
    if len(known) and results.base not in set(first.variant):
        first = pd.concat(
            [
                pd.DataFrame(
                    [{"variant": results.base, "bytes": known.iloc[0], "base_bytes": known.iloc[0]}]
                ),
                first,
            ]
        )
    return first.assign(reduction_pct=100 * (1 - first["bytes"] / first.base_bytes)).reset_index(drop=True)


def references(study: Study, keep=None) -> pd.DataFrame:
    """BM25 and random weights: mean over the counted entries that they were run on, how many these are, and an interval if
    their queries were kept."""
    keep, rows = study.counted if keep is None else keep, []
    entries = study.entries[keep][ENTRY]
    scores, queries = (
        table.merge(entries, on=ENTRY) for table in (study.results.scores, study.results.queries)
    )
    for name in REFERENCES:
        mine, asked = (
            scores[scores.variant == name],
            queries[queries.variant == name].sort_values([*ENTRY, "query_id"]),
        )
        if len(mine):
            row = {
                "variant": name,
                "score": mine.ndcg_at_5.mean(),
                "low": np.nan,
                "high": np.nan,
                "entries": len(mine),
                "of": len(entries),
            }
            if len(asked):
                clusters = asked.source.to_numpy(str) if "source" in asked else None
                draw = stats.bootstrap(
                    asked.ndcg_at_5,
                    (asked.task + "\t" + asked.lang).to_numpy(str),
                    clusters,
                    seed=study.experiment.seed,
                )
                row["low"], row["high"] = stats.interval(draw.suite()[1])[:, 0]
            rows.append(row)
    return pd.DataFrame(rows, columns=["variant", "score", "low", "high", "entries", "of"])
