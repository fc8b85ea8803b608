"""One function call in a fresh process: no measurement inherits memory, caches or kernels from another.

``python -m colq_utils.base.process job.json result.json`` imports ``module:function``, calls it with the
job's keyword arguments and writes what it returns. A child that raises, is killed or takes too long costs the
parent an `Outcome` with the reason, never the run. It does not restrict what a child may do.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a child returned (`value`), or why it returned nothing (`error`, one line)."""

    value: dict | list | None = None
    error: str | None = None


def call(function: str, arguments: dict, threads: int | None = None, timeout_s: float = 1800) -> Outcome:
    """Call ``module:function(**arguments)`` in a new process; arguments and result are JSON.

    Args:
        threads: size of the child's thread pools, set before its first import; None leaves the default.

    Returns:
        The result, or the exception, signal or time limit that ended the child. An interrupt of the parent
        kills the child and goes on as KeyboardInterrupt.
    """
    with _started(function, arguments, threads) as (child, outcome):
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return Outcome(error=f"no result within {timeout_s:g} s; the process was ended")
        return outcome()


def side_by_side(function: str, jobs: list[dict], threads: int, watch: Callable[[], None]) -> list[Outcome]:
    """As `call`, for each of `jobs` (its keyword arguments) in a process of its own, all at once.

    Args:
        watch: called every second while any of them runs. An interrupt kills them all.
    """
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_started(function, arguments, threads)) for arguments in jobs]
        while any(child.poll() is None for child, _ in running):
            watch()
            time.sleep(1)
        return [outcome() for _, outcome in running]


@contextlib.contextmanager
def _started(function: str, arguments: dict, threads: int | None):
    """A running child, which ends with this block, and what to call for its outcome once it has ended."""
    pools = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with tempfile.TemporaryDirectory(prefix="colq-") as scratch:
        job, result, log = (Path(scratch) / name for name in ("job.json", "result.json", "log.txt"))
        job.write_text(json.dumps({"function": function, "arguments": arguments, "parent": os.getpid()}))
        with log.open("wb") as stream:
            child = subprocess.Popen(
                [sys.executable, "-m", "colq_utils.base.process", str(job), str(result)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"PYTHONPATH": search_path()} | pools,
            )
            try:
                yield child, lambda: _outcome(child.returncode, result, log)
            finally:
                if child.poll() is None:
                    child.kill()
                child.wait()


def search_path() -> str:
    """PYTHONPATH of a process that is to find this package first."""
    root = Path(__file__).resolve().parents[2]
    return os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))


def _outcome(status: int, result: Path, log: Path) -> Outcome:
    """What a child left; if nothing, the signal or status that ended it, and the last line it printed."""
    if result.exists():
        return Outcome(**json.loads(result.read_text()))
    reason = f"the process ended with status {status} and no result"
    if status < 0:
        reason = f"the process was ended by {signal.Signals(-status).name}"
    if -status == signal.SIGKILL:
        reason += " (out of memory?)"
    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
    return Outcome(error=reason + (f"; last output: {last[:300]}" if last else ""))


def main(job_file: str, result_file: str) -> None:
    """The child's side: run the job and leave ``{"value": …}`` or ``{"error": …}``, whole or not at all."""
    job = json.loads(Path(job_file).read_text())
    _die_with(job["parent"])
    try:
        module, name = job["function"].split(":")
        outcome = {"value": getattr(importlib.import_module(module), name)(**job["arguments"])}
    except Exception as error:  # anything the job raises is its result
        outcome = {"error": describe(error)}
    scratch = Path(result_file + ".part")
    scratch.write_text(json.dumps(outcome))
    scratch.replace(result_file)


def describe(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:400]}" if lines else type(error).__name__


def resident(field: str = "VmRSS") -> int | None:
    """Resident set of this process (``VmHWM``: its peak) in bytes; None where Linux's /proc is missing."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def _die_with(parent: int) -> None:
    """Ask Linux to end this process when its parent dies, even by SIGKILL; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before the request was in place
            os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
