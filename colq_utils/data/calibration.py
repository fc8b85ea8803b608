"""Calibration text and sets: one stream of tokens, cut to blocks of each length, so that only that differs.

The corpus is tokenized, cut into stretches of the longest block length, shuffled once with the languages
taking turns, and joined. Every text set is a prefix of that stream folded to its own length: sets of one
budget hold the same tokens in the same order. A page set holds pages drawn from the same text, never an
evaluation page.
"""

from itertools import chain, zip_longest
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from safetensors.torch import load_file

from colq_utils.base import files
from colq_utils.base.config import ROOT, CalibrationSet, Experiment
from colq_utils.base.errors import ColqError
from colq_utils.model.hub import fetch_dataset

PAGE_SIZE = (704, 384)  # width, height in pixels; that of the embedded benchmark


def corpus(experiment: Experiment) -> pd.DataFrame:
    """The calibration text: columns document, lang and text, one row a passage.

    Raises:
        ColqError: no corpus at the place the experiment names.
    """
    source = experiment.calibration
    folder = ROOT / source.source
    if folder.is_dir():
        tables = [pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))]
        if not tables:
            raise ColqError(f"{source.source} holds no .parquet file with calibration text")
        return pd.concat(tables, ignore_index=True)
    frame = pd.read_parquet(fetch_dataset(source.source, source.file, source.revision))
    return pd.DataFrame({"document": frame.index.astype(str), "lang": "en", "text": frame["text"]})


def stream(texts: pd.DataFrame, tokenizer, stretch: int, seed: int) -> np.ndarray:
    """The corpus as one array of token ids, in seeded stretches of `stretch` tokens, languages in turn."""
    languages, rng = [], np.random.default_rng(seed)
    separator = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    for _, rows in texts.groupby("lang"):
        ids = tokenizer(rows["text"].tolist(), add_special_tokens=False)["input_ids"]
        flat = np.fromiter(chain.from_iterable([*i, separator] for i in ids), dtype=np.int64)
        stretches = flat[: len(flat) // stretch * stretch].reshape(-1, stretch)
        languages.append(rng.permutation(stretches))
    turns = [s for group in zip_longest(*languages) for s in group if s is not None]
    return np.concatenate([np.empty(0, dtype=np.int64), *turns])


def pack(tokens: np.ndarray, spec: CalibrationSet) -> torch.Tensor:
    """The first ``blocks * seqlen`` tokens as ``(blocks, seqlen)``, without padding.

    Raises:
        ColqError: the corpus is too short for the set.
    """
    needed = spec.blocks * spec.seqlen
    if len(tokens) < needed:
        raise ColqError(
            f"calibration set {spec.id} needs {needed:,} tokens ({spec.blocks} blocks of {spec.seqlen}) "
            f"and the corpus gives {len(tokens):,}; lower `blocks`, or name a larger corpus"
        )
    return torch.from_numpy(tokens[:needed].reshape(spec.blocks, spec.seqlen).copy())


def draw_page(text: str) -> Image.Image:
    """A page filled with `text` in DejaVu Sans (matplotlib has it; Pillow's own font lacks most accents)."""
    page = Image.new("L", PAGE_SIZE, 255)
    canvas, line, y = ImageDraw.Draw(page), "", 8
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)
    for word in text.split():
        if canvas.textlength(f"{line} {word}", font=font) > PAGE_SIZE[0] - 16:
            canvas.text((8, y), line, fill=0, font=font)
            line, y = "", y + 18
            if y > PAGE_SIZE[1] - 24:
                break
        line = f"{line} {word}".strip()
    return page


def page_set(texts: pd.DataFrame, spec: CalibrationSet, seed: int) -> tuple[torch.Tensor, list[str]]:
    """`blocks` drawn pages ``(blocks, 384, 704)`` uint8, and a query each: 3 to 8 words in a row of it.

    The queries are for `studies.seqlen.weights`, which tunes on pages followed by text.

    Raises:
        ColqError: too few passages of 60 words.
    """
    rng = np.random.default_rng(seed)
    usable = texts[texts["text"].str.split().str.len() >= 60]
    if len(usable) < spec.blocks:
        raise ColqError(
            f"calibration set {spec.id} needs {spec.blocks} passages of 60 words, "
            f"the corpus has {len(usable)}"
        )
    images, queries = [], []
    for text in usable["text"].iloc[rng.permutation(len(usable))[: spec.blocks]]:
        words = text.split()
        start = int(rng.integers(0, max(1, len(words) - 150)))
        images.append(np.asarray(draw_page(" ".join(words[start : start + 150]))))
        at = int(rng.integers(0, len(words) - 8))
        queries.append(" ".join(words[at : at + int(rng.integers(3, 9))]))
    return torch.from_numpy(np.stack(images)), queries


def document_set(experiment: Experiment, spec: CalibrationSet) -> torch.Tensor:
    """`blocks` pages of one's own documents, ``(blocks, height, width, 3)`` uint8, on one paper size.

    Raises:
        ColqError: fewer pages than `blocks`, or no documents.
    """
    if experiment.evaluation.documents is None:
        raise ColqError(f"calibration set {spec.id} wants pages of documents: give `evaluation.documents`")
    from colq_utils.data import document_tasks  # mteb takes seconds to import

    pages = document_tasks.read(experiment)[0].pages
    if len(pages) < spec.blocks:
        raise ColqError(
            f"calibration set {spec.id} needs {spec.blocks} pages, your documents have {len(pages)}"
        )
    chosen = np.random.default_rng(experiment.seed).permutation(len(pages))[: spec.blocks]
    images = [Image.open(pages.path[i]).convert("RGB") for i in chosen]
    width, height = np.median([image.size for image in images], axis=0).astype(int)
    padded = [ImageOps.pad(image, (width, height), color="white") for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in padded]))


def path_of(experiment: Experiment, set_id: str) -> Path:
    """Where a calibration set is kept."""
    return experiment.build("calibration", f"{set_id}.safetensors")


def load(experiment: Experiment, set_id: str) -> dict[str, torch.Tensor]:
    """A packed set: ``input_ids`` ``(blocks, seqlen)`` of text or ``pages`` ``(blocks, 384, 704)``.

    Raises:
        ColqError: the set has not been packed yet.
    """
    return load_file(files.required(path_of(experiment, set_id), f"calibrate EXPERIMENT={experiment.name}"))
