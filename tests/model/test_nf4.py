"""NF4 is read as bitsandbytes reads it, and nothing that is amiss is read. Rounding needs the extra `nf4`."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.fast import load
from colq_utils.model import footprint, hub, loading, nf4
from colq_utils.stages import quantize

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra nf4)"
)


@pytest.fixture
def experiment(experiment_file, tmp_path):
    """The random model and its NF4, which nothing calibrates."""
    variants = [{"scheme": "bf16"}, {"scheme": "nf4"}]
    return config.load(experiment_file(tmp_path, "random", variants=variants), tmp_path / "out")


def parts(**state) -> dict[str, torch.Tensor]:
    """Two blocks of 64 weights: one all of number 15, scale 2; one of numbers 3 and 0 by turns, scale 4."""
    codes = torch.tensor([0xFF] * 32 + [0x30] * 32, dtype=torch.uint8).view(-1, 1)
    text = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [2, 64]} | state).encode()
    values = (
        codes,
        torch.tensor([2.0, 4.0]),
        torch.arange(16) / 16,
        torch.tensor(list(text), dtype=torch.uint8),
    )
    return dict(zip(footprint.NF4_PARTS, values, strict=True))


def test_a_weight_is_its_number_times_the_scale_of_its_block():
    expected = torch.cat((torch.full((1, 64), 2 * 15 / 16), torch.tensor([[4 * 3 / 16, 0.0] * 32])))
    assert torch.equal(nf4.weight(parts(), torch.float32), expected)


def test_another_format_is_not_read():
    with pytest.raises(ColqError, match="stored as fp4"):
        nf4.weight(parts(quant_type="fp4"), torch.float32)


def test_without_the_extra_one_line_says_what_installs_it(experiment, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name)
    )
    with pytest.raises(ColqError, match=r"needs bitsandbytes, which is not installed: pip install .*\[nf4\]"):
        quantize.run(experiment, "random-nf4")
    assert not list(experiment.output.rglob("*.safetensors"))


@needs_extra
def test_the_checkpoint_is_as_predicted_and_as_bitsandbytes_reads_it(experiment):
    from bitsandbytes import functional

    manifest = quantize.run(experiment, "random-nf4")
    folder = experiment.checkpoint("random-nf4")
    base = hub.read_headers(experiment.model_path)
    predicted = footprint.quantized(base, 4, 64, "bitsandbytes")
    assert manifest["exports"] == {"bitsandbytes": {"tensor_bytes": footprint.total(predicted)}}
    stored, model = load_file(folder / "model.safetensors"), load.load(experiment, "random-nf4").model
    layers = [tensor.name for tensor in base if tensor.quantizable]
    assert len(layers) == 14
    for name in layers:
        state = {part.removeprefix("weight."): stored[name[:-6] + part] for part in footprint.NF4_PARTS[1:]}
        read = functional.QuantState.from_dict(state, device=torch.device("cpu"))
        read.dtype = torch.float32
        expected = functional.dequantize_4bit(stored[name], read)
        assert torch.equal(model.get_parameter(name), expected), name
    assert {use.kernel for use in load.load(experiment, "random-nf4").census} == {"torch float32", "unpack"}


@needs_extra
def test_it_is_accepted_through_transformers_own_loader(experiment, page_images):
    quantize.run(experiment, "random-nf4")
    row = quantize.accept(experiment, ["alpha beta", "gamma"], page_images).iloc[0]
    assert row["accepted"] and (row["backend"], row["opened_by"], row["group_size"]) == (
        "unpack",
        "bitsandbytes",
        64,
    )
    assert row["opened_cosine"] > 0.999 and row[["cosine_query_mean", "cosine_page_mean"]].min() > 0.9


@needs_extra
@pytest.mark.parametrize("part", footprint.NF4_PARTS)
def test_a_part_that_is_missing_is_named(experiment, tmp_path, part):
    quantize.run(experiment, "random-nf4")
    folder = shutil.copytree(experiment.checkpoint("random-nf4"), tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"vlm.model.language_model.layers.1.mlp.up_proj.{part}"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ColqError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        loading.open_packed(str(folder), torch.float32, experiment.runtime)
