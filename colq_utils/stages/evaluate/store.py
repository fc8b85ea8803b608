"""A multi-vector store on disk: one (n_tokens, width) matrix a page, appended, read one by one, resumable.

The vectors of a real benchmark (19,000 pages of 1,280) do not fit in memory, so they live in one raw file.
A record counts only once its line stands in the index, which is written after the data: a run killed half-
way loses the records under way and nothing else. What it left behind is cut off by the next append, under
the lock; opening and reading cut nothing, because another process may be appending.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch


class VectorStore:
    """Append-only map from a key to a ``(n_tokens, width)`` tensor.

    Args:
        folder: where the store lives; made if missing.
        width: numbers a token.
    """

    def __init__(self, folder: Path, width: int, dtype: torch.dtype):
        self.folder, self.width, self.dtype = Path(folder), width, dtype
        self._data_file, self._index_file = self.folder / "vectors.bin", self.folder / "index.jsonl"
        self._row_bytes = width * dtype.itemsize
        self._index: dict[str, dict] = {}
        self._rows = self._end = 0  # rows of data and bytes of index up to which both are whole
        self._held = False
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in (self._data_file, self._index_file):
            file.open("ab").close()  # made if missing, and not a byte or date changed otherwise
        self._read()

    def _read(self) -> None:
        """Take up the records that were appended since the last time, up to the first that is not whole."""
        with self._index_file.open("rb") as index:
            index.seek(self._end)
            lines = index.readlines()
        stored = self._data_file.stat().st_size // self._row_bytes
        for line in lines:
            try:
                record = json.loads(line[: line.rindex(b"\n")])
            except ValueError:
                break  # the last line of a killed run, or one being written
            end = record["start"] + record["n"]
            if end > stored:
                break
            self._index[record["key"]] = record
            self._rows, self._end = max(self._rows, end), self._end + len(line)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the right to append; other processes wait, and see afterwards what this one has appended."""
        if self._held:
            yield
            return
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._held = True
            try:
                self._read()
                yield
            finally:
                self._held = False

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._index)

    def extend(self, keys: list[str], matrices: list[torch.Tensor], **notes: list) -> None:
        """Append records; each of `notes` gives one JSON-ready value a record, read back by `note`."""
        with self.alone():
            lines, start = [], self._rows
            with self._data_file.open("ab") as data:
                # a failed append left bytes there: what follows them would be read shifted
                data.truncate(start * self._row_bytes)
                for key, matrix, *values in zip(keys, matrices, *notes.values(), strict=True):
                    bits = matrix.detach().to("cpu", self.dtype).contiguous()
                    data.write(bits.view(torch.uint8).numpy().tobytes())
                    record = {"key": key, "start": start, "n": len(bits), **dict(zip(notes, values))}
                    lines.append(json.dumps(record).encode() + b"\n")
                    start += len(bits)
            with self._index_file.open("ab") as index:
                index.truncate(self._end)
                index.writelines(lines)
            self._read()

    def __getitem__(self, key: str) -> torch.Tensor:
        """The matrix of `key`, ``(n_tokens, width)``."""
        n, start = self._index[key]["n"], self._index[key]["start"]
        row = self._row_bytes
        content = np.fromfile(self._data_file, np.uint8, count=n * row, offset=start * row)
        return torch.from_numpy(content).view(self.dtype).view(n, self.width)

    def tokens(self, key: str) -> int:
        """Rows of the matrix of `key`."""
        return self._index[key]["n"]

    def note(self, key: str, name: str):
        """A note stored with `key`."""
        return self._index[key][name]
