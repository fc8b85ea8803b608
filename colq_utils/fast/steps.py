"""What lies between the matrix products of the fast path, in plain torch: the reference, and what a CPU runs.

`colq_utils.fast.steps_triton` holds the same functions as one GPU kernel each. Both round to the model's dtype wherever the
plain forward pass does: over many layers another rounding adds up to another embedding.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

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
        norms: RMS weights ``(head_dim,)`` of queries and keys. Without them (the vision tower) it is done in fp32.
    """
    period, head_dim = cos.shape
    turned = qkv.view(-1, period, heads + 2 * kv_heads, head_dim)[:, :, : heads + kv_heads]
    if norms is None:
        x, cos, sin = turned.float(), cos.float(), sin.float()
    else:
        x = torch.cat(
            [_rms(turned[:, :, :heads], norms[0], eps), _rms(turned[:, :, heads:], norms[1], eps)], 2
        )
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
    """Attention in each of `rows` sequences of one length: ``(n_tokens, (heads + 2 kv) * d)`` to ``(n_tokens, heads * d)``."""
    split = qkv.view(rows, len(qkv) // rows, heads + 2 * kv_heads, -1).transpose(
        1, 2
    )  # (rows, heads + 2 kv, length, d)
    q, k, v = split.split([heads, kv_heads, kv_heads], dim=1)
    mixed = nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=heads != kv_heads
    )
    return mixed.transpose(1, 2).reshape(len(qkv), -1)


def attend_packed(qkv: torch.Tensor, packed: "Packed", heads: int, kv_heads: int) -> torch.Tensor:
    """Causal attention in packed rows of several lengths; shapes as `attend`."""
    aligned = qkv[packed.slots.flatten()]
    return attend(aligned, len(packed.slots), heads, kv_heads, True)[packed.back]


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    values = x.float()
    return weight * (values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


@dataclass(frozen=True)
class Packed:
    """Rows of several lengths as one sequence of `total` tokens, without the padding between them.

    Padding to the longest row is most of a batch of real queries; no product has to be computed for it.

    Attributes:
        mask: ``(n_rows, n_tokens)``, 1 where there is a token; padding on any side.
        total: tokens in the packed sequence, at least as many as the mask has; what is over holds no row.
    """

    mask: torch.Tensor
    total: int

    @cached_property
    def source(self) -> torch.Tensor:
        """Place of each packed token in the flat mask, ``(total,)``; 0 for what is over."""
        flat = self.mask.flatten()
        place = torch.where(flat.bool(), flat.cumsum(0) - 1, self.total)
        return flat.new_zeros(self.total + 1).scatter_(0, place, torch.arange(len(flat), device=flat.device))[
            :-1
        ]

    @cached_property
    def positions(self) -> torch.Tensor:
        """Place of each packed token in its row, ``(total,)``."""
        return (self.mask.cumsum(1) - 1).flatten()[self.source]

    @cached_property
    def offsets(self) -> torch.Tensor:
        """Where each row begins in the packed sequence, and where the last one ends, ``(n_rows + 1,)``, int32."""
        return nn.functional.pad(self.mask.sum(1).cumsum(0), (1, 0)).int()

    @cached_property
    def slots(self) -> torch.Tensor:
        """Packed tokens with every row moved to the left edge, ``(n_rows, n_tokens)``; behind a row's end, others' tokens."""
        place = torch.arange(self.mask.shape[1], device=self.mask.device)
        return (self.offsets[:-1, None] + place).clamp(max=self.total - 1)

    @cached_property
    def back(self) -> torch.Tensor:
        """Place of each packed token in the flat `slots`, ``(total,)``."""
        width = self.mask.shape[1]
        return (self.source // width * width + self.positions).clamp(min=0)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """``(total, dim)`` back to the mask's rows, ``(n_rows, n_tokens, dim)``, zero where there is no token."""
        place = (self.mask.flatten().cumsum(0) - 1).clamp(min=0)
        return values[place].view(*self.mask.shape, -1) * self.mask.unsqueeze(-1).to(values.dtype)
