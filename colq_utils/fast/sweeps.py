"""Two measurements of a GPU without a model: GEMM time against tokens a call, and MaxSim against a large index.

The first answers "why is int4 slower (or faster) for me": the products of some decoder layers, in the model's shapes, in
bf16, FP8 and 4 bits, as one CUDA graph, so that no launch overhead is in it. Layers differ, so that no weight is
still in the cache when its turn comes. The second scores queries against pages of full length, as a search server would.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from colq_utils.base.errors import ColqError
from colq_utils.model.clock import timed
from colq_utils.model.eightbit import Fp8Linear, scaled
from colq_utils.model.kernels import build
from colq_utils.model.packing import PackedLinear, packed_tensors

TOKENS = (8, 16, 24, 64, 128, 192, 256, 512, 768, 1024, 2048, 4096, 8192)
LAYERS = 6
REPEATS = 20


def shapes(text: dict) -> dict[str, tuple[int, int]]:
    """Stacked products of a decoder layer as ``(out, in)``, from a text configuration."""
    heads = (text["num_attention_heads"] + 2 * text["num_key_value_heads"]) * text["head_dim"]
    return {
        "qkv": (heads, text["hidden_size"]),
        "o": (text["hidden_size"], text["num_attention_heads"] * text["head_dim"]),
        "gate_up": (2 * text["intermediate_size"], text["hidden_size"]),
        "down": (text["hidden_size"], text["intermediate_size"]),
    }


@torch.inference_mode()
def gemms(text: dict, backends: Sequence[str], schedules: str | None = None) -> list[dict]:
    """Seconds a layer by kernel and number of tokens.

    Args:
        text: a text configuration as a dict.
        backends: kernels for packed 4-bit layers, by name; one that is not installed is a row that says so.
        schedules: the file of tuned schedules for layers on humming.

    Returns:
        Rows of kernel, tokens, layer_s, weight_bytes, flop (of a layer); or kernel and error.
    """
    rows, dims, tuned = [], shapes(text), read_schedules(schedules)
    flop = 2 * sum(out * columns for out, columns in dims.values())
    for kernel in ("bf16", "fp8", "fp8 inputs ready", *backends):
        try:
            layers = [layer(kernel, shape, tuned) for _ in range(LAYERS) for shape in dims.values()]
            size = (
                sum(t.nbytes for layer in layers for t in (*layer.parameters(), *layer.buffers())) // LAYERS
            )
            rows += [
                {
                    "kernel": kernel,
                    "tokens": n,
                    "layer_s": _graph_s(layers, kernel, n) / LAYERS,
                    "weight_bytes": size,
                    "flop": flop * n,
                }
                for n in TOKENS
            ]
        except Exception as error:  # a kernel that is missing or fails is a row of its own
            rows.append({"kernel": kernel, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
        layers = None
        torch.cuda.empty_cache()
    return rows


def read_schedules(file: str | Path | None) -> dict[str, str]:
    """The tuned schedules of a file that `colq_utils.fast.schedules` wrote, as humming takes them: ``out x in`` of a layer -> schedule; none without a file.

    Raises:
        ColqError: the file is not there.
    """
    if file is None:
        return {}
    if not Path(file).exists():
        raise ColqError(
            f"{file} with the tuned schedules does not exist; run `make benchmark` again, which makes it"
        )
    return json.loads(Path(file).read_text())["tables"]


def layer(kernel: str, shape: tuple[int, int], schedules: dict[str, str] | None = None) -> torch.nn.Module:
    """One product with random weights, on a kernel."""
    weight = torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02
    if kernel.startswith("fp8"):
        return Fp8Linear(weight)
    if kernel == "bf16":
        layer = torch.nn.Linear(shape[1], shape[0], bias=False, device="meta")
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        return layer
    packed = PackedLinear(shape[1], shape[0], 4, 128)
    for name, value in packed_tensors(weight, 4, 128).items():
        setattr(packed, name, value)
    return build(packed, kernel, (schedules or {}).get(f"{shape[0]}x{shape[1]}"))


def _graph_s(layers: list, kernel: str, n: int) -> float:
    """Median seconds of all layers run once, as a CUDA graph; FP8 quantizes its inputs by the fast path's kernel, or not at all."""
    from colq_utils.fast.steps_triton import to_fp8

    inputs = {
        layer.in_features if hasattr(layer, "in_features") else layer.infeatures: None for layer in layers
    }
    inputs = {width: torch.randn(n, width, device="cuda", dtype=torch.bfloat16) for width in inputs}
    ready = {width: scaled(x) for width, x in inputs.items()} if kernel == "fp8 inputs ready" else inputs

    def work():
        for layer in layers:
            x = ready[layer.in_features if hasattr(layer, "in_features") else layer.infeatures]
            layer(to_fp8(x, kernel == "fp8"))

    graph = captured(work)
    return sorted(timed(graph.replay, "cuda") for _ in range(REPEATS))[REPEATS // 2]


def captured(work) -> torch.cuda.CUDAGraph:
    """`work` as a CUDA graph, after two runs of warm-up."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    return graph


@torch.inference_mode()
def scoring(
    n_queries: int = 100,
    n_pages: int = 10_000,
    query_tokens: int = 24,
    page_tokens: int = 1280,
    dim: int = 320,
    repeats: int = 5,
) -> list[dict]:
    """MaxSim of all queries against all pages, random unit vectors in bf16 on the GPU, by how it is computed.

    Returns:
        Rows of method, seconds (median), flop, read_bytes (of the index), error_max against fp32 on some pages.
    """

    def unit(*shape):
        return torch.nn.functional.normalize(
            torch.randn(*shape, dim, device="cuda", dtype=torch.bfloat16), dim=-1
        )

    queries = unit(n_queries * query_tokens)  # (n_all_query_tokens, dim)
    pages = torch.cat([unit(1000, page_tokens) for _ in range(n_pages // 1000)])
    exact = _score(queries.float(), pages[:64].float(), n_queries, 64)
    rows = []
    for name, chunk, cast in (
        ("bf16 products, 16 pages a call", 16, False),
        ("bf16 products, 64 pages a call", 64, False),
        ("bf16 products, 256 pages a call", 256, False),
        ("fp32 sums of bf16 products, 64 pages a call", 64, True),
    ):
        run = partial(_score, queries, pages, n_queries, chunk, cast)
        run()
        seconds = sorted(timed(run, "cuda") for _ in range(repeats))[repeats // 2]
        error = (_score(queries, pages[:64], n_queries, chunk, cast) - exact).abs().max().item()
        rows.append(
            {
                "method": name,
                "queries": n_queries,
                "pages": n_pages,
                "query_tokens": query_tokens,
                "page_tokens": page_tokens,
                "dim": dim,
                "seconds": seconds,
                "flop": 2 * queries.numel() * n_pages * page_tokens,
                "read_bytes": pages.nbytes,
                "error_max": error,
            }
        )
    return rows


def _score(queries, pages, n_queries: int, chunk: int, wide: bool = False) -> torch.Tensor:
    """``(n_queries, n_pages)`` in fp32: the largest similarity over a page's tokens, summed over a query's."""
    found = []
    for some in pages.split(chunk):
        tokens = some.flatten(0, 1).T
        product = torch.mm(queries, tokens, out_dtype=torch.float32) if wide else queries @ tokens
        best = product.view(len(queries), len(some), -1).amax(-1)
        found.append(best.view(n_queries, -1, len(some)).float().sum(1))
    return torch.cat(found, dim=1)
