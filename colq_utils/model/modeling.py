"""ColQwen3: a Qwen3-VL backbone, a linear projection and L2 normalisation, one vector per token.

Native, so that no checkpoint needs remote code. The module tree gives exactly the published tensor names; the
unused ``lm_head`` of the published checkpoints (1.2 GB in the 8B) has no place here and is not loaded.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_utils import PreTrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.utils import ModelOutput

from colq_utils.base.errors import ColqError

#: Names under which published checkpoints store the width of the token embedding.
DIMENSION_KEYS = ("embed_dim", "dims", "dim", "projection_dim", "colbert_dim", "embedding_dim")
#: What is read of a nested ``vlm_config``.
SHARED_KEYS = {f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end")}
SHARED_KEYS |= {"text_config", "vision_config"}


@strict
class ColQwen3Config(Qwen3VLConfig):
    """Qwen3-VL's, flat (as published) or in a ``vlm_config``, and the width under any of `DIMENSION_KEYS`."""

    model_type = "colqwen3"
    embed_dim: int = 320
    projection_bias: bool = False
    initializer_range: float = 0.02

    def __init__(self, **fields):
        nested = fields.pop("vlm_config", None) or {}
        fields = {key: nested[key] for key in nested.keys() & SHARED_KEYS} | fields
        widths = [fields.pop(key) for key in DIMENSION_KEYS if key in fields]
        super().__init__(**fields, **({"embed_dim": widths[0]} if widths else {}))


def configuration(fields: dict) -> ColQwen3Config:
    """The configuration of a config.json's fields; ColqError for values that cannot be, or none of text."""
    if "text_config" not in fields and "text_config" not in (fields.get("vlm_config") or {}):
        raise ColqError("config.json has no text_config, so it is not of a ColQwen3; fetch it again")
    try:
        return ColQwen3Config(**fields)
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ColqError(
            f"config.json is not of a ColQwen3: {reason}; correct it, or fetch it again"
        ) from None


@dataclass
class ColQwen3Output(ModelOutput):
    """Token embeddings, ``(n, n_tokens, embed_dim)``, unit length, zero where padded."""

    embeddings: torch.Tensor | None = None


class _Backbone(nn.Module):
    """The ``vlm`` level of the published names; Qwen3-VL without its language-model head."""

    def __init__(self, config: ColQwen3Config):
        super().__init__()
        self.model = Qwen3VLModel(config)


class ColQwen3ForRetrieval(PreTrainedModel):
    """Late-interaction retriever over page images and text queries."""

    config_class = ColQwen3Config
    base_model_prefix = ""
    input_modalities = ("image", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock"]
    _keys_to_ignore_on_load_unexpected = [r"^vlm\.lm_head\.", r"^lm_head\."]

    def __init__(self, config: ColQwen3Config):
        super().__init__(config)
        self.vlm = _Backbone(config)
        width = config.text_config.hidden_size
        self.embedding_proj_layer = nn.Linear(width, config.embed_dim, bias=config.projection_bias)
        self.post_init()

    @property
    def language_model(self) -> nn.Module:
        """The text tower, the only one that is quantized."""
        return self.vlm.model.language_model

    @property
    def visual(self) -> nn.Module:
        """The vision tower, left in 16 bits."""
        return self.vlm.model.visual

    def page_features(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor):
        """Run the vision tower alone; `forward` takes what it gives as `page_features`.

        Args:
            pixel_values: ``(n_patches, channels * temporal * patch * patch)``.
            image_grid_thw: ``(n_pages, 3)``, patches in time, height and width.

        Returns:
            ``pooler_output`` and each of ``deepstack_features``: ``(n_visual_tokens, hidden)`` per page.
        """
        return self.vlm.model.get_image_features(pixel_values, image_grid_thw, return_dict=True)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        page_features=None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
    ) -> ColQwen3Output:
        """Embed queries, or pages as pixels or features; quantizers pass `use_cache`, nothing is cached."""
        hidden = self.vlm.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=None if page_features is None else {"image": page_features},
            use_cache=False,
        ).last_hidden_state.to(self.embedding_proj_layer.weight.dtype)  # (n, n_tokens, hidden)
        vectors = nn.functional.normalize(
            self.embedding_proj_layer(hidden), dim=-1
        )  # (n, n_tokens, embed_dim)
        if attention_mask is not None:
            vectors = vectors * attention_mask.unsqueeze(-1).to(vectors.dtype)
        return ColQwen3Output(embeddings=vectors)


AutoConfig.register("colqwen3", ColQwen3Config, exist_ok=True)
AutoModel.register(ColQwen3Config, ColQwen3ForRetrieval, exist_ok=True)
