"""A checkpoint with random weights in the published dimensions, for bytes, which do not depend on values, and times, which are assumed not to.

Every report of an experiment on it says so. The published tokenizer is on the hub; in its place stands a byte-level BPE
of 50,000 entries trained on the embedded calibration text, which cuts the published questions into nearly as many tokens
as they have words and signs, so that batches have realistic lengths. Prompts and pixel budget are the published ones.
"""

import math
import re
import shutil
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from colq_utils.base import files
from colq_utils.base.config import ROOT, Experiment
from colq_utils.model import footprint, processing
from colq_utils.model.modeling import ColQwen3Config, ColQwen3ForRetrieval

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: The published pixel budget: from 64 to 1,280 tokens of 32 by 32 pixels.
PIXELS = {"shortest_edge": 64 * 32 * 32, "longest_edge": 1280 * 32 * 32}


def ensure(experiment: Experiment) -> Path:
    """The random checkpoint of an experiment, made if it is not there (16 GB for the 8B).

    Raises:
        ColqError: disk full.
    """
    folder = Path(experiment.model_path)
    stamp = folder / "drawn_by.txt"
    if not stamp.exists() or stamp.read_text() != drawn_by():
        shutil.rmtree(folder, ignore_errors=True)  # of other code: its numbers would pass for those of this
        with files.atomic(folder, folder=True) as target:
            write(experiment.model.size, target, experiment.seed, experiment.runtime.device)
            (target / stamp.name).write_text(drawn_by())
    return folder


def drawn_by() -> str:
    """Digest of the code that draws the numbers."""
    return files.sha256(Path(__file__))


def write(size: str, folder: Path, seed: int, device: str, layers: int | None = None) -> None:
    """Write a checkpoint of `size` (``4b`` or ``8b``) into an existing folder.

    Args:
        layers: decoder layers, if fewer than published (to time one block of many).
    """
    images = Qwen2VLImageProcessorPil(
        size=PIXELS,
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = processing.ColQwen3Processor(images, tokenizer())
    processor.save_pretrained(folder)
    config = config_of(size, processor, layers)
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = ColQwen3ForRetrieval(config).state_dict()
    generator = torch.Generator(device).manual_seed(seed)
    save_file(
        {name: _random(name, value.shape, generator, config).cpu() for name, value in state.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """The stand-in for the published tokenizer; two seconds to train."""
    text = pd.read_parquet(ROOT / "data" / "calibration" / "corpus.parquet", columns=["text"])["text"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=50_000,
            special_tokens=list(SPECIAL),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side="left",
    )


def config_of(size: str, processor, layers: int | None = None) -> ColQwen3Config:
    """The published dimensions with the special tokens of `processor`'s tokenizer."""
    fields = footprint.real_config(size)
    if layers is not None:
        fields["text_config"]["num_hidden_layers"] = layers
    token = processor.tokenizer.convert_tokens_to_ids
    return ColQwen3Config(
        **fields,
        architectures=["ColQwen3ForRetrieval"],
        dtype="bfloat16",
        image_token_id=token("<|image_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )


def _random(name: str, shape: torch.Size, generator: torch.Generator, config: ColQwen3Config) -> torch.Tensor:
    """Ones for norms, zeros for biases, N(0, σ) for the rest, in bf16.

    σ is 0.02, 1 for the embedding table, and 0.02 / √(2 · layers) for what is added to a residual stream (Radford et al.
    2019): as in a trained network no layer outweighs the stream, and rounding errors do not grow from layer to layer.
    """
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    sigma = 1.0 if "embed_tokens" in name else 0.02
    if re.search(r"o_proj|down_proj|blocks\.\d+\.(attn\.proj|mlp\.linear_fc2)", name):
        depth = config.vision_config.depth if ".visual." in name else config.text_config.num_hidden_layers
        sigma /= math.sqrt(2 * depth)
    return torch.empty(shape, dtype=torch.bfloat16, device=generator.device).normal_(
        0, sigma, generator=generator
    )
