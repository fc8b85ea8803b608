"""Progress of long work: a bar in a terminal or a notebook, nothing in a log.

Headless runs execute notebooks in a kernel whose output is captured. The driver passes the name of
its terminal in ``COLQ_TTY`` and the bar is drawn there; without a terminal there is no bar.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain


@contextmanager
def bar(label: str, total: int | None = None, unit: str = "it") -> Iterator[tqdm]:
    """A bar to `update` by hand; invisible where nobody watches."""
    terminal = os.environ.get("COLQ_TTY")
    if terminal:
        with open(terminal, "w") as stream:
            yield plain(desc=f"  {label}", total=total, unit=unit, file=stream, leave=False, disable=False)
    else:
        headless = "COLQ_HEADLESS" in os.environ or not (sys.stderr.isatty() or "ipykernel" in sys.modules)
        yield tqdm(desc=label, total=total, unit=unit, leave=False, disable=headless)


def track(items: Iterable, label: str, total: int | None = None, unit: str = "it") -> Iterator:
    """Yield from `items`, showing how far the work has come."""
    with bar(label, total if total is not None else len(items), unit) as progress:
        for item in items:
            yield item
            progress.update()
        progress.close()
