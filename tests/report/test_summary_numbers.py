"""Every number of the committed summary, found again from the raw files by pandas and scipy alone.

Nothing here comes from `colq_utils.report`: averages, intervals, verdicts and ratios are written down a
second time, the intervals in closed form and by resampling. So a mistake there is not repeated here.
"""

import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from colq_utils.base import config

KEY, ENTRY = ["task", "lang", "query_id"], ["task", "lang"]
TINY = config.load("tiny")
#: An end of an interval this close (points) to the margin or to 0 says neither.
NEAR = 0.05
#: What a summary says beside measurements: a point, the level, NDCG@5.
CONSTANTS = {0.01, 95.0, 5.0}


@cache
def table(stage: str, name: str) -> pd.DataFrame:
    path = TINY.results(stage) / name
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


@cache
def text() -> str:
    return (TINY.results("reports") / "summary.md").read_text()


@cache
def counted() -> pd.DataFrame:
    """The rows of the base for queries that count, by key; what every measure is aligned with."""
    scores = table("evaluate", "scores.csv")
    entries = scores.loc[scores.counted, ENTRY].drop_duplicates()
    queries = table("evaluate", "queries.parquet")
    return queries[queries.variant == TINY.base].merge(entries, on=ENTRY).set_index(KEY).sort_index()


def by_query(variant: str, column: str = "ndcg_at_5") -> pd.Series:
    queries = table("evaluate", "queries.parquet")
    return queries[queries.variant == variant].set_index(KEY)[column].reindex(counted().index)


def mixed(variant: str, queries: str) -> pd.Series:
    rows = table("evaluate", "mixed.parquet")
    rows = rows[(rows.variant == variant) & (rows.queries == queries)]
    return rows.set_index(KEY).ndcg_at_5.reindex(counted().index)


@cache
def sources() -> tuple[np.ndarray, np.ndarray]:
    """The number of each query's source, and of each source how many there are that entries link with it."""
    source, entry = pd.factorize(counted().source)[0], counted().groupby(level=ENTRY).ngroup().to_numpy()
    n = source.max() + 1
    links = coo_matrix((np.ones(len(source)), (source, n + entry)), shape=(n + entry.max() + 1,) * 2)
    family = connected_components(links, directed=False)[1][:n]
    return source, np.bincount(family)[family]


def interval(change: pd.Series) -> np.ndarray:
    """Mean over entries of `change`, and the ends of its interval over sources, all times 100."""
    by_entry, (source, of_family) = change.groupby(level=ENTRY), sources()
    share = (change - by_entry.transform("mean")) / by_entry.transform("size") / by_entry.ngroups
    variance = (np.bincount(source, share) ** 2 * of_family / (of_family - 1)).sum()
    df = round((1 - 1 / of_family).sum())  # sources less families
    reach, mean = stats.t.ppf(0.975, df) * np.sqrt(variance), by_entry.mean().mean()
    return 100 * np.array([mean, mean - reach, mean + reach])


def resampled(change: pd.Series, seed: int, draws: int = 3000) -> np.ndarray:
    """The ends of the percentile interval, sources drawn with replacement; times 100."""
    entry = change.groupby(level=ENTRY).ngroup().to_numpy()
    source = sources()[0]
    n, rng = source.max() + 1, np.random.default_rng(seed)
    to_entry = np.zeros((n, entry.max() + 1)), np.zeros((n, entry.max() + 1))
    np.add.at(to_entry[0], (source, entry), change.to_numpy())
    np.add.at(to_entry[1], (source, entry), 1)
    weight = rng.multinomial(n, np.full(n, 1 / n), draws)
    means = ((weight @ to_entry[0]) / (weight @ to_entry[1])).mean(1)
    return 100 * np.quantile(means, [0.025, 0.975])


def shows(low: float, high: float) -> str:
    """First words of the verdict that an interval in points gets."""
    margin = 100 * TINY.evaluation.margin
    if min(abs(low + margin), abs(high + margin)) <= NEAR:
        return "at the margin"
    if low > -margin:
        return "within the margin"
    if high < -margin:
        return "loses at least"
    return "loses between" if high < -NEAR else "undecided"


def is_shown(token: str, value: float) -> bool:
    """Whether a number as it is written is `value`, rounded to as many decimals."""
    token = token.replace(",", "")
    decimals = len(token.split(".")[1]) if "." in token else 0
    return abs(float(token) - value) <= 0.5 * 10**-decimals + 1e-9


def numbers(words: str) -> list[str]:
    return re.findall(r"(?<![\w@.])[-+]?\d[\d,]*(?:\.\d+)?(?!\w)", words)


def lines() -> dict[str, list[str]]:
    """Cells of the summary's table by variant, rows being in the order of the experiment file."""
    rows = [line.strip("| ").split(" | ") for line in text().splitlines() if line.startswith("| ")][2:]
    evaluated = set(table("evaluate", "queries.parquet").variant)
    asked = [n for n, v in TINY.by_id.items() if n in evaluated and v.bits in (None, 4)]
    return dict(zip(asked, rows, strict=True))


def sizes() -> pd.DataFrame:
    first = table("quantize", "variants.csv").drop_duplicates("variant").set_index("variant")
    return pd.DataFrame(
        {
            "mb": first.tensor_bytes / 1e6,
            "base_mb": first.base_bytes / 1e6,
            "saved": 100 * (1 - first.tensor_bytes / first.base_bytes),
        }
    )


def top_changed(variant: str) -> pd.Series:
    pair = zip(by_query(variant, "top5"), by_query(TINY.base, "top5"))
    return pd.Series([float(ours[0] != theirs[0]) for ours, theirs in pair], counted().index)


def changes() -> dict[str, np.ndarray]:
    return {name: interval(by_query(name) - by_query(TINY.base)) for name in lines() if name != TINY.base}


def test_the_table():
    for name, change in changes().items():
        cells, size = lines()[name], sizes().loc[TINY.by_id[name].stored(TINY.model.size)]
        assert is_shown(cells[1], size.mb), name
        assert all(is_shown(*pair) for pair in zip(numbers(cells[2]), change, strict=True)), name
        assert is_shown(cells[3], 100 * top_changed(name).groupby(level=ENTRY).mean().mean()), name
        assert cells[4].startswith(shows(*change[1:])), name


def speed_ratios() -> list[float]:
    """Least and largest ratio of median latencies over workloads, of every variant but the base."""
    medians = table("benchmark", "samples.parquet").groupby(["variant", "kind", "batch"]).latency_s.median()
    ratios = (medians / medians[TINY.base]).drop(TINY.base, level="variant").groupby("variant")
    return [*ratios.min(), *ratios.max()]


def test_every_number_of_the_text_is_measured():
    """All that is not in the table; names of recipes and links left out."""
    found, prose = changes(), "\n".join(line for line in text().splitlines() if not line.startswith("| "))
    four = [name for name in found if TINY.by_id[name].bits == 4 and name in TINY.quantized]
    tops = [interval(top_changed(name)) for name in four]
    kept = [interval(mixed(name, "own") - by_query(TINY.base)) for name in four]
    known = np.concatenate([*found.values(), *tops, *kept, sizes().to_numpy().ravel(), speed_ratios()])
    known = [*known, *(-change[1] for change in found.values()), len(four), 100 * TINY.evaluation.margin]
    known += [len(counted()), len(counted().groupby(level=ENTRY)), *CONSTANTS]
    verdicts = [shows(*found[name][1:]) for name in four]
    open_ = ("undecided", "loses between", "at the margin")
    known += [verdicts.count("undecided"), sum(verdict in open_ for verdict in verdicts)]
    known.append(table("benchmark", "samples.parquet")["round"].nunique())
    for cells in lines().values():
        prose = prose.replace(cells[0], "")
    prose = re.sub(r"\]\(.*?\)", "]", prose)
    stray = [token for token in numbers(prose) if not any(is_shown(token, value) for value in known)]
    assert stray == []


def test_best_worst_and_closest():
    found = changes()
    four = {n: c for n, c in found.items() if TINY.by_id[n].bits == 4 and n in TINY.quantized}
    best, worst = (pick(four, key=lambda name: four[name][0]) for pick in (max, min))
    said = next(line for line in text().splitlines() if line.startswith("- **Cost and gain.**"))
    assert said.index(lines()[best][2]) < said.index(lines()[best][0]) < said.index(lines()[worst][2])
    assert lines()[worst][0] in said
    within = [name for name, change in four.items() if shows(*change[1:]) == "within the margin"]
    if not within:
        closest = max(four, key=lambda name: four[name][1])
        assert f"The closest, **{lines()[closest][0]}**" in text()


@pytest.mark.parametrize("seed", range(8))
def test_words_survive_another_seed_of_resampling(seed):
    """The verdict of every variant, and what keeping the base's pages costs, by resampling instead.

    "At the margin" and "undecided" claim nothing, so one may be the other.
    """
    for name, change in changes().items():
        low, high = resampled(by_query(name) - by_query(TINY.base), seed)
        open_, said = ("at the margin", "undecided"), lines()[name][4]
        alike = open_ if shows(low, high) in open_ else (shows(low, high),)
        assert said.startswith(alike), (name, low, high, change)
    answer = re.search(r"\*\*Must I re-embed\?\*\* (\w+): on the base's page vectors, (.*?) changes", text())
    named = next(name for name, cells in lines().items() if cells[0] == answer[2])
    low, high = resampled(mixed(named, "own") - by_query(TINY.base), seed)
    assert answer[1] == {"within the margin": "No"}.get(shows(low, high), "Undecided")
