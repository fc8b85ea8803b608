"""What this machine can do at most, and what a call cannot do without: the floor under every latency.

A latency says little alone. Beside the time that reading the weights once, and multiplying them, would take
at the best measured rates, it says how much of the machine a kernel leaves unused. Rates are taken with plain
torch calls, in the threads and on the device of the benchmark. The copy streams past the caches: a model
small enough to stay in them can be read faster than this "ceiling".
"""

import itertools
import os
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from colq_utils.base.names import part_of
from colq_utils.model.clock import timed
from colq_utils.model.eightbit import scaled

#: Bytes of the buffer copied and side of the square matrices, large against caches, small against memory.
SIZES = {"cpu": (256 << 20, 1536), "cuda": (2 << 30, 8192)}


def measure(device: str, threads: int | None, repeats: int = 8) -> dict:
    """Best rate of `repeats` tries each.

    Returns:
        ``copy_bytes_per_s`` (bytes read plus bytes written), ``float32_flop_per_s``, on a GPU
        ``bfloat16_flop_per_s`` and, where it has it, ``fp8_flop_per_s`` of a square matrix product,
        with the sizes used.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    buffer_bytes, side = SIZES[device]
    source = torch.ones(buffer_bytes // 4, device=device)
    copy_s = _best_s(partial(torch.empty_like(source).copy_, source), device, repeats)
    rates = {
        "device": device,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "buffer_bytes": buffer_bytes,
        "matrix_side": side,
        "copy_bytes_per_s": 2 * buffer_bytes / copy_s,
    }
    products = {}
    for dtype in ("float32",) if device == "cpu" else ("bfloat16", "float32"):
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        products[dtype] = partial(torch.matmul, a, b)
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        a, scale = scaled(torch.randn(side, side, device=device))
        b = torch.randn(side, side, device=device).to(torch.float8_e4m3fn).t()
        options = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
        products["fp8"] = partial(torch._scaled_mm, a, b, scale, scale.t(), **options)
    for dtype, product in products.items():
        rates[f"{dtype}_flop_per_s"] = 2 * side**3 / _best_s(product, device, repeats)
    return rates


def _best_s(work, device: str, repeats: int) -> float:
    """Shortest of `repeats` timed calls after two untimed ones, in seconds."""
    for _ in range(2):
        work()
    return min(timed(work, device) for _ in range(repeats))


@dataclass(frozen=True)
class Demand:
    """What one call cannot do without: weights read once, and operations of products and attention."""

    weight_bytes: int
    text_flop: float
    vision_flop: float
    attention_flop: float

    @property
    def flop(self) -> float:
        return self.text_flop + self.vision_flop + self.attention_flop


def demand(model: nn.Module, inputs: dict) -> Demand:
    """Count the weights and products that ``model(**inputs)`` needs, from shapes alone, whatever runs it.

    Weights are counted as the model holds them (four bits count as four) and once; the embedding table is
    left out, for a lookup reads a row a token. Products are two operations a weight and token, and ``4 n² d``
    a layer for attention (half of it where it is causal). Padding is no need.
    """
    text, vision, width = model.config.text_config, model.config.vision_config, model.config.embed_dim
    parts = {"language_model", "projection"} | ({"visual"} if "image_grid_thw" in inputs else set())
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    lengths = inputs["attention_mask"].sum(1)  # (n_rows,)
    patches = [int(grid.prod()) for grid in inputs.get("image_grid_thw", [])]
    heads = text.num_attention_heads * text.head_dim
    text_attention = 2 * int((lengths**2).sum()) * heads * text.num_hidden_layers
    vision_attention = sum(4 * n**2 * vision.hidden_size * vision.depth for n in patches)
    return Demand(
        weight_bytes=sum(tensor.nbytes for name, tensor in tensors if part_of(name) in parts),
        text_flop=2 * int(lengths.sum()) * (_text_weights(text) + text.hidden_size * width),
        vision_flop=2 * sum(patches) * _vision_weights(vision),
        attention_flop=text_attention + vision_attention,
    )


def _text_weights(text) -> int:
    """Weights that every token meets in the language model."""
    attention = 2 * text.head_dim * (text.num_attention_heads + text.num_key_value_heads)
    return text.num_hidden_layers * text.hidden_size * (attention + 3 * text.intermediate_size)


def _vision_weights(vision) -> float:
    """Weights that every patch meets in the vision tower; of a merger, a patch's share of its token."""
    blocks = vision.depth * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    merge = vision.spatial_merge_size**2
    wide = vision.hidden_size * merge
    mergers = (1 + len(vision.deepstack_visual_indexes)) * (wide**2 + wide * vision.out_hidden_size) / merge
    stem = vision.hidden_size * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return blocks + mergers + stem


def floors(need: Demand, measured: dict, text: str, vision: str, attention: str) -> dict:
    """Shortest times `need` allows at the `measured` ceilings, in seconds: by bandwidth, arithmetic, both.

    Args:
        text, vision, attention: formats that each part is multiplied in.
    """
    bandwidth = need.weight_bytes / measured["copy_bytes_per_s"]
    compute = need.text_flop / measured[f"{text}_flop_per_s"]
    compute += need.vision_flop / measured[f"{vision}_flop_per_s"]
    compute += need.attention_flop / measured[f"{attention}_flop_per_s"]
    return {"bandwidth_floor_s": bandwidth, "compute_floor_s": compute, "floor_s": max(bandwidth, compute)}
