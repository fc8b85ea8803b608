"""One look per variant: the same in every experiment, and no two of one experiment alike."""

import made_results
import pytest

from colq_utils.base import config
from colq_utils.report import labels
from colq_utils.report.figures import drawing


def _looks(experiment):
    return {name: tuple(drawing.style(experiment, name).values()) for name in experiment.by_id}


def test_the_same_weights_look_the_same_in_every_experiment():
    tiny, small, large = (_looks(config.load(name)) for name in ("tiny", "h200-4b", "h200-8b"))
    assert tiny["tiny-bf16"] == small["4b-bf16"] == large["8b-bf16-plain"] == ("black", "o")
    assert tiny["tiny-w4a16-rtn"] == tiny["tiny-w4a16-rtn-ark"] == large["8b-w4a16-pack"]
    assert small["4b-fp8-fp8vision"] == large["8b-fp8-fp8vision"] != large["8b-w4a16-pack"]


@pytest.mark.parametrize("name", ["tiny", "h200-8b"])
def test_other_numbers_look_otherwise(name):
    experiment = config.load(name)
    looks, size = _looks(experiment), experiment.model.size
    weights = {(v.stored(size), v.embedding, v.vision) for v in experiment.by_id.values()}
    assert len(set(looks.values())) == len(weights)


def test_packed_weights_have_a_name_in_reports(tmp_path):
    text = made_results.EXPERIMENT.replace("{scheme: w3a16, method: rtn}", "{scheme: w3a16, method: pack}")
    experiment = made_results.experiment(tmp_path, text)
    assert labels.of(experiment)["toy-w3a16-pack"].startswith("W3A16 RTN")
