"""Base and every export in every engine: ``python -m studies.interop [EXPERIMENT]``; see README.md.

A row, of success or of failure, is kept until the checkpoint, the carried files, the engine's pins or its
script change. What could not be installed is tried again.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from colq_utils.base import config, files
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from studies.interop import compare, engines, folders, inputs, report
from studies.interop.engines import ENGINES, Engine
from studies.interop.folders import Checkpoint

COSINES = ["cosine_query_mean", "cosine_query_min", "cosine_page_mean", "cosine_page_min"]
COLUMNS = ["engine", "checkpoint", "installed", "loads", "reason", *COSINES]
COLUMNS += ["queries_ranked_alike", "queries", "kernel", "versions", "key"]


class Study:
    """The rows of one experiment: read from the results, added to one by one, written after each."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.root = experiment.output / "build" / "interop"
        self.path = experiment.output / "results" / "interop" / f"{experiment.name}.csv"
        stored = pd.read_csv(self.path, dtype={"key": str}) if self.path.exists() else pd.DataFrame()
        self.rows = {(r["engine"], r["checkpoint"]): r for r in stored.to_dict("records")}
        self.references: dict[str, inputs.Reference] = {}

    def run(self, chosen: list[Engine], again: bool = False) -> None:
        """Ask the engines about every checkpoint that is there; finished rows are kept."""
        given = inputs.write(self.root / "inputs")
        for checkpoint in folders.checkpoints(self.experiment):
            weights = files.sha256(
                *sorted(checkpoint.path.glob("*.safetensors")), checkpoint.path / "config.json"
            )
            for engine in chosen:
                key, place = _key(engine, weights), (engine.name, checkpoint.name)
                if not again and self.rows.get(place, {}).get("key") == key:
                    continue
                self.rows[place] = {"engine": engine.name, "checkpoint": checkpoint.name}
                self.rows[place] |= self._row(engine, checkpoint, given) | {"key": key}
                print(report.line(self.rows[place]), flush=True)
                self.write()

    def _row(self, engine: Engine, checkpoint: Checkpoint, given: Path) -> dict:
        """What came of it; an engine that cannot be installed has no key, so that it is tried again."""
        try:
            interpreter = engines.python(engine, self.root)
        except ColqError as error:
            return {"installed": False, "reason": str(error)}
        answer = self.root / self.experiment.name / engine.name / f"{checkpoint.slug}.safetensors"
        answer.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder = self._folder(engine, checkpoint)
            engines.ask(engine, interpreter, folder, given, answer)
            return {"installed": True} | compare.row(answer, self._reference(checkpoint, given))
        except ColqError as error:
            return {"installed": True, "loads": False, "reason": str(error)}

    def _folder(self, engine: Engine, checkpoint: Checkpoint) -> Path:
        """The folder that an engine opens, made anew."""
        place = self.root / self.experiment.name / "folders" / checkpoint.slug
        completed = folders.completed(checkpoint, place)
        return (
            folders.colpali(completed, place.with_name(f"{place.name}--colpali"))
            if engine.converted
            else completed
        )

    def _reference(self, checkpoint: Checkpoint, given: Path) -> inputs.Reference:
        if checkpoint.name not in self.references:
            self.references[checkpoint.name] = inputs.reference(self.experiment, checkpoint, given)
        return self.references[checkpoint.name]

    def write(self) -> None:
        """The table, in the order of the engines, and the report made from it."""
        order = [engine.name for engine in ENGINES]
        frame = pd.DataFrame(self.rows.values()).reindex(columns=COLUMNS)
        frame = frame[frame.engine.isin(order)].sort_values(
            "engine", key=lambda names: names.map(order.index), kind="stable"
        )
        files.write_table(self.path, frame)
        files.write_text(self.path.with_suffix(".md"), report.text(self.experiment, pd.read_csv(self.path)))


def _key(engine: Engine, weights: str) -> str:
    """What decides a row, as one digest: weights, carried files, conversion, pins and the engine's script."""
    code = [*folders.code(), engines.CHILDREN / engine.script, engines.CHILDREN / "child.py"]
    stated = [*engine.pins, *engine.overrides, weights, files.sha256(*code)]
    return files.sha256_bytes("\n".join(stated).encode())[:12]


def main(arguments: list[str] | None = None) -> int:
    """The command line of ``make interop``."""
    parser = argparse.ArgumentParser(prog="python -m studies.interop", description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="tiny")
    parser.add_argument(
        "--engine", action="append", choices=[engine.name for engine in ENGINES], default=None
    )
    parser.add_argument("--again", action="store_true", help="ask again what is finished")
    given = parser.parse_args(arguments)
    chosen = [engine for engine in ENGINES if given.engine is None or engine.name in given.engine]
    try:
        experiment = config.load(given.experiment)
        study = Study(experiment)
        study.run(chosen, given.again)
        study.write()
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(study.path.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
