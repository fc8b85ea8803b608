"""Train the embedded ColQwen3 from scratch on one accelerator.

`python -m studies.embedded.train --data FOLDER --out FOLDER --total-s 1100 --stop-s 560` where
the data folder holds `documents.json` (name, lang, split), `pdf/`, `texts/`, `fonts/` and
`tokenizer.json`. The schedule follows training time, not steps, so that annealing ends when the
budget does; `--stop-s` ends a call early and `--state` lets the next one go on from there. What
it writes: `log.jsonl` (losses and reading checks), the weights in two shards of bf16. The state
file is scratch and never shared.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from studies.embedded import augment, check, losses
from studies.embedded.canvases import CLASSES, LANGUAGES, Sources
from studies.embedded.feed import Pool, Workers
from studies.embedded.muon import Muon
from studies.embedded.tiny_config import HEIGHT, WIDTH, TinyConfig
from studies.embedded.tiny_model import TinyColQwen3, describe


class Trainer:
    """The model, what is learned beside it and its optimizers."""

    def __init__(
        self, config: TinyConfig, device: str, batch: int, queries: int, packed: int, compiled: bool
    ):
        self.device, self.batch, self.queries_each, self.packed = device, batch, queries, packed
        self.model = TinyColQwen3(config).to(device)
        self.reader = nn.Linear(config.vision_hidden, 8 * (len(CLASSES) + 1)).to(device)
        self.scales = nn.Parameter(torch.tensor([math.log(12.0), math.log(8.0)], device=device))
        matrices, others = split_parameters(self.model)
        self.muon = Muon(matrices, lr=0.02, weight_decay=0.01)
        self.adamw = torch.optim.AdamW(
            [*others, *self.reader.parameters(), self.scales], lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.step, self.elapsed_s = 0, 0.0
        self.retrieval = losses.retrieval_losses
        self.reading = reading_loss
        if compiled:
            for block in [*self.model.vlm.model.visual.blocks, *self.model.vlm.model.language_model.layers]:
                block.compile(dynamic=False)
            self.retrieval = torch.compile(self.retrieval, dynamic=False)
            self.reading = torch.compile(self.reading, dynamic=False)

    def loss(
        self, example: dict[str, torch.Tensor], progress: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a batch of canvases and its parts; `progress` in 0..1 sets their weights."""
        with torch.no_grad():
            views = augment.draw_views(len(example["image"]), tuple(example["image"].shape[1:]), self.device)
            pages = augment.scan(augment.crop(example["image"], views)).round() / 127.5 - 1
            boxes = augment.move_boxes(example["boxes"], views)
            tokens, boxes = losses.choose(example["tokens"].long(), boxes, (HEIGHT, WIDTH), self.queries_each)
            classes = augment.read_characters(example["characters"], views)
            places = losses.pack(tokens, self.packed)
            real = tokens.flatten()[places] > 0
            printed = losses.printed_cells(boxes.flatten(0, 2)[places])
            rivals_off = losses.rivals(example["page"])
        n_queries, width = tokens.shape[0] * tokens.shape[1], tokens.shape[2]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            cells, patches = self.model.pages(pages)
            words = self.model.queries(tokens.flatten(0, 1)).flatten(0, 1)[places]
            read = self.reading(self.reader, patches, classes)
        spot, within, rank, right = self.retrieval(
            words, cells, self.scales, places // width, printed, real, rivals_off, n_queries
        )
        rank_weight = 0.1 + 1.9 * ramp(progress, 0.1, 0.6)
        read_weight = 3.0 - 2.75 * ramp(progress, 0.05, 0.4)
        total = spot + 0.3 * within + rank_weight * rank + read_weight * read
        return total, dict(spot=spot, within=within, rank=rank, read=read, right=right)

    def update(
        self, example: dict[str, torch.Tensor], progress: float, warm_steps: int = 150
    ) -> dict[str, torch.Tensor]:
        """Take one optimizer step and return the parts of the loss."""
        rate = min(1.0, (self.step + 1) / warm_steps) * schedule(progress)
        self.muon.param_groups[0]["lr"], self.adamw.param_groups[0]["lr"] = 0.02 * rate, 1.5e-3 * rate
        total, parts = self.loss(example, progress)
        total.backward()
        self.muon.step()
        self.adamw.step()
        self.model.zero_grad(set_to_none=True)
        self.adamw.zero_grad(set_to_none=True)
        self.step += 1
        return {name: value.detach() for name, value in parts.items()}

    def state(self) -> dict:
        return dict(
            model=self.model.state_dict(),
            reader=self.reader.state_dict(),
            scales=self.scales.data,
            muon=self.muon.state_dict(),
            adamw=self.adamw.state_dict(),
            step=self.step,
            elapsed_s=self.elapsed_s,
        )

    def load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.reader.load_state_dict(state["reader"])
        self.scales.data.copy_(state["scales"])
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]


def split_parameters(model: TinyColQwen3) -> tuple[list, list]:
    """Return (matrices of blocks and mergers, for Muon; everything else, for AdamW)."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        inner = any(part in name for part in (".blocks.", ".layers.", "merger"))
        (matrices if p.ndim == 2 and inner else others).append(p)
    return matrices, others


def reading_loss(reader: nn.Linear, patches: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the character at 8 points of each patch; blanks weigh a fifth."""
    logits = reader(patches).view(-1, len(CLASSES) + 1).float()
    weight = torch.where(classes.flatten() == 0, 0.2, 1.0)
    return (F.cross_entropy(logits, classes.flatten(), reduction="none") * weight).sum() / weight.sum()


def ramp(progress: float, start: float, end: float) -> float:
    """Rise from 0 at `start` to 1 at `end`."""
    return min(1.0, max(0.0, (progress - start) / (end - start)))


def schedule(progress: float) -> float:
    """Learning-rate factor: flat, then a cosine to zero over the last half of the time."""
    return 1.0 if progress < 0.5 else 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.5) / 0.5)))


@torch.no_grad()
def encode(model: TinyColQwen3, tokenizer: Tokenizer, images: np.ndarray, texts: list[str], device: str):
    """Return vectors of queries, a list of (t, d), and of regions (n, 264, d)."""
    pages, queries = [], []
    with (
        torch.autocast(device, torch.bfloat16, enabled=device != "cpu"),
        torch.compiler.set_stance("force_eager"),
    ):
        for start in range(0, len(images), 32):
            part = torch.from_numpy(images[start : start + 32]).to(device).float() / 127.5 - 1
            pages.append(model.pages(part)[0])
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False).ids[:60]
            queries.append(torch.tensor(ids))
        padded = nn.utils.rnn.pad_sequence(queries, batch_first=True).to(device)
        vectors = model.queries(padded)
    return [vectors[i, : len(ids)] for i, ids in enumerate(queries)], torch.cat(pages)


def evaluate(
    model: TinyColQwen3, tokenizer: Tokenizer, data: check.Check, device: str, scanned: bool = False
) -> dict:
    """Run the reading check with the compact model."""
    images = check.degrade(data.images) if scanned else data.images
    return check.report(
        data, *encode(model, tokenizer, images, [query.text for query in data.queries], device)
    )


def save_shards(model: TinyColQwen3, folder: Path) -> None:
    """Write the weights in bf16 as two safetensors files of about equal size."""
    items = [
        (name, value.to(torch.bfloat16).contiguous().cpu()) for name, value in model.state_dict().items()
    ]
    half, shards = sum(value.numel() for _, value in items) / 2, ({}, {})
    for name, value in sorted(items, key=lambda item: -item[1].numel()):
        sizes = [sum(v.numel() for v in shard.values()) for shard in shards]
        shards[0 if sizes[0] + value.numel() <= half + 50_000 and sizes[0] <= sizes[1] else 1][name] = value
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"model-{i + 1}.safetensors")


def sources(data: Path) -> tuple[Sources, list[dict]]:
    """Return the training sources in a data folder and the held-out documents."""
    documents = json.loads((data / "documents.json").read_text(encoding="utf-8"))
    pdfs = {
        language: [
            str(data / "pdf" / f"{d['name']}.pdf")
            for d in documents
            if d["lang"] == language and d["split"] == "train"
        ]
        for language in LANGUAGES
    }
    held_out = [d for d in documents if d["split"] == "held_out"]
    return Sources(pdfs, str(data / "texts"), str(data / "fonts"), str(data / "tokenizer.json")), held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, help="scratch file to go on from and to save to")
    parser.add_argument("--check", type=Path, help="scratch file of the reading check, made when missing")
    parser.add_argument("--weights", type=Path, help="folder with model-*.safetensors to start from")
    parser.add_argument("--total-s", type=float, default=1100, help="training time of the whole schedule")
    parser.add_argument("--stop-s", type=float, default=560, help="wall time after which this call ends")
    parser.add_argument("--batch", type=int, default=256, help="regions a step")
    parser.add_argument("--queries", type=int, default=6, help="queries a region")
    parser.add_argument("--packed", type=int, default=12288, help="query tokens a step at most")
    parser.add_argument("--capacity", type=int, default=24576, help="pairs in the pool")
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--per-language", type=int, default=50, help="regions of the reading check")
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    """Train until the schedule or the call's time ends; see the module's docstring."""
    began = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    feed, held_out = sources(args.data)
    workers = Workers(feed, args.workers, args.seed)

    def note(**row) -> None:
        row = {"wall_s": round(time.monotonic() - began, 1), **row}
        print(json.dumps(row), flush=True)
        with open(args.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(TinyConfig(), args.device, args.batch, args.queries, args.packed, args.device != "cpu")
    if args.state and args.state.exists():
        trainer.load(torch.load(args.state, map_location=args.device, weights_only=True))
        torch.manual_seed(args.seed + trainer.step)
    note(event="start", step=trainer.step, elapsed_s=trainer.elapsed_s, **describe(trainer.model))
    pool = Pool(workers, args.capacity, args.device)
    data = (
        check.load(args.check)
        if args.check and args.check.exists()
        else check.build(held_out, args.data / "pdf", args.per_language)
    )
    if args.check:
        check.save(data, args.check)
    tokenizer = Tokenizer.from_file(feed.tokenizer)
    note(event="check", regions=len(data.images), queries=len(data.queries), made=pool.n_made)
    pool.wait(min(args.capacity, 8 * args.batch))
    note(event="pool", made=pool.n_made)

    def measure() -> None:
        table = evaluate(trainer.model, tokenizer, data, args.device)
        short = {kind: [round(row["mean"], 4), round(row["pooled"], 4)] for kind, row in table.items()}
        note(event="reading", step=trainer.step, elapsed_s=round(trainer.elapsed_s, 1), **short)
        save_shards(trainer.model, args.out)
        if args.state:
            torch.save(trainer.state(), args.state)

    last, measured, rows = time.monotonic(), 0, []
    while trainer.elapsed_s < args.total_s and time.monotonic() - began < args.stop_s:
        pool.renew()
        parts = trainer.update(pool.draw(args.batch // 2), trainer.elapsed_s / args.total_s)
        rows.append(torch.stack([value.detach().float() for value in parts.values()]))
        if trainer.step % 25 == 0 or args.device == "cpu":
            means = torch.stack(rows).mean(0).tolist()  # waits for the accelerator
            now = time.monotonic()
            trainer.elapsed_s += now - last
            note(
                step=trainer.step,
                elapsed_s=round(trainer.elapsed_s, 1),
                ms=round(1e3 * (now - last) / len(rows), 1),
                **{name: round(value, 4) for name, value in zip(parts, means)},
                made=2 * pool.n_made,
                rate=round(schedule(trainer.elapsed_s / args.total_s), 4),
                scales=[round(value, 2) for value in trainer.scales.exp().tolist()],
            )
            rows = []
            if trainer.elapsed_s - measured > 60:
                measure()
                measured = trainer.elapsed_s
            last = time.monotonic()
    measure()
    for scanned in (False, True):
        note(
            event="final",
            scanned=scanned,
            table=evaluate(trainer.model, tokenizer, data, args.device, scanned),
        )
    workers.stop()


if __name__ == "__main__":
    main()
