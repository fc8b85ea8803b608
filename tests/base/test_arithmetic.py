"""One arithmetic on every CPU: pinned, checked, the same bits on any processor and any number of threads."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from colq_utils.base import arithmetic, config
from colq_utils.base.errors import ColqError
from colq_utils.model import kernels

x86 = pytest.mark.skipif(platform.machine() not in arithmetic.X86, reason="the pins are for x86-64")

#: Quantizes by both methods, embeds texts and pages, and prints digests of all of it.
#: Arguments: experiment file, output, probe.
CHILD = """
import hashlib, json, sys
import colq_utils
import numpy as np
import torch
from PIL import Image
from auto_round.utils import device
from colq_utils.base import arithmetic, config, files
from colq_utils.model import encode, loading
from colq_utils.stages import calibrate, quantize
device.CpuInfo.bf16 = property(lambda self: sys.argv[3] == "bf16")  # what AutoRound would ask this processor
torch.set_num_threads(2)
experiment = config.load(sys.argv[1], sys.argv[2])
calibrate.build(experiment)
digests = {"capability": torch.backends.cpu.get_cpu_capability()}
for name in experiment.quantized:
    quantize.run(experiment, name)
    folder = experiment.checkpoint(name).parent
    written = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"]
    digests[name] = {str(p.relative_to(folder)): files.sha256(p) for p in written}
noise = [np.random.default_rng(i).integers(0, 255, (64, 96, 3), dtype=np.uint8) for i in range(2)]
pages = [Image.fromarray(pixels) for pixels in noise]
for name in experiment.by_id:
    loaded = loading.plain(experiment, name)
    vectors = encode.queries(loaded, ["alpha beta", "gamma delta epsilon"]) + encode.pages(loaded, pages)
    digests[name + " vectors"] = hashlib.sha256(b"".join(v.numpy().tobytes() for v in vectors)).hexdigest()
print(json.dumps(digests))
"""


def unpinned(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Python in a process whose environment holds none of the pins but those given."""
    others = {name: value for name, value in os.environ.items() if name not in arithmetic.PINS}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=config.ROOT, env=others | environment, capture_output=True, text=True)


@x86
def test_this_process_is_held_to_avx2():
    assert all(os.environ[name] == value for name, value in arithmetic.PINS.items())
    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    arithmetic.check()


@x86
def test_a_processor_without_avx2_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    with pytest.raises(ColqError, match="has no AVX2") as refusal:
        arithmetic.check()
    assert "\n" not in str(refusal.value) and "runtime.device: cuda" in str(refusal.value)
    with pytest.raises(ColqError, match=r"'ark' needs an x86-64 processor with AVX2.*use backend torch"):
        kernels.require("ark")


@x86
@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="nothing beyond AVX2 to compute with")
@pytest.mark.parametrize(
    "use",
    [
        "torch.ones(8).exp()",
        "torch.ones(64, 64) @ torch.ones(64, 64)",
        "torch.from_numpy(np.ones((64, 64), np.float32)).mm(torch.ones(64, 64))",
    ],
)
def test_torch_used_too_early_is_noticed(use):
    """An element-wise operation starts ATen, a product of matrices MKL alone."""
    code = f"import numpy as np, torch; {use}; from colq_utils.base import arithmetic; arithmetic.check()"
    done = unpinned(code)
    assert done.returncode != 0 and "import colq_utils first" in done.stderr


@x86
def test_torch_imported_first_and_not_used_is_in_time():
    code = (
        "import torch; from colq_utils.base import arithmetic; "
        "arithmetic.check(); print(arithmetic.mkl_mode())"
    )
    done = unpinned(code)
    assert done.returncode == 0, done.stderr[-500:]
    if arithmetic.vendor() == "GenuineIntel":
        assert done.stdout.strip() == str(arithmetic.STRICT_AVX2)


@x86
@pytest.mark.parametrize(
    "name, value",
    [
        ("MKL_CBWR", "garbage"),
        ("ONEDNN_MAX_CPU_ISA", ""),
        ("ATEN_CPU_CAPABILITY", "avx512"),
        ("MKL_ENABLE_INSTRUCTIONS", "SSE4_2"),
    ],
)
def test_another_setting_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ColqError, match=f"{name} is '{value}'.*unset it"):
        arithmetic.check()


def test_another_architecture_is_not_held_to_x86(monkeypatch):
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(arithmetic.os, "environ", {})
    arithmetic.pin()
    arithmetic.check()
    assert not arithmetic.os.environ


@x86
def test_results_do_not_depend_on_threads():
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    a, b = torch.randn(300, 1024), torch.randn(1024, 256)
    try:
        products = []
        for n in (1, 2):
            torch.set_num_threads(n)
            products.append(a @ b)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*products)


@pytest.fixture(scope="module")
def study(experiment_file, corpus, tmp_path_factory):
    """Both ways of rounding the random model, on made-up text."""
    calibration = {"source": str(corpus), "sets": [{"id": "s32", "seqlen": 32, "blocks": 8, "batch_rows": 4}]}
    variants = [
        {"scheme": "bf16"},
        {"scheme": "w4a16", "method": "rtn", "exports": ["auto_round", "auto_awq", "auto_gptq"]},
        {"scheme": "w4a16", "method": "autoround", "calibration": "s32", "iters": 20},
    ]
    folder = tmp_path_factory.mktemp("arithmetic")
    return experiment_file(folder, "arithmetic", calibration=calibration, variants=variants)


def digests(study, folder, environment, probe):
    """What `CHILD` prints."""
    done = unpinned(CHILD, study, str(folder), probe, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_exports_and_embeddings_are_the_same_bits_on_both_kinds_of_processor(study, tmp_path):
    """All of this processor, AutoRound told that it knows bf16; AVX2 alone, told that it does not."""
    everything = digests(study, tmp_path / "all", {}, "bf16")
    pins = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    assert everything == digests(study, tmp_path / "avx2", pins, "none")
    exports = ("auto_awq", "auto_gptq", "auto_round")
    assert {f"{export}/config.json" for export in exports} <= set(everything["random-w4a16-rtn"])
    ids = ("random-bf16", "random-w4a16-rtn", "random-w4a16-autoround-s32")
    assert len({everything[f"{name} vectors"] for name in ids}) == 3
