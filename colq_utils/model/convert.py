"""A checkpoint of colpali-engine's ColQwen3 as a folder in the published layout; safetensors only.

Names and config.json change; the bytes of the weights are copied, so embeddings stay the same bits.
"""

import json
import shutil
from pathlib import Path

from colq_utils.base import files
from colq_utils.base.errors import ColqError
from colq_utils.base.names import BIAS, PROJECTION, UNUSED
from colq_utils.model import footprint, hub, layouts


def convert(source: Path, target: Path) -> None:
    """Write the folder `target` from the folder `source`, or nothing.

    Raises:
        ColqError: `target` is there, `source` has another layout, or a tensor is missing, unknown, misshapen.
    """
    if target.exists():
        raise ColqError(f"{target} is there already; name another folder, or remove it first")
    if not source.is_dir():
        name = source.as_posix()
        problem = hub.adapter(name, "main") if hub.HUB_ID.fullmatch(name) else ""
        raise ColqError(problem or f"{source} is no folder; for a model on the hub, `hf download` makes one")
    tensors = hub.read_headers(str(source.resolve()))
    config = files.read_object(hub.fetch(str(source.resolve()), "config.json"))
    if config.get("model_type") == "colqwen3":
        raise ColqError(f"{source} has the published layout already; use it as it is")
    if not layouts.is_colpali(config, [tensor.name for tensor in tensors]):
        raise ColqError(layouts.foreign(str(source), config, []))
    config = _require_whole(source, config, {layouts.published_name(t.name) or t.name: t for t in tensors})
    with files.atomic(target, folder=True) as folder:
        for path in source.iterdir():
            if path.suffix == ".safetensors":
                _rename(path, folder / path.name)
            elif path.suffix in (".json", ".jinja", ".txt") and path.name != "config.json":
                shutil.copy2(path, folder / path.name)
        index = folder / "model.safetensors.index.json"
        if index.exists():
            content = json.loads(index.read_text())
            places = {layouts.published_name(name): file for name, file in content["weight_map"].items()}
            files.write_json(index, content | {"weight_map": places})
        files.write_json(folder / "config.json", config)


def _require_whole(source: Path, config: dict, tensors: dict[str, hub.Tensor]) -> dict:
    """The published configuration, if `tensors` (by published name) are exactly those that it implies."""
    width = tensors[PROJECTION].shape[0]
    own = {"model_type": "colqwen3", "architectures": ["ColQwen3ForRetrieval"], "embed_dim": width}
    config = config | own | {"projection_bias": BIAS in tensors}
    wanted = {tensor.name: tensor.shape for tensor in footprint.from_config(config)}
    stored = {name: tensor.shape for name, tensor in tensors.items()}
    differing = {name for name, _ in wanted.items() ^ stored.items() if UNUSED not in name}
    if differing:
        first, more = sorted(differing)[0], f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        kind = (
            "misshapen"
            if first in wanted.keys() & stored.keys()
            else "unknown"
            if first in stored
            else "missing"
        )
        raise ColqError(f"{source} is no whole ColQwen3: {first} is {kind}{more}; nothing was written")
    return config


def _rename(source: Path, target: Path) -> None:
    """Copy a safetensors file (its header's length in eight bytes, header, data) with published names."""
    with source.open("rb") as old, target.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        text = json.dumps(
            {layouts.published_name(name) or name: entry for name, entry in header.items()}
        ).encode()
        text += b" " * (-len(text) % 8)  # data begin at a multiple of eight
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new, 1 << 24)
