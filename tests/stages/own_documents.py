"""A study of the random model on documents of one's own."""

import shutil

from colq_utils.base import config, files
from colq_utils.stages import quantize
from colq_utils.stages.evaluate import evaluate

SAMPLE = config.ROOT / "data" / "documents"
VARIANT = "random-w4a16-rtn"


def evaluated(random_checkpoint, output, **own) -> config.Experiment:
    """An experiment of the random model on six pages, quantized and evaluated."""
    (output / "documents").mkdir(parents=True)
    shutil.copy(SAMPLE / "debian reference.pdf", output / "documents" / "my pages.pdf")
    (output / "documents" / "empty.pdf").write_bytes(b"")
    fields = {
        "name": "mine",
        "title": "Mine",
        "model": {"path": str(random_checkpoint), "size": "random"},
        "calibration": {
            "source": "data/calibration",
            "sets": [{"id": "own", "kind": "documents", "blocks": 2, "batch_rows": 1}],
        },
        "variants": [{"scheme": "bf16"}, {"scheme": "w4a16", "method": "rtn"}],
        "benchmark": {"variants": ["random-bf16"], "workloads": []},
        "evaluation": {
            "suite": "documents",
            "documents": {"folder": str(output / "documents"), "max_pages": 6, **own},
        },
        "output": output,
    }
    experiment = config.Experiment.model_validate(fields)
    quantize.run(experiment, VARIANT)
    tasks = evaluate.tasks_of(experiment)
    queries = evaluate.run_all(experiment, tasks)
    files.write_table(experiment.results("evaluate") / "queries.parquet", evaluate.stored(queries))
    suite = evaluate.describe(experiment, tasks)
    scores = evaluate.summary(queries).merge(suite[["task", "counted", "group"]], on="task")
    files.write_table(experiment.results("evaluate") / "scores.csv", scores)
    return experiment
