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
def listening(log: Path, blocks: int, label: str):
    """AutoRound's log to a file, a bar over its blocks, and its logged errors as exceptions.

    What is alive before is kept out of the garbage collections that it has after every step of a block.
    """
    logger, errors = logging.getLogger("autoround"), []
    handlers, level = logger.handlers, logger.level

    class Listener(logging.FileHandler):
        def emit(self, record):
            super().emit(record)
            if record.levelno >= logging.ERROR:
                errors.append(record.getMessage())
            if record.getMessage().startswith("quantized "):
                progress.update()

    listener = Listener(log)
    output = listener.stream
    logger.handlers = [listener]
    logger.setLevel(logging.INFO)
    gc.collect()
    gc.freeze()
    try:
        with bar(label, blocks, "block") as progress, redirect_stdout(output), redirect_stderr(output):
            yield
    finally:
        gc.unfreeze()
        listener.close()
        logger.handlers = handlers
        logger.setLevel(level)
    if errors:
        raise RuntimeError(f"AutoRound logged an error: {errors[0]}")
