"""Shared word sequences between two sets of texts: has the calibration corpus seen the benchmark?

Eight words in a row is the length in common use for contamination checks: long enough that only
copied text shares it, short enough to find a single copied sentence. It does not find paraphrase.
"""

from collections.abc import Iterable

import numpy as np

from colq_utils.data.words import tokens

LENGTH = 8  # words


def ngrams(text: str, length: int = LENGTH) -> set[str]:
    """The sequences of `length` lower-case words in a text, joined by spaces."""
    words = tokens(text)
    return {" ".join(words[i : i + length]) for i in range(len(words) - length + 1)}


def eight_gram_overlap(corpus_texts: Iterable[str], benchmark_texts: Iterable[str]) -> np.ndarray:
    """Word 8-grams that each corpus text shares with any benchmark text, int64 ``(n_corpus_texts,)``.

    All zero means that the two are disjoint; a benchmark text of fewer than 8 words cannot be found.
    """
    seen = set().union(*(ngrams(text) for text in benchmark_texts))
    return np.array([len(ngrams(text) & seen) for text in corpus_texts], dtype=np.int64)
