"""Two measurements of a GPU without a model: GEMM time by tokens a call, and MaxSim against a large index.

The first answers "why is int4 slower (or faster) for me": the products of some decoder layers, in the model's
shapes, in bf16, FP8 and 4 bits, as one CUDA graph, so that no launch overhead is in it. Layers differ, so
that no weight is still in the cache when its turn comes. The second scores queries against pages of full
length, as a search server would.
"""

from functools import partial

import torch

from colq_utils.base.backends import ON_GPU
from colq_utils.base.config import Experiment
from colq_utils.fast.graphs import capture
from colq_utils.model import footprint
from colq_utils.model.clock import timed
from colq_utils.model.eightbit import Fp8Linear, scaled
from colq_utils.model.kernels import build
from colq_utils.model.packing import PackedLinear, packed_tensors

TOKENS = (8, 16, 24, 64, 128, 192, 256, 512, 768, 1024, 2048, 4096, 8192)
LAYERS = 6
REPEATS = 20


def text_of(experiment: dict) -> dict:
    """The text configuration of an experiment's model."""
    return footprint.configuration(Experiment.model_validate(experiment))["text_config"]


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
def gemms(experiment: dict, schedules: dict[str, str]) -> list[dict]:
    """Seconds a layer by kernel and number of tokens; a kernel that is not installed is a row that says so.

    Args:
        experiment: of whose text configuration the shapes are.
        schedules: tuned ones by ``out x in`` of a layer, for layers on humming.

    Returns:
        Rows of kernel, tokens, layer_s, weight_bytes, flop (of a layer); or kernel and error.
    """
    rows, dims = [], shapes(text_of(experiment))
    flop = 2 * sum(out * columns for out, columns in dims.values())
    for kernel in ("bf16", "fp8", "fp8 inputs ready", *ON_GPU):
        try:
            layers = [layer(kernel, shape, schedules) for _ in range(LAYERS) for shape in dims.values()]
            stored = sum(t.nbytes for layer in layers for t in (*layer.parameters(), *layer.buffers()))
            for n in TOKENS:
                layer_s = _graph_s(layers, kernel, n) / LAYERS
                sizes = {"weight_bytes": stored // LAYERS, "flop": flop * n}
                rows.append({"kernel": kernel, "tokens": n, "layer_s": layer_s, **sizes})
        except Exception as error:  # a kernel that is missing or fails is a row of its own
            rows.append({"kernel": kernel, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
        layers = None
        torch.cuda.empty_cache()
    return rows


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
    """Median seconds of all layers run once, as a CUDA graph.

    FP8 quantizes its inputs by the fast path's kernel, or gets them ready.
    """
    from colq_utils.fast.steps_triton import to_fp8

    widths = [layer.in_features if hasattr(layer, "in_features") else layer.infeatures for layer in layers]
    inputs = {width: torch.randn(n, width, device="cuda", dtype=torch.bfloat16) for width in widths}
    if kernel == "fp8 inputs ready":
        inputs = {width: scaled(x) for width, x in inputs.items()}

    def work():
        for layer, width in zip(layers, widths, strict=True):
            layer(to_fp8(inputs[width], kernel == "fp8"))

    graph, _ = capture(work)
    graph.replay()
    return sorted(timed(graph.replay, "cuda") for _ in range(REPEATS))[REPEATS // 2]


@torch.inference_mode()
def scoring(
    experiment: dict,
    schedules: dict[str, str],
    n_queries: int = 100,
    n_pages: int = 10_000,
    query_tokens: int = 24,
    page_tokens: int = 1280,
    dim: int = 320,
    repeats: int = 5,
) -> list[dict]:
    """MaxSim of all queries against all pages, random unit vectors in bf16 on the GPU, by how it is computed.

    It is the same for all experiments and schedules.

    Returns:
        Rows of method, sizes, seconds (median), flop, read_bytes (of the index), error_max against fp32.
    """

    def unit(*shape):
        return torch.nn.functional.normalize(
            torch.randn(*shape, dim, device="cuda", dtype=torch.bfloat16), dim=-1
        )

    sizes = {"queries": n_queries, "pages": n_pages, "query_tokens": query_tokens, "page_tokens": page_tokens}
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
        measured = {
            "seconds": sorted(timed(run, "cuda") for _ in range(repeats))[repeats // 2],
            "flop": 2 * queries.numel() * n_pages * page_tokens,
            "read_bytes": pages.nbytes,
            "error_max": (_score(queries, pages[:64], n_queries, chunk, cast) - exact).abs().max().item(),
        }
        rows.append({"method": name, **sizes, "dim": dim, **measured})
    return rows


def _score(queries, pages, n_queries: int, chunk: int, wide: bool = False) -> torch.Tensor:
    """``(n_queries, n_pages)`` in fp32: the maximum over a page's tokens, summed over a query's."""
    scores = []
    for part in pages.split(chunk):
        tokens = part.flatten(0, 1).T
        product = torch.mm(queries, tokens, out_dtype=torch.float32) if wide else queries @ tokens
        best = product.view(len(queries), len(part), -1).amax(-1)
        scores.append(best.view(n_queries, -1, len(part)).float().sum(1))
    return torch.cat(scores, dim=1)
