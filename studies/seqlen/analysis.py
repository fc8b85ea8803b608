"""From the result files of a study to scores with intervals, which its report and figures share.

An entry is a task in one language; the suite's score is the mean over the counted entries of the mean over
queries. Three things vary: the queries asked, the seed (which draws the calibration text and the batches),
and for the base the arithmetic, of which `draws` may hold several. Queries are crossed with seeds and with
arithmetics: every interval covers both, in closed form (`over_seeds`).
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

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
    draws: pd.DataFrame | None = None

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
    def base_columns(self) -> np.ndarray:
        """NDCG@5 of the base in each of its arithmetics, rows as in `asked`: ``(n_queries, n_draws)``."""
        if self.draws is None:
            return self.wide("ndcg_at_5")[:, [self.names.index(self.spec.base)]]
        keys = [*ENTRY, "query_id"]
        table = self.draws.pivot(index=keys, columns="draw", values="ndcg_at_5")
        return table.reindex(pd.MultiIndex.from_frame(self.asked[keys])).to_numpy(float)

    @cached_property
    def ndcg(self) -> np.ndarray:
        """NDCG@5 as `wide` has it, the base's being the mean of its arithmetics."""
        values = self.wide("ndcg_at_5").copy()
        values[:, self.names.index(self.spec.base)] = self.base_columns.mean(1)
        return values

    @cached_property
    def means(self) -> stats.Means:
        """NDCG@5 of every counted entry: a column a variant, then one for each arithmetic of the base."""
        keep = self.asked["counted"].to_numpy(bool)
        strata = (self.asked["task"] + "\t" + self.asked["lang"]).to_numpy(str)[keep]
        sources = self.asked["source"].to_numpy(str)[keep]
        return stats.means(np.hstack([self.ndcg, self.base_columns])[keep], strata, sources)

    @cached_property
    def _measured(self) -> stats.Estimate:
        return self.means.suite()

    @cached_property
    def score(self) -> pd.Series:
        """Suite score by variant."""
        return pd.Series(self._measured.value[: len(self.names)], index=self.names)

    def of(self, variants: list[str]) -> stats.Estimate:
        """Suite scores of `variants` with their errors over queries."""
        return self._measured.of([self.names.index(name) for name in variants])

    @property
    def base(self) -> stats.Estimate:
        """Suite scores of the base, a value an arithmetic."""
        return self._measured.of(slice(len(self.names), None))

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


def load(spec: StudySpec, folder: Path | None = None) -> SeqlenStudy:
    """Read what a run of the study has written, and the base's arithmetics where they were drawn.

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
    path = folder / f"arithmetic-{spec.runtime.device}.parquet"
    draws = drawn_alike(path, spec) if path.exists() else None
    study = SeqlenStudy(spec, runs, queries, pages, provenance, folder, draws)
    _check(study)
    return study


def drawn_alike(path: Path, spec: StudySpec) -> pd.DataFrame:
    """The draws of `studies.seqlen.arithmetic` in the precision that the study computes in."""
    draws = pd.read_parquet(path)
    return draws[draws["draw"].str.startswith(spec.runtime.dtype)]


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
    if study.draws is not None and not np.isfinite(study.base_columns).all():
        raise ColqError(
            f"{study.folder}: the draws of arithmetic lack queries of the study: "
            f"run `python -m studies.seqlen.arithmetic {spec.name}` again"
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


def over_seeds(*arms: stats.Estimate, level: float = stats.LEVEL) -> dict:
    """Sum over arms of the mean over their columns (seeds or arithmetics), crossed with the queries.

    The variance between columns holds what a column does on every query (its main effect) and what it does
    on these queries alone. The latter is in the error over queries already and is taken out, or it would be
    counted twice: variance = queries + sum over arms of max(0, between - interaction). One column says
    nothing of its main effect, which is then left out.

    Returns:
        value, se, df (Satterthwaite), low, high; columns, the number of the first arm's.

    Source: Searle, Casella and McCulloch, Variance Components (1992), section 4.3 (two-way, no replication);
    Satterthwaite, An Approximate Distribution of Estimates of Variance Components (1946).
    """
    shares = sum(arm.shares.mean(1) for arm in arms)
    queries, df = float(shares @ shares), arms[0].df
    variance, spread = queries, queries**2 / df
    for arm in arms:
        n = len(arm.value)
        if n > 1:
            between, interaction = (part / n for part in between_columns(arm))
            variance += max(0.0, between - interaction)
            spread += between**2 / (n - 1) + interaction**2 / ((n - 1) * df)
    value, se = float(sum(arm.value.mean() for arm in arms)), float(np.sqrt(variance))
    df = variance**2 / spread if spread else df
    low, high = (float(end) for end in stats.interval(value, se, df, level))
    return {"value": value, "se": se, "df": df, "low": low, "high": high, "columns": len(arms[0].value)}


def between_columns(arm: stats.Estimate) -> tuple[float, float]:
    """Variance between columns, and as much of it as chance in the queries explains."""
    apart = arm.shares - arm.shares.mean(1, keepdims=True)
    return float(np.var(arm.value, ddof=1)), float((apart**2).sum() / (len(arm.value) - 1))


def negative(arm: stats.Estimate) -> stats.Estimate:
    return stats.Estimate(-arm.value, -arm.shares, arm.df)


def scores(study: SeqlenStudy) -> pd.DataFrame:
    """A row per variant: score, difference to the base (with interval over queries), and its run."""
    rows = [mean_score(study, [name]) for name in study.names]
    table = pd.DataFrame(rows).assign(variant=study.names).drop(columns="seeds")
    return table.merge(study.runs, on="variant", how="left")


def mean_score(study: SeqlenStudy, variants: list[str]) -> dict:
    """Mean over `variants` that differ in their seed alone, and its change from the base."""
    measured = study.of(variants)
    score, change = over_seeds(measured), over_seeds(measured, negative(study.base))
    if variants == [study.spec.base]:
        score, change = over_seeds(study.base), dict.fromkeys(change, 0.0)
    return {
        **{"score": score["value"], "low": score["low"], "high": score["high"]},
        **{"diff": change["value"], "diff_low": change["low"], "diff_high": change["high"]},
        **{"diff_se": change["se"], "diff_df": change["df"], "seeds": len(variants)},
    }


def contrast(study: SeqlenStudy, first: list[str], second: list[str], level: float = stats.LEVEL) -> dict:
    """Mean over seeds of first minus second, paired seed by seed; interval over queries and seeds.

    Also seed_low and seed_high, a t interval over the seeds alone, for these queries, p of that t test, and
    whether the two are equivalent within the margin by their 95 % interval.
    """
    each = study.of(first) - study.of(second)
    both, reach = over_seeds(each, level=level), seed_reach(each.value, level)
    seed_se = float(np.std(each.value, ddof=1) / np.sqrt(len(first))) if len(first) > 1 else np.nan
    return {
        **{"diff": both["value"], "low": both["low"], "high": both["high"]},
        **{"se": both["se"], "df": both["df"]},
        **{"seed_low": both["value"] - reach, "seed_high": both["value"] + reach},
        "p": float(stats.p_value(both["value"], seed_se, len(first) - 1)),
        "equivalent": stats.equivalent(
            *stats.interval(both["value"], both["se"], both["df"]), study.spec.margin
        ),
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
    low, high = stats.interval(0.0, np.std(values, ddof=1) / np.sqrt(n), n - 1, level)
    return float(high - low) / 2
