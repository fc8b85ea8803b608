"""The transcribed reports: printed values recomputed, tests against scipy, reports byte for byte."""

import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.report import stats
from studies.published import audit, report
from studies.published import figures_data as published


@pytest.fixture(scope="module")
def tables():
    return published.load()


@pytest.fixture(scope="module")
def audited(tables):
    return audit.table(tables)


def test_english_comparison_is_reproduced_exactly(tables, audited):
    own = audited[audited.source == "comparison_4b_english_report.md"]
    assert set(own.status) == {"reproduced", "as published"} and (own.status == "reproduced").sum() == 92
    assert tables.english.shape == (22, 4)
    assert tables.english.mean().round(5).tolist() == [0.74743, 0.74545, 0.74432, 0.74582]
    counts = [stats.win_tie_loss(tables.differences[n]) for n in published.LENGTHS]
    assert counts == [(5, 1, 16), (7, 1, 14), (11, 1, 10)]


def test_only_known_values_are_not_reproduced(audited):
    wrong = audited[audited.status == "differs"]
    assert wrong.what.tolist() == ["FP8, model weights, change (%)"] * 2
    assert wrong.recomputed.round(1).tolist() == [-41.3] * 2
    assert audited[audited.status == "within rounding"].what.tolist() == [
        "8b, english, seqlen-256, change (%)",
        "8b, original, mean latency",
        "8b, quantized, throughput",
        "8b, quantized, mean latency",
    ]
    assert (audited.recomputed.isna() == (audited.status == "as published")).all()


@pytest.mark.parametrize(
    ("printed", "inputs", "status"),
    [
        (-1.19, [(0.66380, 5), (0.67177, 5)], "reproduced"),
        (-0.14, [(0.75688, 5), (0.75798, 5)], "within rounding"),
        (-0.16, [(0.75688, 5), (0.75798, 5)], "differs"),
    ],
)
def test_compared(printed, inputs, status):
    assert audit.compared(printed, 2, inputs, published.percent)[1] == status


def test_tests_across_tasks_are_scipys(tables):
    table = published.across_tasks(tables)
    for name, r in zip(published.LENGTHS, table.itertuples()):
        d = tables.differences[name].to_numpy()
        assert r.diff == pytest.approx(d.mean(), abs=1e-9) and r.low < r.diff < r.high
        sign = scipy.stats.binomtest(int((d > 0).sum()), int((d != 0).sum()))
        assert r.p_sign == pytest.approx(sign.pvalue, abs=1e-12)
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
    assert (table.filter(like="holm_") > 0.05).all(axis=None), "no difference stands after Holm"


def test_worth_in_queries(tables):
    table = published.worth(tables)
    from_first_to_second = -(1 - 1 / np.log2(3))
    one_query = table.loc["VidoreSyntheticDocQAAIRetrieval", "seqlen-256"]
    assert one_query == pytest.approx(from_first_to_second, abs=1e-3)
    assert (table.abs() < 1).sum().sum() == 43


def test_tasks_are_those_of_mteb(tables):
    import mteb

    names = tables.tasks.task.tolist()
    tasks = {t.metadata.name: t for t in mteb.get_tasks(tasks=names)}
    assert [len(tasks[name].hf_subsets) for name in names] == tables.tasks.entries.tolist()
    assert tables.tasks.entries.sum() == 71
    assert list(tables.english.index) == names == list(config.load("tomoro-4b").evaluation.tasks)


def test_reports_name_what_they_rest_on(tables, tmp_path):
    figures = tmp_path / "figures" / "published"
    first = [path.read_bytes() for path in report.write(tmp_path)]
    drawn = {path: path.read_bytes() for path in figures.glob("*.png")}
    assert first == [path.read_bytes() for path in report.write(tmp_path)]
    assert len(drawn) == 2 and all(path.read_bytes() == content for path, content in drawn.items())
    comparison, analysis = (content.decode() for content in first)
    for link in re.findall(r"\]\(([^)]+png)\)", comparison + analysis):
        assert (tmp_path / "results" / "published" / "reports" / link).resolve().is_file(), link
    average = ("0.74743", "0.74545", "-0.26%", "0.74432", "-0.42%", "0.74582", "-0.21%")
    assert f"| **Average** | **{'** | **'.join(average)}** |" in comparison
    quantized = tables.scores_by_task[tables.scores_by_task.variant != "original"]
    for r in quantized.itertuples():  # as printed, to the last character
        printed = f"{r.ndcg_at_5:.5f} | " + (f"{r.change_pct:+.2f}%" if r.change_pct else "0.00%")
        assert printed in next(line for line in comparison.splitlines() if line.startswith(f"| {r.task} ["))
    assert "None was measured in this repository" in comparison
    assert "not measured" not in comparison + analysis
    assert "71 entries for the 8B and 41 for the 4B" in analysis
    assert "8B, 512 against 1024: batch size (150 and 50)" in analysis
    assert "samples and tokens are not published" in analysis
    assert "| 8B | all languages | analysis | 71 | -0.32 | -1.84 | -0.08 |" in analysis
    assert len(analysis.split("<details")[0].split()) < 800
    assert analysis.count("<details>\n<summary>") == analysis.count("</summary>\n\n") == 9


def test_the_answer_follows_the_tables(tables):
    """With the same worst length in both reports the text says so, and with even counts it names no loss."""
    place = "quantization_analysis_report.md", "4b", "seqlen-512"
    at = (tables.averages[["source", "model", "variant"]] == place).all(axis=1)
    worse = tables.averages.assign(change_pct=tables.averages.change_pct.where(~at, -9.0))
    even = tables.counts.assign(improved=30, degraded=30)
    text = report.analysis(tables)
    assert "though both find 512 tokens worst" in report.analysis(replace(tables, averages=worse))
    assert "though both find" not in text
    assert "Counts of entries support no loss." in report.analysis(replace(tables, counts=even))
    assert "Counts point to a loss in 2 cases." in text


def test_committed_reports_are_those_of_the_tables(tables):
    for name, text in report.render(tables).items():
        assert (config.ROOT / "results" / "published" / "reports" / name).read_text() == text


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ColqError, match=r"scores_by_task\.csv"):
        published.load(tmp_path)
