"""What the calibration corpus shares with the model's training and with the benchmark's queries."""

import json

import pandas as pd

from colq_utils.base.config import ROOT
from colq_utils.data import minividore
from colq_utils.data.overlap import ngrams
from colq_utils.data.words import tokens
from studies.seqlen.spec import StudySpec

#: Words in a row that are looked for: the usual length, which few queries have, and shorter ones.
LENGTHS = (8, 5, 4, 3)


def training(spec: StudySpec) -> dict[str, float]:
    """Documents of the corpus that the bundled model was trained on, by the digest of their file.

    Returns:
        documents and trained (of them); passages, the share of the corpus' passages in the latter.
    """
    corpus = pd.read_parquet(ROOT / spec.corpus / "corpus.parquet")
    listed = json.loads((ROOT / spec.corpus / "documents.json").read_text())
    known = json.loads((ROOT / "data" / "training" / "documents.json").read_text())
    digests = {entry["sha256"] for entry in known if entry["split"] == "train"}
    trained = {entry["name"] for entry in listed if entry["sha256"] in digests}
    share = float(corpus["document"].isin(trained).mean())
    return {"documents": len(listed), "trained": len(trained), "passages": share}


def queries(spec: StudySpec) -> pd.DataFrame:
    """By words in a row: queries, those long_enough to hold as many, and those with some in the corpus."""
    corpus = pd.read_parquet(ROOT / spec.corpus / "corpus.parquet")["text"]
    asked, rows = minividore.load().queries["text"], []
    for length in LENGTHS:
        grams = [ngrams(text, length) for text in asked]
        wanted = set().union(*grams)
        there = set().union(*(ngrams(text, length) & wanted for text in corpus))
        long_enough = sum(len(tokens(text)) >= length for text in asked)
        rows.append((length, len(asked), long_enough, sum(bool(own & there) for own in grams)))
    return pd.DataFrame(rows, columns=["words", "queries", "long_enough", "shared"])
