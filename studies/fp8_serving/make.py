"""Inspect, calibrate, quantize: the first three stages of a detection study."""

import contextlib
import io
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from colq_utils.base import files, provenance
from colq_utils.base.config import ROOT
from colq_utils.model import hub
from studies.fp8_serving import boxes, engine, fp8, pictures, scenes
from studies.fp8_serving.settings import DetectionExperiment

_PARTS = {
    "blocks": ("model.layers.", "model.language_model.layers."),
    "vision": ("visual.", "model.visual."),
    "head": ("lm_head",),
}


def tensors(folder: Path) -> pd.DataFrame:
    """Every tensor of a checkpoint from the headers alone: name, part, shape, dtype, bytes, whether FP8 takes it."""
    rows = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        for t in hub.file_headers(path):
            part = next((p for p, starts in _PARTS.items() if t.name.startswith(starts)), "other")
            taken = part == "blocks" and len(t.shape) == 2 and t.name.endswith("weight")
            shape, channels = "x".join(map(str, t.shape)), t.shape[0] if taken else 0
            rows.append((t.name, part, shape, t.dtype, t.bytes, taken, channels))
    return pd.DataFrame(rows, columns=["tensor", "part", "shape", "dtype", "bytes", "fp8", "channels"])


def stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of a checkpoint by part, as stored."""
    return {
        part: int(size) for part, size in tensors(folder).groupby("part", sort=False)["bytes"].sum().items()
    }


def inspect(experiment: DetectionExperiment) -> pd.DataFrame:
    """Bytes by part in BF16 and as each recipe will store them, predicted; written to ``inspect/parts.csv``.

    FP8 stores a byte a weight and 4 bytes a scale: one an output channel (dynamic), or two a matrix (static).
    """
    found = tensors(Path(experiment.model_path))
    scales = {"fp8-dynamic": 4 * found["channels"], "fp8-static": 8 * found["fp8"]}
    for recipe in experiment.variants[1:]:
        found[f"{recipe}_bytes"] = np.where(
            found["fp8"], found["bytes"] // 2 + scales[recipe], found["bytes"]
        )
    table = found.groupby("part", sort=False)[[c for c in found if c.endswith("bytes")]].sum()
    table = pd.concat([table, table.sum().to_frame("all").T]).rename_axis("part").reset_index()
    files.write_table(experiment.results("inspect") / "parts.csv", table)
    files.write_json(experiment.results("inspect") / "environment.json", provenance.collect(experiment))
    return table


def calibrate(experiment: DetectionExperiment) -> pd.DataFrame:
    """Draw the calibration scenes of the static recipe; none of them is a held-out picture (compared by content)."""
    rows = []
    for number in range(experiment.pictures.calibration):
        scene, stream = scenes.draw([scenes.TRAINING, experiment.seed, number]), io.BytesIO()
        scene.image.save(stream, "PNG")
        rows.append(
            {
                "number": number,
                "package": scene.package,
                "width": scene.image.width,
                "height": scene.image.height,
                "image": stream.getvalue(),
            }
        )
    table = pd.DataFrame(rows)
    files.write_table(experiment.build("calibration") / "scenes.parquet", table)
    held_out = {pictures.decode(p.data).resize((32, 32)).tobytes() for p in pictures.load()}
    shared = sum(pictures.decode(data).resize((32, 32)).tobytes() in held_out for data in table["image"])
    summary = (
        table.groupby("package").size().rename("scenes").reset_index().assign(shared_with_held_out=shared)
    )
    files.write_table(experiment.results("calibrate") / "scenes.csv", summary)
    files.write_json(experiment.results("calibrate") / "environment.json", provenance.collect(experiment))
    return summary


def calibration_pictures(experiment: DetectionExperiment) -> list[bytes]:
    """The calibration scenes, encoded."""
    return list(
        files.read_table(
            experiment.build("calibration") / "scenes.parquet", f"calibrate EXPERIMENT={experiment.name}"
        )["image"]
    )


def quantize(experiment: DetectionExperiment) -> pd.DataFrame:
    """Make the checkpoint of every recipe; the static one from the input ranges on the calibration scenes."""
    rows, source, ranges = [], Path(experiment.model_path), None
    for recipe in experiment.variants[1:]:
        start, model = time.perf_counter(), fp8.load(source)
        if recipe == "fp8-static":
            given, names = calibration_pictures(experiment), fp8.targets(model)
            ranges = fp8.input_ranges(
                model, names, engine.InProcess(source, model=model, fused=False).answer, given
            )
            table = pd.DataFrame({"layer": names, "largest_input": [ranges[name] for name in names]})
            files.write_table(experiment.results("quantize") / "ranges.csv", table)
        folder = fp8.save(fp8.quantize(model, recipe, ranges), recipe, source, experiment.folder(recipe))
        rows.append(
            {
                "variant": experiment.variant_id(recipe),
                "recipe": recipe,
                "quantize_s": time.perf_counter() - start,
                "layers": len(fp8.targets(fp8.load(source))),
                "revision": files.sha256(folder / "model.safetensors")[:12],
            }
        )
    return pd.DataFrame(rows)


def accept(experiment: DetectionExperiment) -> pd.DataFrame:
    """Open every checkpoint afresh: strict loading, finite scores, size, and the same answers from transformers' own loader.

    ``transformers`` is None where compressed-tensors is not installed. Written to ``quantize/variants.csv``.
    """
    before, rows = stored_bytes(Path(experiment.model_path)), []
    given = [p.data for p in pictures.load(count=experiment.pictures.compared)]
    for variant in experiment.variants:
        model = fp8.load(experiment.folder(variant))
        sizes = stored_bytes(experiment.folder(variant))
        finite = all(bool(torch.isfinite(tensor.float()).all()) for tensor in model.state_dict().values())
        mine = [a.text for a in engine.InProcess(experiment.folder(variant), model=model).answer(given)]
        other, version = through_transformers(experiment.folder(variant), given)
        rows.append(
            {
                "variant": experiment.variant_id(variant),
                "loads": True,
                "finite": finite,
                "boxes": sum(boxes.parse(t) is not None for t in mine),
                "of": len(mine),
                "transformers": other and sum(a == b for a, b in zip(mine, other)),
                "compressed_tensors": version,
                "blocks_bytes": sizes["blocks"],
                "blocks_share": sizes["blocks"] / before["blocks"],
                "model_bytes": sum(sizes.values()),
                "model_share": sum(sizes.values()) / sum(before.values()),
            }
        )
    table = pd.DataFrame(rows)
    files.write_table(experiment.results("quantize") / "variants.csv", table)
    files.write_json(experiment.results("quantize") / "environment.json", provenance.collect(experiment))
    return table


def through_transformers(
    folder: Path, given: list[bytes], dtype: torch.dtype = torch.float32, noise: float = 0.0, seed: int = 0
) -> tuple[list[str] | None, str | None]:
    """Answers of ``Qwen2VLForConditionalGeneration.from_pretrained(folder).generate``; None without compressed-tensors.

    Args:
        noise: standard deviation of a relative disturbance of what enters the language model's Linear layers, drawn from
            `seed`; as an engine that rounds elsewhere disturbs it.
    """
    from transformers import Qwen2VLForConditionalGeneration

    version = provenance.version_of("compressed-tensors")
    if version is None and "quantization_config" in json.loads((folder / "config.json").read_text()):
        return None, None
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    torch.manual_seed(seed)
    for name in fp8.targets(model) if noise else ():
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given: (given[0] * (1 + noise * torch.randn_like(given[0])), *given[1:])
        )
    shell = engine.InProcess(folder, model=model, fused=False)
    texts = []
    for data in given:
        image = engine.generate.fitted(pictures.decode(data), *shell.limits)
        patches = engine.generate.patches([image], shell.mean, shell.std)[0]
        cells = image.width // 28 * (image.height // 28)
        ids = torch.tensor([shell.prompt.ahead + [model.config.image_token_id] * cells + shell.prompt.behind])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=patches.to(dtype),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            image_grid_thw=torch.tensor([[1, image.height // 14, image.width // 14]]),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=shell.prompt.stop,
        )
        texts.append(shell.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts, version


def seven_b() -> Path:
    """Where the committed results at 7B dimensions lie."""
    return ROOT / "results" / "nutrition-fp8-7b"
