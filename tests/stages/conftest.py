"""A study of the random model: three quantized variants on made-up text."""

import pandas as pd
import pytest
import yaml

from colq_utils.base import config
from colq_utils.stages import calibrate, quantize

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
]


@pytest.fixture(scope="module")
def experiment(random_checkpoint, tmp_path_factory):
    """Two quantized variants of the random model on a corpus of made-up text."""
    folder = tmp_path_factory.mktemp("quantize")
    rows = [
        {
            "document": f"d{i}",
            "lang": ("en", "fr")[i % 2],
            "text": " ".join(WORDS[(i * j) % 12] for j in range(1, 300)),
        }
        for i in range(60)
    ]
    (folder / "corpus").mkdir()
    pd.DataFrame(rows).to_parquet(folder / "corpus" / "text.parquet")
    fields = {
        "title": "random",
        "model": {"path": str(random_checkpoint), "size": "random"},
        "calibration": {
            "source": str(folder / "corpus"),
            "sets": [
                {"id": "s32", "seqlen": 32, "blocks": 16, "batch_rows": 4},
                {"id": "s64", "seqlen": 64, "blocks": 8, "batch_rows": 2},
                {"id": "pages", "kind": "pages", "blocks": 2, "batch_rows": 2},
            ],
        },
        "variants": [
            {"scheme": "bf16"},
            {"scheme": "w4a16", "method": "rtn", "exports": ["auto_round", "auto_awq", "auto_gptq"]},
            {"scheme": "w4a16", "method": "autoround", "calibration": "s32", "iters": 2},
            {"scheme": "w4a16", "method": "autoround", "calibration": "pages", "iters": 2},
        ],
        "benchmark": {"variants": [], "workloads": []},
        "evaluation": {"tasks": []},
    }
    (folder / "random.yaml").write_text(yaml.safe_dump(fields))
    made = config.load(str(folder / "random.yaml"), folder / "out")
    calibrate.build(made)
    return made


@pytest.fixture(scope="module")
def manifests(experiment):
    return {variant: quantize.run(experiment, variant) for variant in experiment.quantized}
