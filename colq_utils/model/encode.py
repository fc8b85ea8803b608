"""Queries and pages to token embeddings, and the vision tower's share of the work kept for reuse.

The vision tower is the same in every variant, so its output can be computed once and the language
model run on it per variant; the embeddings are the same bits either way (tested).
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from colq_utils.model.loading import Loaded


@torch.inference_mode()
def queries(loaded: Loaded, texts: Sequence[str], batch: int = 32) -> list[torch.Tensor]:
    """Embed texts, batched by length; a tensor ``(n_tokens, dim)`` each, without padding, on the CPU."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = loaded.processor.queries([texts[i] for i in chosen]).to(loaded.device)
        rows = _rows(loaded.model(**inputs).embeddings, inputs["attention_mask"])
        vectors |= zip(chosen, rows, strict=True)
    return [vectors[i] for i in range(len(texts))]


def pages(loaded: Loaded, images: Sequence, batch: int = 8) -> list[torch.Tensor]:
    """Embed page images (PIL); a tensor ``(n_tokens, dim)`` each, on the CPU."""
    stream = stream_pages(loaded, range(len(images)), images.__getitem__, batch)
    return [vectors for _, matrices in stream for vectors in matrices]


@torch.inference_mode()
def stream_pages(loaded: Loaded, keys: Sequence, image: Callable, batch: int) -> Iterator[tuple]:
    """Embed the pages that `image` gives for `keys`; yields keys and their vectors a batch at a time."""

    def prepare(subset):
        return loaded.processor.pages([image(key) for key in subset])

    for subset, inputs in prefetch(prepare, keys, batch):
        inputs = inputs.to(loaded.device)
        yield subset, _searched(loaded, loaded.model(**inputs).embeddings, inputs)


def prefetch(work: Callable, keys: Sequence, batch: int, workers: int | None = None) -> Iterator[tuple]:
    """Slices of `keys` with what `work` makes of them, the next ones worked on in threads meanwhile.

    Decoding and patching a page takes a processor core longer than a GPU needs to encode it. `workers` share
    torch's threads among them; where none are given, half the cores take work without torch.
    """
    share, waiting = max(1, torch.get_num_threads() // (workers or 1)), deque()
    options = dict(initializer=torch.set_num_threads, initargs=(share,)) if workers else {}
    workers = workers or min(8, max(1, (os.cpu_count() or 1) // 2))
    with ThreadPoolExecutor(workers, **options) as pool:
        for start in range(0, len(keys), batch):
            subset = keys[start : start + batch]
            waiting.append((subset, pool.submit(work, subset)))
            if len(waiting) > workers:
                subset, future = waiting.popleft()
                yield subset, future.result()
        for subset, future in waiting:
            yield subset, future.result()


def feature_width(loaded: Loaded) -> int:
    """Numbers that `stream_features` gives per visual token: the last layer's and each deepstack layer's."""
    vision = loaded.model.config.vision_config
    return vision.out_hidden_size * (1 + len(vision.deepstack_visual_indexes))


def stream_features(loaded: Loaded, keys: Sequence, image: Callable, batch: int) -> Iterator[tuple]:
    """Run the vision tower alone on the pages that `image` gives for `keys`.

    Yields keys, tensors ``(n_visual_tokens, feature_width)`` and patch grids ``[time, height, width]`` a
    batch at a time. On a CPU batches run side by side on shares of the threads: a small tower keeps one busy.
    """

    def prepare(subset):
        images = [image(key).convert("RGB") for key in subset]
        return loaded.processor.image_processor(images=images, return_tensors="pt")

    if loaded.device.type != "cpu":
        for subset, inputs in prefetch(prepare, keys, batch):
            yield subset, *_tower(loaded, inputs)
        return
    threads = torch.get_num_threads()
    try:
        for subset, output in prefetch(lambda k: _tower(loaded, prepare(k)), keys, batch, min(4, threads)):
            yield subset, *output
    finally:
        torch.set_num_threads(threads)  # threads made later take the last number set anywhere


@torch.inference_mode()
def _tower(loaded: Loaded, inputs) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Features and patch grids of prepared pages."""
    grids = inputs["image_grid_thw"].tolist()
    inputs = inputs.to(loaded.device)
    output = loaded.model.page_features(inputs["pixel_values"], inputs["image_grid_thw"])
    parts = zip(output.pooler_output, *output.deepstack_features, strict=True)
    return [torch.cat(part, dim=-1).cpu() for part in parts], grids


@torch.inference_mode()
def pages_from_features(loaded: Loaded, stored: Sequence, grids: Sequence[list[int]]) -> list[torch.Tensor]:
    """Embed pages from what `stream_features` gave; the same as `pages` on their images."""
    width = loaded.model.config.vision_config.out_hidden_size
    final, *deeper = zip(*(f.to(loaded.device).split(width, dim=-1) for f in stored), strict=True)
    output = BaseModelOutputWithDeepstackFeatures(pooler_output=final, deepstack_features=deeper)
    inputs = loaded.processor.page_prompts(grids).to(loaded.device)
    return _searched(loaded, loaded.model(**inputs, page_features=output).embeddings, inputs)


def _searched(loaded: Loaded, embeddings: torch.Tensor, inputs) -> list[torch.Tensor]:
    """The vectors a page is searched by: all of its prompt's, or its image tokens' alone."""
    mask = "mm_token_type_ids" if loaded.processor.page_tokens == "image" else "attention_mask"
    return _rows(embeddings, inputs[mask] == 1)


def _rows(embeddings: torch.Tensor, keep: torch.Tensor) -> list[torch.Tensor]:
    """Each row's kept tokens, ``(n, n_tokens, dim)`` by ``(n, n_tokens)``, on the CPU; one copy for all."""
    return [row[mask] for row, mask in zip(embeddings.cpu(), keep.cpu().bool(), strict=True)]
