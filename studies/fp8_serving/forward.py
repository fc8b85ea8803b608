"""The forward pass of a Qwen2-VL over the modules of transformers, for pictures of one size at a time.

transformers computes positions, splits pictures and grows its cache in Python at every token, which on a
GPU costs more than the arithmetic of a short answer. Here positions are tables, the cache is a fixed buffer
that is written in place, and a layer is one function of tensors: it can be compiled once for all layers and
recorded in a CUDA graph. Tests hold it to the tokens of ``model.generate``. Only pictures, no videos; no
padding: a batch has one prompt length.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def picture_angles(config, rows: int, columns: int, device) -> Tensor:
    """Rotary angles of the vision tower, ``(rows * columns, head_dim / 2)``, in the order of merged cells."""
    head = config.embed_dim // config.num_heads
    exponents = torch.arange(0, head // 2, 2, dtype=torch.float, device=device) / (head // 2)
    frequency = 1.0 / 10000.0**exponents
    merge = config.spatial_merge_size
    angles = []
    for grid in _grid(rows, columns, device):
        order = grid.view(rows // merge, merge, columns // merge, merge).transpose(1, 2).reshape(-1, 1)
        angles.append(order.float() * frequency)
    return torch.cat(angles, -1)


def _grid(rows: int, columns: int, device) -> tuple[Tensor, Tensor]:
    """Row and column of every place, each ``(rows, columns)``."""
    places = (torch.arange(n, device=device) for n in (rows, columns))
    return torch.meshgrid(*places, indexing="ij")


def text_positions(before: int, rows: int, columns: int, after: int, device) -> Tensor:
    """Positions in time, height and width, ``(3, n_tokens)``: text, merged picture cells, text.

    Source: Qwen2-VL's M-RoPE.
    """
    y, x = _grid(rows, columns, device)
    picture = torch.stack((torch.zeros_like(y), y, x)).reshape(3, -1) + before
    ahead = torch.arange(before, device=device)
    behind = torch.arange(after, device=device) + before + max(rows, columns)
    return torch.cat((ahead.expand(3, -1), picture, behind.expand(3, -1)), 1)


def text_angles(config, positions: Tensor) -> Tensor:
    """Rotary angles of the language model, ``(n_tokens, head_dim / 2)``, each after one of the positions."""
    head = config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    exponents = torch.arange(0, head, 2, dtype=torch.float, device=positions.device) / head
    parts = (1.0 / rope["rope_theta"] ** exponents).split(list(rope["mrope_section"]))
    return torch.cat([axis.float()[:, None] * part for axis, part in zip(positions, parts)], -1)


def rotation(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine for `rotate`, each ``(n_tokens, head_dim)``."""
    return angles.cos().repeat(1, 2).to(dtype), angles.sin().repeat(1, 2).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``(batch, heads, n_tokens, head_dim)``."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    """Root-mean-square norm, in fp32 as transformers does."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * scaled.to(x.dtype)


def vision_block(block: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One layer of the vision tower on ``(batch, n_patches, width)``; every picture sees itself alone."""
    batch, n, width = x.shape
    heads = block.attn.num_heads
    q, k, v = block.attn.qkv(block.norm1(x)).view(batch, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k = rotate(q.float(), cos, sin).to(v.dtype), rotate(k.float(), cos, sin).to(v.dtype)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, n, width)
    x = x + block.attn.proj(mixed)
    return x + block.mlp(block.norm2(x))


def text_block(
    layer: nn.Module,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    slot: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """One layer of the language model on ``(batch, n_tokens, width)``.

    Args:
        keys, values: cache of the layer, ``(batch, kv_heads, capacity, head_dim)``, written in place, if any.
        slot: places in the cache of the tokens given, ``(n_tokens,)``.
        mask: for a single new token, True where one of the cache may be seen, ``(capacity,)``; None: causal.
    """
    batch, n, width = x.shape
    attention, inner = layer.self_attn, normed(x, layer.input_layernorm)
    if hasattr(attention, "qkv_proj"):
        q, k, v = attention.qkv_proj(inner).split(attention.parts, -1)
    else:
        q, k, v = attention.q_proj(inner), attention.k_proj(inner), attention.v_proj(inner)
    q, k, v = (part.view(batch, n, -1, attention.head_dim).transpose(1, 2) for part in (q, k, v))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if keys is not None:
        keys.index_copy_(2, slot, k)
        values.index_copy_(2, slot, v)
    if mask is None:
        k, v = (part.repeat_interleave(attention.num_key_value_groups, 1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, n, width)
    else:
        # Heads that share a key head stand as its queries. Written out, because fused kernels give
        # a head of one query to one processor.
        grouped = q.view(batch, keys.shape[1], -1, attention.head_dim)
        score = (grouped @ keys.transpose(-1, -2)).float() * attention.scaling
        share = score.masked_fill(~mask, float("-inf")).softmax(-1).to(values.dtype)
        mixed = (share @ values).reshape(batch, 1, width)
    x = x + attention.o_proj(mixed)
    inner = normed(x, layer.post_attention_layernorm)
    if hasattr(layer.mlp, "gate_up_proj"):
        gate, up = layer.mlp.gate_up_proj(inner).chunk(2, -1)
    else:
        gate, up = layer.mlp.gate_proj(inner), layer.mlp.up_proj(inner)
    return x + layer.mlp.down_proj(F.silu(gate) * up)


@dataclass
class Blocks:
    """The two layer functions, plain or compiled."""

    vision: callable = vision_block
    text: callable = text_block

    @classmethod
    def compiled(cls) -> "Blocks":
        return cls(torch.compile(vision_block, dynamic=False), torch.compile(text_block, dynamic=False))


def see(model: nn.Module, patches: Tensor, rows: int, columns: int, blocks: Blocks) -> Tensor:
    """Vision tower: patches ``(batch, n_patches, patch_dim)`` to merged cells ``(batch, n_cells, width)``."""
    tower = model.model.visual
    batch, n, _ = patches.shape
    weight = tower.patch_embed.proj.weight
    x = F.linear(patches.to(weight.dtype), weight.flatten(1))
    cos, sin = rotation(picture_angles(tower.config, rows, columns, patches.device), torch.float32)
    for block in tower.blocks:
        x = blocks.vision(block, x, cos, sin)
    merged = tower.merger.ln_q(x).reshape(batch, n // tower.spatial_merge_size**2, -1)
    return tower.merger.mlp(merged)


def embed(model: nn.Module, ids: Tensor, cells: Tensor, before: int) -> Tensor:
    """Token vectors with the picture's cells in the place of its tokens, after `before` tokens of text."""
    text = model.model.language_model.embed_tokens(ids)
    return torch.cat((text[:, :before], cells.to(text.dtype), text[:, before + cells.shape[1] :]), 1)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Scores of the next token, ``(..., vocabulary)``."""
    return model.lm_head(normed(x, model.model.language_model.norm))
