"""Progress of long work: a bar in a terminal or a notebook, nothing in a log.

A headless run captures its notebook's output: the driver names its terminal in ``COLQ_TTY`` for the bar.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain


@contextmanager
def bar(label: str, total: int, unit: str = "it") -> Iterator[tqdm]:
    """A bar to `update` by hand; invisible where nobody watches."""
    if terminal := os.environ.get("COLQ_TTY"):
        with open(terminal, "w") as stream:
            yield plain(desc=f"  {label}", total=total, unit=unit, file=stream, leave=False, disable=False)
    else:
        headless = "COLQ_HEADLESS" in os.environ or not (sys.stderr.isatty() or "ipykernel" in sys.modules)
        yield tqdm(desc=label, total=total, unit=unit, leave=False, disable=headless)


def track(items: Iterable, label: str, total: int | None = None, unit: str = "it") -> Iterator:
    """Yield from `items`, showing how far the work has come."""
    with bar(label, len(items) if total is None else total, unit) as progress:
        for item in items:
            yield item
            progress.update()
        progress.close()
