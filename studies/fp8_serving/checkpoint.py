"""Base and FP8 checkpoints of a Qwen2-VL: written and read in full, in the names of published ones.

FP8 is stored in the ``float-quantized`` format of compressed-tensors, which transformers and vLLM read too.
"""

import json
import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from colq_utils.base import arithmetic, files
from colq_utils.base.config import DTYPES
from colq_utils.base.errors import ColqError
from studies.fp8_serving.fp8 import E4M3, Fp8Linear

#: What stays in bf16 unless asked for, in the names of compressed-tensors.
IGNORED = {"lm_head": "lm_head", "visual": "re:.*visual.*"}
#: Of weights and of inputs, as `_scheme` writes them: dynamic and static.
STRATEGIES = (("channel", "token"), ("tensor", "tensor"))


def _scheme(recipe: str, towers: tuple[str, ...]) -> dict:
    """The ``quantization_config`` of a recipe in the terms of compressed-tensors."""
    static = recipe == "fp8-static"
    by_weight, by_input = STRATEGIES[static]
    number = {"num_bits": 8, "type": "float", "symmetric": True}
    unused = {"group_size": None, "block_structure": None, "actorder": None, "observer_kwargs": {}}
    weights = {"strategy": by_weight, "dynamic": False, "observer": "minmax"}
    inputs = {"strategy": by_input, "dynamic": not static, "observer": "minmax" if static else None}
    group = {
        "targets": ["Linear"],
        "output_activations": None,
        "weights": number | unused | weights,
        "input_activations": number | unused | inputs,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [pattern for tower, pattern in IGNORED.items() if tower not in towers],
        "config_groups": {"group_0": group},
    }


def save(
    model: nn.Module, recipe: str, source: Path, folder: Path, towers: tuple[str, ...] = ("language_model",)
) -> Path:
    """Write a quantized model as a checkpoint, complete or not at all.

    What is not FP8 has the dtype of `source`, whatever the model was loaded in; other files are copied.
    """
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = _scheme(recipe, towers)
    dtypes = {}
    for path in source.glob("*.safetensors"):
        dtypes |= {module_name(name): tensor.dtype for name, tensor in load_file(path).items()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        dtype = E4M3 if tensor.dtype == E4M3 else dtypes.get(name, tensor.dtype)
        tensors[stored_name(name)] = tensor.to(dtype).contiguous()
    with files.atomic(folder, folder=True) as target:
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        for path in source.iterdir():
            if path.suffix in (".json", ".jinja") and path.name != "model.safetensors.index.json":
                (target / path.name).write_bytes(path.read_bytes())
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


def stored_name(name: str) -> str:
    """A tensor's name in published checkpoints (``model.layers…``, ``visual…``)."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


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
        ColqError: no checkpoint, another quantization, tensors missing, left over or of another shape.
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
        cause = str(error).strip().splitlines()[-1].strip()[:200]
        raise ColqError(f"the config.json of {folder.name} is no Qwen2-VL's: {cause}") from None
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration._from_config(config, dtype=dtype)
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path, device).items():  # scales (fp32) and FP8 weights stay as stored
            half = tensor.dtype in (torch.bfloat16, torch.float16)
            tensors[module_name(name)] = tensor.to(dtype) if half else tensor
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
    strategy = tuple((group.get(part) or {}).get("strategy") for part in ("weights", "input_activations"))
    if scheme.get("format") != "float-quantized" or strategy not in STRATEGIES:
        raise ColqError(
            f"{folder.name}: quantization {scheme.get('format')!r} with scales by {strategy} "
            "is not read here; float-quantized by (channel, token) or (tensor, tensor) is"
        )
    ignored = [re.compile(p[3:] if p.startswith("re:") else re.escape(p)) for p in scheme["ignore"]]
    static = strategy == STRATEGIES[1]
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not any(p.fullmatch(name) for p in ignored):
            weight = torch.empty_like(layer.weight, dtype=E4M3)
            scale = weight.new_empty((1,) if static else (len(weight), 1), dtype=torch.float32)
            fixed = weight.new_empty(1, dtype=torch.float32) if static else None
            model.set_submodule(name, Fp8Linear(weight, scale, layer.bias, fixed))
