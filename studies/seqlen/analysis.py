"""From the result files of a study to scores with intervals, which its report and figures share.

An entry is a task in one language; the suite's score is the mean over the counted entries of the mean over
queries. Two things vary where AutoRound is judged: the queries asked and the seed, which draws the
calibration text and the batches. Every interval of a comparison between AutoRound variants covers both:
queries are resampled in clusters (`stats.bootstrap`) and seeds as whole blocks, because the variants of one
seed share their text.
"""

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

    @property
    def good(self) -> pd.DataFrame:
        """Runs that have scores, in the order of the study file."""
        return self.runs[self.runs["error"] == ""]

    @cached_property
    def names(self) -> list[str]:
        """Variants that have scores."""
        return self.good["variant"].tolist()

    @cached_property
    def asked(self) -> pd.DataFrame:
        """One row per query: task, lang, query_id, source (shared with its translations), type, counted."""
        benchmark = minividore.load()
        known = benchmark.queries.set_index("query_id")
        table = self.queries[[*ENTRY, "query_id"]].drop_duplicates()
        table = table.sort_values([*ENTRY, "query_id"], ignore_index=True)
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
        sources = self.asked["source"].to_numpy(str)[keep]
        values = self.wide("ndcg_at_5")[keep]
        return stats.bootstrap(values, strata, sources, self.resamples, self.spec.seed)

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
        rows = self.good[self.good["family"] == family]
        for column, value in choices.items():
            rows = rows[rows[column] == value]
        return rows

    def by_seed(self, family: str, **choices) -> pd.Series:
        """Variant ids of an arm that has one per seed, by seed."""
        return self.arm(family, **choices).set_index("seed")["variant"]


def load(spec: StudySpec, folder: Path | None = None, resamples: int = stats.RESAMPLES) -> SeqlenStudy:
    """Read what a run of the study has written.

    Raises:
        ColqError: files missing, made of another base or study, or on several devices; variants with other
            queries than the base; lengths compared at unequal budgets.
    """
    folder = folder or ROOT / "results" / f"{spec.name}-study"
    runs, queries, pages = (
        files.read_table(folder / name, "study") for name in ("runs.csv", "queries.parquet", "pages.parquet")
    )
    runs = runs.assign(error=runs["error"].fillna(""), format=runs["format"].fillna(""))
    provenance = files.read_json(folder / "provenance.json", "study")
    study = SeqlenStudy(spec, runs, queries, pages, provenance, folder, resamples)
    _check(study)
    return study


def _check(study: SeqlenStudy) -> None:
    runs, spec, path = study.good, study.spec, study.folder / "runs.csv"
    for column in ("device", "base"):
        several = sorted(runs[column].unique())
        if len(several) > 1:
            raise ColqError(f"{path} mixes {column}s: {', '.join(several)}; run the study on one of them")
    strangers = sorted(set(runs["variant"]) - {v.id for v in spec.variants})
    if strangers:
        raise ColqError(
            f"{path} speaks of {', '.join(strangers[:3])}, which studies/{spec.name}.yaml does not have: "
            "run the study again"
        )
    if spec.base not in set(runs["variant"]):
        raise ColqError(f"{path} has no scores of the base {spec.base}: run the study again")
    counts = study.queries.groupby("variant").size()
    uneven = [v for v in runs["variant"] if counts.get(v, 0) != counts[spec.base]]
    if uneven:
        raise ColqError(
            f"{study.folder / 'queries.parquet'}: {uneven[0]} answered other queries than the base: "
            "run the study again"
        )
    sets = study.arm("length").drop_duplicates("set")
    budgets, steps = (sets["set_seqlen"] * sets[column] for column in ("set_blocks", "set_batch_rows"))
    if budgets.nunique() > 1 or steps.nunique() > 1:
        raise ColqError(
            f"studies/{spec.name}.yaml: the sets {', '.join(sets['set'])} of family length differ in budget "
            "or step size, so the length is not all that differs; give them one budget and one step size"
        )


def load_named(name: str) -> SeqlenStudy:
    """The results of ``studies/<name>.yaml``."""
    return load(study_spec.load(name))


def scores(study: SeqlenStudy) -> pd.DataFrame:
    """A row per variant: score, difference to the base (with interval over queries), and its run."""
    value, replicates = study.suite
    base = study.spec.base
    spread = replicates.sub(replicates[base], axis=0)
    (low, high), (diff_low, diff_high) = stats.interval(replicates), stats.interval(spread)
    table = pd.DataFrame({"variant": study.names, "score": value.to_numpy(), "low": low, "high": high})
    table["diff"] = (value - value[base]).to_numpy()
    table = table.assign(diff_low=diff_low, diff_high=diff_high, diff_se=stats.standard_error(spread))
    return table.merge(study.runs, on="variant", how="left")


def mean_score(study: SeqlenStudy, variants: list[str]) -> dict:
    """Mean over `variants` that differ in their seed alone, and its change from the base."""
    value, replicates = study.suite
    base = study.spec.base
    score, draws = float(value[variants].mean()), over_seeds(study, replicates[variants].to_numpy())
    changes = over_seeds(study, replicates[variants].sub(replicates[base], axis=0).to_numpy())
    (low, high), (diff_low, diff_high) = stats.interval(draws), stats.interval(changes)
    return {
        "score": score,
        "low": low,
        "high": high,
        "diff": score - float(value[base]),
        "diff_low": diff_low,
        "diff_high": diff_high,
        "diff_se": float(np.std(changes, ddof=1)),
        "seeds": len(variants),
    }


def over_seeds(study: SeqlenStudy, values: np.ndarray) -> np.ndarray:
    """Means over seeds, drawn anew in each resample, of replicates ``(resamples, n_seeds)``.

    A mean of n drawn from n has (n - 1) / n of the variance it should have: its deviation is widened.
    """
    n = values.shape[1]
    if n == 1:
        return values[:, 0]
    rng = np.random.default_rng(study.spec.seed)
    mean = values.mean(1)
    drawn = np.take_along_axis(values, rng.integers(0, n, values.shape), axis=1).mean(1)
    return mean + np.sqrt(n / (n - 1)) * (drawn - mean)


def contrast(study: SeqlenStudy, first: list[str], second: list[str], level: float = stats.LEVEL) -> dict:
    """Mean over seeds of first minus second, paired seed by seed; interval over queries and seeds.

    Also seed_low and seed_high, a t interval over the seeds alone, for these queries, and p of that t test.
    """
    value, replicates = study.suite
    draws = over_seeds(study, replicates[first].to_numpy() - replicates[second].to_numpy())
    each = value[first].to_numpy() - value[second].to_numpy()
    diff, reach, df = float(each.mean()), seed_reach(each, level), len(each) - 1
    low, high = stats.interval(draws, level)
    seed_se = float(np.std(each, ddof=1) / np.sqrt(len(each))) if df else 0.0
    return {
        "diff": diff,
        "low": low,
        "high": high,
        "se": float(np.std(draws, ddof=1)),
        "seed_low": diff - reach,
        "seed_high": diff + reach,
        "p": float(2 * distributions.t.sf(abs(diff) / seed_se, df)) if seed_se else np.nan,
        "seeds": len(first),
    }


def shared(first: pd.Series, second: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Of two arms by seed (`SeqlenStudy.by_seed`) the seeds that both have."""
    seeds = first.index.intersection(second.index)
    return first[seeds], second[seeds]


def seed_reach(values: np.ndarray, level: float = stats.LEVEL) -> float:
    """Half-width of the t interval of a mean over seeds; 0 for a single one."""
    n = len(values)
    if n == 1:
        return 0.0
    return float(distributions.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
