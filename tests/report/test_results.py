"""Result files that are missing or contradict each other are refused."""

import json

import made_results
import pandas as pd
import pytest

from colq_utils.base.errors import ColqError
from colq_utils.report import results


def test_missing_scores_name_the_target(tmp_path):
    with pytest.raises(ColqError, match="make evaluate"):
        results.load(made_results.experiment(tmp_path))


def spoil(path, change) -> None:
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"revision": str})
    table = change(table)
    table.to_parquet(path, index=False) if path.suffix == ".parquet" else table.to_csv(path, index=False)


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("quantize/variants.csv", lambda t: t.assign(revision="0" * 40), "one revision"),
        ("quantize/variants.csv", lambda t: pd.concat([t, t.head(1)]), "two rows"),
        ("quantize/variants.csv", lambda t: t.drop(columns="tensor_bytes"), "no column tensor_bytes"),
        ("evaluate/scores.csv", lambda t: t.assign(ndcg_at_5=t.ndcg_at_5 + 2e-4), "disagree"),
        (
            "evaluate/scores.csv",
            lambda t: t[(t.variant != "toy-fp32") | (t.lang != "en")],
            "only one of them",
        ),
        (
            "evaluate/scores.csv",
            lambda t: t.assign(variant=t.variant.replace("toy-fp32", "toy-fp8")),
            "toy-fp8",
        ),
        (
            "evaluate/queries.parquet",
            lambda t: t.assign(query_id=t.query_id.where(t.variant != "toy-fp32", "x" + t.query_id)),
            "different queries",
        ),
        ("evaluate/queries.parquet", lambda t: t[t.variant != "toy-bf16"], "no scores of the base"),
    ],
)
def test_contradictions_are_refused(fresh, file, change, message):
    spoil(fresh.output / "results" / "toy" / file, change)
    with pytest.raises(ColqError, match=message):
        results.load(fresh)


def test_results_of_another_seed_are_refused(fresh):
    path = fresh.results("evaluate") / "environment.json"
    path.write_text(path.read_text().replace('"seed": 42', '"seed": 7'))
    with pytest.raises(ColqError, match="seed 7"):
        results.load(fresh)


@pytest.mark.parametrize("key, value", [("dtype", "bfloat16"), ("max_visual_tokens", 1280)])
def test_another_precision_or_token_budget_is_refused_by_file(fresh, key, value):
    path = fresh.results("evaluate") / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ColqError, match=rf"evaluate/environment\.json was made with {key}"):
        results.load(fresh)
