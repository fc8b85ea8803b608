"""FP8 (e4m3) for the Linear layers of the language model: rounding, storage as compressed-tensors, and the layers that run it.

``fp8-dynamic``: one scale an output channel of a weight, one scale a token of its input, found as it comes.
``fp8-static``: one scale a weight matrix, one scale for all inputs of a layer, fixed on calibration pictures.
The checkpoint is in the ``float-quantized`` format of compressed-tensors, which transformers and vLLM read. The vision
tower and lm_head stay as they are unless asked. On a CUDA device of the Hopper kind or later the product is an FP8
product; on a CPU the same function is computed in fp32 from the FP8 numbers, which tests the function and not the speed.
"""

import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from colq_utils.base import arithmetic, files
from colq_utils.base.config import DTYPES
from colq_utils.base.errors import ColqError
from colq_utils.model.eightbit import rounded, scale_of
from studies.fp8_serving import RECIPES

E4M3 = torch.float8_e4m3fn
#: Layers that stay in bf16, in the names of compressed-tensors.
IGNORED = ("lm_head", "re:.*visual.*")


def quantize_weight(weight: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """A weight ``(n_out, n_in)`` as e4m3 and its scale, ``(n_out, 1)`` or ``(1,)``, fp32."""
    amax = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max().reshape(1)
    scale = scale_of(amax)
    return rounded(weight, scale), scale


class Fp8Linear(nn.Module):
    """A Linear with e4m3 weights; ``input_scale`` is None where inputs are scaled token by token.

    ``kernel`` names what multiplies: "reference" (fp32 from the FP8 numbers; the default without CUDA), "scaled_mm"
    (torch's FP8 product), "few_tokens" (the same, but up to 16 tokens a Triton kernel of this package; the default on CUDA).
    """

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        input_scale: Tensor | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(weight_scale.float(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.input_scale = (
            None if input_scale is None else nn.Parameter(input_scale.float(), requires_grad=False)
        )
        self.kernel = "few_tokens" if weight.is_cuda else "reference"

    def forward(self, x: Tensor) -> Tensor:
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        scale = (
            scale_of(x.abs().amax(1, keepdim=True))
            if self.input_scale is None
            else self.input_scale.expand(len(x), 1)
        )
        given = rounded(x, scale)
        weight_scale = (
            self.weight_scale.expand(len(self.weight), 1)
            if self.weight_scale.ndim == 1
            else self.weight_scale
        )
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
    """Names of the Linear layers to quantize: those of the language model's blocks, and of other parts if asked."""
    known = {
        "language_model": "model.language_model.layers.",
        "visual": "model.visual.",
        "lm_head": "lm_head",
    }
    wanted = tuple(known[tower] for tower in towers)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(wanted)
    ]


def input_ranges(model: nn.Module, names: list[str], run, *arguments) -> dict[str, float]:
    """Largest magnitude that enters each layer while ``run(*arguments)`` runs; for the static recipe."""
    largest = dict.fromkeys(names, 0.0)
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: largest.__setitem__(
                name, max(largest[name], given[0].abs().max().item())
            )
        )
        for name in names
    ]
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
        ColqError: unknown recipe, static without ranges, a layer whose widths are no multiples of 16 (FP8 products need that).
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
        model.set_submodule(
            name, Fp8Linear(weight, scale, None if layer.bias is None else layer.bias.detach(), fixed)
        )
    return model


def description(recipe: str, ignored: tuple[str, ...] = IGNORED) -> dict:
    """The ``quantization_config`` of a recipe in the terms of compressed-tensors."""
    static = recipe == "fp8-static"
    common = {
        "num_bits": 8,
        "type": "float",
        "symmetric": True,
        "group_size": None,
        "block_structure": None,
        "actorder": None,
        "observer_kwargs": {},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignored),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "output_activations": None,
                "weights": common
                | {"strategy": "tensor" if static else "channel", "dynamic": False, "observer": "minmax"},
                "input_activations": common
                | {
                    "strategy": "tensor" if static else "token",
                    "dynamic": not static,
                    "observer": "minmax" if static else None,
                },
            }
        },
    }


def save(
    model: nn.Module, recipe: str, source: Path, folder: Path, towers: tuple[str, ...] = ("language_model",)
) -> Path:
    """Write a quantized model as a checkpoint, complete or not at all.

    What is not FP8 has the dtype of `source`, whatever the model was loaded in; what is not weights is copied from there.
    """
    ignored = tuple(name for name, tower in zip(IGNORED, ("lm_head", "visual")) if tower not in towers)
    config = json.loads((source / "config.json").read_text()) | {
        "quantization_config": description(recipe, ignored)
    }
    with files.atomic(folder, folder=True) as target:
        stored = {
            module_name(name): tensor.dtype
            for path in source.glob("*.safetensors")
            for name, tensor in load_file(path).items()
        }
        tensors = {
            stored_name(name): tensor.to(
                tensor.dtype if tensor.dtype == E4M3 else stored.get(name, tensor.dtype)
            ).contiguous()
            for name, tensor in model.state_dict().items()
        }
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        for path in source.iterdir():
            if path.suffix in (".json", ".jinja") and path.name not in (
                "config.json",
                "model.safetensors.index.json",
            ):
                (target / path.name).write_bytes(path.read_bytes())
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


def stored_name(name: str) -> str:
    """A tensor's name in published checkpoints (``model.layers…``, ``visual…``) from its name in the module tree."""
    return (
        name.removeprefix("model.")
        if name.startswith("model.visual.")
        else name.replace("model.language_model.", "model.", 1)
    )


def module_name(name: str) -> str:
    """The inverse of `stored_name`; names that are already those of the module tree stay."""
    if name.startswith("visual."):
        return f"model.{name}"
    inside = name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model."))
    return name.replace("model.", "model.language_model.", 1) if inside else name


def load(
    folder: Path, device: str = "cpu", dtype: torch.dtype | None = None
) -> Qwen2VLForConditionalGeneration:
    """A base or FP8 checkpoint of a Qwen2-VL, every tensor of it used and none missing.

    Args:
        dtype: of what is not FP8; None: what the device computes in (`colq_utils.base.config.DTYPES`).

    Raises:
        ColqError: no checkpoint there, another kind of quantization, tensors missing, left over or of another shape.
    """
    if torch.device(device).type == "cpu":
        arithmetic.check()
    folder, dtype = Path(folder), dtype or getattr(torch, DTYPES[torch.device(device).type])
    if not (folder / "config.json").exists() or not list(folder.glob("*.safetensors")):
        raise ColqError(f"{folder} holds no checkpoint (config.json and *.safetensors)")
    fields = json.loads((folder / "config.json").read_text())
    scheme = fields.pop("quantization_config", None)
    try:
        config = Qwen2VLConfig(**fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ColqError(
            f"the config.json of {folder.name} is no Qwen2-VL's: {str(error).strip().splitlines()[-1].strip()[:200]}"
        ) from None
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration._from_config(config, dtype=dtype)
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {
            module_name(name): tensor.to(dtype) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
            for name, tensor in load_file(path, device).items()
        }  # scales (fp32) and FP8 weights stay as stored
    if scheme is not None:
        _prepare(model, scheme, folder)
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ColqError(f"{folder.name} does not fit its config.json: {lines[0][:300]}") from None
    return model.eval().requires_grad_(False)


def _prepare(model: nn.Module, scheme: dict, folder: Path) -> None:
    """Put empty `Fp8Linear` layers where the checkpoint says that it is quantized."""
    group = next(iter(scheme.get("config_groups", {}).values()), {})
    strategy = (
        (group.get("weights") or {}).get("strategy"),
        (group.get("input_activations") or {}).get("strategy"),
    )
    if scheme.get("format") != "float-quantized" or strategy not in (
        ("channel", "token"),
        ("tensor", "tensor"),
    ):
        raise ColqError(
            f"{folder.name}: quantization {scheme.get('format')!r} with scales by {strategy} is not read here; "
            "float-quantized by (channel, token) or (tensor, tensor) is"
        )
    ignored = [re.compile(p[3:] if p.startswith("re:") else re.escape(p)) for p in scheme["ignore"]]
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not any(p.fullmatch(name) for p in ignored):
            empty = torch.empty_like(layer.weight, dtype=E4M3)
            scale = torch.empty((len(empty), 1) if strategy[0] == "channel" else (1,), device=empty.device)
            model.set_submodule(
                name,
                Fp8Linear(
                    empty,
                    scale,
                    layer.bias,
                    torch.empty(1, device=empty.device) if strategy[0] == "tensor" else None,
                ),
            )


def bytes_by_part(model: nn.Module) -> dict[str, int]:
    """Bytes of all tensors: the blocks of the language model (what is quantized), the rest of it, the vision tower, the head."""
    parts = {"blocks": "model.language_model.layers.", "vision": "model.visual.", "head": "lm_head"}
    found = dict.fromkeys([*parts, "other"], 0)
    for name, tensor in model.state_dict().items():
        part = next((p for p, prefix in parts.items() if name.startswith(prefix)), "other")
        found[part] += tensor.numel() * tensor.element_size()
    return found


def use_kernel(model: nn.Module, kernel: str) -> nn.Module:
    """Have all FP8 layers multiply with `kernel`, in place."""
    for module in model.modules():
        if isinstance(module, Fp8Linear):
            module.kernel = kernel
    return model


def census(model: nn.Module) -> dict[str, int]:
    """How many Linear layers run on which kernel."""
    counts: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, (nn.Linear, Fp8Linear)):
            name = (
                f"fp8 {module.kernel}"
                if isinstance(module, Fp8Linear)
                else str(module.weight.dtype).removeprefix("torch.")
            )
            counts[name] = counts.get(name, 0) + 1
    return counts


def fuse(model: nn.Module) -> nn.Module:
    """Join the projections that share an input (q, k, v; gate, up) into one product each, in place; the function stays."""
    for layer in model.model.language_model.layers:
        for holder, names, joint in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj"), "qkv_proj"),
            (layer.mlp, ("gate_proj", "up_proj"), "gate_up_proj"),
        ):
            linears = [getattr(holder, name) for name in names]
            holder.parts = [len(linear.weight) for linear in linears]
            setattr(holder, joint, _joined(linears))
            for name in names:
                delattr(holder, name)
    return model


def _joined(layers: list[nn.Module]) -> nn.Module:
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
    if isinstance(layers[0], Fp8Linear):
        scale = torch.cat([layer.weight_scale.expand(len(layer.weight), 1) for layer in layers])
        return Fp8Linear(weight, scale, bias, layers[0].input_scale)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    joined.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return joined
