"""Eight-bit stand-ins for parts of a model: FP8 matrix products and an int8 embedding table.

FP8 here is e4m3 with one scale per output channel for weights and one per token, found as it passes, for
activations: the recipe that Hopper's tensor cores multiply natively (`torch._scaled_mm`). Conversion happens
at load time from the bf16 base, or once for an export (`fp8_export`); nothing is calibrated. On a CPU the
same roundings are made and multiplied in fp32: what a GPU computes, up to the order of its sums and the bf16
that it stores between layers.
"""

import torch
from torch import nn

from colq_utils.model import kernels

#: Largest finite number of e4m3.
LARGEST = 448.0


def scale_of(amax: torch.Tensor, largest: float | torch.Tensor = LARGEST) -> torch.Tensor:
    """The fp32 scale that takes a row's largest magnitude to that of e4m3; never 0, so zeros stay zeros."""
    return amax.float().clamp(min=1e-12) / largest


def rounded(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x / scale as e4m3, saturated."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def scaled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of `x` ``(…, n, k)`` in e4m3 and their scales ``(…, n, 1)``, fp32; row = e4m3 · scale."""
    scale = scale_of(x.abs().amax(-1, keepdim=True))
    return rounded(x, scale), scale


def nearest(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`rounded`, the e4m3 numbers left in fp32: what a CPU multiplies, in a third of the time."""
    x = (x.float() / scale).clamp_(-LARGEST, LARGEST)
    power = (x.view(torch.int32) & 0x7F800000).view(torch.float32)  # of two, at or below each magnitude
    step = power.clamp_(min=2**-6).mul_(2**-3)  # three bits after the leading one; equal steps below 2**-6
    return x.div_(step).round_().mul_(step)


class Fp8Linear(nn.Module):
    """A Linear in FP8; takes floats, or what `scaled` gave where that was fused into the step before.

    A GPU gives bf16. A CPU multiplies the rounded numbers in fp32 and gives that, or the dtype it was given.
    """

    bits = 8

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        values, scale = scaled(weight)  # (out, in), (out, 1)
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale.T.contiguous())  # (1, out)
        self.register_buffer("bias", bias)
        self._wide = None  # the weight in fp32, on a CPU

    @property
    def QUANT_TYPE(self) -> str:
        return "fp8 e4m3" if self.weight.is_cuda else "fp8 e4m3, emulated"

    def forward(self, x: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if not self.weight.is_cuda:
            return self._emulated(x)
        values, scale = x if isinstance(x, tuple) else scaled(x)
        rows, scale = values.reshape(-1, self.in_features), scale.reshape(-1, 1)
        options = dict(bias=self.bias, out_dtype=torch.bfloat16, use_fast_accum=True)
        product = torch._scaled_mm(rows, self.weight.t(), scale, self.scale, **options)
        return product.view(*values.shape[:-1], self.out_features)

    def _emulated(self, x: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if self._wide is None:
            self._wide = self.weight.float()
        if isinstance(x, tuple):
            values, scale = x
        else:
            scale = scale_of(x.abs().amax(-1, keepdim=True))
            values = nearest(x, scale)
        rows = values.reshape(-1, self.in_features).float()
        product = nn.functional.linear(rows, self._wide) * scale.reshape(-1, 1) * self.scale
        product = product if self.bias is None else product + self.bias
        product = product if isinstance(x, tuple) else product.to(x.dtype)
        return product.view(*values.shape[:-1], self.out_features)


class Int8Embedding(nn.Module):
    """An embedding table in int8, a bf16 scale per row; a lookup gives bf16 numbers in the table's dtype."""

    bits = 8

    def __init__(self, table: nn.Embedding):
        super().__init__()
        weight = table.weight.float()  # (n_words, dim)
        scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.bfloat16())
        self.dtype = table.weight.dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return (self.weight[ids].bfloat16() * self.scale[ids]).to(self.dtype)


def fp8_(module: nn.Module) -> None:
    """Replace the Linear layers under `module` whose widths 16 divides by FP8 ones, in place."""

    def converted(layer: nn.Linear) -> nn.Module:
        if layer.in_features % 16 or layer.out_features % 16:
            return layer
        return Fp8Linear(layer.weight.data, None if layer.bias is None else layer.bias.data)

    kernels.replace_(module, nn.Linear, converted)
