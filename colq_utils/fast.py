"""The fast encode path: the same embeddings as the plain forward pass, without its launch overhead.

The stock forward issues some thirty small kernels a layer; on a large GPU a batch of queries then waits for the processor
and not for the weights. Here q, k and v are one product, gate and up another; what lies between products is compiled into
one kernel each; and a whole query batch is captured as a CUDA graph for each (batch, length) bucket, so that the GPU
runs it in one go. Rows are shifted to the left edge first: under causal attention what stands to the right of a token
cannot touch it, so no padding mask is needed. Pages are compute-bound and run the same code without a graph.

The model is converted in place and holds no second copy of its weights. On a CPU the same code runs uncompiled.
"""
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures, get_vision_position_ids

from . import kernels
from .eightbit import Fp8Linear, scaled
from .modeling import ColQwen3ForRetrieval, ColQwen3Output
from .packing import PackedLinear

#: Query batches of up to this many tokens are captured as graphs; larger ones keep the GPU busy without.
GRAPH_TOKENS = 8192
#: Attention kernels in order of preference; cuDNN's is the fastest on Hopper where it takes the shape.
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    values = x.float()
    return weight * (values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def add_norm(x, delta, weight, eps: float, fp8: bool):
    """Residual sum and its RMS norm, quantized for an FP8 product if `fp8`."""
    x = x + delta
    normed = _rms(x, weight, eps)
    return x, scaled(normed) if fp8 else normed


def add_layer_norm(x, delta, weight, bias, eps: float, fp8: bool):
    """Residual sum and its layer norm, quantized for an FP8 product if `fp8`."""
    x = x + delta
    normed = nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return x, scaled(normed) if fp8 else normed


def query_key_value(qkv, q_weight, k_weight, cos, sin, eps: float, kv_heads: int):
    """Split, normalise per head and rotate: ``(n, n_tokens, (h + 2 kv) d)`` to three of ``(n, heads, n_tokens, d)``."""
    heads = qkv.unflatten(-1, (-1, q_weight.shape[0])).transpose(1, 2)  # (n, h + 2 kv, n_tokens, d)
    q, k, v = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (n, 1, n_tokens, d)
    return _rotate(_rms(q, q_weight, eps), cos, sin), _rotate(_rms(k, k_weight, eps), cos, sin), v


def swiglu(gate_up, fp8: bool):
    """SiLU of the first half times the second, quantized for an FP8 product if `fp8`."""
    gate, up = gate_up.chunk(2, -1)
    product = nn.functional.silu(gate) * up
    return scaled(product) if fp8 else product


def gelu_tanh(x, fp8: bool):
    """The vision tower's activation, quantized for an FP8 product if `fp8`."""
    x = nn.functional.gelu(x, approximate="tanh")
    return scaled(x) if fp8 else x


def vision_heads(qkv, cos, sin, heads: int):
    """Split and rotate in fp32, as the tower does: ``(n, n_patches, 3 h d)`` to three of ``(n, h, n_patches, d)``."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return _rotate(q.float(), cos, sin).to(q.dtype), _rotate(k.float(), cos, sin).to(k.dtype), v


def to_fp8(x, fp8: bool):
    """The output of attention, quantized for an FP8 product if `fp8`."""
    return scaled(x) if fp8 else x


class Steps:
    """The element-wise steps, compiled once and shared by all layers, or as they are on a CPU.

    Compiled code rounds to bf16 wherever the plain forward does: over many layers another rounding adds up to another
    embedding. Row counts become symbolic once a second one is met; widths stay constants, which indexes far faster.
    """

    def __init__(self, compiled: bool):
        if compiled:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)  # beyond it, it is eager
        for step in (add_norm, add_layer_norm, query_key_value, swiglu, gelu_tanh, vision_heads, to_fp8):
            setattr(self, step.__name__, torch.compile(step, options={"emulate_precision_casts": True}) if compiled else step)


class Block(nn.Module):
    """A decoder layer with stacked products. Takes and returns the residual stream and what is yet to be added to it."""

    def __init__(self, layer: nn.Module, config, product: Callable[[list[nn.Module]], nn.Module]):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o = product([attention.o_proj])
        self.gate_up = product([mlp.gate_proj, mlp.up_proj])
        self.down = product([mlp.down_proj])
        self.norm_in, self.norm_mid = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.norm_q, self.norm_k = attention.q_norm.weight, attention.k_norm.weight
        self.kv_heads, self.eps, self.fp8 = config.num_key_value_heads, config.rms_norm_eps, isinstance(self.qkv, Fp8Linear)

    def forward(self, x, delta, cos, sin, steps: Steps):
        """`x` and `delta` are ``(n * n_tokens, hidden)``, `cos` and `sin` ``(n, n_tokens, head_dim)``."""
        x, h = steps.add_norm(x, delta, self.norm_in, self.eps, self.fp8)
        qkv = self.qkv(h).unflatten(0, cos.shape[:2])
        q, k, v = steps.query_key_value(qkv, self.norm_q, self.norm_k, cos, sin, self.eps, self.kv_heads)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        attended = self.o(steps.to_fp8(mixed.transpose(1, 2).reshape(len(x), -1), self.fp8))
        x, h = steps.add_norm(x, attended, self.norm_mid, self.eps, self.fp8)
        return x, self.down(steps.swiglu(self.gate_up(h), self.fp8))


class FastColQwen3(nn.Module):
    """A ColQwen3 on the fast path; takes and returns what `ColQwen3ForRetrieval` does.

    Args:
        model: converted in place, not to be used afterwards.
        backend: the kernel for packed layers; they must be `PackedLinear`.
    """

    def __init__(self, model: ColQwen3ForRetrieval, backend: str | None = None):
        super().__init__()
        self.config, self.vlm, self.embedding_proj_layer = model.config, model.vlm, model.embedding_proj_layer
        self._on_gpu = self.embedding_proj_layer.weight.is_cuda
        self._steps = Steps(self._on_gpu)
        layers = model.language_model.layers
        for i, layer in enumerate(layers):
            layers[i] = Block(layer, model.config.text_config, lambda parts: stack(parts, backend))
        self._graphs: dict[tuple[int, int], tuple] = {}
        self._pool = None
        self._grids: dict[tuple[int, ...], tuple] = {}

    @property
    def language_model(self) -> nn.Module:
        return self.vlm.model.language_model

    @property
    def visual(self) -> nn.Module:
        return self.vlm.model.visual

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding_proj_layer.weight.dtype

    @torch.inference_mode()
    def forward(self, input_ids, attention_mask, pixel_values=None, image_grid_thw=None, mm_token_type_ids=None,
                page_features=None) -> ColQwen3Output:
        """Embed queries, or pages given as pixels or as features of the vision tower."""
        with sdpa_kernel(ATTENTION, set_priority=True):
            if pixel_values is None and page_features is None:
                return ColQwen3Output(embeddings=self._queries(input_ids, attention_mask))
            features = page_features or self.page_features(pixel_values, image_grid_thw)
            return ColQwen3Output(embeddings=self._pages(input_ids, attention_mask, image_grid_thw, mm_token_type_ids, features))

    def _queries(self, input_ids, attention_mask) -> torch.Tensor:
        n, length = input_ids.shape
        rows, tokens = bucket(n, length)
        if not self._on_gpu or rows * tokens > GRAPH_TOKENS:
            return self._text(input_ids, attention_mask)
        if (rows, tokens) not in self._graphs:
            self._graphs[rows, tokens] = self._capture(rows, tokens)
        graph, ids, mask, embeddings = self._graphs[rows, tokens]
        if (n, length) != (rows, tokens):
            mask.zero_()
        ids[:n, tokens - length:].copy_(input_ids)
        mask[:n, tokens - length:].copy_(attention_mask)
        graph.replay()
        return embeddings[:n, tokens - length:].clone()

    def _capture(self, rows: int, tokens: int) -> tuple:
        """A graph of one bucket, with its input and output buffers."""
        device = self.embedding_proj_layer.weight.device
        ids, mask = torch.zeros(2, rows, tokens, dtype=torch.long, device=device)
        mask.fill_(1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are compiled and chosen before anything is recorded
            for _ in range(2):
                self._text(ids, mask)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool):
            embeddings = self._text(ids, mask)
        return graph, ids, mask, embeddings

    def _text(self, input_ids, attention_mask) -> torch.Tensor:
        order, back = shifts(attention_mask)
        x = self.language_model.embed_tokens(input_ids.gather(1, order))  # (n, n_tokens, hidden)
        positions = torch.arange(x.shape[1], device=x.device).expand(3, len(x), -1)
        return self._finish(self._decode(x, positions, ()), attention_mask, back)

    def _pages(self, input_ids, attention_mask, grids, types, features) -> torch.Tensor:
        order, back = shifts(attention_mask)
        ids, mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        positions, _ = self.vlm.model.get_rope_index(ids, image_grid_thw=grids, attention_mask=mask, mm_token_type_ids=types.gather(1, order))
        x = self.language_model.embed_tokens(ids)
        place = (ids == self.config.image_token_id).unsqueeze(-1)
        x = x.masked_scatter(place, torch.cat(list(features.pooler_output)).to(x.dtype))
        deep = [torch.zeros_like(x).masked_scatter(place, torch.cat(list(layer)).to(x.dtype)) for layer in features.deepstack_features]
        return self._finish(self._decode(x, positions, deep), attention_mask, back)

    def _decode(self, x, positions, deep) -> torch.Tensor:
        """The language model on embedded tokens; `deep` is added behind the first layers."""
        cos, sin = self.language_model.rotary_emb(x, positions)
        shape, x = x.shape[:2], x.flatten(0, 1)
        delta = torch.zeros_like(x)
        for i, layer in enumerate(self.language_model.layers):
            x, delta = layer(x, delta, cos, sin, self._steps)
            if i < len(deep):
                delta = delta + deep[i].flatten(0, 1)
        last = self.language_model.norm
        return self._steps.add_norm(x, delta, last.weight, self.config.text_config.rms_norm_eps, False)[1].unflatten(0, shape)

    def _finish(self, hidden, attention_mask, back) -> torch.Tensor:
        vectors = nn.functional.normalize(self.embedding_proj_layer(hidden), dim=-1)  # (n, n_tokens, embed_dim)
        vectors = vectors.gather(1, back.unsqueeze(-1).expand_as(vectors))
        return vectors * attention_mask.unsqueeze(-1).to(vectors.dtype)

    @torch.inference_mode()
    def page_features(self, pixel_values, image_grid_thw) -> BaseModelOutputWithDeepstackFeatures:
        """Run the vision tower alone, pages of one size together; as `ColQwen3ForRetrieval.page_features`."""
        grids = [tuple(grid) for grid in image_grid_thw.tolist()]
        sizes = [t * h * w for t, h, w in grids]
        patches = pixel_values.split(sizes)
        found: list = [None] * len(grids)
        for grid in dict.fromkeys(grids):
            mine = [i for i, other in enumerate(grids) if other == grid]
            with sdpa_kernel(ATTENTION, set_priority=True):
                outputs = self._vision(torch.stack([patches[i] for i in mine]), grid)  # each (n_mine, n_visual_tokens, hidden)
            for row, i in enumerate(mine):
                found[i] = [output[row] for output in outputs]
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=[page[0] for page in found],
            deepstack_features=[[page[layer] for page in found] for layer in range(1, len(found[0]))])

    def _vision(self, patches: torch.Tensor, grid: tuple[int, int, int]) -> list[torch.Tensor]:
        """The vision tower on pages of one grid, ``(n, n_patches, patch_dim)``."""
        tower, steps = self.visual, self._steps
        position, cos, sin = self._grid(grid)
        weight = tower.patch_embed.proj.weight
        x = nn.functional.linear(patches.to(weight.dtype), weight.flatten(1), tower.patch_embed.proj.bias)  # (n, n_patches, hidden)
        shape, deep = x.shape[:2], []
        x, delta = x.flatten(0, 1), position.expand_as(x).flatten(0, 1)
        for i, block in enumerate(tower.blocks):
            fp8 = isinstance(block.attn.qkv, Fp8Linear)
            x, h = steps.add_layer_norm(x, delta, block.norm1.weight, block.norm1.bias, block.norm1.eps, fp8)
            q, k, v = steps.vision_heads(block.attn.qkv(h).unflatten(0, shape), cos, sin, block.attn.num_heads)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), -1)
            attended = block.attn.proj(steps.to_fp8(mixed, fp8))
            x, h = steps.add_layer_norm(x, attended, block.norm2.weight, block.norm2.bias, block.norm2.eps, fp8)
            delta = block.mlp.linear_fc2(steps.gelu_tanh(block.mlp.linear_fc1(h), fp8))
            if i in tower.deepstack_visual_indexes:
                merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(i)]
                deep.append(merger(x + delta))
        outputs = [tower.merger(x + delta), *deep]
        return [output.view(len(patches), -1, output.shape[-1]) for output in outputs]

    def _grid(self, grid: tuple[int, int, int]) -> tuple:
        """Position embedding ``(n_patches, hidden)`` and rotation of a patch grid, kept: page sizes repeat."""
        if grid not in self._grids:
            tower = self.visual
            sizes = torch.tensor([grid], device=tower.pos_embed.weight.device)
            position = _interpolated(tower, sizes)
            cos, sin = tower.rotary_pos_emb(position, get_vision_position_ids(sizes, tower.spatial_merge_size))
            self._grids[grid] = position, cos, sin
        return self._grids[grid]


def _interpolated(tower: nn.Module, grids: torch.Tensor) -> torch.Tensor:
    """The learned position grid resampled to a page's, by the tower's own rule."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import get_vision_interpolation_indices_and_weights
    places, weights = get_vision_interpolation_indices_and_weights(
        grids, num_grid_per_side=tower.num_grid_per_side, mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners, spatial_merge_size=tower.spatial_merge_size)
    return (tower.pos_embed(places) * weights[:, :, None]).sum(1).to(tower.pos_embed.weight.dtype)


def stack(layers: list[nn.Module], backend: str | None) -> nn.Module:
    """One layer for several of the same input: their outputs side by side."""
    if isinstance(layers[0], PackedLinear):
        return kernels.build(PackedLinear.stacked(layers), backend)
    if isinstance(layers[0], Fp8Linear):
        made = Fp8Linear.__new__(Fp8Linear)
        nn.Module.__init__(made)
        made.in_features, made.out_features = layers[0].in_features, sum(layer.out_features for layer in layers)
        made.register_buffer("weight", torch.cat([layer.weight.view(torch.uint8) for layer in layers]).view(torch.float8_e4m3fn))
        made.register_buffer("scale", torch.cat([layer.scale for layer in layers], dim=1))
        made.register_buffer("bias", None)
        return made
    with torch.device("meta"):
        made = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False)
    made.weight = nn.Parameter(torch.cat([layer.weight.data for layer in layers]), requires_grad=False)
    return made


def shifts(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each token comes from when left-padded rows are moved to the left edge, and the way back, ``(n, n_tokens)`` each."""
    length = mask.shape[1]
    padding = length - mask.sum(1, keepdim=True)  # (n, 1)
    place = torch.arange(length, device=mask.device)
    return (place + padding) % length, (place - padding) % length


def bucket(rows: int, tokens: int) -> tuple[int, int]:
    """The next size that is captured: rows to a power of two, tokens to a multiple of 8 (from 128 on, of 32)."""
    step = 8 if tokens <= 128 else 32
    return 1 << (rows - 1).bit_length(), -(-tokens // step) * step


def agreement(plain: list[torch.Tensor], other: list[torch.Tensor]) -> dict[str, float]:
    """Cosine between the token embeddings of two runs, ``(n_tokens, dim)`` each: mean, least, and the count."""
    cosines = torch.cat([torch.cosine_similarity(a.double(), b.double(), dim=-1) for a, b in zip(plain, other, strict=True)])
    return {"mean": cosines.mean().item(), "min": cosines.min().item(), "tokens": len(cosines)}
