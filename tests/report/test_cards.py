"""Model cards from made-up results: valid front matter, holes named, rejection first."""

import json

import made_results
import pandas as pd
import pytest
import yaml

from colq_utils.report import analysis, build, cards, results


@pytest.fixture
def exp(tmp_path):
    exp = made_results.experiment(tmp_path)
    made_results.write(exp, queries=4)
    return exp


def study(exp):
    return analysis.study(results.load(exp))


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_card_per_quantized_variant_is_written_beside_the_reports(exp):
    paths = build.write(study(exp))
    folder = exp.results("cards")
    assert sorted(path.stem for path in folder.glob("*.md")) == sorted(exp.quantized)
    assert {folder / f"{name}.md" for name in exp.quantized} <= set(paths)


def test_a_card_says_what_it_is_how_it_was_made_and_what_it_scores(exp):
    loaded = study(exp)
    text = cards.card(loaded, "toy-w4a16-autoround-s256")
    head = front_matter(text)
    assert head["license"] == "other" and "| Licence of the base | not stated |" in text
    assert "base_model" not in head  # a local folder is no hub id
    assert {"colqwen3", "4-bit", "auto-round", "vllm"} <= set(head["tags"])
    for row in (
        "| Calibration | 256 tokens (8 blocks, 2,048 tokens) |",
        "| Iterations | 5 |",
        "| Seed | 42 |",
        "| auto_round | 20.0 | 30.0 | 0.991 | 0.985 | yes |",
    ):
        assert row in text
    row = loaded.suite.set_index("variant").loc["toy-w4a16-autoround-s256"]
    assert f"| Average | {row.score:.4f} [{row.low:.4f}, {row.high:.4f}] |" in text
    assert "Speed: not measured." in text and "again?** Not measured." in text and "Rejected" not in text
    assert "trust_remote_code=True" in text and "AutoRoundConfig" not in text and "--runner pooling" in text
    timed = cards.card(loaded, "toy-w4a16-rtn")
    assert "| text queries, batch 8 | ark | 1.50" in timed and "`ark` (04_benchmark)" in timed


def test_a_card_passes_on_the_licence_of_the_base(exp):
    path = exp.results("inspect") / "architecture.json"
    stated = {"license": "other", "license_name": "made: up", "license_link": "https://example.org/licence"}
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))
    text = cards.card(study(exp), "toy-w4a16-rtn")
    assert front_matter(text).items() >= stated.items() and "| Licence of the base | made: up |" in text


def test_a_card_of_nf4_names_bitsandbytes_and_no_other_engine(tmp_path):
    settings = made_results.EXPERIMENT.replace("{scheme: w3a16, method: rtn}", "{scheme: nf4}")
    exp = made_results.experiment(tmp_path, settings)
    made_results.write(exp, queries=4)
    text = cards.card(study(exp), "toy-nf4")
    assert text.splitlines().count("# NF4 of made-up") == 1 and "stored in 4 bits as NF4" in text
    head = front_matter(text)["tags"]
    assert {"4-bit", "bitsandbytes"} <= set(head) and not {"vllm", "auto-round"} & set(head)
    assert "| Group size | 64, a table of 16 numbers |" in text and "vLLM: not tried with NF4." in text
    assert "`pip install bitsandbytes` too" in text


def test_a_rejected_variant_says_so_at_the_top(exp):
    text = cards.card(study(exp), "toy-w2a16-rtn")
    assert text.index("**Rejected.**") < text.index("## How it was made")


def test_a_hub_base_is_named_with_its_licence_and_revision(tmp_path):
    sha = "a" * 40
    model = f"{{path: org/base, revision: {sha}, size: toy}}"
    settings = made_results.EXPERIMENT.replace("{path: models/made-up, size: toy}", model)
    exp = made_results.experiment(
        tmp_path, settings.replace("method: rtn}", "method: rtn, exports: [auto_round, auto_awq]}", 1)
    )
    made_results.write(exp, queries=4)
    (exp.results("inspect") / "architecture.json").write_text(json.dumps({"license": "apache-2.0"}))
    text = cards.card(study(exp), "toy-w4a16-rtn")
    head = front_matter(text)
    assert head["license"] == "apache-2.0" and head["base_model"] == "org/base" and sha in text
    assert "awq" in head["tags"] and "quantization_config=AutoRoundConfig()" in text


def test_without_other_results_everything_is_not_measured(exp):
    scores = exp.results("evaluate")
    for name in ("queries.parquet", "scores.csv"):
        path = scores / name
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        table = table[table.variant != "toy-w3a16-rtn"]
        table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    for path in (*exp.results("quantize").iterdir(), *exp.results("benchmark").iterdir()):
        path.unlink()
    text = cards.card(study(exp), "toy-w3a16-rtn")
    said = ("Size and cosines: not measured.", "NDCG@5: not measured.", "Speed: not measured.")
    assert all(
        words in text for words in (*said, "Kernels that ran: not measured.", "| Versions | not measured |")
    )
