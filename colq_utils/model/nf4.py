"""Weights as bitsandbytes' NF4 (Dettmers et al. 2023, arXiv:2305.14314): written by it, read without it.

NF4 gives a block of 64 weights one fp32 scale and each weight one of 16 numbers, quantiles of a normal
distribution. Rounding is left to bitsandbytes, an extra. Reading is a look-up and a product in fp32, done
here, so that a variant is scored from the numbers in the checkpoint on any machine. Scales are not rounded
again ("double quantization"), and a checkpoint with such scales is refused.
"""

import importlib.util
import json
import logging
from pathlib import Path

import torch
from torch import nn

from colq_utils.base.errors import ColqError
from colq_utils.base.variant import GROUPS
from colq_utils.model import packing
from colq_utils.model.footprint import NF4_PARTS

#: What transformers reads in config.json; everything but the language model's blocks is named as left alone.
QUANTIZATION = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": ["vlm.model.visual", "embedding_proj_layer"],
}


def rounded(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A Linear's weight ``(out, in)`` by the names of `footprint.NF4_PARTS`, as bitsandbytes stores it."""
    functional = _functional()
    options = dict(blocksize=GROUPS["nf4"], quant_type="nf4", compress_statistics=False)
    packed, state = functional.quantize_4bit(weight.contiguous(), **options)
    stored = {"weight": packed} | {f"weight.{name}": t for name, t in state.as_dict(packed=True).items()}
    return {name: tensor.cpu() for name, tensor in stored.items()}


def _functional():
    """What rounds, imported without its complaint about a kernel that it misses on some processors.

    It would fetch that from the hub if the package ``kernels`` were installed, which no pin here asks for.
    """
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module("bitsandbytes.functional")
    finally:
        logging.disable(logging.NOTSET)


def weight(parts: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The weight ``(out, in)`` of what `rounded` gave; ColqError for another format than that."""
    codes, scales, numbers, text = (parts[name] for name in NF4_PARTS)
    state = json.loads(bytes(text.tolist()))
    if state["quant_type"] != "nf4" or codes.dtype != torch.uint8:
        raise ColqError(f"weights are stored as {state['quant_type']} in {codes.dtype}; nf4 in bytes is read")
    indices = torch.stack(
        (codes.flatten() >> 4, codes.flatten() & 15), 1
    )  # (n / 2, 2), the first in the high bits
    blocks = numbers[indices.long()].view(-1, state["blocksize"])  # (n_blocks, block)
    return (blocks * scales.unsqueeze(1)).view(state["shape"]).to(dtype)


def unpacked_(
    model: nn.Module, tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors with a weight in place of the parts of each NF4 layer; `model` learns which."""
    whole, marker = dict(tensors), NF4_PARTS[-1]
    for layer in (name.removesuffix(marker) for name in tensors if name.endswith(marker)):
        if all(layer + part in tensors for part in NF4_PARTS):  # else the loader names what is amiss
            whole[f"{layer}weight"] = weight({part: whole.pop(layer + part) for part in NF4_PARTS}, dtype)
            linear = model.get_submodule(layer.removesuffix("."))
            linear.bits, linear.QUANT_TYPE = 4, packing.PackedLinear.QUANT_TYPE
    return whole


def write_checkpoint(source: Path, target: Path, device: str) -> None:
    """Write a base checkpoint folder into an empty one in NF4; ColqError if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ColqError("scheme nf4 needs bitsandbytes, which is not installed: pip install -e '.[nf4]'")

    def packed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
        if not packing.is_quantizable(name, tensor):
            return None
        return {name.removesuffix("weight") + part: t for part, t in rounded(tensor.to(device)).items()}

    packing.rewrite(source, target, packed, QUANTIZATION)
