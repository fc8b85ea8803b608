"""What lies between the matrix products of the fast path, in plain torch: the reference, and what a CPU runs.

`colq_utils.fast.steps_triton` holds the same functions as one GPU kernel each. Both round to the model's
dtype wherever the plain forward pass does: over many layers another rounding adds up to another embedding.
"""

import torch
from torch import nn

from colq_utils.fast.layout import Packed
from colq_utils.model.eightbit import scaled

#: A tensor, or what `scaled` makes of it for an FP8 product.
Input = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def add_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float, fp8: bool
) -> tuple[torch.Tensor, Input]:
    """Residual sum ``(n_tokens, hidden)`` and its RMS norm, quantized if `fp8`."""
    x = x + delta
    return x, to_fp8(_rms(x, weight, eps), fp8)


def add_layer_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, fp8: bool
) -> tuple[torch.Tensor, Input]:
    """Residual sum ``(n_tokens, hidden)`` and its layer norm, quantized if `fp8`."""
    x = x + delta
    return x, to_fp8(nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps), fp8)


def rotate_(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    kv_heads: int,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate queries and keys in place, normalised per head before if weights are given.

    Args:
        qkv: ``(n_tokens, (heads + 2 * kv_heads) * head_dim)``.
        cos, sin: ``(period, head_dim)``; `n_tokens` is a multiple of the period.
        norms: RMS weights ``(head_dim,)`` of queries and keys; without them (the vision tower), all in fp32.
    """
    period, head_dim = cos.shape
    turned = qkv.view(-1, period, heads + 2 * kv_heads, head_dim)[:, :, : heads + kv_heads]
    if norms is None:
        x, cos, sin = turned.float(), cos.float(), sin.float()
    else:
        q, k = turned.split([heads, kv_heads], dim=2)
        x = torch.cat([_rms(q, norms[0], eps), _rms(k, norms[1], eps)], 2)
    half = head_dim // 2
    crossed = torch.cat((-x[..., half:], x[..., :half]), -1)
    turned.copy_(x * cos.unsqueeze(1) + crossed * sin.unsqueeze(1))


def swiglu(gate_up: torch.Tensor, fp8: bool) -> Input:
    """SiLU of the first half times the second: ``(n_tokens, 2 * width)`` to ``(n_tokens, width)``."""
    gate, up = gate_up.chunk(2, -1)
    return to_fp8(nn.functional.silu(gate) * up, fp8)


def gelu_tanh(x: torch.Tensor, fp8: bool) -> Input:
    """The vision tower's activation."""
    return to_fp8(nn.functional.gelu(x, approximate="tanh"), fp8)


def to_fp8(x: torch.Tensor, fp8: bool) -> Input:
    """`x`, quantized if `fp8`."""
    return scaled(x) if fp8 else x


def attend(qkv: torch.Tensor, rows: int, heads: int, kv_heads: int, causal: bool) -> torch.Tensor:
    """Attention in `rows` sequences: ``(n_tokens, (heads + 2 kv) * d)`` to ``(n_tokens, heads * d)``."""
    split = qkv.view(rows, len(qkv) // rows, heads + 2 * kv_heads, -1).transpose(1, 2)
    q, k, v = split.split([heads, kv_heads, kv_heads], dim=1)  # (rows, heads, length, d)
    grouped = heads != kv_heads
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    return mixed.transpose(1, 2).reshape(len(qkv), -1)


def attend_packed(qkv: torch.Tensor, packed: Packed, heads: int, kv_heads: int) -> torch.Tensor:
    """Causal attention in packed rows of several lengths; shapes as `attend`."""
    aligned = qkv[packed.slots.flatten()]
    return attend(aligned, len(packed.slots), heads, kv_heads, True)[packed.back]


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    values = x.float()
    return weight * (values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
