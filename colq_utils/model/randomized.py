"""A checkpoint of random weights in the published dimensions: for bytes and times, which they hardly change.

Every report of an experiment on it says so. The published tokenizer is on the hub; in its place stands a
byte-level BPE of 50,000 entries trained on the embedded calibration text, which cuts the published questions
into nearly as many tokens as they have words and signs. Prompts and pixel budget are the published ones.
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

SPECIAL = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
SPECIAL = [f"<|{name}|>" for name in SPECIAL]
#: The published pixel budget: from 64 to 1,280 tokens of 32 by 32 pixels.
PIXELS = {"shortest_edge": 64 * 32 * 32, "longest_edge": 1280 * 32 * 32}


def ensure(experiment: Experiment) -> Path:
    """The random checkpoint of an experiment, made if it is not there (16 GB for the 8B)."""
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
    """Write a checkpoint of `size` (``4b``, ``8b``), with fewer decoder layers if asked, into a folder."""
    patches = dict(patch_size=16, merge_size=2, temporal_patch_size=2)
    images = Qwen2VLImageProcessorPil(size=PIXELS, **patches, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = processing.ColQwen3Processor(images, _tokenizer())
    processor.save_pretrained(folder)
    config = _config(size, processor.tokenizer, layers)
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = ColQwen3ForRetrieval(config).state_dict()
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {name: _random(name, value.shape, generator, config).cpu() for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _tokenizer() -> PreTrainedTokenizerFast:
    """The stand-in for the published tokenizer; two seconds to train."""
    text = pd.read_parquet(ROOT / "data" / "calibration" / "corpus.parquet", columns=["text"])["text"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = dict(special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet)
    raw.train_from_iterator(text, trainers.BpeTrainer(vocab_size=50_000, **options))
    special = dict(pad_token=SPECIAL[0], eos_token=SPECIAL[0], additional_special_tokens=SPECIAL[1:])
    return PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **special)


def _config(size: str, tokenizer: PreTrainedTokenizerFast, layers: int | None) -> ColQwen3Config:
    """The published dimensions with the special tokens of a tokenizer."""
    fields = footprint.real_config(size)
    if layers is not None:
        fields["text_config"]["num_hidden_layers"] = layers
    tokens = {"image_token_id": "image_pad"}
    tokens |= {f"vision_{end}_token_id": f"vision_{end}" for end in ("start", "end")}
    fields |= {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in tokens.items()}
    return ColQwen3Config(**fields, architectures=["ColQwen3ForRetrieval"], dtype="bfloat16")


def _random(name: str, shape: torch.Size, generator: torch.Generator, config: ColQwen3Config) -> torch.Tensor:
    """Ones for norms, zeros for biases, N(0, std²) for the rest, in bf16.

    std is 0.02, 1 for the embedding table, and 0.02 / √(2 · layers) for what is added to a residual stream
    (Radford et al. 2019): no layer outweighs the stream, and rounding errors do not grow with depth.
    """
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    std = 1.0 if "embed_tokens" in name else 0.02
    if re.search(r"o_proj|down_proj|blocks\.\d+\.(attn\.proj|mlp\.linear_fc2)", name):
        depth = config.vision_config.depth if ".visual." in name else config.text_config.num_hidden_layers
        std /= math.sqrt(2 * depth)
    values = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
    return values.normal_(0, std, generator=generator)
