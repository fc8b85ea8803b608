"""Eight-bit layers: how they round, and that all three implementations of FP8 round alike."""

import pytest
import torch

from colq_utils.model import eightbit
from studies.fp8_serving.fp8 import quantize_weight
from studies.seqlen.weights import round_fp8


def test_fp8_rounds_to_three_bits_of_mantissa():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32).bfloat16()
    x = torch.randn(5, 64).bfloat16()
    values, scale = eightbit.scaled(x)
    assert (values.float() * scale - x.float()).abs().max() <= x.float().abs().max() / 16
    eight = eightbit.Fp8Linear(linear.weight.data, linear.bias.data)
    expected = linear(x).float()
    assert (eight(x).float() - expected).abs().max() < 0.1 * expected.abs().max()
    assert torch.equal(eight(x), eight((values, scale)).bfloat16())


def test_fp8_by_hand():
    """One token, two outputs: every number rounded to e4m3 by its row's scale, multiplied, scaled back."""
    weight = torch.tensor([[448.0, 17.0], [0.0, -3.5]])  # scales 1 and 3.5 / 448; 17 lies between 16 and 18
    layer = eightbit.Fp8Linear(weight, torch.tensor([1.0, 2.0]))
    assert layer.weight.float().tolist() == [[448, 16], [0, -448]]
    x = torch.tensor([[[896.0, 2.5]]])  # scale 2: 448 and 1.25
    assert layer(x).tolist() == [[[(448 * 448 + 1.25 * 16) * 2 + 1, 1.25 * -448 * 2 * 3.5 / 448 + 2]]]
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("bias", [False, True])
def test_fp8_on_a_cpu_is_the_product_of_scaled_mm(bias):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(48, 64, generator=generator), torch.randn(20, 64, generator=generator)
    x[3] *= 1e-6
    shift = torch.randn(48, generator=generator) if bias else None
    layer = eightbit.Fp8Linear(weight, shift)
    values, scale = eightbit.scaled(x)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2**-8)):
        expected = torch._scaled_mm(values, layer.weight.t(), scale, layer.scale, out_dtype=dtype)
        expected = expected.float() + (0 if shift is None else shift)
        assert torch.allclose(layer(x), expected, rtol=tolerance, atol=tolerance * expected.abs().max())
        assert torch.allclose(layer(x)[3], expected[3], rtol=tolerance, atol=1e-6)
    unrounded = torch.nn.functional.linear(x, weight, shift)
    assert not torch.allclose(layer(x), unrounded, rtol=1e-3), "nothing was rounded"


def test_fp8_of_a_cpu_rounds_every_number_as_torch_converts_it():
    every = torch.arange(-(2**31), 2**31, 9973).to(torch.int32).view(torch.float32)
    every = every[every.isfinite()].view(-1, 1)
    for scale in (1.0, 0.37):
        converted = eightbit.rounded(every, torch.tensor(scale)).float()
        assert torch.equal(eightbit.nearest(every, torch.tensor(scale)), converted)
    ties = torch.tensor([17.0, 19.0, 2**-10, 3 * 2**-10, 464.0, -500.0, 0.0])
    expected = torch.tensor([16.0, 20.0, 0.0, 2 * 2**-9, 448.0, -448.0, 0.0])
    assert torch.equal(eightbit.nearest(ties, torch.tensor(1.0)), expected)


def test_every_fp8_path_scales_rows_alike():
    """The same numbers as by the formula, whatever the magnitude; a row of zeros stays one of zeros."""
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 8, 400)[:, None]
    for rows in (x, x.bfloat16()):
        values, scale = eightbit.scaled(rows)
        plain = rows.float().abs().amax(-1, keepdim=True) / 448
        assert torch.equal(scale, plain)
        assert torch.equal(values.float(), (rows.float() / plain).to(values.dtype).float())
        stored = quantize_weight(rows, per_channel=True)
        assert torch.equal(stored[0].float(), values.float()) and torch.equal(stored[1], scale)
        assert torch.equal(round_fp8(rows), (values.float() * scale).to(rows.dtype))
    for zeros in (eightbit.scaled(x * 0)[0], quantize_weight(x * 0, True)[0], round_fp8(x * 0)):
        assert (zeros.float() == 0).all()


def test_int8_embedding_restores_rows():
    table = torch.nn.Embedding(10, 16).bfloat16()
    eight = eightbit.Int8Embedding(table)
    ids = torch.tensor([[1, 2], [3, 9]])
    assert (eight(ids).float() - table(ids).float()).abs().max() < table.weight.abs().max() / 100
    assert eight.weight.dtype == torch.int8


def test_int8_embedding_in_float32_gives_the_numbers_of_bfloat16():
    """As on a GPU: scales and products rounded to bf16."""
    half = torch.nn.Embedding(50, 16).bfloat16()
    full = torch.nn.Embedding.from_pretrained(half.weight.detach().float())
    ids = torch.arange(50)
    found = eightbit.Int8Embedding(full)(ids)
    assert found.dtype == torch.float32
    assert torch.equal(found, eightbit.Int8Embedding(half)(ids).float())
    row = half.weight[7].float()
    scale = (row.abs().max() / 127).bfloat16()
    integers = (row / (row.abs().max() / 127)).round()
    assert torch.equal(found[7], (integers.bfloat16() * scale).float())
