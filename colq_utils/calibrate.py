"""Calibration sets: one stream of tokens, cut to blocks of each length, so that only the length differs.

The corpus is tokenized, cut into stretches of the longest block length, shuffled once with the
languages taking turns, and joined. Every text set is a prefix of that stream folded to its own length:
sets of one budget hold the same tokens in the same order. A page set holds pages drawn from the same
text; no evaluation page is ever used. Sets are safetensors, never pickles.
"""
import hashlib
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file

from . import files, minividore, processing
from .config import ROOT, CalibrationSet, Experiment
from .errors import ColqError
from .loading import fetch_dataset
from .overlap import eight_gram_overlap

PAGE_SIZE = (704, 384)  # width, height in pixels; that of the embedded benchmark
#: Columns of the table of sets; a row is what `describe` gives.
COLUMNS = ["set", "kind", "seqlen", "blocks", "batch_rows", "tokens", "tokens_per_step", "distinct_tokens", "fingerprint"]


def corpus(experiment: Experiment) -> pd.DataFrame:
    """The calibration text: columns document, lang and text, one row a passage.

    Raises:
        ColqError: no corpus at the place the experiment names.
    """
    source = experiment.calibration
    folder = ROOT / source.source
    if folder.is_dir():
        found = sorted(folder.glob("*.parquet"))
        if not found:
            raise ColqError(f"{source.source} holds no .parquet file with calibration text")
        return pd.concat([pd.read_parquet(f) for f in found], ignore_index=True)
    frame = pd.read_parquet(fetch_dataset(source.source, source.file, source.revision))
    return pd.DataFrame({"document": frame.index.astype(str), "lang": "en", "text": frame["text"]})


def stream(texts: pd.DataFrame, tokenizer, stretch: int, seed: int) -> np.ndarray:
    """All of the corpus as one array of token ids, in seeded stretches of `stretch` tokens, languages in turn."""
    shelves = []
    rng = np.random.default_rng(seed)
    separator = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    for _, rows in sorted(texts.groupby("lang"), key=lambda pair: pair[0]):
        ids = tokenizer(rows["text"].tolist(), add_special_tokens=False)["input_ids"]
        flat = np.fromiter(chain.from_iterable([*i, separator] for i in ids), dtype=np.int64)
        cut = flat[:len(flat) // stretch * stretch].reshape(-1, stretch)
        shelves.append(cut[rng.permutation(len(cut))])
    turns = [s for group in zip_longest(*shelves) for s in group if s is not None]
    return np.concatenate(turns) if turns else np.empty(0, dtype=np.int64)


def pack(tokens: np.ndarray, spec: CalibrationSet) -> torch.Tensor:
    """The first ``blocks * seqlen`` tokens as ``(blocks, seqlen)``, without padding.

    Raises:
        ColqError: the corpus is too short for the set.
    """
    needed = spec.blocks * spec.seqlen
    if len(tokens) < needed:
        raise ColqError(f"calibration set {spec.id} needs {needed:,} tokens ({spec.blocks} blocks of {spec.seqlen}) and the "
                        f"corpus gives {len(tokens):,}; lower `blocks`, or name a larger corpus")
    return torch.from_numpy(tokens[:needed].reshape(spec.blocks, spec.seqlen).copy())


def draw_page(text: str) -> Image.Image:
    """A page image with `text` set in Pillow's built-in font, from top to bottom until it is full."""
    page = Image.new("L", PAGE_SIZE, 255)
    canvas, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)
    words, line, y = text.split(), "", 8
    for word in words:
        if canvas.textlength(f"{line} {word}", font=font) > PAGE_SIZE[0] - 16:
            canvas.text((8, y), line, fill=0, font=font)
            line, y = "", y + 18
            if y > PAGE_SIZE[1] - 24:
                break
        line = f"{line} {word}".strip()
    return page


def page_set(texts: pd.DataFrame, spec: CalibrationSet, seed: int) -> tuple[torch.Tensor, list[str]]:
    """`blocks` drawn pages ``(blocks, 384, 704)`` uint8 and as many queries: 3 to 8 words in a row of each page's own passage.

    The queries are for `study_weights`, which tunes on pages followed by text; an experiment's set keeps the pages alone.

    Raises:
        ColqError: too few passages of 60 words.
    """
    rng = np.random.default_rng(seed)
    usable = texts[texts["text"].str.split().str.len() >= 60]
    if len(usable) < spec.blocks:
        raise ColqError(f"calibration set {spec.id} needs {spec.blocks} passages of 60 words, the corpus has {len(usable)}")
    chosen = usable["text"].iloc[rng.permutation(len(usable))[:spec.blocks]].tolist()
    images, queries = [], []
    for text in chosen:
        words = text.split()
        start = int(rng.integers(0, max(1, len(words) - 150)))
        images.append(np.asarray(draw_page(" ".join(words[start:start + 150]))))
        at = int(rng.integers(0, len(words) - 8))
        queries.append(" ".join(words[at:at + int(rng.integers(3, 9))]))
    return torch.from_numpy(np.stack(images)), queries


def path_of(experiment: Experiment, set_id: str) -> Path:
    """Where a calibration set is kept."""
    return experiment.build("calibration", f"{set_id}.safetensors")


def build(experiment: Experiment) -> pd.DataFrame:
    """Pack every set of the experiment and describe them in a table of `COLUMNS`, one row a set (none if nothing is tuned)."""
    experiment.build("calibration").mkdir(parents=True, exist_ok=True)  # what the stage writes is there even without sets
    texts = corpus(experiment)
    processor = processing.from_pretrained(experiment.model_path, experiment.model.revision, experiment.model.max_visual_tokens)
    longest = max((s.seqlen for s in experiment.calibration.sets), default=0)
    tokens = stream(texts, processor.tokenizer, longest, experiment.seed) if longest else np.empty(0, dtype=np.int64)
    rows = []
    for spec in experiment.calibration.sets:
        tensors = {"input_ids": pack(tokens, spec)} if spec.kind == "text" else {"pages": page_set(texts, spec, experiment.seed)[0]}
        with files.atomic(path_of(experiment, spec.id)) as target:
            save_file(tensors, target, metadata={"set": spec.model_dump_json()})
        rows.append(describe(spec, tensors, processor))
    return pd.DataFrame(rows, columns=COLUMNS)


def describe(spec: CalibrationSet, tensors: dict[str, torch.Tensor], processor: processing.ColQwen3Processor) -> dict:
    """Counts and a fingerprint of a set; padding is zero by construction. A page's length is that of its prompt."""
    content = next(iter(tensors.values())).numpy()
    if spec.kind == "text":
        ids = tensors["input_ids"]
    else:
        ids = processor.pages([Image.fromarray(content[0])])["input_ids"].repeat(spec.blocks, 1)  # (blocks, n_tokens)
    return {"set": spec.id, "kind": spec.kind, "seqlen": ids.shape[1], "blocks": spec.blocks, "batch_rows": spec.batch_rows,
            "tokens": ids.numel(), "tokens_per_step": ids.shape[1] * spec.batch_rows, "distinct_tokens": len(torch.unique(ids)),
            "fingerprint": hashlib.sha256(content.tobytes()).hexdigest()[:16]}


def load(experiment: Experiment, set_id: str) -> dict[str, torch.Tensor]:
    """A packed set: ``input_ids`` ``(blocks, seqlen)`` of a text set, ``pages`` ``(blocks, 384, 704)`` of a page set.

    Raises:
        ColqError: the set has not been packed yet.
    """
    return load_file(files.required(path_of(experiment, set_id), f"calibrate EXPERIMENT={experiment.name}"))


def languages(texts: pd.DataFrame) -> pd.DataFrame:
    """Documents, passages and words of the corpus by language."""
    words = texts["text"].str.split().str.len()
    table = texts.assign(words=words).groupby("lang").agg(
        documents=("document", "nunique"), passages=("text", "size"), words=("words", "sum"))
    return table.reset_index()


def benchmark_overlap(texts: pd.DataFrame) -> pd.DataFrame:
    """Word 8-grams that the corpus shares with the embedded benchmark's pages and with its queries."""
    benchmark = minividore.load()
    rows = []
    for what, other in (("page text", benchmark.pages["text"]), ("queries", benchmark.queries["text"])):
        shared = eight_gram_overlap(texts["text"], other)
        rows.append({"benchmark": what, "benchmark_texts": len(other), "corpus_passages": len(texts),
                     "passages_that_share": int((shared > 0).sum()), "shared": int(shared.sum())})
    return pd.DataFrame(rows)
