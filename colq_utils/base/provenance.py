"""What a result was made with: versions, machine, code. Stored beside each result, never recomputed later."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from colq_utils.base import arithmetic
from colq_utils.base.config import ROOT, Experiment

PACKAGES = (
    *("torch", "transformers", "auto-round", "auto-round-lib", "humming-kernels", "gptqmodel"),
    "bitsandbytes",
    *("mteb", "pandas", "numpy"),
)


def collect(experiment: Experiment) -> dict:
    """Versions, processor, threads, GPU, git commit and seed, as a flat JSON-ready dict."""
    import torch

    gpu = torch.cuda.is_available()
    changes = _git("status", "--porcelain", "--", "colq_utils", "notebooks", "experiments")
    return {
        "experiment": experiment.name,
        "seed": experiment.seed,
        "dtype": experiment.runtime.dtype,
        "max_visual_tokens": experiment.model.max_visual_tokens,
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "cpu": arithmetic.processor(),
        "arithmetic": arithmetic.describe(experiment.runtime.dtype),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "commit": commit(),
        "uncommitted_code": "COLQ_COMMIT" not in os.environ and bool(changes),
    }


def machine() -> str:
    """What decides results of where the model runs: the visible GPU, else the kind of CPU arithmetic."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else arithmetic.kind()


def commit() -> str | None:
    """The git commit of the code; a copy of the tree outside git is told by ``COLQ_COMMIT``."""
    return os.environ.get("COLQ_COMMIT") or _git("rev-parse", "--short=12", "HEAD")


def version_of(name: str) -> str | None:
    """Installed version of a package, None if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
