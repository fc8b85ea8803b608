"""The detector's training in small, for the appendix notebook: the same code on a few scenes, on a CPU."""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from studies.fp8_serving import boxes, fp8, scenes, train
from studies.fp8_serving.plots import gallery


def parts(model: torch.nn.Module) -> pd.DataFrame:
    """Parameters of each part and their share."""
    count = pd.Series({name: size // 4 for name, size in fp8.bytes_by_part(model).items()}, name="parameters")
    return count.to_frame().assign(share=(count / count.sum()).round(3))


def scenes_of(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes of the training stream, wide ones: images ``(n, 336, 448, 3)`` as uint8 and boxes ``(n, 4)``."""
    drawn = [scenes.draw([scenes.TRAINING, seed, i], scenes.SHAPES[0]) for i in range(count)]
    images, truth = train.stacked(drawn)
    return torch.from_numpy(images), torch.from_numpy(truth)


def lessons(images: torch.Tensor, truth: torch.Tensor) -> Figure:
    """Scenes varied as in training, each with its box as the answer states it."""
    pictures = []
    for pixels, box in zip(*train.vary(images, truth), strict=True):
        picture = Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy())
        x1, y1, x2, y2 = np.array(boxes.parse(boxes.text(box.tolist()))) * (2 * picture.size)
        ImageDraw.Draw(picture).rectangle((x1, y1, x2, y2), outline=(0, 220, 80), width=2)
        pictures.append(picture)
    return gallery(pictures)


def steps(images: torch.Tensor, truth: torch.Tensor, count: int, seed: int) -> pd.DataFrame:
    """Loss of a new model over `count` steps on one batch."""
    torch.manual_seed(seed)
    trainer = train.Trainer("cpu", compiled=False)
    losses = [float(trainer.update(*train.vary(images, truth), 1.0)) for _ in range(count)]
    return pd.DataFrame({"loss": losses}).rename_axis("step").round(3)
