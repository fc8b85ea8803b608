"""What the scripts of all engines share. Runs in an engine's own environment, where ColQ is not installed.

Called as ``SCRIPT FOLDER INPUTS OUT``: opens the checkpoint, embeds the queries and pages of INPUTS and
writes a file with tensors ``query.<i>`` and ``page.<i>``, ``(n_tokens, dim)``, the engine's own
``scores`` if it has any, and what it says of itself. An engine that fails ends with its exception.
"""

import importlib.metadata
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@dataclass
class Embedded:
    """Embeddings of an engine; `scores` is ``(n_queries, n_pages)``, `said` anything worth a note."""

    queries: list
    pages: list
    scores: object = None
    said: dict = field(default_factory=dict)


def texts(inputs: Path) -> list[str]:
    return json.loads((inputs / "queries.json").read_text())


def images(inputs: Path) -> list:
    from PIL import Image

    return [Image.open(path).convert("RGB") for path in sorted(inputs.glob("page-*.png"))]


def quantization(folder: Path) -> dict:
    """How a quantized folder is packed; empty for a base."""
    return json.loads((folder / "config.json").read_text()).get("quantization_config", {})


def options(folder: Path) -> dict:
    """What `from_pretrained` needs beside the folder: AutoRound's loader for the layouts of AWQ and GPTQ."""
    if quantization(folder).get("quant_method") in ("awq", "gptq"):
        from transformers import AutoRoundConfig

        return {"quantization_config": AutoRoundConfig()}
    return {}


def kernels(model) -> str:
    """Classes of the layers that hold packed weights."""
    return ", ".join(sorted({type(m).__name__ for m in model.modules() if hasattr(m, "qweight")}))


def kept(vectors, mask=None) -> list:
    """Rows of a batch ``(n, n_tokens, dim)`` that are searched: by a mask, or all that are not zero."""
    mask = (vectors != 0).any(-1) if mask is None else mask.bool()
    return [row[keep].float().cpu() for row, keep in zip(vectors, mask, strict=True)]


def main(embed, packages: tuple[str, ...]) -> None:
    """Run `embed`, which takes a folder, queries and pages and returns `Embedded`."""
    folder, inputs, out = map(Path, sys.argv[1:4])
    import torch
    from safetensors.torch import save_file

    given = embed(folder, texts(inputs), images(inputs))
    tensors = {f"query.{i}": v.float().contiguous() for i, v in enumerate(given.queries)}
    tensors |= {f"page.{i}": v.float().contiguous() for i, v in enumerate(given.pages)}
    if given.scores is not None:
        tensors["scores"] = torch.as_tensor(given.scores).float().contiguous()
    versions = {name: importlib.metadata.version(name) for name in packages}
    save_file(tensors, out, metadata={"versions": json.dumps(versions), "said": json.dumps(given.said)})
