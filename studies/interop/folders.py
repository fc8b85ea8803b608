"""The folders that the engines open: completed copies of base and exports, and copies for colpali-engine.

Copies share the weights' bytes with the checkpoint (hard links) where the disk allows it; nothing is written
into the checkpoint itself.
"""

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.base.names import BIAS, PROJECTION
from colq_utils.model import processing
from colq_utils.model.checkpoints import base_folder
from colq_utils.model.complete import FILES, complete

#: The width that colpali-engine's ColQwen3 is built with, whatever the configuration says.
COLPALI_WIDTH = 320
COLPALI_PROJECTION = "custom_text_proj"


@dataclass(frozen=True)
class Checkpoint:
    """Base or one export of a variant; `export` is empty for the base."""

    variant: str
    export: str
    path: Path

    @property
    def name(self) -> str:
        return f"{self.variant}/{self.export}" if self.export else self.variant

    @property
    def slug(self) -> str:
        return self.name.replace("/", "--")


def checkpoints(experiment: Experiment) -> list[Checkpoint]:
    """Base and every export that is there."""
    pairs = [(variant, export) for variant, spec in experiment.quantized.items() for export in spec.exports]
    exports = {}
    for variant, export in pairs:  # variants that run the same weights by another kernel are one checkpoint
        path = experiment.checkpoint(variant, export)
        if path.is_dir():
            exports.setdefault(path, Checkpoint(variant, export, path))
    return [Checkpoint(experiment.base, "", base_folder(experiment)), *exports.values()]


def completed(checkpoint: Checkpoint, target: Path) -> Path:
    """A copy of a checkpoint with everything that it lacks."""
    with files.atomic(target, folder=True) as folder:
        for path in checkpoint.path.iterdir():
            if path.is_file():
                _link(path, folder / path.name)
        for name in ("config.json", "processor_config.json"):  # rewritten: no links to the checkpoint's own
            if (folder / name).exists():
                (folder / name).unlink()
                shutil.copyfile(checkpoint.path / name, folder / name)
        complete(folder)
    return target


def _link(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):
        os.link(source, target)
    if not target.exists():
        shutil.copyfile(source, target)


def colpali(source: Path, target: Path) -> Path:
    """A completed folder in colpali-engine's layout, names inside the quantization configuration too.

    Raises:
        ColqError: the embedding is wider than colpali-engine's.
    """
    config = json.loads((source / "config.json").read_text())
    processor = json.loads((source / "processor_config.json").read_text())
    with files.atomic(target, folder=True) as folder:
        for path in source.iterdir():
            if path.suffix in (".json", ".jinja", ".txt") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)
        tensors = {}
        for shard in sorted(source.glob("*.safetensors")):
            tensors |= load_file(shard)
        save_file(colpali_tensors(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        files.write_json(folder / "config.json", _colpali_config(config))
        plain = {k: v for k, v in processor.items() if k not in ("auto_map", "processor_class")}
        files.write_json(folder / "processor_config.json", plain)
        files.write_json(folder / "colq.json", _prompts(processor))
    return target


def colpali_name(name: str) -> str:
    """``vlm.model.`` dropped, the projection by colpali-engine's name; also of names in escaped patterns."""
    name = re.sub(r"vlm\\?\.model\\?\.", "", name)
    return name.replace("embedding_proj_layer", COLPALI_PROJECTION)


def colpali_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by colpali-engine's names: no head, a bias in any case, the projection 320 wide."""
    renamed = {colpali_name(name): tensor for name, tensor in tensors.items() if "lm_head." not in name}
    weight = tensors[PROJECTION]  # (dim, hidden)
    bias = tensors.get(BIAS, torch.zeros(len(weight), dtype=weight.dtype))  # (dim,)
    missing = COLPALI_WIDTH - len(weight)
    if missing < 0:
        raise ColqError(f"colpali-engine's embeddings are {COLPALI_WIDTH} wide, these are {len(weight)}")
    renamed[colpali_name(PROJECTION)] = torch.nn.functional.pad(weight, (0, 0, 0, missing))  # (320, hidden)
    renamed[colpali_name(BIAS)] = torch.nn.functional.pad(bias, (0, missing))  # (320,)
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def _colpali_config(config: dict) -> dict:
    """A plain Qwen3-VL's configuration."""
    config = {k: v for k, v in config.items() if k not in ("auto_map", "page_tokens", "projection_bias")}
    if "quantization_config" in config:
        renamed = colpali_name(json.dumps(config["quantization_config"]))
        config["quantization_config"] = json.loads(renamed)
    return config | {"model_type": "qwen3_vl", "architectures": ["ColQwen3"]}


def _prompts(processor: dict) -> dict:
    """What colpali-engine's processor cannot read from the folder."""
    prefix = processor.get("visual_prompt_prefix", processing.PAGE_PREFIX)
    return {
        "page": prefix + processor.get("visual_prompt_suffix", processing.PAGE_SUFFIX),
        "query_prefix": processor.get("query_prefix", ""),
        "query_suffix": processor.get("query_suffix", processing.QUERY_SUFFIX),
        "page_tokens": processor.get("page_tokens", "all"),
    }


def code() -> list[Path]:
    """The files whose change makes every answer stale."""
    from colq_utils.model.complete import CARRIED

    return [Path(__file__), *(CARRIED / name for name in FILES)]
