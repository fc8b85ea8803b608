"""Sizes and special tokens of the embedded ColQwen3, and the config.json of its checkpoint."""

from dataclasses import dataclass

ROWS, COLUMNS = 12, 22  # visual tokens of a region, 32 x 32 pixels each
HEIGHT, WIDTH = 32 * ROWS, 32 * COLUMNS  # pixels
PAGE_TOKENS = ROWS * COLUMNS
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PAD, VISION_START, VISION_END, IMAGE, VIDEO = 0, 3, 4, 5, 6  # ids of the special tokens


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the model; the defaults are those of the embedded checkpoint."""

    vocab_size: int = 6144
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 640
    rope_theta: float = 10_000.0
    mrope_section: tuple[int, int, int] = (12, 10, 10)
    vision_hidden: int = 256
    vision_depth: int = 6
    vision_heads: int = 4
    vision_mlp: int = 1024
    vision_positions: int = 1024
    deepstack: tuple[int, ...] = (1, 3)
    embed_dim: int = 128

    def published(self) -> dict:
        """Return the checkpoint's config.json in the published layout."""
        text = dict(
            model_type="qwen3_vl_text",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            hidden_act="silu",
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            attention_bias=False,
            pad_token_id=PAD,
            rope_parameters=dict(
                rope_type="default",
                rope_theta=self.rope_theta,
                mrope_section=list(self.mrope_section),
                mrope_interleaved=True,
            ),
        )
        vision = dict(
            model_type="qwen3_vl_vision",
            depth=self.vision_depth,
            hidden_size=self.vision_hidden,
            intermediate_size=self.vision_mlp,
            num_heads=self.vision_heads,
            in_channels=3,
            patch_size=16,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=self.hidden,
            num_position_embeddings=self.vision_positions,
            deepstack_visual_indexes=list(self.deepstack),
            hidden_act="gelu_pytorch_tanh",
        )
        return dict(
            model_type="colqwen3",
            architectures=["ColQwen3"],
            embed_dim=self.embed_dim,
            dtype="bfloat16",
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
            tie_word_embeddings=True,
            text_config=text,
            vision_config=vision,
        )
