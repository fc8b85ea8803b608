"""Calibration and quantization on a random model: packing, every export's round trip, resuming."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from colq_utils import run
from colq_utils.base import config, files, names
from colq_utils.base.errors import ColqError
from colq_utils.data import calibration
from colq_utils.fast import load
from colq_utils.model import checkpoints, hub, kernels, loading, packing
from colq_utils.stages import calibrate, quantize
from colq_utils.stages.quantize import acceptance, make

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


@pytest.fixture(scope="module")
def experiment(random_checkpoint, tmp_path_factory):
    """Two quantized variants of the random model on a corpus of made-up text."""
    folder = tmp_path_factory.mktemp("quantize")
    rows = [
        {
            "document": f"d{i}",
            "lang": ("en", "fr")[i % 2],
            "text": " ".join(WORDS[(i * j) % 12] for j in range(1, 300)),
        }
        for i in range(60)
    ]
    (folder / "corpus").mkdir()
    pd.DataFrame(rows).to_parquet(folder / "corpus" / "text.parquet")
    fields = {
        "title": "random",
        "model": {"path": str(random_checkpoint), "size": "random"},
        "calibration": {
            "source": str(folder / "corpus"),
            "sets": [
                {"id": "s32", "seqlen": 32, "blocks": 16, "batch_rows": 4},
                {"id": "s64", "seqlen": 64, "blocks": 8, "batch_rows": 2},
                {"id": "pages", "kind": "pages", "blocks": 2, "batch_rows": 2},
            ],
        },
        "variants": [
            {"scheme": "bf16"},
            {"scheme": "w4a16", "method": "rtn", "exports": ["auto_round", "auto_awq", "auto_gptq"]},
            {"scheme": "w4a16", "method": "autoround", "calibration": "s32", "iters": 2},
            {"scheme": "w4a16", "method": "autoround", "calibration": "pages", "iters": 2},
        ],
        "benchmark": {"variants": [], "workloads": []},
        "evaluation": {"tasks": []},
    }
    (folder / "random.yaml").write_text(yaml.safe_dump(fields))
    made = config.load(str(folder / "random.yaml"), folder / "out")
    calibrate.build(made)
    return made


def test_sets_of_one_budget_hold_the_same_tokens(experiment):
    short, long = (calibration.load(experiment, s)["input_ids"] for s in ("s32", "s64"))
    assert short.shape == (16, 32) and long.shape == (8, 64)
    assert torch.equal(short.flatten(), long.flatten())


def test_a_page_set_holds_pages_alone(experiment):
    assert list(calibration.load(experiment, "pages")) == ["pages"]
    with safe_open(calibration.path_of(experiment, "pages"), "pt") as stored:
        assert set(stored.metadata()) == {"set"}


def test_nothing_to_calibrate_is_an_empty_table(experiment, tmp_path):
    """What the notebook and the driver do with the result of a study that tunes nothing."""
    without = experiment.model_copy(
        update={"output": tmp_path, "calibration": experiment.calibration.model_copy(update={"sets": ()})}
    )
    table = calibrate.build(without)
    assert list(table) == list(calibrate.build(experiment.model_copy(update={"output": tmp_path / "full"})))
    assert table["tokens"].tolist() == table["fingerprint"].tolist() == []
    read = pd.read_csv(
        files.write_table(tmp_path / "sets.csv", table.assign(overlap_8grams=0, padding_pct=0.0))
    )
    assert read.empty and "padding_pct" in read
    assert files.sha256(*run.step(without, "calibrate").outputs[-1:])


def test_corpus_too_short(experiment):
    tokens = calibration.stream(
        calibration.corpus(experiment).head(2),
        loading.processing.from_pretrained(experiment.model_path).tokenizer,
        8,
        0,
    )
    with pytest.raises(ColqError, match="needs 1,000,000 tokens"):
        calibration.pack(tokens, config.CalibrationSet(id="big", seqlen=1000, blocks=1000, batch_rows=1))


def test_calibration_must_come_first(experiment, tmp_path):
    with pytest.raises(ColqError, match="make calibrate EXPERIMENT=random"):
        quantize.run(experiment.model_copy(update={"output": tmp_path}), "random-w4a16-autoround-s32")


@pytest.fixture(scope="module")
def manifests(experiment):
    return {variant: quantize.run(experiment, variant) for variant in experiment.quantized}


def test_every_export_agrees_with_the_base_on_text_and_page(experiment, manifests, page_images):
    table = quantize.accept(experiment, ["alpha beta", "gamma delta epsilon"], page_images)
    assert len(table) == 5 and table[["loads", "runs", "finite"]].all().all()
    rtn = table[table["method"] == "rtn"].set_index("export")
    assert (rtn[["cosine_query_mean", "cosine_page_mean"]] > 0.9).all().all()
    assert (rtn[["cosine_query_mean", "cosine_page_mean"]].nunique() == 1).all(), (
        "three packings of the same numbers"
    )
    assert (table["opened_by"] == "ark").all() and (table["opened_cosine"] > 0.999).all(), (
        "AutoRound's loader agrees on a packed kernel"
    )
    assert (table["tensor_bytes"] < table["base_bytes"]).all() and (table["fallback"] == "").all()


def test_what_is_not_quantized_is_the_bases_byte_for_byte(experiment, manifests):
    base = load_file(Path(experiment.model_path) / "model.safetensors")
    for variant, spec in experiment.quantized.items():
        for export in spec.exports:
            folder = experiment.checkpoint(variant, export)
            stored = {
                name: tensor
                for path in folder.glob("*.safetensors")
                for name, tensor in load_file(path).items()
            }
            kept = {
                name: tensor
                for name, tensor in base.items()
                if names.QUANTIZABLE.match(name) is None or tensor.dim() < 2
            }
            assert "embedding_proj_layer.bias" in kept
            assert all(
                stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor)
                for name, tensor in kept.items()
            )
            assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_exports_of_a_projection_with_bias_tell_so(experiment, manifests):
    """Where vLLM finds the width under one of its five names, it drops the bias that is stored."""
    for export in ("auto_round", "auto_awq", "auto_gptq"):
        fields = json.loads((experiment.checkpoint("random-w4a16-rtn", export) / "config.json").read_text())
        assert fields["projection_bias"] is True and fields["embedding_dim"] == 32
        assert not {"embed_dim", "dims", "dim", "projection_dim", "colbert_dim"} & set(fields)


@pytest.mark.parametrize("said", [{"projection_bias": True}, {"projection_bias": False}, {"dim": 64}])
def test_an_export_tells_the_bias_that_is_stored(random_checkpoint, tmp_path, said):
    """Whatever the base's config says; and no second name of the width is left for vLLM to find."""
    folder = shutil.copytree(random_checkpoint, tmp_path / "base")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | said))
    exported = packing.export_config(folder, {})
    assert exported["projection_bias"] is True and exported["embedding_dim"] == 32
    assert not {"embed_dim", "dims", "dim", "projection_dim", "colbert_dim"} & set(exported)
    save_file(
        {
            n: t
            for n, t in load_file(folder / "model.safetensors").items()
            if n != "embedding_proj_layer.bias"
        },
        folder / "model.safetensors",
    )
    assert packing.export_config(folder, {})["projection_bias"] is False


def test_a_kernel_that_gives_no_numbers_is_no_agreement(experiment, manifests, page_images, monkeypatch):
    opened = loading.open_model

    def spoilt(path, *rest):
        model = opened(path, *rest)
        if "checkpoints" in path:  # as a kernel of the loader computes it
            model.embedding_proj_layer.weight.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(acceptance.loading, "open_model", spoilt)
    table = quantize.accept(experiment, ["alpha beta"], page_images[:1])
    assert table["opened_cosine"].isna().all() and not table["accepted"].any()


def test_another_size_than_predicted_ends_the_stage(experiment, tmp_path, monkeypatch):
    """As AutoRound leaves it on a CPU: what was not quantized is stored in the precision of tuning."""
    monkeypatch.setattr(make, "_original", lambda name, tensor, stored: tensor)
    elsewhere = experiment.model_copy(update={"output": tmp_path})
    with pytest.raises(
        ColqError,
        match=r"random-w4a16-rtn, auto_round: .*embedding_proj_layer.bias is stored as F32 \(32,\) "
        r"where BF16 \(32,\) was predicted",
    ):
        quantize.run(elsewhere, "random-w4a16-rtn")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_tensor_that_should_have_been_left_alone(experiment, tmp_path, monkeypatch):
    load = make.load_file
    monkeypatch.setattr(
        make,
        "load_file",
        lambda path: {n: t + 1 if n == "embedding_proj_layer.bias" else t for n, t in load(path).items()},
    )
    with pytest.raises(ColqError, match=r"AutoRound changed embedding_proj_layer\.bias"):
        quantize.run(experiment.model_copy(update={"output": tmp_path}), "random-w4a16-rtn")


def test_without_ark_the_torch_kernel_is_named(experiment, manifests, page_images, monkeypatch):
    require = kernels.require

    def lacking(backend):
        if backend == "ark":
            raise ColqError("no ark here")
        require(backend)

    monkeypatch.setattr(kernels, "require", lacking)
    table = quantize.accept(experiment, ["alpha beta"], page_images[:1]).set_index(["variant", "export"])
    assert table.loc[("random-w4a16-rtn", "auto_round"), "opened_by"] == "torch"
    assert table.loc[("random-w4a16-rtn", "auto_awq"), "opened_by"] == "not opened: no ark here"
    assert table["accepted"].all() and table["opened_cosine"].dropna().gt(0.999).all()


@pytest.mark.parametrize("bits, sym", [(2, True), (3, True), (4, True), (8, True), (2, False), (3, False)])
def test_every_width_is_read_as_autorounds_own_layer_reads_it(experiment, tmp_path, bits, sym):
    spec = config.Variant(scheme=f"w{bits}a16", method="rtn", sym=sym)
    wide = experiment.model_copy(update={"output": tmp_path, "variants": (experiment.variants[0], spec)})
    name = spec.name("random")
    quantize.run(wide, name)
    ours, theirs = (
        loading.open_model(str(wide.checkpoint(name)), backend="torch"),
        load.load(wide, name).model,
    )
    layer = "vlm.model.language_model.layers.1.mlp.down_proj"
    x = torch.randn(5, theirs.get_submodule(layer).in_features)
    assert torch.allclose(ours.get_submodule(layer)(x), theirs.get_submodule(layer)(x), atol=1e-4)


def test_reordered_columns_are_refused(experiment, manifests, tmp_path):
    folder = shutil.copytree(experiment.checkpoint("random-w4a16-rtn", "auto_gptq"), tmp_path / "copy")
    for path in folder.glob("*.safetensors"):
        save_file(
            {n: t.flip(0) if n.endswith("down_proj.g_idx") else t for n, t in load_file(path).items()},
            path,
            metadata={"format": "pt"},
        )
    with pytest.raises(ColqError, match="reorders the columns"):
        loading.open_packed(str(folder), torch.float32, experiment.runtime)


def test_a_finished_variant_is_not_made_again(experiment, manifests, monkeypatch):
    monkeypatch.setattr(make, "_autoround", lambda *a: pytest.fail("quantized again"))
    for variant, manifest in manifests.items():
        assert quantize.run(experiment, variant) == manifest


def test_an_interrupted_variant_leaves_nothing(experiment, tmp_path, monkeypatch):
    elsewhere = experiment.model_copy(update={"output": tmp_path})

    def killed(experiment, spec, target):
        (target / "auto_round").mkdir()
        (target / "auto_round" / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "_autoround", killed)
    with pytest.raises(KeyboardInterrupt):
        quantize.run(elsewhere, "random-w4a16-rtn")
    assert not elsewhere.checkpoint("random-w4a16-rtn").exists() and not list(
        (tmp_path / "build").rglob("*.safetensors")
    )


def test_fallbacks_are_named(experiment, tmp_path, monkeypatch):
    tried = []

    def failing(experiment, spec, target):
        tried.append((spec.method, spec.group_size))
        if spec.group_size != 32:
            raise RuntimeError("no")
        shutil.copytree(experiment.model_path, target / "auto_round")

    monkeypatch.setattr(make, "_autoround", failing)
    monkeypatch.setattr(
        make, "_require_predicted", lambda *a: None
    )  # what stands in for a checkpoint is none
    manifest = quantize.run(experiment.model_copy(update={"output": tmp_path}), "random-w4a16-rtn")
    assert tried == [("rtn", 128), ("rtn", 32)]
    assert (
        "rtn group 128 failed: RuntimeError: no" in manifest["fallback"]
        and manifest["used"]["group_size"] == 32
    )


def test_a_failure_after_writing_is_not_in_the_way_of_the_fallback(experiment, tmp_path, monkeypatch):
    """AutoRound has written every export, and one is in its place, when the second cannot be settled."""
    settle, seen = make._settle, []

    def failing(folder, export, *rest):
        seen.append(export)
        if len(seen) == 2:
            raise RuntimeError("late")
        settle(folder, export, *rest)

    monkeypatch.setattr(make, "_settle", failing)
    elsewhere = experiment.model_copy(update={"output": tmp_path})
    manifest = quantize.run(elsewhere, "random-w4a16-rtn")
    assert (
        manifest["fallback"] == "rtn group 128 failed: RuntimeError: late"
        and manifest["used"]["group_size"] == 32
    )
    folder = elsewhere.build("checkpoints", "random-w4a16-rtn")
    assert sorted(p.name for p in folder.iterdir()) == [
        "auto_awq",
        "auto_gptq",
        "auto_round",
        "manifest.json",
    ]
    assert not any(checkpoints.damage(folder / export) for export in manifest["exports"])


def cut_short(folder):
    weights = max(folder.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    with weights.open("r+b") as stream:
        stream.truncate(weights.stat().st_size // 2)


@pytest.mark.parametrize(("export", "spoil"), [("auto_round", cut_short), ("auto_awq", shutil.rmtree)])
def test_a_damaged_variant_is_made_again(experiment, manifests, tmp_path, caplog, export, spoil):
    elsewhere = experiment.model_copy(update={"output": tmp_path})
    name, folder = "random-w4a16-rtn", elsewhere.build("checkpoints", "random-w4a16-rtn")
    shutil.copytree(experiment.build("checkpoints", name), folder)
    spoil(folder / export)
    with pytest.raises(ColqError, match="make quantize EXPERIMENT=random"):
        load.load(elsewhere, name, export)
    assert quantize.run(elsewhere, name)["revision"] == manifests[name]["revision"]
    assert [r.getMessage() for r in caplog.records if r.name == make.__name__] == [
        f"{name}: {export} damaged or incomplete, making the variant again"
    ]
    load.load(elsewhere, name, export)


def test_a_fingerprint_is_of_what_decides_the_weights(experiment):
    text, pages = (experiment.by_id[f"random-w4a16-autoround-{s}"] for s in ("s32", "pages"))
    before = make._fingerprint(experiment, text)
    for options in (
        {"backend": "torch"},
        {"encode": "fast"},
        {"embedding": "int8"},
        {"vision": "fp8"},
        {"tag": "other"},
    ):
        assert make._fingerprint(experiment, text.model_copy(update=options)) == before, options
    for options in (
        {"iters": 3},
        {"group_size": 32},
        {"sym": False},
        {"exports": ("auto_round", "auto_gptq")},
    ):
        assert make._fingerprint(experiment, text.model_copy(update=options)) != before, options
    smaller = experiment.model_copy(
        update={"model": experiment.model.model_copy(update={"max_visual_tokens": 16})}
    )
    assert make._fingerprint(smaller, text) == before, "text has no pixel budget"
    assert make._fingerprint(smaller, pages) != make._fingerprint(experiment, pages)


def test_a_manifest_that_is_missing_names_the_experiment(experiment, tmp_path):
    with pytest.raises(ColqError, match="make quantize EXPERIMENT=random"):
        acceptance.compare(
            experiment.model_copy(update={"output": tmp_path}), "random-w4a16-rtn", "auto_round", [], [], {}
        )


def test_a_tensor_lost_on_the_way_is_noticed(experiment, manifests, tmp_path):
    """AutoRound writes some tensors to a second file, which loaders overlook; what is kept is complete."""
    folder = experiment.checkpoint("random-w4a16-autoround-s32")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = set(json.loads(index.read_text())["weight_map"].values())
        assert named == {p.name for p in folder.glob("*.safetensors")}
    load.load(experiment, "random-w4a16-autoround-s32")


def test_the_unused_head_is_left_out(experiment, manifests, tmp_path):
    """AutoRound copies the published checkpoints' lm_head over; retrieval never reads it."""
    folder = shutil.copytree(experiment.checkpoint("random-w4a16-rtn"), tmp_path / "copy")
    before = checkpoints.tensor_bytes(folder)
    index = {
        "weight_map": {
            tensor.name: path.name
            for path in folder.glob("*.safetensors")
            for tensor in hub.file_headers(path)
        }
    }
    save_file({"vlm.lm_head.weight": torch.zeros(384, 128)}, folder / "model_extra.safetensors")
    index["weight_map"]["vlm.lm_head.weight"] = "model_extra.safetensors"
    files.write_json(folder / "model.safetensors.index.json", index)
    make._restore(folder, Path(experiment.model_path))
    assert (
        checkpoints.tensor_bytes(folder) == before
        and "lm_head" not in (folder / "model.safetensors.index.json").read_text()
    )
    loading.open_model(str(folder), backend="ark")


def test_a_revision_is_that_of_the_weights(experiment, manifests):
    base, rtn = (checkpoints.revision(experiment, v) for v in ("random-bf16", "random-w4a16-rtn"))
    assert base != rtn and rtn == manifests["random-w4a16-rtn"]["revision"]


def test_awq_on_the_torch_backend_is_refused(experiment, manifests):
    with pytest.raises(ColqError, match="random weights"):
        loading.open_model(str(experiment.checkpoint("random-w4a16-rtn", "auto_awq")), backend="torch")


def test_full_disk_is_one_message(tmp_path):
    with pytest.raises(ColqError, match="the disk is full"), files.atomic(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")
    with pytest.raises(ColqError, match="the disk is full"), files.atomic(tmp_path / "x.safetensors"):
        raise RuntimeError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )  # as safetensors says it
    assert not list(tmp_path.iterdir())
