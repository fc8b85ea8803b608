"""An FP8 product for the few tokens of a decoding step, in Triton: reads every weight once.

torch's FP8 product works on tiles of 64 tokens and more; with one token it takes longer than the BF16
product. Here a program holds 64 output channels against at most 16 tokens and a share of the inputs; the
shares are added outside. Hopper or later. Source of the idea: split-K, as in any matrix-vector product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

TOKENS, CHANNELS = 16, 64


@triton.jit
def _product(x, w, out, m, n, k, steps, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, INPUTS: tl.constexpr):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    token = tl.arange(0, TOKENS)
    total = tl.zeros((CHANNELS, TOKENS), tl.float32)
    first = tl.program_id(1) * steps * INPUTS
    for step in range(steps):
        place = first + step * INPUTS + tl.arange(0, INPUTS)
        weights = tl.load(
            w + channel[:, None] * k + place[None, :],
            mask=(channel < n)[:, None] & (place < k)[None, :],
            other=0.0,
        )
        inputs = tl.load(
            x + token[None, :] * k + place[:, None],
            mask=(token < m)[None, :] & (place < k)[:, None],
            other=0.0,
        )
        total += tl.dot(weights, inputs)
    where = out + tl.program_id(1) * m * n + token[None, :] * n + channel[:, None]
    tl.store(where, total, mask=(channel < n)[:, None] & (token < m)[None, :])


def plan(n: int, k: int, processors: int = 132) -> tuple[int, int, int, int]:
    """Inputs a step, steps, parts of the inputs, pipeline stages: about four programs a processor.

    Source: measured on an H200.
    """
    inputs, stages = (128, 5) if max(n, k) < 8192 else (256, 3 if n > k else 4)
    programs, blocks = triton.cdiv(n, CHANNELS), triton.cdiv(k, inputs)
    steps = triton.cdiv(blocks, max(1, min(blocks, round(4 * processors / programs))))
    return inputs, steps, triton.cdiv(blocks, steps), stages


@triton_op("colq::few_tokens", mutates_args={})
def _few_tokens(x: Tensor, w: Tensor) -> Tensor:
    (m, k), n = x.shape, w.shape[0]
    inputs, steps, parts, stages = plan(n, k)
    out = torch.empty((parts, m, n), dtype=torch.float32, device=x.device)
    wrap_triton(_product)[(triton.cdiv(n, CHANNELS), parts)](
        x,
        w,
        out,
        m,
        n,
        k,
        steps,
        TOKENS=TOKENS,
        CHANNELS=CHANNELS,
        INPUTS=inputs,
        num_warps=4,
        num_stages=stages,
    )
    return out


def few_tokens(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w.T`` of e4m3 ``(m, k)`` with m <= 16 and ``(n, k)``, in fp32 ``(m, n)``, without scales."""
    return _few_tokens(x, w).sum(0)
