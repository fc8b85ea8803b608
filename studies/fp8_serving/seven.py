"""Latency and memory of FP8 against BF16 at the dimensions of Qwen2-VL-7B, random weights, on one GPU.

The embedded detector is so small that its time is not spent on weights; this run has the dimensions of the
published model, a picture of 1024 x 759 pixels and an answer of 25 tokens, and says nothing about accuracy.
One process builds the base, then FP8 from the same weights, and times them in turns; every request decodes
its JPEG, makes patches, reads picture and prompt, and writes its tokens one by one. Run: ``python -m
studies.fp8_serving.seven OUT``.
"""

import copy
import gc
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from studies.fp8_serving import checkpoint, engine, forward, fp8, generate, pictures, scenes, tiny

#: Tokens of the published chat template before and after the picture: system text and a short question.
AHEAD, BEHIND = 15, 28
#: Tokens of the answer `[0.05, 0.38, 0.55, 0.6]`, its end included.
ANSWER = 25
PICTURE = (1024, 759)


def configuration(layers: int = 28, depth: int = 32) -> Qwen2VLConfig:
    """The published dimensions of Qwen2-VL-7B."""
    return Qwen2VLConfig(
        text_config=dict(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=layers,
            num_attention_heads=28,
            num_key_value_heads=4,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            bos_token_id=None,
            eos_token_id=None,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
        ),
        vision_config=dict(depth=depth, embed_dim=1280, hidden_size=3584, num_heads=16, mlp_ratio=4),
        tie_word_embeddings=False,
    )


def requests(count: int) -> list[bytes]:
    """JPEG pictures of the published size."""
    drawn = [scenes.draw([scenes.CHECK, 9000 + number], PICTURE).image for number in range(count)]
    return [pictures.encode(image, "JPEG", quality=88) for image in drawn]


def fitted(data: bytes) -> Image.Image:
    """An encoded picture, decoded and resized within the limits of the published model."""
    return generate.fitted(pictures.decode(data), 56 * 56, 28 * 28 * 1280)


def ask(generator: generate.Generator, batch: list[bytes]) -> generate.Timing:
    """Serve a batch of encoded pictures; the answer's tokens are not looked at."""
    start = time.perf_counter()
    given = generate.patches([fitted(data) for data in batch], generate.MEAN, generate.STD, "cuda")
    torch.cuda.synchronize()
    prepared = time.perf_counter() - start
    _, timing = generator(given, ignore_stop=True)
    timing.prepare_s = prepared
    return timing


def memory() -> dict[str, int]:
    """Bytes that tensors hold, that the allocator holds, and that are taken on the card by anyone."""
    return {
        "allocated_bytes": torch.cuda.memory_allocated(),
        "reserved_bytes": torch.cuda.memory_reserved(),
        "card_used_bytes": engine.card_used_bytes(),
        "card_bytes": torch.cuda.mem_get_info()[1],
    }


def copy_rate() -> float:
    """Bytes read per second in a device-to-device copy of 4 GB (the copy also writes as many)."""
    source = torch.randint(0, 255, (4 * 10**9,), dtype=torch.uint8, device="cuda")
    target, times = torch.empty_like(source), []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * len(source) / float(np.median(times))


def kernel_error(layer: fp8.Fp8Linear, tokens: int) -> float:
    """Relative error of an FP8 layer on the device against fp32 arithmetic on the same FP8 numbers."""
    x = torch.randn(tokens, layer.weight.shape[1], device="cuda", dtype=torch.bfloat16)
    kept, fast = layer.kernel, layer(x).float()
    layer.kernel = "reference"
    exact = layer(x).float()
    layer.kernel = kept
    return float((fast - exact).norm() / exact.norm())


def profiled(generator: generate.Generator, batch: list[bytes], rows: int = 14) -> list[dict]:
    """Where the GPU's time goes in one request: kernels by total time."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        ask(generator, batch)
    events = sorted(trace.key_averages(), key=lambda e: -e.self_device_time_total)[:rows]
    return [
        {"kernel": e.key[:110], "calls": e.count, "ms": round(e.self_device_time_total / 1e3, 3)}
        for e in events
    ]


class Run:
    """The models, their generators and what was measured, step by step."""

    def __init__(self, layers: int, depth: int):
        self.encoded, self.generators = requests(8), {}
        self.prompt = generate.Prompt(list(range(AHEAD)), list(range(100, 100 + BEHIND)), -1)
        self.size = fitted(self.encoded[0]).size
        start, config = time.perf_counter(), configuration(layers, depth)
        with torch.device("cuda"):
            base = Qwen2VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        self.models = {"bf16": fp8.fuse(base.eval().requires_grad_(False))}
        torch.cuda.synchronize()
        self.log = {"build_s": time.perf_counter() - start}

    def quantize(self) -> dict[str, float]:
        """Add FP8 made from the base; returns the relative error of each kind of layer."""
        self.models["fp8"] = fp8.quantize(copy.deepcopy(self.models["bf16"]), "fp8-dynamic")
        layer = "model.language_model.layers.0."
        return {
            f"{name}, {tokens} tokens": kernel_error(self.models["fp8"].get_submodule(layer + name), tokens)
            for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
            for tokens in (1, 8, 200)
        }

    def prepare(self, name: str, batch: int) -> None:
        """Compile, record and call once; ``fp8 scaled_mm`` is FP8 with torch's product alone."""
        start, model = time.perf_counter(), self.models[name.split()[0]]
        if "scaled_mm" in name:
            fp8.use_kernel(model, "scaled_mm")
        blocks = forward.Blocks.compiled()
        generator = generate.Generator(model, self.prompt, self.size, batch, ANSWER, blocks).record()
        fp8.use_kernel(model, "few_tokens")
        first_s = ask(generator, self.encoded[:batch]).total_s
        self.generators[name, batch] = generator
        ready_s = time.perf_counter() - start
        self.log[f"{name}, batch {batch}"] = {"compile_and_record_s": ready_s, "first_request_s": first_s}
        print(
            f"{name} batch {batch}: ready in {ready_s:.1f} s, first request {1e3 * first_s:.1f} ms",
            flush=True,
        )

    def measure(self, rounds: int, counts: dict[int, int]) -> list[dict]:
        """Times of every request, variants in turns; `counts` gives the calls of each batch size a round."""
        samples = []
        for number in range(rounds):
            for (name, batch), generator in self.generators.items():
                for _ in range(3):
                    ask(generator, self.encoded[:batch])
                for call in range(counts[batch]):
                    chosen = [self.encoded[(call + i) % len(self.encoded)] for i in range(batch)]
                    timing = ask(generator, chosen)
                    parts = {part: getattr(timing, part) for part in ("prepare_s", "prefill_s", "decode_s")}
                    sample = {"variant": name, "batch": batch, "round": number, **parts}
                    samples.append(sample | {"latency_s": timing.total_s, "new_tokens": timing.tokens})
        return samples

    def drop(self, *keep: tuple[str, int]) -> None:
        """Forget generators, and models that no generator uses any more."""
        self.generators = {key: self.generators[key] for key in keep}
        self.models = {name: self.models[name] for name, _ in keep}
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


def embedded(folder: Path) -> dict[str, list[str]]:
    """Answers of the embedded detector to the held-out pictures on this device's kernels, 16 a call."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = generate.Prompt(
        *(tokenizer.encode(part).ids for part in tiny.PROMPTED.split("<|image_pad|>")),
        tokenizer.token_to_id("<|im_end|>"),
    )
    images = [pictures.decode(picture.data) for picture in pictures.load()]
    answers = {}
    for name in ("bf16", "fp8"):
        model = checkpoint.load(folder, "cuda")
        model = fp8.fuse(fp8.quantize(model, "fp8-dynamic") if name == "fp8" else model)
        texts = [""] * len(images)
        for size in scenes.SHAPES:
            generator = generate.Generator(model, prompt, size, 16)
            fitting = [i for i, image in enumerate(images) if image.size == size]
            for start in range(0, len(fitting), 16):
                chosen = fitting[start : start + 16]
                padded = [images[i] for i in chosen + chosen[:1] * (16 - len(chosen))]
                given = generate.patches(padded, generate.MEAN, generate.STD, "cuda")
                for i, ids in zip(chosen, generator(given)[0]):
                    texts[i] = tokenizer.decode(ids)
        answers[name] = texts
    return answers


def main(
    out: Path, layers: int = 28, depth: int = 32, rounds: int = 2, counts: tuple[int, int] = (40, 8)
) -> None:
    """Run everything; write ``run.json`` and ``samples.json`` to `out`."""
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = 64
    log = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "picture": PICTURE,
        "answer_tokens": ANSWER,
        "layers": layers,
        "vision_layers": depth,
        "weights": "random, seed 0",
    }
    run = Run(layers, depth)
    log["prompt_tokens"] = AHEAD + BEHIND + run.size[0] * run.size[1] // 28**2
    log["fitted_picture"] = run.size
    log["bytes"] = {"bf16": fp8.bytes_by_part(run.models["bf16"])}
    log["copy_bytes_per_s"] = copy_rate()
    torch.cuda.empty_cache()
    run.prepare("bf16", 1)
    log["memory"] = {"bf16": memory() | {"kv_bytes": run.generators["bf16", 1].cache_bytes}}
    log["kernel_relative_error"] = run.quantize()
    print({name: round(error, 5) for name, error in log["kernel_relative_error"].items()}, flush=True)
    log["bytes"]["fp8"] = fp8.bytes_by_part(run.models["fp8"])
    for name, batch in (("fp8", 1), ("fp8 scaled_mm", 1), ("bf16", 8), ("fp8", 8)):
        run.prepare(name, batch)
    samples = run.measure(rounds, {1: counts[0], 8: counts[1]})
    (out / "samples.json").write_text(json.dumps(samples))
    log |= {"cold": run.log, "profile": {}}
    for (name, batch), generator in run.generators.items():
        if batch == 1:
            log["profile"][f"{name}, batch 1"] = profiled(generator, run.encoded[:1])
    run.drop(("fp8", 1))
    log["memory"]["fp8"] = memory() | {"kv_bytes": run.generators["fp8", 1].cache_bytes}
    log["embedded_answers"] = embedded(Path("models/tiny-qwen2vl-nutrition"))
    alike = np.mean([a == b for a, b in zip(*log["embedded_answers"].values())])
    print("embedded detector, exact answers alike:", alike)
    (out / "run.json").write_text(json.dumps(log, indent=1))
    times = ["latency_s", "prepare_s", "prefill_s", "decode_s"]
    print(pd.DataFrame(samples).groupby(["variant", "batch"], sort=False)[times].median().round(5))
    print(json.dumps(log["memory"]), json.dumps(log["bytes"]), log["copy_bytes_per_s"] / 1e12)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
