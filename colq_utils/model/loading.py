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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from colq_utils.base import arithmetic, names
from colq_utils.base.config import DTYPES, Experiment, Runtime
from colq_utils.base.errors import ColqError
from colq_utils.model import eightbit, fp8_export, hub, kernels, nf4, packing, processing
from colq_utils.model.checkpoints import base_folder, damage
from colq_utils.model.modeling import ColQwen3Config, ColQwen3ForRetrieval, configuration

#: Tensors a checkpoint may carry that the model has no use for: the head; GPTQ's activation order.
HARMLESS_EXTRA = re.compile(r"lm_head\.|\.g_idx$")
#: Linear layers of a block of the language model: q, k, v, o, gate, up and down.
LINEARS = 7


@dataclass(frozen=True)
class Loaded:
    """A model ready to embed, its processor, kernels and forward pass (`encode`), and the time of loading."""

    variant: str
    model: ColQwen3ForRetrieval
    processor: processing.ColQwen3Processor
    census: tuple[kernels.KernelUse, ...]
    load_s: float
    encode: str = "plain"

    @property
    def device(self) -> torch.device:
        return self.model.embedding_proj_layer.weight.device


def plain(experiment: Experiment, variant: str, export: str | None = None) -> Loaded:
    """Load a variant on transformers' own forward pass, or raise; `colq_utils.fast.load` knows the other one.

    Packed layers stay packed where the experiment asks for the fast path, which gives them their kernel.
    """
    if variant not in experiment.by_id:
        known = ", ".join(experiment.by_id)
        raise ColqError(f"no variant {variant!r} in experiment {experiment.name}; there are: {known}")
    spec = experiment.by_id[variant]
    export = export or spec.export
    if experiment.model.is_random:
        base_folder(experiment)  # made if need be
    if spec.is_stored:
        folder, make = experiment.checkpoint(variant, export), f"make quantize EXPERIMENT={experiment.name}"
        if not folder.is_dir():
            raise ColqError(f"variant {variant} has no {folder.name} checkpoint yet: run `{make}`")
        if problem := damage(folder):  # a finished stage does not run again while its folder is there
            raise ColqError(f"{problem}. Delete {folder.parent} and run `{make}`")
    start = time.perf_counter()
    model = _open(experiment, variant, export)
    if spec.scheme == "fp8":
        eightbit.fp8_(model.language_model.layers)
    if spec.vision == "fp8":
        eightbit.fp8_(model.visual)
    if spec.embedding == "int8":
        model.language_model.embed_tokens = eightbit.Int8Embedding(model.language_model.embed_tokens)
    load_s = time.perf_counter() - start
    limit = experiment.model.max_visual_tokens
    processor = processing.from_pretrained(experiment.model_path, experiment.model.revision, limit)
    return Loaded(variant, model, processor, kernels.census(model), load_s)


def _open(experiment: Experiment, variant: str, export: str | None) -> ColQwen3ForRetrieval:
    """The stored weights of a variant as a model."""
    spec, runtime = experiment.by_id[variant], experiment.runtime
    dtype = torch.float32 if spec.scheme == "fp32" else getattr(torch, runtime.dtype)
    how = (dtype, runtime.device, runtime.attention)
    if not spec.is_stored:
        return open_model(experiment.model_path, *how, None, experiment.model.revision)
    if export == "compressed_tensors":
        return open_fp8(str(experiment.checkpoint(variant, export)), dtype, runtime)
    path, backend = str(experiment.checkpoint(variant, export)), experiment.backend(variant)
    fast = experiment.encode_path(variant) == "fast"
    if fast and backend == "bitsandbytes":
        raise ColqError(f"{variant}: the fast path does not take layers of bitsandbytes; set encode to plain")
    if backend != "unpack" and not fast:
        return open_model(path, *how, backend)
    kernels.require(backend)
    model = open_packed(path, dtype, runtime, fast)
    if not fast:
        packing.unpack_(model, dtype)
        kernels.check(model, "unpack", LINEARS)
    return model


def open_packed(path: str, dtype: torch.dtype, runtime: Runtime, fast: bool = False) -> ColQwen3ForRetrieval:
    """Open a quantized checkpoint folder as strictly as `open_model`, its layers `packing.PackedLinear`, or
    Linears where it is NF4. `fast` refuses what the kernels of the fast path do not take.
    """
    if runtime.device == "cpu":
        arithmetic.check()
    config = hub.read_config(path)
    quantization = config.pop("quantization_config", None) or {}
    if packing.layout_of(quantization) == "bitsandbytes":
        model = _empty(path, dtype, runtime)
        return _filled(path, model, nf4.unpacked_(model, _tensors(path, runtime), dtype), runtime)
    _require_readable(path, quantization, fast)
    model, state = _empty(path, dtype, runtime), _tensors(path, runtime)
    how = quantization["bits"], quantization["group_size"], packing.layout_of(quantization)
    packing.pack_(model.language_model.layers, *how)
    for name in (name for name in state if name.endswith(".g_idx")):
        groups = torch.arange(len(state[name]), dtype=state[name].dtype) // quantization["group_size"]
        if not torch.equal(state[name].cpu(), groups):
            cause = f"{name} reorders the columns (desc_act), which is not read here"
            raise ColqError(f"{path}: {cause}; quantize without it")
    return _filled(path, model, state, runtime)


def open_fp8(path: str, dtype: torch.dtype, runtime: Runtime) -> ColQwen3ForRetrieval:
    """Open an FP8 export (`fp8_export`) as strictly as `open_model`, its layers `eightbit.Fp8Linear`."""
    if runtime.device == "cpu":
        arithmetic.check()
    model = _empty(path, dtype, runtime)
    fp8_export.place_(model, path)
    return _filled(path, model, fp8_export.as_buffers(_tensors(path, runtime)), runtime)


def _empty(path: str, dtype: torch.dtype, runtime: Runtime) -> ColQwen3ForRetrieval:
    """The model of a quantized folder before its layers are replaced, on the meta device."""
    config = {k: v for k, v in hub.read_config(path).items() if k != "quantization_config"}
    options = dict(dtype=dtype, attn_implementation=runtime.attention)
    with torch.device("meta"):
        return ColQwen3ForRetrieval._from_config(_config(path, config), **options)


def _tensors(path: str, runtime: Runtime) -> dict[str, torch.Tensor]:
    with _reading(path):
        shards = [load_file(shard, device=runtime.device) for shard in hub.weight_files(Path(path))]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def _filled(path: str, model: ColQwen3ForRetrieval, state: dict, runtime: Runtime) -> ColQwen3ForRetrieval:
    """A model of `_empty` with exactly the tensors of `state`; those of replaced layers are as stored."""
    expected, dtype = model.state_dict(), model.embedding_proj_layer.weight.dtype
    common = expected.keys() & state.keys()
    mismatched = [name for name in common if expected[name].shape != state[name].shape]
    _require_exact(path, expected.keys() - common, state.keys() - common, mismatched)
    floats = {name for name in common if expected[name].dtype == dtype}
    state = {name: state[name].to(dtype) if name in floats else state[name] for name in common}
    model.load_state_dict(state, assign=True)
    # what is computed, not stored, is still on the meta device
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            model.set_submodule(name, type(module)(module.config).to(runtime.device))
    return model.eval().requires_grad_(False)


def _require_readable(path: str, quantization: dict, fast: bool) -> None:
    """Raise ColqError for a packing that is not read here, or not taken by the fast path."""
    layout, bits = packing.layout_of(quantization), quantization.get("bits")
    if layout not in packing.LAYOUTS or bits not in packing.READABLE:
        readable = f"the layouts of GPTQ and AWQ with {', '.join(map(str, packing.READABLE))} bits, and NF4"
        packed_as = f"{layout or 'nothing known'} with {bits} bits"
        raise ColqError(f"{path} is packed as {packed_as}; read are {readable}")
    if fast and not (layout == "gptq" and quantization.get("sym") and bits in packing.BITS):
        taken = f"AutoRound's symmetric GPTQ layout of {', '.join(map(str, packing.BITS))} bits"
        raise ColqError(f"{path} is not packed as {taken}; set encode to plain")


def _config(path: str, config: dict, revision: str | None = None) -> ColQwen3Config:
    """A configuration with the checkpoint's bias of the projection, or none; ColqError for another width."""
    shapes = {tensor.name: tensor.shape for tensor in hub.read_headers(path, revision)}
    built = configuration(config | {"projection_bias": names.BIAS in shapes})
    width, shape = built.text_config.hidden_size, shapes.get(names.PROJECTION)
    if shape is not None and shape != (built.embed_dim, width):
        said = f"{built.embed_dim} x {width} (embed_dim x hidden_size)"
        cause = f"the projection is {shape[0]} x {shape[-1]} where config.json says {said}"
        raise ColqError(f"{path}: {cause}; correct config.json, or fetch the checkpoint again")
    return built


def _require_exact(path: str, *differences: Iterable[str]) -> None:
    """Raise ColqError if any but harmless tensors are missing, unexpected or mismatched, in this order."""
    kinds = dict(zip(("missing", "unexpected", "mismatched"), differences, strict=True))
    named = [(kind, name) for kind, differing in kinds.items() for name in sorted(differing)]
    problems = [f"{kind}: {name}" for kind, name in named if not HARMLESS_EXTRA.search(name)]
    if problems:
        first = "; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ColqError(f"{path} does not hold exactly the tensors of a ColQwen3: {first}")


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
        remedy = "set runtime.device to cpu"
        raise ColqError(f"the experiment asks for device cuda and no CUDA device is visible; {remedy}")
    config, kind = hub.read_config(path, revision), torch.device(device).type
    if kind == "cpu":
        arithmetic.check()
    options = dict(attn_implementation=attention, device_map=device, revision=revision)
    options["dtype"] = dtype or getattr(torch, DTYPES[kind])
    quantization = config.get("quantization_config")
    if (quantization is None) != (backend is None):
        negation = "not " if quantization is None else ""
        raise ColqError(f"{path} is {negation}a quantized checkpoint, against what was asked for")
    if backend is not None:
        kernels.require(backend)
        if (packing.layout_of(quantization) == "bitsandbytes") != (backend == "bitsandbytes"):
            raise ColqError(
                f"{path} is packed as {packing.layout_of(quantization)}; backend {backend} cannot run it"
            )
        if backend == "torch" and packing.layout_of(quantization) == "awq":
            trap = "no torch kernel in AutoRound's loader (it would select random weights)"
            raise ColqError(f"AWQ packing has {trap}; use backend ark")
        if backend != "bitsandbytes":
            from transformers import AutoRoundConfig

            options["quantization_config"] = AutoRoundConfig(backend=backend)
    # mismatched sizes are "ignored" here so that they come back in the report, where they are refused by name
    options |= dict(config=_config(path, config, revision), ignore_mismatched_sizes=True)
    with _reading(path):
        model, report = ColQwen3ForRetrieval.from_pretrained(path, output_loading_info=True, **options)
    mismatched = [name for name, *_ in report["mismatched_keys"]]
    _require_exact(path, report["missing_keys"], report["unexpected_keys"], mismatched)
    if (
        backend == "bitsandbytes"
    ):  # beside its layers, transformers leaves weights in the dtype they are stored in
        for parameter in filter(torch.is_floating_point, model.parameters()):
            parameter.data = parameter.data.to(options["dtype"])
    if backend is not None:
        kernels.check(model, backend, LINEARS)
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _reading(path: str):
    """Silence reports whose matter is checked here; raise ColqError for what cannot be read."""
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            logging.disable(logging.WARNING)
            yield
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        remedy = "Restore the file, or make the checkpoint again"
        raise ColqError(f"{path} cannot be read: {hub.first_line(error)}. {remedy}") from error
    finally:
        logging.disable(logging.NOTSET)
