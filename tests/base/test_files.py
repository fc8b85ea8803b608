"""Files are written whole or not at all."""

import pytest

from colq_utils.base import files
from colq_utils.base.errors import ColqError


def test_full_disk_is_one_message(tmp_path):
    with pytest.raises(ColqError, match="the disk is full"), files.atomic(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")
    with pytest.raises(ColqError, match="the disk is full"), files.atomic(tmp_path / "x.safetensors"):
        raise RuntimeError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )  # as safetensors says it
    assert not list(tmp_path.iterdir())
