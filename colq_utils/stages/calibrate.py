"""Calibration sets: one stream of tokens, cut to blocks of each length, so that only the length differs.

The corpus is tokenized, cut into stretches of the longest block length, shuffled once with the
languages taking turns, and joined. Every text set is a prefix of that stream folded to its own length:
sets of one budget hold the same tokens in the same order. A page set holds pages drawn from the same
text; no evaluation page is ever used. Sets are safetensors, never pickles.
"""

import hashlib

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

from colq_utils.base import files
from colq_utils.base.config import CalibrationSet, Experiment
from colq_utils.data import minividore
from colq_utils.data.calibration import corpus, pack, page_set, path_of, stream
from colq_utils.data.overlap import eight_gram_overlap
from colq_utils.model import processing

#: Columns of the table of sets; a row is what `describe` gives.
COLUMNS = [
    "set",
    "kind",
    "seqlen",
    "blocks",
    "batch_rows",
    "tokens",
    "tokens_per_step",
    "distinct_tokens",
    "fingerprint",
]


def build(experiment: Experiment) -> pd.DataFrame:
    """Pack every set of the experiment and describe them in a table of `COLUMNS`, one row a set (none if nothing is tuned)."""
    experiment.build("calibration").mkdir(
        parents=True, exist_ok=True
    )  # what the stage writes is there even without sets
    texts = corpus(experiment)
    processor = processing.from_pretrained(
        experiment.model_path, experiment.model.revision, experiment.model.max_visual_tokens
    )
    longest = max((s.seqlen for s in experiment.calibration.sets), default=0)
    tokens = (
        stream(texts, processor.tokenizer, longest, experiment.seed)
        if longest
        else np.empty(0, dtype=np.int64)
    )
    rows = []
    for spec in experiment.calibration.sets:
        tensors = (
            {"input_ids": pack(tokens, spec)}
            if spec.kind == "text"
            else {"pages": page_set(texts, spec, experiment.seed)[0]}
        )
        with files.atomic(path_of(experiment, spec.id)) as target:
            save_file(tensors, target, metadata={"set": spec.model_dump_json()})
        rows.append(describe(spec, tensors, processor))
    return pd.DataFrame(rows, columns=COLUMNS)


def describe(
    spec: CalibrationSet, tensors: dict[str, torch.Tensor], processor: processing.ColQwen3Processor
) -> dict:
    """Counts and a fingerprint of a set; padding is zero by construction. A page's length is that of its prompt."""
    content = next(iter(tensors.values())).numpy()
    if spec.kind == "text":
        ids = tensors["input_ids"]
    else:
        ids = processor.pages([Image.fromarray(content[0])])["input_ids"].repeat(
            spec.blocks, 1
        )  # (blocks, n_tokens)
    return {
        "set": spec.id,
        "kind": spec.kind,
        "seqlen": ids.shape[1],
        "blocks": spec.blocks,
        "batch_rows": spec.batch_rows,
        "tokens": ids.numel(),
        "tokens_per_step": ids.shape[1] * spec.batch_rows,
        "distinct_tokens": len(torch.unique(ids)),
        "fingerprint": hashlib.sha256(content.tobytes()).hexdigest()[:16],
    }


def languages(texts: pd.DataFrame) -> pd.DataFrame:
    """Documents, passages and words of the corpus by language."""
    words = texts["text"].str.split().str.len()
    table = (
        texts.assign(words=words)
        .groupby("lang")
        .agg(documents=("document", "nunique"), passages=("text", "size"), words=("words", "sum"))
    )
    return table.reset_index()


def benchmark_overlap(texts: pd.DataFrame) -> pd.DataFrame:
    """Word 8-grams that the corpus shares with the embedded benchmark's pages and with its queries."""
    benchmark = minividore.load()
    rows = []
    for what, other in (("page text", benchmark.pages["text"]), ("queries", benchmark.queries["text"])):
        shared = eight_gram_overlap(texts["text"], other)
        rows.append(
            {
                "benchmark": what,
                "benchmark_texts": len(other),
                "corpus_passages": len(texts),
                "passages_that_share": int((shared > 0).sum()),
                "shared": int(shared.sum()),
            }
        )
    return pd.DataFrame(rows)
