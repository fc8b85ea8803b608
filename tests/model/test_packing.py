"""Packed layers and checkpoints: rounding, stacking, and every kind of damage refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.model import kernels, loading, packing

RUNTIME = config.Runtime()


@pytest.mark.parametrize("bits", packing.BITS)
def test_packing_is_undone_and_rounds_to_the_nearest(bits):
    torch.manual_seed(bits)
    weight = torch.randn(64, 256)
    integers, scales = packing.round_to_nearest(weight, bits, 128)
    assert torch.equal(packing.unpack(packing.pack(integers.T.contiguous(), bits), bits).T, integers)
    layer = packing.PackedLinear(256, 64, bits, 128)
    for name, value in packing.packed_tensors(weight, bits, 128).items():
        setattr(layer, name, value)
    error = (layer.weight(torch.float32) - weight).abs().view(64, 2, 128)
    inside = (
        integers.view(64, 2, 128) < 2**bits - 1
    )  # the end opposite the largest entry may be clipped; the product is fp16
    assert (error <= scales.abs().unsqueeze(-1) * (0.5 + 2**bits / 2**10))[inside].all()


def test_stacked_layers_compute_side_by_side():
    layers = []
    for out in (64, 32):
        layer = packing.PackedLinear(128, out, 4, 128)
        for name, value in packing.packed_tensors(torch.randn(out, 128), 4, 128).items():
            setattr(layer, name, value)
        layers.append(layer)
    x = torch.randn(3, 128)
    assert torch.equal(packing.PackedLinear.stacked(layers)(x), torch.cat([layer(x) for layer in layers], -1))


@pytest.fixture(scope="module")
def packed_checkpoint(random_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    packing.write_checkpoint(random_checkpoint, folder, 4, 128, "cpu")
    return folder


def test_every_backend_class_takes_a_stacked_layer():
    """AutoRound's torch kernel, built from a packed layer, multiplies as unpacking does."""
    layer = packing.PackedLinear(128, 64, 4, 128)
    for name, value in packing.packed_tensors(torch.randn(64, 128), 4, 128).items():
        setattr(layer, name, value)
    x = torch.randn(3, 128)
    assert torch.allclose(kernels.build(layer, "torch")(x).float(), layer(x), atol=2e-2)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "mismatched"])
def test_a_damaged_packed_checkpoint_is_refused(packed_checkpoint, tmp_path, damage):
    tensors = load_file(packed_checkpoint / "model.safetensors")
    name = next(n for n in tensors if n.endswith("qweight"))
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["vlm.surprise"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((packed_checkpoint / "config.json").read_text())
    with pytest.raises(ColqError, match=damage):
        loading.open_packed(str(tmp_path), torch.float32, RUNTIME)


def test_other_packings_are_refused(packed_checkpoint, tmp_path):
    content = json.loads((packed_checkpoint / "config.json").read_text())
    content["quantization_config"]["packing_format"] = "auto_round:auto_awq"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ColqError, match="set encode to plain"):
        loading.open_packed(str(tmp_path), torch.float32, RUNTIME, fast=True)
    content["quantization_config"]["packing_format"] = "auto_round:exllama"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        ColqError, match="packed as auto_round:exllama with 4 bits; read are the layouts of GPTQ and AWQ"
    ):
        loading.open_packed(str(tmp_path), torch.float32, RUNTIME)
