"""The driver: notebooks through papermill, in order, each only when something it depends on has changed.

A stage is fresh while its notebook, the modules that the notebook imports (directly or not), its part of
the experiment file, its input files and its own outputs are those of the last successful run. The state
lives in build/, so a fresh clone measures everything itself, whatever results are committed.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from colq_utils.base import cache, files
from colq_utils.base.config import ROOT, STAGES, Experiment
from colq_utils.base.errors import ColqError

#: Sections of the experiment file that a stage depends on.
SECTIONS = {
    "inspect": ("model", "variants"),
    "calibrate": ("model", "calibration", "seed"),
    "quantize": ("model", "runtime", "calibration", "variants", "seed"),
    "benchmark": ("model", "runtime", "variants", "benchmark", "seed"),
    "evaluate": ("model", "runtime", "variants", "evaluation", "seed"),
    "report": ("title", "model", "runtime", "calibration", "variants", "benchmark", "evaluation", "seed"),
}


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


@dataclass(frozen=True)
class Step:
    """A notebook and all that decides what it writes: settings, code, input files; and what it wrote.

    `weights` are folders too large to digest, whose files are watched by their sizes. `unfinished` is true while a part
    of an earlier run failed and is to be tried again.
    """

    name: str
    notebook: Path
    settings: dict
    code: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    weights: tuple[Path, ...] = ()
    unfinished: bool = False


def step(experiment: Experiment, stage: str) -> Step:
    """One of the six stages of a retrieval experiment."""
    results, notebook = experiment.output / "results" / experiment.name, experiment.notebook(stage)
    code = cache.code(experiment, stage, figures=True)
    if not notebook.is_relative_to(ROOT / "notebooks"):  # a study's own: its code counts too
        code += files.sha256(*sorted(notebook.parent.glob("*.py")))
    folders = [
        experiment.checkpoint(name, export)
        for name, spec in experiment.quantized.items()
        for export in spec.exports
    ]
    return Step(
        stage,
        notebook,
        experiment.model_dump(mode="json", include=set(SECTIONS[stage])),
        code,
        tuple(_inputs(experiment, stage)),
        (results / stage, results / "notebooks" / notebook.name, *_outputs(experiment, stage)),
        weights=tuple(folders) if stage == "quantize" else (),
        unfinished=stage == "evaluate" and _failed(results),
    )


def _inputs(experiment: Experiment, stage: str) -> list[Path]:
    """Files and folders whose content decides a stage's results."""
    folder = Path(experiment.model_path)
    model = (
        sorted(p for p in folder.glob("*") if p.suffix in (".json", ".safetensors"))
        if experiment.model.is_local and not experiment.model.is_random
        else []
    )  # random weights follow from size and seed
    pages = [ROOT / "data" / "minividore"]
    source = ROOT / experiment.calibration.source
    manifests = [experiment.build("checkpoints", v, "manifest.json") for v in experiment.quantized]
    return {
        "inspect": model,
        "calibrate": [*model, *pages, *([source] if source.exists() else [])],
        "quantize": [*model, *pages, experiment.build("calibration")],
        "benchmark": [*model, *pages, *manifests],
        "evaluate": [*model, *pages, *manifests],
        "report": [
            *(experiment.output / "results" / experiment.name / s for s in STAGES[:-1]),
            ROOT / "data" / "published",
        ],
    }[stage]


def _outputs(experiment: Experiment, stage: str) -> list[Path]:
    """Where a stage writes beside its results folder; it is not fresh once any of these is gone or altered."""
    return {
        "calibrate": [experiment.build("calibration")],
        "quantize": [experiment.build("checkpoints", v, "manifest.json") for v in experiment.quantized],
        "report": [experiment.output / "results" / experiment.name / "reports"],
    }.get(stage, [])


def _failed(results: Path) -> bool:
    """Whether tasks of the last evaluation failed."""
    failures = results / "evaluate" / "failures.csv"
    return failures.exists() and len(failures.read_text().splitlines()) > 1


def fingerprint(step: Step, parameters: dict) -> str:
    """Digest of everything that decides what a step writes."""
    notebook = nbformat.read(step.notebook, as_version=4)
    present = [path for path in step.inputs if path.exists()]
    parts = [
        "\n".join(cell.source for cell in notebook.cells),
        json.dumps(step.settings, sort_keys=True),
        json.dumps(parameters, sort_keys=True),
        step.code,
        *(files.sha256(p) for p in present),
    ]
    return files.sha256_bytes("\0".join(parts).encode())


def is_fresh(experiment: Experiment, step: Step, parameters: dict) -> bool:
    """Whether the last successful run of a step still stands; parts that failed are tried again."""
    state = experiment.build("state", f"{step.name}.json")
    if step.unfinished or not state.exists() or not all(path.exists() for path in step.outputs):
        return False
    kept = json.loads(state.read_text())
    drawn = [experiment.figures / name for name in kept.get("figures", ())]
    return kept == _state(step, fingerprint(step, parameters), drawn)


def _state(step: Step, before: str, drawn: list[Path]) -> dict:
    """What is kept of a finished step, and has to be found again for it to be fresh: `before` is its fingerprint, `drawn` are its figures."""
    sizes = {
        f"{folder.parent.name}/{folder.name}/{path.name}": path.stat().st_size
        for folder in step.weights
        for path in sorted(folder.glob("*"))
    }
    return {
        "inputs": before,
        "outputs": files.sha256(*step.outputs),
        "figures": {path.name: files.sha256(path) for path in drawn if path.exists()},
        "weights": sizes,
    }


def check_parameters(step: Step, parameters: dict) -> None:
    """Refuse a parameter that the notebook does not declare (papermill itself only warns).

    Raises:
        ColqError: unknown parameter; lists those there are.
    """
    declared = papermill.inspect_notebook(str(step.notebook))
    for name in parameters:
        if name not in declared:
            raise ColqError(f"{step.notebook.name} has no parameter {name!r}; it has: {', '.join(declared)}")


def execute(experiment: Experiment, step: Step, source: str, parameters: dict) -> None:
    """Execute one notebook; its executed copy lands in results/ only if every cell ran.

    Args:
        source: the experiment as the user named it (a name, or the path of a file).

    Raises:
        StageFailed: a cell raised; the partial notebook is kept under build/.
    """
    partial = experiment.build("executed", step.notebook.name)
    partial.parent.mkdir(parents=True, exist_ok=True)
    given = {
        "experiment": str(Path(source).resolve()) if source.endswith(".yaml") else source,
        "output": "" if experiment.output == ROOT else str(experiment.output),
        **parameters,
    }
    environment = {
        "COLQ_HEADLESS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    if sys.stderr.isatty():
        environment["COLQ_TTY"] = os.ttyname(2)
    os.environ.update(environment)
    try:
        papermill.execute_notebook(
            str(step.notebook),
            str(partial),
            given,
            kernel_name="python3",
            cwd=str(ROOT / "notebooks"),
            progress_bar=False,
            log_output=False,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        raise StageFailed(*_explain(error, partial)) from None
    notebook = nbformat.read(partial, as_version=4)
    files.write_text(
        experiment.results("notebooks") / step.notebook.name, nbformat.writes(_clean(notebook)) + "\n"
    )


def _explain(error: PapermillExecutionError, partial: Path) -> tuple[str, bool]:
    """The message of a failed cell, and whether it is the user's to mend."""
    if error.ename == "ColqError":
        return error.evalue, True
    if files.is_full(error):
        return files.FULL, True
    lines = error.source.strip().splitlines()
    code = "\n".join(f"    {line}" for line in lines[:12])
    return (
        f"cell {error.exec_count} of {partial.name} failed with {error.ename}: {error.evalue}\n{code}\n"
        f"The partial notebook, with the traceback, is {partial}"
    ), False


def _clean(notebook):
    """Drop run times and local paths, so that an executed copy differs only where its content does."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join(line for line in cell.source.splitlines() if "output = " not in line)
            cell.id = "injected-parameters"
    return notebook


def run(
    experiment: Experiment,
    source: str,
    stages: tuple[str, ...] = (),
    parameters: dict | None = None,
    force: bool = False,
    say=print,
    step=step,
) -> list[Outcome]:
    """Run stages in order (all of the experiment's by default), skipping fresh ones; one line per stage.

    Args:
        step: gives the `Step` of a stage; a study brings its own.

    Raises:
        ColqError: unknown stage or parameter.
        StageFailed: a notebook stopped.
    """
    stages, parameters = stages or experiment.stages, parameters or {}
    for stage in stages:
        if stage not in experiment.stages:
            raise ColqError(
                f"no stage {stage!r}; the stages of {experiment.name} are: {', '.join(experiment.stages)}"
            )
        check_parameters(step(experiment, stage), parameters)
    return [_run_one(experiment, source, step, stage, parameters, force, say) for stage in stages]


def _run_one(
    experiment: Experiment, source: str, step, stage: str, parameters: dict, force: bool, say
) -> Outcome:
    start, this = time.perf_counter(), step(experiment, stage)
    state, label = experiment.build("state", f"{stage}.json"), f"{this.notebook.stem:14}"
    if not force and is_fresh(experiment, this, parameters):
        say(f"{label} nothing changed")
        return Outcome(stage, "fresh", time.perf_counter() - start)
    say(f"{label} running")
    state.unlink(missing_ok=True)
    before, began = fingerprint(this, parameters), time.time() - 1  # file systems round their clocks
    execute(experiment, this, source, parameters)
    drawn = [path for path in sorted(experiment.figures.glob("*.png")) if path.stat().st_mtime >= began]
    files.write_json(state, _state(step(experiment, stage), before, drawn))
    seconds = time.perf_counter() - start
    say(f"{label} done in {seconds:.0f} s")
    return Outcome(stage, "done", seconds)


def rejected(experiment: Experiment) -> list[str]:
    """Variants whose checkpoints the last run of 03_quantize did not accept."""
    path = experiment.output / "results" / experiment.name / "quantize" / "recorded.json"
    return json.loads(path.read_text()).get("rejected", []) if path.exists() else []


def clean(experiment: Experiment) -> None:
    """Remove what can be made again: checkpoints, caches, state. Results and figures stay."""
    shutil.rmtree(experiment.build(), ignore_errors=True)
