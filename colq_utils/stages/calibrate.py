"""Calibration sets (see `colq_utils.data.calibration`) packed for an experiment, and described."""

import hashlib

import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

from colq_utils.base import files
from colq_utils.base.config import CalibrationSet, Experiment
from colq_utils.data import minividore
from colq_utils.data.calibration import corpus, document_set, pack, page_set, path_of, stream
from colq_utils.data.overlap import eight_gram_overlap
from colq_utils.model import processing

#: Columns of the table of sets: what the experiment asks for, and what was packed.
ASKED = ["set", "kind", "seqlen", "blocks", "batch_rows"]
PACKED = ["tokens", "tokens_per_step", "distinct_tokens", "fingerprint"]


def build(experiment: Experiment) -> pd.DataFrame:
    """Pack every set of the experiment; a table, one row a set (none if nothing is tuned)."""
    experiment.build("calibration").mkdir(parents=True, exist_ok=True)  # there even without sets
    texts, model, sets = corpus(experiment), experiment.model, experiment.calibration.sets
    processor = processing.from_pretrained(experiment.model_path, model.revision, model.max_visual_tokens)
    longest = max((spec.seqlen for spec in sets), default=0)
    tokens = stream(texts, processor.tokenizer, longest, experiment.seed) if longest else []
    rows = []
    for spec in sets:
        if spec.kind == "text":
            tensors = {"input_ids": pack(tokens, spec)}
        elif spec.kind == "documents":
            tensors = {"pages": document_set(experiment, spec)}
        else:
            tensors = {"pages": page_set(texts, spec, experiment.seed)[0]}
        with files.atomic(path_of(experiment, spec.id)) as target:
            save_file(tensors, target, metadata={"set": spec.model_dump_json()})
        rows.append(describe(spec, tensors, processor))
    return pd.DataFrame(rows, columns=ASKED + PACKED)


def describe(
    spec: CalibrationSet, tensors: dict[str, torch.Tensor], processor: processing.ColQwen3Processor
) -> tuple:
    """A row of the table: there is no padding, by construction, and a page's length is that of its prompt."""
    (content,) = tensors.values()
    ids = content  # (blocks, n_tokens)
    if spec.kind != "text":
        prompt = processor.pages([Image.fromarray(content[0].numpy())])["input_ids"]
        ids = prompt.repeat(spec.blocks, 1)
    seqlen, distinct = ids.shape[1], len(torch.unique(ids))
    counts = (seqlen, spec.blocks, spec.batch_rows, ids.numel(), seqlen * spec.batch_rows, distinct)
    return (spec.id, spec.kind, *counts, hashlib.sha256(content.numpy().tobytes()).hexdigest()[:16])


def languages(texts: pd.DataFrame) -> pd.DataFrame:
    """Documents, passages and words of the corpus by language."""
    words = texts.assign(words=texts["text"].str.split().str.len())
    return words.groupby("lang", as_index=False).agg(
        documents=("document", "nunique"), passages=("text", "size"), words=("words", "sum")
    )


def benchmark_overlap(texts: pd.DataFrame) -> pd.DataFrame:
    """Word 8-grams that the corpus shares with the embedded benchmark's pages and with its queries."""
    benchmark, rows = minividore.load(), []
    for what, other in (("page text", benchmark.pages["text"]), ("queries", benchmark.queries["text"])):
        shared = eight_gram_overlap(texts["text"], other)
        rows.append((what, len(other), len(texts), (shared > 0).sum(), shared.sum()))
    columns = ["benchmark", "benchmark_texts", "corpus_passages", "passages_that_share", "shared"]
    return pd.DataFrame(rows, columns=columns)
