"""Reports from made-up results: known numbers, the same bytes twice, holes named."""

import dataclasses
import re

import made_results
import pandas as pd
import pytest

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.report import analysis, findings, results, stats, wording
from colq_utils.report import build as report
from colq_utils.report import markdown as md
from colq_utils.report.figures import quality


def rows_of(text: str, first: str) -> list[list[str]]:
    """Cells of the table rows whose first cell is `first`."""
    return [
        [c.strip() for c in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith(f"| {first} |")
    ]


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
    variants = study.results.variants.set_index("variant")
    for name, row in variants.iterrows():
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


def test_calibration_length_is_not_ranked_without_evidence(hand, study):
    question = "**Does the calibration length matter?** "
    assert (
        "quantized with one seed (42)" in report.render(study)["quantization_analysis.md"].split(question)[1]
    )
    alone = report.render(analysis.study(results.load(hand)))["quantization_analysis.md"]
    assert (
        f"{question}Fewer than two calibration lengths of equal tokens were evaluated: not measured." in alone
    )


def test_holes_are_named(hand):
    texts = report.render(analysis.study(results.load(hand)))
    assert (
        "**Not measured:** checkpoint sizes and acceptance (`make quantize EXPERIMENT=toy`); "
        "memory and speed (`make benchmark" in texts["summary.md"]
    )
    assert (
        rows_of(texts["summary.md"], "W4A16 RTN")[0][1] == "not measured"
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
    assert rows_of(texts["quantization_analysis.md"], "W3A16 RTN")[0][2::2] == ["not measured"] * 2


@pytest.mark.parametrize("margin", [1e-9, 0.005, 0.03, 1.0])
def test_near_lossless_only_where_the_interval_clears_the_margin(study, margin):
    other = dataclasses.replace(
        study, results=dataclasses.replace(study.results, experiment=with_margin(study.experiment, margin))
    )
    low = study.suite.set_index("variant").diff_low
    clear = [name for name in study.experiment.quantized if low[name] + margin > stats.NEAR]
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
        and "W3A16 RTN | 19.0 | not measured" in text
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


def test_a_rejected_checkpoint_stands_at_the_top_of_every_report(fresh):
    """The made-up results reject the two-bit variant."""
    for name, text in report.render(analysis.study(results.load(fresh))).items():
        assert "> **Rejected: W2A16 RTN (auto_round).**" in text.split("\n## ")[0], name
    path = fresh.results("quantize") / "variants.csv"
    pd.read_csv(path).assign(accepted=True).to_csv(path, index=False)
    assert not any("Rejected" in text for text in report.render(analysis.study(results.load(fresh))).values())


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
    study = analysis.study(results.load(exp))
    for draw in (quality.difference, quality.comparison):
        width, height = Image.open(draw(study)).size
        assert width == 1200 and height < 1800, draw.__name__


def test_the_summary_is_a_page_that_says_what_the_tables_say(study):
    """A change of the summary stands with its interval and words, as in the tables."""
    text, table = report.render(study)["summary.md"], study.suite.set_index("variant")
    for name in (study.experiment.base, *findings.four_bits(study)):
        (row,) = rows_of(text, study.labels[name])
        if name != study.experiment.base:
            assert row[2] == md.change_ci(table["diff"][name], table.diff_low[name], table.diff_high[name])
            assert row[4] == wording.change(
                table.diff_low[name], table.diff_high[name], study.experiment.evaluation.margin
            )
    assert next(iter(report.REPORTS)) == "summary.md" and "33.3 % of the checkpoint (30.0 to 20.0 MB)" in text
    committed = (config.load("tiny").results("reports") / "summary.md").read_text()
    assert len(committed.split()) <= 400 and max(line.count(" | ") for line in committed.splitlines()) <= 5


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
    assert "old" not in first and "| W4A16 RTN | 20.0 | " in first and first.endswith("end\n")
    assert report.update_readme(readme, report.headline(study)).read_text() == first
    readme.write_text("nothing")
    with pytest.raises(ColqError, match="headline"):
        report.update_readme(readme, "x")
