"""The steps of `colq_utils.fast.steps`, one GPU kernel each.

They move as many bytes as the step must and no more: a program holds a row (or a piece of one) in registers,
indexes without divisions and quantizes for an FP8 product in the same pass.
"""

import torch
import triton
import triton.language as tl

from colq_utils.fast import attention_triton, steps
from colq_utils.fast.launch import MANY, begin, early
from colq_utils.fast.steps import Input
from colq_utils.model import eightbit

LARGEST: tl.constexpr = tl.constexpr(eightbit.LARGEST)

attend, attend_packed, rotate_ = steps.attend, attention_triton.attend_packed, attention_triton.rotate_


def add_norm(x, delta, weight, eps: float, fp8: bool) -> tuple[torch.Tensor, Input]:
    return add_layer_norm(x, delta, weight, None, eps, fp8)


def add_layer_norm(x, delta, weight, bias, eps: float, fp8: bool) -> tuple[torch.Tensor, Input]:
    n, width = x.shape
    total = torch.empty_like(x)
    out, scale = _output(n, width, x, fp8)
    block = triton.next_power_of_2(width)
    share = 512 if n < MANY else 2048  # few rows: many hands each; many rows: many of them at a time
    warps = min(16, max(1, block // share))
    sizes = {"LAYER": bias is not None, "FP8": fp8, "BLOCK": block, "num_warps": warps}
    shift = weight if bias is None else bias
    _residual_norm[(n,)](x, delta, weight, shift, total, out, scale, width, eps, **sizes, **early(n))
    return total, (out, scale) if fp8 else out


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
        sizes = {"BLOCK": block, "REST": rest, "num_warps": min(8, max(2, block // 1024))}
        _activate_scaled[(n,)](x, out, scale, width, x.stride(0), KIND=kind, **sizes, **early(n))
        return out, scale
    block = min(1024, triton.next_power_of_2(width))
    grid = n, triton.cdiv(width, block)
    _activate[grid](x, out, width, x.stride(0), KIND=kind, BLOCK=block, **early(n))
    return out


def _output(n: int, width: int, x: torch.Tensor, fp8: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the result and its scales."""
    out = torch.empty(n, width, dtype=torch.float8_e4m3fn if fp8 else x.dtype, device=x.device)
    return out, torch.empty(n, 1, dtype=torch.float32, device=x.device) if fp8 else out


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
    begin(EARLY)
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < width
    dtype: tl.constexpr = x.dtype.element_ty
    place = row * width + column
    values = tl.load(x + place, inside, 0.0).to(tl.float32)
    values = (values + tl.load(delta + place, inside, 0.0).to(tl.float32)).to(dtype)
    tl.store(total + place, values, inside)
    values, gain = values.to(tl.float32), tl.load(weight + column, inside, 0.0).to(tl.float32)
    if LAYER:
        values = tl.where(inside, values - tl.sum(values, 0) / width, 0.0)
        shift = tl.load(bias + column, inside, 0.0).to(tl.float32)
        values = values * tl.rsqrt(tl.sum(values * values, 0) / width + eps) * gain + shift
        values = values.to(dtype).to(tl.float32)
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
    begin(EARLY)
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
    begin(EARLY)
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
