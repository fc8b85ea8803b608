"""What quantizing with AutoRound costs on a GPU: seconds a block and peak memory, on a few blocks of the real dimensions.

All decoder blocks have one shape and are tuned one after the other, so a model of a few of them gives the time of each;
the whole model's figure is an extrapolation and is marked as one.
"""

import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from colq_utils.base import provenance
from colq_utils.base.config import AutoRoundCost
from colq_utils.model import loading, processing, randomized
from colq_utils.model.autoround import listening


def measure(size: str, settings: dict, scratch: str) -> dict:
    """Tune the blocks of a truncated random model.

    Args:
        settings: an `AutoRoundCost` as a dict.
        scratch: an existing folder with room for the truncated checkpoint, twice.

    Returns:
        The settings, the code's ``commit``, ``block_s`` (seconds of each block), ``total_s``, ``peak_allocated_bytes``, ``peak_reserved_bytes``.
    """
    cost = AutoRoundCost(**settings)
    with TemporaryDirectory(dir=scratch) as folder:
        base = Path(folder) / "base"
        base.mkdir()
        randomized.write(size, base, 0, "cuda", cost.blocks)
        model = loading.open_model(str(base), device="cuda").requires_grad_(True)
        processor = processing.from_pretrained(str(base))
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        finished = _tune(model, processor, cost, Path(folder))
        total_s = time.perf_counter() - start
    return {
        "size": size,
        "commit": provenance.commit(),
        **cost.model_dump(),
        "block_s": [b - a for a, b in zip([start, *finished], finished, strict=False)],
        "total_s": total_s,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def _tune(model, processor, cost: AutoRoundCost, folder: Path) -> list[float]:
    """Run AutoRound; the clock's reading as each block was done (the first includes collecting its inputs)."""
    from auto_round import AutoRound

    finished = []

    class Clock(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("quantized "):
                finished.append(time.perf_counter())

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 6000, (cost.samples, cost.seqlen), generator=generator)
    batches = [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids.split(cost.batch_rows)
    ]
    with listening(folder / "autoround.log", cost.blocks, "AutoRound"):
        logging.getLogger("autoround").addHandler(Clock())
        engine = AutoRound(
            model,
            tokenizer=processor.tokenizer,
            processor=processor,
            scheme="W4A16",
            dataset=batches,
            iters=cost.iters,
            seqlen=cost.seqlen,
            nsamples=cost.samples,
            batch_size=cost.batch_rows,
            device_map="cuda",
            seed=0,
            enable_torch_compile=cost.compiled,
        )
        engine.quantize()
    return finished
