"""A published experiment from download to report, on a CPU: ``python -m studies.rehearsal tomoro-4b``.

Everything runs as it would with the real hub and weights: the same command, notebooks and client libraries.
What differs is printed first: where the hub is, what it serves, and the sizes that a CPU needs smaller.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pandas as pd
import yaml

from colq_utils.base import config
from colq_utils.base.config import ROOT, Experiment
from colq_utils.base.errors import ColqError
from colq_utils.base.process import search_path
from studies.rehearsal import hub, standins

#: Sections of the experiment file that are replaced, to run on a CPU.
RUNTIME = {"device": "cpu", "attention": "sdpa"}
#: Fields that are made smaller: of calibration sets, tuned variants, workloads.
SET, TUNING, WORKLOAD = (
    {"blocks": 2, "batch_rows": 1},
    {"iters": 20},
    {"iterations": 1, "warmup": 1, "items": 4},
)
#: One task of each generation of ViDoRe, for a short rehearsal.
SHORT = ("Vidore2ESGReportsRetrieval", "Vidore3HrRetrieval", "VidoreTabfquadRetrieval")


def shrunk(fields: dict, short: bool = False) -> dict:
    """An experiment file's content in sizes for a CPU; `short`: three tasks and three variants."""
    benchmark, evaluation = fields["benchmark"], fields["evaluation"]
    variants = [v | TUNING if "iters" in v else v for v in fields["variants"]]
    changed = {
        "runtime": RUNTIME,
        "calibration": fields["calibration"] | {"sets": [s | SET for s in fields["calibration"]["sets"]]},
        "variants": variants[:3] if short else variants,
        "benchmark": benchmark | {"rounds": 1, "workloads": [w | WORKLOAD for w in benchmark["workloads"]]},
        "evaluation": evaluation | ({"tasks": list(SHORT)} if short else {}),
    }
    return fields | changed


def differences(before, after, place: str = "") -> list[str]:
    """Each value that differs between two contents of a file: 'runtime.device: cuda -> cpu'."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = [(key, before.get(key), after.get(key)) for key in {**before, **after}]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(i, *values) for i, values in enumerate(zip(before, after))]
    else:
        return [] if before == after else [f"{place}: {before} -> {after}"]
    return [line for key, *values in pairs for line in differences(*values, f"{place}.{key}".strip("."))]


def rehearse(
    name: str, folder: Path, short: bool = False, faults: list[hub.Fault] | None = None
) -> Experiment:
    """Run all stages of an experiment against a hub on loopback; what it wrote is under `folder`.

    Raises:
        ColqError: an experiment without a hub; a run that failed, or left tasks out.
    """
    published = config.load(name)
    if published.model.is_local:
        raise ColqError(f"{name} needs no hub: its checkpoint is here; rehearse tomoro-4b or tomoro-8b")
    fields = yaml.safe_load((config.EXPERIMENTS / f"{name}.yaml").read_text())
    changed, file = shrunk(fields, short), folder / f"{name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(changed, sort_keys=False))
    experiment = config.load(str(file), folder)
    print(f"{name}, made smaller for a CPU:", *differences(fields, changed), sep="\n  ")
    served = standins.repositories(experiment, folder / "hub")
    with hub.running(served, faults) as running:
        print(f"a hub at {running.address} serves {len(served)} repositories of stand-ins", flush=True)
        command = [sys.executable, "-m", "colq_utils", "run", str(file), "--output", str(folder)]
        code = subprocess.run(command, cwd=ROOT, env=environment(running, folder)).returncode
        print(f"the hub answered {len(running.requests):,} requests", flush=True)
    if code:
        raise ColqError(f"the rehearsal of {name} ended with exit code {code}; the lines above say why")
    return experiment


def environment(running: hub.Hub, folder: Path) -> dict[str, str]:
    """The client libraries' own variables: where the hub is, a cache of its own, no Xet, no telemetry."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    theirs = {"HF_ENDPOINT": running.address, "HF_HOME": str(folder / "hub-cache"), "HF_HUB_DISABLE_XET": "1"}
    return ours | theirs | {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": search_path()}


def check(experiment: Experiment) -> str:
    """What the rehearsal wrote, in a line; ColqError if a task failed or a report is missing."""
    scores = pd.read_csv(experiment.results("evaluate") / "scores.csv")
    failures = experiment.results("evaluate") / "failures.csv"
    if failures.exists() and len(failed := pd.read_csv(failures)):
        raise ColqError("tasks failed in the rehearsal:\n" + failed.to_string(index=False))
    summary = experiment.results("reports") / "summary.md"
    if not summary.exists():
        raise ColqError(f"the rehearsal wrote no {summary}")
    entries, variants = scores.groupby("variant").size(), scores.variant.nunique()
    return f"{variants} variants, {scores.task.nunique()} tasks, {entries.min()} entries each; {summary}"


def main() -> int:
    """The command; 2 is a mistake to mend, or a rehearsal that failed."""
    parser = argparse.ArgumentParser(prog="python -m studies.rehearsal", description=__doc__.splitlines()[0])
    parser.add_argument("experiment", help="tomoro-4b or tomoro-8b")
    parser.add_argument("--short", action="store_true", help="three tasks and three variants")
    parser.add_argument(
        "--output", default="", help="folder to write to (default: build/rehearsal/EXPERIMENT)"
    )
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    start, folder = time.time(), ROOT / "build" / "rehearsal" / arguments.experiment
    folder = Path(arguments.output).resolve() if arguments.output else folder
    try:
        done = check(rehearse(arguments.experiment, folder, arguments.short))
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"rehearsed in {time.time() - start:,.0f} s: {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
