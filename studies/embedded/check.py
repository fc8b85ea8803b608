"""The reading check: are a document's regions found by words that are printed on them?

Held-out manuals of the training list are cut as the benchmark is. Queries are phrases (4 to 8 words
in a row), headings, one or two words, shuffled phrases and phrases with misspelt words, each of
which stands on one region of its language only. A score is NDCG@5 with one relevant region. This
is a check on reading during training; the benchmark proper has its own documents.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from colq_utils.model.maxsim import maxsim
from studies.embedded import augment, regions
from studies.embedded.canvases import misspell, strip
from studies.embedded.tiny_config import HEIGHT, WIDTH
from studies.embedded.tokenizer import clean

KINDS = ("phrase", "heading", "short", "shuffled", "misspelt")


@dataclass(frozen=True)
class Query:
    """A query, the kind it is and the index of the region where it is printed."""

    text: str
    kind: str
    region: int


@dataclass(frozen=True)
class Check:
    """Regions (n, 384, 704) uint8 with a language each, and queries."""

    images: np.ndarray
    languages: list[str]
    queries: list[Query]


def build(documents: list[dict], folder: Path, per_language: int = 50, seed: int = 0) -> Check:
    """Cut the documents (entries with name and lang) and draw queries; at most two regions a page."""
    r = random.Random(seed)
    images, languages, contents = [], [], []
    for language in sorted({document["lang"] for document in documents}):
        pages = []
        for document in documents:
            if document["lang"] == language:
                path = Path(folder) / f"{document['name']}.pdf"
                pages += [(path, index) for index in range(len(regions.open_pdf(str(path))))]
        n_checked = 0
        for path, index in r.sample(pages, len(pages)):
            fit = [region for region in regions.cut(regions.render(path, index)) if len(region.words) >= 40]
            for region in fit[:2]:
                if n_checked < per_language:
                    images.append(region.image), languages.append(language), contents.append(region.words)
                    n_checked += 1
            if n_checked >= per_language:
                break
    return Check(np.stack(images), languages, _queries(contents, languages, r))


def _queries(contents: list[tuple], languages: list[str], r: random.Random) -> list[Query]:
    texts = [" " + " ".join(_plain(word.text) for word in words) + " " for words in contents]
    queries = []
    for i, words in enumerate(contents):
        rivals = [text for j, text in enumerate(texts) if languages[j] == languages[i] and j != i]
        plain = [w for w in (_plain(word.text) for word in words) if w]
        for part in (_phrase(plain, rivals, r), _phrase(plain, rivals, r)):
            if part:
                queries.append(Query(part, "phrase", i))
        if part := _phrase(plain, rivals, r):
            queries.append(Query(" ".join(r.sample(part.split(), len(part.split()))), "shuffled", i))
        if part := _phrase(plain, rivals, r):
            spoilt = [misspell(w, r) if r.random() < 0.5 else w for w in part.split()]
            queries.append(Query(" ".join(spoilt), "misspelt", i))
        rare = [w for w in plain if len(w) >= 5 and _unique(w, rivals)]
        if rare:
            queries.append(Query(r.choice(rare), "short", i))
        for heading in headings(words):
            if _unique(heading, rivals):
                queries.append(Query(heading, "heading", i))
                break
    return queries


def _unique(part: str, rivals: list[str]) -> bool:
    return not any(f" {part} " in rival for rival in rivals)


def _phrase(words: list[str], rivals: list[str], r: random.Random) -> str | None:
    """Return 4 to 8 words in a row that no rival holds, two of them long; None where luck fails."""
    for _ in range(20):
        length = r.randint(4, 8)
        start = r.randrange(max(1, len(words) - length))
        part = " ".join(words[start : start + length])
        if _unique(part, rivals) and sum(len(word) >= 4 for word in part.split()) >= 2:
            return part
    return None


def headings(words: tuple[regions.Word, ...]) -> list[str]:
    """Return lines of 2 to 9 words whose tallest word stands out above the tall words of the region."""
    lines = []
    for word in words:
        if lines and abs(word.box[3] - lines[-1][-1].box[3]) < 9 and word.box[0] >= lines[-1][-1].box[2]:
            lines[-1].append(word)
        else:
            lines.append([word])
    tall = np.percentile([word.box[3] - word.box[1] for word in words], 90)
    large = [line for line in lines if max(word.box[3] - word.box[1] for word in line) > 1.12 * tall]
    texts = [" ".join(text for word in line if (text := _plain(word.text))) for line in large]
    return [
        text
        for text in texts
        if 2 <= len(text.split()) <= 9
        and sum(map(str.isalpha, text)) >= 8
        and sum(map(str.isalpha, text)) > 0.8 * len(text.replace(" ", ""))
    ]


def _plain(text: str) -> str:
    return strip(clean(text)).lower()


def save(check: Check, path: Path) -> None:
    """Write a check to an .npz file."""
    rows = [[query.text, query.kind, str(query.region)] for query in check.queries]
    np.savez_compressed(
        path, images=check.images, languages=np.array(check.languages), queries=np.array(rows)
    )


def load(path: Path) -> Check:
    """Read a check written by `save`."""
    file = np.load(path)
    return Check(
        file["images"],
        file["languages"].tolist(),
        [Query(text, kind, int(region)) for text, kind, region in file["queries"].tolist()],
    )


def degrade(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return regions as a poor scan: skewed up to 1 degree, resampled, blurred, faded, noisy, compressed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pages = 255 - torch.from_numpy(images).float()
        angle = torch.deg2rad(torch.empty(len(pages)).uniform_(-1, 1))
        ratio = HEIGHT / WIDTH
        zero = torch.zeros_like(angle)
        turn = torch.stack(
            [
                torch.stack([angle.cos(), -angle.sin() * ratio, zero], 1),
                torch.stack([angle.sin() / ratio, angle.cos(), zero], 1),
            ],
            1,
        )
        grid = F.affine_grid(turn, [len(pages), 1, HEIGHT, WIDTH], align_corners=False)
        pages = 255 - F.grid_sample(pages[:, None], grid, align_corners=False)[:, 0]
        pages = augment.resample(pages, 0.8)
        pages = augment.blur(pages, torch.full((len(pages),), 0.6))
        pages = 235 - (255 - pages) * 0.65 + torch.randn(pages.shape) * 8
        return augment.jpeg(pages, torch.tensor(1.5)).clamp(0, 255).byte().numpy()


def ndcg(scores: torch.Tensor, relevant: torch.Tensor, k: int = 5) -> torch.Tensor:
    """Return NDCG@k (n_queries,) with one relevant column each; ties count against the query."""
    own = scores.gather(1, relevant[:, None])
    rank = (scores >= own).sum(1)  # 1 is best
    return torch.where(rank <= k, 1 / torch.log2(1 + rank.float()), 0.0)


def report(check: Check, queries: list[torch.Tensor], pages: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return mean NDCG@5 by kind of query, for each language searched alone, their mean, and all pooled."""
    scores = maxsim(queries, len(pages), pages.__getitem__, device=pages.device)
    relevant = torch.tensor([query.region for query in check.queries])
    pooled = ndcg(scores, relevant)
    language_of = np.array(check.languages)
    alone = torch.zeros_like(pooled)
    for language in set(check.languages):
        columns = torch.from_numpy(np.flatnonzero(language_of == language))
        rows = torch.from_numpy(np.flatnonzero(language_of[relevant.numpy()] == language))
        place = torch.full((len(language_of),), -1)
        place[columns] = torch.arange(len(columns))
        alone[rows] = ndcg(scores[rows][:, columns], place[relevant[rows]])
    table = {}
    for kind in KINDS:
        of_kind = np.array([query.kind == kind for query in check.queries])
        if not of_kind.any():
            continue
        row = {
            language: of_kind & (language_of[relevant.numpy()] == language)
            for language in sorted(set(check.languages))
        }
        means = {
            language: float(alone[torch.from_numpy(mask)].mean())
            for language, mask in row.items()
            if mask.any()
        }
        table[kind] = {
            **means,
            "mean": float(np.mean(list(means.values()))),
            "pooled": float(pooled[torch.from_numpy(of_kind)].mean()),
            "n": int(of_kind.sum()),
        }
    return table
