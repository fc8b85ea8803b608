"""Eight-bit stand-ins for parts of a model: FP8 matrix products and an int8 embedding table.

FP8 here is e4m3 with one scale an output channel for weights and one a token, found as it passes, for activations: the
recipe that Hopper's tensor cores multiply natively (`torch._scaled_mm`). Conversion happens at load time from the bf16
base; nothing is calibrated.
"""

import torch
from torch import nn

#: Largest finite number of e4m3.
LARGEST = 448.0


def scaled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of `x` ``(…, n, k)`` in e4m3 and their scales ``(…, n, 1)``, fp32; row = e4m3 × scale."""
    values = x.float()
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (values / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


class Fp8Linear(nn.Module):
    """A Linear in FP8; takes bf16, or what `scaled` gave where that was fused into the step before."""

    QUANT_TYPE = "fp8 e4m3"
    bits = 8

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        values, scale = scaled(weight)  # (out, in), (out, 1)
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale.T.contiguous())  # (1, out)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        values, scale = x if isinstance(x, tuple) else scaled(x)
        rows = values.reshape(-1, self.in_features)
        product = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale.reshape(-1, 1),
            self.scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=rows.is_cuda,
        )
        product = product if isinstance(x, tuple) else product.to(x.dtype)
        return product.view(*values.shape[:-1], self.out_features)


class Int8Embedding(nn.Module):
    """An embedding table in int8 with one scale a row; a lookup restores the dtype of the scales."""

    bits = 8

    def __init__(self, table: nn.Embedding):
        super().__init__()
        weight = table.weight.float()  # (n_words, dim)
        scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.to(table.weight.dtype))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids].to(self.scale.dtype) * self.scale[ids]


def fp8_(module: nn.Module, skip: tuple[str, ...] = ()) -> None:
    """Replace the Linear layers under `module` by FP8 ones, in place; widths that are no multiple of 16 stay."""
    for name, child in module.named_children():
        if (
            isinstance(child, nn.Linear)
            and name not in skip
            and child.in_features % 16 == 0
            and child.out_features % 16 == 0
        ):
            setattr(
                module, name, Fp8Linear(child.weight.data, None if child.bias is None else child.bias.data)
            )
        else:
            fp8_(child, skip)
