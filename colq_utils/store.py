"""A multi-vector store on disk: one (n_tokens, width) matrix a page, appended, memory-mapped, resumable.

Page features and page embeddings of a whole corpus do not fit in memory for the real benchmarks
(19,000 pages of 1,280 vectors), so they live in one raw file that is mapped, not read. A record
counts only once its line stands in the index, which is written after the data: a run killed
half-way loses the record under way and nothing else. Raw bits are kept, so bfloat16 survives exactly.
"""
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

_AS_NUMPY = {torch.bfloat16: np.dtype("<i2"), torch.float32: np.dtype("<f4")}


class VectorStore:
    """Append-only map from a key to a ``(n_tokens, width)`` tensor.

    Args:
        folder: where the store lives; made if missing.
        width: numbers a token.
        dtype: torch.bfloat16 or torch.float32.
    """

    def __init__(self, folder: Path, width: int, dtype: torch.dtype):
        self.folder, self.width, self.dtype = Path(folder), width, dtype
        self._numpy = _AS_NUMPY[dtype]
        self._row = width * self._numpy.itemsize
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in (self._data_file, self._index_file):
            file.open("ab").close()  # made if missing, and not a byte or date changed otherwise
        self._read()

    def _read(self) -> None:
        """Take up what is on disk, and cut off what a killed run left behind it."""
        self._index: dict[str, dict] = {}
        lines = self._index_file.read_text().splitlines(keepends=True)
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # the last line of a killed run
            self._index[record["key"]] = record
        self._rows = max((r["start"] + r["n"] for r in self._index.values()), default=0)
        whole = "".join(json.dumps(r) + "\n" for r in self._index.values())
        if whole != "".join(lines) or self._data_file.stat().st_size > self._rows * self._row:  # several processes may read what is whole
            with self._data_file.open("ab") as data:
                data.truncate(self._rows * self._row)
            self._index_file.write_text(whole)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the right to append; other processes wait for it, and find afterwards what this one has appended."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read()
            yield

    @property
    def _data_file(self) -> Path:
        return self.folder / "vectors.bin"

    @property
    def _index_file(self) -> Path:
        return self.folder / "index.jsonl"

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._index)

    def extend(self, keys: list[str], matrices: list[torch.Tensor], **notes: list) -> None:
        """Append records; each of `notes` gives one JSON-ready value a record, read back by `note`."""
        records, start = [], self._rows
        with self._data_file.open("ab") as data:
            for i, (key, matrix) in enumerate(zip(keys, matrices, strict=True)):
                bits = matrix.detach().to("cpu", self.dtype).contiguous()
                data.write((bits.view(torch.int16) if self.dtype == torch.bfloat16 else bits).numpy().tobytes())
                records.append({"key": key, "start": start, "n": len(bits), **{k: v[i] for k, v in notes.items()}})
                start += len(bits)
        with self._index_file.open("a") as index:
            index.writelines(json.dumps(record) + "\n" for record in records)
        self._index.update((record["key"], record) for record in records)
        self._rows = start

    def __getitem__(self, key: str) -> torch.Tensor:
        """The matrix of `key`, ``(n_tokens, width)``; its record alone is mapped, so that reading a corpus leaves nothing resident."""
        record = self._index[key]
        mapped = np.memmap(self._data_file, dtype=self._numpy, mode="r", offset=record["start"] * self._row, shape=(record["n"], self.width))
        return torch.from_numpy(np.array(mapped)).view(self.dtype)

    def tokens(self, key: str) -> int:
        """Rows of the matrix of `key`."""
        return self._index[key]["n"]

    def note(self, key: str, name: str):
        """A note stored with `key`."""
        return self._index[key][name]
