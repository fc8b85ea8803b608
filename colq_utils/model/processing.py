"""Text and page images to model inputs, without torchvision and without remote code.

Qwen3-VL's own processor cannot be built where torchvision is missing (it needs a video processor);
retrieval never sees a video, so this one has none. Prompts are those of the published processor and
are read from the checkpoint's ``processor_config.json`` where they stand there.
"""

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from colq_utils.base.errors import ColqError
from colq_utils.model.modeling import ColQwen3Config

IMAGE_TOKEN = "<|image_pad|>"
PAGE_PREFIX = f"<|im_start|>user\n<|vision_start|>{IMAGE_TOKEN}<|vision_end|>Describe the image."
PAGE_SUFFIX = "<|im_end|><|endoftext|>"
#: Most image tokens of a page where nothing else is asked for; the published processor never goes beyond.
MOST_VISUAL_TOKENS = 1280
#: Ten augmentation tokens, room in which a query can gather context (ColBERT's [MASK] trick).
QUERY_SUFFIX = "<|endoftext|>" * 10


class ColQwen3Processor(ProcessorMixin):
    """Tokenizer, padded on the left as published, and image processor, whose ``size`` holds the pixel budget.

    Args:
        page_tokens: ``"all"`` keeps the vectors of all prompt tokens of a page (as published), ``"image"``
            those of the image tokens alone.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        visual_prompt_prefix: str | None = None,
        visual_prompt_suffix: str | None = None,
        query_prefix: str | None = None,
        query_suffix: str | None = None,
        page_tokens: str = "all",
        **unused,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        if page_tokens not in ("all", "image"):
            raise ValueError(f"page_tokens is 'all' or 'image', not {page_tokens!r}")
        self.visual_prompt_prefix = PAGE_PREFIX if visual_prompt_prefix is None else visual_prompt_prefix
        self.visual_prompt_suffix = PAGE_SUFFIX if visual_prompt_suffix is None else visual_prompt_suffix
        self.query_prefix = "" if query_prefix is None else query_prefix
        self.query_suffix = QUERY_SUFFIX if query_suffix is None else query_suffix
        self.page_tokens = page_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        tokenizer.padding_side = "left"

    def queries(self, texts: list[str]) -> BatchFeature:
        """``input_ids`` and ``attention_mask``, both ``(n_queries, n_tokens)``, left-padded."""
        return self._tokens([self.query_prefix + text.strip() + self.query_suffix for text in texts])

    def _tokens(self, prompts: list[str]) -> BatchFeature:
        options = dict(padding="longest", return_tensors="pt", return_token_type_ids=False)
        return BatchFeature(self.tokenizer(prompts, **options))

    def pages(self, images: list) -> BatchFeature:
        """Model inputs of page images (PIL).

        Returns ``pixel_values`` ``(n_patches, patch_dim)``, ``image_grid_thw`` ``(n_pages, 3)`` and
        ``input_ids``, ``attention_mask``, ``mm_token_type_ids``, each ``(n_pages, n_tokens)``.
        """
        images = [image.convert("RGB") for image in images]
        features = self.image_processor(images=images, return_tensors="pt")
        return BatchFeature({**self.page_prompts(features["image_grid_thw"].tolist()), **features})

    def page_prompts(self, grids: list[list[int]]) -> BatchFeature:
        """The text side of pages whose patch grids ``[time, height, width]`` are known."""
        merge = self.image_processor.merge_size**2
        prompt = self.visual_prompt_prefix + self.visual_prompt_suffix
        prompts = [prompt.replace(IMAGE_TOKEN, IMAGE_TOKEN * (t * h * w // merge)) for t, h, w in grids]
        tokens = self._tokens(prompts)
        tokens["mm_token_type_ids"] = (tokens["input_ids"] == self.image_token_id).int()
        return BatchFeature({**tokens, "image_grid_thw": torch.tensor(grids)})

    def __call__(self, images=None, text=None, **unused) -> BatchFeature:
        """The interface that quantizers and servers expect: pages or queries, not both."""
        if (images is None) == (text is None):
            raise ValueError("give either images or text")
        if images is not None:
            return self.pages(images if isinstance(images, list) else [images])
        return self.queries([text] if isinstance(text, str) else text)


def from_pretrained(
    path: str, revision: str | None = None, max_visual_tokens: int | None = None
) -> ColQwen3Processor:
    """The processor of a checkpoint (folder or hub id); ColqError if its files are not there or damaged.

    Args:
        max_visual_tokens: most image tokens per page; None: the checkpoint's limit, or the published if less.
    """
    try:  # remote code is never asked for and never run
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(path, revision=revision)
        config, _ = ColQwen3Processor.get_processor_dict(path, revision=revision)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ColqError(
            f"{path}: tokenizer or image processor cannot be read ({reason}); fetch it again"
        ) from None
    tile, size = (image_processor.patch_size * image_processor.merge_size) ** 2, image_processor.size
    own_limit = min(size["longest_edge"], MOST_VISUAL_TOKENS * tile)
    limit = own_limit if max_visual_tokens is None else max_visual_tokens * tile
    image_processor.size = {"shortest_edge": size["shortest_edge"], "longest_edge": limit}
    names = ("visual_prompt_prefix", "visual_prompt_suffix", "query_prefix", "query_suffix", "page_tokens")
    prompts = {name: config[name] for name in names if name in config}
    return ColQwen3Processor(image_processor, tokenizer, **prompts)


AutoProcessor.register(ColQwen3Config, ColQwen3Processor, exist_ok=True)
