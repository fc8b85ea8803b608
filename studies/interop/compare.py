"""One checkpoint in one engine against ColQ: a row of the results."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from colq_utils.base.errors import ColqError
from colq_utils.model.maxsim import maxsim
from studies.interop.inputs import Reference


def row(answer: Path, reference: Reference) -> dict:
    """Token cosines, mean and least, on queries and pages; for how many queries the pages rank alike.

    Raises:
        ColqError: an engine gives another number of vectors than ColQ, so there is no cosine to take.
    """
    with safe_open(answer, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
        said = {key: json.loads(value) for key, value in content.metadata().items()}
    queries = [tensors[f"query.{i}"] for i in range(len(reference.queries))]
    pages = [tensors[f"page.{i}"] for i in range(len(reference.pages))]
    scores = tensors.get("scores")
    if scores is None:  # the engine has no MaxSim of its own here
        scores = maxsim(queries, len(pages), pages.__getitem__)
    alike = (scores.argsort(1, descending=True) == reference.scores.argsort(1, descending=True)).all(1)
    ranked = {"queries_ranked_alike": int(alike.sum()), "queries": len(queries)}
    result = {
        "loads": True,
        **ranked,
        "versions": _versions(said["versions"]),
        "kernel": said["said"].get("kernel", ""),
    }
    for kind, own, others in (("query", reference.queries, queries), ("page", reference.pages, pages)):
        counts = [(len(a), len(b)) for a, b in zip(own, others, strict=True) if len(a) != len(b)]
        if counts:
            reason = f"{kind}: {counts[0][1]} vectors where ColQ has {counts[0][0]}"
            return result | {"reason": reason}
        cosine = torch.cat([cosines(a, b) for a, b in zip(own, others, strict=True)])  # (n_tokens,)
        result |= {f"cosine_{kind}_mean": cosine.mean().item(), f"cosine_{kind}_min": cosine.min().item()}
    return result


def cosines(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cosine of each token's two vectors, ``(n_tokens,)``; further numbers of a wider vector count."""
    if own.shape[1] > other.shape[1]:
        raise ColqError(f"{other.shape[1]} dimensions where ColQ has {own.shape[1]}")
    padded = torch.nn.functional.pad(own.double(), (0, other.shape[1] - own.shape[1]))
    return torch.cosine_similarity(padded, other.double(), dim=-1)


def _versions(versions: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
