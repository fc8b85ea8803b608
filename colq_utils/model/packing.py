"""Weights rounded to the nearest integer and packed as AutoRound stores them, and the way back.

The layout written is GPTQ's: 32-bit words along the input dimension, one fp16 scale per group and output,
zero points stored less one. The rounding is AutoRound's plain symmetric one, bit for bit (tested), without
its pass over a model: what a benchmark of speed and memory needs. Three bits, which straddle words, and the
layout of AWQ are read as well, so that any export can be scored without a kernel that this machine may lack.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from colq_utils.base import files
from colq_utils.base.errors import ColqError
from colq_utils.base.names import BIAS, BLOCKS, QUANTIZABLE
from colq_utils.model import hub, kernels
from colq_utils.model.modeling import DIMENSION_KEYS

#: The one of `modeling.DIMENSION_KEYS` that vLLM's ColQwen3 does not read.
UNREAD_BY_VLLM = "embedding_dim"
#: Weight bits that are written; and those that are read, of which three bits are AutoRound's alone.
BITS, READABLE = (2, 4, 8), (2, 3, 4, 8)
#: Layouts of words; ``auto_round`` is GPTQ's with zero points as they are, for asymmetric 2 and 3 bits.
LAYOUTS = ("awq", "gptq", "auto_round")
#: Output i of an AWQ word stands in place AWQ_ORDER[i] (Lin et al. 2023, the authors' kernels).
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
#: Smallest scale, as in AutoRound: a group of zeros must not divide by zero.
SMALLEST = 1e-5


def round_to_nearest(weight: torch.Tensor, bits: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round ``(out, in)`` symmetrically: a group's entry of largest magnitude becomes ``-2^(bits-1)``.

    Returns integers from 0 to ``2^bits - 1``, ``(out, in)``, and fp16 scales of any sign ``(out, n_groups)``.
    """
    out, columns = weight.shape
    if columns % group_size:
        raise ColqError(f"{columns} input features are no multiple of the group size {group_size}")
    groups, half = weight.view(out, -1, group_size), 2 ** (bits - 1)
    low, high = -groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)  # (out, n_groups)
    scales = (torch.where(high < low, 1, -1) * torch.maximum(low, high) / half).to(torch.float16)
    scales = torch.where(scales < 0, scales.clamp(max=-SMALLEST), scales.clamp(min=SMALLEST))
    integers = groups.div(scales.unsqueeze(-1)).round_().clamp_(-half, half - 1) + half
    return integers.to(torch.int32).view(out, columns), scales


def pack(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers ``(n, m)`` to words ``(n * bits / 32, m)``, the first in the lowest bits."""
    parts = integers.view(-1, 32 // bits, integers.shape[1]).to(torch.int64)
    shifts = torch.arange(0, 32, bits, device=integers.device).view(1, -1, 1)
    return (parts << shifts).sum(1).to(torch.int32)  # keeps the low 32 bits


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """What `pack` was given, ``(n_words * 32 / bits, m)``, int32; three bits run on into the next word."""
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32).view(1, -1, 1)
        return ((words.unsqueeze(1) >> shifts) & (2**bits - 1)).flatten(0, 1)
    first = torch.arange(len(words) * 32 // bits, device=words.device) * bits
    wide = torch.cat((words, words[-1:])).to(torch.int64) & 0xFFFFFFFF
    pairs = wide[first // 32] | wide[first // 32 + 1] << 32  # the two words that a number may lie in
    return (pairs >> (first % 32).unsqueeze(1) & 2**bits - 1).to(torch.int32)


def packed_tensors(weight: torch.Tensor, bits: int, group_size: int) -> dict[str, torch.Tensor]:
    """``qweight``, ``qzeros`` and ``scales`` of a Linear's weight ``(out, in)``."""
    integers, scales = round_to_nearest(weight, bits, group_size)
    zeros = torch.full_like(scales, 2 ** (bits - 1) - 1, dtype=torch.int32)  # (out, n_groups)
    return {
        "qweight": pack(integers.T.contiguous(), bits),
        "qzeros": pack(zeros, bits).T.contiguous(),
        "scales": scales.T.contiguous(),
    }


class PackedLinear(nn.Module):
    """A Linear without bias that unpacks its weight at every call: slow, and simple to trust.

    Buffers are those of a checkpoint in one of `LAYOUTS`, so it loads strictly. `kernels.build` makes a fast
    layer of it, and `unpack_` one that unpacks once.
    """

    QUANT_TYPE = "unpack"

    def __init__(self, in_features: int, out_features: int, bits: int, group_size: int, layout: str = "gptq"):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size, self.layout = bits, group_size, layout
        groups, words = in_features // group_size, out_features * bits // 32
        shape = (in_features, words) if layout == "awq" else (in_features * bits // 32, out_features)
        self.register_buffer("qweight", torch.empty(shape, dtype=torch.int32))
        self.register_buffer("qzeros", torch.empty(groups, words, dtype=torch.int32))
        self.register_buffer("scales", torch.empty(groups, out_features, dtype=torch.float16))

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight, ``(out, in)``."""
        zeros = unpack(self.qzeros.T.contiguous(), self.bits).T  # (n_groups, out)
        if self.layout == "awq":
            order = torch.arange(self.out_features, device=zeros.device).view(-1, 8)
            order = order[:, list(AWQ_ORDER)].flatten()
            integers, zeros = unpack(self.qweight.T.contiguous(), self.bits).T[:, order], zeros[:, order]
        else:
            integers, zeros = unpack(self.qweight, self.bits), zeros + (self.layout == "gptq")
        groups = integers.reshape(len(zeros), self.group_size, self.out_features)
        weight = (groups - zeros.unsqueeze(1)) * self.scales.unsqueeze(1)  # (n_groups, group_size, out)
        return weight.flatten(0, 1).T.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight(x.dtype))

    @classmethod
    def stacked(cls, layers: list["PackedLinear"]) -> "PackedLinear":
        """One layer that computes several layers of the same input, outputs side by side."""
        first, out_features = layers[0], sum(layer.out_features for layer in layers)
        with torch.device("meta"):
            joint = cls(first.in_features, out_features, first.bits, first.group_size)
        for name in ("qweight", "qzeros", "scales"):
            setattr(joint, name, torch.cat([getattr(layer, name) for layer in layers], dim=1))
        return joint


def pack_(module: nn.Module, bits: int, group_size: int, layout: str) -> None:
    """Replace every Linear under `module` by an empty `PackedLinear`, in place."""
    how = (bits, group_size, layout)
    kernels.replace_(module, nn.Linear, lambda old: PackedLinear(old.in_features, old.out_features, *how))


def unpack_(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace every `PackedLinear` under `module` by a Linear of the same numbers, in place."""

    def unpacked(packed: PackedLinear) -> nn.Linear:
        layer = nn.Linear(packed.in_features, packed.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(packed.weight(dtype).contiguous(), requires_grad=False)
        layer.bits, layer.QUANT_TYPE = packed.bits, packed.QUANT_TYPE
        return layer

    kernels.replace_(module, PackedLinear, unpacked)


def layout_of(quantization: dict) -> str:
    """The one of `LAYOUTS` that a quantization config names, else the name it gives."""
    name = str(quantization.get("packing_format") or quantization.get("quant_method") or "")
    return next((known for known in LAYOUTS[:2] if known in name), name)


def write_checkpoint(source: Path, target: Path, bits: int, group_size: int, device: str) -> None:
    """Write a base checkpoint folder into an empty one in AutoRound's format, without the unused head."""
    if bits not in BITS:
        raise ColqError(f"packing holds {', '.join(map(str, BITS))} bits, not {bits}; use method rtn")

    def packed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
        if not is_quantizable(name, tensor):
            return None
        parts = packed_tensors(tensor.to(device), bits, group_size)
        return {name.removesuffix("weight") + part: value.cpu() for part, value in parts.items()}

    quantization = dict(quant_method="auto-round", packing_format="auto_round:auto_gptq", bits=bits)
    quantization |= dict(group_size=group_size, sym=True, data_type="int", block_name_to_quantize=BLOCKS)
    rewrite(source, target, packed, quantization)


def is_quantizable(name: str, tensor: torch.Tensor) -> bool:
    """Whether this is the weight of a linear layer of the language model."""
    return tensor.dim() == 2 and QUANTIZABLE.match(name) is not None


def rewrite(source: Path, target: Path, convert: Callable, quantization: dict) -> None:
    """Write a base checkpoint folder into an empty one, without the unused head, with some tensors replaced.

    Args:
        convert: takes a tensor's name and the tensor; gives what is stored instead by name, or None.
        quantization: what config.json says of it.
    """
    tensors = {}
    for shard in hub.weight_files(source):
        with safe_open(shard, "pt") as content:
            for name in content.offset_keys():
                tensor = content.get_tensor(name)
                if (parts := convert(name, tensor)) is not None:
                    tensors |= parts
                elif "lm_head." not in name:
                    tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and path.name != "model.safetensors.index.json":
            shutil.copy2(path, target / path.name)
    files.write_json(target / "config.json", export_config(source, quantization))


def export_config(source: Path, quantization: dict) -> dict:
    """The config.json of a quantized checkpoint: the base's own, and how the layers are packed.

    A projection with a bias says so, and the width of the embedding goes by a name that vLLM does not look
    for: where it finds one, vLLM (0.32) builds the projection without bias and drops the stored one silently.
    """
    config = json.loads((source / "config.json").read_text())
    biased = any(tensor.name == BIAS for tensor in hub.read_headers(str(source)))
    if biased:
        widths = [config.pop(key) for key in DIMENSION_KEYS if key in config]
        config |= {UNREAD_BY_VLLM: widths[0]} if widths else {}
    config["projection_bias"] = biased
    declared = config.pop("torch_dtype", None) or config.get("dtype") or "bfloat16"
    return config | {"dtype": declared, "quantization_config": quantization}
