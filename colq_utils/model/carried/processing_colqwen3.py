"""The processor of a ColQwen3 in a file that travels with its weights.

``AutoProcessor.from_pretrained(folder, trust_remote_code=True)`` needs nothing else. Prompts and the pixel
budget are read from ``processor_config.json``. Pages are resized by Pillow whether or not torchvision is
installed, so that a page gives the same patches everywhere.

Apache-2.0, from ColQ. Needs transformers 5.16 or later.
"""

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

IMAGE_TOKEN = "<|image_pad|>"
PAGE_PREFIX = f"<|im_start|>user\n<|vision_start|>{IMAGE_TOKEN}<|vision_end|>Describe the image."
PAGE_SUFFIX = "<|im_end|><|endoftext|>"
#: Ten augmentation tokens, room in which a query can gather context (ColBERT's [MASK]).
QUERY_SUFFIX = "<|endoftext|>" * 10
#: Most image tokens of a page where nothing else is asked for, as published.
MOST_VISUAL_TOKENS = 1280


class ColQwen3Processor(ProcessorMixin):
    """Tokenizer and image processor of a ColQwen3.

    Args:
        image_processor: patches and normalises pages; its ``size`` holds the pixel budget.
        tokenizer: padded on the left.
        visual_prompt_prefix, visual_prompt_suffix, query_prefix, query_suffix: prompts; None: as published.
        page_tokens: ``all`` or ``image``; the model reads it from config.json, here it is only kept.
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
        self.visual_prompt_prefix = PAGE_PREFIX if visual_prompt_prefix is None else visual_prompt_prefix
        self.visual_prompt_suffix = PAGE_SUFFIX if visual_prompt_suffix is None else visual_prompt_suffix
        self.query_prefix = "" if query_prefix is None else query_prefix
        self.query_suffix = QUERY_SUFFIX if query_suffix is None else query_suffix
        self.page_tokens = page_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        tokenizer.padding_side = "left"

    @classmethod
    def from_pretrained(cls, path, max_num_visual_tokens: int | None = None, **options):
        """As `ProcessorMixin.from_pretrained`.

        Args:
            max_num_visual_tokens: most image tokens of a page; None: the checkpoint's own, but at most 1,280.
        """
        processor = super().from_pretrained(path, **options)
        source = {key: options[key] for key in ("revision", "cache_dir", "token") if key in options}
        images = Qwen2VLImageProcessorPil.from_pretrained(path, **source)
        tile, size = (images.patch_size * images.merge_size) ** 2, images.size
        most = min(size["longest_edge"], MOST_VISUAL_TOKENS * tile)
        most = most if max_num_visual_tokens is None else max_num_visual_tokens * tile
        images.size = {"shortest_edge": size["shortest_edge"], "longest_edge": most}
        processor.image_processor = images
        return processor

    def process_queries(self, texts: list[str]) -> BatchFeature:
        """``input_ids`` and ``attention_mask``, both ``(n_queries, n_tokens)``, left-padded."""
        prompts = [self.query_prefix + text.strip() + self.query_suffix for text in texts]
        return self._tokens(prompts)

    def process_images(self, images: list) -> BatchFeature:
        """Model inputs of page images (PIL).

        Returns ``pixel_values`` ``(n_patches, patch_dim)``, ``image_grid_thw`` ``(n_pages, 3)`` and
        ``input_ids``, ``attention_mask``, ``mm_token_type_ids``, each ``(n_pages, n_tokens)``.
        """
        pages = self.image_processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        merge, prompt = (
            self.image_processor.merge_size**2,
            self.visual_prompt_prefix + self.visual_prompt_suffix,
        )
        counts = pages["image_grid_thw"].prod(-1) // merge  # (n_pages,)
        tokens = self._tokens([prompt.replace(IMAGE_TOKEN, IMAGE_TOKEN * n) for n in counts.tolist()])
        tokens["mm_token_type_ids"] = (
            tokens["input_ids"] == self.image_token_id
        ).int()  # (n_pages, n_tokens)
        return BatchFeature({**tokens, **pages})

    def __call__(self, images=None, text=None, **unused) -> BatchFeature:
        """Pages or queries, not both.

        Raises:
            ValueError: both are given, or neither.
        """
        if (images is None) == (text is None):
            raise ValueError("give either images or text")
        if images is not None:
            return self.process_images(images if isinstance(images, (list, tuple)) else [images])
        return self.process_queries([text] if isinstance(text, str) else text)

    def score_multi_vector(self, queries, pages, batch_size: int = 32, device=None) -> torch.Tensor:
        """MaxSim: for each token of a query its best product with any token of the page, summed, in fp32.

        Args:
            queries, pages: a tensor ``(n_tokens, dim)`` each, or one padded with zeros, which do not count.
            batch_size: how many queries and pages are multiplied at once.

        Returns:
            ``(n_queries, n_pages)``, float32, on the CPU.
        """
        scores = torch.zeros(len(queries), len(pages))
        for p in range(0, len(pages), batch_size):
            stacked = _padded(pages[p : p + batch_size], device)  # (n_pages, n_page_tokens, dim)
            empty = (stacked == 0).all(-1)[None, :, None]  # (1, n_pages, 1, n_page_tokens)
            for q in range(0, len(queries), batch_size):
                asked = _padded(queries[q : q + batch_size], device)  # (n_queries, n_query_tokens, dim)
                products = torch.einsum("qid,pjd->qpij", asked, stacked).masked_fill(empty, float("-inf"))
                best = products.amax(-1)  # (n_queries, n_pages, n_query_tokens)
                scores[q : q + batch_size, p : p + batch_size] = best.sum(-1).cpu()
        return scores

    def _tokens(self, prompts: list[str]) -> BatchFeature:
        options = {"padding": "longest", "return_tensors": "pt", "return_token_type_ids": False}
        return BatchFeature(self.tokenizer(prompts, **options))


def _padded(vectors, device) -> torch.Tensor:
    """Tensors ``(n_tokens, dim)`` of several lengths as one, ``(n, n_longest, dim)``, in fp32."""
    return pad_sequence([torch.as_tensor(v).to(device).float() for v in vectors], batch_first=True)
