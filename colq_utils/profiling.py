"""Where the time of a call goes on a GPU: matrix products, attention, the steps between them, and the rest.

A latency that misses its floor asks which of these is in the way. Kernels are told apart by their names.
"""
import re

import torch

#: Part -> what the names of its kernels contain; the first that matches counts.
PARTS = {"attention": r"sdpa|flash|fmha|attend|softmax", "products": r"nvjet|gemm|cutlass|humming|splitk|matmul|_mm_|cublas|marlin",
         "steps": r"_residual_norm|_rotate|_activate"}
CALLS = 3


def parts(work) -> dict[str, float]:
    """Seconds a call of `work` keeps the GPU busy, by part, and how many kernels it runs (`kernels`).

    Args:
        work: called without arguments, warm.
    """
    from torch.profiler import ProfilerActivity, profile
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(CALLS):
            work()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    count = 0
    for event in record.key_averages():
        part = part_of(event.key)
        found[part] = found.get(part, 0.0) + event.self_device_time_total / 1e6 / CALLS
        count += event.count if event.self_device_time_total else 0
    return found | {"kernels": count / CALLS}


def part_of(kernel: str) -> str:
    """The part a kernel belongs to, by its name; ``rest`` if none."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, kernel, re.IGNORECASE)), "rest")
