"""Whether a quantized checkpoint loads, runs and agrees with the base, on a handful of queries and pages.

It says that a checkpoint is what it should be, not what that costs in retrieval.
"""

import numpy as np
import pandas as pd
import torch

from colq_utils.base import files, names
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.fast import load
from colq_utils.model import encode, footprint, hub, kernels, loading
from colq_utils.model.checkpoints import MANIFEST
from colq_utils.model.processing import ColQwen3Processor

#: The published acceptance bar for the mean token cosine with the base, and its aim.
COSINE_BAR, COSINE_AIM = 0.90, 0.95
#: Least mean token cosine between a checkpoint as its numbers say and as a packed kernel computes it.
KERNEL_BAR = 0.99


def accept(experiment: Experiment, texts: list[str], images: list) -> pd.DataFrame:
    """The acceptance table: every export of every quantized variant against the base."""
    base = _embeddings(load.load(experiment, experiment.base), texts, images)
    base["headers"] = hub.read_headers(experiment.model_path, experiment.model.revision)
    base["tensor_bytes"] = footprint.total(t for t in base["headers"] if t.part != names.UNUSED)
    exports = [(variant, export) for variant, spec in experiment.quantized.items() for export in spec.exports]
    return pd.DataFrame([compare(experiment, *export, texts, images, base) for export in exports])


def compare(
    experiment: Experiment, variant: str, export: str, texts: list[str], images: list, base: dict
) -> dict:
    """One row of the acceptance table: an export loaded afresh against the base, on text and on page images.

    ``opened_by`` is the kernel with which AutoRound's own loader, the users' way, opens the export here,
    ``opened_cosine`` how well that agrees; left open on CUDA, where the comparison itself is made that way,
    and for FP8, which AutoRound does not open (`studies.interop` asks what does).

    Args:
        base: embeddings of the base on the same texts and images, its headers and bytes.
    """
    spec, made_by = experiment.by_id[variant], f"quantize EXPERIMENT={experiment.name}"
    manifest = files.read_json(experiment.build("checkpoints", variant, MANIFEST), made_by)
    used, size = manifest["used"], manifest["exports"][export]["tensor_bytes"]
    as_used = spec.model_copy(update={"group_size": used["group_size"]})
    predicted = footprint.exported(base["headers"], as_used, export)
    loaded = load.load(experiment, variant, export)
    processor, embeddings = loaded.processor, _embeddings(loaded, texts, images)
    eight = next(use.kernel for use in loaded.census if use.tower == "language_model")
    del loaded  # two models at once may not fit in memory
    row = {
        "variant": variant,
        **{key: used[key] for key in ("scheme", "method", "calibration", "group_size", "sym", "iters")},
        "export": export,
        "backend": eight if spec.bits is None else experiment.backend(variant),
        "quantize_s": manifest["quantize_s"],
        "tensor_bytes": size,
        "base_bytes": base["tensor_bytes"],
        "predicted_bytes": footprint.total(predicted),
        "loads": True,
        "runs": True,
        "finite": all(bool(v.isfinite().all()) for v in embeddings["query"] + embeddings["page"]),
        "fallback": manifest["fallback"],
        "revision": manifest["revision"],
    }
    for kind in ("query", "page"):
        cosine = _cosines(embeddings[kind], base[kind])
        row |= {f"cosine_{kind}_mean": cosine.mean().item(), f"cosine_{kind}_min": cosine.min().item()}
    close = min(row["cosine_query_mean"], row["cosine_page_mean"]) > COSINE_BAR
    close |= experiment.model.is_random  # whose cosines say nothing
    opened_by, opened = _opened(experiment, variant, export, processor)
    opened_cosine = float("nan")
    if opened is not None:  # text and a page, for either may break alone
        packed = _embeddings(opened, texts[:4], images[:1])
        cosines = [_cosines(of, embeddings[kind][: len(of)]).mean().item() for kind, of in packed.items()]
        opened_cosine = float(np.min(cosines))
    agrees = opened is None or opened_cosine >= KERNEL_BAR  # a NaN is no agreement
    accepted = row["finite"] and size < base["tensor_bytes"] and close and agrees
    return row | {"opened_by": opened_by, "opened_cosine": opened_cosine, "accepted": accepted}


def _embeddings(loaded: loading.Loaded, texts: list[str], images: list) -> dict:
    """Query and page embeddings of a loaded variant, a tensor ``(n_tokens, dim)`` each."""
    return {"query": encode.queries(loaded, texts), "page": encode.pages(loaded, images)}


def _cosines(first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
    """Cosine of each token's two embeddings, ``(n_tokens,)`` over all texts or pages."""
    pairs = zip(first, second, strict=True)
    return torch.cat([torch.cosine_similarity(a.float(), b.float(), dim=-1) for a, b in pairs])


def _opened(
    experiment: Experiment, variant: str, export: str, processor: ColQwen3Processor
) -> tuple[str, loading.Loaded | None]:
    """The packed kernel (or why there is none) and model with which AutoRound's loader opens an export."""
    if experiment.runtime.device != "cpu" or experiment.by_id[variant].bits is None:
        return "", None
    try:
        kernel = kernels.on_cpu(export, experiment.by_id[variant].bits)
    except ColqError as reason:
        return f"not opened: {reason}", None
    path, attention = str(experiment.checkpoint(variant, export)), experiment.runtime.attention
    model = loading.open_model(path, torch.float32, "cpu", attention, kernel)
    return kernel, loading.Loaded(variant, model, processor, kernels.census(model), 0.0)
