"""Calibration sets: one budget of tokens, pages, none at all, too short a corpus."""

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from colq_utils import run
from colq_utils.base import config, files
from colq_utils.base.errors import ColqError
from colq_utils.data import calibration
from colq_utils.model import loading
from colq_utils.stages import calibrate


def test_sets_of_one_budget_hold_the_same_tokens(experiment):
    short, long = (calibration.load(experiment, s)["input_ids"] for s in ("s32", "s64"))
    assert short.shape == (16, 32) and long.shape == (8, 64)
    assert torch.equal(short.flatten(), long.flatten())


def test_a_page_set_holds_pages_alone(experiment):
    assert list(calibration.load(experiment, "pages")) == ["pages"]
    with safe_open(calibration.path_of(experiment, "pages"), "pt") as stored:
        assert set(stored.metadata()) == {"set"}


def test_nothing_to_calibrate_is_an_empty_table(experiment, tmp_path):
    """What the notebook and the driver do with the result of a study that tunes nothing."""
    without = experiment.model_copy(
        update={"output": tmp_path, "calibration": experiment.calibration.model_copy(update={"sets": ()})}
    )
    table = calibrate.build(without)
    assert list(table) == list(calibrate.build(experiment.model_copy(update={"output": tmp_path / "full"})))
    assert table["tokens"].tolist() == table["fingerprint"].tolist() == []
    read = pd.read_csv(
        files.write_table(tmp_path / "sets.csv", table.assign(overlap_8grams=0, padding_pct=0.0))
    )
    assert read.empty and "padding_pct" in read
    assert files.sha256(*run.step(without, "calibrate").outputs[-1:])


def test_corpus_too_short(experiment):
    tokens = calibration.stream(
        calibration.corpus(experiment).head(2),
        loading.processing.from_pretrained(experiment.model_path).tokenizer,
        8,
        0,
    )
    with pytest.raises(ColqError, match="needs 1,000,000 tokens"):
        calibration.pack(tokens, config.CalibrationSet(id="big", seqlen=1000, blocks=1000, batch_rows=1))
