"""From the result files of a study to the tables that its report and figures share.

An entry is a task in one language; the suite's score is the mean over the counted entries of the mean over queries. Two
things vary where AutoRound is judged: the queries asked and the seed, which draws the calibration text and the batches. Every
interval of a comparison between AutoRound variants covers both: queries are resampled in clusters (`stats.bootstrap`) and
seeds as whole blocks, because the variants of one seed share their text. Rounding to nearest has no seed.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as distributions

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError
from colq_utils.data import minividore
from colq_utils.report import stats
from studies.seqlen import spec as study_spec
from studies.seqlen.spec import StudySpec

ENTRY = ["task", "lang"]
DRIFT = ("cosine", "drift", "kept")


@dataclass(frozen=True)
class SeqlenStudy:
    """The results of a study: see `load`."""

    spec: StudySpec
    runs: pd.DataFrame
    queries: pd.DataFrame
    pages: pd.DataFrame
    provenance: dict
    folder: Path
    resamples: int = stats.RESAMPLES

    @cached_property
    def names(self) -> list[str]:
        """Variants with scores, in the order of the study file."""
        return self.runs["variant"][self.runs["error"] == ""].tolist()

    @cached_property
    def asked(self) -> pd.DataFrame:
        """One row a query: task, lang, query_id, source (what it shares with its translations), type, counted."""
        benchmark = minividore.load()
        known = benchmark.queries.set_index("query_id")
        table = (
            self.queries[[*ENTRY, "query_id"]]
            .drop_duplicates()
            .sort_values([*ENTRY, "query_id"], ignore_index=True)
        )
        return table.assign(
            source=table["query_id"].map(minividore.sources(benchmark)),
            type=table["query_id"].map(known["type"]),
            counted=table["task"].map({name: task.counted for name, task in minividore.TASKS.items()}),
        )

    def wide(self, column: str) -> np.ndarray:
        """A measure as ``(n_queries, n_variants)``, rows as in `asked`, columns as in `names`."""
        table = self.queries.pivot(index=[*ENTRY, "query_id"], columns="variant", values=column).sort_index()
        return table[self.names].to_numpy(float)

    @cached_property
    def draws(self) -> stats.Means:
        """NDCG@5 of every counted entry and variant, measured and with the queries resampled."""
        keep = self.asked["counted"].to_numpy(bool)
        strata = (self.asked["task"] + "\t" + self.asked["lang"]).to_numpy(str)[keep]
        return stats.bootstrap(
            self.wide("ndcg_at_5")[keep],
            strata,
            self.asked["source"].to_numpy(str)[keep],
            self.resamples,
            self.spec.seed,
        )

    @cached_property
    def suite(self) -> tuple[pd.Series, pd.DataFrame]:
        """Suite score by variant, and its replicates, a column a variant."""
        value, replicates = self.draws.suite()
        return pd.Series(value, index=self.names), pd.DataFrame(replicates, columns=self.names)

    @property
    def n_queries(self) -> int:
        return int(self.asked["counted"].sum())

    def arm(self, family: str, **choices) -> pd.DataFrame:
        """Runs of a family that have scores and match `choices`."""
        rows = self.runs[(self.runs["family"] == family) & (self.runs["error"] == "")]
        for column, value in choices.items():
            rows = rows[rows[column] == value]
        return rows


def load(spec: StudySpec, folder: Path | None = None, resamples: int = stats.RESAMPLES) -> SeqlenStudy:
    """Read what a run of the study has written.

    Raises:
        ColqError: files missing, made of another base or study, or on several devices; variants with other queries than the
            base; two variants with one set of weights that the study says are different; lengths compared at unequal budgets.
    """
    folder = folder or ROOT / "results" / f"{spec.name}-study"
    made_by = "study"
    runs = files.read_table(folder / "runs.csv", made_by)
    runs = runs.assign(error=runs["error"].fillna(""), format=runs["format"].fillna(""))
    study = SeqlenStudy(
        spec,
        runs,
        files.read_table(folder / "queries.parquet", made_by),
        files.read_table(folder / "pages.parquet", made_by),
        json.loads(files.required(folder / "provenance.json", made_by).read_text()),
        folder,
        resamples,
    )
    _check(study)
    return study


def _check(study: SeqlenStudy) -> None:
    runs, known = study.runs[study.runs["error"] == ""], {v.id for v in study.spec.variants}
    for column, what in (("device", "devices"), ("base", "bases")):
        if runs[column].nunique() > 1:
            raise ColqError(
                f"{study.folder / 'runs.csv'} mixes {what}: {', '.join(sorted(runs[column].unique()))}; run the study on one of them"
            )
    strangers = sorted(set(runs["variant"]) - known)
    if strangers:
        raise ColqError(
            f"{study.folder / 'runs.csv'} speaks of {', '.join(strangers[:3])}, which studies/{study.spec.name}.yaml does not have: run the study again"
        )
    if study.spec.base not in set(runs["variant"]):
        raise ColqError(
            f"{study.folder / 'runs.csv'} has no scores of the base {study.spec.base}: run the study again"
        )
    counts = study.queries.groupby("variant").size()
    uneven = [v for v in runs["variant"] if counts.get(v, 0) != counts[study.spec.base]]
    if uneven:
        raise ColqError(
            f"{study.folder / 'queries.parquet'}: {uneven[0]} answered other queries than the base: run the study again"
        )
    budgets = (
        study.arm("length")
        .drop_duplicates("set")
        .assign(tokens=lambda t: t.set_seqlen * t.set_blocks, step=lambda t: t.set_seqlen * t.set_batch_rows)
    )
    if budgets["tokens"].nunique() > 1 or budgets["step"].nunique() > 1:
        raise ColqError(
            f"studies/{study.spec.name}.yaml: the sets {', '.join(budgets['set'])} of family length differ in budget or step size, so the "
            "length is not all that differs; give them one budget and one step size"
        )


def load_named(name: str) -> SeqlenStudy:
    """The results of ``studies/<name>.yaml``."""
    return load(study_spec.load(name))


# --- scores --------------------------------------------------------------------------------------------------------------


def scores(study: SeqlenStudy) -> pd.DataFrame:
    """A row a variant: score, difference to the base with its interval over queries, standard error, bytes and choices."""
    value, replicates = study.suite
    base = study.spec.base
    spread = replicates.sub(replicates[base], axis=0)
    (low, high), (diff_low, diff_high) = stats.interval(replicates), stats.interval(spread)
    table = pd.DataFrame(
        {
            "variant": study.names,
            "score": value.to_numpy(),
            "low": low,
            "high": high,
            "diff": (value - value[base]).to_numpy(),
            "diff_low": diff_low,
            "diff_high": diff_high,
            "diff_se": stats.standard_error(spread),
        }
    )
    return table.merge(study.runs, on="variant", how="left")


def mean_score(study: SeqlenStudy, variants: list[str]) -> dict:
    """Score and difference to the base of the mean over `variants` that differ in their seed alone; intervals over both."""
    value, replicates = study.suite
    base = study.spec.base
    draws = _over_seeds(study, replicates[variants].sub(replicates[base], axis=0))
    low, high = stats.interval(draws)
    score = float(value[variants].mean())
    own_low, own_high = stats.interval(_over_seeds(study, replicates[variants]))
    return {
        "score": score,
        "low": own_low,
        "high": own_high,
        "diff": score - float(value[base]),
        "diff_low": low,
        "diff_high": high,
        "diff_se": float(np.std(draws, ddof=1)),
        "seeds": len(variants),
    }


def _over_seeds(study: SeqlenStudy, replicates: pd.DataFrame) -> np.ndarray:
    """Replicates of a mean over seeds ``(resamples,)``, the seeds (columns) drawn anew in each resample.

    A mean of n drawn from n has (n - 1) / n of the variance it should have; its deviation is widened accordingly.
    """
    values, n = replicates.to_numpy(), replicates.shape[1]
    if n == 1:
        return values[:, 0]
    rng = np.random.default_rng(study.spec.seed)
    mean = values.mean(1)
    drawn = np.take_along_axis(values, rng.integers(0, n, values.shape), axis=1).mean(1)
    return mean + np.sqrt(n / (n - 1)) * (drawn - mean)


def contrast(study: SeqlenStudy, first: list[str], second: list[str], level: float = stats.LEVEL) -> dict:
    """Mean over seeds of first minus second, paired seed by seed where both lists are as long; interval over queries and seeds.

    Also seed_low and seed_high: a t interval over the seeds alone, for these very queries; p is that of the t test.
    """
    value, replicates = study.suite
    paired = len(first) == len(second)
    if paired:
        draws = _over_seeds(study, pd.DataFrame(replicates[first].to_numpy() - replicates[second].to_numpy()))
        each = value[first].to_numpy() - value[second].to_numpy()
        seed_se, df = (
            float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else np.nan,
            len(each) - 1,
        )
        diff = float(each.mean())
    else:
        draws = _over_seeds(study, replicates[first]) - _over_seeds(study, replicates[second])
        a, b = value[first].to_numpy(), value[second].to_numpy()
        parts = [np.var(x, ddof=1) / len(x) if len(x) > 1 else 0.0 for x in (a, b)]
        seed_se, df = (
            float(np.sqrt(sum(parts))),
            max(1, min(len(x) - 1 for x in (a, b) if len(x) > 1) if max(len(a), len(b)) > 1 else 1),
        )
        diff = float(a.mean() - b.mean())
    low, high = stats.interval(draws, level)
    reach = float(distributions.t.ppf((1 + level) / 2, df) * seed_se) if df > 0 else np.nan
    p = float(2 * distributions.t.sf(abs(diff) / seed_se, df)) if df > 0 and seed_se > 0 else np.nan
    return {
        "diff": diff,
        "low": low,
        "high": high,
        "se": float(np.std(draws, ddof=1)),
        "seed_low": diff - reach,
        "seed_high": diff + reach,
        "p": p,
        "seeds": max(len(first), len(second)),
    }


# --- length and seed ------------------------------------------------------------------------------------------------------


def blocks(study: SeqlenStudy, family: str, iters: int) -> pd.DataFrame:
    """Variant ids of a family, a row a seed and a column a calibration set; seeds that lack a set are left out."""
    rows = study.arm(family, iters=iters)
    order = [s.id for s in study.spec.sets if s.id in set(rows["set"])]
    return rows.pivot(index="seed", columns="set", values="variant")[order].dropna()


def anova(study: SeqlenStudy, table: pd.DataFrame) -> dict:
    """Two-way analysis of variance of `table` (see `blocks`), seeds as random blocks, lengths fixed, for these queries.

    Returns:
        seeds, lengths; seed_sd, the standard deviation between seeds within a length (pooled), with the interval of chi
        square; length_sd, that of the lengths' means; expected_sd, what length_sd would be if the length did nothing;
        f, df, p of the test of the length against the residual; share, the part of the variance that is the length's (omega
        squared, not below 0).

    Source: Montgomery, Design and Analysis of Experiments (2013), section 4.1.
    """
    y = study.suite[0][table.to_numpy().ravel()].to_numpy().reshape(table.shape)  # (n_seeds, n_lengths)
    n, k = y.shape
    length_ms = n * np.var(y.mean(0), ddof=1)
    block_ss, total_ss = k * np.sum((y.mean(1) - y.mean()) ** 2), np.sum((y - y.mean()) ** 2)
    residual_ms = (total_ss - block_ss - (k - 1) * length_ms) / ((n - 1) * (k - 1))
    within_df = k * (n - 1)
    seed_variance = np.var(y, axis=0, ddof=1).mean()
    low, high = (
        np.sqrt(within_df * seed_variance / distributions.chi2.ppf(q, within_df)) for q in (0.975, 0.025)
    )
    f = length_ms / residual_ms
    omega = max(0.0, (k - 1) * (length_ms - residual_ms) / (total_ss + residual_ms))
    return {
        "seeds": n,
        "lengths": k,
        "seed_sd": np.sqrt(seed_variance),
        "seed_sd_low": low,
        "seed_sd_high": high,
        "length_sd": np.std(y.mean(0), ddof=1),
        "expected_sd": np.sqrt(residual_ms / n),
        "f": f,
        "df": (k - 1, (n - 1) * (k - 1)),
        "p": float(distributions.f.sf(f, k - 1, (n - 1) * (k - 1))),
        "share": omega,
        "best": {c: int((y.argmax(1) == i).sum()) for i, c in enumerate(table.columns)},
    }


def pairs(study: SeqlenStudy, table: pd.DataFrame) -> pd.DataFrame:
    """Every two sets of `table` (see `blocks`), the longer minus the shorter; intervals hold for all of them together (Bonferroni)."""
    names = list(table.columns)
    wanted = [(b, a) for i, a in enumerate(names) for b in names[i + 1 :]]
    level = 1 - (1 - stats.LEVEL) / max(1, len(wanted))
    rows = [
        {"first": a, "second": b, **contrast(study, table[a].tolist(), table[b].tolist(), level)}
        for a, b in wanted
    ]
    table = pd.DataFrame(rows)
    return table.assign(
        mdd=stats.minimal_detectable(table["se"], level), resolved=stats.resolved(table["low"], table["high"])
    )


def seed_reach(values: np.ndarray, level: float = stats.LEVEL) -> float:
    """Half-width of the t interval of a mean over seeds; 0 for a single one."""
    n = len(values)
    return (
        float(distributions.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
        if n > 1
        else 0.0
    )


def drift_pairs(study: SeqlenStudy, table: pd.DataFrame) -> pd.DataFrame:
    """Every two sets of `table` (see `blocks`) by drift: longer minus shorter, t intervals over seeds that hold for all rows together."""
    measured, names = drift(study).set_index("variant"), list(table.columns)
    wanted = [
        (m, b, a)
        for m in ("query_cosine", "page_cosine", "score_drift")
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    level, rows = 1 - (1 - stats.LEVEL) / len(wanted), []
    for measure, first, second in wanted:
        each = measured[measure][table[first]].to_numpy() - measured[measure][table[second]].to_numpy()
        reach = seed_reach(each, level)
        rows.append(
            {
                "measure": measure,
                "first": first,
                "second": second,
                "diff": each.mean(),
                "low": each.mean() - reach,
                "high": each.mean() + reach,
            }
        )
    return pd.DataFrame(rows).assign(resolved=lambda t: stats.resolved(t["low"], t["high"]))


def interaction(study: SeqlenStudy, published: pd.DataFrame, controlled: pd.DataFrame) -> pd.DataFrame:
    """For each pair of lengths: its difference in the published design, in the controlled one, and the difference of the two."""
    rows, (p, c) = [], (list(published.columns), list(controlled.columns))
    replicates = study.suite[1]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        confounded, clean = (
            contrast(study, t[n[j]].tolist(), t[n[i]].tolist()) for t, n in ((published, p), (controlled, c))
        )
        draws = _over_seeds(
            study,
            pd.DataFrame(replicates[published[p[j]]].to_numpy() - replicates[published[p[i]]].to_numpy()),
        ) - _over_seeds(
            study,
            pd.DataFrame(replicates[controlled[c[j]]].to_numpy() - replicates[controlled[c[i]]].to_numpy()),
        )
        low, high = stats.interval(draws)
        rows.append(
            {
                "first": c[j],
                "second": c[i],
                "confounded": confounded,
                "controlled": clean,
                "added": {"diff": confounded["diff"] - clean["diff"], "low": low, "high": high},
            }
        )
    return pd.DataFrame(rows)


def seed_parts(study: SeqlenStudy) -> dict:
    """Standard deviation of the suite score over seeds: text and batches drawn anew, and batches alone (one text)."""
    value, iters = study.suite[0], study.arm("order")["iters"]
    if iters.empty:
        return {}
    sets = study.arm("order")["set"].iloc[0]
    both = value[study.arm("length", iters=iters.iloc[0], set=sets)["variant"]].to_numpy()
    alone = value[study.arm("order")["variant"]].to_numpy()
    result = {"set": sets, "iters": int(iters.iloc[0])}
    for name, values in (("both", both), ("order", alone)):
        df, variance = len(values) - 1, np.var(values, ddof=1)
        low, high = (np.sqrt(df * variance / distributions.chi2.ppf(q, df)) for q in (0.975, 0.025))
        result |= {
            f"{name}_sd": np.sqrt(variance),
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_n": len(values),
        }
    f = distributions.f(len(both) - 1, len(alone) - 1)
    ratio = np.var(both, ddof=1) / np.var(alone, ddof=1)
    return result | {"p": float(min(1.0, 2 * min(f.cdf(ratio), f.sf(ratio))))}


#: Variant of a study -> the same weights in an experiment, after its size.
TWINS = {
    "bf16": "bf16",
    "w8-rtn": "w8a16-rtn",
    "w4-rtn": "w4a16-rtn",
    "w3-rtn": "w3a16-rtn",
    "w2-rtn": "w2a16-rtn",
}


def agreement(study: SeqlenStudy, reference: Path) -> pd.DataFrame:
    """Scores of the same weights by `evaluate`, query by query: how far another device, kernel and batch move them.

    Args:
        reference: a queries.parquet of the evaluate stage.

    Returns:
        A row a pair: queries, share with equal NDCG@5, share with an equal first rank, mean change of the margin (without
        sign), suite scores of both, and the other's minus this study's with its interval over queries.
    """
    other, rows = files.read_table(reference, "evaluate"), []
    for ours, theirs in ((m, f"{study.spec.model.size}-{t}") for m, t in TWINS.items()):
        if ours not in study.names or theirs not in set(other["variant"]):
            continue
        both = study.queries[study.queries["variant"] == ours].merge(
            other[other["variant"] == theirs], on=[*ENTRY, "query_id"], suffixes=("", "_other")
        )
        counted = both.drop(columns="source", errors="ignore").merge(
            study.asked[study.asked["counted"]][[*ENTRY, "query_id", "source"]], on=[*ENTRY, "query_id"]
        )
        (score, other_score), draws = stats.bootstrap(
            counted[["ndcg_at_5", "ndcg_at_5_other"]],
            (counted["task"] + "\t" + counted["lang"]).to_numpy(str),
            counted["source"].to_numpy(str),
            study.resamples,
            study.spec.seed,
        ).suite()
        low, high = stats.interval(draws[:, 1] - draws[:, 0])
        rows.append(
            {
                "variant": ours,
                "other": theirs,
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
        )
    return pd.DataFrame(rows)


def repeated(study: SeqlenStudy) -> bool | None:
    """Whether the run that was made twice (family order, the seed of its text) gave the same weights; None if it was not made."""
    twice = study.arm("order")
    twice = twice[twice["seed"] == twice["text_seed"]]
    if twice.empty:
        return None
    row = twice.iloc[0]
    first = study.arm("length", set=row["set"], iters=row["iters"], seed=row["seed"])
    return None if first.empty else bool(first["digest"].iloc[0] == row["digest"])


# --- drift ---------------------------------------------------------------------------------------------------------------


def drift(study: SeqlenStudy) -> pd.DataFrame:
    """A row a variant: mean token cosine of queries and pages, MaxSim drift a query token, share of the top five kept, not_finite."""
    by_query = study.queries.groupby("variant")[list(DRIFT)].mean()
    weighted = (
        study.pages.assign(total=study.pages["cosine_mean"] * study.pages["tokens"])
        .groupby("variant")[["total", "tokens"]]
        .sum()
    )
    worst = study.pages.groupby("variant")["cosine_min"].min()
    table = pd.DataFrame(
        {
            "query_cosine": by_query["cosine"],
            "page_cosine": weighted["total"] / weighted["tokens"],
            "page_cosine_min": worst,
            "score_drift": by_query["drift"],
            "top5_kept": by_query["kept"] / 5,
        }
    )
    return (
        table.reindex(study.names)
        .reset_index(names="variant")
        .merge(study.runs[["variant", "family", "not_finite"]], on="variant")
    )


#: Query types of the benchmark, in the words of the report.
def kind_of_query(task: str, kind: str) -> str:
    """What a query is: by its task where the task says more than the type (misspelt, shuffled, cross-lingual)."""
    if task in ("MiniVidoreCrosslingual", "MiniVidoreMisspelt"):
        return {
            "MiniVidoreCrosslingual": "heading in another language",
            "MiniVidoreMisspelt": "misspelt phrase",
        }[task]
    return "heading" if kind == "heading" else "phrase" if kind.startswith("phrase") else "keywords"


def drift_by(study: SeqlenStudy, groups: dict[str, list[str]], by: str) -> pd.DataFrame:
    """Drift and change of NDCG@5 of groups of variants (their mean) by `lang` or by kind of query (`kind`); all tasks.

    Columns: group, by's value, n, diff with an interval over queries, query_cosine, score_drift, top5_kept.
    """
    asked = study.asked.assign(
        kind=[kind_of_query(t, k) for t, k in zip(study.asked["task"], study.asked["type"])]
    )
    columns = [[study.names.index(v) for v in variants] for variants in groups.values()]
    means = {
        m: np.stack([wide[:, c].mean(1) for c in columns], axis=1)
        for m, wide in ((m, study.wide(m)) for m in ("ndcg_at_5", *DRIFT))
    }
    change = (
        means["ndcg_at_5"] - study.wide("ndcg_at_5")[:, [study.names.index(study.spec.base)]]
    )  # (n_queries, n_groups)
    rows = []
    for value, subset in asked.groupby(by, sort=True):
        at = subset.index.to_numpy()
        draw = stats.bootstrap(
            change[at],
            np.zeros(len(at), int),
            subset["source"].to_numpy(str),
            study.resamples,
            study.spec.seed,
        )
        low, high = stats.interval(draw.replicates[:, 0])
        for i, label in enumerate(groups):
            rows.append(
                {
                    "group": label,
                    by: value,
                    "n": len(at),
                    "diff": draw.value[0, i],
                    "low": low[i],
                    "high": high[i],
                    "query_cosine": means["cosine"][at, i].mean(),
                    "score_drift": means["drift"][at, i].mean(),
                    "top5_kept": means["kept"][at, i].mean() / 5,
                }
            )
    return pd.DataFrame(rows)


def page_drift(study: SeqlenStudy, groups: dict[str, list[str]]) -> pd.DataFrame:
    """Mean and least token cosine of pages by group of variants, language and kind of page."""
    rows = []
    for label, variants in groups.items():
        ours = study.pages[study.pages["variant"].isin(variants)]
        for (lang, scanned), subset in ours.groupby(["lang", "scanned"]):
            rows.append(
                {
                    "group": label,
                    "lang": lang,
                    "scanned": scanned,
                    "cosine_mean": subset["cosine_mean"].mean(),
                    "cosine_min": subset["cosine_min"].min(),
                }
            )
    return pd.DataFrame(rows)


def sensitivity(study: SeqlenStudy) -> pd.DataFrame:
    """The one-at-a-time variants: family, format, scope, parameters rounded (as bytes saved), score difference and drift."""
    table = scores(study)
    table = table[table["family"].isin(["layers", "kinds"])]
    base = study.runs.set_index("variant")["bytes"][study.spec.base]
    return table.assign(saved=base - table["bytes"]).merge(
        drift(study).drop(columns=["family", "not_finite"]), on="variant"
    )
