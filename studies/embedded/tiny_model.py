"""The embedded ColQwen3 as it is trained: the same function and tensor names, written for speed.

transformers' Qwen3VLModel gathers positions and splits images in Python, which keeps a compiler
from seeing static shapes. Training meets one page size only (384 x 704 pixels, 12 x 22 visual
tokens), so positions are constants here, attention is one batched call and nothing depends on
data. `tests/studies/test_tiny_training.py` holds the two implementations to the same numbers. Use
`colq_utils.model.modeling` for everything but training.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from studies.embedded.tiny_config import COLUMNS, PAGE_TOKENS, ROWS, VISION_END, VISION_START, TinyConfig


class VisionBlock(nn.Module):
    """A pre-norm transformer block over all patches of a region."""

    def __init__(self, c: TinyConfig):
        super().__init__()
        self.heads = c.vision_heads
        self.norm1, self.norm2 = (
            nn.LayerNorm(c.vision_hidden, eps=1e-6),
            nn.LayerNorm(c.vision_hidden, eps=1e-6),
        )
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(c.vision_hidden, 3 * c.vision_hidden)
        self.attn.proj = nn.Linear(c.vision_hidden, c.vision_hidden)
        self.mlp = nn.Module()
        self.mlp.linear_fc1 = nn.Linear(c.vision_hidden, c.vision_mlp)
        self.mlp.linear_fc2 = nn.Linear(c.vision_mlp, c.vision_hidden)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        n, s, d = x.shape  # (n_pages, n_patches, hidden)
        qkv = self.attn.qkv(self.norm1(x)).view(n, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (n_pages, heads, n_patches, head_dim)
        a = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.attn.proj(a.transpose(1, 2).reshape(n, s, d))
        return x + self.mlp.linear_fc2(F.gelu(self.mlp.linear_fc1(self.norm2(x)), approximate="tanh"))


class PatchMerger(nn.Module):
    """Four neighbouring patches to one visual token."""

    def __init__(self, c: TinyConfig, after_shuffle: bool):
        super().__init__()
        self.width, self.after_shuffle = 4 * c.vision_hidden, after_shuffle
        self.norm = nn.LayerNorm(self.width if after_shuffle else c.vision_hidden, eps=1e-6)
        self.linear_fc1, self.linear_fc2 = nn.Linear(self.width, self.width), nn.Linear(self.width, c.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[0], x.shape[1] // 4, self.width)  # (n_pages, n_tokens, 4 * hidden)
        x = self.norm(x.reshape(shape)) if self.after_shuffle else self.norm(x).reshape(shape)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class VisionTower(nn.Module):
    """Grey regions to visual tokens, with the features of earlier layers (deepstack)."""

    def __init__(self, c: TinyConfig):
        super().__init__()
        self.c = c
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(3, c.vision_hidden, (2, 16, 16), stride=(2, 16, 16))
        self.pos_embed = nn.Embedding(c.vision_positions, c.vision_hidden)
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c.vision_depth))
        self.merger = PatchMerger(c, after_shuffle=False)
        self.deepstack_merger_list = nn.ModuleList(PatchMerger(c, after_shuffle=True) for _ in c.deepstack)
        row, column = patch_places()
        half = c.vision_hidden // c.vision_heads // 2
        frequency = 1.0 / 10_000.0 ** (torch.arange(0, half, 2).float() / half)
        angle = torch.cat([row[:, None] * frequency, column[:, None] * frequency], dim=-1)
        angle = torch.cat([angle, angle], dim=-1)  # (n_patches, head_dim)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        indices, weights = interpolation(row, column, int(c.vision_positions**0.5))
        self.register_buffer("indices", indices, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, pages: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Encode `pages` (n_pages, 384, 704), grey in [-1, 1].

        Returns visual tokens (n_pages, 264, hidden), the deepstack features, each of that shape,
        and the patches' last hidden state (n_pages, 1056, vision_hidden) in merge-block order.
        """
        n = pages.shape[0]
        x = (
            pages.view(n, ROWS, 2, 16, COLUMNS, 2, 16)
            .permute(0, 1, 4, 2, 5, 3, 6)
            .reshape(n, 4 * PAGE_TOKENS, 256)
        )
        kernel = self.patch_embed.proj.weight.sum((1, 2)).flatten(1)  # three equal colours, two equal frames
        x = F.linear(x, kernel, self.patch_embed.proj.bias)
        x = x + (self.pos_embed(self.indices) * self.weights[..., None]).sum(1)
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x, self.cos, self.sin)
            if i in self.c.deepstack:
                features.append(self.deepstack_merger_list[len(features)](x))
        return self.merger(x), features, x


class TextBlock(nn.Module):
    """A causal grouped-query transformer block with normalised queries and keys."""

    def __init__(self, c: TinyConfig):
        super().__init__()
        self.c = c
        self.self_attn = nn.Module()
        self.self_attn.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.self_attn.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.self_attn.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.self_attn.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)
        self.self_attn.q_norm, self.self_attn.k_norm = (nn.RMSNorm(c.head_dim, eps=1e-6) for _ in range(2))
        self.mlp = nn.Module()
        self.mlp.gate_proj = nn.Linear(c.hidden, c.mlp, bias=False)
        self.mlp.up_proj = nn.Linear(c.hidden, c.mlp, bias=False)
        self.mlp.down_proj = nn.Linear(c.mlp, c.hidden, bias=False)
        self.input_layernorm = nn.RMSNorm(c.hidden, eps=1e-6)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden, eps=1e-6)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        n, s, _ = x.shape  # (n, n_tokens, hidden)
        h, attn = self.input_layernorm(x), self.self_attn
        q = attn.q_norm(attn.q_proj(h).view(n, s, -1, self.c.head_dim)).transpose(1, 2)
        k = attn.k_norm(attn.k_proj(h).view(n, s, -1, self.c.head_dim)).transpose(1, 2)
        v = attn.v_proj(h).view(n, s, -1, self.c.head_dim).transpose(1, 2)
        groups = self.c.heads // self.c.kv_heads
        k, v = (rotate(k, cos, sin).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))
        a = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        x = x + attn.o_proj(a.transpose(1, 2).reshape(n, s, -1))
        h, mlp = self.post_attention_layernorm(x), self.mlp
        return x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))


class TinyColQwen3(nn.Module):
    """Late-interaction retriever with the published tensor names, for pages of one size."""

    def __init__(self, c: TinyConfig):
        super().__init__()
        self.c = c
        text = nn.Module()
        text.embed_tokens = nn.Embedding(c.vocab_size, c.hidden)
        text.layers = nn.ModuleList(TextBlock(c) for _ in range(c.layers))
        text.norm = nn.RMSNorm(c.hidden, eps=1e-6)
        self.vlm = nn.Module()
        self.vlm.model = nn.Module()
        self.vlm.model.visual, self.vlm.model.language_model = VisionTower(c), text
        self.embedding_proj_layer = nn.Linear(c.hidden, c.embed_dim, bias=False)
        cos, sin = text_rotation(c, page_positions())
        self.register_buffer("page_cos", cos, persistent=False)
        self.register_buffer("page_sin", sin, persistent=False)
        cos, sin = text_rotation(c, torch.arange(64).expand(3, -1))
        self.register_buffer("query_cos", cos, persistent=False)
        self.register_buffer("query_sin", sin, persistent=False)
        self.apply(initialise)

    def pages(self, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit vectors (n_pages, 264, embed_dim) and the patches (n_pages, 1056, vision_hidden)."""
        text = self.vlm.model.language_model
        tokens, features, patches = self.vlm.model.visual(pages)
        edge = text.embed_tokens.weight[[VISION_START, VISION_END]].to(tokens.dtype).expand(len(pages), 2, -1)
        x = torch.cat([edge[:, :1], tokens, edge[:, 1:]], dim=1)  # (n_pages, 266, hidden)
        for i, block in enumerate(text.layers):
            x = block(x, self.page_cos, self.page_sin)
            if i < len(features):
                x = x + F.pad(features[i], (0, 0, 1, 1))
        x = self.embedding_proj_layer(text.norm(x[:, 1:-1]))
        return F.normalize(x.float(), dim=-1), patches

    def queries(self, ids: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (n_queries, n_tokens, embed_dim) of right-padded token ids."""
        text = self.vlm.model.language_model
        x = text.embed_tokens(ids)
        cos, sin = self.query_cos[: ids.shape[1]], self.query_sin[: ids.shape[1]]
        for block in text.layers:
            x = block(x, cos, sin)
        return F.normalize(self.embedding_proj_layer(text.norm(x)).float(), dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions to x (..., n_tokens, head_dim), computed in fp32."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def patch_places() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the row and column of each patch, in merge-block order, both (n_patches,)."""
    row, column = torch.meshgrid(torch.arange(2 * ROWS), torch.arange(2 * COLUMNS), indexing="ij")
    return tuple(x.reshape(ROWS, 2, COLUMNS, 2).transpose(1, 2).flatten() for x in (row, column))


def interpolation(row: torch.Tensor, column: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices and weights (n_patches, 4) into the side x side table of learned positions."""
    taps = []
    for place, count in ((row, 2 * ROWS), (column, 2 * COLUMNS)):
        at = torch.linspace(0, side - 1, count)[place]
        low = at.long()
        taps.append(
            (torch.stack([low, (low + 1).clamp(max=side - 1)], 1), torch.stack([1 - (at - low), at - low], 1))
        )
    (ri, rw), (ci, cw) = taps
    return (ri[:, :, None] * side + ci[:, None, :]).flatten(1), (rw[:, :, None] * cw[:, None, :]).flatten(1)


def page_positions() -> torch.Tensor:
    """Return (time, row, column) of the 266 tokens of a page prompt, (3, 266)."""
    row, column = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    image = torch.stack([torch.zeros(PAGE_TOKENS).long(), row.flatten(), column.flatten()]) + 1
    return torch.cat([torch.zeros(3, 1).long(), image, torch.full((3, 1), 1 + max(ROWS, COLUMNS))], dim=1)


def text_rotation(c: TinyConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine (n_tokens, head_dim) of interleaved three-axis positions (3, n_tokens)."""
    frequency = 1.0 / c.rope_theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)
    angles = positions[..., None].float() * frequency  # (3, n_tokens, head_dim / 2)
    mixed = angles[0].clone()
    for axis in (1, 2):
        places = slice(axis, 3 * c.mrope_section[axis], 3)
        mixed[:, places] = angles[axis][:, places]
    mixed = torch.cat([mixed, mixed], dim=-1)
    return mixed.cos(), mixed.sin()


def initialise(module: nn.Module) -> None:
    """Initialise one module: normal 0.02, biases zero."""
    if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv3d)):
        nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def export(model: TinyColQwen3, folder: Path) -> None:
    """Write config.json and model.safetensors (bf16) in the published layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().to(torch.bfloat16).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.c.published(), indent=2) + "\n", encoding="utf-8")


def towers(model: TinyColQwen3) -> dict[str, int]:
    """Return the number of parameters of the vision tower, the language model and the projection."""
    parts = {
        "vision tower": model.vlm.model.visual,
        "language model": model.vlm.model.language_model,
        "projection": model.embedding_proj_layer,
    }
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def describe(model: TinyColQwen3) -> dict:
    """Return the sizes and the number of parameters, for logs."""
    return {**asdict(model.c), "parameters": sum(p.numel() for p in model.parameters())}
