"""Schedules of the 4-bit GEMM kernels for the GPU at hand: the fastest tile sizes by number of tokens.

humming-kernels picks tiles by a heuristic made for other chips of the family, and launches each product when
the kernel before has ended. Here its own picks, some variations of them and the neighbours of the best are
timed at each size, and the benchmark uses the fastest. Every candidate must reproduce the default's product
first.
"""

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor

import torch

from colq_utils.fast.graphs import capture
from colq_utils.model.clock import timed
from studies.h200.extras import sweeps

#: Upper ends of the ranges of tokens a call that get a schedule of their own; beyond the last, the default.
#: From 256 on every size that calls are padded to (`colq_utils.fast.layout.bucket`): one tile more or less is
#: a good part of the time there.
TOKENS = (16, 32, 48, 64, 96, 128, *range(160, 512, 32), *range(512, 769, 64))
LAYERS, REPEATS = 6, 7
#: Tile heights that are tried, and one change at a time to the best schedule of a size.
HEIGHTS = (64, 80, 96, 112, 128)
CHANGES = (
    {"num_stages": 5},
    {"num_stages": 6},
    {"smem_reuse_mode": "last_stage"},
    {"use_stream_k": False, "smem_reuse_mode": "none"},
)


@torch.inference_mode()
def tune(experiment: dict, schedules: dict[str, str]) -> dict:
    """Time candidates for the stacked products of an experiment's model; `schedules` holds none yet.

    Returns:
        ``rows`` of product, tokens, default_s, tuned_s and bf16_s (of one product), and the tuned
        ``schedules`` as humming takes them, by ``out x in`` of a layer.
    """
    rows, tuned = [], dict(schedules)
    for name, shape in sweeps.shapes(sweeps.text_of(experiment)).items():
        times, ranges = _product(shape)
        rows += [{"product": name, **row} for row in times]
        tuned[f"{shape[0]}x{shape[1]}"] = json.dumps(ranges)
        torch.cuda.empty_cache()
    return {"rows": rows, "schedules": tuned}


def _product(shape: tuple[int, int]) -> tuple[list[dict], list]:
    """Rows and table of one product: first all candidates at each size, then neighbours of the best."""
    layers = [sweeps.layer("humming", shape).humming_layer for _ in range(LAYERS)]
    plain = [sweeps.layer("bf16", shape) for _ in range(LAYERS)]
    inputs = {n: torch.randn(n, shape[1], device="cuda", dtype=torch.bfloat16) for n in TOKENS}
    default, own = {n: _time(layers, x, None) for n, x in inputs.items()}, _default(layers[0])
    best = _fastest(
        layers,
        inputs,
        {n: (seconds, None) for n, seconds in default.items()},
        dict.fromkeys(TOKENS, candidates(layers[0])),
    )
    best = _fastest(
        layers,
        inputs,
        best,
        {n: _neighbours(config or _heuristic(own, n)) for n, (_, config) in best.items()},
    )
    rows = [
        {"tokens": n, "default_s": default[n], "tuned_s": best[n][0], "bf16_s": _time(plain, x, None)}
        for n, x in inputs.items()
    ]
    return rows, _ranges(own, default, best)


def _fastest(layers: list, inputs: dict, best: dict, wanted: dict) -> dict:
    """The fastest of the `best` (seconds, schedule) and of the schedules `wanted`, by number of tokens."""
    built = set(_compiled(layers[0], list(dict.fromkeys(itertools.chain(*wanted.values())))))
    fastest = {}
    for n, x in inputs.items():
        expected = layers[0](x)
        tried = [c for c in wanted[n] if c in built and _agrees(layers[0](x, tuning_config=c), expected)]
        fastest[n] = min([best[n], *((_time(layers, x, c), c) for c in tried)], key=lambda pair: pair[0])
    return fastest


def _ranges(own: list, default: dict, best: dict) -> list:
    """(More than, up to, schedule) of a layer: the best if 2 % better than humming's `own`, else those."""
    segments, low = [], 0
    for n, (seconds, config) in best.items():
        if config is not None and seconds < 0.98 * default[n]:
            segments.append([low, n, json.loads(config)])
        else:
            segments += [[max(low, a), min(n, b), c] for a, b, c in own if a < n and b > low]
        low = n
    return segments + [[max(low, a), b, c] for a, b, c in own if b > low]


def _default(layer) -> list:
    """humming's own schedules as (more than, up to, schedule)."""
    from humming.tune import get_heuristics_config

    return get_heuristics_config(layer.humming_config)


def _heuristic(own: list, n: int) -> str:
    """Of humming's own schedules (`_default`) that for `n` tokens."""
    return json.dumps(next(config for low, high, config in own if low < n <= high))


def candidates(layer) -> list[str]:
    """humming's picks for all sizes, and with other tile heights and residencies; early where possible."""
    own = _default(layer)
    configs = [json.loads(_heuristic(own, n)) for n in TOKENS]
    kinds = {(*c["block_shape"][1:], *c["warp_shape"][1:]): c for c in configs if c["block_shape"][0] >= 48}
    for c, height, resident in itertools.product(list(kinds.values())[:2], HEIGHTS, (1, 2)):
        configs.append(
            c
            | {
                "block_shape": [height, *c["block_shape"][1:]],
                "warp_shape": [height, *c["warp_shape"][1:]],
                "num_ctas_per_sm": resident,
            }
        )
    early = {"use_pdl": True} if torch.cuda.get_device_capability() >= (9, 0) else {}
    return list(
        dict.fromkeys(
            json.dumps(c | early | ({"wgmma_split_issue_wait": True} if c["mma_type"] == "wgmma" else {}))
            for c in configs
        )
    )


def _neighbours(config: str) -> list[str]:
    """Schedules one change away."""
    return [json.dumps(json.loads(config) | change) for change in CHANGES]


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

    graph, _ = capture(work)
    graph.replay()
    return sorted(timed(graph.replay, "cuda") for _ in range(REPEATS))[REPEATS // 2] / len(layers)
