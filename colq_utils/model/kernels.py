"""Which kernel multiplies each layer's weights: a census, and a refusal of unwanted substitutes.

AutoRound's loader picks a backend by what is installed and says so only in a log line; one of its choices
computes with random weights (``auto_round:fake``). So every result carries the census taken here.
"""

import importlib
import importlib.util
import platform
import time
from collections import Counter
from collections.abc import Callable
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


def _kernel(module: nn.Module) -> str | None:
    """The kernel of a layer that holds packed or FP8 weights; None of any other module."""
    if type(module).__module__.startswith("bitsandbytes"):
        return "bitsandbytes"
    if hasattr(module, "QUANT_TYPE") or "QuantLinear" in type(module).__name__:
        return str(getattr(module, "QUANT_TYPE", type(module).__name__))
    return None


def census(model: nn.Module) -> tuple[KernelUse, ...]:
    """Count the matrix-multiplication layers of `model` by tower and kernel."""
    counts = Counter()
    for name, module in model.named_modules():
        if kernel := _kernel(module):
            counts[tower_of(name), kernel, int(getattr(module, "bits", 4))] += (
                1  # bitsandbytes' layers do not say
            )
        elif isinstance(module, nn.Linear):
            dtype = module.weight.dtype
            counts[tower_of(name), f"torch {str(dtype).removeprefix('torch.')}", dtype.itemsize * 8] += 1
    return tuple(KernelUse(*key, layers=n) for key, n in sorted(counts.items()))


def require(backend: str) -> None:
    """Raise ColqError, which says what installs it, unless `backend` is known, installed and can run here."""
    if backend not in BACKENDS:
        raise ColqError(f"unknown kernel backend {backend!r}; known: {', '.join(BACKENDS)}")
    named = f"the quantization backend {backend!r}"
    if importlib.util.find_spec(BACKENDS[backend].package) is None:
        remedy = f"{BACKENDS[backend].install}; or name another one as `backend` in the experiment file"
        raise ColqError(f"{named} is not installed: {remedy}")
    if backend in ON_GPU and not torch.cuda.is_available():
        remedy = "use backend unpack, ark or torch on the CPU"
        raise ColqError(f"{named} needs a CUDA device and none is visible; {remedy}")
    if backend != "ark":
        return
    # a compiled library, which takes AVX-512 and AMX by itself where they are
    if platform.machine() not in arithmetic.X86 or not torch.cpu._is_avx2_supported():
        cause = f"needs an x86-64 processor with AVX2, and this is {arithmetic.processor()}"
        raise ColqError(f"{named} {cause}; use backend torch")
    try:
        importlib.import_module("auto_round_kernel.auto_round_kernel_cpu")
    except (ImportError, OSError) as error:
        remedy = "pip install --force-reinstall auto-round-lib; or use backend torch"
        raise ColqError(f"{named} is installed and cannot be loaded ({error}): {remedy}") from None
    if not _multiplies_right():
        cause = "gives wrong products in this process: torch was given fewer threads after it was loaded"
        remedy = "start again with OMP_NUM_THREADS set to the number of threads wanted, or use backend torch"
        raise ColqError(f"{named} {cause} ({torch.get_num_threads()} now); {remedy}")


def _multiplies_right() -> bool:
    """Whether ``ark`` multiplies as it should here and now.

    It splits its work among as many threads as OpenMP had when it was loaded. If torch was given fewer since,
    the shares of the others are left as the memory was: no error, and NaN or plausible numbers.
    """
    from auto_round_kernel.qlinear import QuantLinearGPTQ

    layer = QuantLinearGPTQ(4, 128, True, 128, 256, False, weight_dtype=torch.float32)
    layer.qweight.fill_(0x11111111)  # every code 1, that is 1 - 8
    layer.qzeros.fill_(0x77777777)
    layer.scales.fill_(1.0)
    layer.post_init()
    # other numbers each time, so that what an earlier call left in memory is no answer
    rows = torch.rand(32, 128, generator=torch.Generator().manual_seed(time.time_ns() % 2**31))
    right = -7 * rows.sum(dim=-1, keepdim=True).expand(-1, 256)
    return torch.allclose(layer(rows), right, rtol=0.05)


def on_cpu(packing: str, bits: int) -> str:
    """The kernel under which AutoRound's own loader opens a checkpoint here; ColqError if there is none."""
    try:
        if packing == "bitsandbytes":
            require(packing)
            return packing
        require("ark")
    except ColqError:
        if packing in ("auto_awq", "bitsandbytes"):  # which are opened with one kernel alone
            raise
        return "torch"
    return "ark" if bits in BACKENDS["ark"].bits else "torch"


class Scheduled(nn.Module):
    """A humming layer with schedules tuned for the GPU at hand (`benchmark.tune`)."""

    QUANT_TYPE = "humming, tuned"

    def __init__(self, layer: nn.Module, schedule: str):
        super().__init__()
        self.bits, self.in_features = layer.bits, layer.infeatures
        self.schedule, self.layer = schedule, layer.humming_layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.layer(x.reshape(-1, self.in_features), tuning_config=self.schedule)
        return rows.view(*x.shape[:-1], -1)


def build(packed: nn.Module, backend: str, schedule: str | None = None) -> nn.Module:
    """A symmetric `packing.PackedLinear` in GPTQ's layout as a layer of `backend`, its buffers handed over.

    A tuned `schedule` is for humming. ColqError if the backend is not installed, or only in part, or has no
    kernel for these bits or shapes.
    """
    require(backend)
    if backend == "unpack":
        return packed
    from auto_round.inference.backend import dynamic_import_inference_linear

    inputs, outputs = packed.in_features, packed.out_features
    options = dict(bits=packed.bits, group_size=packed.group_size, sym=True)
    if backend == "marlin":
        key, shape = "gptqmodel:marlin_zp", dict(in_features=inputs, out_features=outputs, desc_act=False)
    else:
        key = f"auto_round:{backend}_zp"
        shape = dict(infeatures=inputs, outfeatures=outputs, weight_dtype=torch.bfloat16)
    try:
        layer = dynamic_import_inference_linear(key, options)(**options, **shape, bias=False)
        for name in ("qweight", "qzeros", "scales"):
            setattr(layer, name, getattr(packed, name).to(getattr(layer, name).dtype))
        layer = layer.to(packed.qweight.device)
        layer.post_init()
    except ImportError as error:
        cause = f"the quantization backend {backend!r} is installed in part ({error})"
        raise ColqError(f"{cause}: {BACKENDS[backend].install}") from error
    except (NotImplementedError, ValueError) as error:
        size = f"{inputs} x {outputs} with {packed.bits} bits"
        raise ColqError(f"backend {backend!r} has no kernel for a layer of {size}: {error}") from error
    return Scheduled(layer, schedule) if backend == "humming" and schedule is not None else layer


def check(model: nn.Module, backend: str, per_block: int) -> None:
    """Raise ColqError unless `per_block` layers of each block of the language model and no others run on it.

    Neither a substituted kernel passes nor one that computes with fake weights.
    """
    n_layers, expected = 0, per_block * model.config.text_config.num_hidden_layers
    for name, module in model.named_modules():
        kernel, in_language_model = _kernel(module), tower_of(name) == "language_model"
        if kernel is None or (kernel.startswith("fp8") and not in_language_model):
            continue  # or a tower that was asked for in eight bits
        if not in_language_model:
            raise ColqError(f"{name} was read as a quantized layer; only the language model has any here")
        if "fake" in type(module).__module__ or not kernel.lower().startswith(BACKENDS[backend].quant_type):
            raise ColqError(f"{name} runs on {kernel!r}, not on the backend {backend!r} that was asked for")
        n_layers += 1
    if n_layers != expected:
        raise ColqError(f"{n_layers} layers are quantized where {expected} should be")


def replace_(module: nn.Module, kind: type, make: Callable[[nn.Module], nn.Module]) -> None:
    """Replace every layer of a kind under `module` by what `make` gives for it, in place, one by one."""
    for name in [name for name, child in module.named_modules() if isinstance(child, kind)]:
        module.set_submodule(name, make(module.get_submodule(name)))
