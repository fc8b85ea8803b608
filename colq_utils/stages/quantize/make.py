"""Checkpoints of a variant, made from the base and a calibration set, with a manifest of what was done.

AutoRound (Cheng et al., 2023, arXiv:2309.05516) does the rounding; this module feeds it exact batches, turns
its logged errors into real ones, and mends what it writes: tensors in a second file that loaders overlook; a
GPTQ config that makes them misread the vision tower; on a CPU, where it tunes in fp32, all it left alone in
fp32. What is not quantized is the base's byte for byte. A folder appears only when complete and as predicted.
"""

import json
import logging
import os
import shutil
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from colq_utils.base import files, names, provenance
from colq_utils.base.config import CalibrationSet, Experiment, Variant
from colq_utils.base.errors import ColqError
from colq_utils.data import calibration
from colq_utils.model import autoround, footprint, fp8_export, hub, loading, nf4, packing, processing
from colq_utils.model.checkpoints import MANIFEST, base_digest, base_folder, damage, tensor_bytes
from colq_utils.model.complete import complete

#: Tried in this order, and recorded, when AutoRound itself fails on a layer set (the published fallbacks).
RTN = {"method": "rtn", "calibration": None, "iters": 0}
FALLBACKS = (RTN, RTN | {"group_size": 32})
#: AutoRound's names for the two files it may leave, and what loaders expect of shards.
SHARDS = {
    "model.safetensors": "model-00001-of-00002.safetensors",
    "model_extra_tensors.safetensors": "model-00002-of-00002.safetensors",
}


def run(experiment: Experiment, variant: str) -> dict:
    """Make a variant's checkpoints; returns their manifest, or that of those already made and still whole.

    Raises:
        ColqError: calibration set missing, quantization failed with every fallback, disk full.
    """
    spec, folder = experiment.by_id[variant], experiment.build("checkpoints", variant)
    fingerprint, kept = _fingerprint(experiment, spec), folder / MANIFEST
    manifest = json.loads(kept.read_text()) if kept.exists() else {}
    if manifest.get("fingerprint") == fingerprint:
        damaged = ", ".join(export for export in spec.exports if damage(folder / export))
        if not damaged:
            for export in spec.exports:
                complete(folder / export)
            return manifest
        logger = logging.getLogger(__name__)
        logger.warning("%s: %s damaged or incomplete, making the variant again", variant, damaged)
    with files.atomic(folder, folder=True) as target:
        start = time.perf_counter()
        used, fallback = _with_fallbacks(experiment, spec, target)
        for export in spec.exports:
            _require_predicted(experiment, variant, used, target / export)
        manifest = {
            "variant": variant,
            "fingerprint": fingerprint,
            "requested": spec.model_dump(exclude=spec.runtime_options),
            "used": used.model_dump(exclude=used.runtime_options),
            "fallback": fallback,
            "quantize_s": time.perf_counter() - start,
            "seed": experiment.seed,
            "auto_round": provenance.version_of("auto-round"),
            "bitsandbytes": provenance.version_of("bitsandbytes"),
            "revision": files.sha256(*sorted((target / spec.exports[0]).glob("*.safetensors")))[:40],
            "exports": {name: {"tensor_bytes": tensor_bytes(target / name)} for name in spec.exports},
        }
        files.write_json(target / MANIFEST, manifest)
    return json.loads(kept.read_text())


def _require_predicted(experiment: Experiment, variant: str, used: Variant, folder: Path) -> None:
    """Refuse a checkpoint that does not hold exactly the tensors predicted from the base's headers."""
    layout = packing.layout_of(hub.read_config(str(folder))["quantization_config"])
    # AutoRound's own format takes AWQ's layout for asymmetric weights
    words = "auto_awq" if layout == "awq" else folder.name
    base = hub.read_headers(str(base_folder(experiment)))
    predicted = footprint.exported(base, used, words)
    lines = footprint.unlike(predicted, hub.read_headers(str(folder)))
    if lines:
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise ColqError(
            f"{variant}, {folder.name}: another checkpoint was written than predicted, nothing of it is "
            f"kept: {'; '.join(lines[:3])}{more}. Install the pinned versions "
            "(pip install -c requirements.lock -e .) and run the same command again"
        )


def _with_fallbacks(experiment: Experiment, spec: Variant, target: Path) -> tuple[Variant, str]:
    """Quantize as asked; if AutoRound fails, by each named fallback. Returns what was used and why."""
    if spec.method in ("pack", "base"):  # no work for AutoRound
        base, folder, device = base_folder(experiment), target / spec.export, experiment.runtime.device
        folder.mkdir()
        if spec.bits is None:
            fp8_export.write_checkpoint(base, folder, spec.vision is not None)
        elif spec.is_nf4:
            nf4.write_checkpoint(base, folder, device)
        else:
            packing.write_checkpoint(base, folder, spec.bits, spec.group_size, device)
        complete(folder)
        return spec, ""
    reasons = []
    fallbacks = [spec.model_copy(update=change) for change in FALLBACKS]
    for attempt in (spec, *(fallback for fallback in fallbacks if fallback != spec)):
        shutil.rmtree(target)  # what a failed attempt wrote would be in the way of the next
        target.mkdir()
        try:
            _autoround(experiment, attempt, target)
            return attempt, "; ".join(reasons)
        except Exception as error:  # whatever AutoRound raises: it is recorded
            if isinstance(error, ColqError) or files.is_full(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            reasons.append(f"{attempt.method} group {attempt.group_size} failed: {reason}")
    raise ColqError("AutoRound failed with every fallback: " + "; ".join(reasons))


def _autoround(experiment: Experiment, spec: Variant, target: Path) -> None:
    """One call of AutoRound, from a fresh copy of the base, into `target`/<export>."""
    scratch = target.parent / "scratch"
    os.environ["AR_WORK_SPACE"] = str(scratch)  # else it leaves a folder where the user stands
    from auto_round import AutoRound

    runtime, tuned = experiment.runtime, spec.method == "autoround"
    path, revision = experiment.model_path, experiment.model.revision
    dtype = getattr(torch, runtime.dtype)
    model = loading.open_model(path, dtype, runtime.device, runtime.attention, revision=revision)
    model.requires_grad_(True)
    processor = processing.from_pretrained(path, revision, experiment.model.max_visual_tokens)
    options = {"iters": 0, "disable_opt_rtn": True}
    if tuned:
        batches = _batches(experiment, spec.calibration, processor)
        rows, seqlen = batches[0]["input_ids"].shape
        options = {"iters": spec.iters, "dataset": batches, "nsamples": rows * len(batches)}
        options |= {"seqlen": seqlen, "batch_size": rows}
    blocks = model.config.text_config.num_hidden_layers if tuned else 0
    with autoround.listening(target.parent / "autoround.log", blocks, spec.name(experiment.model.size)):
        engine = AutoRound(
            model,
            tokenizer=processor.tokenizer,
            processor=processor,
            scheme=f"W{spec.bits}A16",
            sym=spec.sym,
            group_size=spec.group_size,
            device_map=runtime.device,
            seed=experiment.seed,
            enable_torch_compile=False,
            **options,
            **autoround.precision(runtime.device),
        )
        _, folders = engine.quantize_and_save(str(target / "raw"), format=",".join(spec.exports))
    written = folders if isinstance(folders, list) else [folders]
    for export, folder in zip(spec.exports, written, strict=True):
        os.replace(folder, target / export)
        _settle(target / export, export, processor, base_folder(experiment))
    shutil.rmtree(target / "raw")
    shutil.rmtree(scratch, ignore_errors=True)


def _batches(experiment: Experiment, set_id: str, processor: processing.ColQwen3Processor) -> list[dict]:
    """A calibration set as AutoRound wants it: the inputs of exactly `batch_rows` rows each."""
    content, rows = calibration.load(experiment, set_id), _set(experiment, set_id).batch_rows
    if "input_ids" in content:
        blocks = content["input_ids"].split(rows)  # (batch_rows, seqlen) each
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in blocks]
    batches = content["pages"].numpy().reshape(-1, rows, *content["pages"].shape[1:])
    return [dict(processor.pages([Image.fromarray(page) for page in batch])) for batch in batches]


def _set(experiment: Experiment, set_id: str) -> CalibrationSet:
    return next(s for s in experiment.calibration.sets if s.id == set_id)


def _settle(folder: Path, export: str, processor: processing.ColQwen3Processor, base: Path) -> None:
    """Make what AutoRound wrote readable by every loader; see the module's first lines."""
    _restore(folder, base)
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    # AutoRound lists names in the order of a set, which changes from one process to the next
    quantization = {k: sorted(v) if isinstance(v, list) else v for k, v in quantization.items()}
    if export == "auto_gptq":
        quantization["block_name_to_quantize"] = names.BLOCKS
    files.write_json(folder / "config.json", packing.export_config(base, quantization))
    files.write_json(folder / "quantization_config.json", quantization)
    processor.save_pretrained(folder)
    complete(folder)


def _restore(folder: Path, base: Path) -> None:
    """The base's own bytes for every tensor that was not quantized, no unused ``lm_head``, one name a shard.

    AutoRound stores them in the dtype it tuned in, and copies the head over (1.2 GB in the 8B).

    Raises:
        ColqError: AutoRound changed a tensor that it should have left alone.
    """
    stored = {t.name: path for path in sorted(base.glob("*.safetensors")) for t in hub.file_headers(path)}
    shards = sorted(folder.glob("*.safetensors"))
    renamed = SHARDS if SHARDS.keys() <= {path.name for path in shards} else {}
    kept = set()
    for path in shards:
        used = {name: tensor for name, tensor in load_file(path).items() if "lm_head." not in name}
        tensors = {name: _original(name, tensor, stored) for name, tensor in used.items()}
        kept |= tensors.keys()
        path.unlink()  # rewritten whole: the folder itself appears only when it is complete
        if tensors:
            save_file(tensors, folder / renamed.get(path.name, path.name), metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        places = {name: file for name, file in content["weight_map"].items() if name in kept}
        content["weight_map"] = {name: renamed.get(file, file) for name, file in places.items()}
        content["metadata"] = content.get("metadata", {}) | {"total_size": tensor_bytes(folder)}
        files.write_json(index, content)


def _original(name: str, tensor: torch.Tensor, stored: dict[str, Path]) -> torch.Tensor:
    """The base's tensor of this name, if any; AutoRound may have changed its dtype, not its numbers."""
    if name not in stored:
        return tensor
    with safe_open(stored[name], "pt") as content:
        original = content.get_tensor(name)
    if not torch.equal(original.to(tensor.dtype), tensor):
        raise ColqError(
            f"AutoRound changed {name}, which is not quantized; install the pinned versions "
            "(requirements.lock) and run the same command again"
        )
    return original


def _fingerprint(experiment: Experiment, spec: Variant) -> str:
    """Digest of everything that decides the checkpoint's bits."""
    settings = spec.model_dump_json(exclude=spec.runtime_options)
    quantizer = provenance.version_of("bitsandbytes" if spec.is_nf4 else "auto-round")
    inputs = [base_digest(experiment), settings, str(experiment.seed), str(quantizer)]
    inputs.append(experiment.runtime.dtype)
    if spec.calibration:
        path = calibration.path_of(experiment, spec.calibration)
        inputs.append(files.sha256(files.required(path, f"calibrate EXPERIMENT={experiment.name}")))
        if _set(experiment, spec.calibration).kind != "text":  # pictures: the budget decides their tokens
            inputs.append(str(experiment.model.max_visual_tokens))
    return files.sha256_bytes("\n".join(inputs).encode())
