"""The code that a result depends on: by the folders of the package that a stage can reach, never by lists of modules.

What is kept from an earlier run (a stage's freshness, a measured process, scored tasks) carries a digest of these folders.
A GPU folder counts only where the experiment runs on its path, so that editing a GPU kernel makes no CPU result stale.
"""

import functools
from pathlib import Path

from colq_utils.base import files
from colq_utils.base.config import ROOT, Experiment

#: Stage -> what it can reach below colq_utils, beside `fast`.
REACH = {
    "inspect": ("base", "model", "stages/inspect.py"),
    "calibrate": ("base", "model", "data", "stages/calibrate.py"),
    "quantize": ("base", "model", "data", "stages/quantize"),
    "benchmark": ("base", "model", "data", "stages/benchmark"),
    "evaluate": ("base", "model", "data", "stages/evaluate"),
    "report": ("base", "report"),
}
#: Figures that the other stages' notebooks draw.
FIGURES = "report/figures"


def code(experiment: Experiment, stage: str, figures: bool = False) -> str:
    """Digest of the code that a stage can reach; with `figures`, of what its notebook draws with as well."""
    reached = REACH[stage] + ((FIGURES,) if figures and stage != "report" else ())
    if stage != "report" and any(experiment.encode_path(name) == "fast" for name in experiment.by_id):
        reached += ("fast",)
    return digest(*reached)


@functools.cache
def digest(*parts: str) -> str:
    """Digest of the Python files and templates of folders (or single files) of the package, read once per process: what runs is what was imported."""
    package = ROOT / "colq_utils"
    found = [
        path
        for part in parts
        for path in (
            sorted(f for f in (package / part).rglob("*") if f.suffix in (".py", ".j2"))
            if (package / part).is_dir()
            else [package / part]
        )
    ]
    return files.sha256_bytes(
        "\n".join(f"{path.relative_to(package)} {files.sha256(path)}" for path in found).encode()
    )


def reachable(stage: str) -> list[Path]:
    """The folders and files of `REACH`, for tests of what the code really imports."""
    return [ROOT / "colq_utils" / part for part in REACH[stage]]
