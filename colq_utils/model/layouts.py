"""What a folder holds that is no ColQwen3 as published, and the command that makes one of it.

The published layout alone is opened: AutoRound, packing and exports look up tensors of the base's folder by
name, so names mapped at load time would have to be known in all of them. `convert` rewrites a folder once.
"""

import json
import re
import shlex
from pathlib import Path

from colq_utils.base import files

#: Names of colpali-engine's ColQwen3 (transformers 5 puts ``model.`` before them) -> the published ones.
COLPALI = (
    (re.compile(r"^(model\.)?(language_model|visual)\."), r"vlm.model.\2."),
    (re.compile(r"^(model\.)?custom_text_proj\."), "embedding_proj_layer."),
    (re.compile(r"^(model\.)?lm_head\."), "vlm.lm_head."),
)
#: ``model_type`` of that layout; what makes a plain Qwen3-VL a retriever is its projection.
COLPALI_TYPE, COLPALI_PROJECTION = "qwen3_vl", "custom_text_proj.weight"
#: The file that makes a folder a LoRA.
ADAPTER = "adapter_config.json"
#: How a LoRA is merged into its base, by the layout of the base.
MERGE = (
    "import torch; from peft import PeftModel; from colq_utils.model import loading, processing; "
    "model = loading.open_model({base!r}, torch.bfloat16, revision={revision!r}); "
    "PeftModel.from_pretrained(model, {source}).merge_and_unload().save_pretrained({target!r}); "
    "processing.from_pretrained({base!r}, {revision!r}).save_pretrained({target!r})"
)
MERGE_COLPALI = (
    "import torch; from peft import PeftModel; "
    "from colpali_engine.models import ColQwen3, ColQwen3Processor; "
    "model = ColQwen3.from_pretrained({base!r}, dtype=torch.bfloat16, revision={revision!r}); "
    "PeftModel.from_pretrained(model, {source}).merge_and_unload().save_pretrained({target!r}); "
    "ColQwen3Processor.from_pretrained({base!r}, revision={revision!r}).save_pretrained({target!r})"
)


def published_name(name: str) -> str | None:
    """The published name of a tensor in colpali-engine's layout; None if that layout has no such tensor."""
    return next((pattern.sub(new, name) for pattern, new in COLPALI if pattern.match(name)), None)


def is_colpali(config: dict, names: list[str]) -> bool:
    """Whether a configuration and tensor names are those of colpali-engine's ColQwen3."""
    return config.get("model_type") == COLPALI_TYPE and any(n.endswith(COLPALI_PROJECTION) for n in names)


def foreign(path: str, config: dict, names: list[str]) -> str:
    """One line on a checkpoint whose ``model_type`` is not colqwen3: what it is, and what to do."""
    if is_colpali(config, names):
        differs = (
            "model_type is qwen3_vl, custom_text_proj stands for embedding_proj_layer, vlm.model is left out"
        )
        folders = f"{shlex.quote(path)} --to {shlex.quote(path.rstrip('/') + '-published')}"
        remedy = f"rewrite it with `colq convert {folders}`"
        return f"{path} has the layout of colpali-engine ({differs}); {remedy}"
    kind, architecture = config.get("model_type"), ", ".join(config.get("architectures") or ["none named"])
    expected = "expected is a ColQwen3 as published (model_type colqwen3), or colpali-engine's to convert"
    return f"{path} holds a {kind!r} (architecture {architecture}), not a colqwen3; {expected}"


def adapter(place: str, config: dict, at: str | None = None) -> str:
    """One line on a LoRA adapter, with the command that merges it.

    Args:
        place: its folder, or its hub id, whose revision is `at`.
        config: its ``adapter_config.json``.
    """
    template = MERGE_COLPALI if "custom_text_proj" in json.dumps(config) else MERGE
    base, revision = config.get("base_model_name_or_path") or "BASE", config.get("revision") or "main"
    source = repr(place) if at is None else f"{place!r}, revision={at!r}"
    target = f"{place if at is None else place.split('/')[-1]}-merged"
    code = template.format(base=base, revision=revision, source=source, target=target)
    return f'{place} is a LoRA adapter, not a model; merge it (pip install peft) with: python -c "{code}"'


def without_weights(folder: Path) -> str:
    """One line on a folder without a model in safetensors: a LoRA to merge, pickles; empty if it has one."""
    if any(path.name != "adapter_model.safetensors" for path in folder.glob("*.safetensors")):
        return ""
    if (folder / ADAPTER).exists():
        return adapter(str(folder), files.read_object(folder / ADAPTER))
    pickles = sorted(
        path.name for kind in ("pytorch_model*.bin", "*.pt", "*.pth") for path in folder.glob(kind)
    )
    if pickles:
        remedy = "save it again with save_pretrained of transformers, which writes safetensors"
        return f"{folder} holds {pickles[0]}, a pickle, which can run code and is never opened; {remedy}"
    return ""
