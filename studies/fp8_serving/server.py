"""``vllm serve`` as a process of ours: started, waited for, asked over HTTP, and gone when the block ends.

A server that does not become healthy costs one error with its command and last log lines, and leaves
nothing running. A server given by url is used and not touched. Answers come through the OpenAI chat API
with the picture as a data URL.
"""

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from colq_utils.base.errors import ColqError
from studies.fp8_serving import boxes, pictures
from studies.fp8_serving.engine import LATE, REFUSED, UNDECODABLE, UNREACHABLE, Answer

_TYPES = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp"}
#: How vLLM's log speaks of its memory; the last line counts.
_MEMORY = {
    "weight_bytes": r"[Mm]odel loading took ([\d.]+) ?(GiB|GB)",
    "kv_bytes": r"(?:[Kk][Vv] cache memory: |\()([\d.]+)(?:/[\d.]+\))? ?(GiB|GB)",
}


@dataclass
class Server:
    """A healthy server: its address, the model it serves, and, if it is ours, its process and log."""

    url: str
    model: str
    process: subprocess.Popen | None = None
    log: Path | None = None
    healthy_s: float | None = None
    command: list[str] = field(default_factory=list)

    def said(self) -> str:
        """The log so far, empty for a server that is not ours."""
        return self.log.read_text(errors="replace") if self.log else ""

    def memory(self) -> dict[str, float]:
        """What vLLM says of its memory in its log, in bytes; empty where it says nothing."""
        sizes = {}
        for name, pattern in _MEMORY.items():
            for amount, unit in re.findall(pattern, self.said()):
                sizes[name] = float(amount) * (2**30 if unit == "GiB" else 1e9)
        return sizes

    def resident_bytes(self) -> int | None:
        """Memory of the server's processes on the host; None for a server that is not ours."""
        if self.process is None:
            return None
        pages = 0
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if os.getpgid(int(folder.name)) == self.process.pid:
                    pages += int((folder / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(folder: Path, name: str, settings, log: Path):
    """A server for the checkpoint in `folder`, called `name`; `settings` is the experiment's `Serving`.

    Raises:
        ColqError: no vllm, the port is taken, the server did not become healthy or serves another model.
    """
    if settings.url:
        yield _checked(Server(settings.url.rstrip("/"), name))
        return
    program = shutil.which("vllm")
    if program is None:
        raise ColqError(
            "engine vllm: no `vllm` on the PATH and no serving.url in the experiment; "
            "install vLLM, give a url, or use engine transformers"
        )
    _free(settings.port)
    options = {
        "--host": "127.0.0.1",
        "--port": settings.port,
        "--served-model-name": name,
        "--max-model-len": settings.max_model_len,
        "--gpu-memory-utilization": settings.memory,
    }
    command = [program, "serve", str(folder), *(str(v) for option in options.items() for v in option)]
    command += settings.extra
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        server = Server(f"http://127.0.0.1:{settings.port}", name, process, log, command=command)
        _wait(server, settings.healthy_s)
        server.healthy_s = time.perf_counter() - start
        yield _checked(server)
    finally:
        stop(process)


def stop(process: subprocess.Popen, patience_s: float = 20) -> None:
    """End a process and all of its group: asked first, killed if it will not go."""
    for sign, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived their parent


def _free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ColqError(
                f"port {port} is taken: set serving.port to a free one, "
                "or serving.url to use the server that runs there"
            ) from None


def _wait(server: Server, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if server.process.poll() is not None:
            status = server.process.returncode
            raise _complaint(server, f"vllm ended with status {status} before it was healthy")
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            urllib.request.urlopen(f"{server.url}/health", timeout=2) as reply,
        ):
            if reply.status == 200:
                return
        time.sleep(0.1)
    raise _complaint(server, f"vllm was not healthy within {limit_s:g} s and was ended")


def _complaint(server: Server, what: str) -> ColqError:
    """`what` with the server's command and the last lines of its log."""
    lines = [line.rstrip()[:300] for line in server.said().splitlines() if line.strip()][-15:]
    shown = "\n".join(f"  | {line}" for line in lines or ["(no output)"])
    return ColqError(f"{what}; command: {' '.join(server.command)}\n{shown}")


def _checked(server: Server) -> Server:
    """The server, if it serves the model that will be asked for."""
    try:
        with urllib.request.urlopen(f"{server.url}/v1/models", timeout=10) as reply:
            served = [entry["id"] for entry in json.load(reply)["data"]]
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        cause = f"{type(error).__name__}: {error}"
        raise ColqError(
            f"{server.url} does not answer as an OpenAI API ({cause}); is vLLM running there?"
        ) from None
    if server.model not in served:
        others = ", ".join(served) or "nothing"
        raise ColqError(f"{server.url} does not serve {server.model!r}; it serves: {others}")
    return server


def ask(server: Server, data: bytes, timeout_s: float, tokens: int = 32) -> Answer:
    """One question about one encoded picture; failures are answers with a reason."""
    try:
        pictures.decode(data)
    except ColqError as error:
        return Answer(reason=UNDECODABLE, detail=str(error))
    picture = f"data:image/{_TYPES.get(data[:2], 'jpeg')};base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": boxes.PROMPT}]
    messages = [{"role": "user", "content": content}]
    body = {"model": server.model, "messages": messages, "max_tokens": tokens, "temperature": 0.0}
    url, headers = f"{server.url}/v1/chat/completions", {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    start = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            fields = json.load(reply)
        text = fields["choices"][0]["message"]["content"]
        used = (fields.get("usage") or {}).get("completion_tokens")
    except urllib.error.HTTPError as error:
        return Answer(reason=REFUSED, detail=f"HTTP {error.code}: {_message(error)}")
    except TimeoutError:
        return Answer(reason=LATE, detail=f"no answer within {timeout_s:g} s")
    except (OSError, http.client.HTTPException) as error:
        late = isinstance(getattr(error, "reason", None), TimeoutError)
        return Answer(reason=LATE if late else UNREACHABLE, detail=f"{type(error).__name__}: {error}"[:200])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return Answer(reason=REFUSED, detail=f"the reply is no chat completion ({type(error).__name__})")
    return Answer.of(text or "", latency_s=time.perf_counter() - start, tokens=used)


def _message(error: urllib.error.HTTPError) -> str:
    """What an error reply says, in one line."""
    text = error.read().decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError):
        fields = json.loads(text)
        text = (fields.get("error") or fields).get("message", text)
    return " ".join(str(text).split())[:200]


class Remote:
    """The engine ``vllm``: asks a server, `batch` requests at a time."""

    name = "vllm"

    def __init__(self, server: Server, timeout_s: float, batch: int = 1):
        self.server, self.timeout_s, self.batch = server, timeout_s, batch

    def answer(self, encoded: list[bytes]) -> list[Answer]:
        """Answers to encoded pictures, in order."""
        with ThreadPoolExecutor(self.batch) as pool:
            return list(pool.map(lambda data: ask(self.server, data, self.timeout_s), encoded))
