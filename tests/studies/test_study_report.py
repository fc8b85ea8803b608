"""The controlled study: a report made of its files alone, with known effects put in."""

import dataclasses
import json
import re

import made_study
import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError
from colq_utils.data import minividore
from colq_utils.report import stats
from studies.seqlen import analysis as study_analysis
from studies.seqlen import bands, lengths, overlap, recipes
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
    study = study_analysis.load(spec, results)
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
    assert report_study.text(study_analysis.load(spec, results)) == said, (
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


def suite_changes(queries: pd.DataFrame, counted: list[str], draws: pd.DataFrame | None) -> pd.DataFrame:
    """Each variant's change from the base by query, times the weight of the query in the suite score.

    From the raw rows and the tasks that count alone; one column a variant, rows by task, language and query.
    """
    key = ["task", "lang", "query_id"]
    rows = queries[queries["task"].isin(counted)]
    wide = rows.pivot(index=key, columns="variant", values="ndcg_at_5").astype(float)
    base = wide["bf16"]
    if draws is not None:
        own = draws[draws["draw"].str.startswith("bfloat16") & draws["task"].isin(counted)]
        base = own.groupby(key)["ndcg_at_5"].mean().reindex(wide.index)
    change = wide.sub(base, axis=0)
    entries = change.groupby(level=["task", "lang"])
    return change.div(entries[wide.columns[0]].transform("size"), axis=0) / entries.ngroups


def smallest_by_hand(study, keep=lambda name: True) -> str | None:
    """First recipe by bytes whose interval clears the margin by the rule, from the result files by pandas.

    The error over queries is that of the mean over seeds with clusters; seeds add their variance less what
    the queries explain.
    """
    tasks = [name for name, task in minividore.TASKS.items() if task.counted]
    path = study.folder / "arithmetic-cuda.parquet"
    draws = pd.read_parquet(path) if path.exists() else None
    change = suite_changes(pd.read_parquet(study.folder / "queries.parquet"), tasks, draws)
    sources = minividore.sources(minividore.load())
    cluster = change.index.get_level_values("query_id").map(sources)
    entry = change.index.droplevel("query_id")
    runs = pd.read_csv(study.folder / "runs.csv").set_index("variant")["bytes"].drop(["bf16", "fp32"])
    clear = []
    recipes_of = runs.index.str.replace(r"-r\d+$", "", regex=True)
    for recipe in sorted(set(recipes_of)):
        names = [name for name, own in zip(runs.index, recipes_of) if own == recipe]
        if not keep(recipe) or recipe.endswith("-t1"):
            continue
        apart = change[names].sub(change[names].groupby([*entry.names]).transform("mean"))
        shares = apart.groupby(cluster).sum()
        n, diff = len(names), change[names].sum()
        error = (shares.mean(axis=1) ** 2).sum()
        if n > 1:
            interaction = (shares.sub(shares.mean(axis=1), axis=0) ** 2).sum().sum() / (n - 1)
            error += max(0.0, diff.var() - interaction) / n
        if diff.mean() - 1.97 * error**0.5 > -study.spec.margin + 0.0005:
            clear.append((runs[names[0]], -diff.mean(), recipe))
    return min(clear)[2] if clear else None


def test_the_smallest_within_the_margin_is_the_smallest_of_all_recipes():
    study = study_analysis.load_named("seqlen")
    table = recipes.table(study)
    every, alone = recipes.smallest(table), recipes.smallest(table[~table["vision"]])
    by_hand = smallest_by_hand(study), smallest_by_hand(study, lambda name: "vision" not in name)
    for ours, theirs in zip((every, alone), by_hand):
        assert (None if ours is None else re.sub(r"-r\d+$", "", ours["names"][0])) == theirs
    said = report_study.summary(study)
    assert all(row is None or f"is {row['label']}: " in said for row in (every, alone))


def test_the_readme_says_of_the_study_what_it_shows():
    study = study_analysis.load_named("seqlen")
    readme = (ROOT / "README.md").read_text()
    every = [lengths.pairs(study, blocks) for _, blocks in lengths.designs(study, "length")]
    alike = all(pairs["equivalent"].all() for pairs in every)
    four = recipes.table(study)
    four = four[four["label"].str.match("W4(?!.* alone)") & ~four["vision"]]
    assert alike == ("the three lengths are equivalent within the margin" in readme)
    none = not (four["verdict"] == "non-inferior").any()
    assert none == ("no 4-bit recipe is shown to stay within the margin of bf16" in readme)


def test_a_better_recipe_is_named_and_none_where_none_is(results):
    study = study_analysis.load(study_spec.load("seqlen"), results)
    three = study.queries["variant"].str.startswith("w3-autoround")
    better = study.queries["ndcg_at_5"].where(~three, study.queries["ndcg_at_5"] + 0.06)
    raised = recipes.table(dataclasses.replace(study, queries=study.queries.assign(ndcg_at_5=better)))
    assert recipes.smallest(raised[~raised["vision"]])["label"].startswith("W3 AutoRound")
    assert recipes.smallest(raised[raised["verdict"] == "inferior"]) is None


def crossed(rng, n_queries: int, n_seeds: int, seed_sd: float, each_sd: float, query_sd: float = 0.1):
    """Scores of queries under seeds: a shift by seed, by query, and by both, around 0."""
    values = rng.normal(0, query_sd, (n_queries, 1)) + rng.normal(0, seed_sd, n_seeds)
    return values + rng.normal(0, each_sd, (n_queries, n_seeds))


@pytest.mark.parametrize("seed_sd", [0.0, 0.01])
def test_crossed_intervals_hold_the_truth_as_often_as_they_say(seed_sd):
    rng, trials, held, twice = np.random.default_rng(3), 600, 0, 0
    for _ in range(trials):
        measured = stats.means(crossed(rng, 150, 5, seed_sd, 0.1, 0.02), np.zeros(150)).suite()
        ours = study_analysis.over_seeds(measured)
        held += ours["low"] <= 0 <= ours["high"]
        mean = measured.shares.mean(1)
        counted_twice = (mean @ mean + measured.value.var(ddof=1) / 5) ** 0.5
        twice += counted_twice > ours["se"] * (1 + 1e-9)
    assert 0.93 <= held / trials <= 0.985
    assert twice == trials, "adding both variances counts what a seed does to single queries twice"


def test_crossed_errors_are_those_of_a_two_way_bootstrap():
    rng = np.random.default_rng(4)
    values = crossed(rng, 400, 8, 0.02, 0.1)
    ours = study_analysis.over_seeds(stats.means(values, np.zeros(400)).suite())
    queries, seeds = rng.integers(0, 400, (4000, 400)), rng.integers(0, 8, (4000, 8))
    drawn = np.array([values[q][:, s].mean() for q, s in zip(queries, seeds)])
    by_seed = values.mean(0).var(ddof=0) / 8
    interaction = (values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()).var() / (8 * 400)
    # resampling both ways counts the interaction three times and shrinks the seeds' part by 7/8
    expected = np.sqrt(drawn.var() + by_seed / 7 - 2 * interaction)
    assert ours["se"] == pytest.approx(expected, rel=0.05)


def test_the_base_is_the_mean_of_its_arithmetics(results, elsewhere, tmp_path):
    for name in ("runs.csv", "queries.parquet", "pages.parquet", "provenance.json"):
        (tmp_path / name).write_bytes((results / name).read_bytes())
    made_study.write_draws(tmp_path, shift=0.01)
    spec = study_spec.load("seqlen")
    one, many = study_analysis.load(spec, results), study_analysis.load(spec, tmp_path)
    assert len(many.base.value) == made_study.DRAWS
    assert many.score["bf16"] - one.score["bf16"] == pytest.approx(0.01, abs=1e-3)
    change = [study_analysis.mean_score(s, ["w4-rtn"])["diff"] for s in (one, many)]
    assert change[1] - change[0] == pytest.approx(-0.01, abs=1e-3)
    counts = bands.against_each(many)
    assert counts["least"] <= counts["mean"] <= counts["most"] and bands.against_each(one) is None
    said = report_study.text(many)
    assert f"the mean of {made_study.DRAWS} arithmetics" in said and "| made-up device | bfloat16 |" in said
    some = pd.read_parquet(tmp_path / "arithmetic-cuda.parquet").iloc[1:]
    some.to_parquet(tmp_path / "arithmetic-cuda.parquet")
    with pytest.raises(ColqError, match="lack queries of the study"):
        study_analysis.load(spec, tmp_path)


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
    said = report_study.text(study_analysis.load(spec, tmp_path))
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
    study = study_analysis.load(study_spec.load("seqlen"), results)
    table = lengths.blocks(study, "length", 200)[["s256", "s1024"]]
    a, b = (study.score[table[c]].to_numpy() for c in table)
    reference, ours = scipy_stats.ttest_rel(a, b), lengths.anova(study, table)
    assert ours["f"] == pytest.approx(reference.statistic**2) and ours["p"] == pytest.approx(reference.pvalue)
    pair = study_analysis.contrast(study, table["s256"].tolist(), table["s1024"].tolist())
    assert pair["p"] == pytest.approx(reference.pvalue)
    low, high = reference.confidence_interval(0.95)
    assert (pair["seed_low"], pair["seed_high"]) == (pytest.approx(low), pytest.approx(high))


def test_an_interval_over_seeds_is_wider_than_over_queries_alone(results):
    study = study_analysis.load(study_spec.load("seqlen"), results)
    variants = lengths.blocks(study, "length", 200)["s512"].tolist()
    both = study_analysis.mean_score(study, variants)
    shares = study.of(variants).shares.mean(1) - study.base.shares[:, 0]
    between, interaction = study_analysis.between_columns(study.of(variants))
    assert between > interaction, "the seeds that were put in are found"
    expected = np.sqrt(shares @ shares + (between - interaction) / len(variants))
    assert both["diff_se"] == pytest.approx(expected) and both["diff_se"] > np.sqrt(shares @ shares)


def test_what_the_calibration_text_shares_is_counted():
    spec = study_spec.load("seqlen")
    shared = overlap.training(spec)
    corpus = pd.read_parquet(ROOT / spec.corpus / "corpus.parquet")
    known = {e["sha256"] for e in json.loads((ROOT / "data/training/documents.json").read_text())}
    listed = json.loads((ROOT / spec.corpus / "documents.json").read_text())
    assert shared["documents"] == len(listed) == corpus["document"].nunique()
    assert 0 < shared["trained"] <= sum(e["sha256"] in known for e in listed)
    found = overlap.queries(spec).set_index("words")
    words = minividore.load().queries["text"].str.lower().str.findall(r"\w+")
    text = " ".join(corpus["text"].str.lower().str.findall(r"\w+").str.join(" "))
    asked = [" ".join(w[:3]) for w in words if len(w) == 3]
    assert found["shared"].is_monotonic_increasing and found["long_enough"].is_monotonic_increasing
    assert found.loc[3, "shared"] >= sum(f" {phrase} " in text for phrase in asked) > 0
