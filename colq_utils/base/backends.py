"""Kernels for packed layers, declared as data: what each is called, needs and can."""

from dataclasses import dataclass

_GPU = "(needs a CUDA device)"
#: gptqmodel asks for a newer torch than is pinned here and for much that its Marlin layer does without: this
#: is what that imports, and ninja, with which torch compiles the kernel at its first use.
_MARLIN = "pip install --no-deps gptqmodel==7.7.0 pypcre device-smi defuser logbar tokenicer ninja"


@dataclass(frozen=True)
class Backend:
    """`quant_type` is how the type of its layers starts; `package` is imported, `install` brings it."""

    quant_type: str
    package: str
    install: str
    device: str
    bits: tuple[int, ...]
    layouts: tuple[str, ...] = ("gptq",)


#: Name in an experiment file -> what is known of it.
BACKENDS = {
    name: Backend(name, *known)
    for name, *known in (
        ("ark", "auto_round_kernel", "pip install auto-round-lib", "cpu", (2, 4, 8), ("gptq", "awq")),
        ("torch", "auto_round", "pip install auto-round", "any", (2, 3, 4, 8)),
        ("tritonv2", "triton", f"pip install triton {_GPU}", "cuda", (2, 4, 8)),
        ("marlin", "gptqmodel", f"{_MARLIN} (needs a CUDA device and nvcc)", "cuda", (4, 8)),
        ("humming", "humming", f"pip install 'colq[cuda]' {_GPU}", "cuda", (2, 4, 8)),
        ("unpack", "torch", "pip install torch", "any", (2, 3, 4, 8), ("gptq", "awq")),
        ("bitsandbytes", "bitsandbytes", "pip install -e '.[nf4]'", "any", (4,), ("bitsandbytes",)),
    )
}
#: Those for packed layers on a GPU.
ON_GPU = tuple(name for name, backend in BACKENDS.items() if backend.device == "cuda")
