"""The driver: notebooks through papermill, in order, each only when something it depends on has changed.

A stage is fresh while its notebook, the code that it can reach, its part of the experiment file, its input
files and its own outputs are those of the last successful run. The state lives in build/, so a fresh clone
measures everything itself, whatever results are committed.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from colq_utils.base import cache, files, process
from colq_utils.base.config import ROOT, STAGES, Experiment
from colq_utils.base.errors import ColqError

#: What 06 puts into the folder of a checkpoint.
CARD = "README.md"
#: Stage -> sections of the experiment file that it depends on.
SECTIONS = {
    "inspect": ("model", "variants"),
    "calibrate": ("model", "calibration", "seed"),
    "quantize": ("model", "runtime", "calibration", "variants", "seed"),
    "benchmark": ("model", "runtime", "variants", "benchmark", "seed"),
    "evaluate": ("model", "runtime", "variants", "evaluation", "seed"),
    "report": ("title", "model", "runtime", "calibration", "variants", "benchmark", "evaluation", "seed"),
}


class StageFailed(Exception):
    """A notebook stopped, and not for a mistake of the user; the message says where and why."""


@dataclass(frozen=True)
class Step:
    """A notebook and all that decides what it writes: settings, code, input files; and what it wrote.

    `weights` are folders too large to digest, whose files are watched by their sizes. `unfinished` is true
    while a part of an earlier run failed and is to be tried again.
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
    calibration = experiment.build("calibration")
    manifests = [experiment.build("checkpoints", name, "manifest.json") for name in experiment.quantized]
    outputs = {"calibrate": [calibration], "quantize": manifests, "report": [results / "reports"]}
    if experiment.quantized and "evaluate" in experiment.stages:
        outputs["report"].append(results / "cards")
    weights, failures = [], results / "evaluate" / "failures.csv"
    if stage == "quantize":
        weights = [experiment.checkpoint(n, e) for n, v in experiment.quantized.items() for e in v.exports]
    return Step(
        stage,
        notebook,
        experiment.model_dump(mode="json", include=set(SECTIONS[stage])),
        code,
        tuple(_inputs(experiment, stage, calibration, manifests)),
        (results / stage, results / "notebooks" / notebook.name, *outputs.get(stage, [])),
        tuple(weights),
        stage == "evaluate" and failures.exists() and len(failures.read_text().splitlines()) > 1,
    )


def _inputs(experiment: Experiment, stage: str, calibration: Path, manifests: list[Path]) -> list[Path]:
    """Files and folders whose content decides a stage's results, as far as they are there."""
    if stage == "report":
        results = experiment.output / "results" / experiment.name
        return [*(results / earlier for earlier in STAGES[:-1]), ROOT / "data" / "published"]
    model, pages = [], ROOT / "data" / "minividore"
    own = experiment.evaluation.documents
    asked = [ROOT / path for path in (own.folder, own.queries) if path] if own else []
    if (
        experiment.model.is_local and not experiment.model.is_random
    ):  # random weights follow from size and seed
        folder = Path(experiment.model_path)
        model = sorted(path for path in folder.glob("*") if path.suffix in (".json", ".safetensors"))
    return (
        model
        + {
            "inspect": [],
            "calibrate": [pages, ROOT / experiment.calibration.source, *asked],
            "quantize": [pages, calibration],
            "benchmark": [pages, *manifests],
            "evaluate": [pages, *manifests, *asked],
        }[stage]
    )


def fingerprint(step: Step, parameters: dict) -> str:
    """Digest of everything that decides what a step writes."""
    notebook = nbformat.read(step.notebook, as_version=4)
    parts = [
        "\n".join(cell.source for cell in notebook.cells),
        json.dumps([step.settings, parameters], sort_keys=True),
        step.code,
        *(files.sha256(path) for path in step.inputs if path.exists()),
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


def _state(step: Step, inputs: str, drawn: list[Path]) -> dict:
    """What is kept of a finished step and is found again while it is fresh: `inputs` is its fingerprint as it
    began, `drawn` are its figures.
    """
    weights = [path for folder in step.weights for path in sorted(folder.glob("*")) if path.name != CARD]
    return {
        "inputs": inputs,
        "outputs": files.sha256(*step.outputs),
        "figures": {path.name: files.sha256(path) for path in drawn if path.exists()},
        "weights": {"/".join(path.parts[-3:]): path.stat().st_size for path in weights},
    }


def execute(experiment: Experiment, step: Step, source: str, parameters: dict) -> None:
    """Execute one notebook; its executed copy lands in results/ only if every cell ran.

    Args:
        source: the experiment as the user named it (a name, or the path of a file).

    Raises:
        ColqError, StageFailed: a cell raised; the partial notebook is kept under build/.
    """
    partial = experiment.build("executed", step.notebook.name)
    partial.parent.mkdir(parents=True, exist_ok=True)
    given = {
        "experiment": str(Path(source).resolve()) if source.endswith(".yaml") else source,
        "output": "" if experiment.output == ROOT else str(experiment.output),
    }
    os.environ |= {"COLQ_HEADLESS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": process.search_path()}
    if sys.stderr.isatty():
        os.environ["COLQ_TTY"] = os.ttyname(2)
    try:
        papermill.execute_notebook(
            str(step.notebook),
            str(partial),
            given | parameters,
            kernel_name="python3",
            cwd=str(ROOT / "notebooks"),
            progress_bar=False,
            log_output=False,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        raise _told(error, partial) from None
    notebook = _without_run(nbformat.read(partial, as_version=4))
    files.write_text(experiment.results("notebooks") / step.notebook.name, nbformat.writes(notebook) + "\n")


def _told(error: PapermillExecutionError, partial: Path) -> Exception:
    """What to say of a failed cell."""
    if error.ename == "ColqError":
        return ColqError(error.evalue)
    if files.is_full(error):
        return ColqError(files.FULL)
    code = "\n".join(f"    {line}" for line in error.source.strip().splitlines()[:12])
    return StageFailed(
        f"cell {error.exec_count} of {partial.name} failed with {error.ename}: {error.evalue}\n{code}\n"
        f"The partial notebook, with the traceback, is {partial}"
    )


def _without_run(notebook):
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
) -> None:
    """Run stages in order (all of the experiment's by default), skipping fresh ones; one line per stage.

    Args:
        step: gives the `Step` of a stage; a study brings its own.

    Raises:
        ColqError: unknown stage or parameter (papermill only warns of it), or a mistake that a notebook met.
        StageFailed: a notebook stopped.
    """
    stages, parameters = stages or experiment.stages, parameters or {}
    for stage in stages:
        if stage not in experiment.stages:
            known = ", ".join(experiment.stages)
            raise ColqError(f"no stage {stage!r}; the stages of {experiment.name} are: {known}")
        notebook = step(experiment, stage).notebook
        declared = papermill.inspect_notebook(str(notebook))
        for name in parameters.keys() - declared.keys():
            raise ColqError(f"{notebook.name} has no parameter {name!r}; it has: {', '.join(declared)}")
    for stage in stages:
        this = step(experiment, stage)
        label = f"{this.notebook.stem:14}"
        if not force and is_fresh(experiment, this, parameters):
            say(f"{label} nothing changed")
            continue
        say(f"{label} running")
        start = time.perf_counter()
        _run_one(experiment, source, this, parameters, step)
        say(f"{label} done in {time.perf_counter() - start:.0f} s")


def _run_one(experiment: Experiment, source: str, this: Step, parameters: dict, step) -> None:
    """Execute a step and keep what it is fresh by."""
    state = experiment.build("state", f"{this.name}.json")
    state.unlink(missing_ok=True)
    inputs, began = fingerprint(this, parameters), time.time() - 1  # file systems round their clocks
    execute(experiment, this, source, parameters)
    drawn = [path for path in sorted(experiment.figures.glob("*.png")) if path.stat().st_mtime >= began]
    files.write_json(state, _state(step(experiment, this.name), inputs, drawn))


def rejected(experiment: Experiment) -> list[str]:
    """Variants whose checkpoints the last run of 03_quantize did not accept."""
    path = experiment.output / "results" / experiment.name / "quantize" / "recorded.json"
    return json.loads(path.read_text()).get("rejected", []) if path.exists() else []
