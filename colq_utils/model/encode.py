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
    """Embed query texts; returns a tensor ``(n_tokens, dim)`` each, padding removed, on the CPU.

    Texts are batched by length, so that little is padded; the order of the result is that of `texts`.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors: list[torch.Tensor | None] = [None] * len(texts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = loaded.processor.queries([texts[i] for i in chosen]).to(loaded.device)
        for i, found in zip(
            chosen, _rows(loaded.model(**inputs).embeddings, inputs["attention_mask"]), strict=True
        ):
            vectors[i] = found
    return vectors


def pages(loaded: Loaded, images: Sequence, batch: int = 8) -> list[torch.Tensor]:
    """Embed page images (PIL); returns a tensor ``(n_tokens, dim)`` each, on the CPU."""
    stream = stream_pages(loaded, range(len(images)), images.__getitem__, batch)
    return [vectors for _, some in stream for vectors in some]


@torch.inference_mode()
def stream_pages(
    loaded: Loaded, keys: Sequence, image: Callable, batch: int
) -> Iterator[tuple[Sequence, list[torch.Tensor]]]:
    """Embed the pages that `image` gives for `keys`; yields keys and vectors a batch at a time."""

    def prepare(some):
        return loaded.processor.pages([image(key) for key in some])

    for some, inputs in _ahead(prepare, keys, batch):
        inputs = inputs.to(loaded.device)
        yield some, _kept(loaded, loaded.model(**inputs).embeddings, inputs)


def _ahead(
    work: Callable, keys: Sequence, batch: int, workers: int | None = None
) -> Iterator[tuple[Sequence, object]]:
    """Slices of `keys` with what `work` makes of them, the next ones worked on in threads meanwhile.

    Decoding and patching a page takes a processor core longer than a GPU needs to encode it.

    Args:
        workers: threads that share torch's threads among them; None: half the cores', for work without torch.
    """
    share = (
        {}
        if workers is None
        else {"initializer": torch.set_num_threads, "initargs": (max(1, torch.get_num_threads() // workers),)}
    )
    workers = workers or min(8, max(1, (os.cpu_count() or 1) // 2))
    with ThreadPoolExecutor(workers, **share) as pool:
        waiting: deque = deque()
        for start in range(0, len(keys), batch):
            some = keys[start : start + batch]
            waiting.append((some, pool.submit(work, some)))
            if len(waiting) > workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def feature_width(loaded: Loaded) -> int:
    """Numbers a visual token has in `features`: the last layer's and each deepstack layer's."""
    vision = loaded.model.config.vision_config
    return vision.out_hidden_size * (1 + len(vision.deepstack_visual_indexes))


def features(loaded: Loaded, images: Sequence) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Run the vision tower alone.

    Returns:
        A tensor ``(n_visual_tokens, feature_width)`` a page, and its patch grid ``[time, height, width]``.
    """
    ((_, matrices, grids),) = stream_features(loaded, range(len(images)), images.__getitem__, len(images))
    return matrices, grids


def stream_features(
    loaded: Loaded, keys: Sequence, image: Callable, batch: int
) -> Iterator[tuple[Sequence, list, list]]:
    """The vision tower's output for the pages that `image` gives for `keys`: keys, matrices and grids a batch at a time.

    On a CPU batches run side by side, each on its share of the threads: a small tower keeps one core busy, not several.
    """

    def prepare(some):
        return loaded.processor.image_processor(
            images=[image(key).convert("RGB") for key in some], return_tensors="pt"
        )

    if loaded.device.type != "cpu":
        for some, inputs in _ahead(prepare, keys, batch):
            yield some, *_tower(loaded, inputs)
        return
    threads = torch.get_num_threads()
    try:
        for some, found in _ahead(lambda some: _tower(loaded, prepare(some)), keys, batch, min(4, threads)):
            yield some, *found
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
def pages_from_features(
    loaded: Loaded, stored: Sequence[torch.Tensor], grids: Sequence[list[int]]
) -> list[torch.Tensor]:
    """Embed pages from what `features` gave; the same as `pages` on their images."""
    width = loaded.model.config.vision_config.out_hidden_size
    split = [f.to(loaded.device).split(width, dim=-1) for f in stored]
    inputs = loaded.processor.page_prompts(grids).to(loaded.device)
    output = BaseModelOutputWithDeepstackFeatures(
        pooler_output=[s[0] for s in split],
        deepstack_features=[[s[layer] for s in split] for layer in range(1, len(split[0]))],
    )
    return _kept(loaded, loaded.model(**inputs, page_features=output).embeddings, inputs)


def _kept(loaded: Loaded, embeddings: torch.Tensor, inputs) -> list[torch.Tensor]:
    """The vectors a page is searched by: all of its prompt's, or its image tokens' alone."""
    return _rows(
        embeddings,
        inputs["mm_token_type_ids" if loaded.processor.page_tokens == "image" else "attention_mask"] == 1,
    )


def _rows(embeddings: torch.Tensor, keep: torch.Tensor) -> list[torch.Tensor]:
    """The kept tokens of each row, ``(n, n_tokens, dim)`` by ``(n, n_tokens)``, on the CPU; one copy for all, for each waits for the GPU."""
    return [row[mask] for row, mask in zip(embeddings.cpu(), keep.cpu().bool(), strict=True)]
