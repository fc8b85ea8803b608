"""What AutoRound needs around it: a stated precision, its log in a file, a bar over its blocks."""

import gc
import logging
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from colq_utils.base.progress import bar


def precision(device: str) -> dict:
    """What AutoRound tunes in: the model's dtype on CUDA, fp32 on a CPU, whatever that knows of bf16."""
    return {"amp": False} if device == "cpu" else {}


@contextmanager
def collector_spared():
    """Keep what is alive now out of the garbage collections that AutoRound has after every step."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _redirected(stream):
    with redirect_stdout(stream), redirect_stderr(stream):
        yield


@contextmanager
def listening(log: Path, blocks: int, label: str):
    """AutoRound's log to a file, a bar over its blocks, and its logged errors as exceptions."""
    logger, errors = logging.getLogger("autoround"), []
    handlers, level = logger.handlers, logger.level

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
        with bar(label, blocks, "block") as progress, log.open("a") as out, _redirected(out):
            yield
    finally:
        logger.handlers[0].close()
        logger.handlers = handlers
        logger.setLevel(level)
    if errors:
        raise RuntimeError(f"AutoRound logged an error: {errors[0]}")
