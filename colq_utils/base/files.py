"""Files that are whole or absent: written beside their place and moved there at the end."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd

from colq_utils.base.errors import ColqError

AGAIN = "free some space and run the same command again"
FULL = f"the disk is full; {AGAIN}, finished work is kept"


@contextlib.contextmanager
def atomic(path: Path, folder: bool = False):
    """Yield a temporary path; what is written there becomes `path` only if the block ends well.

    Raises:
        ColqError: the disk is full (what was half written is removed first).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    target = scratch / path.name
    try:
        if folder:
            target.mkdir()
        yield target
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(target, path)
    except Exception as error:
        if is_full(error):
            raise ColqError(f"the disk is full: could not write {path}; {AGAIN}") from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_full(error: BaseException) -> bool:
    """Whether an exception means that the disk is full: an OSError, or what safetensors makes of one."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


def write_json(path: Path, value) -> Path:
    """Write `value` as indented JSON."""
    return write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> Path:
    with atomic(path) as target:
        target.write_text(text)
    return path


def write_table(path: Path, frame: pd.DataFrame) -> Path:
    """Write a table as CSV or parquet, by the ending of `path`."""
    with atomic(path) as target:
        if path.suffix == ".parquet":
            frame.to_parquet(target, index=False, compression="zstd")
        else:
            frame.to_csv(target, index=False, float_format="%.6g", lineterminator="\n")
    return path


def read_json(path: Path, made_by: str):
    """Read a result of an earlier stage; see `required`."""
    return json.loads(required(path, made_by).read_text())


def read_object(path: Path) -> dict:
    """The JSON object of a file that others wrote; ColqError if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no text, no JSON, or a bomb
        raise ColqError(f"{path} is not JSON ({error}); fetch or make it again") from None
    if not isinstance(content, dict):
        raise ColqError(
            f"{path} holds a {type(content).__name__} where an object is expected; fetch it again"
        )
    return content


def read_table(path: Path, made_by: str) -> pd.DataFrame:
    """Read a CSV or parquet table of an earlier stage; see `required`."""
    path = required(path, made_by)
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except ValueError as error:  # those of CSV and parquet, and of text that is none
        reason = " ".join(str(error).split())
        raise ColqError(f"{path} cannot be read ({reason}): run `make {made_by}` again") from None


def required(path: Path, made_by: str) -> Path:
    """`path`, or a `ColqError` that names the target which makes it."""
    if not Path(path).exists():
        raise ColqError(f"{path} does not exist yet: run `make {made_by}` first")
    return Path(path)


def sha256(*paths: Path) -> str:
    """Digest of files and folders: names and contents, independent of dates."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(path) if file != path else file.name).encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
