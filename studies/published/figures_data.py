"""Figures of the published reports, and what can be recomputed from them: no measurement of this repository.

`load` reads the transcribed tables of data/published; `across_tasks`, `count_tests` and `designs` say which
comparisons the published figures support. Tasks are the sample there, because the reports give no score of a
query. `audit` compares every printed value with its recomputation; `report` writes.
"""

from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, permutation_test, wilcoxon

from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError
from colq_utils.report import stats

FOLDER = ROOT / "data" / "published"
ORIGINAL, LENGTHS = "original", ("seqlen-256", "seqlen-512", "seqlen-1024")
SEED = 42
#: Draws of the bootstrap and of the randomization test over the 22 tasks.
RESAMPLES = 10000
TESTS = ("sign", "wilcoxon", "randomization")


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

    @property
    def own(self) -> str:
        """The one report that prints scores by task."""
        return self.scores_by_task.source.iloc[0]

    def setting(self, name: str) -> str:
        """A line of a report's description of its setup."""
        return self.settings.set_index("name").value[name]

    @property
    def changes(self) -> pd.DataFrame:
        """A row a published average: its place, entries (NaN: not published), scores and changes."""
        key = ["source", "model", "scope"]
        rows = []
        for place, group in self.averages.drop_duplicates([*key, "variant"]).groupby(key, sort=False):
            printed = group.set_index("variant")
            entries = self.counts[(self.counts[key] == place).all(axis=1)].entries
            row = {"report": "comparison" if place[0] == self.own else "analysis", **dict(zip(key, place))}
            row["entries"] = entries.iloc[0] if len(entries) else np.nan
            rows.append({**row, "scores": printed.ndcg_at_5, "changes": printed.change_pct})
        return pd.DataFrame(rows)


def load(folder: Path = FOLDER) -> Published:
    """Read every table.

    Raises:
        ColqError: a file is missing.
    """
    missing = [f.name for f in fields(Published) if not (folder / f"{f.name}.csv").exists()]
    if missing:
        raise ColqError(f"{folder} lacks {missing[0]}.csv; restore it with `git checkout -- data/published`")
    return Published(**{f.name: pd.read_csv(folder / f"{f.name}.csv") for f in fields(Published)})


def percent(new: float, old: float) -> float:
    """Change from `old` to `new` in percent of `old`."""
    return 100 * (new / old - 1)


def saved(old: float, new: float) -> float:
    """Reduction from `old` to `new` in percent of `old`."""
    return 100 * (1 - new / old)


def across_tasks(p: Published) -> pd.DataFrame:
    """Tests over the 22 English tasks of the 4B: each length against the original, and each pair of lengths.

    Columns: first, second, diff (mean difference, NDCG units) with a bootstrap interval over tasks, wins,
    ties, losses and p-values of three tests, each with Holm's adjustment within its family (3 against the
    original; 3 pairs): sign test, Wilcoxon's signed ranks (scipy, zero differences left out), randomization
    of signs.
    """
    families = [[(name, ORIGINAL) for name in LENGTHS], list(combinations(reversed(LENGTHS), 2))]
    return pd.concat([_family(p, pairs) for pairs in families], ignore_index=True)


def _family(p: Published, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    rows = []
    for first, second in pairs:
        d = (p.english[first] - p.english[second]).round(5).to_numpy()
        resamples = {"n_resamples": RESAMPLES, "rng": np.random.default_rng(SEED)}
        low, high = bootstrap((d,), np.mean, method="percentile", **resamples).confidence_interval
        wins, ties, losses = stats.win_tie_loss(d)
        row = {"first": first, "second": second, "n": len(d), "diff": d.mean(), "low": low, "high": high}
        row |= {"wins": wins, "ties": ties, "losses": losses, "p_sign": sign_test(wins, losses)}
        row["p_wilcoxon"] = float(wilcoxon(d).pvalue)
        row["p_randomization"] = randomization_test(d)
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(**{f"holm_{test}": stats.holm(table[f"p_{test}"]) for test in TESTS})


def randomization_test(differences: np.ndarray) -> float:
    """Two-sided p of the mean under random signs, by `RESAMPLES` draws."""
    resamples = {"n_resamples": RESAMPLES - 1, "rng": np.random.default_rng(SEED)}
    sample = differences, np.zeros_like(differences)
    return float(permutation_test(sample, _mean_difference, permutation_type="samples", **resamples).pvalue)


def _mean_difference(first: np.ndarray, second: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.mean(first - second, axis=axis)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of as uneven a split by fair coins; ties are left out.

    Source: Conover, Practical Nonparametric Statistics, section 3.4.
    """
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def count_tests(p: Published) -> pd.DataFrame:
    """The sign test on every printed count, with Holm's adjustment within each report's model."""
    table = p.counts.assign(p_sign=[sign_test(r.improved, r.degraded) for r in p.counts.itertuples()])
    return table.assign(holm_sign=table.groupby(["source", "model"]).p_sign.transform(stats.holm))


def worth(p: Published) -> pd.DataFrame:
    """Each task's change times its English queries, the sum of the changes of single queries: (22, 3).

    1 is one query that goes from the right page on top to no right page among five, or back.
    """
    return p.differences.mul(p.tasks.set_index("task").english_queries.loc[p.differences.index], axis=0)


def designs(p: Published) -> pd.DataFrame:
    """Samples, batch, tokens in all and in a step of each published length; NaN where no report says."""
    table = p.configurations.dropna(subset="seqlen")
    table = table[table.model.isin(["4b", "8b"])].sort_values(["model", "seqlen"])
    table["tokens"], table["tokens_per_step"] = (table[c] * table.seqlen for c in ("nsamples", "batch_size"))
    return table[
        ["source", "model", "seqlen", "nsamples", "batch_size", "tokens", "tokens_per_step", "quant_method"]
    ]
