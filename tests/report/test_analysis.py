"""Averages, recommendations and comparisons, with numbers known by hand."""

import dataclasses

import made_results
import pandas as pd
import pytest

from colq_utils.report import analysis, findings, results, speed
from colq_utils.report import build as report


def test_averages_by_hand(hand):
    study = analysis.study(results.load(hand))
    base, ours = study.suite.to_dict("records")
    assert base["score"] == pytest.approx((0.75 + 0.5 + 0.5) / 3) and ours["score"] == pytest.approx(
        (0.625 + 0.5 + 0.6) / 3
    )
    assert ours["diff"] == pytest.approx(-0.025 / 3)
    assert (ours["wins"], ours["ties"], ours["losses"]) == (1, 6, 1)
    assert (ours["improved"], ours["unchanged"], ours["degraded"]) == (1, 1, 1)
    assert (ours["clearly_improved"], ours["clearly_degraded"]) == (0, 0)
    english = analysis.averages(study, study.english).iloc[1]
    assert english.score == pytest.approx((0.625 + 0.6) / 2) and list(study.english) == [False, True, True]


def test_lowered_scores_are_not_called_non_inferior(study):
    table = study.suite.set_index("variant")
    assert (
        table.verdict["toy-w2a16-rtn"] == "inferior"
        and table.diff_high["toy-w2a16-rtn"] < -study.experiment.evaluation.margin
    )
    assert "W2A16 RTN below W3A16 RTN" in report.render(study)["quantization_analysis.md"]


def test_recommendation_is_the_cheapest_of_the_smallest_clear_ones(tmp_path):
    exp = made_results.experiment(tmp_path)
    made_results.write(exp, queries=6)
    queries = pd.read_parquet(exp.results("evaluate") / "queries.parquet")
    base = queries[queries.variant == exp.base].set_index(["task", "lang", "query_id"])
    for name in (n for n in exp.by_id if "w4a16" in n):  # the 4-bit variants answer exactly as the base
        rows = queries.variant == name
        queries.loc[rows, "ndcg_at_5"] = base.ndcg_at_5.reindex(
            pd.MultiIndex.from_frame(queries.loc[rows, ["task", "lang", "query_id"]])
        ).to_numpy()
    made_results.write_scores(exp, queries)
    study = analysis.study(results.load(exp))
    assert findings.recommend(study).variant == "toy-w4a16-rtn"
    text = report.render(study)["quantization_analysis.md"]
    assert "Use **W4A16 RTN** at 20.0 MB: it changes NDCG@5 by 0.00 [0.00, 0.00] points" in text
    assert "- {scheme: w4a16, method: rtn}" in text


def test_designs_that_differ_in_more_than_length_are_not_ranked_by_length(tmp_path):
    text = made_results.EXPERIMENT.replace(
        "batch_rows: 1}",
        "batch_rows: 1}\n    - {id: p256, seqlen: 256, blocks: 4, batch_rows: 4}\n"
        "    - {id: p512, seqlen: 512, blocks: 6, batch_rows: 3}",
    )
    more = "".join(
        f"  - {{scheme: w4a16, method: autoround, calibration: {s}, iters: 5}}\n" for s in ("p256", "p512")
    )
    exp = made_results.experiment(tmp_path, text.replace("benchmark:", more + "benchmark:"))
    made_results.write(exp, queries=6)
    study = analysis.study(results.load(exp))
    pairs = lambda table: {(r["first"][-4:], r["second"][-5:]) for _, r in table.iterrows()}  # noqa: E731
    assert pairs(findings.lengths(study)) == {("s256", "s1024")} and pairs(
        findings.confounded_lengths(study)
    ) == {("p256", "-p512")}
    report_text = report.render(study)["quantization_analysis.md"]
    assert (
        "s256 and s1024 hold the same number of tokens" in report_text
        and "p256 and p512 differ in tokens" in report_text
    )


def test_a_variant_that_fell_back_is_not_taken_for_autoround(study):
    variants = study.results.variants
    fallen = variants.assign(
        fallback=variants.fallback.where(variants.variant != "toy-w4a16-autoround-s256", "rtn group 128")
    )
    torn = dataclasses.replace(study, results=dataclasses.replace(study.results, variants=fallen))
    assert torn.labels[
        "toy-w4a16-autoround-s256"
    ] == "W4A16 AutoRound, 256 tokens (fell back)" and "(fell back)" in report.headline(torn)
    assert (
        set(findings.rounding_pairs(torn)["first"]) == {"toy-w4a16-autoround-s1024"}
        and findings.lengths(torn).empty
    )


def test_processes_that_disagree_leave_it_open(study):
    samples = study.results.samples
    luck = samples.latency_s * samples["round"].map({1: 0.5, 2: 1.0}).where(
        samples.variant != study.experiment.base, 1.0
    )
    torn = dataclasses.replace(
        study, results=dataclasses.replace(study.results, samples=samples.assign(latency_s=luck))
    )
    (ratio,) = speed.ratios(torn).itertuples()
    assert ratio.word == "undecided" and ratio.low < 0.8 and ratio.high > 1.4


def test_top_page_changes_by_hand(hand):
    queries = pd.read_parquet(hand.results("evaluate") / "queries.parquet")
    ours = (queries.variant == "toy-w4a16-rtn") & (queries.task == "A") & (queries.lang == "en")
    moved = queries[ours].index[0], queries[ours].index[1]
    queries.at[moved[0], "top5"] = ["p2", "p1"]  # another page first
    queries.at[moved[1], "top5"] = ["p1", "p3"]  # the same page first
    made_results.write_scores(hand, queries, {"A": "graded", "B": "graded"})
    changes = analysis.top_page_changes(analysis.study(results.load(hand))).set_index("variant").top_changed
    assert changes["toy-bf16"] == 0 and changes["toy-w4a16-rtn"] == pytest.approx((1 / 4 + 0 + 0) / 3)


def test_which_card_a_published_model_fits(toy, study):
    """Weights without the unused head, plus what a batch held beyond its tensors on a GPU, if it ran."""
    published = pd.DataFrame(
        [("4b", 8_000_000_000, 500_000_000, 3_000_000_000)],
        columns=["size", "bf16_bytes", "unused_head_bytes", "w4a16_bytes"],
    )
    other = dataclasses.replace(study, results=dataclasses.replace(study.results, published=published))
    assert (
        speed.fits(other).queries_bytes.isna().all()
        and "| 4B BF16 | 7.50 | not measured |" in report.render(other)["benchmark.md"]
    )
    rows = [(f"4b-{name}", None, None, "tensors_bytes", 1e9) for name in ("bf16", "w4a16-pack")]
    rows += [
        (f"4b-{name}", kind, batch, "peak_allocated_bytes", peak)
        for name in ("bf16", "w4a16-pack")
        for kind, batch, peak in (("queries", 32, 1.4e9), ("pages", 8, 7e9), ("pages", 4, 9e9))
    ]
    path = toy.output / "results" / "h200-4b" / "benchmark" / "memory.csv"
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows, columns=["variant", "kind", "batch", "metric", "bytes"]).to_csv(path, index=False)
    base, four = speed.fits(other).itertuples()
    path.unlink()
    assert (
        base.weights_bytes,
        base.queries_bytes,
        base.queries_card_gb,
        base.pages_bytes,
        base.pages_card_gb,
    ) == (7.5e9, 7.9e9, 8, 13.5e9, 16)
    assert (four.queries_bytes, four.queries_card_gb, four.pages_card_gb) == (3.4e9, 8, 12)


def test_speed_has_an_interval_from_five_processes_on(study):
    """The made-up benchmark has two processes; three more, equal to the first, make an interval."""
    assert "2 processes, no interval" in speed.in_one_sentence(study)
    assert "[" not in speed.in_one_sentence(study)
    samples = study.results.samples
    first = samples[samples["round"] == 1]
    five = pd.concat([samples, *(first.assign(round=number) for number in (3, 4, 5))])
    more = dataclasses.replace(study, results=dataclasses.replace(study.results, samples=five))
    assert "[" in speed.in_one_sentence(more) and "no interval" not in speed.in_one_sentence(more)
