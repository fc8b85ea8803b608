"""Calibration sets: one stream of tokens, cut to blocks of each length, so that only the length differs.

The corpus is tokenized, cut into stretches of the longest block length, shuffled once with the
languages taking turns, and joined. Every text set is a prefix of that stream folded to its own length:
sets of one budget hold the same tokens in the same order. A page set holds pages drawn from the same
text (no evaluation page is ever used) together with queries. Sets are safetensors, never pickles.
"""
import hashlib
import json
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import save_file

from . import files, minividore, processing
from .config import ROOT, CalibrationSet, Experiment
from .errors import ColqError
from .loading import fetch_dataset
from .overlap import eight_gram_overlap

PAGE_SIZE = (704, 384)  # width, height in pixels; that of the embedded benchmark


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
    """`blocks` drawn pages ``(blocks, 384, 704)`` uint8 and as many queries, spans of other passages."""
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
    """Pack every set of the experiment and describe them, one row a set."""
    texts = corpus(experiment)
    processor = processing.from_pretrained(experiment.model_path, experiment.model.revision, experiment.model.max_visual_tokens)
    longest = max((s.seqlen for s in experiment.calibration.sets), default=0)
    tokens = stream(texts, processor.tokenizer, longest, experiment.seed) if longest else np.empty(0, dtype=np.int64)
    rows = []
    for spec in experiment.calibration.sets:
        if spec.kind == "text":
            tensors, notes = {"input_ids": pack(tokens, spec)}, {}
        else:
            pages, queries = page_set(texts, spec, experiment.seed)
            tensors, notes = {"pages": pages}, {"queries": json.dumps(queries, ensure_ascii=False)}
        with files.atomic(path_of(experiment, spec.id)) as target:
            save_file(tensors, target, metadata={"set": spec.model_dump_json(), **notes})
        rows.append(describe(spec, tensors, processor))
    return pd.DataFrame(rows)


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


def load(experiment: Experiment, set_id: str) -> dict:
    """A packed set: its tensors, and ``queries`` (list of str) for a page set.

    Raises:
        ColqError: the set has not been packed yet.
    """
    path = files.required(path_of(experiment, set_id), f"calibrate EXPERIMENT={experiment.name}")
    with safe_open(path, framework="pt") as stored:
        content = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        notes = stored.metadata()
    if "queries" in notes:
        content["queries"] = json.loads(notes["queries"])
    return content


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
