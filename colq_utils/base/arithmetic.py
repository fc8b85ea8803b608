"""One arithmetic on every CPU: fp32, with the instructions of AVX2, whatever more the processor has.

A sum of floating-point numbers depends on its order, and the libraries under torch choose the order by the width of the
vectors they find: the same weights score differently on AVX2 and AVX-512, and bf16 products, native on some processors,
are emulated ten times slower on others. So on x86-64 the three libraries (ATen, oneDNN, MKL) are held to AVX2 before
torch is first imported. MKL's strict mode makes the result independent of the number of threads as well. It costs speed on a
processor with AVX-512 (a page of the bundled model took 173 instead of 143 ms on two cores of one). `check`, which every loader
calls, refuses other settings and a torch that was used before the pins were there.

Not held: MKL takes a path of its own on processors that are not Intel's, which differs in the last bits of long sums;
other architectures (64-bit Arm) compute fp32 with what they have; packed kernels (``ark``) choose for themselves, which is
why no score is made with them on a CPU. Sources: the CNR chapter of oneMKL's developer guide, oneDNN's CPU dispatcher
control, ATen's native/DispatchStub.cpp.
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
    """Raise where the pins did not take.

    Raises:
        ColqError: the processor has no AVX2, a variable asks for something else, or torch was used before this package was
            imported.
    """
    if platform.machine() not in X86:
        return
    import torch

    if not torch.cpu._is_avx2_supported():
        raise ColqError(
            f"this processor ({processor()}) has no AVX2 instructions, which everything here is computed with on x86-64; "
            "use a machine made after 2015, or a GPU (runtime.device: cuda)"
        )
    for name, value in {**PINS, "MKL_ENABLE_INSTRUCTIONS": None}.items():
        given = os.environ.get(name)
        if given is not None and given != value:
            raise ColqError(
                f"the environment variable {name} is {given!r}: everything here is computed with the instructions of AVX2, "
                f"so that results do not depend on the processor; unset it and run the same command again"
            )
    late = torch.backends.cpu.get_cpu_capability() != "AVX2" or (
        vendor() == "GenuineIntel" and mkl_mode() not in (None, STRICT_AVX2)
    )
    if late:
        raise ColqError(
            "torch computed before colq_utils was imported, with other instructions than those of AVX2; import colq_utils first "
            "(in a notebook: restart the kernel and run the cells in order)"
        )


def mkl_mode() -> int | None:
    """The reproducibility mode that MKL is in, as its own number; None where torch has no MKL that tells."""
    import torch

    libraries = sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.so"))
    try:
        return int(ctypes.CDLL(str(libraries[0])).mkl_serv_cbwr_get(-1))
    except (IndexError, OSError, AttributeError):
        return None


def describe(dtype: str) -> dict[str, str]:
    """What results are computed with on this CPU: dtype, instructions, and the settings of the three libraries."""
    import torch

    return {
        "dtype": dtype,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "vendor": vendor(),
        **{name: os.environ[name] for name in PINS if name in os.environ},
    }


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
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
    except OSError:
        return ""
