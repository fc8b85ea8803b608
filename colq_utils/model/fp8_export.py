"""FP8 checkpoints in the ``float-quantized`` format of compressed-tensors, which transformers and vLLM open.

Stored are the numbers to which `eightbit` rounds at loading: e4m3 weights with an fp32 scale per output
channel. Activations are scaled per token as they pass, so nothing is calibrated. What is not stored in FP8 is
named in ``ignore``, by patterns: vLLM has other names for its modules.
"""

from pathlib import Path

import torch

from colq_utils.base.errors import ColqError
from colq_utils.model import eightbit, footprint, hub, packing

FORMAT = "float-quantized"
#: How names of scales end.
SCALE = ".weight_scale"
#: Linear layers that always stay in 16 bits, and the vision tower, which does unless asked for.
KEPT, VISION = ("re:.*embedding_proj_layer.*", "re:.*lm_head.*"), "re:.*visual.*"


def quantization(ignore: list[str]) -> dict:
    """The ``quantization_config``: what is rounded how, and which Linear layers are not."""
    number = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": number | {"strategy": "channel", "dynamic": False},
        "input_activations": number | {"strategy": "token", "dynamic": True},
    }
    stored = {"quant_method": "compressed-tensors", "format": FORMAT, "quantization_status": "compressed"}
    return stored | {"ignore": ignore, "config_groups": {"group_0": group}}


def write_checkpoint(source: Path, target: Path, vision: bool) -> None:
    """Write a base checkpoint folder into an empty one, its language model (and vision tower) in FP8."""
    headers = hub.read_headers(str(source))
    chosen = {tensor.name for tensor in headers if footprint.in_fp8(tensor, vision)}
    linear = {tensor.name for tensor in headers if footprint.is_linear(tensor, vision)}

    def rounded(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
        if name not in chosen:
            return None
        values, scale = eightbit.scaled(tensor)  # (out, in), (out, 1)
        return {name: values, name.removesuffix(".weight") + SCALE: scale}

    odd = sorted(name.removesuffix(".weight") for name in linear - chosen)
    ignore = [*KEPT, *([] if vision else [VISION]), *odd]
    packing.rewrite(source, target, rounded, quantization(ignore))


def place_(model: torch.nn.Module, path: str) -> None:
    """Put empty `Fp8Linear` layers where a folder stores FP8, in place; ColqError for another format."""
    found = hub.read_config(path).get("quantization_config", {}).get("format")
    if found != FORMAT:
        raise ColqError(f"{path} is stored as {found!r}, not as {FORMAT}; quantize again")
    for tensor in hub.read_headers(path):
        if tensor.dtype == "F8_E4M3":
            name = tensor.name.removesuffix(".weight")
            layer = model.get_submodule(name)
            bias = None if layer.bias is None else layer.bias.data
            model.set_submodule(name, eightbit.Fp8Linear(layer.weight.data, bias))


def as_buffers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stored tensors by the names and shapes that `eightbit.Fp8Linear` has for them."""
    scales = {name: name.removesuffix("weight_scale") + "scale" for name in state if name.endswith(SCALE)}
    return {scales.get(name, name): t.T.contiguous() if name in scales else t for name, t in state.items()}
