"""What the appendix shows of the benchmark: contact sheets of pages and the BM25 ceiling by task."""

import math

import pandas as pd
from PIL import Image, ImageDraw

from colq_utils.data import minividore

GAP = 24  # pixels, for the label above a picture


def sheet(pictures: list[Image.Image], labels: list[str], columns: int = 2) -> Image.Image:
    """Return pictures of one size side by side, each under its label."""
    width, height = pictures[0].size
    rows = math.ceil(len(pictures) / columns)
    page = Image.new("RGB", (columns * (width + 8), rows * (height + GAP)), "lightgrey")
    draw = ImageDraw.Draw(page)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = (i % columns) * (width + 8), (i // columns) * (height + GAP)
        draw.text((x + 4, y + 6), label, fill="black")
        page.paste(picture, (x, y + GAP))
    return page


def ndcg_at_5(scores: dict[str, float], relevant: list[str]) -> float:
    """Return NDCG@5 with binary relevance; ties are broken by page id."""
    top = sorted(scores, key=lambda page_id: (-scores[page_id], page_id))[:5]
    gain = sum(1 / math.log2(rank + 2) for rank, page_id in enumerate(top) if page_id in relevant)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(5, len(relevant))))


def bm25_table(benchmark: minividore.MiniVidore) -> pd.DataFrame:
    """Return BM25's NDCG@5 by task (rows) and language (columns), with the mean over all queries."""
    rows = []
    for name, task in minividore.TASKS.items():
        scores = minividore.bm25_scores(benchmark, name)
        for lang in task.languages:
            for query in minividore.queries_of(benchmark, name, lang).itertuples():
                rows.append((name, lang, ndcg_at_5(scores[query.query_id], list(query.relevant))))
    table = pd.DataFrame(rows, columns=["task", "lang", "ndcg_at_5"])
    by_language = table.pivot_table(index="task", columns="lang", values="ndcg_at_5", sort=False)
    return by_language.assign(all=table.groupby("task").ndcg_at_5.mean())
