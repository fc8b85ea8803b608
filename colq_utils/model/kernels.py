"""Which kernel multiplies each layer's weights: a census, and a refusal of unwanted substitutes.

AutoRound's loader picks a backend by what is installed and says so only in a log line; one of its
choices computes with random weights (``auto_round:fake``). A throughput without the kernel that made
it is worthless, so every result carries the census taken here.
"""

import importlib
import importlib.util
import platform
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from colq_utils.base import arithmetic
from colq_utils.base.backends import BACKENDS, ON_GPU
from colq_utils.base.errors import ColqError
from colq_utils.base.names import tower_of


@dataclass(frozen=True)
class KernelUse:
    """`layers` matrix multiplications of `tower` run on `kernel` with weights of `weight_bits` bits."""

    tower: str
    kernel: str
    weight_bits: int
    layers: int


def is_quantized(module: nn.Module) -> bool:
    """True of layers that hold packed weights."""
    return hasattr(module, "QUANT_TYPE") or "QuantLinear" in type(module).__name__


def census(model: nn.Module) -> tuple[KernelUse, ...]:
    """Count the matrix-multiplication layers of `model` by tower and kernel."""
    found = Counter()
    for name, module in model.named_modules():
        if is_quantized(module):
            found[
                tower_of(name), str(getattr(module, "QUANT_TYPE", type(module).__name__)), int(module.bits)
            ] += 1
        elif isinstance(module, nn.Linear):
            dtype = module.weight.dtype
            found[tower_of(name), f"torch {str(dtype).removeprefix('torch.')}", dtype.itemsize * 8] += 1
    return tuple(KernelUse(*key, layers=n) for key, n in sorted(found.items()))


def require(backend: str) -> None:
    """Raise unless `backend` can run here.

    Raises:
        ColqError: unknown name, package not installed, or no CUDA device; says which line installs it.
    """
    if backend not in BACKENDS:
        raise ColqError(f"unknown kernel backend {backend!r}; known: {', '.join(BACKENDS)}")
    package, install = BACKENDS[backend].package, BACKENDS[backend].install
    if importlib.util.find_spec(package) is None:
        raise ColqError(
            f"the quantization backend {backend!r} is not installed: {install}; "
            "or name another one as `backend` in the experiment file"
        )
    if backend in ON_GPU and not torch.cuda.is_available():
        raise ColqError(
            f"the quantization backend {backend!r} needs a CUDA device and none is visible; "
            "use backend unpack, ark or torch on the CPU"
        )
    if backend == "ark":
        _require_ark()


def _require_ark() -> None:
    """ark is a compiled library for x86-64 with AVX2 (it takes AVX-512 and AMX by itself where they are)."""
    if platform.machine() not in arithmetic.X86 or not torch.cpu._is_avx2_supported():
        raise ColqError(
            f"the quantization backend 'ark' needs an x86-64 processor with AVX2, and this is {arithmetic.processor()}; use backend torch"
        )
    try:
        importlib.import_module("auto_round_kernel.auto_round_kernel_cpu")
    except (ImportError, OSError) as error:
        raise ColqError(
            f"the quantization backend 'ark' is installed and cannot be loaded ({error}): pip install --force-reinstall auto-round-lib; "
            "or use backend torch"
        ) from None


def on_cpu(packing: str, bits: int) -> str:
    """The kernel under which AutoRound's own loader opens a checkpoint on this CPU.

    Raises:
        ColqError: there is none here; says why.
    """
    layout = "awq" if packing == "auto_awq" else "gptq"
    if layout not in BACKENDS["torch"].layouts:
        require("ark")  # the loader's only one for this layout
    if bits not in BACKENDS["ark"].bits:
        return "torch"
    try:
        require("ark")
    except ColqError:
        return "torch"
    return "ark"


class Scheduled(nn.Module):
    """A humming layer with schedules tuned for the GPU at hand (`benchmark.tune`) in place of its heuristic's."""

    QUANT_TYPE = "humming, tuned"

    def __init__(self, layer: nn.Module, schedule: str):
        super().__init__()
        self.bits, self.in_features, self.schedule, self.layer = (
            layer.bits,
            layer.infeatures,
            schedule,
            layer.humming_layer,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.reshape(-1, self.in_features), tuning_config=self.schedule).view(
            *x.shape[:-1], -1
        )


def build(packed: nn.Module, backend: str, schedule: str | None = None) -> nn.Module:
    """A packed layer as a layer of `backend`, by AutoRound's own classes; its buffers are handed over.

    Args:
        packed: a `colq_utils.model.packing.PackedLinear` on its device, symmetric, zero points stored less one.
        schedule: a tuned one, for humming.

    Raises:
        ColqError: the backend is not installed, or only in part, or has no kernel for these bits or shapes.
    """
    require(backend)
    if backend == "unpack":
        return packed
    from auto_round.inference.backend import dynamic_import_inference_linear

    options = {"bits": packed.bits, "group_size": packed.group_size, "sym": True}
    key = "gptqmodel:marlin_zp" if backend == "marlin" else f"auto_round:{backend}_zp"
    shape = (
        {"in_features": packed.in_features, "out_features": packed.out_features, "desc_act": False}
        if backend == "marlin"
        else {
            "infeatures": packed.in_features,
            "outfeatures": packed.out_features,
            "weight_dtype": torch.bfloat16,
        }
    )
    try:
        layer = dynamic_import_inference_linear(key, options)(**options, **shape, bias=False)
        for name in ("qweight", "qzeros", "scales"):
            value = getattr(packed, name)
            setattr(layer, name, value.to(getattr(layer, name).dtype))
        layer = layer.to(packed.qweight.device)
        layer.post_init()
        if backend == "humming" and schedule is not None:
            layer = Scheduled(layer, schedule)
    except ImportError as error:
        raise ColqError(
            f"the quantization backend {backend!r} is installed in part ({error}): {BACKENDS[backend].install}"
        ) from error
    except (NotImplementedError, ValueError) as error:
        raise ColqError(
            f"backend {backend!r} has no kernel for a layer of {packed.in_features} x {packed.out_features} with {packed.bits} bits: {error}"
        ) from error
    return layer


def check(model: nn.Module, backend: str, expected_layers: int) -> None:
    """Refuse a model whose layers do not all run on the backend that was asked for.

    Raises:
        ColqError: a fake or substituted kernel, a wrong number of quantized layers, or one outside the language model.
    """
    wanted = BACKENDS[backend].quant_type
    seen = Counter()
    for name, module in model.named_modules():
        if is_quantized(module):
            kind = str(getattr(module, "QUANT_TYPE", type(module).__name__))
            if tower_of(name) != "language_model" and kind.startswith("fp8"):
                continue  # a tower that was asked for in eight bits
            if tower_of(name) != "language_model":
                raise ColqError(
                    f"{name} was read as a quantized layer; only the language model is quantized in this checkpoint"
                )
            if "fake" in type(module).__module__ or not kind.lower().startswith(wanted):
                raise ColqError(f"{name} runs on {kind!r}, not on the backend {backend!r} that was asked for")
            seen[kind] += 1
    if seen.total() != expected_layers:
        raise ColqError(f"{seen.total()} layers are quantized where {expected_layers} should be")
