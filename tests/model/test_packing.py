"""Packed layers and checkpoints: rounding, stacking, and every kind of damage refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.model import kernels, loading, packing

RUNTIME = config.Runtime()


def packed(weight: torch.Tensor, bits: int = 4) -> packing.PackedLinear:
    """A layer that holds `weight` rounded in groups of 128."""
    out_features, in_features = weight.shape
    layer = packing.PackedLinear(in_features, out_features, bits, 128)
    for name, value in packing.packed_tensors(weight, bits, 128).items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize("bits", packing.BITS)
def test_packing_is_undone_and_rounds_to_the_nearest(bits):
    torch.manual_seed(bits)
    weight = torch.randn(64, 256)
    integers, scales = packing.round_to_nearest(weight, bits, 128)
    assert torch.equal(packing.unpack(packing.pack(integers.T.contiguous(), bits), bits).T, integers)
    layer = packed(weight, bits)
    error = (layer.weight(torch.float32) - weight).abs().view(64, 2, 128)
    inside = (
        integers.view(64, 2, 128) < 2**bits - 1
    )  # the end opposite the largest entry may be clipped; the product is fp16
    assert (error <= scales.abs().unsqueeze(-1) * (0.5 + 2**bits / 2**10))[inside].all()


def test_stacked_layers_compute_side_by_side():
    layers = [packed(torch.randn(out, 128)) for out in (64, 32)]
    x = torch.randn(3, 128)
    assert torch.equal(packing.PackedLinear.stacked(layers)(x), torch.cat([layer(x) for layer in layers], -1))


def test_autorounds_torch_kernel_takes_a_stacked_layer():
    """Built from packed layers side by side, it multiplies as unpacking does."""
    layer = packing.PackedLinear.stacked([packed(torch.randn(out, 128)) for out in (64, 32)])
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
