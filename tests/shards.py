"""Checkpoints in several files with an index, as the published ones are stored."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HEAD = "vlm.lm_head.weight"  # the published checkpoints carry it; retrieval never uses it


def shard(folder: Path, n: int, head: torch.Tensor) -> dict[str, torch.Tensor]:
    """Replace the one file of `folder` by `n` shards that carry `head` besides; all tensors by name."""
    tensors = load_file(folder / "model.safetensors") | {HEAD: head}
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for i in range(n):
        file = f"model-{i + 1:05d}-of-{n:05d}.safetensors"
        save_file({name: tensors[name] for name in names[i::n]}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names[i::n], file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors
