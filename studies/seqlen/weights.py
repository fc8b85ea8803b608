"""The weights of a study's variants, as floating point numbers that have gone through the format and back.

Nothing is packed: a rounded weight is stored as the bf16 number that its integer and scale stand for, so
that any device can multiply it and no kernel enters the comparison. `tests/studies/test_study.py` proves
that these are the numbers which AutoRound packs. Integers follow AutoRound (Cheng et al., 2023,
arXiv:2309.05516): full range, fp16 scales, zero points only where asymmetric. FP8 is e4m3 with a scale an
output channel and, in the forward pass, a scale a token for the activations; MXFP4 (OCP Microscaling
Formats v1.0, 2023, sections 5.3 and 6.3) is e2m1 in blocks of 32 with a power of two as scale.
"""

import copy
import hashlib
import os
import re
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from colq_utils.base import files
from colq_utils.base.config import DTYPES, ROOT, CalibrationSet
from colq_utils.base.errors import ColqError
from colq_utils.data import calibration
from colq_utils.model import autoround, eightbit, footprint, hub, loading, processing
from studies.seqlen.spec import FORMATS, SeqlenVariant, StudySpec

#: The magnitudes that four bits of MXFP4 can stand for besides a sign.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BLOCK = 32
SMALLEST_SCALE = 1e-5
DECODER = re.compile(r"^vlm\.model\.language_model\.layers\.(\d+)\..*\.(\w+_proj)\.weight$")
#: A token that no text holds: AutoRound leaves the padding token out of its loss, and here that is also the
#: token which ends every query ten times, where a query gathers its context.
UNUSED_TOKEN = "<|video_pad|>"


def round_integer(weight: torch.Tensor, bits: int, group_size: int, sym: bool) -> torch.Tensor:
    """Round ``(out, in)`` weights to the nearest of 2^bits levels in groups along a row, and back.

    Symmetric levels run from -2^(bits-1) to 2^(bits-1) - 1 and the sign of the scale puts the largest weight
    on the longer side; asymmetric ones span minimum to maximum with a rounded zero point. Scales are fp16, as
    in the packed checkpoint.
    """
    if weight.shape[1] % group_size:
        raise ColqError(f"rows of {weight.shape[1]} weights do not divide into groups of {group_size}")
    groups = weight.reshape(
        -1, group_size
    )  # (n_groups, group_size), in the dtype of the weights as AutoRound has it
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    if sym:
        levels = 2 ** (bits - 1)
        largest = torch.where(high < -low, -low, -torch.maximum(high, -low))
        scale = (largest / levels).half()
        scale = torch.where(scale < 0, scale.clamp(max=-SMALLEST_SCALE), scale.clamp(min=SMALLEST_SCALE))[
            :, None
        ]
        rounded = (groups / scale).round().clamp(-levels, levels - 1) * scale
    else:
        scale = ((high - low) / (2**bits - 1)).half().clamp(min=SMALLEST_SCALE)
        zero, scale = (-low / scale).round()[:, None], scale[:, None]
        rounded = (((groups / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale
    return rounded.to(weight.dtype).reshape(weight.shape)


def round_fp8(values: torch.Tensor) -> torch.Tensor:
    """Round to e4m3 and back, one fp32 scale per row (output channel of a weight, token of an activation)."""
    # a tensor: CUDA divides by a number through its reciprocal, an ulp off
    largest = torch.full((), eightbit.LARGEST, device=values.device)
    scale = eightbit.scale_of(values.abs().amax(-1, keepdim=True), largest)
    return (eightbit.rounded(values, scale).float() * scale).to(values.dtype)


def round_mxfp4(weight: torch.Tensor) -> torch.Tensor:
    """Round to e2m1 in blocks of 32 along a row, each under a power of two, ties to even, and back.

    The scale is 2^(floor(log2(largest)) - 2), so that the largest magnitude lies in [4, 8) and is clamped to
    6 (OCP, section 6.3).
    """
    if weight.shape[1] % BLOCK:
        raise ColqError(f"rows of {weight.shape[1]} weights do not divide into blocks of {BLOCK}")
    blocks = weight.float().reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    exponent = torch.frexp(largest.clamp(min=2.0**-126)).exponent - 1  # floor(log2), exactly
    scale = torch.ldexp(torch.ones_like(largest), (exponent - 2).clamp(-127, 127))
    magnitude = (blocks / scale).abs().clamp(max=E2M1[-1])
    step = torch.where(
        magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0)
    )  # distance of the levels there
    rounded = (
        magnitude / step
    ).round() * step  # torch rounds halves to even, which here is to an even mantissa
    return (torch.sign(blocks) * rounded * scale).reshape(weight.shape).to(weight.dtype)


def rounded(weight: torch.Tensor, form: str, group_size: int = 128, sym: bool = True) -> torch.Tensor:
    """`weight` through any of `study_spec.FORMATS` that stores it in fewer than 16 bits."""
    if form == "fp8":
        return round_fp8(weight)
    if form == "mxfp4":
        return round_mxfp4(weight)
    return round_integer(weight, FORMATS[form], group_size, sym)


def in_scope(name: str, scope: str) -> bool:
    """Whether a tensor of the checkpoint is a decoder Linear that a variant of this scope rounds."""
    match = DECODER.match(name)
    return bool(match) and scope in ("all", f"layer {match[1]}", match[2])


def chosen(variant: SeqlenVariant, weights: dict[str, torch.Tensor]) -> dict[str, str]:
    """Tensor name -> format, for all tensors that the variant rounds."""
    picked = {}
    for name, weight in weights.items():
        if variant.bits is not None and in_scope(name, variant.scope):
            picked[name] = variant.format
        elif variant.visual != "bf16" and is_visual_linear(name, weight):
            picked[name] = variant.visual
    return picked


def is_visual_linear(name: str, weight: torch.Tensor) -> bool:
    """The vision tower's Linears; its position table is two-dimensional as well and is none."""
    return (
        name.startswith("vlm.model.visual.")
        and name.endswith(".weight")
        and weight.ndim == 2
        and "pos_embed" not in name
    )


def round_to_nearest(variant: SeqlenVariant, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The rounded tensors of a variant that needs no calibration, by name."""
    return {
        name: rounded(weights[name], form, variant.group_size, variant.sym)
        for name, form in chosen(variant, weights).items()
    }


def stored_bytes(variant: SeqlenVariant, tensors: list[hub.Tensor]) -> int:
    """Bytes of the checkpoint that the variant would make.

    Integers as AutoRound packs them (`footprint.packed`); FP8 a byte a weight and an fp32 scale an output
    channel; MXFP4 half a byte a weight and a byte a block of 32.
    """
    shapes = {t.name: torch.empty(t.shape, device="meta") for t in tensors}
    picked, total = chosen(variant, shapes), 0
    for tensor in tensors:
        form = picked.get(tensor.name)
        if form is None:
            total += prod(tensor.shape) * 4 if variant.format == "fp32" else tensor.bytes
        elif form == "fp8":
            total += tensor.parameters + 4 * tensor.shape[0]
        elif form == "mxfp4":
            total += tensor.parameters // 2 + tensor.parameters // BLOCK
        else:
            total += footprint.total(footprint.packed(tensor, FORMATS[form], variant.group_size))
    return total


def fp8_activations(model: nn.Module) -> list:
    """Round inputs of decoder Linears to e4m3, a scale per token; `remove` of the handles undoes it."""

    def before(_, inputs):
        return (round_fp8(inputs[0]), *inputs[1:])

    linears = [
        m for n, m in model.named_modules() if isinstance(m, nn.Linear) and DECODER.match(f"{n}.weight")
    ]
    return [linear.register_forward_pre_hook(before) for linear in linears]


def digest(weights: dict[str, torch.Tensor]) -> str:
    """Digest of rounded tensors: two variants of one digest are one."""
    state = hashlib.sha256()
    for name in sorted(weights):
        same_zeros = weights[name].cpu().contiguous() + 0.0  # -0.0 becomes 0.0
        state.update(name.encode() + same_zeros.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]


def corpus(spec: StudySpec) -> pd.DataFrame:
    """The calibration text of a study, as `calibration.corpus` gives it for an experiment."""
    paths = sorted((ROOT / spec.corpus).glob("*.parquet"))
    if not paths:
        raise ColqError(f"{spec.corpus} holds no .parquet file with calibration text")
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def token_stream(spec: StudySpec, processor, seed: int, cache: Path) -> np.ndarray:
    """The corpus as one array of tokens in the order of `seed`, kept in `cache` for that seed's variants."""
    path = cache / f"stream-{seed}.npy"
    if not path.exists():
        longest = max(s.seqlen for s in spec.sets)
        tokens = calibration.stream(corpus(spec), processor.tokenizer, longest, seed)
        with files.atomic(path) as target:
            np.save(target, tokens.astype(np.int32))
    return np.load(path).astype(np.int64)


def batches(spec: StudySpec, wanted: CalibrationSet, processor, seed: int, cache: Path) -> list[dict]:
    """A calibration set as AutoRound wants it: dicts of exactly `batch_rows` rows of `seqlen` tokens."""
    if wanted.kind == "pages":
        return page_query_batches(corpus(spec), wanted, processor, seed)
    ids = calibration.pack(token_stream(spec, processor, seed, cache), wanted)
    return [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids.split(wanted.batch_rows)
    ]


def page_query_batches(texts: pd.DataFrame, wanted: CalibrationSet, processor, seed: int) -> list[dict]:
    """Rows of a drawn page's prompt followed by queries up to `seqlen` tokens.

    AutoRound takes the positions of a batch from its first row, so every row must have its image in one
    place; a batch of pages here and queries there would be tuned on wrong positions.
    """
    pages, queries = calibration.page_set(texts, wanted, seed)
    asked = [processor.query_prefix + text + processor.query_suffix for text in queries]
    stream = [i for ids in processor.tokenizer(asked, add_special_tokens=False)["input_ids"] for i in ids]
    rows = []
    for start in range(0, wanted.blocks, wanted.batch_rows):
        inputs = processor.pages(
            [Image.fromarray(page.numpy()) for page in pages[start : start + wanted.batch_rows]]
        )
        room = wanted.seqlen - inputs["input_ids"].shape[1]
        if room < 1:
            raise ColqError(
                f"calibration set {wanted.id}: a page's prompt has {inputs['input_ids'].shape[1]} tokens, "
                "more than seqlen"
            )
        tail = torch.tensor(
            [
                [stream[(row * room + i) % len(stream)] for i in range(room)]
                for row in range(start, start + wanted.batch_rows)
            ]
        )
        ids = torch.cat([inputs["input_ids"], tail], dim=1)  # (batch_rows, seqlen)
        kinds = torch.cat(
            [inputs["mm_token_type_ids"], torch.zeros_like(tail, dtype=inputs["mm_token_type_ids"].dtype)],
            dim=1,
        )
        rows.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "mm_token_type_ids": kinds,
                "pixel_values": inputs["pixel_values"],
                "image_grid_thw": inputs["image_grid_thw"],
            }
        )
    return rows


def tune(spec: StudySpec, variant: SeqlenVariant, device: str, cache: Path) -> dict[str, torch.Tensor]:
    """AutoRound's rounded tensors of a variant, by name, on the CPU.

    Raises:
        ColqError: calibration text too short, or AutoRound failed or logged an error.
    """
    os.environ["AR_WORK_SPACE"] = str(cache / f"autoround-{os.getpid()}")
    from auto_round import AutoRound

    processor, wanted = processing.from_pretrained(spec.model_path), spec.set(variant.set)
    data = batches(
        spec, wanted, processor, variant.seed if variant.text_seed is None else variant.text_seed, cache
    )
    tokenizer = processor.tokenizer
    if wanted.kind == "pages":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = UNUSED_TOKEN
    model = loading.open_model(
        spec.model_path, getattr(torch, DTYPES[device.split(":")[0]]), device
    ).requires_grad_(True)
    with autoround.listening(cache / f"autoround-{variant.id}.log", spec.layers, variant.id):
        engine = AutoRound(
            model,
            tokenizer=tokenizer,
            processor=processor,
            scheme=f"W{variant.bits}A16",
            sym=variant.sym,
            group_size=variant.group_size,
            device_map=device,
            seed=variant.seed,
            enable_torch_compile=False,
            iters=variant.iters,
            dataset=data,
            seqlen=wanted.seqlen,
            nsamples=wanted.blocks,
            batch_size=wanted.batch_rows,
            **autoround.precision(device.split(":")[0]),
        )
        tuned, _ = engine.quantize()
    return {
        name: weight.detach().cpu().clone()
        for name, weight in tuned.state_dict().items()
        if in_scope(name, "all")
    }
