"""NDCG by hand and against mteb, resumed evaluation, and a corpus that is encoded once."""
import numpy as np
import pytest
import torch

from colq_utils import evaluate, scores


@pytest.mark.parametrize(("ranked", "ideal", "expected"), [
    ([1, 0, 0, 0, 0], [1], 1.0),
    ([0, 1, 0, 0, 0], [1], 1 / np.log2(3)),
    ([0, 0, 0, 0, 0, 1], [1], 0.0),
    ([0, 1, 1], [1, 1], (1 / np.log2(3) + 0.5) / (1 + 1 / np.log2(3))),
    ([2, 0, 1], [1, 2], (2 + 0.5) / (2 + 1 / np.log2(3))),
])
def test_ndcg_known_answers(ranked, ideal, expected):
    assert scores.ndcg(np.array(ranked, dtype=float), np.array(ideal, dtype=float)) == pytest.approx(expected, abs=1e-12)


def test_per_query_rank_margin_and_top():
    found = torch.tensor([[1.0, 4.0, 3.0], [5.0, 1.0, 1.0]])
    frame = scores.per_query(found, ["q1", "q2"], ["a", "b", "c"], [2, 4], {"q1": {"c": 1}, "q2": {"a": 1}})
    assert frame["first_rank"].tolist() == [2, 1]
    assert frame["margin"].tolist() == [(3 - 4) / 2, (5 - 1) / 4]
    assert frame["top5"].iloc[0] == ["b", "c", "a"]
    assert frame["ndcg_at_5"].tolist() == pytest.approx([1 / np.log2(3), 1.0])


def test_queries_without_an_answer_do_not_count():
    assert scores.per_query(torch.ones(1, 2), ["q"], ["a", "b"], [1], {"q": {"a": 0}}).empty


class Task:
    """A local mteb task of two languages over one corpus of pictures."""

    def __new__(cls, images):
        from datasets import Dataset, Features, Image, Value
        from mteb.abstasks.retrieval import AbsTaskRetrieval
        from mteb.abstasks.task_metadata import TaskMetadata
        corpus = Dataset.from_dict({"id": [f"p{i}" for i in range(len(images))], "image": images},
                                   Features({"id": Value("string"), "image": Image()}))
        metadata = TaskMetadata(
            name="Pictures", description="pictures", dataset={"path": "none", "revision": "1"}, type="DocumentUnderstanding",
            category="t2i", modalities=["text", "image"], eval_splits=["test"], eval_langs={"en": ["eng-Latn"], "fr": ["fra-Latn"]},
            main_score="ndcg_at_5", date=("2024-01-01", "2024-12-31"), domains=["Non-fiction"], task_subtypes=[], license="not specified",
            annotations_creators="derived", dialect=[], sample_creation="found", bibtex_citation="", reference=None)

        def load_data(self, num_proc=None, **unused):
            self.dataset = {lang: {"test": {
                "corpus": corpus, "queries": Dataset.from_dict({"id": [f"{lang}{i}" for i in range(3)], "text": ["alpha", "beta", "gamma delta"]}),
                "relevant_docs": {f"{lang}{i}": {f"p{i}": 1} for i in range(3)}, "top_ranked": None}} for lang in ("en", "fr")}
            self.data_loaded = True
        return type("Pictures", (AbsTaskRetrieval,), {"metadata": metadata, "load_data": load_data, "k_values": (1, 5, 10)})()


@pytest.mark.parametrize("shared", [True, False])
def test_a_corpus_is_encoded_once_and_scores_agree_with_mteb(random_model, page_images, tmp_path, shared):
    from colq_utils import encode
    from colq_utils.store import VectorStore
    features = VectorStore(tmp_path / "features", encode.feature_width(random_model), torch.bfloat16) if shared else None
    retriever = evaluate.Retriever(random_model, "r1", tmp_path / "pages", features, batch=2)
    frame = evaluate.evaluate_task(retriever, Task(page_images))
    assert retriever.encoded == len(page_images) == frame["encoded_pages"].iloc[0]
    assert len(frame) == 6 and set(frame["lang"]) == {"en", "fr"}
    assert evaluate.evaluate_task(retriever, Task(page_images))["encoded_pages"].eq(0).all()
    direct = encode.pages(random_model, page_images, 2)
    assert all(torch.equal(retriever.pages[key], vectors) for key, vectors in zip(retriever._keys, direct, strict=True))
