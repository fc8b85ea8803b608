"""A loaded variant as mteb's search protocol sees it: index a corpus, search it.

mteb's stock path encodes a corpus again for each language and pads it into one fp32 tensor in memory. Here a page is known
by the digest of its image, so a page shared by tasks, languages or variants is decoded, run through the vision tower and
embedded once, and kept in a store on disk.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from datasets import Image as ImageColumn
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from PIL import Image

from colq_utils.base.progress import bar, track
from colq_utils.model import encode
from colq_utils.model.loading import Loaded
from colq_utils.model.maxsim import maxsim
from colq_utils.stages.evaluate.store import VectorStore

#: Embeddings of a corpus up to this many bytes (fp32) are kept in memory while its languages are searched.
SMALL = 1 << 28


class Retriever:
    """A loaded variant as mteb sees it: `index` a corpus, `search` it.

    Args:
        folder: where page embeddings are kept between tasks (and after a killed run).
        features: store of the vision tower's output, shared by variants with one tower; None to run the whole model.
    """

    def __init__(self, loaded: Loaded, revision: str, folder: Path, features: VectorStore | None, batch: int):
        self.loaded, self.features, self.batch = loaded, features, batch
        self.pages = VectorStore(folder, loaded.model.config.embed_dim, loaded.model.dtype)
        self.encoded, self.rankings, self._corpora, self._read, self._keys, self._ids, self._small = (
            0,
            {},
            {},
            {},
            [],
            [],
            True,
        )
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": f"colq/{loaded.variant}",
                "revision": revision,
                "modalities": ["image", "text"],
                "similarity_fn_name": ScoringFunction.MAX_SIM,
                "embed_dim": loaded.model.config.embed_dim,
            }
        )

    def index(
        self, corpus, *, task_metadata, hf_split, hf_subset, encode_kwargs, num_proc=None, **unused
    ) -> None:
        """Embed the pages of `corpus` that no earlier task has brought."""
        self._ids, self._keys = self._identify(corpus)
        kept = set(self._keys)
        self._read = {key: page for key, page in self._read.items() if key in kept}
        rows = {key: row for row, key in reversed(list(enumerate(self._keys))) if key not in self.pages}
        missing = sorted(rows, key=rows.get)
        image, label = lambda key: corpus[rows[key]]["image"], f"{self.loaded.variant} {task_metadata.name}"
        with bar(label, len(missing), "page") as progress:
            for keys, vectors in self._embed(missing, image):
                self.pages.extend(keys, vectors)
                self.encoded += len(keys)
                progress.update(len(keys))
        self._small = sum(map(self.pages.tokens, self._keys)) * self.pages.width * 4 <= SMALL

    def _identify(self, corpus) -> tuple[list[str], list[str]]:
        """Ids and image digests of a corpus, remembered: languages of a task share one corpus."""
        if corpus._fingerprint not in self._corpora:
            raw = corpus.cast_column("image", ImageColumn(decode=False))
            self._corpora[corpus._fingerprint] = list(corpus["id"]), [digest(entry) for entry in raw["image"]]
        return self._corpora[corpus._fingerprint]

    def _embed(
        self, keys: list[str], image: Callable[[str], Image.Image]
    ) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        if self.features is None:
            yield from encode.stream_pages(self.loaded, keys, image, self.batch)
            return
        if any(key not in self.features for key in keys):
            with self.features.alone():
                self._add_features([key for key in keys if key not in self.features], image)
        for some in (keys[i : i + self.batch] for i in range(0, len(keys), self.batch)):
            stored, grids = (
                [self.features[key] for key in some],
                [self.features.note(key, "grid") for key in some],
            )
            yield some, encode.pages_from_features(self.loaded, stored, grids)

    def _add_features(self, new: list[str], image: Callable[[str], Image.Image]) -> None:
        """Run the vision tower on the pages `new` and keep what it gives."""
        step = (
            2 if self.loaded.device.type == "cpu" else self.batch
        )  # two pages still fit a processor's cache
        for some, matrices, grids in track(
            encode.stream_features(self.loaded, new, image, step),
            "vision tower",
            -(-len(new) // step),
            "batch",
        ):
            self.features.extend(some, matrices, grid=grids)

    def _page(self, i: int) -> torch.Tensor:
        """Page i of the indexed corpus; a small corpus is read once for all languages of a task."""
        if not self._small:
            return self.pages[self._keys[i]]
        if self._keys[i] not in self._read:
            self._read[self._keys[i]] = self.pages[self._keys[i]].float()
        return self._read[self._keys[i]]

    def search(
        self,
        queries,
        *,
        task_metadata,
        hf_split,
        hf_subset,
        top_k,
        encode_kwargs,
        top_ranked=None,
        num_proc=None,
        **unused,
    ) -> dict[str, dict[str, float]]:
        """The `top_k` pages of each query with their MaxSim scores."""
        texts, ids = list(queries["text"]), list(queries["id"])
        vectors = encode.queries(self.loaded, texts)
        scores = maxsim(
            vectors, len(self._keys), self._page, device=self.loaded.device
        )  # (n_queries, n_pages)
        best = scores.topk(min(top_k, len(self._keys)), dim=1)
        found = {
            query: {self._ids[page]: score for page, score in zip(pages, values, strict=True)}
            for query, pages, values in zip(ids, best.indices.tolist(), best.values.tolist(), strict=True)
        }
        self.rankings[hf_subset] = (
            scores,
            ids,
            list(self._ids),
            [len(v) for v in vectors],
            dict(zip(self._ids, self._keys)),
        )
        return found


def digest(entry: dict) -> str:
    """Identity of a page image as stored in a data set: the digest of its bytes."""
    content = entry["bytes"] if entry.get("bytes") is not None else Path(entry["path"]).read_bytes()
    return hashlib.sha256(content).hexdigest()[:24]
