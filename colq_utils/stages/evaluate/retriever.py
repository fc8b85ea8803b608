"""A loaded variant that embeds a corpus and ranks it for queries, by itself or as mteb asks it to.

mteb's stock path encodes a corpus again for each language and pads it into one fp32 tensor in memory. Here a
page is known by the digest of its image, so a page shared by tasks, languages or variants is decoded, run
through the vision tower and embedded once, and kept in a store on disk.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from mteb.models import ModelMeta
from PIL import Image

from colq_utils.base.errors import ColqError
from colq_utils.base.progress import bar, track
from colq_utils.model import encode
from colq_utils.model.loading import Loaded
from colq_utils.model.maxsim import maxsim
from colq_utils.stages.evaluate.mixed import BaseVectors
from colq_utils.stages.evaluate.store import VectorStore

#: Embeddings of a corpus up to this many bytes (fp32) are kept in memory while its languages are searched.
SMALL = 1 << 28


@dataclass(frozen=True)
class Ranking:
    """Scores ``(n_queries, n_pages)``, lengths of the queries in tokens, digests of the images; `mixed` are
    scores with vectors of the base, by whose queries and whose pages they are.
    """

    scores: torch.Tensor
    query_ids: list[str]
    lengths: list[int]
    page_ids: list[str]
    digests: list[str]
    mixed: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)

    def top(self, k: int) -> dict[str, dict[str, float]]:
        """The best `k` pages of each query with their scores."""
        best = self.scores.topk(min(k, len(self.page_ids)), dim=1)
        rows = zip(self.query_ids, best.indices.tolist(), best.values.tolist(), strict=True)
        return {query: {self.page_ids[i]: v for i, v in zip(pages, values)} for query, pages, values in rows}


class Retriever:
    """A loaded variant: `index` a corpus, then `rank` it.

    Args:
        folder: where page embeddings are kept between tasks (and after a killed run).
        features: the vision tower's output, shared by variants with one tower; None: run the whole model.

    Where `base` is set, the vectors of the base are searched too; the base itself adds its queries to them.
    """

    def __init__(self, loaded: Loaded, folder: Path, features: VectorStore | None, batch: int):
        self.loaded, self.features, self.batch = loaded, features, batch
        self.base: BaseVectors | None = None
        self.pages = VectorStore(folder, loaded.model.config.embed_dim, loaded.model.dtype)
        self.encoded = 0
        self._corpus, self._ids, self._keys, self._in_memory = "", [], [], {}

    def index(self, corpus: Dataset, label: str) -> None:
        """Take up a corpus (id, image) and embed the pages that no earlier one has brought."""
        if corpus._fingerprint == self._corpus:  # languages of a task share one corpus
            return
        raw = corpus.cast_column("image", ImageColumn(decode=False))
        self._ids, self._keys = list(corpus["id"]), [digest(entry) for entry in raw["image"]]
        kept = self._in_memory.keys() & set(self._keys)
        self._in_memory = {key: self._in_memory[key] for key in kept}
        rows = {}
        for row, key in enumerate(self._keys):
            if key not in self.pages:
                rows.setdefault(key, row)
        with bar(f"{self.loaded.variant} {label}", len(rows), "page") as progress:
            for keys, vectors in self._embed(list(rows), lambda key: corpus[rows[key]]["image"]):
                self.pages.extend(keys, vectors)
                self.encoded += len(keys)
                progress.update(len(keys))
        self._corpus = corpus._fingerprint

    def _embed(
        self, keys: list[str], image: Callable[[str], Image.Image]
    ) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        if self.features is None:
            yield from encode.stream_pages(self.loaded, keys, image, self.batch)
            return
        if any(key not in self.features for key in keys):
            with self.features.alone():
                self._add_features([key for key in keys if key not in self.features], image)
        for start in range(0, len(keys), self.batch):
            batch = keys[start : start + self.batch]
            stored = [self.features[key] for key in batch]
            grids = [self.features.note(key, "grid") for key in batch]
            yield batch, encode.pages_from_features(self.loaded, stored, grids)

    def _add_features(self, keys: list[str], image: Callable[[str], Image.Image]) -> None:
        """Run the vision tower on pages and keep what it gives."""
        step = (
            2 if self.loaded.device.type == "cpu" else self.batch
        )  # two pages still fit a processor's cache
        batches = encode.stream_features(self.loaded, keys, image, step)
        for batch, matrices, grids in track(batches, "vision tower", -(-len(keys) // step), "batch"):
            self.features.extend(batch, matrices, grid=grids)

    def rank(self, queries: Dataset) -> Ranking:
        """MaxSim of queries (id, text) with every page of the indexed corpus."""
        texts = list(queries["text"])
        vectors = encode.queries(self.loaded, texts)
        small = sum(map(self.pages.tokens, self._keys)) * self.pages.width * 4 <= SMALL
        page = self._read if small else self.pages.__getitem__
        scores = maxsim(vectors, len(self._keys), lambda i: page(self._keys[i]), device=self.loaded.device)
        if not scores.isfinite().all():
            raise ColqError(
                f"{self.loaded.variant} gives scores that are no numbers; its weights may hold NaN"
            )
        lengths, mixed = [len(tokens) for tokens in vectors], {}
        if self.base is not None and self.base.pages.folder == self.pages.folder:
            self.base.keep(texts, vectors)
        elif self.base is not None:
            mixed = self.base.scores(texts, vectors, self._keys, page, self.loaded.device)
        return Ranking(scores, list(queries["id"]), lengths, self._ids, self._keys, mixed)

    def _read(self, key: str) -> torch.Tensor:
        """A page of a small corpus, which is read once for all languages of a task."""
        if key not in self._in_memory:
            self._in_memory[key] = self.pages[key].float()
        return self._in_memory[key]


class Search:
    """A retriever in mteb's search protocol, for one task; its `rankings` stay, by subset."""

    def __init__(self, retriever: Retriever):
        self.retriever, self.rankings = retriever, {}
        identity = {"name": f"colq/{retriever.loaded.variant}", "modalities": ["image", "text"]}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=identity)

    def index(self, corpus, *, task_metadata, **unused) -> None:
        self.retriever.index(corpus, task_metadata.name)

    def search(self, queries, *, hf_subset: str, top_k: int, **unused) -> dict[str, dict[str, float]]:
        self.rankings[hf_subset] = self.retriever.rank(queries)
        return self.rankings[hf_subset].top(top_k)


def digest(entry: dict) -> str:
    """Identity of a page image as stored in a data set: the digest of its bytes."""
    content = entry["bytes"] if entry.get("bytes") is not None else Path(entry["path"]).read_bytes()
    return hashlib.sha256(content).hexdigest()[:24]
