"""The driver: notebooks through papermill, in order, each only when something it depends on has changed.

A stage is fresh while its notebook, the modules that the notebook imports (directly or not), its part of
the experiment file, its input files and its own outputs are those of the last successful run. The state
lives in build/, so a fresh clone measures everything itself, whatever results are committed.
"""
import ast
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from . import files, tasks
from .config import ROOT, STAGES, Experiment
from .errors import ColqError

NOTEBOOKS = {stage: f"{number:02d}_{stage}.ipynb" for number, stage in enumerate(STAGES, 1)}
#: Sections of the experiment file that a stage depends on.
SECTIONS = {
    "inspect": ("model", "variants"),
    "calibrate": ("model", "calibration", "seed"),
    "quantize": ("model", "runtime", "calibration", "variants", "seed"),
    "benchmark": ("model", "runtime", "variants", "benchmark", "seed"),
    "evaluate": ("model", "runtime", "variants", "evaluation", "seed"),
    "report": ("title", "model", "runtime", "calibration", "variants", "benchmark", "evaluation", "seed"),
}


#: How the code names a function for a process of its own.
CHILD = re.compile(r"^colq_utils\.(\w+):\w+$")


class StageFailed(Exception):
    """A notebook stopped; the message says where, why, and where the partial notebook lies."""

    def __init__(self, message: str, mistake: bool):
        super().__init__(message)
        self.mistake = mistake


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: "fresh" (nothing to do) or "done", and the seconds it took."""

    stage: str
    state: str
    seconds: float


def inputs(experiment: Experiment, stage: str) -> list[Path]:
    """Files and folders whose content decides a stage's results."""
    if experiment.task == "detection":
        return experiment.inputs(stage)
    folder = Path(experiment.model_path)
    model = sorted(p for p in folder.glob("*") if p.suffix in (".json", ".safetensors")) \
        if experiment.model.is_local and not experiment.model.is_random else []  # random weights follow from size and seed
    pages = [ROOT / "data" / "minividore"]
    source = ROOT / experiment.calibration.source
    manifests = [experiment.build("checkpoints", v, "manifest.json") for v in experiment.quantized]
    return {
        "inspect": model,
        "calibrate": [*model, *pages, *([source] if source.exists() else [])],
        "quantize": [*model, *pages, experiment.build("calibration")],
        "benchmark": [*model, *pages, *manifests],
        "evaluate": [*model, *pages, *manifests],
        "report": [*(experiment.output / "results" / experiment.name / s for s in STAGES[:-1]), ROOT / "data" / "published"],
    }[stage]


def outputs(experiment: Experiment, stage: str) -> list[Path]:
    """Where a stage writes; it is not fresh once any of these is gone or altered."""
    results = experiment.output / "results" / experiment.name
    if experiment.task == "detection":
        return [results / stage, results / "notebooks" / NOTEBOOKS[stage], *experiment.outputs(stage)]
    places = {"calibrate": [experiment.build("calibration")],
              "quantize": [experiment.build("checkpoints", v, "manifest.json") for v in experiment.quantized],
              "report": [results / "reports", experiment.output / "results" / "published" / "reports", experiment.output / "figures" / "published"]}
    return [results / stage, results / "notebooks" / NOTEBOOKS[stage], *places.get(stage, [])]


def modules_of(source: str) -> set[str]:
    """Names of the package's modules that a piece of code imports or has a child process import, directly or not."""
    found, todo = set(), _imports(source)
    while todo:
        name = todo.pop()
        path = ROOT / "colq_utils" / f"{name}.py"
        if name not in found and path.exists():
            found.add(name)
            todo |= _imports(path.read_text())
    return found


def _imports(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").removeprefix("colq_utils").lstrip(".")
            if node.level or (node.module or "").startswith("colq_utils"):
                names |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(CHILD.findall(node.value))  # what `colq_utils.isolate` starts, by name
    return names


def fingerprint(experiment: Experiment, stage: str, parameters: dict) -> str:
    """Digest of everything that decides what a stage writes."""
    notebook = nbformat.read(ROOT / "notebooks" / NOTEBOOKS[stage], as_version=4)
    cells = tasks.cells(notebook, tasks.here(experiment.task, stage))
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    modules = [ROOT / "colq_utils" / f"{name}.py" for name in sorted(modules_of(code))]
    modules += sorted((ROOT / "colq_utils" / "detector").glob("*.py")) if experiment.task == "detection" else []
    sections = experiment.model_dump(mode="json", include=set(experiment.sections(stage) if experiment.task == "detection" else SECTIONS[stage]))
    present = [path for path in inputs(experiment, stage) if path.exists()]
    parts = ["\n".join(cell.source for cell in cells), json.dumps(sections, sort_keys=True),
             json.dumps(parameters, sort_keys=True), files.sha256(*modules), *(files.sha256(p) for p in present)]
    return files.sha256_bytes("\0".join(parts).encode())


def is_fresh(experiment: Experiment, stage: str, parameters: dict) -> bool:
    """Whether the last successful run of a stage still stands; tasks that failed are tried again."""
    state = experiment.build("state", f"{stage}.json")
    if not state.exists() or not all(path.exists() for path in outputs(experiment, stage)):
        return False
    failures = experiment.output / "results" / experiment.name / "evaluate" / "failures.csv"
    if stage == "evaluate" and failures.exists() and len(failures.read_text().splitlines()) > 1:
        return False
    kept = json.loads(state.read_text())
    drawn = [experiment.figures / name for name in kept.get("figures", ())]
    return kept == _state(experiment, stage, fingerprint(experiment, stage, parameters), drawn)


def _state(experiment: Experiment, stage: str, before: str, drawn: list[Path]) -> dict:
    """What is kept of a finished stage, and has to be found again for it to be fresh: `before` is its fingerprint, `drawn` are its figures."""
    return {"inputs": before, "outputs": files.sha256(*outputs(experiment, stage)),
            "figures": {path.name: files.sha256(path) for path in drawn if path.exists()}, "weights": _weights(experiment, stage)}


def _weights(experiment: Experiment, stage: str) -> dict[str, int]:
    """Bytes of every file of the checkpoints that 03_quantize made: enough to notice one that is gone or cut short."""
    if stage != "quantize" or experiment.task == "detection":
        return {}
    folders = [experiment.checkpoint(name, export) for name, spec in experiment.quantized.items() for export in spec.exports]
    return {f"{folder.parent.name}/{folder.name}/{path.name}": path.stat().st_size for folder in folders for path in sorted(folder.glob("*"))}


def check_parameters(stage: str, parameters: dict) -> None:
    """Refuse a parameter that the notebook does not declare (papermill itself only warns).

    Raises:
        ColqError: unknown parameter; lists those there are.
    """
    declared = papermill.inspect_notebook(str(ROOT / "notebooks" / NOTEBOOKS[stage]))
    for name in parameters:
        if name not in declared:
            raise ColqError(f"{NOTEBOOKS[stage]} has no parameter {name!r}; it has: {', '.join(declared)}")


def run_stage(experiment: Experiment, stage: str, source: str, parameters: dict) -> None:
    """Execute one notebook; its executed copy lands in results/ only if every cell ran.

    Args:
        source: the experiment as the user named it (a name, or the path of a file).

    Raises:
        StageFailed: a cell raised; the partial notebook is kept under build/.
    """
    partial = experiment.build("executed", NOTEBOOKS[stage])
    partial.parent.mkdir(parents=True, exist_ok=True)
    given = {"experiment": str(Path(source).resolve()) if source.endswith(".yaml") else source,
             "output": "" if experiment.output == ROOT else str(experiment.output), **parameters}
    environment = {"COLQ_HEADLESS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    if sys.stderr.isatty():
        environment["COLQ_TTY"] = os.ttyname(2)
    os.environ.update(environment)
    try:
        papermill.execute_notebook(str(ROOT / "notebooks" / NOTEBOOKS[stage]), str(partial), given, kernel_name="python3",
                                   cwd=str(ROOT / "notebooks"), progress_bar=False, log_output=False,
                                   extra_arguments=["--IPKernelApp.log_level=CRITICAL"])
    except PapermillExecutionError as error:
        raise StageFailed(*_explain(error, partial)) from None
    notebook = nbformat.read(partial, as_version=4)
    files.write_text(experiment.results("notebooks") / NOTEBOOKS[stage], nbformat.writes(_clean(notebook, tasks.here(experiment.task, stage))) + "\n")


def _explain(error: PapermillExecutionError, partial: Path) -> tuple[str, bool]:
    """The message of a failed cell, and whether it is the user's to mend."""
    if error.ename == "ColqError":
        return error.evalue, True
    if files.is_full(error):
        return files.FULL, True
    lines = error.source.strip().splitlines()
    code = "\n".join(f"    {line}" for line in lines[:12])
    return (f"cell {error.exec_count} of {partial.name} failed with {error.ename}: {error.evalue}\n{code}\n"
            f"The partial notebook, with the traceback, is {partial}"), False


def _clean(notebook, task: str):
    """Drop run times, local paths and cells of the other task, so that an executed copy differs only where its content does."""
    notebook.cells = tasks.cells(notebook, task)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join(line for line in cell.source.splitlines() if "output = " not in line)
            cell.id = "injected-parameters"
    return notebook


def run(experiment: Experiment, source: str, stages: tuple[str, ...] = STAGES, parameters: dict | None = None,
        force: bool = False, say=print) -> list[Outcome]:
    """Run stages in order, skipping fresh ones; one line a stage.

    Raises:
        ColqError: unknown stage or parameter.
        StageFailed: a notebook stopped.
    """
    parameters = parameters or {}
    for stage in stages:
        if stage not in STAGES:
            raise ColqError(f"no stage {stage!r}; the stages are: {', '.join(STAGES)}")
        check_parameters(stage, parameters)
    outcomes = []
    for stage in stages:
        if stage in tasks.IDLE.get(experiment.task, ()):
            say(f"{NOTEBOOKS[stage][:-6]:14} nothing to do in a study of {experiment.task}")
            continue
        start = time.perf_counter()
        state = experiment.build("state", f"{stage}.json")
        if not force and is_fresh(experiment, stage, parameters):
            outcomes.append(Outcome(stage, "fresh", time.perf_counter() - start))
            say(f"{NOTEBOOKS[stage][:-6]:14} nothing changed")
            continue
        say(f"{NOTEBOOKS[stage][:-6]:14} running")
        state.unlink(missing_ok=True)
        before, began = fingerprint(experiment, stage, parameters), time.time() - 1  # file systems round their clocks
        run_stage(experiment, stage, source, parameters)
        drawn = [path for path in sorted(experiment.figures.glob("*.png")) if path.stat().st_mtime >= began]
        files.write_json(state, _state(experiment, stage, before, drawn))
        outcomes.append(Outcome(stage, "done", time.perf_counter() - start))
        say(f"{NOTEBOOKS[stage][:-6]:14} done in {outcomes[-1].seconds:.0f} s")
    return outcomes


def rejected(experiment: Experiment) -> list[str]:
    """Variants whose checkpoints the last run of 03_quantize did not accept."""
    path = experiment.output / "results" / experiment.name / "quantize" / "recorded.json"
    return json.loads(path.read_text()).get("rejected", []) if path.exists() else []


def clean(experiment: Experiment) -> None:
    """Remove what can be made again: checkpoints, caches, state. Results and figures stay."""
    shutil.rmtree(experiment.build(), ignore_errors=True)
