"""What quantizing with AutoRound costs on a GPU: seconds a block and peak memory, on a few real-sized blocks.

All decoder blocks have one shape and are tuned one after the other, so a model of a few of them gives the
time of each; the whole model's figure is an extrapolation and is marked as one.
"""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from colq_utils.base import provenance
from colq_utils.base.config import Experiment
from colq_utils.model import loading, processing, randomized
from colq_utils.model.autoround import listening


@dataclass(frozen=True)
class Settings:
    """Of AutoRound on `blocks` decoder blocks; a step takes `batch_rows` of `samples` rows of `seqlen`."""

    seqlen: int
    samples: int
    iters: int
    batch_rows: int
    blocks: int
    compiled: bool = False


def cost(experiment: dict, schedules: dict[str, str], settings: dict) -> dict:
    """Tune the blocks of a truncated random model of the experiment's size, with `settings` as in `Settings`.

    Returns:
        The settings, the code's ``commit``, ``block_s`` (seconds of each block), ``total_s``,
        ``peak_allocated_bytes`` and ``peak_reserved_bytes``.
    """
    run, study = Settings(**settings), Experiment.model_validate(experiment)
    scratch = study.build()
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch) as folder:  # the truncated checkpoint, twice
        base = Path(folder) / "base"
        base.mkdir()
        randomized.write(study.model.size, base, 0, "cuda", run.blocks)
        model = loading.open_model(str(base), device="cuda").requires_grad_(True)
        processor = processing.from_pretrained(str(base))
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        finished = _tune(model, processor, run, Path(folder))
        total_s = time.perf_counter() - start
    return {
        "size": study.model.size,
        "commit": provenance.commit(),
        **asdict(run),
        "block_s": [b - a for a, b in zip([start, *finished], finished, strict=False)],
        "total_s": total_s,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def _tune(model, processor, run: Settings, folder: Path) -> list[float]:
    """Run AutoRound; the clock as each block was done (the first includes collecting its inputs)."""
    from auto_round import AutoRound

    finished = []

    class Clock(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("quantized "):
                finished.append(time.perf_counter())

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 6000, (run.samples, run.seqlen), generator=generator)
    batches = [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids.split(run.batch_rows)
    ]
    with listening(folder / "autoround.log", run.blocks, "AutoRound"):
        logging.getLogger("autoround").addHandler(Clock())
        engine = AutoRound(
            model,
            tokenizer=processor.tokenizer,
            processor=processor,
            scheme="W4A16",
            dataset=batches,
            iters=run.iters,
            seqlen=run.seqlen,
            nsamples=run.samples,
            batch_size=run.batch_rows,
            device_map="cuda",
            seed=0,
            enable_torch_compile=run.compiled,
        )
        engine.quantize()
    return finished
