"""FP8 (e4m3) for the Linear layers of the language model: rounding, and the layers that run it.

``fp8-dynamic``: one scale an output channel of a weight, one scale a token of its input, found as it comes.
``fp8-static``: one scale a weight matrix, one scale for all inputs of a layer, fixed on calibration
pictures. The vision tower and lm_head stay as they are unless asked. On a CUDA device of the Hopper kind or
later the product is an FP8 product; on a CPU the same function is computed in fp32, which tests the
function and not the speed.
"""

from collections import Counter
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colq_utils.base.errors import ColqError
from colq_utils.model.eightbit import rounded, scale_of
from studies.fp8_serving import RECIPES

E4M3 = torch.float8_e4m3fn
#: What may be quantized, by the start of its layers' names.
TOWERS = {"language_model": "model.language_model.layers.", "visual": "model.visual.", "lm_head": "lm_head"}
#: Starts of tensors' names, in checkpoints and in the module tree.
PARTS = {
    "blocks": ("model.layers.", "model.language_model.layers."),
    "vision": ("visual.", "model.visual."),
    "head": ("lm_head",),
}


def quantize_weight(weight: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """A weight ``(n_out, n_in)`` as e4m3 and its scale, ``(n_out, 1)`` or ``(1,)``, fp32."""
    amax = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max().reshape(1)
    scale = scale_of(amax)
    return rounded(weight, scale), scale


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class Fp8Linear(nn.Module):
    """A Linear with e4m3 weights; ``input_scale`` is None where inputs are scaled token by token.

    ``kernel`` names what multiplies: "reference" (fp32 from the FP8 numbers; the default without CUDA),
    "scaled_mm" (torch's FP8 product), "few_tokens" (the same, but for up to 16 tokens a Triton kernel of this
    package; the default on CUDA).
    """

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, input_scale: Tensor | None = None
    ):
        super().__init__()
        self.weight, self.weight_scale = _fixed(weight), _fixed(weight_scale.float())
        self.bias = None if bias is None else _fixed(bias)
        self.input_scale = None if input_scale is None else _fixed(input_scale.float())
        self.kernel = "few_tokens" if weight.is_cuda else "reference"

    def forward(self, x: Tensor) -> Tensor:
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        if self.input_scale is None:
            scale = scale_of(x.abs().amax(1, keepdim=True))
        else:
            scale = self.input_scale.expand(len(x), 1)
        given, weight_scale = rounded(x, scale), self.weight_scale
        if weight_scale.ndim == 1:
            weight_scale = weight_scale.expand(len(self.weight), 1)
        if self.kernel == "reference":
            out = F.linear(given.float(), self.weight.float()) * scale * weight_scale.T
        elif self.kernel == "few_tokens" and len(x) <= 16:
            from studies.fp8_serving.kernels import few_tokens

            out = few_tokens(given, self.weight) * scale * weight_scale.T
        else:
            out = torch._scaled_mm(
                given, self.weight.T, scale.contiguous(), weight_scale.T.contiguous(), out_dtype=x.dtype
            )
        out = out.to(x.dtype)
        return (out if self.bias is None else out + self.bias).view(*shape[:-1], -1)


def targets(model: nn.Module, towers: tuple[str, ...] = ("language_model",)) -> list[str]:
    """Names of the Linear layers to quantize: those of the language model's blocks, others if asked."""
    wanted = tuple(TOWERS[tower] for tower in towers)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linears if name.startswith(wanted)]


def input_ranges(model: nn.Module, names: list[str], run, *arguments) -> dict[str, float]:
    """Largest magnitude that enters each layer while ``run(*arguments)`` runs; for the static recipe."""
    largest = dict.fromkeys(names, 0.0)

    def widen(name: str, _, given: tuple) -> None:
        largest[name] = max(largest[name], given[0].abs().max().item())

    hooks = [model.get_submodule(name).register_forward_pre_hook(partial(widen, name)) for name in names]
    try:
        run(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def quantize(
    model: nn.Module,
    recipe: str,
    ranges: dict[str, float] | None = None,
    towers: tuple[str, ...] = ("language_model",),
) -> nn.Module:
    """Replace the model's Linear layers by `Fp8Linear`, in place.

    Args:
        ranges: for ``fp8-static``, what `input_ranges` returned.

    Raises:
        ColqError: unknown recipe, static without ranges, a layer whose widths are no multiples of 16.
    """
    if recipe not in RECIPES:
        raise ColqError(f"unknown recipe {recipe!r}; known: {', '.join(RECIPES)}")
    static = recipe == "fp8-static"
    if static and not ranges:
        raise ColqError("fp8-static needs the input ranges of a calibration run")
    for name in targets(model, towers):
        layer = model.get_submodule(name)
        if layer.weight.shape[0] % 16 or layer.weight.shape[1] % 16:
            raise ColqError(f"{name} is {tuple(layer.weight.shape)}: FP8 products need multiples of 16")
        weight, scale = quantize_weight(layer.weight.detach(), not static)
        fixed = scale_of(torch.tensor([ranges[name]], device=weight.device)) if static else None
        bias = None if layer.bias is None else layer.bias.detach()
        model.set_submodule(name, Fp8Linear(weight, scale, bias, fixed))
    return model


def part_of(name: str) -> str:
    """The part of a Qwen2-VL that a tensor belongs to, by its name in a checkpoint or in the module tree."""
    return next((part for part, prefixes in PARTS.items() if name.startswith(prefixes)), "other")


def bytes_by_part(model: nn.Module) -> dict[str, int]:
    """Bytes of all tensors by `part_of`: the blocks are what is quantized."""
    sizes = dict.fromkeys([*PARTS, "other"], 0)
    for name, tensor in model.state_dict().items():
        sizes[part_of(name)] += tensor.numel() * tensor.element_size()
    return sizes


def use_kernel(model: nn.Module, kernel: str) -> nn.Module:
    """Have all FP8 layers multiply with `kernel`, in place."""
    for module in model.modules():
        if isinstance(module, Fp8Linear):
            module.kernel = kernel
    return model


def census(model: nn.Module) -> dict[str, int]:
    """How many Linear layers run on which kernel."""
    counts = Counter()
    for module in model.modules():
        if isinstance(module, Fp8Linear):
            counts[f"fp8 {module.kernel}"] += 1
        elif isinstance(module, nn.Linear):
            counts[str(module.weight.dtype).removeprefix("torch.")] += 1
    return dict(counts)


def fuse(model: nn.Module) -> nn.Module:
    """Join the projections that share an input (q, k, v; gate, up), in place; the function stays."""
    for layer in model.model.language_model.layers:
        _join(layer.self_attn, ("q_proj", "k_proj", "v_proj"), "qkv_proj")
        _join(layer.mlp, ("gate_proj", "up_proj"), "gate_up_proj")
    return model


def _join(holder: nn.Module, names: tuple[str, ...], joint: str) -> None:
    linears = [getattr(holder, name) for name in names]
    holder.parts = [len(linear.weight) for linear in linears]
    setattr(holder, joint, _joined(linears))
    for name in names:
        delattr(holder, name)


def _joined(layers: list[nn.Module]) -> nn.Module:
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
    if isinstance(layers[0], Fp8Linear):
        scale = torch.cat([layer.weight_scale.expand(len(layer.weight), 1) for layer in layers])
        return Fp8Linear(weight, scale, bias, layers[0].input_scale)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joined.weight, joined.bias = _fixed(weight), None if bias is None else _fixed(bias)
    return joined
