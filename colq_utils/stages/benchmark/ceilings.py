"""What this machine can do at most, and what a call cannot do without: the floor under every latency.

A latency says little alone. Beside the time that reading the weights once, and multiplying them,
would take at the best measured rates, it says how much of the machine a kernel leaves unused. Rates
are taken with plain torch calls, in the threads and on the device of the benchmark. The copy streams
past the caches: a model small enough to stay in them can be read faster than this "ceiling".
"""

import itertools
import os
from dataclasses import dataclass

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
    found = {
        "device": device,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "buffer_bytes": buffer_bytes,
        "matrix_side": side,
        "copy_bytes_per_s": _copy_rate(buffer_bytes, device, repeats),
    }
    for dtype in (torch.float32,) if device == "cpu" else (torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        name = str(dtype).removeprefix("torch.")
        found[f"{name}_flop_per_s"] = 2 * side**3 / _best_s(lambda a=a, b=b: a @ b, device, repeats)
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        (a, scale), b = (
            scaled(torch.randn(side, side, device=device)),
            torch.randn(side, side, device=device).to(torch.float8_e4m3fn).t(),
        )
        found["fp8_flop_per_s"] = (
            2
            * side**3
            / _best_s(
                lambda: torch._scaled_mm(
                    a, b, scale, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
                ),
                device,
                repeats,
            )
        )
    return found


def _copy_rate(buffer_bytes: int, device: str, repeats: int) -> float:
    """Bytes read plus bytes written a second by the best copy of a buffer."""
    source = torch.ones(buffer_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * buffer_bytes / _best_s(lambda: target.copy_(source), device, repeats)


def _best_s(work, device: str, repeats: int) -> float:
    """Shortest of `repeats` timed calls after two untimed ones, in seconds."""
    for _ in range(2):
        work()
    return min(timed(work, device) for _ in range(repeats))


@dataclass(frozen=True)
class Demand:
    """What one call cannot do without: `weight_bytes` read once, and operations of text products, vision products and attention."""

    weight_bytes: int
    text_flop: float
    vision_flop: float
    attention_flop: float

    @property
    def flop(self) -> float:
        return self.text_flop + self.vision_flop + self.attention_flop


def demand(model: nn.Module, inputs: dict) -> Demand:
    """Count the weights and products that ``model(**inputs)`` needs, from shapes alone, whatever runs it.

    Weights are counted as the model holds them (four bits count as four) and once; the embedding table is left out, for a
    lookup reads a row a token. Products are two operations a weight and token, and ``4 n² d`` a layer for attention (half
    of it where it is causal). Padding is no need.
    """
    config, parts = (
        model.config,
        ("language_model", "projection") + (("visual",) if "image_grid_thw" in inputs else ()),
    )
    used = sum(
        t.nbytes
        for name, t in itertools.chain(model.named_parameters(), model.named_buffers())
        if part_of(name) in parts
    )
    text, vision = config.text_config, config.vision_config
    lengths = inputs["attention_mask"].sum(1)  # (n_rows,)
    attention = (
        2 * int((lengths**2).sum()) * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    )
    patches = [int(grid.prod()) for grid in inputs.get("image_grid_thw", [])]
    attention += sum(4 * n**2 * vision.hidden_size * vision.depth for n in patches)
    return Demand(
        used,
        2 * int(lengths.sum()) * _text_weights(config),
        2 * sum(patches) * _vision_weights(vision),
        attention,
    )


def _text_weights(config) -> int:
    """Weights that every token meets in the language model and the projection."""
    text = config.text_config
    attention = (
        text.hidden_size * text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    )
    return (
        text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)
        + text.hidden_size * config.embed_dim
    )


def _vision_weights(vision) -> float:
    """Weights that every patch meets in the vision tower; a merger's are met by one token of `spatial_merge_size`² patches."""
    blocks = vision.depth * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    merge = vision.spatial_merge_size**2
    wide = vision.hidden_size * merge
    mergers = (1 + len(vision.deepstack_visual_indexes)) * (wide**2 + wide * vision.out_hidden_size) / merge
    stem = vision.hidden_size * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return blocks + mergers + stem


def floors(need: Demand, measured: dict, text: str, vision: str, attention: str) -> dict:
    """Shortest times `need` allows at the `measured` ceilings, in seconds: by bandwidth, by arithmetic, the longer.

    Args:
        text, vision, attention: formats that each part is multiplied in.
    """
    bandwidth = need.weight_bytes / measured["copy_bytes_per_s"]
    compute = sum(
        flop / measured[f"{dtype}_flop_per_s"]
        for flop, dtype in (
            (need.text_flop, text),
            (need.vision_flop, vision),
            (need.attention_flop, attention),
        )
    )
    return {"bandwidth_floor_s": bandwidth, "compute_floor_s": compute, "floor_s": max(bandwidth, compute)}
