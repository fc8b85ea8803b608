"""NDCG@5 and the rest of what is kept of one query, from a matrix of scores; numpy and pandas alone.

`evaluate` takes these through mteb, `studies.seqlen` without it: both say the same of the same ranking.
"""

import numpy as np
import pandas as pd
import torch

K = 5
#: Pages of a ranking that are kept where rankings are compared as a whole.
KEPT = 100


def ndcg(relevance: np.ndarray, ideal: np.ndarray, k: int = K) -> float:
    """NDCG at `k` with linear gains, as trec_eval has it (Järvelin and Kekäläinen, 2002).

    Args:
        relevance: grades of the ranked pages, best first.
        ideal: all grades of the query, in any order.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    top, best = relevance[:k], np.sort(ideal)[::-1][:k]
    return float((top * discounts[: len(top)]).sum() / (best * discounts[: len(best)]).sum())


def per_query(
    scores: torch.Tensor,
    query_ids: list[str],
    page_ids: list[str],
    lengths: list[int],
    relevant: dict[str, dict[str, int]],
) -> pd.DataFrame:
    """One row a query: NDCG@5, rank of the first relevant page, score margin and the top five pages.

    The margin is the score of the best relevant page minus that of the best other page, divided by the number
    of query tokens: it moves before ranks do. A relevant page that the corpus lacks counts as not found, as
    in trec_eval; where none is there, the rank is one past the last and the margin NaN.

    Args:
        scores: ``(n_queries, n_pages)``.
    """
    place = {page: i for i, page in enumerate(page_ids)}
    rows = []
    for query, row, length in zip(query_ids, scores, lengths, strict=True):
        grades = {page: grade for page, grade in relevant.get(query, {}).items() if grade > 0}
        if not grades:
            continue
        gains, values = np.zeros(len(page_ids)), row.numpy()
        for page in grades.keys() & place.keys():
            gains[place[page]] = grades[page]
        order, hits = np.argsort(-values, kind="stable"), gains > 0
        margin = float("nan")
        if hits.any() and not hits.all():
            margin = float(values[hits].max() - values[~hits].max()) / length
        rows.append(
            {
                "query_id": query,
                "ndcg_at_5": ndcg(gains[order], np.array(list(grades.values()), dtype=float)),
                "first_rank": int(np.append(hits[order], True).argmax()) + 1,
                "margin": margin,
                "top5": [page_ids[i] for i in order[:K]],
            }
        )
    return pd.DataFrame(rows)


def rankings(scores: torch.Tensor, page_ids: list[str]) -> list[list[str]]:
    """The first `KEPT` pages of each query, best first, ties in the order of the corpus."""
    orders = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :KEPT]
    return [[page_ids[i] for i in order] for order in orders]


def in_words(
    queries: pd.DataFrame, scores: pd.DataFrame, failures: pd.DataFrame, base: str, quantized: list[str]
) -> str:
    """What the scores say, in Markdown: the base's mean, changes in points, how many queries lose and gain.

    Of queries without labels it says how many keep their first page.
    """
    counted, key = scores[scores["counted"]], ["task", "lang", "query_id"]
    means = counted.groupby("variant")["ndcg_at_5"].mean().dropna()
    pages = queries[queries["variant"] == base].groupby("task")["encoded_pages"].first().sum()
    measured = [name for name in quantized if name in queries["variant"].values]
    if queries["ndcg_at_5"].notna().any():
        pairs = len(counted[["task", "lang"]].drop_duplicates())
        ndcg = queries.pivot(index=key, columns="variant", values="ndcg_at_5").dropna(subset=base)
        text, points = "None of these tasks counts towards a mean; ", {}
        if base in means:
            text = f"The base reaches **{means[base]:.3f}** NDCG@5 on average over {pairs} counted pairs of "
            text += "task and language; "
            points = {name: f"{100 * (means[name] - means[base]):+.2f} points; " for name in means.index}
        text += f"{pages:,} pages\nwere embedded once each for all of them. "
        text += "Against the base (one point is 0.01):"
        lines = [
            f"`{name}`: {points.get(name, '')}of {len(ndcg):,} queries "
            f"{(ndcg[name] < ndcg[base] - 1e-9).sum()} lose, {(ndcg[name] > ndcg[base] + 1e-9).sum()} gain"
            for name in measured
        ]
    else:
        first = queries.assign(top=queries["top5"].str[0]).pivot(index=key, columns="variant", values="top")
        text = f"No answer is known, so there is no score; {pages:,} pages were embedded. Beside the base:"
        kept = {name: (first[name] == first[base]).sum() for name in measured}
        lines = [
            f"`{name}`: {n:,} of {len(first):,} queries keep their first page" for name, n in kept.items()
        ]
    lines = lines or ["not measured"]
    lines += [f"{f.task} with `{f.variant}` is not measured: {f.error}" for f in failures.itertuples()]
    close = "Which of these changes are more than chance is for `06_report` to say."
    return "\n\n".join([text, "\n".join(f"- {line}" for line in lines), close])
