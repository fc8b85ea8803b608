"""Where the time of a call goes on a GPU: matrix products, attention, the steps between them, and the rest.

A latency that misses its floor asks which of these is in the way. Kernels are told apart by their names.
"""

import re
from collections import defaultdict

import torch

#: Part -> what the names of its kernels contain; the first that matches counts.
PARTS = {
    "attention": r"sdpa|flash|fmha|attend|softmax",
    "products": r"nvjet|gemm|cutlass|humming|splitk|matmul|_mm_|cublas|marlin",
    "steps": r"_residual_norm|_rotate|_activate",
}
CALLS = 3


def parts(work) -> dict[str, float]:
    """Seconds a call of `work` keeps the GPU busy, by part, and how many kernels it runs (`kernels`).

    Args:
        work: called without arguments, warm.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as record:
        for _ in range(CALLS):
            work()
        torch.cuda.synchronize()
    events = [event for event in record.events() if event.device_type == DeviceType.CUDA]
    kernels = [(event.time_range.start, event.time_range.end, event.name) for event in events]
    seconds = {part: total / CALLS for part, total in alone(kernels).items()}
    return seconds | {"kernels": len(kernels) / CALLS}


def alone(kernels: list[tuple[float, float, str]]) -> dict[str, float]:
    """Seconds by part of kernels given as (start, end, name) in microseconds.

    A kernel may be launched while the one before still runs, and wait: what they share is the earlier one's.
    """
    seconds: dict[str, float] = defaultdict(float)
    until = 0.0
    for start, end, name in sorted(kernels):
        seconds[part_of(name)] += max(0.0, end - max(start, until)) / 1e6
        until = max(until, end)
    return dict(seconds)


def part_of(kernel: str) -> str:
    """The part a kernel belongs to, by its name; ``rest`` if none."""
    matches = (part for part, pattern in PARTS.items() if re.search(pattern, kernel, re.IGNORECASE))
    return next(matches, "rest")
