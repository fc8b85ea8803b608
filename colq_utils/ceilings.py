"""What this machine can do at most, and what a call cannot do without: the floor under every latency.

A latency says little alone. Beside the time that reading the weights once, and multiplying them,
would take at the best measured rates, it says how much of the machine a kernel leaves unused. Rates
are taken with plain torch calls, in the threads and on the device of the benchmark. The copy streams
past the caches: a model small enough to stay in them can be read faster than this "ceiling".
"""
import itertools
import os
import time
from dataclasses import dataclass

import torch
from torch import nn

from .kernels import is_quantized

#: Bytes of the buffer copied and side of the square matrices, large against caches, small against memory.
SIZES = {"cpu": (256 << 20, 1536), "cuda": (2 << 30, 8192)}


def measure(device: str, threads: int | None, repeats: int = 8) -> dict:
    """Best rate of `repeats` tries each.

    Returns:
        ``copy_bytes_per_s`` (bytes read plus bytes written), ``bfloat16_flop_per_s`` and
        ``float32_flop_per_s`` of a square matrix product, with the sizes used.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    buffer_bytes, side = SIZES[device]
    found = {"device": device, "threads": torch.get_num_threads(),
             "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"), "buffer_bytes": buffer_bytes, "matrix_side": side,
             "copy_bytes_per_s": _copy_rate(buffer_bytes, device, repeats)}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        name = str(dtype).removeprefix("torch.")
        found[f"{name}_flop_per_s"] = 2 * side**3 / _best_s(lambda a=a, b=b: a @ b, device, repeats)
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


def timed(work, device: str) -> float:
    """Seconds one call takes: between CUDA events on a GPU, by the process clock on a CPU."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Demand:
    """What one call cannot do without: `weight_bytes` read once, `flop` multiplied and added."""

    weight_bytes: int
    flop: int


@torch.inference_mode()
def demand(model: nn.Module, inputs: dict) -> Demand:
    """Count the weights and products that ``model(**inputs)`` uses, by watching its layers once.

    Linear, quantized and convolution layers are counted from the shapes that pass through them (a
    weight as stored: four bits count as four), attention from the configuration: ``4 n² d`` a layer.
    The embedding table is left out: a lookup reads a row a token.
    """
    flop, used = 0, {}

    def note(module, arguments, output):
        nonlocal flop
        fan_in = module.weight[0].numel() if isinstance(module, nn.Conv3d) else arguments[0].shape[-1]
        flop += 2 * output.numel() * fan_in
        used[module] = sum(t.nbytes for t in itertools.chain(module.parameters(), module.buffers()))

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv3d)) or is_quantized(m)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Demand(sum(used.values()), flop + _attention_flop(model.config, inputs))


def _attention_flop(config, inputs: dict) -> int:
    """Scores and weighted sums of every layer: over the tokens of a row, and over the patches of a page."""
    text, vision = config.text_config, config.vision_config
    n_rows, n_tokens = inputs["input_ids"].shape
    flop = 4 * n_rows * n_tokens**2 * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    for grid in inputs.get("image_grid_thw", []):  # (time, height, width) in patches
        flop += 4 * int(grid.prod()) ** 2 * vision.hidden_size * vision.depth
    return flop


def floors(need: Demand, measured: dict, dtype: str) -> dict:
    """Shortest times `need` allows at the `measured` ceilings, in seconds: by bandwidth, by arithmetic, the longer."""
    bandwidth = need.weight_bytes / measured["copy_bytes_per_s"]
    compute = need.flop / measured[f"{dtype}_flop_per_s"]
    return {"bandwidth_floor_s": bandwidth, "compute_floor_s": compute, "floor_s": max(bandwidth, compute)}
