"""Measure the random-weight model on the embedded benchmark and keep its scores beside it.

Every report shows this floor, it depends on no variant and takes minutes, so it is measured when the
benchmark, the architecture or the seed changes: ``python -m studies.embedded.floor tiny``.
"""

import sys

from colq_utils.base import config, files
from colq_utils.stages.evaluate import evaluate, references


def main(name: str = "tiny") -> None:
    """Evaluate the random-weight model of an experiment on all of its tasks and write `references.FLOOR`."""
    experiment = config.load(name)
    tasks, data = evaluate.tasks_of(experiment), evaluate.data_fingerprint(experiment)
    scores = evaluate.stored(evaluate.run_variant(experiment, references.RANDOM_INIT, tasks, data))
    print(files.write_table(references.FLOOR, scores.assign(stamp=references.floor_stamp(experiment, data))))


if __name__ == "__main__":
    main(*sys.argv[1:])
