"""A study of the random model: three quantized variants on made-up text and pages."""

import pytest

from colq_utils.base import config
from colq_utils.stages import calibrate, quantize


@pytest.fixture(scope="session")
def experiment(experiment_file, corpus, tmp_path_factory):
    """Three quantized variants of the random model, calibrated."""
    folder = tmp_path_factory.mktemp("quantize")
    sets = [
        {"id": "s32", "seqlen": 32, "blocks": 16, "batch_rows": 4},
        {"id": "s64", "seqlen": 64, "blocks": 8, "batch_rows": 2},
        {"id": "pages", "kind": "pages", "blocks": 2, "batch_rows": 2},
    ]
    variants = [
        {"scheme": "bf16"},
        {"scheme": "w4a16", "method": "rtn", "exports": ["auto_round", "auto_awq", "auto_gptq"]},
        {"scheme": "w4a16", "method": "autoround", "calibration": "s32", "iters": 2},
        {"scheme": "w4a16", "method": "autoround", "calibration": "pages", "iters": 2},
    ]
    calibration = {"source": str(corpus), "sets": sets}
    path = experiment_file(folder, "random", calibration=calibration, variants=variants)
    loaded = config.load(path, folder / "out")
    calibrate.build(loaded)
    return loaded


@pytest.fixture(scope="session")
def manifests(experiment):
    """The manifest of each variant, made."""
    return {variant: quantize.run(experiment, variant) for variant in experiment.quantized}
