"""The transcribed reports: every printed value against its recomputation, the tests against scipy, the reports byte for byte."""

import re

import numpy as np
import pytest
import scipy.stats

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from studies.published import figures_data as published
from studies.published import report as published_report


@pytest.fixture(scope="module")
def tables():
    return published.load()


@pytest.fixture(scope="module")
def audit(tables):
    return published.audit(tables)


def test_english_comparison_is_reproduced_exactly(tables, audit):
    own = audit[audit.source == "comparison_4b_english_report.md"]
    assert set(own.status) == {"reproduced", "as published"} and (own.status == "reproduced").sum() == 92
    assert tables.english.shape == (22, 4)
    assert tables.english.mean().round(5).tolist() == [0.74743, 0.74545, 0.74432, 0.74582]
    assert [published.stats.win_tie_loss(tables.differences[n]) for n in published.LENGTHS] == [
        (5, 1, 16),
        (7, 1, 14),
        (11, 1, 10),
    ]


def test_only_known_values_are_not_reproduced(audit):
    wrong = audit[audit.status == "differs"]
    assert (
        wrong.what.tolist() == ["FP8, model weights, change (%)"] * 2
        and wrong.recomputed.round(1).tolist() == [-41.3] * 2
    )
    near = audit[audit.status == "within rounding"]
    assert near.what.tolist() == [
        "8b, english, seqlen-256, change (%)",
        "8b, original, mean latency",
        "8b, quantized, throughput",
        "8b, quantized, mean latency",
    ]
    assert (audit.recomputed.isna() == (audit.status == "as published")).all()


@pytest.mark.parametrize(
    ("printed", "inputs", "status"),
    [
        (-1.19, [(0.66380, 5), (0.67177, 5)], "reproduced"),
        (-0.14, [(0.75688, 5), (0.75798, 5)], "within rounding"),
        (-0.16, [(0.75688, 5), (0.75798, 5)], "differs"),
    ],
)
def test_compared(printed, inputs, status):
    assert published.compared(printed, 2, inputs, published.percent)[1] == status


def test_tests_across_tasks_are_scipys(tables):
    table = published.across_tasks(tables)
    for name, r in zip(published.LENGTHS, table.itertuples()):
        d = tables.differences[name].to_numpy()
        assert r.diff == pytest.approx(d.mean(), abs=1e-9) and r.low < r.diff < r.high
        assert r.p_sign == pytest.approx(
            scipy.stats.binomtest(int((d > 0).sum()), int((d != 0).sum())).pvalue, abs=1e-12
        )
        assert r.p_wilcoxon == pytest.approx(scipy.stats.wilcoxon(d).pvalue, abs=1e-12)
        theirs = scipy.stats.permutation_test(
            (d, np.zeros(22)),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=20000,
            rng=np.random.default_rng(1),
        )
        assert r.p_randomization == pytest.approx(theirs.pvalue, abs=0.015)
    assert (table[["holm_sign", "holm_wilcoxon", "holm_randomization"]] > 0.05).all(axis=None), (
        "no difference stands after Holm"
    )


def test_worth_in_queries(tables):
    table = published.worth(tables)
    assert table.loc["VidoreSyntheticDocQAAIRetrieval", "seqlen-256"] == pytest.approx(
        -(1 - 1 / np.log2(3)), abs=1e-3
    ), "one query, from first to second"
    assert (table.abs() < 1).sum().sum() == 43


def test_tasks_are_those_of_mteb(tables):
    import mteb

    tasks = {t.metadata.name: t for t in mteb.get_tasks(tasks=tables.tasks.task.tolist())}
    assert [
        len(tasks[name].hf_subsets) for name in tables.tasks.task
    ] == tables.tasks.entries.tolist() and tables.tasks.entries.sum() == 71
    assert (
        list(tables.english.index)
        == tables.tasks.task.tolist()
        == list(config.load("tomoro-4b").evaluation.tasks)
    )


def test_reports_name_what_they_rest_on(tables, tmp_path):
    first = [path.read_bytes() for path in published_report.write(tmp_path)]
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "figures" / "published").glob("*.png")}
    assert first == [path.read_bytes() for path in published_report.write(tmp_path)]
    assert len(drawn) == 2 and all(
        (tmp_path / "figures" / "published" / name).read_bytes() == content for name, content in drawn.items()
    )
    for content in first:
        for link in re.findall(r"\]\(([^)]+png)\)", content.decode()):
            assert (tmp_path / "results" / "published" / "reports" / link).resolve().is_file(), link
    comparison, analysis = (content.decode() for content in first)
    assert (
        "| **Average** | **0.74743** | **0.74545** | **-0.26%** | **0.74432** | **-0.42%** | **0.74582** | **-0.21%** |"
        in comparison
    )
    for _, r in tables.scores_by_task[
        tables.scores_by_task.variant != "original"
    ].iterrows():  # as printed, to the last character
        printed = f"{r.ndcg_at_5:.5f} | " + (f"{r.change_pct:+.2f}%" if r.change_pct else "0.00%")
        assert printed in next(line for line in comparison.splitlines() if line.startswith(f"| {r.task} ["))
    assert (
        "71 entries for the 8B and 41 for the 4B" in analysis
        and "None was measured in this repository" in comparison
    )
    assert (
        re.search(r"8B, 512 against 1024: batch size \(150 and 50\)", analysis)
        and "samples and tokens are not published" in analysis
    )
    assert "not measured" not in comparison + analysis
    assert "| 8B | all languages | analysis | 71 | -0.32 | -1.84 | -0.08 |" in analysis
    assert (
        len(analysis.split("<details")[0].split()) < 800
        and analysis.count("<details>\n<summary>") == analysis.count("</summary>\n\n") == 9
    )


def test_the_answer_follows_the_tables(tables):
    """With the same worst length in both reports the text says so, and with even counts it names no loss."""
    from dataclasses import replace

    at = (
        (tables.averages.source == "quantization_analysis_report.md")
        & (tables.averages.model == "4b")
        & (tables.averages.variant == "seqlen-512")
    )
    same = published_report.analysis(
        replace(
            tables, averages=tables.averages.assign(change_pct=tables.averages.change_pct.where(~at, -9.0))
        )
    )
    assert (
        "though both find 512 tokens worst" in same
        and "though both find" not in published_report.analysis(tables)
    )
    even = published_report.analysis(replace(tables, counts=tables.counts.assign(improved=30, degraded=30)))
    assert (
        "Counts of entries support no loss." in even
        and "Counts point to a loss in 2 cases." in published_report.analysis(tables)
    )


def test_committed_reports_are_those_of_the_tables(tables):
    for name, text in published_report.render(tables).items():
        assert (config.ROOT / "results" / "published" / "reports" / name).read_text() == text


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ColqError, match=r"scores_by_task\.csv"):
        published.load(tmp_path)
