"""A variant of an experiment to a model that is certainly that variant.

transformers fills a tensor that a checkpoint lacks with random numbers and carries on; here a
missing, extra or misshapen tensor ends the run with its name. The unused ``lm_head`` of published
checkpoints is the one extra that is expected (and never read into memory).
"""

import contextlib
import io
import logging
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from colq_utils.base import arithmetic, names
from colq_utils.base.config import DTYPES, Experiment, Runtime, Variant
from colq_utils.base.errors import ColqError
from colq_utils.model import eightbit, hub, kernels, packing, processing
from colq_utils.model.checkpoints import base_folder, damage
from colq_utils.model.hub import read_config
from colq_utils.model.modeling import ColQwen3Config, ColQwen3ForRetrieval

#: Tensors a checkpoint may carry that the model has no use for: the head; GPTQ's activation order.
HARMLESS_EXTRA = re.compile(r"lm_head\.|\.g_idx$")


@dataclass(frozen=True)
class Loaded:
    """A model ready to embed, its processor, the kernels it runs on, how long loading took and the forward pass it takes."""

    variant: str
    model: ColQwen3ForRetrieval
    processor: processing.ColQwen3Processor
    census: tuple[kernels.KernelUse, ...]
    load_s: float
    encode: str = "plain"

    @property
    def device(self) -> torch.device:
        return self.model.embedding_proj_layer.weight.device


def plain(experiment: Experiment, variant: str, export: str = "auto_round") -> Loaded:
    """Load a variant on transformers' own forward pass, or raise; see `colq_utils.fast.load`, which also knows the other.

    Packed layers stay packed where the experiment asks for the fast path, which gives them their kernel.
    """
    if variant not in experiment.by_id:
        raise ColqError(
            f"no variant {variant!r} in experiment {experiment.name}; there are: {', '.join(experiment.by_id)}"
        )
    spec, runtime = experiment.by_id[variant], experiment.runtime
    dtype = torch.float32 if spec.scheme == "fp32" else getattr(torch, runtime.dtype)
    if experiment.model.is_random:
        base_folder(experiment)  # made if need be
    if spec.bits is not None:
        _require_checkpoint(experiment, variant, export)
    start = time.perf_counter()
    model = _open(experiment, variant, export, dtype)
    _eight_bits(model, spec)
    load_s = time.perf_counter() - start
    processor = processing.from_pretrained(
        experiment.model_path, experiment.model.revision, experiment.model.max_visual_tokens
    )
    return Loaded(variant, model, processor, kernels.census(model), load_s)


def _require_checkpoint(experiment: Experiment, variant: str, export: str) -> None:
    """Refuse a checkpoint that is missing or cut short while the experiment, and so the remedy, is known."""
    folder, make = experiment.checkpoint(variant, export), f"run `make quantize EXPERIMENT={experiment.name}`"
    if not folder.is_dir():
        raise ColqError(f"variant {variant} has no {export} checkpoint yet: {make}")
    if problem := damage(folder):
        raise ColqError(
            f"{problem}. Delete {folder.parent} and {make}"
        )  # a finished stage does not run again while that is there


def _open(experiment: Experiment, variant: str, export: str, dtype: torch.dtype) -> ColQwen3ForRetrieval:
    """The stored weights of a variant as a model."""
    spec, runtime = experiment.by_id[variant], experiment.runtime
    if spec.bits is None:
        return open_model(
            experiment.model_path, dtype, runtime.device, runtime.attention, None, experiment.model.revision
        )
    path, backend, fast = (
        str(experiment.checkpoint(variant, export)),
        spec.backend or runtime.backend,
        experiment.encode_path(variant) == "fast",
    )
    if backend != "unpack" and not fast:
        return open_model(path, dtype, runtime.device, runtime.attention, backend)
    kernels.require(backend)
    model = open_packed(path, dtype, runtime)
    if fast:
        _refuse_unless_symmetric(path)
    else:
        packing.unpack_(model, dtype)
        kernels.check(model, "unpack", expected_layers(read_config(path)))
    return model


def _eight_bits(model: ColQwen3ForRetrieval, spec: Variant) -> None:
    """Apply a variant's eight-bit runtime options in place."""
    if spec.scheme == "fp8":
        eightbit.fp8_(model.language_model.layers)
    if spec.vision == "fp8":
        eightbit.fp8_(model.visual)
    if spec.embedding == "int8":
        model.language_model.embed_tokens = eightbit.Int8Embedding(model.language_model.embed_tokens)


def open_packed(path: str, dtype: torch.dtype, runtime: Runtime) -> ColQwen3ForRetrieval:
    """Open a quantized checkpoint folder with its layers still packed (`packing.PackedLinear`), as strictly as `open_model`.

    Raises:
        ColqError: as `open_model`; or a packing that is not read here.
    """
    if runtime.device == "cpu":
        arithmetic.check()
    config = read_config(path)
    how = config.pop("quantization_config", None) or {}
    words = layout(how)
    if words not in ("gptq", "awq", "auto_round") or how.get("bits") not in packing.READABLE:
        raise ColqError(
            f"{path} is packed as {words or 'nothing known'} with {how.get('bits')} bits; read are the layouts of GPTQ and AWQ with "
            f"{', '.join(map(str, packing.READABLE))} bits"
        )
    with torch.device("meta"):
        model = ColQwen3ForRetrieval._from_config(
            _as_stored_config(path, config), dtype=dtype, attn_implementation=runtime.attention
        )
        for layer in model.language_model.layers:
            for parent in (layer.self_attn, layer.mlp):
                for name, child in list(parent.named_children()):
                    if isinstance(child, torch.nn.Linear):
                        setattr(
                            parent,
                            name,
                            packing.PackedLinear(
                                child.in_features,
                                child.out_features,
                                how["bits"],
                                how["group_size"],
                                words == "awq",
                                int(words == "gptq"),
                            ),
                        )
    try:
        state = {}
        for shard in sorted(Path(path).glob("*.safetensors")):
            state |= load_file(shard, device=runtime.device)
    except (SafetensorError, OSError) as error:
        raise ColqError(
            f"{path} cannot be read: {hub.first_line(error)}. Restore the file, or make the checkpoint again"
        ) from error
    _refuse(path, _differences(model.state_dict(), state))
    _refuse_reordered(path, state, how["group_size"])
    model.load_state_dict(
        {
            name: _as_stored(name, value, dtype)
            for name, value in state.items()
            if not HARMLESS_EXTRA.search(name)
        },
        assign=True,
    )
    for module in list(model.modules()):  # what is computed, not stored, is still on the meta device
        for name, child in module.named_children():
            if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
                setattr(module, name, type(child)(child.config).to(runtime.device))
    return model.eval().requires_grad_(False)


def layout(quantization: dict) -> str:
    """``gptq`` or ``awq``, as a quantization config names the layout of its words; else the name it gives.

    ``auto_round`` is GPTQ's with zero points as they are: AutoRound's for asymmetric weights of two and three bits.
    """
    name = str(quantization.get("packing_format") or quantization.get("quant_method") or "")
    return next((known for known in ("awq", "gptq") if known in name), name)


def _refuse_unless_symmetric(path: str) -> None:
    """The kernels of the fast path take AutoRound's symmetric GPTQ layout of 2, 4 or 8 bits alone."""
    how = read_config(path)["quantization_config"]
    if layout(how) != "gptq" or not how.get("sym") or how.get("bits") not in packing.BITS:
        raise ColqError(
            f"{path} is not packed as AutoRound's symmetric GPTQ layout of {', '.join(map(str, packing.BITS))} bits; set encode to plain"
        )


def _refuse_reordered(path: str, state: dict[str, torch.Tensor], group_size: int) -> None:
    """Refuse a checkpoint whose columns were quantized in another order than they stand in (GPTQ's ``desc_act``)."""
    for name, columns in state.items():
        if name.endswith(".g_idx") and not torch.equal(
            columns.cpu(), torch.arange(len(columns), dtype=columns.dtype) // group_size
        ):
            raise ColqError(
                f"{path}: {name} reorders the columns (desc_act), which is not read here; quantize without it"
            )


def _as_stored_config(path: str, config: dict, revision: str | None = None) -> ColQwen3Config:
    """A configuration whose projection has a bias if, and only if, the checkpoint stores one.

    Raises:
        ColqError: the projection has another width than the configuration says.
    """
    stored = {tensor.name: tensor for tensor in hub.read_headers(path, revision)}
    made = ColQwen3Config(**config | {"projection_bias": names.BIAS in stored})
    shape = stored[names.PROJECTION].shape if names.PROJECTION in stored else None
    if shape is not None and shape != (made.embed_dim, made.text_config.hidden_size):
        raise ColqError(
            f"{path}: the projection is {shape[0]} x {shape[-1]} where config.json says {made.embed_dim} x {made.text_config.hidden_size} "
            "(embed_dim x hidden_size); correct config.json, or fetch the checkpoint again"
        )
    return made


def _as_stored(name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value if name.endswith(("qweight", "qzeros", "scales")) else value.to(dtype)


def _differences(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[str]:
    """Names that are missing, unexpected or of another shape."""
    return (
        [f"missing: {name}" for name in sorted(wanted.keys() - found.keys())]
        + [
            f"unexpected: {name}"
            for name in sorted(found.keys() - wanted.keys())
            if not HARMLESS_EXTRA.search(name)
        ]
        + [
            f"mismatched: {name}"
            for name in sorted(wanted.keys() & found.keys())
            if wanted[name].shape != found[name].shape
        ]
    )


def _refuse(path: str, problems: list[str]) -> None:
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ColqError(
            f"{path} does not hold exactly the tensors of a ColQwen3: {'; '.join(problems[:5])}{more}"
        )


def open_model(
    path: str,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    attention: str = "sdpa",
    backend: str | None = None,
    revision: str | None = None,
) -> ColQwen3ForRetrieval:
    """Open a checkpoint folder (or hub id), accepting nothing but a complete ColQwen3.

    Args:
        dtype: what is computed in; None: what the device computes in (`colq_utils.base.config.DTYPES`).
        backend: the kernel that every quantized layer must run on; None for a checkpoint in floating point.

    Raises:
        ColqError: no such folder, another architecture, unreadable or truncated weights, missing, extra or
            misshapen tensors, a kernel other than `backend`, no CUDA device where one is asked for.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ColqError(
            "the experiment asks for device cuda and no CUDA device is visible; set runtime.device to cpu"
        )
    config = read_config(path, revision)
    if torch.device(device).type == "cpu":
        arithmetic.check()
    dtype = dtype or getattr(torch, DTYPES[torch.device(device).type])
    options = {"dtype": dtype, "attn_implementation": attention, "device_map": device, "revision": revision}
    quantized = config.get("quantization_config")
    if (quantized is None) != (backend is None):
        raise ColqError(
            f"{path} is {'not ' if quantized is None else ''}a quantized checkpoint, against what was asked for"
        )
    if backend is not None:
        kernels.require(backend)
        from transformers import AutoRoundConfig

        options["quantization_config"] = AutoRoundConfig(backend=_loader_backend(backend, quantized))
    options["config"] = _as_stored_config(path, config, revision)
    try:
        with _quiet():
            # mismatched sizes are "ignored" here so that they come back in the report, where they are refused by name
            model, report = ColQwen3ForRetrieval.from_pretrained(
                path, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ColqError(
            f"{path} cannot be read: {hub.first_line(error)}. Restore the file, or make the checkpoint again"
        ) from error
    problems = [
        f"{kind.removesuffix('_keys')}: {key if isinstance(key, str) else key[0]}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in sorted(report[kind], key=str)
        if not HARMLESS_EXTRA.search(str(key))
    ]
    _refuse(path, problems)
    if backend is not None:
        kernels.check(model, backend, expected_layers(config))
    return model.eval().requires_grad_(False)


def expected_layers(config: dict) -> int:
    """Linear layers of the language model: q, k, v, o, gate, up and down in each block."""
    return 7 * (config.get("vlm_config") or config)["text_config"]["num_hidden_layers"]


def _loader_backend(backend: str, quantization: dict) -> str:
    """The name under which AutoRound's loader knows a backend (torch's AWQ path is a trap: it selects fake weights)."""
    method = str(quantization.get("packing_format", quantization.get("quant_method", "")))
    if backend == "torch" and "awq" in method:
        raise ColqError(
            "AWQ packing has no torch kernel in AutoRound's loader (it would select random weights); use backend ark"
        )
    return backend


@contextlib.contextmanager
def _quiet():
    """Silence the load report and backend chatter: what matters of it is checked and raised here."""
    import transformers

    previous = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    logger = logging.getLogger("autoround")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(previous)
        logger.setLevel(level)
