"""Inspect, calibrate, quantize: the first three stages of a detection study."""

import contextlib
import io
import json
import time
from pathlib import Path

import pandas as pd
import torch

from colq_utils.base import files, provenance
from colq_utils.model import hub
from studies.fp8_serving import boxes, checkpoint, engine, fp8, generate, pictures, scenes
from studies.fp8_serving.settings import DetectionExperiment


def store(experiment: DetectionExperiment, stage: str, tables: dict[str, pd.DataFrame], **more) -> None:
    """Write a stage's tables by file name, and to ``environment.json`` their provenance and `more`."""
    for name, table in tables.items():
        files.write_table(experiment.results(stage) / name, table)
    files.write_json(experiment.results(stage) / "environment.json", provenance.collect(experiment) | more)


def tensors(folder: Path) -> pd.DataFrame:
    """Every tensor of a checkpoint from its headers, and whether FP8 takes it."""
    rows = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        for t in hub.file_headers(path):
            part = fp8.part_of(t.name)
            taken = part == "blocks" and len(t.shape) == 2 and t.name.endswith("weight")
            shape, channels = "x".join(map(str, t.shape)), t.shape[0] if taken else 0
            rows.append((t.name, part, shape, t.dtype, t.bytes, taken, channels))
    return pd.DataFrame(rows, columns=["tensor", "part", "shape", "dtype", "bytes", "fp8", "channels"])


def stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of a checkpoint by part, as stored."""
    return tensors(folder).groupby("part", sort=False)["bytes"].sum().to_dict()


def inspect(experiment: DetectionExperiment) -> pd.DataFrame:
    """Bytes by part in BF16 and as each recipe will store them, predicted; written to ``inspect/parts.csv``.

    FP8 stores a byte a weight and 4 bytes a scale: one an output channel (dynamic), or two a matrix (static).
    """
    stored = tensors(Path(experiment.model_path))
    scales = {"fp8-dynamic": 4 * stored["channels"], "fp8-static": 8 * stored["fp8"]}
    for recipe in experiment.variants[1:]:
        small = stored["bytes"] // 2 + scales[recipe]
        stored[f"{recipe}_bytes"] = stored["bytes"].mask(stored["fp8"], small)
    table = stored.groupby("part", sort=False)[[c for c in stored if c.endswith("bytes")]].sum()
    table = pd.concat([table, table.sum().to_frame("all").T]).rename_axis("part").reset_index()
    store(experiment, "inspect", {"parts.csv": table})
    return table


def calibrate(experiment: DetectionExperiment) -> pd.DataFrame:
    """Draw the calibration scenes of the static recipe; none is a held-out picture (compared by content)."""
    rows = []
    for number in range(experiment.pictures.calibration):
        scene = scenes.draw([scenes.TRAINING, experiment.seed, number])
        size = {"width": scene.image.width, "height": scene.image.height}
        image = pictures.encode(scene.image, "PNG")
        rows.append({"number": number, "package": scene.package, **size, "image": image})
    table = pd.DataFrame(rows)
    files.write_table(experiment.build("calibration") / "scenes.parquet", table)
    held_out = {_thumbnail(p.data) for p in pictures.load()}
    shared = sum(_thumbnail(data) in held_out for data in table["image"])
    summary = table.groupby("package").size().rename("scenes").reset_index()
    summary["shared_with_held_out"] = shared
    store(experiment, "calibrate", {"scenes.csv": summary})
    return summary


def _thumbnail(data: bytes) -> bytes:
    return pictures.decode(data).resize((32, 32)).tobytes()


def calibration_pictures(experiment: DetectionExperiment) -> list[bytes]:
    """The calibration scenes, encoded."""
    path = experiment.build("calibration") / "scenes.parquet"
    return files.read_table(path, f"calibrate EXPERIMENT={experiment.name}")["image"].tolist()


def quantize(experiment: DetectionExperiment) -> pd.DataFrame:
    """Make the checkpoint of every recipe; the static one from the input ranges on the calibration scenes."""
    rows, source, ranges = [], Path(experiment.model_path), None
    for recipe in experiment.variants[1:]:
        start, model = time.perf_counter(), checkpoint.load(source)
        names = fp8.targets(model)
        if recipe == "fp8-static":
            runner = engine.InProcess(source, model=model, fused=False)
            ranges = fp8.input_ranges(model, names, runner.answer, calibration_pictures(experiment))
            table = pd.DataFrame({"layer": names, "largest_input": [ranges[name] for name in names]})
            files.write_table(experiment.results("quantize") / "ranges.csv", table)
        fp8.quantize(model, recipe, ranges)
        folder = checkpoint.save(model, recipe, source, experiment.folder(recipe))
        seconds, revision = time.perf_counter() - start, files.sha256(folder / "model.safetensors")[:12]
        row = {"variant": experiment.variant_id(recipe), "recipe": recipe, "quantize_s": seconds}
        rows.append(row | {"layers": len(names), "revision": revision})
    return pd.DataFrame(rows)


def accept(experiment: DetectionExperiment) -> pd.DataFrame:
    """Open every checkpoint afresh: strict loading, finite weights, size, answers of transformers' loader.

    ``transformers`` is None where compressed-tensors is not installed. Written to ``quantize/variants.csv``.
    """
    before, rows = stored_bytes(Path(experiment.model_path)), []
    given = [p.data for p in pictures.load(count=experiment.pictures.compared)]
    for variant in experiment.variants:
        folder = experiment.folder(variant)
        model, sizes = checkpoint.load(folder), stored_bytes(folder)
        finite = all(bool(torch.isfinite(tensor.float()).all()) for tensor in model.state_dict().values())
        own = [a.text for a in engine.InProcess(folder, model=model).answer(given)]
        other, version = through_transformers(folder, given)
        rows.append(
            {
                "variant": experiment.variant_id(variant),
                "loads": True,
                "finite": finite,
                "boxes": sum(boxes.parse(text) is not None for text in own),
                "of": len(own),
                "transformers": other and sum(a == b for a, b in zip(own, other)),
                "compressed_tensors": version,
                "blocks_bytes": sizes["blocks"],
                "blocks_share": sizes["blocks"] / before["blocks"],
                "model_bytes": sum(sizes.values()),
                "model_share": sum(sizes.values()) / sum(before.values()),
            }
        )
    table = pd.DataFrame(rows)
    store(experiment, "quantize", {"variants.csv": table})
    return table


def through_transformers(
    folder: Path, given: list[bytes], dtype: torch.dtype = torch.float32, noise: float = 0.0, seed: int = 0
) -> tuple[list[str] | None, str | None]:
    """Answers of transformers' own loader and ``generate``; None without compressed-tensors.

    Args:
        noise: standard deviation of a relative disturbance of what enters the language model's Linear layers,
            drawn from `seed`; as an engine that rounds elsewhere disturbs it.

    Returns:
        The answers and the version of compressed-tensors.
    """
    from transformers import Qwen2VLForConditionalGeneration

    version = provenance.version_of("compressed-tensors")
    if version is None and "quantization_config" in json.loads((folder / "config.json").read_text()):
        return None, None
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    torch.manual_seed(seed)

    def disturb(_, inputs: tuple) -> tuple:
        return inputs[0] * (1 + noise * torch.randn_like(inputs[0])), *inputs[1:]

    for name in fp8.targets(model) if noise else ():
        model.get_submodule(name).register_forward_pre_hook(disturb)
    shell = engine.InProcess(folder, model=model, fused=False)
    texts = []
    for data in given:
        image = generate.fitted(pictures.decode(data), *shell.limits)
        rows, columns = image.height // 14, image.width // 14
        pad = model.config.image_token_id
        ids = torch.tensor([shell.prompt.ahead + [pad] * (rows * columns // 4) + shell.prompt.behind])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=generate.patches([image], shell.mean, shell.std)[0].to(dtype),
            mm_token_type_ids=(ids == pad).int(),
            image_grid_thw=torch.tensor([[1, rows, columns]]),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=shell.prompt.stop,
        )
        texts.append(shell.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts, version
