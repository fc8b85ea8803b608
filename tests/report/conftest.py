"""Studies made up at random and by hand."""

import made_results
import pandas as pd
import pytest

from colq_utils.report import analysis, results

SMALL = """
title: By hand
model: {path: models/made-up, size: toy}
calibration: {source: data/calibration, sets: []}
variants: [{scheme: bf16}, {scheme: w4a16, method: rtn}]
benchmark: {variants: [toy-bf16], workloads: []}
evaluation: {tasks: []}
"""


BASE = {("A", "en"): [1.0, 1.0, 0.5, 0.5], ("A", "de"): [0.4, 0.6], ("B", "en"): [1.0, 0.0]}


OURS = {("A", "en"): [1.0, 0.5, 0.5, 0.5], ("A", "de"): [0.4, 0.6], ("B", "en"): [1.0, 0.2]}


def by_hand(exp) -> None:
    """Eight queries under two variants."""
    rows = [
        (name, task, lang, f"q{i}", value, 1, 0.1, ["p1", "p2"])
        for name, table in (("toy-bf16", BASE), ("toy-w4a16-rtn", OURS))
        for (task, lang), values in table.items()
        for i, value in enumerate(values)
    ]
    columns = ["variant", "task", "lang", "query_id", "ndcg_at_5", "first_rank", "margin", "top5"]
    made_results.write_scores(exp, pd.DataFrame(rows, columns=columns), {"A": "graded", "B": "graded"})


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    exp = made_results.experiment(tmp_path_factory.mktemp("toy"))
    made_results.write(exp)
    return exp


@pytest.fixture(scope="module")
def study(toy):
    return analysis.study(results.load(toy))


@pytest.fixture
def hand(tmp_path):
    exp = made_results.experiment(tmp_path, SMALL)
    by_hand(exp)
    return exp


@pytest.fixture
def fresh(tmp_path):
    exp = made_results.experiment(tmp_path)
    made_results.write(exp, queries=4)
    return exp
