"""A decoder layer of few, wide products: q, k and v are one, gate and up another."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

from colq_utils.base.errors import ColqError
from colq_utils.model import kernels
from colq_utils.model.eightbit import Fp8Linear
from colq_utils.model.packing import PackedLinear


class Block(nn.Module):
    """A decoder layer; takes and returns the residual stream and what is yet to be added to it."""

    def __init__(self, layer: nn.Module, config, product: Callable[[list[nn.Module]], nn.Module]):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o = product([attention.o_proj])
        self.gate_up = product([mlp.gate_proj, mlp.up_proj])
        self.down = product([mlp.down_proj])
        self.norm_in, self.norm_mid = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.norms = attention.q_norm.weight, attention.k_norm.weight
        self.heads = {"heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads}
        self.eps, self.fp8 = config.rms_norm_eps, isinstance(self.qkv, Fp8Linear)

    def forward(self, x, delta, cos, sin, steps: ModuleType, attend: Callable[..., torch.Tensor]):
        """`x` and `delta` are ``(n_tokens, hidden)``, `cos` and `sin` ``(n_tokens, head_dim)``."""
        x, h = steps.add_norm(x, delta, self.norm_in, self.eps, self.fp8)
        qkv = self.qkv(h)
        steps.rotate_(qkv, cos, sin, **self.heads, norms=self.norms, eps=self.eps)
        attended = self.o(steps.to_fp8(attend(qkv, **self.heads), self.fp8))
        x, h = steps.add_norm(x, attended, self.norm_mid, self.eps, self.fp8)
        return x, self.down(steps.swiglu(self.gate_up(h), self.fp8))


def stack(layers: list[nn.Module], backend: str | None, schedules: dict[str, str] | None = None) -> nn.Module:
    """One layer for several of the same input: their outputs side by side.

    Raises:
        ColqError: a layer with a bias, or what `kernels.build` refuses.
    """
    if isinstance(layers[0], PackedLinear):
        packed = PackedLinear.stacked(layers)
        shape = f"{packed.out_features}x{packed.in_features}"
        return kernels.build(packed, backend, (schedules or {}).get(shape))
    if any(layer.bias is not None for layer in layers):
        raise ColqError(
            "the fast encode path has no biases in the language model; "
            "set runtime.encode to plain in the experiment file"
        )
    width, out = layers[0].in_features, sum(layer.out_features for layer in layers)
    if isinstance(layers[0], Fp8Linear):
        stacked = Fp8Linear(torch.empty(out, width, device="meta"))
        values = torch.cat([layer.weight.view(torch.uint8) for layer in layers])
        stacked.weight = values.view(torch.float8_e4m3fn)
        stacked.scale = torch.cat([layer.scale for layer in layers], dim=1)
        return stacked
    stacked = nn.Linear(width, out, bias=False, device="meta")
    stacked.weight = nn.Parameter(torch.cat([layer.weight.data for layer in layers]), requires_grad=False)
    return stacked
