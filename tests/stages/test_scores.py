"""NDCG by hand and against trec_eval, ranks, margins, and answers that are not there."""

import numpy as np
import pytest
import torch

from colq_utils.stages.evaluate import scores


@pytest.mark.parametrize(
    ("ranked", "ideal", "expected"),
    [
        ([1, 0, 0, 0, 0], [1], 1.0),
        ([0, 1, 0, 0, 0], [1], 1 / np.log2(3)),
        ([0, 0, 0, 0, 0, 1], [1], 0.0),
        ([0, 1, 1], [1, 1], (1 / np.log2(3) + 0.5) / (1 + 1 / np.log2(3))),
        ([2, 0, 1], [1, 2], (2 + 0.5) / (2 + 1 / np.log2(3))),
    ],
)
def test_ndcg_known_answers(ranked, ideal, expected):
    assert scores.ndcg(np.array(ranked, dtype=float), np.array(ideal, dtype=float)) == pytest.approx(
        expected, abs=1e-12
    )


def test_per_query_rank_margin_and_top():
    similarity = torch.tensor([[1.0, 4.0, 3.0], [5.0, 1.0, 1.0]])
    frame = scores.per_query(
        similarity, ["q1", "q2"], ["a", "b", "c"], [2, 4], {"q1": {"c": 1}, "q2": {"a": 1}}
    )
    assert frame["first_rank"].tolist() == [2, 1]
    assert frame["margin"].tolist() == [(3 - 4) / 2, (5 - 1) / 4]
    assert frame["top5"].iloc[0] == ["b", "c", "a"]
    assert frame["ndcg_at_5"].tolist() == pytest.approx([1 / np.log2(3), 1.0])


def test_ndcg_is_trec_evals():
    """Graded relevance, many queries: the reference implementation to 1e-9."""
    import pytrec_eval

    rng = np.random.default_rng(0)
    pages, queries = [f"p{i}" for i in range(30)], [f"q{i}" for i in range(200)]
    similarity = torch.tensor(rng.normal(size=(200, 30)))
    asked = [*pages, "not in the corpus"]
    relevant = {
        q: {p: int(g) for p, g in zip(rng.choice(asked, 6, replace=False), rng.integers(0, 4, 6))}
        | {asked[i % 31]: 1}
        for i, q in enumerate(queries)
    }
    run = {q: dict(zip(pages, row.tolist())) for q, row in zip(queries, similarity)}
    theirs = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.5"}).evaluate(run)
    ours = scores.per_query(similarity, queries, pages, [1] * 200, relevant).set_index("query_id")[
        "ndcg_at_5"
    ]
    assert len(ours) == 200 and max(abs(ours[q] - theirs[q]["ndcg_cut_5"]) for q in queries) < 1e-9


def test_an_answer_that_the_corpus_lacks_is_not_found():
    frame = scores.per_query(torch.tensor([[1.0, 2.0]]), ["q"], ["a", "b"], [1], {"q": {"elsewhere": 1}})
    assert (
        frame["ndcg_at_5"].tolist() == [0.0]
        and frame["first_rank"].tolist() == [3]
        and frame["margin"].isna().all()
    )


def test_queries_without_an_answer_do_not_count():
    assert scores.per_query(torch.ones(1, 2), ["q"], ["a", "b"], [1], {"q": {"a": 0}}).empty
