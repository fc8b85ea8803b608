"""How the GPU kernels of the fast path are launched.

On Hopper and later, with few rows, each kernel is launched while the one before still runs, waits for it
before it touches memory, and lets the next be launched: most take no longer than a launch.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

#: Rows from which a GPU has more of them than it can work on at a time.
MANY = 4096


@cache
def _hopper() -> bool:
    return torch.cuda.get_device_capability() >= (9, 0)


def early(rows: int) -> dict[str, bool]:
    """Launch options. With many rows there is nothing to gain: the kernel before fills the GPU to its end."""
    ahead = rows < MANY and _hopper()
    return {"EARLY": ahead, "launch_pdl": ahead}


@triton.jit
def begin(EARLY: tl.constexpr):
    """Wait for what the kernels before have written, then let the next kernel be launched."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
