"""Eight queries and eight pages of MiniVidore, and what ColQ makes of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.data import minividore
from colq_utils.fast import load
from colq_utils.model import encode
from colq_utils.model.maxsim import maxsim
from studies.interop.folders import Checkpoint

COUNT = 8


@dataclass(frozen=True)
class Reference:
    """ColQ's own embeddings, ``(n_tokens, dim)`` each, and its scores ``(n_queries, n_pages)``."""

    queries: list[torch.Tensor]
    pages: list[torch.Tensor]
    scores: torch.Tensor


def write(folder: Path) -> Path:
    """Write ``queries.json`` and ``page-<i>.png``: phrases, and the pages they stand on."""
    benchmark = minividore.load()
    phrases = benchmark.queries[benchmark.queries.task == "Phrases"]
    chosen = phrases.iloc[:: len(phrases) // COUNT].head(COUNT)
    pages = benchmark.pages.set_index("page_id").loc[[relevant[0] for relevant in chosen.relevant]]
    with files.atomic(folder, folder=True) as target:
        files.write_json(target / "queries.json", chosen.text.tolist())
        for i, (_, page) in enumerate(pages.iterrows()):
            minividore.image(page).save(target / f"page-{i}.png")
    return folder


def reference(experiment: Experiment, checkpoint: Checkpoint, given: Path) -> Reference:
    """Embed the inputs in a folder with ColQ."""
    texts = json.loads((given / "queries.json").read_text())
    images = [Image.open(path).convert("RGB") for path in sorted(given.glob("page-*.png"))]
    loaded = load.load(experiment, checkpoint.variant, checkpoint.export or "auto_round")
    queries, pages = encode.queries(loaded, texts), encode.pages(loaded, images)
    return Reference(queries, pages, maxsim(queries, len(pages), pages.__getitem__))
