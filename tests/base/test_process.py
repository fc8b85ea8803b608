"""Functions in processes of their own: a failure is a reason, order is kept, nobody outlives the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colq_utils.base import config, process


@pytest.mark.parametrize(
    "function, message",
    [
        ("killed", "ended by SIGKILL"),
        ("broken", "MemoryError: too little of it"),
        ("left", "status 3"),
        ("slept", "no result within"),
    ],
)
def test_a_dying_child_is_a_reason(tmp_path, monkeypatch, function, message):
    (tmp_path / "isolated.py").write_text(
        "import os, time\n"
        f"def killed(): os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "def broken(): raise MemoryError('too little of it')\n"
        "def left(): os._exit(3)\n"
        "def slept(): time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = process.call(f"isolated:{function}", {}, timeout_s=2 if function == "slept" else 60)
    assert outcome.value is None and message in outcome.error


def test_side_by_side_keeps_the_order_and_an_interrupt_ends_all(tmp_path, monkeypatch):
    (tmp_path / "isolated.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "def half(x): return 10 / x\n"
        "def slept(file): Path(file).write_text(str(os.getpid())); time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first, second = process.side_by_side("isolated:half", [{"x": 0}, {"x": 5}], 1, lambda: None)
    assert "ZeroDivisionError" in first.error and second.value == 2

    pids = [tmp_path / "1", tmp_path / "2"]

    def interrupt():
        if all(file.exists() and file.read_text() for file in pids):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.side_by_side("isolated:slept", [{"file": str(file)} for file in pids], 1, interrupt)
    assert not any(Path("/proc", file.read_text()).exists() for file in pids)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_its_parent(tmp_path, how):
    """Ctrl-C and kill -9 of the parent, while its child works."""
    (tmp_path / "isolated.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        f"def slept(): Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)\n"
    )
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from colq_utils.base import process; process.call('isolated:slept', {})"
    )
    search = os.pathsep.join([str(config.ROOT), str(tmp_path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": search}, stderr=subprocess.DEVNULL
    )
    assert _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    parent.send_signal(how)
    parent.wait(10)
    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    assert _until(lambda: not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def _until(done, seconds: float = 20) -> bool:
    """Whether `done` comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.05)
    return False
