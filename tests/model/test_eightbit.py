"""Eight-bit layers: how they round, and that all three implementations of FP8 round alike."""

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
    assert torch.equal(eight(x), eight((values, scale)))


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
