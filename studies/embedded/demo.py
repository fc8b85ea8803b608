"""Training shown in small: the same code on a few examples, and the curves of the real run.

The examples need neither network nor fonts: text comes from the embedded calibration corpus, type
from the fonts that matplotlib brings. A step here has a handful of regions and a model of a few
layers, so nothing is learned but that the machinery works.
"""

import gzip
import io
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from studies.embedded import augment, canvases, losses
from studies.embedded.tiny_config import HEIGHT, WIDTH, TinyConfig
from studies.embedded.train import Trainer

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
)
SMALL = TinyConfig(
    hidden=128,
    layers=2,
    heads=2,
    kv_heads=1,
    mlp=128,
    vision_hidden=64,
    vision_depth=2,
    vision_heads=1,
    vision_mlp=64,
    deepstack=(0,),
    embed_dim=32,
)
COLOURS = {"phrase": "#0072B2", "shuffled": "#009E73", "misspelt": "#E69F00", "short": "#CC79A7"}


def maker(corpus: Path, tokenizer: Path, folder: Path, seed: int = 0, lines: int = 200) -> canvases.Maker:
    """Return a maker of synthetic examples; its texts and fonts are written to `folder`."""
    texts, fonts = folder / "texts", folder / "fonts"
    texts.mkdir(parents=True, exist_ok=True)
    fonts.mkdir(exist_ok=True)
    frame = pd.read_parquet(corpus)
    for language in canvases.LANGUAGES:
        passages = frame.text[frame.lang == language].sample(lines, random_state=seed)
        with gzip.open(texts / f"{language}.txt.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(" ".join(passage.split()) for passage in passages))
    for name in FONTS:
        shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf" / name, fonts)
    return canvases.Maker(canvases.Sources({}, str(texts), str(fonts), str(tokenizer), synthetic=1.0), seed)


def batch(source: canvases.Maker, pairs: int) -> dict[str, torch.Tensor]:
    """Return `pairs` pairs of canvases as tensors, each field (2 * pairs, ...)."""
    drawn = [canvas for _ in range(pairs) for canvas in source.pair()]
    return {name: torch.from_numpy(np.stack([canvas[name] for canvas in drawn])) for name in drawn[0]}


def lessons(example: dict[str, torch.Tensor], seed: int = 0, queries: int = 1) -> list[Image.Image]:
    """Return each region as the model sees it, with the words of its queries boxed and their cells shaded."""
    torch.manual_seed(seed)
    views = augment.draw_views(len(example["image"]), tuple(example["image"].shape[1:]), "cpu")
    pages = augment.scan(augment.crop(example["image"], views)).byte().numpy()
    tokens, boxes = losses.choose(
        example["tokens"].long(), augment.move_boxes(example["boxes"], views), (HEIGHT, WIDTH), queries
    )
    pictures = []
    for page, words, places, cells in zip(pages, tokens, boxes, losses.printed_cells(boxes), strict=True):
        picture = Image.fromarray(page).convert("RGB")
        pen = ImageDraw.Draw(picture, "RGBA")
        for cell in cells[words > 0].any(0).nonzero().flatten().tolist():
            x, y = 32 * (cell % (WIDTH // 32)), 32 * (cell // (WIDTH // 32))
            pen.rectangle((x, y, x + 31, y + 31), fill=(0, 114, 178, 50))
        for box in places[words > 0].tolist():
            pen.rectangle(box, outline=(213, 94, 0, 255))
        pictures.append(picture)
    return pictures


def steps(example: dict[str, torch.Tensor], count: int, seed: int = 0) -> pd.DataFrame:
    """Train a small model `count` steps on one batch; returns the parts of the loss, a step a row."""
    torch.manual_seed(seed)
    trainer = Trainer(
        SMALL, "cpu", len(example["image"]), queries=4, packed=48 * len(example["image"]), compiled=False
    )
    rows = [trainer.update(example, progress=0.0, warm_steps=1) for _ in range(count)]
    return pd.DataFrame([{name: float(value) for name, value in row.items()} for row in rows]).rename_axis(
        "step"
    )


def curves(log: Path) -> Image.Image:
    """Draw the losses and the reading check of a training log against training time."""
    frame = pd.read_csv(log)
    taught, read = frame[frame.spot.notna()], frame[frame.phrase.notna()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label, colour in (
        ("spot", "spotting, all regions", "#0072B2"),
        ("within", "spotting, own region", "#56B4E9"),
        ("rank", "MaxSim", "#D55E00"),
        ("read", "characters", "#999999"),
    ):
        left.plot(taught.elapsed_s, taught[name].rolling(4, min_periods=1).mean(), label=label, color=colour)
    left.set(
        xlabel="training time (s)",
        ylabel="loss (nats)",
        yscale="log",
        title="Training losses, mean of 100 steps",
    )
    for name, colour in COLOURS.items():
        right.plot(
            read.elapsed_s,
            read[name],
            marker="o",
            markersize=3,
            color=colour,
            label=f"{name}, each language alone",
        )
        right.plot(
            read.elapsed_s,
            read[name + "_pooled"],
            linestyle=":",
            color=colour,
            label=f"{name}, six languages pooled",
        )
    right.set(xlabel="training time (s)", ylabel="NDCG@5", title="Reading check on held-out documents")
    left.legend(fontsize=8)
    right.legend(fontsize=7, loc="lower right")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130)
    return Image.open(picture)
