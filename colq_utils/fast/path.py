"""The fast encode path: the same embeddings as the plain forward pass, without its launch overhead and its padding.

The stock forward issues some thirty small kernels a layer; on a large GPU a batch of queries then waits for the processor
and not for the weights. Here q, k and v are one product, gate and up another, and what lies between products is one
kernel each (`colq_utils.fast.steps_triton`). Queries of several lengths are packed into one sequence, so that nothing is
computed for padding, and captured as a CUDA graph for each bucket of sizes, so that the GPU runs a batch in
one go; small batches of pages are captured when their size comes again, large ones keep the GPU busy without. Under causal
attention what stands to the right of a token cannot touch it, so pages shifted to the left edge need no mask.

The model is converted in place and holds no second copy of its weights. On a CPU the same code runs `colq_utils.fast.steps`.
"""

import importlib
from collections.abc import Callable
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    get_vision_position_ids,
)

from colq_utils.base.errors import ColqError
from colq_utils.fast.steps import Packed
from colq_utils.model import kernels
from colq_utils.model.eightbit import Fp8Linear
from colq_utils.model.modeling import ColQwen3ForRetrieval, ColQwen3Output
from colq_utils.model.packing import PackedLinear

#: Batches of up to this many tokens are captured as graphs; larger ones keep the GPU busy without.
GRAPH_TOKENS = 8192
#: Graphs and patch grids that are kept at a time: page sizes are many, and each graph holds its buffers.
KEPT = 32
#: Attention kernels in order of preference; cuDNN's is the fastest on Hopper where it takes the shape.
ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


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
        self.norms = attention.q_norm.weight, attention.k_norm.weight
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps, self.fp8 = config.rms_norm_eps, isinstance(self.qkv, Fp8Linear)

    def forward(self, x, delta, cos, sin, steps: ModuleType, attend: Callable[..., torch.Tensor]):
        """`x` and `delta` are ``(n_tokens, hidden)``, `cos` and `sin` ``(n_tokens, head_dim)``."""
        x, h = steps.add_norm(x, delta, self.norm_in, self.eps, self.fp8)
        qkv = self.qkv(h)
        steps.rotate_(qkv, cos, sin, self.heads, self.kv_heads, self.norms, self.eps)
        attended = self.o(steps.to_fp8(attend(qkv, self.heads, self.kv_heads), self.fp8))
        x, h = steps.add_norm(x, attended, self.norm_mid, self.eps, self.fp8)
        return x, self.down(steps.swiglu(self.gate_up(h), self.fp8))


class FastColQwen3(nn.Module):
    """A ColQwen3 on the fast path; takes and returns what `ColQwen3ForRetrieval` does.

    Args:
        model: converted in place, not to be used afterwards.
        backend: the kernel for packed layers; they must be `PackedLinear`.
        schedules: tuned schedules by shape (`colq_utils.fast.sweeps.read_schedules`), for layers on humming.

    Raises:
        ColqError: a GPU without triton.
    """

    def __init__(
        self, model: ColQwen3ForRetrieval, backend: str | None = None, schedules: dict[str, str] | None = None
    ):
        super().__init__()
        self.config, self.vlm, self.embedding_proj_layer = model.config, model.vlm, model.embedding_proj_layer
        self._on_gpu = self.embedding_proj_layer.weight.is_cuda
        self._steps = _steps(self._on_gpu)
        layers = model.language_model.layers
        for i, layer in enumerate(layers):
            layers[i] = Block(layer, model.config.text_config, lambda parts: stack(parts, backend, schedules))
        self._recording = True
        self._graphs: dict[tuple, tuple] = {}
        self._met: set[tuple] = set()
        self._stream, self._pool = (
            (torch.cuda.Stream(), torch.cuda.graph_pool_handle()) if self._on_gpu else (None, None)
        )
        self._grids: dict[tuple[int, ...], tuple] = {}

    @contextmanager
    def unrecorded(self):
        """The same work without graphs, so that the allocator counts what it needs."""
        self._recording = False
        try:
            yield
        finally:
            self._recording = True

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
    def forward(
        self,
        input_ids,
        attention_mask=None,
        pixel_values=None,
        image_grid_thw=None,
        mm_token_type_ids=None,
        page_features=None,
    ) -> ColQwen3Output:
        """Embed queries, or pages given as pixels or as features of the vision tower."""
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if pixel_values is None and page_features is None:
            return ColQwen3Output(embeddings=self._queries(input_ids, attention_mask))
        features = page_features or self.page_features(pixel_values, image_grid_thw)
        return ColQwen3Output(
            embeddings=self._pages(input_ids, attention_mask, image_grid_thw, mm_token_type_ids, features)
        )

    def _queries(self, input_ids, attention_mask) -> torch.Tensor:
        (n, length), total = input_ids.shape, int(attention_mask.sum())
        if not self._on_gpu or not self._recording or total > GRAPH_TOKENS:
            return self._text(input_ids, attention_mask, total)
        key = rows, tokens, total = bucket(n, length, total)
        if key not in self._graphs:
            ids, mask = torch.zeros(2, rows, tokens, dtype=torch.long, device=input_ids.device)
            self._graphs[key] = self._captured(lambda *buffers: [self._text(*buffers, total)], [ids, mask])
        graph, (ids, mask), (embeddings,) = _latest(self._graphs, key)
        if (n, length) != (rows, tokens):
            mask.zero_()
        ids[:n, tokens - length :].copy_(input_ids)
        mask[:n, tokens - length :].copy_(attention_mask)
        graph.replay()
        return embeddings[:n, tokens - length :].clone()

    def _replayed(
        self, key: tuple, work: Callable[..., list[torch.Tensor]], *inputs: torch.Tensor
    ) -> list[torch.Tensor]:
        """``work(*inputs)``, as a CUDA graph if `key`, which stands for the work and the shapes, was met before.

        Page sizes vary, so a graph is recorded when one comes again; large batches keep the GPU busy without.
        """
        if key not in self._met or not self._on_gpu or not self._recording:
            self._met.add(key)
            return work(*inputs)
        if key not in self._graphs:
            self._graphs[key] = self._captured(work, [value.clone() for value in inputs])
        graph, buffers, outputs = _latest(self._graphs, key)
        for buffer, value in zip(buffers, inputs, strict=True):
            buffer.copy_(value)
        graph.replay()
        return [output.clone() for output in outputs]

    def _captured(self, work, buffers: list[torch.Tensor]) -> tuple:
        """A graph with its input and output buffers. One stream serves all: each would get a workspace of its own."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # kernels are compiled and chosen before anything is recorded
            for _ in range(2):
                work(*buffers)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            outputs = work(*buffers)
        return graph, buffers, outputs

    def _text(self, input_ids, attention_mask, total: int) -> torch.Tensor:
        """Queries packed into one sequence of `total` tokens, at least as many as the mask has."""
        packed = Packed(attention_mask, total)
        x = self.language_model.embed_tokens(input_ids.flatten()[packed.source])  # (total, hidden)
        turns = self.language_model.rotary_emb(x, packed.positions.expand(3, 1, -1))
        hidden = self._decode(
            x, *turns, attend=lambda qkv, *heads: self._steps.attend_packed(qkv, packed, *heads)
        )
        return packed.unpack(self._projected(hidden))

    def _pages(self, input_ids, attention_mask, grids, types, features) -> torch.Tensor:
        order, back = shifts(attention_mask)
        ids = input_ids.gather(1, order)
        positions = page_positions(types.gather(1, order), grids, self.visual.spatial_merge_size)
        n, x = len(ids), self.language_model.embed_tokens(ids).flatten(0, 1)
        place = (ids == self.config.image_token_id).view(-1, 1)
        x = x.masked_scatter(place, torch.cat(list(features.pooler_output)).to(x.dtype))
        deep = [
            torch.zeros_like(x).masked_scatter(place, torch.cat(list(layer)).to(x.dtype))
            for layer in features.deepstack_features
        ]

        def work(x, cos, sin, *deep):
            return [
                self._projected(
                    self._decode(
                        x,
                        cos,
                        sin,
                        *deep,
                        attend=lambda qkv, *heads: self._steps.attend(qkv, n, *heads, causal=True),
                    )
                )
            ]

        inputs, key = (
            (x, *self.language_model.rotary_emb(x, positions), *deep),
            ("pages", *ids.shape, len(deep)),
        )
        (vectors,) = self._replayed(key, work, *inputs) if len(x) <= GRAPH_TOKENS else work(*inputs)
        vectors = vectors.unflatten(0, ids.shape)
        vectors = vectors.gather(1, back.unsqueeze(-1).expand_as(vectors))
        return vectors * attention_mask.unsqueeze(-1).to(vectors.dtype)

    @sdpa_kernel(ATTENTION, set_priority=True)
    def _decode(self, x, cos, sin, *deep, attend) -> torch.Tensor:
        """The language model on embedded tokens ``(n_tokens, hidden)``; `deep` is added behind the first layers."""
        cos, sin = cos.flatten(0, 1), sin.flatten(0, 1)
        delta = torch.zeros_like(x)
        for i, layer in enumerate(self.language_model.layers):
            x, delta = layer(x, delta, cos, sin, self._steps, attend)
            if i < len(deep):
                delta = delta + deep[i]
        return self._steps.add_norm(
            x, delta, self.language_model.norm.weight, self.config.text_config.rms_norm_eps, False
        )[1]

    def _projected(self, hidden) -> torch.Tensor:
        return nn.functional.normalize(self.embedding_proj_layer(hidden), dim=-1)

    @torch.inference_mode()
    def page_features(self, pixel_values, image_grid_thw) -> BaseModelOutputWithDeepstackFeatures:
        """Run the vision tower alone, pages of one size together; as `ColQwen3ForRetrieval.page_features`."""
        grids = [tuple(grid) for grid in image_grid_thw.tolist()]
        sizes = [t * h * w for t, h, w in grids]
        patches = pixel_values.split(sizes)
        found: list = [None] * len(grids)
        for grid in dict.fromkeys(grids):
            mine = [i for i, other in enumerate(grids) if other == grid]
            key, stacked = ("vision", len(mine), grid), torch.stack([patches[i] for i in mine])
            small = stacked.shape[:2].numel() <= GRAPH_TOKENS * self.visual.spatial_merge_size**2
            outputs = (
                self._replayed(key, lambda x, grid=grid: self._vision(x, grid), stacked)
                if small
                else self._vision(stacked, grid)
            )
            for row, i in enumerate(mine):
                found[i] = [output[row] for output in outputs]
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=[page[0] for page in found],
            deepstack_features=[[page[layer] for page in found] for layer in range(1, len(found[0]))],
        )

    @sdpa_kernel(ATTENTION, set_priority=True)
    def _vision(self, patches: torch.Tensor, grid: tuple[int, int, int]) -> list[torch.Tensor]:
        """The vision tower on pages of one grid, ``(n, n_patches, patch_dim)``: outputs ``(n, n_visual_tokens, hidden)``, the last layer's first."""
        tower, steps = self.visual, self._steps
        position, cos, sin = self._grid(grid)
        weight = tower.patch_embed.proj.weight
        x = nn.functional.linear(
            patches.to(weight.dtype), weight.flatten(1), tower.patch_embed.proj.bias
        )  # (n, n_patches, hidden)
        deep = []
        x, delta = x.flatten(0, 1), position.expand_as(x).flatten(0, 1)
        for i, block in enumerate(tower.blocks):
            fp8 = isinstance(block.attn.qkv, Fp8Linear)
            x, h = steps.add_layer_norm(x, delta, block.norm1.weight, block.norm1.bias, block.norm1.eps, fp8)
            qkv, heads = block.attn.qkv(h), block.attn.num_heads
            steps.rotate_(qkv, cos, sin, heads, heads)
            attended = block.attn.proj(
                steps.to_fp8(steps.attend(qkv, len(patches), heads, heads, causal=False), fp8)
            )
            x, h = steps.add_layer_norm(
                x, attended, block.norm2.weight, block.norm2.bias, block.norm2.eps, fp8
            )
            delta = block.mlp.linear_fc2(steps.gelu_tanh(block.mlp.linear_fc1(h), fp8))
            if i in tower.deepstack_visual_indexes:
                merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(i)]
                deep.append(self._merged(merger, x + delta))
        outputs = [self._merged(tower.merger, x + delta), *deep]
        return [output.view(len(patches), -1, output.shape[-1]) for output in outputs]

    def _merged(self, merger: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """`merger` on ``(n_patches, hidden)``, step by step, for its products may be in FP8."""
        fp8, to_fp8 = isinstance(merger.linear_fc1, Fp8Linear), self._steps.to_fp8
        x = merger.norm(x.view(-1, merger.hidden_size) if merger.use_postshuffle_norm else x).view(
            -1, merger.hidden_size
        )
        return merger.linear_fc2(to_fp8(merger.act_fn(merger.linear_fc1(to_fp8(x, fp8))), fp8))

    def _grid(self, grid: tuple[int, int, int]) -> tuple:
        """Position embedding ``(n_patches, hidden)`` and rotation of a patch grid, kept: page sizes repeat."""
        if grid not in self._grids:
            tower = self.visual
            sizes = torch.tensor([grid], device=tower.pos_embed.weight.device)
            position = _interpolated(tower, sizes)
            cos, sin = tower.rotary_pos_emb(
                position, get_vision_position_ids(sizes, tower.spatial_merge_size)
            )
            self._grids[grid] = position, cos.view(-1, cos.shape[-1]), sin.view(-1, sin.shape[-1])
        return _latest(self._grids, grid)


def _latest(kept: dict, key):
    """An entry of `kept`, which becomes the youngest; the oldest beyond `KEPT` are let go."""
    kept[key] = kept.pop(key)
    while len(kept) > KEPT:
        del kept[next(iter(kept))]
    return kept[key]


def _steps(on_gpu: bool) -> ModuleType:
    """The module of the steps between products.

    Raises:
        ColqError: a GPU without triton.
    """
    try:
        return importlib.import_module(".steps_triton" if on_gpu else ".steps", __package__)
    except ModuleNotFoundError as error:
        raise ColqError(
            f"the fast encode path needs {error.name}, which torch's CUDA builds for Linux bring along; install it, "
            "or set runtime.encode to plain in the experiment file"
        ) from error


def _interpolated(tower: nn.Module, grids: torch.Tensor) -> torch.Tensor:
    """The learned position grid resampled to a page's, by the tower's own rule."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import get_vision_interpolation_indices_and_weights

    places, weights = get_vision_interpolation_indices_and_weights(
        grids,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=tower.spatial_merge_size,
    )
    return (tower.pos_embed(places) * weights[:, :, None]).sum(1).to(tower.pos_embed.weight.dtype)


def stack(layers: list[nn.Module], backend: str | None, schedules: dict[str, str] | None = None) -> nn.Module:
    """One layer for several of the same input: their outputs side by side."""
    if isinstance(layers[0], PackedLinear):
        packed = PackedLinear.stacked(layers)
        return kernels.build(
            packed, backend, (schedules or {}).get(f"{packed.out_features}x{packed.in_features}")
        )
    if isinstance(layers[0], Fp8Linear):
        made = Fp8Linear.__new__(Fp8Linear)
        nn.Module.__init__(made)
        made.in_features, made.out_features = (
            layers[0].in_features,
            sum(layer.out_features for layer in layers),
        )
        made.register_buffer(
            "weight",
            torch.cat([layer.weight.view(torch.uint8) for layer in layers]).view(torch.float8_e4m3fn),
        )
        made.register_buffer("scale", torch.cat([layer.scale for layer in layers], dim=1))
        made.register_buffer("bias", None)
        return made
    if any(layer.bias is not None for layer in layers):
        raise ColqError(
            "the fast encode path has no biases in the language model; set runtime.encode to plain in the experiment file"
        )
    with torch.device("meta"):
        made = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False)
    made.weight = nn.Parameter(torch.cat([layer.weight.data for layer in layers]), requires_grad=False)
    return made


def page_positions(types: torch.Tensor, grids: torch.Tensor, merge: int) -> torch.Tensor:
    """Time, height and width position of each token, ``(3, n, n_tokens)``, of rows with one picture each and no padding on the left.

    The model's own rule, without its loop over rows, each of which waits for the GPU.

    Args:
        types: 1 where a token is of the picture, ``(n, n_tokens)``.
        grids: patch grids ``(n, 3)``; `merge`² patches make a token.
    """
    picture, index = types == 1, torch.arange(types.shape[1], device=types.device).expand_as(types)
    first, count = picture.int().argmax(1, keepdim=True), picture.sum(1, keepdim=True)
    height, width = (grids[:, 1:] // merge).split(1, dim=1)
    place = index - first
    text = torch.where(index < first, index, place - count + first + torch.maximum(height, width))
    return torch.stack(
        [torch.where(picture, first + offset, text) for offset in (0 * place, place // width, place % width)]
    )


def shifts(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each token comes from when rows are moved to the left edge, padding behind, and the way back, ``(n, n_tokens)`` each."""
    order = mask.argsort(dim=1, descending=True, stable=True)
    return order, order.argsort(dim=1)


def bucket(rows: int, tokens: int, total: int) -> tuple[int, int, int]:
    """The next sizes that are captured: of the mask, rows and tokens to a power of two (beyond 128 tokens to a multiple of
    64), and of the packed sequence in steps of 16 up to an eighth of its size, for these are the rows of every product."""
    tokens = max(16, 1 << (tokens - 1).bit_length()) if tokens <= 128 else -(-tokens // 64) * 64
    step = max(16, (1 << (total - 1).bit_length()) // 16)
    return 1 << (rows - 1).bit_length(), tokens, -(-total // step) * step


def agreement(plain: list[torch.Tensor], other: list[torch.Tensor]) -> dict[str, float]:
    """Cosine between the token embeddings of two runs, ``(n_tokens, dim)`` each: mean, least, and the count."""
    cosines = torch.cat(
        [torch.cosine_similarity(a.double(), b.double(), dim=-1) for a, b in zip(plain, other, strict=True)]
    )
    return {"mean": cosines.mean().item(), "min": cosines.min().item(), "tokens": len(cosines)}
