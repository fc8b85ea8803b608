"""What AutoRound needs around it: a stated precision, its log in a file and a bar over its blocks, its logged errors as exceptions."""

import gc
import logging
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from colq_utils.base.progress import bar


def precision(device: str) -> dict:
    """What AutoRound tunes in: fp32 on a CPU, where it would otherwise ask the processor for bf16; the model's dtype on CUDA."""
    return {"amp": False} if device == "cpu" else {}


@contextmanager
def collector_spared():
    """AutoRound collects garbage after every step of a block; what is alive before need not be walked through each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def listening(log: Path, blocks: int, label: str):
    """AutoRound's log to a file, a bar over its blocks, and its logged errors as exceptions."""
    logger, errors = logging.getLogger("autoround"), []
    kept, level = logger.handlers[:], logger.level

    class Listener(logging.FileHandler):
        def emit(self, record):
            super().emit(record)
            if record.levelno >= logging.ERROR:
                errors.append(record.getMessage())
            if record.getMessage().startswith("quantized "):
                progress.update()

    logger.handlers = [Listener(log)]
    logger.setLevel(logging.INFO)
    try:
        with (
            bar(label, blocks, "block") as progress,
            log.open("a") as stream,
            redirect_stdout(stream),
            redirect_stderr(stream),
        ):
            yield
    finally:
        logger.handlers[0].close()
        logger.handlers = kept
        logger.setLevel(level)
    if errors:
        raise RuntimeError(f"AutoRound logged an error: {errors[0]}")
