"""The code that a result depends on: the folders of the package that a stage can reach, no lists of modules.

What is kept of an earlier run (a fresh stage, a measured process, scored tasks) carries a digest of them.
"""

import functools

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


def code(experiment: Experiment, stage: str, figures: bool = False) -> str:
    """Digest of the code that a stage can reach; with `figures`, of what its notebook draws with as well.

    The GPU path counts only where the experiment runs on it: editing a GPU kernel makes no CPU result stale.
    """
    reached = REACH[stage]
    if stage != "report":
        reached += ("report/figures",) if figures else ()
        reached += ("fast",) if "fast" in map(experiment.encode_path, experiment.by_id) else ()
    return digest(*reached)


@functools.cache
def digest(*parts: str) -> str:
    """Digest of the code and templates in parts of the package, read once: what runs is what was imported."""
    lines, package = [], ROOT / "colq_utils"
    for part in parts:
        below = sorted(f for f in (package / part).rglob("*") if f.suffix in (".py", ".j2", ".jinja"))
        for path in below or [package / part]:
            lines.append(f"{path.relative_to(package)} {files.sha256(path)}")
    return files.sha256_bytes("\n".join(lines).encode())
