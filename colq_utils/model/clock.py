"""Seconds of a piece of work on a device."""

import time

import torch


def timed(work, device: str) -> float:
    """Seconds one call takes: between CUDA events on a GPU, by the process clock on a CPU."""
    if device != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000
