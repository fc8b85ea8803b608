"""The controlled study: a report made of its files alone, with known effects put in."""

import made_study
import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from colq_utils.base.errors import ColqError
from studies.seqlen import analysis as study_analysis
from studies.seqlen import lengths, recipes
from studies.seqlen import plots as study_plots
from studies.seqlen import report as report_study
from studies.seqlen import spec as study_spec


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    made_study.write(folder, study_spec.load("seqlen"))
    return folder


@pytest.fixture()
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(study_plots, "ROOT", tmp_path)
    monkeypatch.setattr(study_plots, "DPI", 40)


def test_the_report_finds_what_was_put_in(results, elsewhere):
    spec = study_spec.load("seqlen")
    study = study_analysis.load(spec, results, 400)
    said = report_study.build(study).read_text()
    assert "After 1,000 iterations we could not detect a difference between any two lengths" in said
    assert "the published design changes the comparison of 512 with 256 and 1,024 with 256" in said
    spread = lengths.anova(study, lengths.blocks(study, "length", 1000))
    assert spread["seed_sd_low"] < made_study.SEED_SD < spread["seed_sd_high"]
    queries = pd.read_parquet(results / "queries.parquet")
    ours = queries[(queries["variant"] == "w2-rtn") & (queries["task"] != "MiniVidoreCrosslingual")]
    assert (
        f"| W2 rounded to nearest | 22.99 | {ours.groupby(['task', 'lang'])['ndcg_at_5'].mean().mean():.4f} ["
        in said
    )
    assert report_study.text(study_analysis.load(spec, results, 400)) == said, (
        "the same files give the same report"
    )
    for name in ("seeds", "pareto", "sensitivity", "drift"):
        assert f"figures/seqlen-study/{name}.png" in said


def test_the_committed_report_is_that_of_the_committed_results():
    study = study_analysis.load_named("seqlen")
    assert report_study.text(study) == (study.folder / "reports" / "seqlen_study.md").read_text(), (
        "run `make study`"
    )
    assert study.runs["not_finite"].sum() == 0 and lengths.repeated(study)


def smallest_by_hand(study, keep=lambda name: True) -> str | None:
    """First recipe by bytes whose interval clears the margin, from variant ids alone, without the seed."""
    runs = study.runs[
        (study.runs["error"] == "")
        & ~study.runs["variant"].isin(["bf16", "fp32"])
        & ~study.runs["variant"].str.contains(r"-t\d+$")
    ]
    clear = []
    for recipe, same in runs.groupby(runs["variant"].str.replace(r"-r\d+$", "", regex=True)):
        against = study_analysis.contrast(study, same["variant"].tolist(), ["bf16"] * len(same))
        if against["low"] > -study.spec.margin and keep(recipe):
            clear.append((same["bytes"].iloc[0], -against["diff"], recipe))
    return min(clear)[2] if clear else None


def test_the_smallest_within_the_margin_is_the_smallest_of_all_recipes():
    study = study_analysis.load_named("seqlen")
    table = recipes.table(study)
    every = recipes.smallest(table, study.spec.margin)
    alone = recipes.smallest(table[~table["vision"]], study.spec.margin)
    assert every["names"][0].startswith(smallest_by_hand(study))
    by_hand = smallest_by_hand(study, lambda name: "vision" not in name)
    assert alone["names"][0].startswith(by_hand) and "-s256-i1000" in by_hand, (
        "not one of the 512-token recipes at 200 iterations"
    )
    said = report_study.summary(study)
    assert f"is {every['label']}: " in said and f"it is {alone['label']}: " in said
    better = study.queries["ndcg_at_5"].where(
        ~study.queries["variant"].str.startswith("w3-autoround"), study.queries["ndcg_at_5"] + 0.03
    )
    other = study_analysis.SeqlenStudy(
        study.spec,
        study.runs,
        study.queries.assign(ndcg_at_5=better),
        study.pages,
        study.provenance,
        study.folder,
        400,
    )
    raised = recipes.table(other)
    assert recipes.smallest(raised[~raised["vision"]], study.spec.margin)["label"].startswith("W3 AutoRound")
    assert recipes.smallest(table, -0.1) is None


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.0121, -0.005008, "at the margin of 0.5"),
        (-0.0054, 0.003, "at the margin of 0.5"),
        (-0.02, -0.006, "loses more than 0.5"),
        (-0.004, 0.001, "loses less than 0.5"),
        (0.0003, 0.003, "gains"),
        (-0.012, -0.001, "loses, by how much is open"),
        (-0.012, 0.01, "undecided"),
        (float("nan"), 0.01, "not measured"),
    ],
)
def test_an_interval_that_ends_at_the_margin_gets_no_verdict(low, high, words):
    assert recipes.verdict(low, high, 0.005) == words


def test_a_stranger_reads_a_page_before_the_first_fold():
    said = (study_analysis.load_named("seqlen").folder / "reports" / "seqlen_study.md").read_text()
    assert len(said.split("<details")[0].split()) < 800 and said.count("<details>\n<summary>") == said.count(
        "</summary>\n\n"
    ) == len(report_study.FOLDED)


def test_the_report_changes_with_its_files(results, elsewhere, tmp_path):
    spec = study_spec.load("seqlen")
    queries = pd.read_parquet(results / "queries.parquet")
    better = queries["variant"].str.contains("s1024-i1000")
    queries["ndcg_at_5"] += np.where(better, 0.02, 0.0)
    for name in ("runs.csv", "pages.parquet", "provenance.json"):
        (tmp_path / name).write_bytes((results / name).read_bytes())
    queries.to_parquet(tmp_path / "queries.parquet")
    said = report_study.text(study_analysis.load(spec, tmp_path, 400))
    assert "After 1,000 iterations we detect a difference: 1,024 above 256 and 1,024 above 512" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.assign(device=["one", *["other"] * (len(r) - 1)]), "mixes devices: one, other"),
        (lambda r: r.assign(base=["one", *["other"] * (len(r) - 1)]), "mixes bases"),
        (lambda r: r[r["variant"] != "bf16"], "no scores of the base bf16"),
        (lambda r: r.assign(variant=r["variant"].replace("w4-rtn", "w4-odd")), "speaks of w4-odd"),
        (
            lambda r: r.assign(set_blocks=r["set_blocks"].where(r["set"] != "s256", 1)),
            "s256, s512, s1024 of family length differ in budget",
        ),
    ],
)
def test_contradictions_are_refused(results, tmp_path, change, message):
    for name in ("queries.parquet", "pages.parquet", "provenance.json"):
        (tmp_path / name).write_bytes((results / name).read_bytes())
    change(pd.read_csv(results / "runs.csv")).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(ColqError, match=message):
        study_analysis.load(study_spec.load("seqlen"), tmp_path)


def test_missing_results_name_their_target(tmp_path):
    with pytest.raises(ColqError, match="make study"):
        study_analysis.load(study_spec.load("seqlen"), tmp_path)


def test_the_analysis_of_variance_of_two_lengths_is_the_paired_t_test(results):
    study = study_analysis.load(study_spec.load("seqlen"), results, 400)
    table = lengths.blocks(study, "length", 200)[["s256", "s1024"]]
    a, b = (study.suite[0][table[c]].to_numpy() for c in table)
    reference, ours = scipy_stats.ttest_rel(a, b), lengths.anova(study, table)
    assert ours["f"] == pytest.approx(reference.statistic**2) and ours["p"] == pytest.approx(reference.pvalue)
    pair = study_analysis.contrast(study, table["s256"].tolist(), table["s1024"].tolist())
    assert pair["p"] == pytest.approx(reference.pvalue)
    low, high = reference.confidence_interval(0.95)
    assert (pair["seed_low"], pair["seed_high"]) == (pytest.approx(low), pytest.approx(high))


def test_an_interval_over_seeds_is_wider_than_over_queries_alone(results):
    study = study_analysis.load(study_spec.load("seqlen"), results, 400)
    variants = lengths.blocks(study, "length", 200)["s512"].tolist()
    both = study_analysis.mean_score(study, variants)
    draws = study.suite[1][variants].sub(study.suite[1]["bf16"], axis=0).mean(1)
    widened = np.sqrt(np.var(draws, ddof=1) + np.var(study.suite[0][variants], ddof=1) / len(variants))
    assert both["diff_se"] == pytest.approx(widened, rel=0.25) and both["diff_se"] > np.std(draws, ddof=1)
