"""Schedules of the 4-bit GEMM kernels for the GPU at hand: which tile sizes are fastest at which number of tokens.

humming-kernels picks tiles by a heuristic made for other chips of the family. Here its own picks for all sizes, and
some variations of them, are timed at each size, and the fastest are written down for the benchmark's processes to use.
Every candidate must reproduce the default's product first.
"""
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from . import sweeps
from .ceilings import timed

#: Where the table is; set for the processes that shall use it.
VARIABLE = "COLQ_HUMMING_TABLE"
#: Upper ends of the ranges of tokens a call that get a schedule of their own; beyond the last, the default.
TOKENS = (32, 64, 128, 192, 256, 384, 512, 768, 1024)
LAYERS, REPEATS = 6, 7


def table(out_features: int, in_features: int) -> str | None:
    """The tuned schedules of a layer as humming takes them, or None where there are none."""
    path = os.environ.get(VARIABLE)
    if not path or not Path(path).exists():
        return None
    return json.loads(Path(path).read_text())["tables"].get(f"{out_features}x{in_features}")


@torch.inference_mode()
def tune(text: dict, file: str) -> list[dict]:
    """Time candidates for the stacked products of `text` (a text configuration) and write the table to `file`.

    Returns:
        Rows of product, tokens, default_s, tuned_s and bf16_s, for one product.
    """
    os.environ.pop(VARIABLE, None)
    rows, tables = [], {}
    for name, shape in sweeps.shapes(text).items():
        layers = [sweeps.layer("humming", shape).humming_layer for _ in range(LAYERS)]
        plain = [sweeps.layer("bf16", shape) for _ in range(LAYERS)]
        candidates = _compiled(layers[0], _candidates(layers[0]))
        default = _default(layers[0])
        ranges, low = [], 0
        for n in TOKENS:
            x = torch.randn(n, shape[1], device="cuda", dtype=torch.bfloat16)
            default_s, expected = _time(layers, x, None), layers[0](x)
            times = [(_time(layers, x, c), c) for c in candidates if _agrees(layers[0](x, tuning_config=c), expected)]
            best_s, best = min(times, default=(default_s, None))
            rows.append({"product": name, "tokens": n, "default_s": default_s, "tuned_s": min(best_s, default_s), "bf16_s": _time(plain, x, None)})
            if best is not None and best_s < 0.98 * default_s:
                ranges.append([low, n, json.loads(best)])
            else:
                ranges += [[max(low, a), min(n, b), c] for a, b, c in default if a < n and b > low]
            low = n
        ranges += [[max(low, a), b, c] for a, b, c in default if b > low]
        tables[f"{shape[0]}x{shape[1]}"] = json.dumps(ranges)
        del layers, plain
        torch.cuda.empty_cache()
    Path(file).write_text(json.dumps({"device": torch.cuda.get_device_name(), "tables": tables}))
    return rows


def _default(layer) -> list:
    """humming's own schedules as (more than, up to, schedule)."""
    from humming.tune import get_heuristics_config
    return get_heuristics_config(layer.humming_config)


def _candidates(layer) -> list[str]:
    """humming's picks for all sizes, and those with other depths, residencies and tile heights."""
    found = [dict(config) for low, _, config in _default(layer) if low <= 4096]
    kinds = {(c["block_shape"][1:], c["warp_shape"][1:]): c for c in found if c["block_shape"][0] >= 48}
    for (block, warp), c in list(kinds.items())[:2]:
        for height, resident in itertools.product((64, 96, 104, 128), (1, 2)):
            found.append(c | {"block_shape": (height, *block), "warp_shape": (height, *warp), "num_ctas_per_sm": resident})
    return list(dict.fromkeys(json.dumps(c) for c in found))


def _compiled(layer, candidates: list[str]) -> list[str]:
    """Those candidates that the compiler accepts, compiled side by side."""
    from humming.kernel.humming import HummingKernel

    def build(candidate):
        try:
            HummingKernel.prepare_kernels(layer.humming_config.to_str(), None, candidate, 0)
            return candidate
        except Exception:  # an impossible tile, found out by the compiler
            return None

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return [c for c in pool.map(build, candidates) if c is not None]


def _agrees(product: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((product.float() - expected.float()).norm() < 1e-2 * expected.float().norm())


def _time(layers: list, x: torch.Tensor, config: str | None) -> float:
    """Median seconds of one product, from a CUDA graph of all `layers`."""
    def work():
        for layer in layers:
            layer(x) if config is None else layer(x, tuning_config=config)

    graph = sweeps.captured(work)
    return sorted(timed(graph.replay, "cuda") for _ in range(REPEATS))[REPEATS // 2] / len(layers)
