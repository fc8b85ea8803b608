"""The pictures of 05_evaluate for one's own documents: with answers, and where none is known."""

import json

import nbformat
import pandas as pd
import pytest
import yaml
from own_documents import evaluated

from colq_utils import run
from colq_utils.base import config
from colq_utils.data import shelf
from colq_utils.stages.evaluate.scores import in_words


@pytest.fixture(autouse=True)
def inline_figures(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the tests' own would leave no picture in a cell


def notebook(random_checkpoint, output, queries, **own):
    """Code cells of the notebook as executed on six pages, and the experiment."""
    (output / "queries.csv").write_text(queries)
    own |= {"queries": str(output / "queries.csv")}
    experiment = evaluated(random_checkpoint, output, **own)
    fields = experiment.model_dump(mode="json", exclude={"output", "name"}, exclude_none=True)
    path = output / "mine.yaml"
    path.write_text(yaml.safe_dump(fields))
    experiment = config.load(str(path), output)
    run.execute(experiment, run.step(experiment, "evaluate"), str(path), {})
    executed = experiment.results("notebooks") / config.NOTEBOOKS["evaluate"]
    return {cell.id: cell for cell in nbformat.read(executed, as_version=4).cells}, experiment


def shows(cell) -> str:
    return json.dumps(cell.outputs, ensure_ascii=False)


def test_pages_of_documents_are_shown(random_checkpoint, tmp_path):
    asked = "query,file,page\n" + "".join(f"question {n},my pages.pdf,{n}\n" for n in range(1, 6))
    cells, experiment = notebook(random_checkpoint, tmp_path, asked, known_items=4)
    for name in ("cell-08", "cell-14", "cell-18"):
        assert "image/png" in shows(cells[name]), name
    assert "add up to" in shows(cells["cell-06-sum"])
    assert "image/png" in shows(cells["cell-16"]) or "No query with a known answer" in shows(cells["cell-16"])
    assert "NDCG@5 on average over 1 counted" in shows(cells["cell-20"])
    held = shelf.of(experiment)
    assert held.by_hand[1] in held.queries.relevant[held.by_hand[0]] and len(held.sample) == 6
    assert set(held.queries.kind) == {"labelled", "known-item"} and held.image(held.sample[0]).mode == "RGB"


def test_pages_are_shown_where_no_answer_is_known(random_checkpoint, tmp_path):
    asked = "query\n" + "".join(f"question {n}\n" for n in range(5))
    cells, _ = notebook(random_checkpoint, tmp_path, asked, known_items=0)
    for name in ("cell-08", "cell-14", "cell-18"):
        assert "image/png" in shows(cells[name]), name
    assert "No query with a known answer changed." in shows(cells["cell-16"])
    assert "keep their first page" in shows(cells["cell-20"])


def test_suites_of_mteb_have_no_shelf():
    section = config.load("smoke").evaluation.model_copy(update={"suite": "mteb"})
    assert shelf.of(config.load("smoke").model_copy(update={"evaluation": section})) is None


@pytest.mark.parametrize("task", ["MiniVidoreScannedPhrases"])
def test_scanned_pages_are_not_on_the_shelf(task):
    assert task not in shelf.of(config.load("smoke")).tasks


def test_closing_words_of_tasks_that_count_and_of_those_that_do_not():
    rows = [("base", 1.0, 6), ("four", 0.5, 6)]
    queries = pd.DataFrame(rows, columns=["variant", "ndcg_at_5", "encoded_pages"])
    queries = queries.assign(task="t", lang="en", query_id="q", top5=[["a"], ["b"]])
    failures = pd.DataFrame(columns=["variant", "task", "error"])
    for counted, told in (
        (True, "-50.00 points; of 1 queries 1 lose, 0 gain"),
        (False, ": of 1 queries 1 lose"),
    ):
        scores = queries.assign(counted=counted)
        text = in_words(queries, scores, failures, "base", ["four", "absent"])
        assert told in text and ("None of these tasks counts" in text) is not counted and "absent" not in text
    unknown = queries.assign(ndcg_at_5=float("nan"), counted=True)
    assert "0 of 1 queries keep their first page" in in_words(unknown, unknown, failures, "base", ["four"])
