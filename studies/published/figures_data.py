"""Figures of the published reports, and what can be recomputed from them: no measurement of this repository.

`load` reads the transcribed tables of data/published. `audit` recomputes every printed value whose inputs are
printed too and says how it compares; `across_tasks`, `count_tests` and `designs` say which of the published
comparisons the published figures support. Tasks are the sample there, because the reports give no score of a
query. How it is written: `published_report`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest, wilcoxon

from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError
from colq_utils.report import stats

FOLDER = ROOT / "data" / "published"
ORIGINAL, LENGTHS = "original", ("seqlen-256", "seqlen-512", "seqlen-1024")
SEED = 42
REPRODUCED, ROUNDING, DIFFERS, AS_PUBLISHED = "reproduced", "within rounding", "differs", "as published"


@dataclass(frozen=True)
class Published:
    """The transcribed tables, a frame a file of data/published; see its README."""

    scores_by_task: pd.DataFrame
    averages: pd.DataFrame
    counts: pd.DataFrame
    sizes: pd.DataFrame
    configurations: pd.DataFrame
    models: pd.DataFrame
    recommendations: pd.DataFrame
    benchmark_8b: pd.DataFrame
    fp8_serving: pd.DataFrame
    settings: pd.DataFrame
    tasks: pd.DataFrame

    @property
    def english(self) -> pd.DataFrame:
        """NDCG@5 of the 4B, a row an English task in printed order, a column a variant: (22, 4)."""
        wide = self.scores_by_task.pivot(index="task", columns="variant", values="ndcg_at_5")
        return wide.loc[self.scores_by_task.task.unique(), [ORIGINAL, *LENGTHS]]

    @property
    def differences(self) -> pd.DataFrame:
        """Quantized minus original by English task, to the five printed decimals: (22, 3)."""
        return self.english[[*LENGTHS]].sub(self.english[ORIGINAL], axis=0).round(5)


def load(folder: Path = FOLDER) -> Published:
    """Read every table.

    Raises:
        ColqError: a file is missing.
    """
    missing = [f.name for f in fields(Published) if not (folder / f"{f.name}.csv").exists()]
    if missing:
        raise ColqError(f"{folder} lacks {missing[0]}.csv; restore it with `git checkout -- data/published`")
    return Published(**{f.name: pd.read_csv(folder / f"{f.name}.csv") for f in fields(Published)})


def compared(
    printed: float, digits: int, inputs: list[tuple[float, int]], formula: Callable[..., float]
) -> tuple[float, str]:
    """Recompute a printed value from printed inputs.

    Args:
        digits: decimals of the printed value.
        inputs: values with their decimals.

    Returns:
        The recomputed value and how it compares: reproduced to the last digit; within what rounding of the
        inputs allows; or neither.
    """
    value, half = formula(*(v for v, _ in inputs)), 0.5 * 10.0**-digits
    if abs(printed - value) <= half * (1 + 1e-9):
        return value, REPRODUCED
    corners = [
        formula(*corner) for corner in product(*((v - 0.5 * 10.0**-d, v + 0.5 * 10.0**-d) for v, d in inputs))
    ]
    inside = min(corners) - half - 1e-12 <= printed <= max(corners) + half + 1e-12
    return value, ROUNDING if inside else DIFFERS


def percent(new: float, old: float) -> float:
    """Change from `old` to `new` in percent of `old`."""
    return 100 * (new / old - 1)


def saved(old: float, new: float) -> float:
    """Reduction from `old` to `new` in percent of `old`."""
    return 100 * (1 - new / old)


def audit(p: Published) -> pd.DataFrame:
    """A row a printed value: source, table, what, printed, recomputed (NaN where its inputs are not printed), status."""
    rows = [
        *_audit_tasks(p),
        *_audit_averages(p),
        *_audit_counts(p),
        *_audit_sizes(p),
        *_audit_speed(p),
        *_audit_recommendations(p),
    ]
    return pd.DataFrame(rows, columns=["source", "table", "what", "printed", "recomputed", "status"])


def _row(r, what: str, printed: float, digits: int, inputs: list, formula: Callable) -> tuple:
    return (r.source, r.table, what, printed, *compared(printed, digits, inputs, formula))


def _as_published(r, what: str, printed: float) -> tuple:
    return (r.source, r.table, what, printed, np.nan, AS_PUBLISHED)


def _audit_tasks(p: Published):
    table = p.scores_by_task.assign(table="NDCG@5 Performance Comparison")
    for _, r in table.iterrows():
        what = f"{r.task}, {r.variant}"
        yield _as_published(r, f"{what}, NDCG@5", r.ndcg_at_5)
        if r.variant != ORIGINAL:
            yield _row(
                r,
                f"{what}, change (%)",
                r.change_pct,
                2,
                [(r.ndcg_at_5, 5), (p.english.loc[r.task, ORIGINAL], 5)],
                percent,
            )


def _audit_averages(p: Published):
    own = p.scores_by_task.source.iloc[0]
    for _key, group in p.averages.groupby(["source", "table", "model", "scope"], sort=False):
        original = group.set_index("variant").ndcg_at_5[ORIGINAL]
        for _, r in group.iterrows():
            what = f"{r.model}, {r.scope}, {r.variant}"
            scores = [(value, 5) for value in p.english[r.variant]] if r.source == own else []
            # the mean is recomputed from the task scores where the report prints them
            yield (
                _row(
                    r,
                    f"{what}, average",
                    r.ndcg_at_5,
                    5,
                    [(float(np.mean([v for v, _ in scores])), 5)],
                    float,
                )
                if scores
                else _as_published(r, f"{what}, average", r.ndcg_at_5)
            )
            if r.variant != ORIGINAL:
                base = (
                    (p.english[ORIGINAL].mean(), p.english[r.variant].mean())
                    if scores
                    else (original, r.ndcg_at_5)
                )
                yield _row(r, f"{what}, change (%)", r.change_pct, 2, [(base[1], 5), (base[0], 5)], percent)


def _audit_counts(p: Published):
    own = p.scores_by_task.source.iloc[0]
    for _, r in p.counts.iterrows():
        found = (
            dict(zip(("improved", "unchanged", "degraded"), stats.win_tie_loss(p.differences[r.variant])))
            if r.source == own
            else {}
        )
        for word in ("improved", "degraded", "unchanged"):
            what = f"{r.model}, {r.scope}, {r.variant}, {word}"
            yield (
                _row(r, what, r[word], 0, [(found[word], 9)], float)
                if found
                else _as_published(r, what, r[word])
            )
        yield _row(
            r,
            f"{r.model}, {r.scope}, {r.variant}, sum of the counts",
            r.entries,
            0,
            [(r.improved + r.degraded + r.unchanged, 9)],
            float,
        )


def _audit_sizes(p: Published):
    for _, r in p.sizes.dropna(subset="reduction_pct").iterrows():
        yield _row(
            r,
            f"{r.model}, {r.quantity}, reduction (%)",
            r.reduction_pct,
            1 if r.table == "Memory Efficiency" else 0,
            [(r.original_gb, 1), (r.quantized_gb, 1)],
            saved,
        )


def _audit_speed(p: Published):
    for _, r in p.benchmark_8b.dropna(subset="change_pct").iterrows():
        yield _row(
            r, f"8b, {r.metric}, change (%)", r.change_pct, 1, [(r.quantized, 0), (r.original, 0)], percent
        )
    detail = p.benchmark_8b[p.benchmark_8b.table == "Text Queries Benchmark"].set_index("metric")
    steps = p.settings.set_index("name").value["measurement steps"]
    for column in ("original", "quantized"):
        items, seconds = detail[column]["total items"], detail[column]["total time"]
        for metric, digits, formula in (
            ("throughput", 1, lambda t, n=items: n / t),
            ("mean latency", 2, lambda t, n=int(steps): 1000 * t / n),
        ):
            yield _row(
                detail.loc[metric],
                f"8b, {column}, {metric}",
                detail[column][metric],
                digits,
                [(seconds, 3)],
                formula,
            )
    for _, r in p.fp8_serving.dropna(subset="change_pct").iterrows():
        digits = 1 if r.unit == "GB" else 0
        yield _row(
            r,
            f"FP8, {r.metric}, change (%)",
            r.change_pct,
            0,
            [(r.quantized, digits), (r.original, digits)],
            percent,
        )
    served = p.fp8_serving[p.fp8_serving.table == "Results"].set_index("metric")
    requests = int(p.settings.set_index("name").value["requests of a configuration"])
    for column in ("original", "quantized"):  # the first request, the slowest, is the warm-up
        yield _row(
            served.loc["steady-state latency"],
            f"FP8, {column}, mean of the requests after the first (ms)",
            served[column]["steady-state latency"],
            -1,
            [(served[column]["mean latency"], 0), (served[column]["maximum latency"], 0)],
            lambda mean, first: (requests * mean - first) / (requests - 1),
        )


def _audit_recommendations(p: Published):
    averages = p.averages[
        (p.averages.source == p.recommendations.source.iloc[0]) & (p.averages.scope == "all languages")
    ]
    for _, r in p.recommendations.dropna(subset="change_pct").iterrows():
        model = "8b" if "8b" in r.scenario else "4b"
        mine = averages[averages.model == model].set_index("variant").ndcg_at_5
        yield _row(
            r,
            f"{r.scenario}, {r.recommendation}, change (%)",
            r.change_pct,
            2,
            [(mine[r.recommendation], 5), (mine[ORIGINAL], 5)],
            percent,
        )


def across_tasks(p: Published) -> pd.DataFrame:
    """Tests over the 22 English tasks of the 4B: each length against the original, and each pair of lengths.

    Columns: first, second, diff (mean difference, NDCG units) with a bootstrap interval over tasks, wins, ties, losses
    and p-values of three tests, each with Holm's adjustment within its family (3 against the original; 3 pairs):
    sign test, Wilcoxon's signed ranks (scipy, zero differences left out), randomization of signs.
    """
    families = [[(name, ORIGINAL) for name in LENGTHS], list(combinations(reversed(LENGTHS), 2))]
    return pd.concat([_family(p, pairs) for pairs in families], ignore_index=True)


def _family(p: Published, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    rows, table = [], p.english
    for first, second in pairs:
        d = (table[first] - table[second]).round(5).to_numpy()
        means = stats.bootstrap(d, np.zeros(len(d)), seed=SEED)
        low, high = stats.interval(means.suite()[1])[:, 0]
        wins, ties, losses = stats.win_tie_loss(d)
        rows.append(
            {
                "first": first,
                "second": second,
                "n": len(d),
                "diff": d.mean(),
                "low": low,
                "high": high,
                "wins": wins,
                "ties": ties,
                "losses": losses,
                "p_sign": sign_test(wins, losses),
                "p_wilcoxon": float(wilcoxon(d).pvalue),
                "p_randomization": float(stats.randomization_test(d, np.zeros(len(d)), seed=SEED)[0]),
            }
        )
    found = pd.DataFrame(rows)
    return found.assign(
        **{f"holm_{t}": stats.holm(found[f"p_{t}"]) for t in ("sign", "wilcoxon", "randomization")}
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of as uneven a split by fair coins; ties are left out (Conover, Practical Nonparametric Statistics, section 3.4)."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def count_tests(p: Published) -> pd.DataFrame:
    """The sign test on every printed count, with Holm's adjustment within each report's model."""
    found = p.counts.assign(p_sign=[sign_test(r.improved, r.degraded) for r in p.counts.itertuples()])
    return found.assign(
        holm_sign=found.groupby(["source", "model"]).p_sign.transform(lambda values: stats.holm(values))
    )


def worth(p: Published) -> pd.DataFrame:
    """Each task's change times its number of English queries: the sum of the changes of single queries, (22, 3).

    1 is one query that goes from the right page on top to no right page among five, or back.
    """
    return p.differences.mul(p.tasks.set_index("task").english_queries.loc[p.differences.index], axis=0)


def designs(p: Published) -> pd.DataFrame:
    """How each published length was calibrated: samples, batch, tokens in all and in a step; NaN where no report says."""
    table = p.configurations.dropna(subset="seqlen")
    table = table[table.model.isin(["4b", "8b"])].sort_values(["model", "seqlen"])
    return table.assign(
        tokens=table.nsamples * table.seqlen, tokens_per_step=table.batch_size * table.seqlen
    )[["source", "model", "seqlen", "nsamples", "batch_size", "tokens", "tokens_per_step", "quant_method"]]
