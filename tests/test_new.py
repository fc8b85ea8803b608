"""`colq new`: what it writes can be run, and what cannot be is one line before anything is written."""

import json

import pytest

from colq_utils import new
from colq_utils.__main__ import main
from colq_utils.base import config
from colq_utils.base.errors import ColqError

SAMPLE, MODEL = str(config.ROOT / "data" / "documents"), str(config.ROOT / "models" / "tiny-colqwen3")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Experiments are written to a folder of the test's own."""
    monkeypatch.setattr(new, "EXPERIMENTS", tmp_path)
    return tmp_path


def test_the_file_is_an_experiment(root, capsys):
    queries = f"{SAMPLE}/queries.csv"
    assert main(["new", "mine", "--model", MODEL, "--documents", SAMPLE, "--queries", queries]) == 0
    said = capsys.readouterr().out
    assert "2 documents, 32 pages; 68 labelled" in said and "make report EXPERIMENT=mine" in said
    written = config.load(str(root / "mine.yaml"))
    assert written.model.path == "models/tiny-colqwen3" and written.evaluation.documents.queries
    assert list(written.by_id) == [
        "tiny-bf16",
        "tiny-w8a16-rtn",
        "tiny-w4a16-rtn",
        "tiny-w4a16-autoround-s256",
    ]


def test_one_line_and_nothing_written(root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for arguments, message in [
        (("a b", MODEL, SAMPLE), "is no name for an experiment"),
        (("x", "nowhere/at/all", SAMPLE), "neither a checkpoint folder nor a hub id"),
        (("x", str(other), SAMPLE), "is missing: not a checkpoint folder"),
        (("x", MODEL, str(other)), "holds no PDF and no picture"),
        (("x", MODEL, SAMPLE, str(other / "q.csv")), "no queries file"),
    ]:
        with pytest.raises(ColqError, match=message):
            new.write(*arguments, *[None] * (5 - len(arguments)))
    assert not list(root.glob("*.yaml"))


def test_a_name_is_taken_once(root):
    new.write("mine", MODEL, SAMPLE, None, None)
    with pytest.raises(ColqError, match="is there already"):
        new.write("mine", MODEL, SAMPLE, None, None)
