"""MaxSim by hand, padding, and the store that pages are read from."""

import json

import pytest
import torch

from colq_utils.model.maxsim import maxsim
from colq_utils.stages.evaluate.store import VectorStore


def test_known_answer():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    pages = [torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.0, -1.0]])]
    scores = maxsim([query, query[:1]], 2, pages.__getitem__)
    assert torch.allclose(scores, torch.tensor([[1.8, -1.0], [1.0, 0.0]]))  # 1 + 0.8; 0 + -1


def test_padding_offers_no_similarity():
    """A page whose similarities are all negative must not profit from a neighbour's padding."""
    long, short = torch.eye(2).repeat(3, 1), torch.tensor([[-1.0, 0.0]])
    assert maxsim([torch.tensor([[1.0, 0.0]])], 2, [long, short].__getitem__)[0, 1] == -1.0


@pytest.mark.parametrize("block", [1, 200, 1 << 25])
def test_block_size_does_not_matter(block):
    torch.manual_seed(0)
    queries = [torch.randn(n, 8) for n in (1, 5, 3)]
    pages = [torch.randn(n, 8) for n in (4, 9, 2, 7, 7)]
    expected = torch.tensor([[(q @ p.T).max(1).values.sum() for p in pages] for q in queries])
    assert torch.allclose(maxsim(queries, 5, pages.__getitem__, block), expected, atol=1e-5)


def test_empty_inputs_are_refused():
    with pytest.raises(ValueError, match="query without tokens"):
        maxsim([torch.empty(0, 2)], 1, lambda i: torch.ones(1, 2))
    with pytest.raises(ValueError, match="page 0 has no tokens"):
        maxsim([torch.ones(1, 2)], 1, lambda i: torch.empty(0, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_store_keeps_the_bits(tmp_path, dtype):
    matrices = [torch.randn(n, 4).to(dtype) for n in (3, 1, 5)]
    VectorStore(tmp_path, 4, dtype).extend(["a", "b", "c"], matrices, grid=[[1, 2, 3]] * 3)
    again = VectorStore(tmp_path, 4, dtype)
    assert len(again) == 3 and again.note("b", "grid") == [1, 2, 3]
    for key, matrix in zip("abc", matrices, strict=True):
        assert torch.equal(again[key], matrix) and again[key].dtype == dtype


def test_a_store_has_many_readers_and_one_writer(tmp_path):
    first = VectorStore(tmp_path, 2, torch.float32)
    first.extend(["a"], [torch.ones(2, 2)])
    index = tmp_path / "index.jsonl"
    before = index.stat()
    second = VectorStore(tmp_path, 2, torch.float32)
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns), (
        "opening what is whole writes nothing"
    )
    first.extend(["b"], [torch.zeros(1, 2)])
    assert "b" not in second
    with second.alone():
        second.extend(["c"], [torch.full((3, 2), 2.0)])
    again = VectorStore(tmp_path, 2, torch.float32)
    assert [again[key].flatten().tolist() for key in "abc"] == [[1.0] * 4, [0.0] * 2, [2.0] * 6]


def test_store_survives_a_kill(tmp_path):
    """Data without an index line, and a half-written index line, are both as if they never were."""
    store = VectorStore(tmp_path, 2, torch.float32)
    store.extend(["a"], [torch.ones(2, 2)])
    with (tmp_path / "vectors.bin").open("ab") as data:
        data.write(b"\x00" * 5)
    with (tmp_path / "index.jsonl").open("a") as index:
        index.write(json.dumps({"key": "b", "start": 2, "n": 9})[:-4])
    again = VectorStore(tmp_path, 2, torch.float32)
    assert "a" in again and "b" not in again
    again.extend(["b"], [torch.full((1, 2), 7.0)])
    assert torch.equal(again["b"], torch.full((1, 2), 7.0)) and torch.equal(again["a"], torch.ones(2, 2))
