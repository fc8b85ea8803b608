"""What each eight-bit option does to the embeddings of the bundled model."""

import torch

from colq_utils.base import config
from colq_utils.data import samples
from colq_utils.fast import load
from colq_utils.fast import path as fast
from colq_utils.model import encode


def effects(experiment: dict, schedules: dict[str, str]) -> list[dict]:
    """Cosine with bf16 of the bundled model's token embeddings, by option; the same for all experiments.

    Returns:
        Rows of option, kind (queries or pages), mean, min, tokens and saved_bytes of the bundled model.
    """
    base = config.load("tiny")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    demo = base.model_copy(update={"runtime": config.Runtime(device=device, encode="plain")})
    texts, images = samples.queries(demo, 64), samples.pages(demo, 8)
    plain, rows = None, []
    for name, change in {
        "none": {},
        "embedding table in int8": {"embedding": "int8"},
        "vision tower in FP8": {"vision": "fp8"},
        "both": {"embedding": "int8", "vision": "fp8"},
        "language model in FP8": {"scheme": "fp8"},
    }.items():
        spec = demo.variants[0].model_copy(update=change)
        alone = {"variants": (spec.model_dump(),), "benchmark": {"variants": (), "workloads": ()}}
        changed = config.Experiment.model_validate(demo.model_dump() | alone)
        loaded = load.load(changed, spec.name(base.model.size))
        size = sum(t.nbytes for t in (*loaded.model.parameters(), *loaded.model.buffers()))
        embedded = encode.queries(loaded, texts), encode.pages(loaded, images)
        if plain is None:
            plain, whole = embedded, size
            continue
        rows += [
            {"option": name, "kind": kind, **fast.agreement(a, b), "saved_bytes": whole - size}
            for kind, a, b in zip(("queries", "pages"), plain, embedded, strict=True)
        ]
    return rows
