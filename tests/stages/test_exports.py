"""Every export against the base: what is stored, what its config tells, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from colq_utils.base import config, files, names
from colq_utils.base.errors import ColqError
from colq_utils.fast import load
from colq_utils.model import checkpoints, hub, loading, packing
from colq_utils.stages import quantize
from colq_utils.stages.quantize import make


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


def test_a_tensor_lost_on_the_way_is_noticed(experiment, manifests, tmp_path):
    """AutoRound writes some tensors to a second file, which loaders overlook."""
    folder = shutil.copytree(experiment.checkpoint("random-w4a16-autoround-s32"), tmp_path / "copy")
    loading.open_model(str(folder), backend="ark")
    for path in folder.glob("*.safetensors"):
        kept = {n: t for n, t in load_file(path).items() if not n.endswith("layers.1.input_layernorm.weight")}
        save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ColqError, match=r"layers\.1\.input_layernorm\.weight"):
        loading.open_model(str(folder), backend="ark")


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


def test_awq_on_the_torch_backend_is_refused(experiment, manifests):
    with pytest.raises(ColqError, match="random weights"):
        loading.open_model(str(experiment.checkpoint("random-w4a16-rtn", "auto_awq")), backend="torch")
