"""Where a checkpoint's bytes are, and how many are left under each quantization scheme: from shapes alone.

A safetensors file opens with a table of its tensors (name, dtype, shape). Those tables and
``config.json`` say all that can be said about size, in a few kilobytes, for an 8B model on the hub
as for the embedded one; no weight is read. Predictions are sums over the tensors that AutoRound
writes, so they agree with a real checkpoint to the byte (tested). What a running process holds on
top (activations, libraries) is measured in `colq_utils.stages.benchmark.bench`, not guessed here.
"""

from collections.abc import Iterable

from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.base.names import UNUSED
from colq_utils.model.hub import Tensor, read_config

#: Packings and the weight bits each exists for. The first is what AutoRound writes by default.
PACKINGS = {"auto_round": (8, 4, 3, 2), "auto_gptq": (8, 4, 3, 2), "auto_awq": (4,)}
GROUP_SIZES = (32, 64, 128)


def from_config(config: dict) -> list[Tensor]:
    """The tensors that a configuration implies, in bf16, without any weights (built on the meta device).

    An untied configuration gets the ``lm_head`` that its published checkpoint carries.
    """
    import torch

    from colq_utils.model.modeling import ColQwen3Config, ColQwen3ForRetrieval

    built = ColQwen3Config(**{k: v for k, v in config.items() if k != "quantization_config"})
    with torch.device("meta"):
        state = ColQwen3ForRetrieval(built).state_dict()
    tensors = [Tensor(name, "BF16", tuple(value.shape)) for name, value in state.items()]
    if not built.tie_word_embeddings:
        text = built.text_config
        tensors.append(Tensor("vlm.lm_head.weight", "BF16", (text.vocab_size, text.hidden_size)))
    return tensors


def packed(tensor: Tensor, bits: int, group_size: int, packing: str = "auto_round") -> list[Tensor]:
    """The tensors that AutoRound writes in place of a Linear's weight ``(out, in)``.

    Weights and zero points are packed into int32 words, scales are fp16, one of each a group and
    output. ``auto_gptq`` adds ``g_idx``, an int32 a column. AWQ packs along the other dimension.

    Raises:
        ColqError: a packing that does not exist for this many bits.
    """
    if bits not in PACKINGS.get(packing, ()):
        raise ColqError(
            f"no packing {packing!r} for {bits} bits; there are: "
            + ", ".join(f"{name} ({'/'.join(map(str, b))})" for name, b in PACKINGS.items())
        )
    out, columns = tensor.shape
    layer, groups = tensor.name.removesuffix("weight"), -(-columns // group_size)
    weight = (columns, _words(out, bits)) if packing == "auto_awq" else (_words(columns, bits), out)
    made = [
        Tensor(layer + "qweight", "I32", weight),
        Tensor(layer + "qzeros", "I32", (groups, _words(out, bits))),
        Tensor(layer + "scales", "F16", (groups, out)),
    ]
    return made + ([Tensor(layer + "g_idx", "I32", (columns,))] if packing == "auto_gptq" else [])


def _words(numbers: int, bits: int) -> int:
    """32-bit words that hold so many numbers (three bits: ten and two thirds a word, as GPTQ does)."""
    return -(-numbers * bits // 32)


def quantized(
    tensors: Iterable[Tensor], bits: int, group_size: int, packing: str = "auto_round"
) -> list[Tensor]:
    """The checkpoint that quantizing `tensors` gives, without the unused head."""
    made = []
    for tensor in tensors:
        if tensor.part != UNUSED:
            made += packed(tensor, bits, group_size, packing) if tensor.quantizable else [tensor]
    return made


def total(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.bytes for tensor in tensors)


def configuration(experiment: Experiment) -> dict:
    """The configuration of an experiment's base checkpoint."""
    return (
        real_config(experiment.model.size)
        if experiment.model.is_random
        else read_config(experiment.model_path, experiment.model.revision)
    )


def real_config(size: str) -> dict:
    """The configuration of the published ``4b`` or ``8b`` model, by its dimensions."""
    wide = {"4b": 2560, "8b": 4096}[size]
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    text = {
        "vocab_size": 151936,
        "hidden_size": wide,
        "intermediate_size": {"4b": 9728, "8b": 12288}[size],
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": rope,
    }
    vision = {
        "patch_size": 16,
        "spatial_merge_size": 2,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": wide,
    }
    vision |= {
        "4b": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "8b": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    }[size]
    return {
        "text_config": text,
        "vision_config": vision,
        "embed_dim": 320,
        "projection_bias": True,
        "tie_word_embeddings": size == "4b",
    }


def unlike(predicted: Iterable[Tensor], stored: Iterable[Tensor]) -> list[str]:
    """Where stored tensors are not those predicted: a line each, with name, dtype and shape."""
    wanted, found = ({t.name: t for t in tensors} for tensors in (predicted, stored))
    lines = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    lines += [
        f"{name} ({found[name].dtype}, {found[name].bytes:,} bytes) is not expected"
        for name in sorted(found.keys() - wanted.keys())
    ]
    return lines + [
        f"{name} is stored as {found[name].dtype} {found[name].shape} where {wanted[name].dtype} {wanted[name].shape} was predicted"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
