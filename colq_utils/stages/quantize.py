"""Base checkpoint and calibration set to quantized checkpoints, each proven to load and to agree with the base.

AutoRound (Cheng et al., 2023, arXiv:2309.05516) does the rounding; this module feeds it exact batches,
turns its logged errors into real ones, mends what it writes (tensors in a second file that loaders
overlook; a GPTQ config that makes them misread the vision tower; on a CPU, where it tunes in fp32,
everything it left alone in fp32) and records everything in a manifest. What is not quantized is the base's
byte for byte, and a checkpoint that is not exactly what `colq_utils.model.footprint` predicts ends the stage. A variant's folder appears only when complete; a finished one is not made again while its files are whole.
"""

import json
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from colq_utils.base import files, names, provenance
from colq_utils.base.config import RUNTIME_OPTIONS, CalibrationSet, Experiment, Variant
from colq_utils.base.errors import ColqError
from colq_utils.data import calibration
from colq_utils.fast import load
from colq_utils.model import (
    checkpoints,
    encode,
    footprint,
    hub,
    kernels,
    loading,
    packing,
    processing,
)
from colq_utils.model.autoround import listening, precision
from colq_utils.model.checkpoints import MANIFEST, base_digest, base_folder, tensor_bytes

#: Tried in this order, and recorded, when AutoRound itself fails on a layer set (the published fallbacks).
FALLBACKS = (
    {"method": "rtn", "calibration": None, "iters": 0},
    {"method": "rtn", "calibration": None, "iters": 0, "group_size": 32},
)
#: The published acceptance bar for the mean token cosine with the base, and its aim.
COSINE_BAR, COSINE_AIM = 0.90, 0.95
#: Least mean token cosine between a checkpoint as its numbers say and as a packed kernel of the loader computes it.
KERNEL_BAR = 0.99


def run(experiment: Experiment, variant: str) -> dict:
    """Make one variant's checkpoints, or return the manifest of those already made from the same inputs and still whole.

    Raises:
        ColqError: calibration set missing, quantization failed with every fallback, disk full.
    """
    spec = experiment.by_id[variant]
    folder = experiment.build("checkpoints", variant)
    fingerprint = _fingerprint(experiment, spec)
    if (folder / MANIFEST).exists():
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["fingerprint"] == fingerprint:
            damaged = [export for export in spec.exports if checkpoints.damage(folder / export)]
            if not damaged:
                return manifest
            logging.getLogger(__name__).warning(
                "%s: %s damaged or incomplete, making the variant again", variant, ", ".join(damaged)
            )
    with files.atomic(folder, folder=True) as target:
        start = time.perf_counter()
        used, fallback = _with_fallbacks(experiment, spec, target)
        for export in spec.exports:
            _require_predicted(experiment, variant, target / export, spec.bits, used.group_size, export)
        manifest = {
            "variant": variant,
            "fingerprint": fingerprint,
            "requested": spec.model_dump(exclude=RUNTIME_OPTIONS),
            "used": used.model_dump(exclude=RUNTIME_OPTIONS),
            "fallback": fallback,
            "quantize_s": time.perf_counter() - start,
            "seed": experiment.seed,
            "auto_round": provenance.version_of("auto-round"),
            "revision": files.sha256(*sorted((target / spec.exports[0]).glob("*.safetensors")))[:40],
            "exports": {name: {"tensor_bytes": tensor_bytes(target / name)} for name in spec.exports},
        }
        files.write_json(target / MANIFEST, manifest)
    return json.loads((folder / MANIFEST).read_text())


def _require_predicted(
    experiment: Experiment, variant: str, folder: Path, bits: int, group_size: int, export: str
) -> None:
    """Refuse a checkpoint that does not hold exactly the tensors predicted from the base's headers.

    Raises:
        ColqError: it does not; names the first tensors with their dtypes.
    """
    base = hub.read_headers(str(base_folder(experiment)))
    layout = packing.layout_of(hub.read_config(str(folder))["quantization_config"])
    words = (
        "auto_awq" if layout == "awq" else export
    )  # AutoRound's own format takes AWQ's layout for asymmetric weights
    lines = footprint.unlike(
        footprint.quantized(base, bits, group_size, words), hub.read_headers(str(folder))
    )
    if lines:
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise ColqError(
            f"{variant}, {export}: AutoRound wrote another checkpoint than predicted, nothing of it is kept: {'; '.join(lines[:3])}{more}. "
            f"Install the pinned versions (pip install -c requirements.lock -e .) and run the same command again"
        )


def _with_fallbacks(experiment: Experiment, spec: Variant, target: Path) -> tuple[Variant, str]:
    """Quantize as asked; if AutoRound fails, by each named fallback. Returns what was used and why."""
    if spec.method == "pack":
        _pack(experiment, spec, target)
        return spec, ""
    reasons = []
    for change in ({}, *FALLBACKS):
        attempt = spec.model_copy(update=change)
        if change and attempt == spec:
            continue
        shutil.rmtree(target)  # what a failed attempt wrote would be in the way of the next
        target.mkdir()
        try:
            _autoround(experiment, attempt, target)
            return attempt, "; ".join(reasons)
        except ColqError:
            raise
        except (
            Exception
        ) as error:  # AutoRound raises anything; the reason is recorded, and raised if nothing works
            if files.is_full(error):
                raise
            reasons.append(
                f"{attempt.method} group {attempt.group_size} failed: {type(error).__name__}: {error}"
            )
    raise ColqError("AutoRound failed with every fallback: " + "; ".join(reasons))


def _pack(experiment: Experiment, spec: Variant, target: Path) -> None:
    """Round and pack without AutoRound, tensor by tensor, into `target`/auto_round."""
    folder = target / "auto_round"
    folder.mkdir()
    packing.write_checkpoint(
        base_folder(experiment), folder, spec.bits, spec.group_size, experiment.runtime.device
    )


def _autoround(experiment: Experiment, spec: Variant, target: Path) -> None:
    """One call of AutoRound, from a fresh copy of the base, into `target`/<export>."""
    os.environ["AR_WORK_SPACE"] = str(
        target.parent / "scratch"
    )  # else it leaves a folder where the user stands
    from auto_round import AutoRound

    model = loading.open_model(
        experiment.model_path,
        getattr(torch, experiment.runtime.dtype),
        experiment.runtime.device,
        experiment.runtime.attention,
        revision=experiment.model.revision,
    ).requires_grad_(True)
    processor = processing.from_pretrained(
        experiment.model_path, experiment.model.revision, experiment.model.max_visual_tokens
    )
    options = {"iters": 0, "disable_opt_rtn": True} | precision(experiment.runtime.device)
    if spec.method == "autoround":
        batches, seqlen, rows = _batches(experiment, spec.calibration, processor)
        options = precision(experiment.runtime.device) | {
            "iters": spec.iters,
            "dataset": batches,
            "seqlen": seqlen,
            "nsamples": rows * len(batches),
            "batch_size": rows,
        }
    blocks = model.config.text_config.num_hidden_layers
    with listening(
        target.parent / "autoround.log",
        blocks if spec.method == "autoround" else 0,
        spec.name(experiment.model.size),
    ):
        engine = AutoRound(
            model,
            tokenizer=processor.tokenizer,
            processor=processor,
            scheme=f"W{spec.bits}A16",
            sym=spec.sym,
            group_size=spec.group_size,
            device_map=experiment.runtime.device,
            seed=experiment.seed,
            enable_torch_compile=False,
            **options,
        )
        _, folders = engine.quantize_and_save(str(target / "raw"), format=",".join(spec.exports))
    for export, made in zip(spec.exports, folders if isinstance(folders, list) else [folders], strict=True):
        os.replace(made, target / export)
        _settle(target / export, export, processor, base_folder(experiment))
    _remove_empty(target / "raw")
    shutil.rmtree(target.parent / "scratch", ignore_errors=True)


def _batches(experiment: Experiment, set_id: str, processor) -> tuple[list[dict], int, int]:
    """A calibration set as AutoRound wants it: dicts of exactly `batch_rows` rows; with its length and rows."""
    spec = _set(experiment, set_id)
    content = calibration.load(experiment, set_id)
    if spec.kind == "pages":
        from PIL import Image

        images = [Image.fromarray(page.numpy()) for page in content["pages"]]
        groups = [
            dict(processor.pages(images[i : i + spec.batch_rows]))
            for i in range(0, len(images), spec.batch_rows)
        ]
        return groups, groups[0]["input_ids"].shape[1], spec.batch_rows
    ids = content["input_ids"]  # (blocks, seqlen)
    return (
        [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids.split(spec.batch_rows)],
        spec.seqlen,
        spec.batch_rows,
    )


def _set(experiment: Experiment, set_id: str) -> CalibrationSet:
    return next(s for s in experiment.calibration.sets if s.id == set_id)


def _settle(folder: Path, export: str, processor, base: Path) -> None:
    """Make what AutoRound wrote readable by every loader; see the module's first lines."""
    extra, index = folder / "model_extra_tensors.safetensors", folder / "model.safetensors.index.json"
    if extra.exists() and (folder / "model.safetensors").exists():
        renamed = {
            "model.safetensors": "model-00001-of-00002.safetensors",
            extra.name: "model-00002-of-00002.safetensors",
        }
        content = json.loads(index.read_text())
        content["weight_map"] = {tensor: renamed[file] for tensor, file in content["weight_map"].items()}
        for old, new in renamed.items():
            os.replace(folder / old, folder / new)
        files.write_json(index, content)
    _restore(folder, base)
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    # AutoRound lists names in the order of a set, which changes from one process to the next
    quantization = {
        key: sorted(value) if isinstance(value, list) else value for key, value in quantization.items()
    }
    if export == "auto_gptq":
        quantization["block_name_to_quantize"] = names.BLOCKS
    files.write_json(folder / "config.json", packing.export_config(base, quantization))
    files.write_json(folder / "quantization_config.json", quantization)
    processor.save_pretrained(folder)


def _restore(folder: Path, base: Path) -> None:
    """Give back the base's own bytes to every tensor that was not quantized, and leave out the unused ``lm_head``.

    AutoRound stores them in the dtype it tuned in, and copies the head over (1.2 GB in the 8B).

    Raises:
        ColqError: AutoRound changed a tensor that it should have left alone.
    """
    stored = {name: file for file in sorted(base.glob("*.safetensors")) for name in _names(file)}
    index, dropped = folder / "model.safetensors.index.json", set()
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {
            name: _original(name, tensor, stored)
            for name, tensor in load_file(path).items()
            if "lm_head." not in name
        }
        dropped |= _names(path) - tensors.keys()
        path.unlink()  # rewritten whole: the folder itself appears only when it is complete
        if tensors:
            save_file(tensors, path, metadata={"format": "pt"})
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {
            name: file for name, file in content["weight_map"].items() if name not in dropped
        }
        content["metadata"] = content.get("metadata", {}) | {"total_size": tensor_bytes(folder)}
        files.write_json(index, content)


def _names(path: Path) -> set[str]:
    """Names of the tensors in a file."""
    return {tensor.name for tensor in hub.file_headers(path)}


def _original(name: str, tensor: torch.Tensor, stored: dict[str, Path]) -> torch.Tensor:
    """The base's tensor of this name, if it has one; AutoRound may have stored it in another dtype, not with other numbers."""
    if name not in stored:
        return tensor
    with safe_open(stored[name], "pt") as content:
        original = content.get_tensor(name)
    if not torch.equal(original.to(tensor.dtype), tensor):
        raise ColqError(
            f"AutoRound changed {name}, which is not quantized; install the pinned versions (requirements.lock) and run the same command again"
        )
    return original


def _remove_empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()


def _fingerprint(experiment: Experiment, spec: Variant) -> str:
    """Digest of everything that decides the checkpoint's bits."""
    inputs = [
        base_digest(experiment),
        spec.model_dump_json(exclude=RUNTIME_OPTIONS),
        str(experiment.seed),
        provenance.version_of("auto-round"),
        experiment.runtime.dtype,
    ]
    if spec.calibration:
        path = files.required(
            calibration.path_of(experiment, spec.calibration), f"calibrate EXPERIMENT={experiment.name}"
        )
        inputs.append(files.sha256(path))
        if (
            _set(experiment, spec.calibration).kind == "pages"
        ):  # kept as pictures: the pixel budget decides their tokens
            inputs.append(str(experiment.model.max_visual_tokens))
    return files.sha256_bytes("\n".join(inputs).encode())


def compare(
    experiment: Experiment, variant: str, export: str, texts: list[str], images: list, base: dict
) -> dict:
    """Load an export afresh and compare its embeddings with the base's, on text and on page images.

    Args:
        base: what `embeddings` gave for the base on the same texts and images, its headers and bytes.

    Returns:
        One row of the acceptance table. ``opened_by`` is the kernel with which AutoRound's own loader, the users' way,
        opens the export here, ``opened_cosine`` how well that agrees; on CUDA the comparison itself is made that way.
    """
    spec = experiment.by_id[variant]
    manifest = files.read_json(
        experiment.build("checkpoints", variant, MANIFEST), f"quantize EXPERIMENT={experiment.name}"
    )
    size = manifest["exports"][export]["tensor_bytes"]
    row = {
        "variant": variant,
        "scheme": spec.scheme,
        "method": manifest["used"]["method"],
        "calibration": manifest["used"]["calibration"],
        "group_size": manifest["used"]["group_size"],
        "sym": spec.sym,
        "iters": manifest["used"]["iters"],
        "export": export,
        "backend": spec.backend or experiment.runtime.backend,
        "quantize_s": manifest["quantize_s"],
        "tensor_bytes": size,
        "base_bytes": base["tensor_bytes"],
        "predicted_bytes": footprint.total(
            footprint.quantized(base["headers"], spec.bits, manifest["used"]["group_size"], export)
        ),
        "loads": False,
        "runs": False,
        "finite": False,
        "fallback": manifest["fallback"],
        "revision": manifest["revision"],
    }
    own = embeddings(load.load(experiment, variant, export), texts, images)
    row |= {
        "loads": True,
        "runs": True,
        "finite": all(bool(torch.isfinite(v).all()) for v in own["query"] + own["page"]),
    }
    for kind in ("query", "page"):
        cosine = _cosines(own[kind], base[kind])
        row |= {f"cosine_{kind}_mean": cosine.mean().item(), f"cosine_{kind}_min": cosine.min().item()}
    row |= _opened(experiment, variant, export, texts[:4], images[:1], own)
    close = (
        min(row["cosine_query_mean"], row["cosine_page_mean"]) > COSINE_BAR or experiment.model.is_random
    )  # says nothing of random weights
    opens = (
        row["opened_by"] == ""
        or row["opened_by"].startswith("not opened")
        or row["opened_cosine"] >= KERNEL_BAR
    )  # a NaN is no agreement
    row["accepted"] = row["finite"] and size < base["tensor_bytes"] and close and opens
    return row


def _cosines(some: list[torch.Tensor], others: list[torch.Tensor]) -> torch.Tensor:
    """Cosine of each token's two embeddings, ``(n_tokens,)`` over all texts or pages."""
    return torch.cat(
        [torch.cosine_similarity(a.float(), b.float(), dim=-1) for a, b in zip(some, others, strict=True)]
    )


def _opened(
    experiment: Experiment, variant: str, export: str, texts: list[str], images: list, own: dict
) -> dict:
    """Open an export as users do, by AutoRound's loader on a packed kernel of this CPU; text and a page, for either may break alone."""
    if experiment.runtime.device != "cpu":
        return {"opened_by": "", "opened_cosine": float("nan")}
    try:
        kernel = kernels.on_cpu(export, experiment.by_id[variant].bits)
    except ColqError as reason:
        return {"opened_by": f"not opened: {reason}", "opened_cosine": float("nan")}
    model = loading.open_model(
        str(experiment.checkpoint(variant, export)),
        torch.float32,
        "cpu",
        experiment.runtime.attention,
        kernel,
    )
    processor = processing.from_pretrained(
        experiment.model_path, experiment.model.revision, experiment.model.max_visual_tokens
    )
    packed = embeddings(loading.Loaded(variant, model, processor, kernels.census(model), 0.0), texts, images)
    cosines = [
        _cosines(packed[kind], own[kind][: len(packed[kind])]).mean().item() for kind in ("query", "page")
    ]
    return {"opened_by": kernel, "opened_cosine": float(np.min(cosines))}


def embeddings(loaded: loading.Loaded, texts: list[str], images: list) -> dict:
    """Query and page embeddings of a loaded variant, a tensor ``(n_tokens, dim)`` each."""
    return {"query": encode.queries(loaded, texts), "page": encode.pages(loaded, images)}


def accept(experiment: Experiment, texts: list[str], images: list) -> pd.DataFrame:
    """The acceptance table: every export of every quantized variant against the base."""
    base = embeddings(load.load(experiment, experiment.base), texts, images)
    base["headers"] = hub.read_headers(experiment.model_path, experiment.model.revision)
    base["tensor_bytes"] = footprint.total(t for t in base["headers"] if t.part != names.UNUSED)
    return pd.DataFrame(
        [
            compare(experiment, variant, export, texts, images, base)
            for variant, spec in experiment.quantized.items()
            for export in spec.exports
        ]
    )
