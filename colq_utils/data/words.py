"""Words of a text and BM25 over them: what a model which only reads can be compared with.

BM25 sees the text layer of the pages, which no retriever in this project is given; it knows no
synonyms and no typing errors. Written out here, because the formula is short and the packages that
hold it are unmaintained or bring a search engine along. Not a tokenizer for models.
"""

import math
import re
from collections import Counter, defaultdict

WORD = re.compile(r"[^\W_]+")


def tokens(text: str) -> list[str]:
    """The lower-case words of a text; anything but letters and digits separates them."""
    return WORD.findall(text.lower())


def contains(page: list[str], phrase: list[str]) -> bool:
    """Whether the words of `phrase` stand next to each other and in order in `page`."""
    n = len(phrase)
    return any(page[i : i + n] == phrase for i in range(len(page) - n + 1))


def bm25(
    pages: dict[str, str], queries: dict[str, str], k1: float = 1.5, b: float = 0.75
) -> dict[str, dict[str, float]]:
    """BM25 as {query id: {page id: score}} from texts by id; pages that share no word are left out.

    Formula: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009), with the
    non-negative idf log(1 + (N - n + 0.5) / (n + 0.5)).
    """
    lengths, postings = {}, defaultdict(dict)
    for page_id, text in pages.items():
        counts = Counter(tokens(text))
        lengths[page_id] = counts.total()
        for token, count in counts.items():
            postings[token][page_id] = count
    mean_length = sum(lengths.values()) / max(len(lengths), 1)
    scores = {query_id: Counter() for query_id in queries}
    for query_id, text in queries.items():
        for token in tokens(text):
            holders = postings.get(token, {})
            idf = math.log(1 + (len(pages) - len(holders) + 0.5) / (len(holders) + 0.5))
            for page_id, count in holders.items():
                norm = k1 * (1 - b + b * lengths[page_id] / mean_length)
                scores[query_id][page_id] += idf * count * (k1 + 1) / (count + norm)
    return scores
