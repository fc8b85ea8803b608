"""What each eight-bit option does to the embeddings of the bundled model."""

import torch

from colq_utils.fast import load


def measure(model: str) -> list[dict]:
    """What each eight-bit option does to the embeddings of the embedded model: cosine with bf16, tokens of queries and pages.

    Args:
        model: digest of the bundled model's weights, so that what is kept of this measurement belongs to them.

    Returns:
        Rows of option, kind, mean, min, tokens and saved_bytes of the embedded model.
    """
    from colq_utils.base import config
    from colq_utils.data import samples
    from colq_utils.fast import path as fast
    from colq_utils.model import encode

    base = config.load("tiny")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    experiment = base.model_copy(update={"runtime": config.Runtime(device=device, encode="plain")})
    texts, images = samples.queries(experiment, 64), samples.pages(experiment, 8)
    plain, rows = None, []
    for name, change in {
        "none": {},
        "embedding table in int8": {"embedding": "int8"},
        "vision tower in FP8": {"vision": "fp8"},
        "both": {"embedding": "int8", "vision": "fp8"},
        "language model in FP8": {"scheme": "fp8"},
    }.items():
        spec = experiment.variants[0].model_copy(update=change)
        changed = config.Experiment.model_validate(
            experiment.model_dump()
            | {"variants": (spec.model_dump(),), "benchmark": {"variants": (), "workloads": ()}}
        )
        loaded = load.load(changed, spec.name(base.model.size))
        size = sum(t.nbytes for t in (*loaded.model.parameters(), *loaded.model.buffers()))
        found = encode.queries(loaded, texts), encode.pages(loaded, images)
        if plain is None:
            plain, whole = found, size
            continue
        rows += [
            {"option": name, "kind": kind, **fast.agreement(a, b), "saved_bytes": whole - size}
            for kind, a, b in zip(("queries", "pages"), plain, found, strict=True)
        ]
    return rows
