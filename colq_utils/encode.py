"""Queries and pages to token embeddings, and the vision tower's share of the work kept for reuse.

The vision tower is the same in every variant, so its output can be computed once and the language
model run on it per variant; the embeddings are the same bits either way (tested).
"""
from collections.abc import Sequence

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from .loading import Loaded
from .progress import track


@torch.inference_mode()
def queries(loaded: Loaded, texts: Sequence[str], batch: int = 32) -> list[torch.Tensor]:
    """Embed query texts; returns a tensor ``(n_tokens, dim)`` each, padding removed, on the CPU.

    Texts are batched by length, so that little is padded; the order of the result is that of `texts`.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors: list[torch.Tensor | None] = [None] * len(texts)
    for start in range(0, len(order), batch):
        chosen = order[start:start + batch]
        inputs = loaded.processor.queries([texts[i] for i in chosen]).to(loaded.device)
        embeddings = loaded.model(**inputs).embeddings  # (n, n_tokens, dim)
        for i, row, mask in zip(chosen, embeddings, inputs["attention_mask"].bool(), strict=True):
            vectors[i] = row[mask].cpu()
    return vectors


@torch.inference_mode()
def pages(loaded: Loaded, images: Sequence, batch: int = 8) -> list[torch.Tensor]:
    """Embed page images (PIL); returns a tensor ``(n_tokens, dim)`` each, on the CPU."""
    vectors = []
    for start in range(0, len(images), batch):
        inputs = loaded.processor.pages(list(images[start:start + batch])).to(loaded.device)
        vectors += _kept(loaded, loaded.model(**inputs).embeddings, inputs)
    return vectors


def feature_width(loaded: Loaded) -> int:
    """Numbers a visual token has in `features`: the last layer's and each deepstack layer's."""
    vision = loaded.model.config.vision_config
    return vision.out_hidden_size * (1 + len(vision.deepstack_visual_indexes))


@torch.inference_mode()
def features(loaded: Loaded, images: Sequence) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Run the vision tower alone.

    Returns:
        A tensor ``(n_visual_tokens, feature_width)`` a page, and its patch grid ``[time, height, width]``.
    """
    inputs = loaded.processor.image_processor(images=[i.convert("RGB") for i in images], return_tensors="pt").to(loaded.device)
    output = loaded.model.page_features(inputs["pixel_values"], inputs["image_grid_thw"])
    parts = zip(output.pooler_output, *output.deepstack_features, strict=True)
    return [torch.cat(part, dim=-1).cpu() for part in parts], inputs["image_grid_thw"].tolist()


@torch.inference_mode()
def pages_from_features(loaded: Loaded, stored: Sequence[torch.Tensor], grids: Sequence[list[int]]) -> list[torch.Tensor]:
    """Embed pages from what `features` gave; the same as `pages` on their images."""
    width = loaded.model.config.vision_config.out_hidden_size
    split = [f.to(loaded.device).split(width, dim=-1) for f in stored]
    inputs = loaded.processor.page_prompts(grids).to(loaded.device)
    output = BaseModelOutputWithDeepstackFeatures(
        pooler_output=[s[0] for s in split],
        deepstack_features=[[s[layer] for s in split] for layer in range(1, len(split[0]))])
    return _kept(loaded, loaded.model(**inputs, page_features=output).embeddings, inputs)


def _kept(loaded: Loaded, embeddings: torch.Tensor, inputs) -> list[torch.Tensor]:
    """The vectors a page is searched by: all of its prompt's, or its image tokens' alone."""
    keep = inputs["mm_token_type_ids"] == 1 if loaded.processor.page_tokens == "image" else inputs["attention_mask"] == 1
    return [row[mask].cpu() for row, mask in zip(embeddings, keep.bool(), strict=True)]


def page_batches(items: Sequence, batch: int, label: str):
    """Slices of `items` with progress shown in pages."""
    starts = range(0, len(items), batch)
    for start in track(starts, label, unit="batch"):
        yield items[start:start + batch]
