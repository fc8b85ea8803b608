"""The store of page vectors: its bits, one writer, killed and failed writes, memory."""

import json
import subprocess
import sys

import pytest
import torch

from colq_utils.stages.evaluate.store import VectorStore

MEMORY = """
import resource, sys
from pathlib import Path
import torch
from colq_utils.model.maxsim import maxsim
from colq_utils.stages.evaluate.store import VectorStore
folder, n = Path(sys.argv[1]), int(sys.argv[2])
store = VectorStore(folder, 320, torch.bfloat16)
page = torch.randn(1280, 320).bfloat16()
for i in range(n):
    store.extend([str(i)], [page])
scores = maxsim([torch.randn(8, 320)], n, lambda i: store[str(i)])
assert scores.shape == (1, n)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Twenty and 300 pages of 1280 x 320, 16 and 246 MB on disk, each in a process of its own."""
    peak = [
        int(
            subprocess.run(
                [sys.executable, "-c", MEMORY, str(tmp_path / str(n)), str(n)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for n in (20, 300)
    ]
    assert peak[1] - peak[0] < 40_000, f"{peak} kB"


class Meddling:
    """A matrix that does something when its turn to be stored has come."""

    def __init__(self, matrix: torch.Tensor, meddle):
        self.matrix, self.meddle = matrix, meddle

    def detach(self) -> torch.Tensor:
        self.meddle()
        return self.matrix


LARGE = (
    5000  # rows of two fp32: more than a file buffer, so that they are on disk before the next record's turn
)


def test_a_failed_append_shifts_no_later_record(tmp_path):
    def fail():
        raise MemoryError

    store = VectorStore(tmp_path, 2, torch.float32)
    store.extend(["a"], [torch.ones(3, 2)])
    with pytest.raises(MemoryError):
        store.extend(["b", "c"], [torch.full((LARGE, 2), 9.0), Meddling(torch.ones(1, 2), fail)])
    assert "b" not in store
    store.extend(["d"], [torch.full((4, 2), 2.0)])
    for opened in (store, VectorStore(tmp_path, 2, torch.float32)):
        assert (
            len(opened) == 2
            and torch.equal(opened["a"], torch.ones(3, 2))
            and torch.equal(opened["d"], torch.full((4, 2), 2.0))
        )


def test_opening_a_store_leaves_another_process_s_append_alone(tmp_path):
    store, others = VectorStore(tmp_path, 2, torch.float32), []
    store.extend(
        ["a", "b"],
        [
            torch.full((LARGE, 2), 1.0),
            Meddling(torch.full((3, 2), 2.0), lambda: others.append(VectorStore(tmp_path, 2, torch.float32))),
        ],
    )
    assert "a" not in others[0], "a record counts once its append has ended"
    others[0].extend(["c"], [torch.full((2, 2), 3.0)])
    for opened in (others[0], VectorStore(tmp_path, 2, torch.float32)):
        assert [opened[key].unique().tolist() for key in "abc"] == [[1.0], [2.0], [3.0]]


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
