"""Making a variant: fallbacks, interruptions, damage, and what decides whether it is made again."""

import shutil

import pytest

from colq_utils.base.errors import ColqError
from colq_utils.fast import load
from colq_utils.model import checkpoints
from colq_utils.stages import quantize
from colq_utils.stages.quantize import make


def test_calibration_must_come_first(experiment, tmp_path):
    with pytest.raises(ColqError, match="make calibrate EXPERIMENT=random"):
        quantize.run(experiment.model_copy(update={"output": tmp_path}), "random-w4a16-autoround-s32")


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


def test_a_revision_is_that_of_the_weights(experiment, manifests):
    base, rtn = (checkpoints.revision(experiment, v) for v in ("random-bf16", "random-w4a16-rtn"))
    assert base != rtn and rtn == manifests["random-w4a16-rtn"]["revision"]
