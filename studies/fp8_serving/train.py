"""Training of the embedded detector on one GPU, from scratch, on scenes drawn by the other cores meanwhile.

Next-token cross-entropy on the answer alone. Muon for the matrices of the layers, AdamW for the rest; the
learning rate is flat, then falls to zero over the second half. Drawn scenes stay in a pool on the GPU and
are seen again shifted, zoomed and recoloured. Weights are saved at every check; with ``--resume`` a run
goes on from them (momenta start anew). Run: ``python -m studies.fp8_serving.train --out FOLDER --total-s
250``.
"""

import csv
import multiprocessing
import os
import queue
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file, save_file

from studies.embedded.muon import Muon
from studies.fp8_serving import boxes, forward, generate, scenes, tiny

CHUNK = 32
ANSWER = 26  # tokens of the longest answer, its end included, and one to spare
CHECKED = 64  # scenes of each shape that a check asks about


def stacked(drawn: list[scenes.Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Scenes of one shape as images ``(n, height, width, 3)``, uint8, and boxes ``(n, 4)``, fp32."""
    return np.stack([np.asarray(s.image) for s in drawn]), np.array([s.box for s in drawn], np.float32)


def draw_chunks(output, worker: int, workers: int, stream: int, chunks: int | None) -> None:
    """A process that draws chunks of scenes of one shape each and puts them into a queue."""
    os.environ["OMP_NUM_THREADS"] = "1"
    number = worker
    while chunks is None or number < chunks:
        shape = number % len(scenes.SHAPES)
        drawn = [scenes.draw([stream, number * CHUNK + i], scenes.SHAPES[shape]) for i in range(CHUNK)]
        output.put((shape, *stacked(drawn)))
        number += workers


class Pool:
    """Scenes by shape, images on the device; the oldest give way once `capacity` of a shape are there."""

    def __init__(self, capacity: int, device: str):
        self.capacity, self.device = capacity - capacity % CHUNK, device
        self.images = [
            torch.empty((capacity, h, w, 3), dtype=torch.uint8, device=device) for w, h in scenes.SHAPES
        ]
        self.boxes = [
            torch.empty((capacity, 4)) for _ in scenes.SHAPES
        ]  # on the host: answers are written there
        self.count, self.drawn = [0] * len(scenes.SHAPES), 0

    def add(self, shape: int, images: np.ndarray, truth: np.ndarray) -> None:
        start = self.count[shape] % self.capacity
        self.images[shape][start : start + CHUNK] = torch.from_numpy(images)
        self.boxes[shape][start : start + CHUNK] = torch.from_numpy(truth)
        self.count[shape] += CHUNK
        self.drawn += CHUNK

    def fill(self, feed, limit: int = 4) -> None:
        """Move finished chunks in without waiting."""
        for _ in range(limit):
            try:
                self.add(*feed.get_nowait())
            except queue.Empty:
                return

    def batch(self, shape: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scenes at random: images ``(size, height, width, 3)`` on the device, boxes ``(size, 4)``."""
        chosen = torch.randint(min(self.count[shape], self.capacity), (size,))
        images = self.images[shape][chosen.to(self.device, non_blocking=True)]
        return images, self.boxes[shape][chosen]


def vary(images: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift, zoom and recolour scenes; the box follows and stays inside (no wait for the device).

    Returns:
        Pictures 0..1, ``(n, 3, height, width)``, and boxes ``(n, 4)``.
    """
    n, device = len(images), images.device
    zoom = torch.exp(torch.empty((n, 2)).uniform_(-0.16, 0.16))
    low, high = truth[:, :2], truth[:, 2:]
    zoom = torch.minimum(zoom, 0.97 / (high - low))
    half = (high - low) / 2 * zoom
    middle = torch.clamp(
        (low + high) / 2 + torch.empty((n, 2)).uniform_(-0.15, 0.15), min=half + 0.006, max=1 - half - 0.006
    )
    moved = torch.cat((middle - half, middle + half), 1)
    theta = torch.zeros((n, 2, 3))
    theta[:, 0, 0], theta[:, 1, 1] = 1 / zoom[:, 0], 1 / zoom[:, 1]
    theta[:, :, 2] = ((low + high) / 2 * 2 - 1) - (middle * 2 - 1) / zoom
    pixels = images.permute(0, 3, 1, 2).float() / 255
    grid = F.affine_grid(theta.to(device, non_blocking=True), pixels.shape, align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    order = torch.rand((n, 3), device=device).argsort(1)
    pixels = pixels.gather(1, order[:, :, None, None].expand_as(pixels))
    gain, lift = torch.empty((2, n, 3, 1, 1), device=device).uniform_(-0.2, 0.2)
    pixels = pixels * (1 + gain) + lift * 0.4
    pixels = torch.where(torch.rand((n, 1, 1, 1), device=device) < 0.1, 1 - pixels, pixels)
    noise = torch.randn_like(pixels) * torch.empty((n, 1, 1, 1), device=device).uniform_(0, 0.03)
    return (pixels + noise).clamp(0, 1), moved


class Trainer:
    """Model, optimizers and the layer functions, compiled or not."""

    def __init__(self, device: str, compiled: bool):
        self.device = device
        self.model = tiny.new().to(device)
        self.tokenizer = tiny.tokenizer()
        matrices, others = [], []
        for name, parameter in self.model.named_parameters():
            inside = ".layers." in name or ".blocks." in name
            (matrices if inside and parameter.ndim == 2 else others).append(parameter)
        self.muon = Muon(matrices, lr=0.02)
        self.adam = torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
        self.blocks = forward.Blocks.compiled() if compiled else forward.Blocks()
        parts = tiny.PROMPTED.split("<|image_pad|>")
        self.ahead, self.behind = (self.tokenizer.encode(part).ids for part in parts)

    def answers(self, truth: torch.Tensor) -> torch.Tensor:
        """Answer tokens of boxes, padded with 0, ``(n, ANSWER)``."""
        rows = [self.tokenizer.encode(boxes.text(box) + "<|im_end|>").ids for box in truth.tolist()]
        return torch.tensor([row + [0] * (ANSWER - len(row)) for row in rows], device=self.device)

    def prompt(self, n: int, cells: int) -> torch.Tensor:
        """Prompt tokens, ``(n, n_tokens)``."""
        ids = self.ahead + [self.model.config.image_token_id] * cells + self.behind
        return torch.tensor(ids, device=self.device).expand(n, -1)

    def scores(self, pixels: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Scores of every answer token after prompt and `given` answer, ``(n, 1 + n_given, vocabulary)``."""
        n, _, height, width = pixels.shape
        rows, columns = height // 28, width // 28
        with torch.autocast(self.device, torch.bfloat16):
            cells = forward.see(self.model, generate.patched(pixels), 2 * rows, 2 * columns, self.blocks)
            ids = torch.cat((self.prompt(n, rows * columns), given), 1)
            x = forward.embed(self.model, ids, cells, len(self.ahead))
            after = len(self.behind) + given.shape[1]
            where = forward.text_positions(len(self.ahead), rows, columns, after, self.device)
            cos, sin = forward.rotation(forward.text_angles(self.model.config.text_config, where), x.dtype)
            for layer in self.model.model.language_model.layers:
                x = self.blocks.text(layer, x, cos, sin)
            return forward.logits(self.model, x[:, -1 - given.shape[1] :]).float()

    def update(self, pixels: torch.Tensor, truth: torch.Tensor, rate: float) -> torch.Tensor:
        """One step on pictures 0..1 and their boxes; returns the loss, on the device."""
        answer = self.answers(truth)
        scored = self.scores(pixels, answer[:, :-1])
        loss = F.cross_entropy(scored.flatten(0, 1), answer.flatten(), ignore_index=0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in ((self.muon, 0.02), (self.adam, 2e-3)):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def check(self, images: torch.Tensor, truth: torch.Tensor) -> list[float]:
        """IoU of greedy answers, one a picture, without a cache: each token runs the whole answer so far."""
        blocks, self.blocks = self.blocks, forward.Blocks()
        pixels = images.permute(0, 3, 1, 2).float() / 255
        given = torch.zeros((len(images), 0), dtype=torch.long, device=self.device)
        for _ in range(ANSWER - 1):
            given = torch.cat((given, self.scores(pixels, given)[:, -1:].argmax(-1)), 1)
        self.blocks = blocks
        answers = [boxes.parse(self.tokenizer.decode(row).split("]")[0] + "]") for row in given.tolist()]
        return [boxes.iou(a, b) for a, b in zip(answers, truth.tolist())]


def rate(progress: float, step: int) -> float:
    """Share of the peak learning rate: 100 steps of warm-up, flat to the middle, then a cosine to zero."""
    warm = min(1.0, (step + 1) / 100)
    return (
        warm if progress < 0.45 else warm * (0.5 + 0.5 * np.cos(np.pi * min(1.0, (progress - 0.45) / 0.55)))
    )


def train(
    out: Annotated[Path, typer.Option()],
    total_s: float = 250,
    batch: int = 256,
    workers: int = 15,
    warm: int = 2048,
    capacity: int = 40000,
    check_s: float = 25,
    device: str = "cuda",
    compiled: bool = True,
    resume: bool = False,
    steps: int | None = None,
) -> None:
    """Train for `total_s` seconds (or `steps`); weights and ``training_log.csv`` land in `out`.

    Args:
        warm: scenes that must be drawn before the first step.
        capacity: scenes of one shape kept on the device (451 kB each).
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    context = multiprocessing.get_context("spawn")
    feed = context.Queue(4 * workers)
    jobs = [(feed, i, workers, scenes.TRAINING, None) for i in range(workers)]
    drawers = [context.Process(target=draw_chunks, args=job, daemon=True) for job in jobs]
    for process in drawers:
        process.start()
    trainer, pool = Trainer(device, compiled), Pool(capacity, device)
    if resume and (out / "weights.safetensors").exists():
        trainer.model.load_state_dict(load_file(out / "weights.safetensors", device))
    checked = _checked(device, CHECKED if warm > 500 else 4)
    while pool.drawn < warm or min(pool.count) == 0:
        pool.add(*feed.get())
    started, step, losses, next_check = time.perf_counter(), 0, [], check_s
    with (out / "training_log.csv").open("a" if resume else "w", newline="") as file:
        log = csv.writer(file)
        if not resume:
            log.writerow(["elapsed_s", "step", "scenes_drawn", "loss", "check_iou", "check_parsed"])
        while True:
            elapsed_s = time.perf_counter() - started
            progress = step / steps if steps else elapsed_s / total_s
            if elapsed_s >= next_check or progress >= 1:
                next_check += check_s
                ious = np.concatenate([trainer.check(images, truth) for images, truth in checked])
                loss = float(torch.stack(losses).mean()) if losses else np.nan
                measured = [round(float(v), 4) for v in (loss, ious.mean(), (ious > 0).mean())]
                log.writerow([round(elapsed_s, 1), step, pool.drawn, *measured])
                file.flush()
                print(
                    f"{elapsed_s:6.0f} s  step {step}  {pool.drawn} scenes  IoU {ious.mean():.4f}", flush=True
                )
                save_file(trainer.model.state_dict(), out / "weights.safetensors")
                losses = []
                if progress >= 1:
                    break
            pool.fill(feed)
            pixels, truth = vary(*pool.batch(step % len(scenes.SHAPES), batch))
            losses.append(trainer.update(pixels, truth, rate(progress, step)))
            step += 1
    for process in drawers:
        process.terminate()
    tiny.save(trainer.model, out / "checkpoint")


def _checked(device: str, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and boxes of the check by shape; no training step sees them."""
    checked = []
    for number, shape in enumerate(scenes.SHAPES):
        drawn = [scenes.draw([scenes.CHECK, number * 1000 + i], shape) for i in range(count)]
        images, truth = stacked(drawn)
        checked.append((torch.from_numpy(images).to(device), torch.from_numpy(truth).to(device)))
    return checked


if __name__ == "__main__":
    typer.run(train)
