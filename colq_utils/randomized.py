"""A checkpoint with random weights in the published dimensions, for what does not depend on their values: bytes and time.

Every report of an experiment on it says so. Tokenizer and prompts are the embedded model's (the published tokenizer is on
the hub), so the number of tokens of a query is that of the embedded tokenizer plus the published ten of padding.
"""
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import files, footprint, processing
from .config import ROOT, Experiment
from .modeling import ColQwen3Config, ColQwen3ForRetrieval

DONOR = ROOT / "models" / "tiny-colqwen3"
#: Files of the donor that make its tokenizer.
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
#: The published pixel budget, in pixels: 1,280 tokens of 32 by 32.
LONGEST_EDGE = 1280 * 32 * 32


def ensure(experiment: Experiment) -> Path:
    """The random checkpoint of an experiment, made if it is not there (16 GB for the 8B).

    Raises:
        ColqError: disk full.
    """
    folder = Path(experiment.model_path)
    if not (folder / "config.json").exists():
        with files.atomic(folder, folder=True) as target:
            write(experiment.model.size, target, experiment.seed, experiment.runtime.device)
    return folder


def write(size: str, folder: Path, seed: int, device: str, layers: int | None = None) -> None:
    """Write a checkpoint of `size` (``4b`` or ``8b``) into an existing folder.

    Args:
        layers: decoder layers, if fewer than published (to time one block of many).
    """
    for name in TOKENIZER:
        shutil.copy2(DONOR / name, folder / name)
    processor = processing.from_pretrained(str(DONOR))
    processor.image_processor.size = {"shortest_edge": 65536, "longest_edge": LONGEST_EDGE}
    published = processing.ColQwen3Processor(processor.image_processor, processor.tokenizer)
    published.save_pretrained(folder)
    config = config_of(size, processor, layers)
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = ColQwen3ForRetrieval(config).state_dict()
    generator = torch.Generator(device).manual_seed(seed)
    save_file({name: _random(name, value.shape, generator).cpu() for name, value in state.items()},
              folder / "model.safetensors", metadata={"format": "pt"})


def config_of(size: str, processor, layers: int | None = None) -> ColQwen3Config:
    """The published dimensions with the special tokens of `processor`'s tokenizer."""
    fields = footprint.real_config(size)
    if layers is not None:
        fields["text_config"]["num_hidden_layers"] = layers
    token = processor.tokenizer.convert_tokens_to_ids
    return ColQwen3Config(**fields, architectures=["ColQwen3ForRetrieval"], dtype="bfloat16", image_token_id=token("<|image_pad|>"),
                          vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"))


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Ones for norms, zeros for biases, N(0, 0.02) for the rest, in bf16."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16, device=generator.device).normal_(0, 0.02, generator=generator)
