"""One arithmetic on every CPU: fp32, with the instructions of AVX2, whatever more the processor has.

A sum of floating-point numbers depends on its order, which the libraries under torch (ATen, oneDNN, MKL)
choose by the width of the vectors they find. So on x86-64 they are held to AVX2 before torch is first
imported; MKL's strict mode makes results independent of the number of threads as well. It costs speed on
AVX-512 (a page of the bundled model: 173 instead of 143 ms). Not held: MKL's own path on processors that are
not Intel's, other architectures, and packed kernels (``ark``), with which therefore no score is made on a
CPU. Sources: the CNR chapter of oneMKL's developer guide, oneDNN's CPU dispatcher control, ATen's
native/DispatchStub.cpp.
"""

import ctypes
import os
import platform
from pathlib import Path

from colq_utils.base.errors import ColqError

#: What each library reads when it is first used.
PINS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2,STRICT"}
X86 = ("x86_64", "AMD64")
#: MKL's own number for AVX2 in strict mode (mkl_types.h: MKL_CBWR_AVX2 | MKL_CBWR_STRICT).
STRICT_AVX2 = 0x10000 | 10


def pin() -> None:
    """Hold this process and its children to AVX2; to be called before torch is imported."""
    if platform.machine() in X86:
        for name, value in PINS.items():
            os.environ.setdefault(name, value)


def check() -> None:
    """Raise a `ColqError` where the pins did not take; every loader calls this."""
    if platform.machine() not in X86:
        return
    import torch

    if not torch.cpu._is_avx2_supported():
        raise ColqError(
            f"this processor ({processor()}) has no AVX2 instructions, with which everything is computed "
            "on x86-64; use a machine made after 2015, or a GPU (runtime.device: cuda)"
        )
    for name, value in {**PINS, "MKL_ENABLE_INSTRUCTIONS": None}.items():
        if os.environ.get(name, value) != value:
            raise ColqError(
                f"the environment variable {name} is {os.environ[name]!r}: everything here is computed with "
                "the instructions of AVX2, whatever the processor; unset it and run the same command again"
            )
    other_mkl = vendor() == "GenuineIntel" and mkl_mode() not in (None, STRICT_AVX2)
    if other_mkl or torch.backends.cpu.get_cpu_capability() != "AVX2":
        raise ColqError(
            "torch computed before colq_utils was imported, with other instructions than those of AVX2; "
            "import colq_utils first (in a notebook: restart the kernel and run the cells in order)"
        )


def mkl_mode() -> int | None:
    """The reproducibility mode that MKL is in, as its own number; None where torch has no MKL that tells."""
    import torch

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return int(library.mkl_serv_cbwr_get(-1))
    except (OSError, AttributeError):
        return None


def describe(dtype: str) -> dict[str, str]:
    """What results are computed with on this CPU: dtype, instructions, and the settings of the libraries."""
    import torch

    instructions = torch.backends.cpu.get_cpu_capability()
    pins = {name: os.environ[name] for name in PINS if name in os.environ}
    return {"dtype": dtype, "instructions": instructions, "vendor": vendor(), **pins}


def kind() -> str:
    """The kind of processor as far as it decides results: one table of scores comes from one kind."""
    import torch

    return f"{platform.machine()} {vendor()} {torch.backends.cpu.get_cpu_capability()}"


def processor() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def vendor() -> str:
    """``GenuineIntel``, ``AuthenticAMD``, …; the architecture where that is not told."""
    return _cpuinfo("vendor_id") or platform.machine()


def _cpuinfo(field: str) -> str:
    """A line of Linux's /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
