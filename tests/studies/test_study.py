"""The controlled study: its file, roundings with known answers, and a run on a random model."""

import json
import queue
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.fast import load
from colq_utils.model import encode, loading
from colq_utils.stages import calibrate, quantize
from studies.seqlen import pool, worker
from studies.seqlen import scores as study_scores
from studies.seqlen import spec as study_spec
from studies.seqlen import weights as study_weights

WORDS = ("alpha", "beta", "gamma", "delta", "pi", "zeta", "eta", "theta", "iota", "kappa", "rho", "mu")


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
    """A random model quantized by `quantize` and, in memory, by the study, from one corpus and seed."""
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
    """Four-bit weights of a packed checkpoint as bf16: eight to a word along the input."""
    tensors = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
    shifts, weights = torch.arange(0, 32, 4), {}
    for name in (n for n in tensors if n.endswith("qweight")):
        words, scales, zeros = (
            tensors[name.replace("qweight", part)] for part in ("qweight", "scales", "qzeros")
        )
        levels = ((words[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, words.shape[1])
        offset = ((zeros[:, :, None] >> shifts) & 15).reshape(len(zeros), -1) + 1  # stored less one
        group = len(levels) // len(scales)
        values = (levels - offset.repeat_interleave(group, 0)).float() * scales.float().repeat_interleave(
            group, 0
        )
        weights[name.replace("qweight", "weight")] = values.T.bfloat16()
    return weights


def test_what_is_measured_is_what_autoround_packs(twice):
    base = load_file(f"{twice.spec.model_path}/model.safetensors")
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
