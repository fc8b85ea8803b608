"""Rotation (in place) and packed attention of `colq_utils.fast.steps`, one GPU kernel each."""

import torch
import triton
import triton.language as tl

from colq_utils.fast import steps
from colq_utils.fast.launch import begin, early
from colq_utils.fast.layout import Packed

#: The longest row that one program of `attend_packed` holds.
LONGEST = 128


def rotate_(qkv, cos, sin, heads: int, kv_heads: int, norms=None, eps: float = 0.0) -> None:
    (n, width), (period, head_dim) = qkv.shape, cos.shape
    half = triton.next_power_of_2(head_dim // 2)
    program_heads = max(1, 512 // half)
    q_weight, k_weight = norms or (cos, cos)
    turned = heads + kv_heads
    sizes = {"HEAD_DIM": head_dim, "HALF": half, "HEADS": program_heads, "NORM": norms is not None}
    grid = n, triton.cdiv(turned, program_heads)
    tensors = qkv, cos, sin, q_weight, k_weight
    _rotate[grid](*tensors, width, period, heads, turned, eps, **sizes, **early(n))


def attend_packed(qkv, packed: Packed, heads: int, kv_heads: int) -> torch.Tensor:
    head_dim = qkv.shape[1] // (heads + 2 * kv_heads)
    rows, length = packed.mask.shape
    fits = length <= LONGEST and head_dim in (16, 32, 64, 128) and qkv.element_size() <= 2  # fp32 rows do not
    if not fits:
        return steps.attend_packed(qkv, packed, heads, kv_heads)
    out = torch.empty(len(qkv), heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    block, groups = max(16, triton.next_power_of_2(length)), (heads, heads // kv_heads, kv_heads)
    sizes = {"HEAD_DIM": head_dim, "BLOCK": block, "num_warps": 8 if block > 64 else 4}
    tensors, scale = (qkv, out, packed.offsets), head_dim**-0.5
    _attend_packed[(rows + 1, heads)](*tensors, rows, len(qkv), scale, *groups, **sizes, **early(len(qkv)))
    return out


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
    begin(EARLY)
    token = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = qkv.dtype.element_ty
    head, column = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    half: tl.constexpr = HEAD_DIM // 2
    known = column < half
    inside = (head < heads) & known
    first = qkv + token * stride + head * HEAD_DIM + column
    a, b = tl.load(first, inside, 0.0).to(tl.float32), tl.load(first + half, inside, 0.0).to(tl.float32)
    place = (token % period) * HEAD_DIM + column
    cos_a = tl.load(cos + place, known, 0.0).to(tl.float32)
    cos_b = tl.load(cos + place + half, known, 0.0).to(tl.float32)
    sin_a = tl.load(sin + place, known, 0.0).to(tl.float32)
    sin_b = tl.load(sin + place + half, known, 0.0).to(tl.float32)
    if NORM:
        size = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / HEAD_DIM + eps)[:, None]
        query = head < query_heads
        q_gain, k_gain = tl.load(q_weight + column, known, 0.0), tl.load(k_weight + column, known, 0.0)
        gain_a = tl.where(query, q_gain, k_gain).to(tl.float32)
        q_gain = tl.load(q_weight + column + half, known, 0.0)
        k_gain = tl.load(k_weight + column + half, known, 0.0)
        gain_b = tl.where(query, q_gain, k_gain).to(tl.float32)
        a = ((a * size).to(dtype).to(tl.float32) * gain_a).to(dtype).to(tl.float32)
        b = ((b * size).to(dtype).to(tl.float32) * gain_b).to(dtype).to(tl.float32)
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
    begin(EARLY)
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
        earlier = tl.arange(0, BLOCK)[None, :] <= token  # a row's end is to the right of its tokens
        likeness = tl.where(earlier, likeness, float("-inf"))
        share = tl.exp(likeness - tl.max(likeness, 1)[:, None])
        mixed = tl.dot(share.to(v.dtype), v, input_precision="ieee") / tl.sum(share, 1)[:, None]
        target = out + (start + token) * (heads * HEAD_DIM) + head * HEAD_DIM + column
        tl.store(target, mixed.to(out.dtype.element_ty), inside)
