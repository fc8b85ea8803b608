"""Reports from made-up results: known numbers, the same bytes twice, holes named, contradictions refused."""

import dataclasses
import json
import re

import made_results
import pandas as pd
import pytest

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.report import analysis, findings, results, speed, tables, wording
from colq_utils.report import build as report
from colq_utils.report import markdown as md
from colq_utils.report.figures import quality

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
    return analysis.study(results.load(toy), resamples=300)


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


def rows_of(text: str, first: str) -> list[list[str]]:
    """Cells of the table rows whose first cell is `first`."""
    return [
        [c.strip() for c in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith(f"| {first} |")
    ]


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


def test_rendered_numbers_by_hand(hand):
    study = analysis.study(results.load(hand))
    text = report.render(study)["comparison_english.md"]
    interval = study.by_entry.query("variant == 'toy-w4a16-rtn' and task == 'A' and lang == 'en'").iloc[0]
    low, high = (md.number(100 * x, 1, True) for x in (interval.diff_low, interval.diff_high))
    low_pct, high_pct = (md.number(100 * x / 0.75, 2, True) for x in (interval.diff_low, interval.diff_high))
    assert rows_of(text, "A (4)") == [
        ["A (4)", "0.750", f"-12.5 [{low}, {high}]"],
        ["A (4)", "0.750", "0.625", f"-16.67% [{low_pct}, {high_pct}]"],
    ]
    assert [row[:3] for row in rows_of(text, "B (2)")] == [
        ["B (2)", "0.500", rows_of(text, "B (2)")[0][2]],
        ["B (2)", "0.500", "0.600"],
    ]
    assert rows_of(text, "B (2)")[0][2].startswith("+10.0 [")
    assert rows_of(text, "**Average**")[1][:3] == ["**Average**", "**0.625**", "**0.613**"]
    overall = next(r for r in rows_of(text, "W4A16 RTN") if len(r) == 7)
    assert overall[1] == "0.613" and overall[2].startswith("-1.2 [") and overall[5] == "1/4/1"
    assert next(r for r in rows_of(text, "W4A16 RTN") if len(r) == 6)[1:4] == ["1", "1", "0"]


def test_every_number_of_the_size_table_is_in_the_result_file(study):
    text = report.render(study)["quantization_analysis.md"]
    made = study.results.variants.set_index("variant")
    for name, row in made.iterrows():
        wanted = [
            study.labels[name],
            row.export,
            f"{row.base_bytes / 1e6:.1f}",
            f"{row.tensor_bytes / 1e6:.1f}",
            f"{100 - 100 * row.tensor_bytes / row.base_bytes:.1f}",
            f"{row.predicted_bytes / 1e6:.1f}",
        ]
        assert wanted in rows_of(text, study.labels[name])


def test_same_results_same_bytes(toy, tmp_path):
    copies = [report.render(analysis.study(results.load(toy))) for _ in range(2)]
    assert copies[0] == copies[1] and set(copies[0]) == set(report.REPORTS)
    assert not re.search(r"nan|None\b|20[0-9]{2}-[0-9]{2}", "".join(copies[0].values()))


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


def test_calibration_length_is_not_ranked_without_evidence(hand, study):
    question = "**Does the calibration length matter?** "
    assert (
        "quantized with one seed (42)" in report.render(study)["quantization_analysis.md"].split(question)[1]
    )
    alone = report.render(analysis.study(results.load(hand)))["quantization_analysis.md"]
    assert (
        f"{question}Fewer than two calibration lengths of equal tokens were evaluated: not measured." in alone
    )


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
    study = analysis.study(results.load(exp), resamples=100)
    pairs = lambda table: {(r["first"][-4:], r["second"][-5:]) for _, r in table.iterrows()}  # noqa: E731
    assert pairs(findings.lengths(study)) == {("s256", "s1024")} and pairs(
        findings.confounded_lengths(study)
    ) == {("p256", "-p512")}
    report_text = report.render(study)["quantization_analysis.md"]
    assert (
        "s256 and s1024 hold the same number of tokens" in report_text
        and "p256 and p512 differ in tokens" in report_text
    )


def test_holes_are_named(hand):
    texts = report.render(analysis.study(results.load(hand)))
    assert (
        "**Not measured:** checkpoint sizes and acceptance (`make quantize EXPERIMENT=toy`); "
        "memory and speed (`make benchmark" in texts["summary.md"]
    )
    assert (
        rows_of(texts["summary.md"], "W4A16 RTN")[0][1:3] == ["not measured", "not measured"]
        and "Speed: not measured." in texts["summary.md"]
    )
    assert (
        texts["benchmark.md"].count("not measured") >= 6
        and "`make benchmark` measures it" in texts["benchmark.md"]
    )
    for part in ("acceptance of the checkpoints", "size of the checkpoints", "calibration sets"):
        assert re.search(rf"{part}: not measured", texts["quantization_analysis.md"])


def test_a_variant_without_a_task_has_no_average(fresh):
    queries = pd.read_parquet(fresh.results("evaluate") / "queries.parquet")
    made_results.write_scores(
        fresh, queries[(queries.variant != "toy-w3a16-rtn") | (queries.task != "MadeShort")]
    )
    study = analysis.study(results.load(fresh))
    texts = report.render(study)
    averages = [
        r[1:]
        for r in rows_of(texts["quantization_analysis.md"], "W3A16 RTN")
        if len(r) == 7 and "auto_round" not in r
    ]
    assert averages == [["not measured"] * 6] * 2
    assert "Without an average, because a task is missing:** W3A16 RTN" in texts["comparison_english.md"]
    assert rows_of(texts["summary.md"], "W3A16 RTN")[0][3::2] == ["not measured"] * 2


@pytest.mark.parametrize("margin", [1e-9, 0.005, 0.03, 1.0])
def test_near_lossless_only_where_the_interval_clears_the_margin(study, margin):
    other = dataclasses.replace(
        study, results=dataclasses.replace(study.results, experiment=with_margin(study.experiment, margin))
    )
    low = study.suite.set_index("variant").diff_low
    clear = [name for name in study.experiment.quantized if low[name] > -margin]
    start = "Shown to stay within" if clear else "No quantized variant is shown to stay within"
    said = report.render(other)["quantization_analysis.md"].split(f" {start}")[1].split("\n")[0]
    assert [name for name in study.experiment.quantized if study.labels[name] in said] == clear


def with_margin(experiment, margin):
    return experiment.model_copy(
        update={"evaluation": experiment.evaluation.model_copy(update={"margin": margin})}
    )


def test_use_cases_follow_the_tables(study):
    text, verdicts = (
        report.render(study)["quantization_analysis.md"],
        study.suite.set_index("variant").verdict,
    )
    ((_, small, why),) = rows_of(text, "Smallest checkpoint, whatever it costs")
    assert small == "W3A16 RTN" and why.startswith("19.0 MB"), "the made-up W2A16 is not accepted"
    ((_, quick, why),) = rows_of(text, "Quick experiment; its loss may be below 0.5 points")
    assert (
        quick == "W4A16 RTN" and why.startswith("made in 10.0 s") and verdicts["toy-w4a16-rtn"] != "inferior"
    )


def test_a_failed_task_is_a_named_hole(fresh):
    queries = pd.read_parquet(fresh.results("evaluate") / "queries.parquet")
    made_results.write_scores(
        fresh, queries[(queries.variant != "toy-w3a16-rtn") | (queries.task != "MadeShort")]
    )
    pd.DataFrame(
        [("toy-w3a16-rtn", "MadeShort", "MemoryError: made up")], columns=["variant", "task", "error"]
    ).to_csv(fresh.results("evaluate") / "failures.csv", index=False)
    texts = report.render(analysis.study(results.load(fresh)))
    text = texts["quantization_analysis.md"]
    assert "| MadeShort | W3A16 RTN | MemoryError: made up |" in texts["summary.md"]
    assert (
        "| MadeShort | W3A16 RTN | MemoryError: made up |" in text
        and "W3A16 RTN | 19.0 | 36.7 | not measured" in text
    )


def test_benchmark_says_slower_only_with_an_interval(study):
    text = report.render(study)["benchmark.md"]
    assert rows_of(text, "W4A16 RTN | text queries")[0][2:] == [
        "8",
        "192",
        "ark",
        "1.50 [1.47, 1.53]",
        "slower",
    ]
    assert "to be expected on a CPU" in text and "MemoryError: made up" in text
    assert (
        text.index("## Key findings")
        < text.index("## Latency against the base")
        < text.index("Which kernels ran")
    )


def test_a_variant_that_fell_back_is_not_taken_for_autoround(study):
    made = study.results.variants
    fallen = made.assign(
        fallback=made.fallback.where(made.variant != "toy-w4a16-autoround-s256", "rtn group 128")
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
    some = study.results.samples
    luck = some.latency_s * some["round"].map({1: 0.5, 2: 1.0}).where(
        some.variant != study.experiment.base, 1.0
    )
    torn = dataclasses.replace(
        study, results=dataclasses.replace(study.results, samples=some.assign(latency_s=luck))
    )
    (found,) = speed.ratios(torn).itertuples()
    assert found.word == "undecided" and found.low < 0.8 and found.high > 1.4


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


def test_a_rejected_checkpoint_stands_at_the_top_of_every_report(fresh):
    """The made-up results reject the two-bit variant."""
    for name, text in report.render(analysis.study(results.load(fresh), resamples=50)).items():
        assert "> **Rejected: W2A16 RTN (auto_round).**" in text.split("\n## ")[0], name
    path = fresh.results("quantize") / "variants.csv"
    pd.read_csv(path).assign(accepted=True).to_csv(path, index=False)
    assert not any(
        "Rejected" in text
        for text in report.render(analysis.study(results.load(fresh), resamples=50)).values()
    )


def test_reports_link_the_figures_that_exist(toy, study):
    drawn = quality.draw(study)
    assert len(drawn) == 8 and all(p.stat().st_size > 5000 for p in drawn)
    again = {p.name: p.read_bytes() for p in drawn}
    assert quality.headline(study).read_bytes() == again["headline.png"]
    for path in report.write(study):
        for link in re.findall(r"\]\(([^)]+png)\)", path.read_text()):
            assert (path.parent / link).resolve().is_file(), link
        assert "Not drawn" not in path.read_text()


def test_many_tasks_still_fit_the_width_of_a_readme(tmp_path):
    from PIL import Image

    exp = made_results.experiment(tmp_path)
    made_results.write(
        exp,
        queries=4,
        languages=("en", "fr"),
        tasks={f"VidoreSyntheticDocQATask{i}Retrieval": "graded" for i in range(14)},
    )
    study = analysis.study(results.load(exp), resamples=50)
    for draw in (quality.difference, quality.comparison):
        width, height = Image.open(draw(study)).size
        assert width == 1200 and height < 1800, draw.__name__


def test_the_summary_is_a_page_that_says_what_the_tables_say(study):
    """A change of the summary stands with its interval and words, as in the tables."""
    text, table = report.render(study)["summary.md"], study.suite.set_index("variant")
    for name in (study.experiment.base, *study.experiment.quantized):
        (row,) = rows_of(text, study.labels[name])
        if name != study.experiment.base:
            assert row[3] == md.change_ci(table["diff"][name], table.diff_low[name], table.diff_high[name])
            assert row[5] == wording.change(
                table.diff_low[name], table.diff_high[name], study.experiment.evaluation.margin
            )
    assert next(iter(report.REPORTS)) == "summary.md" and "33.3 % of the checkpoint (30.0 to 20.0 MB)" in text
    committed = (config.load("tiny").results("reports") / "summary.md").read_text()
    assert len(committed.split()) <= 400 and max(line.count(" | ") for line in committed.splitlines()) <= 5


def test_top_page_changes_by_hand(hand):
    queries = pd.read_parquet(hand.results("evaluate") / "queries.parquet")
    ours = (queries.variant == "toy-w4a16-rtn") & (queries.task == "A") & (queries.lang == "en")
    moved = queries[ours].index[0], queries[ours].index[1]
    queries.at[moved[0], "top5"] = ["p2", "p1"]  # another page first
    queries.at[moved[1], "top5"] = ["p1", "p3"]  # the same page first
    made_results.write_scores(hand, queries, {"A": "graded", "B": "graded"})
    changes = analysis.top_page_changes(analysis.study(results.load(hand))).set_index("variant").top_changed
    assert changes["toy-bf16"] == 0 and changes["toy-w4a16-rtn"] == pytest.approx((1 / 4 + 0 + 0) / 3)


@pytest.mark.parametrize(
    "low, high, words",
    [
        (-0.004, 0.001, "within the margin of 0.5"),
        (-0.002, -0.001, "within the margin of 0.5"),
        (-0.0362, -0.0214, "loses at least 2.1 points"),
        (-0.0123, -0.003, "loses between 0.3 and 1.2 points"),
        (-0.0066, 0.0014, "undecided: between -0.7 and +0.1"),
        (-0.006, -0.00001, "loses up to 0.6 points"),
        (-0.006, 0.0, "undecided: between -0.6 and 0"),
        (float("nan"), 0.0, "not measured"),
    ],
)
def test_words_say_what_the_interval_shows(low, high, words):
    assert wording.change(low, high, 0.005) == words


def test_words_of_pairs_and_speed():
    assert [wording.pair(*i) for i in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == [
        "higher",
        "lower",
        "undecided",
    ]
    assert [wording.speed(*i) for i in ((1.1, 1.2), (0.8, 0.9), (0.9, 1.1), (float("nan"),) * 2)] == [
        "slower",
        "faster",
        "undecided",
        "not measured",
    ]


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


def test_nothing_of_the_old_dialect_and_a_thousand_words_before_the_first_fold(study):
    for name, text in report.render(study).items():
        assert not re.search(
            r"not resolved|inferior|told apart|census|four of five", text.split("<details")[0]
        ), name
        assert len(text.split("<details")[0].split()) < 1500
        assert max(line.count(" | ") for line in text.split("<details")[0].splitlines()) <= 6, (
            f"{name}: a table of more than seven columns"
        )


def test_committed_reports_follow_from_the_committed_results():
    tiny = config.load("tiny")
    for name, text in report.render(analysis.study(results.load(tiny))).items():
        assert (tiny.results("reports") / name).read_text() == text, f"{name}: run `make summary` and commit"


def test_readme_snippet(study, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# T\n{report.MARKER}\nold\n{report.MARKER}\nend\n")
    report.update_readme(readme, report.headline(study))
    first = readme.read_text()
    assert "old" not in first and "| W4A16 RTN | 20.0 | 33.3 |" in first and first.endswith("end\n")
    assert report.update_readme(readme, report.headline(study)).read_text() == first
    readme.write_text("nothing")
    with pytest.raises(ColqError, match="headline"):
        report.update_readme(readme, "x")


def test_markdown_cells():
    assert (
        md.number(-0.001, 2, True) == "0.00"
        and md.number(1234.5, 1, True) == "+1,234.5"
        and md.number(None) == "not measured"
    )
    assert md.points_ci(-0.0123, -0.02, float("nan")) == "-1.23 [interval not measured]"
    assert md.percent_ci(-0.01, -0.02, 0.0, 0.5) == "-2.00% [-4.00, 0.00]"
    assert md.megabytes(8_466_000_000, 0) == "8,466" and md.p_value(0.00001) == "< 0.0001"
    assert md.table(["a", "b"], [["x|y", None]]) == "| a | b |\n| --- | ---: |\n| x\\|y | not measured |"


def test_three_significant_digits_by_the_name_of_the_column():
    assert [md.significant(v) for v in (30.1466, 0.8072, 1234, 9.996, 0, None)] == [
        "30.1",
        "0.807",
        "1,230",
        "10.0",
        "0",
        "not measured",
    ]
    assert (
        md.change_ci(-0.1734, -0.1869, -0.1598) == "-17.3 [-18.7, -16.0]"
        and md.change_ci(-0.0076, -0.0123, -0.003) == "-0.76 [-1.23, -0.30]"
    )
    frame = pd.DataFrame(
        {
            "label": ["a|b"],
            "tensor_bytes": [24_034_048],
            "saved_pct": [20.276],
            "load_s": [0.01234],
            "layers": [1234],
            "share": [0.274],
        }
    )
    assert (
        tables.table(frame, {name: name for name in frame}).splitlines()[2]
        == "| a\\|b | 24.0 | 20.3 | 12.3 | 1,234 | 27.4 |"
    )
    assert (
        md.label_list(["A, 1", "B, 2", "C"]) == "A, 1; B, 2; and C"
        and md.label_list(["A", "B", "C"]) == "A, B and C"
    )
