"""The steps of `colq_utils.fast.steps`, one GPU kernel each.

They move as many bytes as the step must and no more: a program holds a row (or a piece of one) in registers, indexes
without divisions and quantizes for an FP8 product in the same pass. Queries and keys are rotated where they lie.

On Hopper and later, with few rows, each kernel is launched while the one before still runs, waits for it before it touches memory, and
lets the next be launched: between kernels of some microseconds the launches are a good part of the time.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from colq_utils.fast import steps
from colq_utils.fast.steps import Input, Packed
from colq_utils.model import eightbit

LARGEST: tl.constexpr = tl.constexpr(eightbit.LARGEST)
#: The longest row that one program of `attend_packed` holds.
LONGEST = 128
#: Rows from which a GPU has more of them than it can work on at a time.
MANY = 4096

attend = steps.attend


@cache
def _hopper() -> bool:
    return torch.cuda.get_device_capability() >= (9, 0)


def _early(rows: int) -> dict[str, bool]:
    """Launch options. With many rows there is nothing to gain: the kernel before fills the GPU to its end."""
    early = rows < MANY and _hopper()
    return {"EARLY": early, "launch_pdl": early}


def add_norm(x, delta, weight, eps: float, fp8: bool) -> tuple[torch.Tensor, Input]:
    return _normed(x, delta, weight, None, eps, fp8)


def add_layer_norm(x, delta, weight, bias, eps: float, fp8: bool) -> tuple[torch.Tensor, Input]:
    return _normed(x, delta, weight, bias, eps, fp8)


def _normed(x, delta, weight, bias, eps, fp8):
    n, width = x.shape
    total = torch.empty_like(x)
    out, scale = _output(n, width, x, fp8)
    block = triton.next_power_of_2(width)
    warps = block // (
        512 if n < MANY else 2048
    )  # few rows: many hands each; many rows: many of them at a time
    _residual_norm[(n,)](
        x,
        delta,
        weight,
        weight if bias is None else bias,
        total,
        out,
        scale,
        width,
        eps,
        LAYER=bias is not None,
        FP8=fp8,
        BLOCK=block,
        num_warps=min(16, max(1, warps)),
        **_early(n),
    )
    return total, (out, scale) if fp8 else out


def rotate_(qkv, cos, sin, heads: int, kv_heads: int, norms=None, eps: float = 0.0) -> None:
    (n, width), (period, head_dim) = qkv.shape, cos.shape
    half = triton.next_power_of_2(head_dim // 2)
    some = max(1, 512 // half)  # heads a program
    q_weight, k_weight = norms or (cos, cos)
    _rotate[(n, triton.cdiv(heads + kv_heads, some))](
        qkv,
        cos,
        sin,
        q_weight,
        k_weight,
        width,
        period,
        heads,
        heads + kv_heads,
        eps,
        HEAD_DIM=head_dim,
        HALF=half,
        HEADS=some,
        NORM=norms is not None,
        **_early(n),
    )


def swiglu(gate_up, fp8: bool) -> Input:
    return _activated(gate_up, gate_up.shape[1] // 2, "swiglu", fp8)


def gelu_tanh(x, fp8: bool) -> Input:
    return _activated(x, x.shape[1], "gelu", fp8)


def to_fp8(x, fp8: bool) -> Input:
    return _activated(x, x.shape[1], "none", True) if fp8 else x


def _activated(x, width: int, kind: str, fp8: bool) -> Input:
    n = len(x)
    out, scale = _output(n, width, x, fp8)
    if fp8:  # a scale needs the whole row: a power of two of it, and what is left
        block = triton.next_power_of_2(width + 1) // 2
        rest = triton.next_power_of_2(width - block) if width > block else 0
        _activate_scaled[(n,)](
            x,
            out,
            scale,
            width,
            x.stride(0),
            KIND=kind,
            BLOCK=block,
            REST=rest,
            num_warps=min(8, max(2, block // 1024)),
            **_early(n),
        )
        return out, scale
    block = min(1024, triton.next_power_of_2(width))
    _activate[(n, triton.cdiv(width, block))](x, out, width, x.stride(0), KIND=kind, BLOCK=block, **_early(n))
    return out


def _output(n: int, width: int, x: torch.Tensor, fp8: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the result and its scales."""
    out = torch.empty(n, width, dtype=torch.float8_e4m3fn if fp8 else x.dtype, device=x.device)
    return out, torch.empty(n, 1, dtype=torch.float32, device=x.device) if fp8 else out


def attend_packed(qkv, packed: Packed, heads: int, kv_heads: int) -> torch.Tensor:
    head_dim = qkv.shape[1] // (heads + 2 * kv_heads)
    rows, length = packed.mask.shape
    if (
        length > LONGEST or head_dim not in (16, 32, 64, 128) or qkv.element_size() > 2
    ):  # fp32 rows do not fit
        return steps.attend_packed(qkv, packed, heads, kv_heads)
    out = torch.empty(len(qkv), heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    block = max(16, triton.next_power_of_2(length))
    _attend_packed[(rows + 1, heads)](
        qkv,
        out,
        packed.offsets,
        rows,
        len(qkv),
        head_dim**-0.5,
        heads,
        heads // kv_heads,
        kv_heads,
        HEAD_DIM=head_dim,
        BLOCK=block,
        num_warps=8 if block > 64 else 4,
        **_early(len(qkv)),
    )
    return out


@triton.jit
def _begin(EARLY: tl.constexpr):
    """Wait for what the kernels before have written, then let the next kernel be launched."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _scale(largest):
    """What a row with this largest magnitude is divided by."""
    return tl.maximum(largest, 1e-12) / LARGEST


@triton.jit
def _store_scaled(values, inside, out, scale):
    """Values in e4m3."""
    tl.store(out, tl.minimum(tl.maximum(values / scale, -LARGEST), LARGEST).to(out.dtype.element_ty), inside)


@triton.jit
def _residual_norm(
    x,
    delta,
    weight,
    bias,
    total,
    out,
    scale,
    width,
    eps,
    LAYER: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    _begin(EARLY)
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < width
    dtype: tl.constexpr = x.dtype.element_ty
    place = row * width + column
    values = tl.load(x + place, inside, 0.0).to(tl.float32) + tl.load(delta + place, inside, 0.0).to(
        tl.float32
    )
    values = values.to(dtype)
    tl.store(total + place, values, inside)
    values, gain = values.to(tl.float32), tl.load(weight + column, inside, 0.0).to(tl.float32)
    if LAYER:
        values = tl.where(inside, values - tl.sum(values, 0) / width, 0.0)
        shift = tl.load(bias + column, inside, 0.0).to(tl.float32)
        values = (
            (values * tl.rsqrt(tl.sum(values * values, 0) / width + eps) * gain + shift)
            .to(dtype)
            .to(tl.float32)
        )
    else:
        values = (values * tl.rsqrt(tl.sum(values * values, 0) / width + eps)).to(dtype).to(tl.float32)
        values = (values * gain).to(dtype).to(tl.float32)
    if FP8:
        size = _scale(tl.max(tl.abs(values), 0))
        tl.store(scale + row, size)
        _store_scaled(values, inside, out + place, size)
    else:
        tl.store(out + place, values.to(dtype), inside)


@triton.jit
def _activated_values(x, column, width, KIND: tl.constexpr):
    """Some columns of the row at `x`, activated, rounded as they would be stored and given in fp32."""
    inside = column < width
    dtype: tl.constexpr = x.dtype.element_ty
    values = tl.load(x + column, inside, 0.0).to(tl.float32)
    if KIND == "swiglu":
        up = tl.load(x + width + column, inside, 0.0).to(tl.float32)
        values = (values * tl.sigmoid(values)).to(dtype).to(tl.float32) * up
    if KIND == "gelu":  # 1 + tanh(t) = 2 sigmoid(2 t)
        values = values * tl.sigmoid(2 * 0.7978845608028654 * (values + 0.044715 * values * values * values))
    return values.to(dtype).to(tl.float32)


@triton.jit
def _activate(x, out, width, stride, KIND: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    _begin(EARLY)
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = _activated_values(x + row * stride, column, width, KIND)
    tl.store(out + row * width + column, values.to(out.dtype.element_ty), column < width)


@triton.jit
def _activate_scaled(
    x,
    out,
    scale,
    width,
    stride,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
    EARLY: tl.constexpr,
):
    _begin(EARLY)
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    values = _activated_values(x + row * stride, column, width, KIND)
    largest = tl.max(tl.abs(values), 0)
    if REST:
        behind = BLOCK + tl.arange(0, REST)
        others = _activated_values(x + row * stride, behind, width, KIND)
        largest = tl.maximum(largest, tl.max(tl.abs(others), 0))
    size = _scale(largest)
    tl.store(scale + row, size)
    _store_scaled(values, column < width, out + row * width + column, size)
    if REST:
        _store_scaled(others, behind < width, out + row * width + behind, size)


@triton.jit
def _rotate(
    qkv,
    cos,
    sin,
    q_weight,
    k_weight,
    stride,
    period,
    query_heads,
    heads,
    eps,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    NORM: tl.constexpr,
    EARLY: tl.constexpr,
):
    _begin(EARLY)
    token = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = qkv.dtype.element_ty
    head, column = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    half: tl.constexpr = HEAD_DIM // 2
    known = column < half
    inside = (head < heads) & known
    first = qkv + token * stride + head * HEAD_DIM + column
    a, b = tl.load(first, inside, 0.0).to(tl.float32), tl.load(first + half, inside, 0.0).to(tl.float32)
    place = (token % period) * HEAD_DIM + column
    cos_a, cos_b = (
        tl.load(cos + place, known, 0.0).to(tl.float32),
        tl.load(cos + place + half, known, 0.0).to(tl.float32),
    )
    sin_a, sin_b = (
        tl.load(sin + place, known, 0.0).to(tl.float32),
        tl.load(sin + place + half, known, 0.0).to(tl.float32),
    )
    if NORM:
        size = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / HEAD_DIM + eps)[:, None]
        query = head < query_heads
        gain_a = tl.where(
            query, tl.load(q_weight + column, known, 0.0), tl.load(k_weight + column, known, 0.0)
        ).to(tl.float32)
        gain_b = tl.where(
            query,
            tl.load(q_weight + column + half, known, 0.0),
            tl.load(k_weight + column + half, known, 0.0),
        ).to(tl.float32)
        a, b = (
            ((a * size).to(dtype).to(tl.float32) * gain_a).to(dtype).to(tl.float32),
            ((b * size).to(dtype).to(tl.float32) * gain_b).to(dtype).to(tl.float32),
        )
        left = (a * cos_a).to(dtype).to(tl.float32) - (b * sin_a).to(dtype).to(tl.float32)
        right = (b * cos_b).to(dtype).to(tl.float32) + (a * sin_b).to(dtype).to(tl.float32)
    else:
        left, right = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    tl.store(first, left.to(dtype), inside)
    tl.store(first + half, right.to(dtype), inside)


@triton.jit
def _attend_packed(
    qkv,
    out,
    offsets,
    rows,
    total,
    scale,
    heads,
    group,
    kv_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    _begin(EARLY)
    row, head = tl.program_id(0), tl.program_id(1)
    token, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, HEAD_DIM)[None, :]
    start = tl.load(offsets + row)
    if row == rows:  # what is over is made zero
        for some in range(start, total, BLOCK):
            tl.store(
                out + (some + token) * (heads * HEAD_DIM) + head * HEAD_DIM + column,
                tl.zeros([BLOCK, HEAD_DIM], out.dtype.element_ty),
                some + token < total,
            )
    else:
        inside = token < tl.load(offsets + row + 1) - start
        place = qkv + (start + token) * ((heads + 2 * kv_heads) * HEAD_DIM) + column
        q = tl.load(place + head * HEAD_DIM, inside, 0.0)
        k = tl.load(place + (heads + head // group) * HEAD_DIM, inside, 0.0)
        v = tl.load(place + (heads + kv_heads + head // group) * HEAD_DIM, inside, 0.0)
        likeness = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        likeness = tl.where(
            tl.arange(0, BLOCK)[None, :] <= token, likeness, float("-inf")
        )  # a row's end is to the right of its tokens
        share = tl.exp(likeness - tl.max(likeness, 1)[:, None])
        mixed = tl.dot(share.to(v.dtype), v, input_precision="ieee") / tl.sum(share, 1)[:, None]
        tl.store(
            out + (start + token) * (heads * HEAD_DIM) + head * HEAD_DIM + column,
            mixed.to(out.dtype.element_ty),
            inside,
        )
