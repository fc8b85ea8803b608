"""The controlled study: its file, roundings with known answers, a run on a random model, and a report made of its files alone."""

import json
import queue
import time
from types import SimpleNamespace

import made_study
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy import stats as scipy_stats

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.fast import load
from colq_utils.model import encode, loading
from colq_utils.stages import calibrate, quantize
from studies.seqlen import analysis as study_analysis
from studies.seqlen import lengths, recipes
from studies.seqlen import plots as study_plots
from studies.seqlen import report as report_study
from studies.seqlen import pool, worker
from studies.seqlen import scores as study_scores
from studies.seqlen import spec as study_spec
from studies.seqlen import weights as study_weights

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
]


# --- the file ------------------------------------------------------------------------------------------------------------


def test_lengths_are_compared_at_one_budget_and_step_size():
    spec = study_spec.load("seqlen")
    compared = [
        spec.set(name) for name in dict.fromkeys(v.set for v in spec.variants if v.family == "length")
    ]
    assert [s.seqlen for s in compared] == [256, 512, 1024]
    assert (
        len({s.seqlen * s.blocks for s in compared}) == len({s.seqlen * s.batch_rows for s in compared}) == 1
    )
    seeds = (
        pd.DataFrame([(v.set, v.iters, v.seed) for v in spec.variants if v.family == "length"])
        .groupby([0, 1])[2]
        .agg(set)
    )
    assert len(seeds) == 6 and seeds.str.len().min() >= 5
    assert all(ours.eq(ours.iloc[0]).all() for _, ours in seeds.groupby(level=1)), (
        "one set of seeds for the lengths that are compared"
    )


def changed(**fields) -> dict:
    spec = yaml.safe_load((study_spec.STUDIES / "seqlen.yaml").read_text())
    return {**spec, **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": [{"family": "x", "formats": ["w4"]}]}, "starts? with bf16"),
        ({"arms": [{"family": "x", "formats": ["bf16", "w5"]}]}, "unknown format 'w5'; known: bf16"),
        (
            {
                "arms": [
                    {"family": "x", "formats": ["bf16"]},
                    {"family": "y", "formats": ["w4"], "sets": ["s7"], "iters": [1], "seeds": [1]},
                ]
            },
            "no calibration set 's7'",
        ),
        (
            {
                "arms": [
                    {"family": "x", "formats": ["bf16"]},
                    {"family": "y", "formats": ["w4"], "sets": ["s256"]},
                ]
            },
            "takes sets, iters and seeds",
        ),
        (
            {"arms": [{"family": "x", "formats": ["bf16", "w4"]}, {"family": "y", "formats": ["w4"]}]},
            "two arms make one variant: w4-rtn",
        ),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, fields, message):
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(changed(**fields)))
    with pytest.raises(ColqError, match=message):
        study_spec.load(str(tmp_path / "wrong.yaml"))


def test_one_at_a_time_variants_round_what_they_name():
    spec = study_spec.load("seqlen")
    weights = load_file(f"{spec.model_path}/model.safetensors")
    by_id = {v.id: v for v in spec.variants}
    sizes = {
        name: len(study_weights.chosen(by_id[name], weights))
        for name in ("w4-rtn", "w4-rtn-layer3", "w4-rtn-q_proj", "bf16", "bf16-vision-w4", "w4-rtn-vision-w4")
    }
    assert sizes == {
        "w4-rtn": 42,
        "w4-rtn-layer3": 7,
        "w4-rtn-q_proj": 6,
        "bf16": 0,
        "bf16-vision-w4": 30,
        "w4-rtn-vision-w4": 72,
    }
    assert all(".layers.3." in name for name in study_weights.chosen(by_id["w4-rtn-layer3"], weights))


# --- roundings -----------------------------------------------------------------------------------------------------------


def test_integer_rounding_by_hand():
    row = torch.tensor([[-4.0, -1.0, 0.0, 3.0]])
    assert study_weights.round_integer(row, 2, 4, sym=True).tolist() == [
        [-4, 0, 0, 2]
    ]  # scale 2, levels -2..1
    assert study_weights.round_integer(-row, 2, 4, sym=True).tolist() == [
        [4, 0, 0, -2]
    ]  # scale -2: the longer side follows the weights
    step = torch.tensor(7 / 3).half().item()
    assert study_weights.round_integer(row, 2, 4, sym=False).tolist() == [[-2 * step, 0, 0, step]]
    with pytest.raises(ColqError, match="do not divide into groups of 3"):
        study_weights.round_integer(row, 2, 3, sym=True)


def test_fp8_by_hand_and_as_autoround_has_it():
    from auto_round.data_type.fp8 import quant_fp8_sym

    values = torch.tensor(
        [[448.0, 17.0, 19.0, 2.0**-9, 2.0**-11, -300.0]]
    )  # spacing 2 from 16 to 32, 32 above 256; ties to even
    assert study_weights.round_fp8(values).tolist() == [[448, 16, 20, 2.0**-9, 0, -288]]
    assert study_weights.round_fp8(values / 4).tolist() == [[112, 4, 5, 2.0**-11, 0, -72]]
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(study_weights.round_fp8(weight), quant_fp8_sym(weight)[0])


def test_mxfp4_by_hand_and_as_autoround_has_it():
    from auto_round.data_type.mxfp import quant_mx

    block = torch.zeros(1, 32)
    block[0, :8] = torch.tensor([6.0, 0.25, 0.75, 1.25, 2.5, -3.5, 5.0, 7.9])
    expected = torch.zeros(1, 32)
    expected[0, :8] = torch.tensor([6.0, 0.0, 1.0, 1.0, 2.0, -4.0, 4.0, 6.0])
    assert torch.equal(study_weights.round_mxfp4(block), expected)
    assert torch.equal(study_weights.round_mxfp4(block / 64), expected / 64)
    assert set(study_weights.round_mxfp4(torch.rand(8, 32) * 7.99).unique().tolist()) <= set(
        study_weights.E2M1
    )
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(study_weights.round_mxfp4(weight), quant_mx(weight, 4, 32)[0])


@pytest.fixture(scope="module")
def twice(random_checkpoint, tmp_path_factory):
    """A random model quantized twice: packed by `quantize`, and in memory by the study, from one corpus and seed."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "corpus").mkdir()
    rows = [
        {
            "document": f"d{i}",
            "lang": ("en", "fr")[i % 2],
            "text": " ".join(WORDS[(i * j) % 12] for j in range(1, 300)),
        }
        for i in range(30)
    ]
    pd.DataFrame(rows).to_parquet(folder / "corpus" / "text.parquet")
    sets = [{"id": "s32", "seqlen": 32, "blocks": 8, "batch_rows": 4}]
    model = {"path": str(random_checkpoint), "size": "random"}
    tuned = {"scheme": "w4a16", "method": "autoround", "calibration": "s32", "iters": 8}
    (folder / "e.yaml").write_text(
        yaml.safe_dump(
            {
                "title": "random",
                "seed": 7,
                "model": model,
                "calibration": {"source": str(folder / "corpus"), "sets": sets},
                "variants": [{"scheme": "bf16"}, {"scheme": "w4a16", "method": "rtn"}, tuned],
                "benchmark": {"variants": [], "workloads": []},
                "evaluation": {"tasks": []},
            }
        )
    )
    (folder / "random.yaml").write_text(
        yaml.safe_dump(
            {
                "title": "random",
                "seed": 42,
                "model": model,
                "corpus": str(folder / "corpus"),
                "margin": 0.005,
                "sets": sets,
                "arms": [
                    {"family": "base", "formats": ["bf16"]},
                    {"family": "rtn", "formats": ["w4", "fp8"]},
                    {"family": "length", "formats": ["w4"], "sets": ["s32"], "iters": [8], "seeds": [7]},
                ],
            }
        )
    )
    experiment, spec = (
        config.load(str(folder / "e.yaml"), folder / "out"),
        study_spec.load(str(folder / "random.yaml")),
    )
    calibrate.build(experiment)
    for name in experiment.quantized:
        quantize.run(experiment, name)
    return SimpleNamespace(
        folder=folder, experiment=experiment, spec=spec, by_id={v.id: v for v in spec.variants}
    )


def unpacked(folder) -> dict[str, torch.Tensor]:
    """Four-bit weights of a packed checkpoint as bf16: eight to a word along the input, zero points stored less one."""
    tensors = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
    shifts, weights = torch.arange(0, 32, 4), {}
    for name in (n for n in tensors if n.endswith("qweight")):
        words, scales, zeros = (
            tensors[name.replace("qweight", part)] for part in ("qweight", "scales", "qzeros")
        )
        levels = ((words[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, words.shape[1])
        offset = ((zeros[:, :, None] >> shifts) & 15).reshape(len(zeros), -1) + 1
        group = len(levels) // len(scales)
        values = (levels - offset.repeat_interleave(group, 0)).float() * scales.float().repeat_interleave(
            group, 0
        )
        weights[name.replace("qweight", "weight")] = values.T.bfloat16()
    return weights


def test_what_is_measured_is_what_autoround_packs(twice):
    base = load_file(f"{made.spec.model_path}/model.safetensors")
    packed = {
        method: unpacked(twice.experiment.checkpoint(f"random-w4a16-{method}"))
        for method in ("rtn", "autoround-s32")
    }
    tuned = study_weights.tune(twice.spec, twice.by_id["w4-autoround-s32-i8-r7"], "cpu", twice.folder)
    rounded = study_weights.round_to_nearest(twice.by_id["w4-rtn"], base)
    assert len(packed["rtn"]) == len(rounded) == len(tuned) == 14
    assert all(torch.equal(rounded[n], w) for n, w in packed["rtn"].items())
    assert all(torch.equal(tuned[n].bfloat16(), w) for n, w in packed["autoround-s32"].items())
    assert study_weights.digest(tuned) != study_weights.digest(rounded)

    texts = ["alpha beta", "gamma delta epsilon zeta"]
    model = loading.open_model(twice.spec.model_path)
    model.load_state_dict(tuned, strict=False)
    normal = load.load(twice.experiment, "random-w4a16-autoround-s32")
    ours = encode.queries(loading.Loaded("ours", model, normal.processor, (), 0.0), texts)
    cosine = torch.cat([study_scores.cosine(a, b) for a, b in zip(ours, encode.queries(normal, texts))])
    assert cosine.min() > 0.9995, (
        "the packed kernel and the rounded weights differ by more than bf16 arithmetic"
    )


# --- a run ---------------------------------------------------------------------------------------------------------------


def test_a_run_measures_records_failures_and_resumes(twice, tmp_path):
    plan = pool.SeqlenPlan(
        str(twice.folder / "random.yaml"),
        "cpu",
        tmp_path / "scratch",
        time.time() + 600,
        ("MiniVidoreReading",),
        ("en",),
    )
    plan.scratch.mkdir()
    worker.prepare(plan, twice.spec, [v for v in twice.spec.variants if v.method != "autoround"])
    jobs = queue.Queue()
    for name in ("fp8-rtn", "w4-rtn"):
        jobs.put(name)
    worker.work(0, plan, jobs, SimpleNamespace(value=0.0))
    (plan.part("w4-autoround-s32-i8-r7", "json")).write_text(
        json.dumps({"variant": "w4-autoround-s32-i8-r7", "error": "RuntimeError: no"})
    )
    runs = pool.pool(plan, tmp_path / "out", twice.spec).set_index("variant")
    assert list(runs.index) == [v.id for v in twice.spec.variants] and runs["error"].tolist() == [
        "",
        "",
        "",
        "RuntimeError: no",
    ]
    rows = pd.read_parquet(tmp_path / "out" / "queries.parquet").groupby("variant")
    assert (rows.size() == 60).all() and set(rows.groups) == {"bf16", "w4-rtn", "fp8-rtn"}
    means = rows[["cosine", "drift", "kept"]].mean()
    assert means.loc["bf16"].tolist() == [1, 0, 5]
    assert means.loc["w4-rtn", "drift"] > means.loc["fp8-rtn", "drift"] > 0, "four bits drift more than eight"
    assert runs.loc["w4-rtn", "bytes"] < runs.loc["fp8-rtn", "bytes"] < runs.loc["bf16", "bytes"]
    again = pool.SeqlenPlan(plan.study, "cpu", tmp_path / "elsewhere", plan.deadline)
    pool.unpool(again, tmp_path / "out", twice.spec)
    assert {p.name for p in again.scratch.rglob("*.json")} == {"bf16.json", "w4-rtn.json", "fp8-rtn.json"}, (
        "what failed is tried again"
    )
    pooled = pool.pool(again, tmp_path / "out2", twice.spec)
    assert pooled["digest"].tolist()[1:] == runs["digest"].tolist()[1:3] and pooled[
        "variant"
    ].tolist() == list(runs.index[:3])
    assert (tmp_path / "out2" / "queries.parquet").read_bytes() == (
        tmp_path / "out" / "queries.parquet"
    ).read_bytes()


# --- the report ----------------------------------------------------------------------------------------------------------


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
    """First recipe by bytes whose interval clears the margin, from variant ids alone: what differs in -r<seed> is one recipe."""
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
