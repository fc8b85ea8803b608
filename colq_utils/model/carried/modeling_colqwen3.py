"""ColQwen3 in a file that travels with its weights.

``AutoModel.from_pretrained(folder, trust_remote_code=True)`` needs nothing else: a Qwen3-VL backbone, a
linear projection and L2 normalisation, one vector per token. The module tree gives exactly the published
tensor names: ``vlm.model.language_model.*``, ``vlm.model.visual.*`` and ``embedding_proj_layer.*``.
An ``lm_head`` that a checkpoint may carry is not loaded.

Apache-2.0, from ColQ. Needs transformers 5.16 or later.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.utils import ModelOutput

#: Names under which checkpoints store the width of the token embedding.
WIDTHS = ("embed_dim", "dims", "dim", "projection_dim", "colbert_dim", "embedding_dim")
#: What stands in ``vlm_config`` where a checkpoint nests it.
NESTED = ("text_config", "vision_config", "image_token_id", "video_token_id")
NESTED += ("vision_start_token_id", "vision_end_token_id")


@strict
class ColQwen3Config(Qwen3VLConfig):
    """That of Qwen3-VL, the width of the embedding, and which tokens of a page are searched.

    ``projection_bias`` says whether the checkpoint stores a bias of the projection. ``page_tokens`` is
    ``all``, or ``image`` where a page is searched by its image tokens alone.
    """

    model_type = "colqwen3"

    embed_dim: int = 320
    projection_bias: bool = False
    page_tokens: str = "all"
    initializer_range: float = 0.02

    def __init__(self, **fields):
        nested = fields.pop("vlm_config", None) or {}
        for key in NESTED:
            if key in nested:
                fields.setdefault(key, nested[key])
        for key in WIDTHS[1:]:
            if key in fields:
                fields.setdefault("embed_dim", fields.pop(key))
        super().__init__(**fields)


@dataclass
class ColQwen3Output(ModelOutput):
    """Token embeddings, ``(n, n_tokens, embed_dim)``: unit length, zero where nothing is searched."""

    embeddings: torch.Tensor | None = None


class _Backbone(nn.Module):
    """The ``vlm`` level of the published names: Qwen3-VL without its language-model head."""

    def __init__(self, config: ColQwen3Config):
        super().__init__()
        self.model = Qwen3VLModel(config)


class ColQwen3(PreTrainedModel):
    """Late-interaction retriever over page images and text queries."""

    config_class = ColQwen3Config
    base_model_prefix = ""
    input_modalities = ("image", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock"]
    _keys_to_ignore_on_load_unexpected = [r"^vlm\.lm_head\.", r"^lm_head\.", r"\.g_idx$"]

    def __init__(self, config: ColQwen3Config):
        super().__init__(config)
        self.vlm = _Backbone(config)
        width = config.text_config.hidden_size
        self.embedding_proj_layer = nn.Linear(width, config.embed_dim, bias=config.projection_bias)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.model.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.model.language_model.embed_tokens = value

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
    ) -> ColQwen3Output:
        """Embed queries, or pages.

        Args:
            input_ids, attention_mask, mm_token_type_ids: ``(n, n_tokens)``; 1 in the last: an image token.
            pixel_values: ``(n_patches, patch_dim)``, the pages' patches one after the other.
            image_grid_thw: ``(n_pages, 3)``, patches in time, height and width.
            return_dict, use_cache: accepted because callers pass them; nothing is decoded or cached.
        """
        if pixel_values is not None and mm_token_type_ids is None:
            mm_token_type_ids = (input_ids == self.config.image_token_id).int()  # (n, n_tokens)
        hidden = self.vlm.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            use_cache=False,
        ).last_hidden_state  # (n, n_tokens, hidden)
        vectors = self.embedding_proj_layer(hidden.to(self.embedding_proj_layer.weight.dtype))
        vectors = nn.functional.normalize(vectors, dim=-1)  # (n, n_tokens, embed_dim)
        if attention_mask is not None:
            vectors = vectors * attention_mask.unsqueeze(-1).to(vectors.dtype)  # zero where padded
        if pixel_values is not None and self.config.page_tokens == "image":
            vectors = vectors * mm_token_type_ids.unsqueeze(-1).to(vectors.dtype)  # zero but for image tokens
        return ColQwen3Output(embeddings=vectors)


# The second name in "architectures", by which sentence-transformers recognises a retriever.
ColQwen3ForRetrieval = ColQwen3
