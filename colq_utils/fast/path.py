"""The fast encode path: the embeddings of the plain forward pass without its launch overhead and padding.

The stock forward issues some thirty small kernels a layer; on a large GPU a batch of queries then waits for
the processor and not for the weights. Here products are stacked (`block`) and what lies between them is one
kernel each (`steps_triton`; on a CPU, `steps`). Queries are packed into one sequence, so that nothing is
computed for padding, and run as CUDA graphs (`graphs`). Pages are shifted to the left edge: under causal
attention what stands to the right of a token cannot touch it, so they need no mask. The model is converted in
place, without a second copy of its weights.
"""

import importlib
import math
from functools import partial
from types import ModuleType

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from colq_utils.base.errors import ColqError
from colq_utils.fast.block import Block, stack
from colq_utils.fast.graphs import GRAPH_TOKENS, Graphs, latest
from colq_utils.fast.layout import Packed, bucket, page_positions, shifts
from colq_utils.model.eightbit import Fp8Linear
from colq_utils.model.modeling import ColQwen3ForRetrieval, ColQwen3Output

#: Attention kernels in order of preference; cuDNN's is the fastest on Hopper where it takes the shape.
ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class FastColQwen3(nn.Module):
    """A ColQwen3 on the fast path; takes and returns what `ColQwen3ForRetrieval` does.

    Args:
        model: converted in place, not to be used afterwards.
        backend: the kernel for packed layers; they must be `PackedLinear`.
        schedules: tuned ones by ``out x in`` of a layer, for layers on humming.

    Raises:
        ColqError: a GPU without triton.
    """

    def __init__(
        self, model: ColQwen3ForRetrieval, backend: str | None = None, schedules: dict[str, str] | None = None
    ):
        super().__init__()
        self.config, self.vlm, self.embedding_proj_layer = model.config, model.vlm, model.embedding_proj_layer
        on_gpu = self.embedding_proj_layer.weight.is_cuda
        self._steps, self._graphs = _steps(on_gpu), Graphs(on_gpu)
        self._grids: dict[tuple[int, ...], tuple] = {}
        product, layers = partial(stack, backend=backend, schedules=schedules), model.language_model.layers
        for i, layer in enumerate(layers):
            layers[i] = Block(layer, model.config.text_config, product)

    def unrecorded(self):
        """A context for the same work without graphs, so that the allocator counts what it needs."""
        return self._graphs.paused()

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
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if pixel_values is None and page_features is None:
            return ColQwen3Output(embeddings=self._queries(input_ids, mask))
        features = page_features or self.page_features(pixel_values, image_grid_thw)
        vectors = self._pages(input_ids, mask, image_grid_thw, mm_token_type_ids, features)
        return ColQwen3Output(embeddings=vectors)

    def _queries(self, input_ids, attention_mask) -> torch.Tensor:
        (n, length), total = input_ids.shape, int(attention_mask.sum())
        if not self._graphs.recording or total > GRAPH_TOKENS:
            return self._text(input_ids, attention_mask, total)
        rows, tokens, total = key = bucket(n, length, total)

        def work(ids, mask):
            return [self._text(ids, mask, total)]

        def buffers():
            return torch.zeros(2, rows, tokens, dtype=torch.long, device=input_ids.device).unbind()

        graph, (ids, mask), (embeddings,) = self._graphs.recorded(key, work, buffers)
        if (n, length) != (rows, tokens):
            mask.zero_()
        ids[:n, tokens - length :].copy_(input_ids)
        mask[:n, tokens - length :].copy_(attention_mask)
        graph.replay()
        return embeddings[:n, tokens - length :].clone()

    def _text(self, input_ids, attention_mask, total: int) -> torch.Tensor:
        """Queries packed into one sequence of `total` tokens, at least as many as the mask has."""
        packed = Packed(attention_mask, total)
        x = self.language_model.embed_tokens(input_ids.flatten()[packed.source])  # (total, hidden)
        turns = self.language_model.rotary_emb(x, packed.positions.expand(3, 1, -1))
        attend = partial(self._steps.attend_packed, packed=packed)
        return packed.unpack(self._projected(self._decode(x, *turns, attend=attend)))

    def _pages(self, input_ids, attention_mask, grids, types, features) -> torch.Tensor:
        order, back = shifts(attention_mask)
        ids = input_ids.gather(1, order)
        positions = page_positions(types.gather(1, order), grids, self.visual.spatial_merge_size)
        x = self.language_model.embed_tokens(ids).flatten(0, 1)  # (n_rows * n_tokens, hidden)
        picture = (ids == self.config.image_token_id).view(-1, 1)

        def placed(tokens, visual):
            return tokens.masked_scatter(picture, torch.cat(list(visual)).to(tokens.dtype))

        x = placed(x, features.pooler_output)
        deep = [placed(torch.zeros_like(x), layer) for layer in features.deepstack_features]
        attend = partial(self._steps.attend, rows=len(ids), causal=True)

        def work(*inputs):
            return [self._projected(self._decode(*inputs, attend=attend))]

        inputs = (x, *self.language_model.rotary_emb(x, positions), *deep)
        (vectors,) = self._graphs.replayed(("pages", *ids.shape, len(deep)), len(x), work, *inputs)
        vectors = vectors.unflatten(0, ids.shape)
        vectors = vectors.gather(1, back.unsqueeze(-1).expand_as(vectors))
        return vectors * attention_mask.unsqueeze(-1).to(vectors.dtype)

    @sdpa_kernel(ATTENTION, set_priority=True)
    def _decode(self, x, cos, sin, *deep, attend) -> torch.Tensor:
        """The language model on ``(n_tokens, hidden)``; `deep` is added after the first layers."""
        cos, sin = cos.flatten(0, 1), sin.flatten(0, 1)
        delta = torch.zeros_like(x)
        for i, layer in enumerate(self.language_model.layers):
            x, delta = layer(x, delta, cos, sin, self._steps, attend)
            if i < len(deep):
                delta = delta + deep[i]
        weight, eps = self.language_model.norm.weight, self.config.text_config.rms_norm_eps
        return self._steps.add_norm(x, delta, weight, eps, False)[1]

    def _projected(self, hidden) -> torch.Tensor:
        return nn.functional.normalize(self.embedding_proj_layer(hidden), dim=-1)

    @torch.inference_mode()
    def page_features(self, pixel_values, image_grid_thw) -> BaseModelOutputWithDeepstackFeatures:
        """Run the vision tower alone, pages of one size together; as `ColQwen3ForRetrieval.page_features`."""
        grids = [tuple(grid) for grid in image_grid_thw.tolist()]
        patches = pixel_values.split([math.prod(grid) for grid in grids])
        pages: dict[int, list[torch.Tensor]] = {}
        for grid in dict.fromkeys(grids):
            rows = [i for i, other in enumerate(grids) if other == grid]
            stacked = torch.stack([patches[i] for i in rows])  # (n_rows, n_patches, patch_dim)
            n_tokens = stacked.shape[:2].numel() // self.visual.spatial_merge_size**2
            work, key = partial(self._vision, grid=grid), ("vision", len(rows), grid)
            outputs = self._graphs.replayed(key, n_tokens, work, stacked)
            pages |= {i: [output[row] for output in outputs] for row, i in enumerate(rows)}
        pooled, *deep = zip(*(pages[i] for i in range(len(grids))), strict=True)
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=list(pooled), deepstack_features=[list(layer) for layer in deep]
        )

    @sdpa_kernel(ATTENTION, set_priority=True)
    def _vision(self, patches: torch.Tensor, grid: tuple[int, int, int]) -> list[torch.Tensor]:
        """Pages of one grid ``(n, n_patches, patch_dim)`` to ``(n, n_tokens, hidden)``, last layer first."""
        tower, steps = self.visual, self._steps
        position, cos, sin = self._grid(grid)
        stem = tower.patch_embed.proj
        x = nn.functional.linear(patches.to(stem.weight.dtype), stem.weight.flatten(1), stem.bias)
        x, delta = x.flatten(0, 1), position.expand_as(x).flatten(0, 1)  # (n * n_patches, hidden)
        deep = []
        for i, block in enumerate(tower.blocks):
            attention, heads = block.attn, block.attn.num_heads
            fp8 = isinstance(attention.qkv, Fp8Linear)
            x, h = steps.add_layer_norm(x, delta, block.norm1.weight, block.norm1.bias, block.norm1.eps, fp8)
            qkv = attention.qkv(h)
            steps.rotate_(qkv, cos, sin, heads, heads)
            attended = attention.proj(steps.to_fp8(steps.attend(qkv, len(patches), heads, heads, False), fp8))
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
        x = x.view(-1, merger.hidden_size) if merger.use_postshuffle_norm else x
        x = merger.norm(x).view(-1, merger.hidden_size)
        return merger.linear_fc2(to_fp8(merger.act_fn(merger.linear_fc1(to_fp8(x, fp8))), fp8))

    def _grid(self, grid: tuple[int, int, int]) -> tuple:
        """Position embedding ``(n_patches, hidden)`` and rotation of a grid, kept: page sizes repeat."""
        if grid not in self._grids:
            tower = self.visual
            size = torch.tensor([grid], device=tower.pos_embed.weight.device)
            places, weights = get_vision_interpolation_indices_and_weights(
                size,
                num_grid_per_side=tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=tower.spatial_merge_size,
            )
            position = (tower.pos_embed(places) * weights[:, :, None]).sum(1)
            position = position.to(tower.pos_embed.weight.dtype)
            turns = tower.rotary_pos_emb(position, get_vision_position_ids(size, tower.spatial_merge_size))
            self._grids[grid] = position, *(turn.view(-1, turn.shape[-1]) for turn in turns)
        return latest(self._grids, grid)


def _steps(on_gpu: bool) -> ModuleType:
    """The module of the steps between products.

    Raises:
        ColqError: a GPU without triton.
    """
    try:
        return importlib.import_module(".steps_triton" if on_gpu else ".steps", __package__)
    except ModuleNotFoundError as error:
        raise ColqError(
            f"the fast encode path needs {error.name}, which torch's CUDA builds for Linux bring along; "
            "install it, or set runtime.encode to plain in the experiment file"
        ) from error


def agreement(plain: list[torch.Tensor], other: list[torch.Tensor]) -> dict[str, float]:
    """Mean, least and number of the cosines between two runs' token embeddings, ``(n_tokens, dim)`` each."""
    pairs = zip(plain, other, strict=True)
    cosines = torch.cat([torch.cosine_similarity(a.double(), b.double(), dim=-1) for a, b in pairs])
    return {"mean": cosines.mean().item(), "min": cosines.min().item(), "tokens": len(cosines)}
