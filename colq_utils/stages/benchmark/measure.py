"""The child's side of the benchmark: one variant, every workload, in a process that did nothing else.

Order: load; the first call of each workload (where kernels are chosen and caches made) on its own; a second
call for peak memory; the rest of the warm-up; only then timed calls, with nothing but the clock around the
model. Inputs are prepared and moved before the clock starts: what is timed is the forward pass, which
quantization changes, not the tokenizer and image processor, which it does not.
"""

import gc
import io
import itertools
import statistics
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from colq_utils.base.config import Experiment, Workload
from colq_utils.base.errors import ColqError
from colq_utils.base.names import COARSE, DIFFERENT, GRAIN, part_of
from colq_utils.base.process import describe, resident
from colq_utils.fast import load, profiling
from colq_utils.fast.path import agreement
from colq_utils.model import encode, loading
from colq_utils.model.clock import timed
from colq_utils.stages.benchmark.ceilings import demand
from colq_utils.stages.benchmark.workloads import batches, items


def run(experiment: dict, variant: str, plan: list, schedules: dict[str, str] | None = None) -> dict:
    """Load a variant and time every workload of `plan`; arguments and result are JSON-ready.

    Args:
        experiment: an `Experiment` as ``model_dump(mode="json")`` gives it.
        plan: pairs of a name and a `Workload` as a dict.
        schedules: tuned ones by ``out x in`` of a layer, for layers on humming.

    Returns:
        ``load_s``, ``census``, ``memory`` (metric -> bytes) and ``workloads``: a record each, with
        ``latency_s`` a timed call and, on CUDA, ``profile`` of one batch, or with ``error``, as when memory
        runs out.
    """
    settings = Experiment.model_validate(experiment)
    device = settings.runtime.device
    if settings.runtime.threads is not None:
        torch.set_num_threads(settings.runtime.threads)
    memory = {"rss_before_load_bytes": resident()}
    start = time.perf_counter()
    loaded = loading.plain(settings, variant)
    load_s, compared = time.perf_counter() - start, []
    if settings.encode_path(variant) == "fast":
        plain_s = loaded.load_s
        loaded, compared = _accelerated(settings, loaded, schedules)
        load_s += loaded.load_s - plain_s
    gc.collect()
    memory |= {"rss_loaded_bytes": resident(), **tensor_bytes(loaded.model)}
    if device == "cuda":  # what the allocator holds
        memory["allocated_bytes"] = torch.cuda.memory_allocated()
        memory["reserved_bytes"] = torch.cuda.memory_reserved()
    records = [_record(settings, loaded, name, Workload(**fields)) for name, fields in plan]
    return {
        "load_s": load_s,
        "encode": loaded.encode,
        "agreement": compared,
        "census": [vars(use) for use in loaded.census],
        "memory": {name: value for name, value in memory.items() if value is not None},
        "workloads": records,
    }


def _accelerated(settings: Experiment, loaded: loading.Loaded, schedules: dict[str, str] | None):
    """A loaded variant on the fast path, and its agreement with the plain path, measured first.

    Raises:
        ColqError: the bf16 base disagrees with itself on the two paths.
    """
    queries = items(settings, Workload(kind="queries", batch=8, iterations=1), 8)
    pages = items(settings, Workload(kind="pages", batch=1, iterations=1), 1)
    plain = encode.queries(loaded, queries), _pages(loaded, pages)
    grain = {"kind": GRAIN, **agreement(plain[0], encode.queries(loaded, queries, batch=1))}
    spec = settings.by_id[loaded.variant]
    fast = load.accelerate(loaded, settings.backend(loaded.variant), schedules)
    compared = [{"kind": "queries", **agreement(plain[0], encode.queries(fast, queries))}]
    for _ in range(2):  # as they come, recorded; then replayed
        _pages(fast, pages)
    compared.append({"kind": "pages", **agreement(plain[1], _pages(fast, pages))})
    worst = min(entry["mean"] for entry in compared)
    is_base = spec.scheme == "bf16" and spec.vision is None and spec.embedding is None
    if is_base and not 1 - worst <= max(1 - DIFFERENT, COARSE * (1 - grain["mean"])):
        raise ColqError(
            f"the fast path of {loaded.variant} gives other embeddings than the plain one "
            f"(mean token cosine {worst:.6f}; the plain path has {grain['mean']:.6f} with itself); "
            "set encode to plain and report this"
        )
    if settings.runtime.device == "cuda":
        torch.cuda.empty_cache()
    return fast, [*compared, grain]


def _pages(loaded: loading.Loaded, files: list[bytes]) -> list[torch.Tensor]:
    """Token embeddings of pages given as encoded image files."""
    return encode.pages(loaded, [Image.open(io.BytesIO(file)) for file in files])


def _record(settings: Experiment, loaded: loading.Loaded, name: str, work: Workload) -> dict:
    """Measure one workload; running out of memory (or another failure) is its result, not the run's end."""
    key = {"kind": name, "batch": work.batch}
    try:
        return key | _measure(settings, loaded, work)
    except (RuntimeError, MemoryError, ValueError) as error:  # torch's out-of-memory errors are RuntimeErrors
        gc.collect()
        if settings.runtime.device == "cuda":
            torch.cuda.empty_cache()
        return key | {"error": describe(error)}


@torch.inference_mode()
def _measure(settings: Experiment, loaded: loading.Loaded, work: Workload) -> dict:
    device = settings.runtime.device
    feed = batches(loaded, items(settings, work, work.items), work.kind, work.batch)
    model = loaded.model

    def call(inputs: dict) -> float:
        return timed(lambda: model(**inputs), device)

    inputs = next(feed)
    first_call_s = call(inputs)
    with getattr(model, "unrecorded", nullcontext)():  # what a graph works in is not counted as allocated
        memory = peak(lambda: model(**inputs), device)
    cycle = -(-work.items // work.batch) if work.kind == "queries" else 0
    if device == "cuda":
        model(**inputs)  # pages are recorded when they come again
    # Two calls of warm-up are done. CPU kernels are built anew for each length: every batch of queries is met
    # once.
    for inputs in itertools.islice(feed, max(work.warmup - 2, cycle - 1, 0)):
        call(inputs)
    latency_s, needs, tokens = [], [], []
    for inputs in itertools.islice(feed, work.iterations):
        latency_s.append(call(inputs))
        needs.append(asdict(demand(model, inputs)))
        tokens.append(int(inputs["attention_mask"].sum()))
    mean = {part: statistics.fmean(need[part] for need in needs) for part in needs[0]}
    record = {
        "first_call_s": first_call_s,
        "memory": memory,
        "demand": mean | {"weight_bytes": needs[0]["weight_bytes"]},
        "tokens_per_call": statistics.fmean(tokens),
        "latency_s": latency_s,
        "finished_at": time.time(),
    }
    if device == "cuda":
        middle = statistics.median_low(tokens)
        inputs = next(inputs for inputs in feed if int(inputs["attention_mask"].sum()) == middle)
        record["profile"] = profiling.parts(lambda: model(**inputs))
    return record


def tensor_bytes(model: torch.nn.Module) -> dict[str, int]:
    """Bytes of parameters and buffers as the model holds them now, by part and together."""
    sizes: Counter[str] = Counter()
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        sizes[f"tensors_{part_of(name)}_bytes"] += tensor.nbytes
    return {**sizes, "tensors_bytes": sizes.total()}


def peak(work, device: str) -> dict[str, int]:
    """Peak memory while `work` runs: device memory on CUDA, resident set on Linux, absent elsewhere."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_allocated_bytes": allocated, "peak_reserved_bytes": reserved}
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the present resident set
        resettable = True
    except OSError:
        resettable = False
    work()
    return {"peak_rss_bytes": resident("VmHWM")} if resettable else {}
