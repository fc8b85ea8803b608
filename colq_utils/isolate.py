"""One function call in a fresh process, so that no measurement inherits memory, caches or kernels from another.

``python -m colq_utils.isolate job.json result.json`` imports ``module:function``, calls it with the
job's keyword arguments and writes what it returns. A child that raises, is killed or takes too long
costs the parent an `Outcome` with the reason, never the run. It does not restrict what a child may do.
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
        timeout_s: the child is killed after this many seconds.

    Returns:
        The result, or the exception, signal or time limit that ended the child. An interrupt of the
        parent kills the child and goes on as KeyboardInterrupt.
    """
    with tempfile.TemporaryDirectory(prefix="colq-") as scratch:
        job, result, log = (Path(scratch) / name for name in ("job.json", "result.json", "log.txt"))
        job.write_text(json.dumps({"function": function, "arguments": arguments, "parent": os.getpid()}))
        with log.open("wb") as stream, _child(job, result, stream, threads) as child:
            try:
                status = child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return Outcome(error=f"no result within {timeout_s:g} s; the process was ended")
        if result.exists():
            return Outcome(**json.loads(result.read_text()))
        return Outcome(error=_cause_of_death(status, log.read_text(errors="replace")))


@contextlib.contextmanager
def _child(job: Path, result: Path, log, threads: int | None):
    """Start the child; it does not outlive this block, however the block ends."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    if threads is not None:
        environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-m", "colq_utils.isolate", str(job), str(result)]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def _cause_of_death(status: int, log: str) -> str:
    """Name the signal or exit status of a child that left no result, with the last line it printed."""
    if status < 0:
        name = signal.Signals(-status).name
        text = f"the process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    else:
        text = f"the process ended with status {status} and no result"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f"{text}; last output: {lines[-1][:300]}" if lines else text


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


def _die_with(parent: int) -> None:
    """Ask Linux to end this process when its parent dies, even by SIGKILL; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before the request was in place
            os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
