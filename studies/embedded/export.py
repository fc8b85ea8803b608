"""Turn trained weights into a checkpoint folder in the published layout.

`python -m studies.embedded.export SHARDS TOKENIZER FOLDER` joins `model-*.safetensors` of a
training run, adds config.json, the tokenizer and the processor, and reports the size. The
processor keeps image tokens only, adds nothing to queries and reads regions of 704 x 384 pixels
without resizing them.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from colq_utils.model.processing import ColQwen3Processor
from studies.embedded.tiny_config import (
    HEIGHT,
    IMAGE,
    SPECIAL_TOKENS,
    VISION_END,
    VISION_START,
    WIDTH,
    TinyConfig,
)
from studies.embedded.tiny_model import TinyColQwen3, export
from studies.embedded.tokenizer import published

PAGE_PREFIX = "".join(SPECIAL_TOKENS[i] for i in (VISION_START, IMAGE, VISION_END))


def join(shards: Path) -> TinyColQwen3:
    """Return the model of a folder of shards, in fp32; raises RuntimeError on a missing or extra tensor."""
    tensors = {}
    for path in sorted(shards.glob("model-*.safetensors")):
        tensors.update(load_file(path))
    model = TinyColQwen3(TinyConfig())
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    return model


def processor(tokenizer: Tokenizer) -> ColQwen3Processor:
    """Return the processor of the embedded model."""
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32, "longest_edge": WIDTH * HEIGHT},
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return ColQwen3Processor(
        images,
        published(tokenizer),
        visual_prompt_prefix=PAGE_PREFIX,
        visual_prompt_suffix="",
        query_prefix="",
        query_suffix="",
        page_tokens="image",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with torch.no_grad():
        export(join(args.shards), args.folder)
    processor(Tokenizer.from_file(str(args.tokenizer))).save_pretrained(args.folder)
    sizes = {path.name: path.stat().st_size for path in sorted(args.folder.iterdir())}
    print(json.dumps({"bytes": sizes}))


if __name__ == "__main__":
    main()
