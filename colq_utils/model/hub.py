"""Files of a checkpoint: a folder here or a hub id at a pinned revision; their configuration and the headers of their weights.

A safetensors file opens with a table of its tensors (name, dtype, shape). Those tables say all that can be said about size,
in a few kilobytes, for an 8B model on the hub as for the bundled one; no weight is read.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from colq_utils.base.errors import ColqError
from colq_utils.base.names import QUANTIZABLE, part_of

#: Bytes of one number of each safetensors dtype.
WIDTH = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "BF16": 2,
    "F16": 2,
    "I16": 2,
    "F8_E4M3": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class Tensor:
    """One line of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.parameters * WIDTH[self.dtype]

    @property
    def part(self) -> str:
        return part_of(self.name)

    @property
    def quantizable(self) -> bool:
        return len(self.shape) == 2 and QUANTIZABLE.match(self.name) is not None


def read_headers(path: str, revision: str | None = None) -> list[Tensor]:
    """The tensors of a checkpoint folder (one file or sharded), or of a hub id at a pinned revision.

    Raises:
        ColqError: no weights there, a shard that is missing or cut short, or the hub cannot be reached.
    """
    if not Path(path).is_dir():
        return _hub_headers(path, revision)
    index = Path(path) / "model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.exists()
        else ["model.safetensors"]
    )
    return [tensor for name in names for tensor in file_headers(Path(path) / name)]


def file_headers(file: Path) -> list[Tensor]:
    """Parse the header of one file: eight bytes of length, then JSON."""
    if not file.exists():
        raise ColqError(f"{file} is missing: not a checkpoint folder, or an incomplete one")
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if needed != size:
            raise ValueError(f"it holds {size:,} bytes where its header promises {needed:,}")
    except (ValueError, struct.error) as error:
        raise ColqError(f"{file} is damaged or cut short ({error}); fetch or make it again") from None
    return [Tensor(name, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()]


def _hub_headers(path: str, revision: str | None) -> list[Tensor]:
    """Headers of a hub checkpoint by range requests: some kilobytes, whatever the model's size."""
    if Path(path).is_absolute() or revision is None:
        raise ColqError(
            f"no checkpoint folder {path}: restore it, or give a hub id and its revision as model in the experiment"
        )
    from huggingface_hub import get_safetensors_metadata

    try:
        found = get_safetensors_metadata(path, revision=revision)
    except Exception as error:  # the hub client raises a dozen kinds; each means "not to be had from here"
        raise ColqError(
            f"the headers of {path}@{revision[:8]} cannot be read from the hub ({type(error).__name__}); "
            "download it elsewhere and give the folder as model.path"
        ) from None
    return [
        Tensor(name, info.dtype, tuple(info.shape))
        for file in found.files_metadata.values()
        for name, info in file.tensors.items()
    ]


def read_config(path: str, revision: str | None = None) -> dict:
    """``config.json`` of a folder or hub id.

    Raises:
        ColqError: nothing there, not JSON, or not the configuration of a ColQwen3.
    """
    file = fetch(path, "config.json", revision)
    try:
        config = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ColqError(f"{file} is not JSON ({error}); the checkpoint is damaged") from None
    if config.get("model_type") != "colqwen3":
        raise ColqError(f"{path} holds a {config.get('model_type')!r}, not a colqwen3")
    return config


def fetch(path: str, name: str, revision: str | None = None) -> Path:
    """A file of a checkpoint as a local path, downloaded from the hub at the pinned revision if need be.

    Raises:
        ColqError: no such folder or file, or the hub cannot be reached.
    """
    if Path(path).is_dir():
        if not (Path(path) / name).exists():
            raise ColqError(f"{path} has no {name}: not a checkpoint folder, or an incomplete one")
        return Path(path) / name
    if Path(path).is_absolute() or revision is None:
        raise ColqError(f"no checkpoint folder {path}")
    return _download(path, name, revision, "model", "download it elsewhere and give the folder as model.path")


def fetch_folder(name: str, revision: str) -> Path:
    """All files of a hub checkpoint at a pinned revision, as a local folder.

    Raises:
        ColqError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ColqError(
            f"{name}@{revision[:8]} cannot be fetched from the hub ({first_line(error)}); "
            "download it elsewhere and give the folder as model.path"
        ) from None


def fetch_dataset(name: str, file: str | None, revision: str | None) -> Path:
    """A file of a hub data set at a pinned revision, as a local path.

    Raises:
        ColqError: no file or revision named, or the hub cannot be reached.
    """
    if not (file and revision):
        raise ColqError(
            f"{name} is no folder here; for a hub data set give calibration.file and calibration.revision"
        )
    return _download(
        name,
        file,
        revision,
        "dataset",
        "put its parquet file in a folder and name that as calibration.source",
    )


def _download(name: str, file: str, revision: str, kind: str, remedy: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, revision=revision, repo_type=kind))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ColqError(
            f"{name}@{revision[:8]} cannot be fetched from the hub ({first_line(error)}); {remedy}"
        ) from None


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
