"""Files of a checkpoint, a folder or a hub id at a pinned revision: configuration and headers of the weights.

A safetensors file opens with a table of its tensors (name, dtype, shape). Those tables say all that can be
said about size, in a few kilobytes, for an 8B model on the hub as for the bundled one; no weight is read.
"""

import re
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import huggingface_hub
import yaml
from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError
from safetensors import SafetensorError, safe_open

from colq_utils.base import files
from colq_utils.base.errors import ColqError
from colq_utils.base.names import QUANTIZABLE, part_of
from colq_utils.model import layouts

#: Bytes of one number of each safetensors dtype.
WIDTH = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}
WIDTH |= dict.fromkeys(("F8_E4M3", "I8", "U8", "BOOL"), 1)


#: Keys of a model card that tell a licence.
LICENCE = ("license", "license_name", "license_link")
#: What an id on the hub looks like.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


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
    """The tensors of a checkpoint folder (one file or sharded) or hub id.

    Raises:
        ColqError: nothing there, an adapter or pickles alone, a damaged shard or index, no hub to be reached.
    """
    if not _is_folder(path, revision):
        with _fetching(path, revision):  # by range requests
            metadata = huggingface_hub.get_safetensors_metadata(path, revision=revision).files_metadata
        rows = [(name, info) for file in metadata.values() for name, info in file.tensors.items()]
        return [Tensor(name, info.dtype, tuple(info.shape)) for name, info in rows]
    if problem := layouts.without_weights(Path(path)):
        raise ColqError(problem)
    index, shards = Path(path) / "model.safetensors.index.json", ["model.safetensors"]
    if index.exists():
        shards = _shards(index)
    return [tensor for shard in shards for tensor in file_headers(Path(path) / shard)]


def _shards(index: Path) -> list[str]:
    """The files that an index names; ColqError if one is none of its folder."""
    places = files.read_object(index).get("weight_map")
    if not isinstance(places, dict):
        raise ColqError(f"{index} has no weight_map: an index that cannot be read; fetch it again")
    for file in places.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ColqError(f"{index} names {file!r}, which is no file of its folder; fetch it again")
    return sorted(set(places.values()))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, by name; ColqError if there are none."""
    if paths := sorted(folder.glob("*.safetensors")):
        return paths
    raise ColqError(f"{folder} holds no .safetensors file: not a checkpoint folder, or an incomplete one")


def file_headers(file: Path) -> list[Tensor]:
    """The tensors of one file, in the order of its header; ColqError if it is missing or not whole."""
    if not file.exists():
        raise ColqError(f"{file} is missing: not a checkpoint folder, or an incomplete one")
    try:
        with safe_open(file, "np") as content:
            slices = {name: content.get_slice(name) for name in content.offset_keys()}
            return [Tensor(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()]
    except SafetensorError as error:
        raise ColqError(f"{file} is damaged or cut short ({error}); fetch or make it again") from None


def read_config(path: str, revision: str | None = None) -> dict:
    """``config.json`` of a folder or hub id; ColqError if it is not there, not JSON or not of a ColQwen3."""
    file = fetch(path, "config.json", revision)
    config = files.read_object(file)
    if config.get("model_type") != "colqwen3":
        tensors = read_headers(path, revision) if config.get("model_type") == layouts.COLPALI_TYPE else []
        raise ColqError(layouts.foreign(path, config, [tensor.name for tensor in tensors]))
    return config


def fetch(path: str, name: str, revision: str | None = None) -> Path:
    """A file of a checkpoint as a local path, downloaded if need be; ColqError if it cannot be had."""
    if not _is_folder(path, revision):
        with _fetching(path, revision):
            return Path(huggingface_hub.hf_hub_download(path, name, revision=revision))
    if not (Path(path) / name).exists():
        problem = layouts.without_weights(Path(path))
        raise ColqError(problem or f"{path} has no {name}: not a checkpoint folder, or an incomplete one")
    return Path(path) / name


def read_licence(path: str, revision: str | None = None) -> dict[str, str]:
    """What the front matter of a checkpoint's README.md says of its licence, by the hub's keys."""
    try:
        text = fetch(path, "README.md", revision).read_text(errors="replace")
        matter = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    except (ColqError, yaml.YAMLError):  # no README, or none that can be read
        return {}
    stated = {key: matter.get(key) for key in LICENCE} if isinstance(matter, dict) else {}
    return {key: value for key, value in stated.items() if isinstance(value, str)}


def adapter(name: str, revision: str) -> str:
    """One line on a hub id that holds an unmerged LoRA: the command that merges it; empty for any other."""
    try:
        file = huggingface_hub.hf_hub_download(name, layouts.ADAPTER, revision=revision)
    except Exception:  # the hub client raises a dozen kinds; each means that there is none to be seen
        return ""
    return layouts.adapter(name, files.read_object(Path(file)), revision)


def fetch_folder(name: str, revision: str) -> Path:
    """A hub checkpoint at a pinned revision as a local folder; ColqError if it cannot be had."""
    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    with _fetching(name, revision):
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))


def fetch_dataset(name: str, file: str | None, revision: str | None) -> Path:
    """A file of a hub data set at a pinned revision as a local path; ColqError if it cannot be had."""
    if not (file and revision):
        remedy = "for a hub data set give calibration.file and calibration.revision"
        raise ColqError(f"{name} is no folder here; {remedy}")
    with _fetching(name, revision, "put its parquet file in a folder and name that as calibration.source"):
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision, repo_type="dataset"))


def _is_folder(path: str, revision: str | None) -> bool:
    """True of a local folder, False of a hub id at a revision; ColqError if it can be neither."""
    if not Path(path).is_dir() and (Path(path).is_absolute() or revision is None):
        remedy = "restore it, or give a hub id and its revision as model in the experiment"
        raise ColqError(f"no checkpoint folder {path}: {remedy}")
    return Path(path).is_dir()


@contextmanager
def _fetching(
    name: str, revision: str, remedy: str = "download it elsewhere and give the folder as model.path"
):
    """What the hub client raises, as one line with a remedy."""
    try:
        yield
    except Exception as error:  # it raises a dozen kinds; each means "not to be had from here"
        absent = isinstance(error, (EntryNotFoundError, NotASafetensorsRepoError))
        if absent and (problem := adapter(name, revision)):
            raise ColqError(problem) from None
        reason = f"{name}@{revision[:8]} cannot be fetched from the hub ({first_line(error)})"
        raise ColqError(f"{reason}; {remedy}") from None


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
