"""Where a checkpoint's bytes are, and how many are left under each quantization scheme: from shapes alone.

Predictions are sums over the tensors that AutoRound writes, so they agree with a real checkpoint to the byte
(tested). What a running process holds on top is measured in `colq_utils.stages.benchmark.bench`.
"""

import json
from collections.abc import Iterable
from functools import partial

from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.base.names import UNUSED, VISION_LINEAR
from colq_utils.base.variant import GROUPS, USUAL_EXPORT, Variant
from colq_utils.model.hub import Tensor, read_config

#: Packings and the weight bits each exists for. The first is what AutoRound writes by default.
PACKINGS = {"auto_round": (8, 4, 3, 2), "auto_gptq": (8, 4, 3, 2), "auto_awq": (4,)}
GROUP_SIZES = (32, 64, 128)
#: What bitsandbytes writes in place of a weight: two numbers a byte, scales, the 16 numbers, and a JSON text.
NF4_PARTS = ("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4")
TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
#: The vision towers of the published models.
VISION = {
    "4b": dict(depth=24, hidden_size=1024, intermediate_size=4096, deepstack_visual_indexes=[5, 11, 17]),
    "8b": dict(depth=27, hidden_size=1152, intermediate_size=4304, deepstack_visual_indexes=[8, 16, 24]),
}


def real_config(size: str) -> dict:
    """The configuration of the published ``4b`` or ``8b`` model, by its dimensions."""
    width, mlp_width = {"4b": (2560, 9728), "8b": (4096, 12288)}[size]
    rope = dict(rope_type="default", rope_theta=5e6, mrope_section=[24, 20, 20], mrope_interleaved=True)
    text = dict(vocab_size=151936, hidden_size=width, intermediate_size=mlp_width, num_hidden_layers=36)
    text |= dict(num_attention_heads=32, num_key_value_heads=8, head_dim=128, rope_parameters=rope)
    vision = dict(patch_size=16, spatial_merge_size=2, num_heads=16, num_position_embeddings=2304)
    vision |= dict(out_hidden_size=width, **VISION[size])
    projection = dict(embed_dim=320, projection_bias=True)
    return dict(text_config=text, vision_config=vision, **projection, tie_word_embeddings=size == "4b")


def configuration(experiment: Experiment) -> dict:
    """The configuration of an experiment's base checkpoint."""
    if experiment.model.is_random:
        return real_config(experiment.model.size)
    return read_config(experiment.model_path, experiment.model.revision)


def from_config(config: dict) -> list[Tensor]:
    """The tensors that a configuration implies, in bf16, without any weights (built on the meta device).

    An untied configuration gets the ``lm_head`` that its published checkpoint carries.
    """
    import torch

    from colq_utils.model.modeling import ColQwen3ForRetrieval, configuration

    built = configuration({k: v for k, v in config.items() if k != "quantization_config"})
    with torch.device("meta"):
        state = ColQwen3ForRetrieval(built).state_dict()
    tensors = [Tensor(name, "BF16", tuple(value.shape)) for name, value in state.items()]
    if not built.tie_word_embeddings:
        text = built.text_config
        tensors.append(Tensor("vlm.lm_head.weight", "BF16", (text.vocab_size, text.hidden_size)))
    return tensors


def packed(tensor: Tensor, bits: int, group_size: int, packing: str = "auto_round") -> list[Tensor]:
    """The tensors that AutoRound writes in place of a Linear's weight ``(out, in)``.

    Weights and zero points are packed into int32 words, scales are fp16, one of each per group and output.
    ``auto_gptq`` adds ``g_idx``, an int32 per column; AWQ packs along the other dimension.
    """
    if bits not in PACKINGS.get(packing, ()):
        known = ", ".join(f"{name} ({'/'.join(map(str, widths))})" for name, widths in PACKINGS.items())
        raise ColqError(f"no packing {packing!r} for {bits} bits; there are: {known}")
    out, columns = tensor.shape
    layer, groups = tensor.name.removesuffix("weight"), -(-columns // group_size)
    # three bits run on from word to word: ten and two thirds numbers in each, as GPTQ has it
    out_words, column_words = -(-out * bits // 32), -(-columns * bits // 32)
    weight = (columns, out_words) if packing == "auto_awq" else (column_words, out)
    parts = {"qweight": weight, "qzeros": (groups, out_words), "scales": (groups, out)}
    parts |= {"g_idx": (columns,)} if packing == "auto_gptq" else {}
    return [Tensor(layer + name, "F16" if name == "scales" else "I32", parts[name]) for name in parts]


def nf4(tensor: Tensor) -> list[Tensor]:
    """The tensors that bitsandbytes writes in place of a Linear's weight ``(out, in)``; `NF4_PARTS`."""
    block = GROUPS["nf4"]
    text = json.dumps(
        {"quant_type": "nf4", "blocksize": block, "dtype": TORCH[tensor.dtype], "shape": tensor.shape}
    )
    halves, blocks = -(-tensor.parameters // 2), -(-tensor.parameters // block)
    kinds = (("U8", (halves, 1)), ("F32", (blocks,)), ("F32", (16,)), ("U8", (len(text),)))
    layer = tensor.name.removesuffix("weight")
    return [Tensor(layer + part, *kind) for part, kind in zip(NF4_PARTS, kinds, strict=True)]


def quantized(tensors: list[Tensor], bits: int, group_size: int, packing: str = "auto_round") -> list[Tensor]:
    """The checkpoint that quantizing `tensors` gives, without the unused head."""
    kept = [tensor for tensor in tensors if tensor.part != UNUSED]
    replaced = (
        nf4
        if packing == USUAL_EXPORT["nf4"]
        else partial(packed, bits=bits, group_size=group_size, packing=packing)
    )
    parts = [replaced(t) if t.quantizable else [t] for t in kept]
    return [tensor for part in parts for tensor in part]


def is_linear(tensor: Tensor, vision: bool) -> bool:
    """Whether a tensor is the weight of a Linear of the language model's blocks, or of the vision tower."""
    in_vision = len(tensor.shape) == 2 and VISION_LINEAR.match(tensor.name) is not None
    return tensor.quantizable or (vision and in_vision)


def in_fp8(tensor: Tensor, vision: bool) -> bool:
    """Whether FP8 stores a tensor of the base in eight bits: a Linear's weight whose widths 16 divides."""
    return is_linear(tensor, vision) and not any(width % 16 for width in tensor.shape)


def eight_bits(tensors: list[Tensor], vision: bool) -> list[Tensor]:
    """The FP8 checkpoint of `tensors`, without the unused head: e4m3 and an fp32 scale per output channel."""
    stored = []
    for tensor in tensors:
        if in_fp8(tensor, vision):
            scale = Tensor(f"{tensor.name}_scale", "F32", (tensor.shape[0], 1))
            stored += [Tensor(tensor.name, "F8_E4M3", tensor.shape), scale]
        elif tensor.part != UNUSED:
            stored.append(tensor)
    return stored


def exported(tensors: list[Tensor], spec: Variant, packing: str) -> list[Tensor]:
    """The checkpoint of a stored variant in one of its packings, from the base's `tensors`."""
    if packing == "compressed_tensors":
        return eight_bits(tensors, spec.vision is not None)
    return quantized(tensors, spec.bits, spec.group_size, packing)


def total(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.bytes for tensor in tensors)


def unlike(predicted: Iterable[Tensor], stored: Iterable[Tensor]) -> list[str]:
    """Where stored tensors are not those predicted: a line each, with name, dtype and shape."""
    wanted, present = ({t.name: t for t in tensors} for tensors in (predicted, stored))
    lines = []
    for name in sorted(wanted.keys() | present.keys()):
        want, have = wanted.get(name), present.get(name)
        if have is None:
            lines.append(f"{name} is missing")
        elif want is None:
            lines.append(f"{name} ({have.dtype}, {have.bytes:,} bytes) is not expected")
        elif have != want:
            predicted_as = f"{want.dtype} {want.shape} was predicted"
            lines.append(f"{name} is stored as {have.dtype} {have.shape} where {predicted_as}")
    return lines
