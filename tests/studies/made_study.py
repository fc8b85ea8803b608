"""Made-up results of a study with known effects, in the files that a run writes."""

import numpy as np
import pandas as pd

from colq_utils.base import files, names
from colq_utils.data import minividore
from colq_utils.model import hub
from studies.seqlen import weights as study_weights
from studies.seqlen.spec import StudySpec

TASKS = ("MiniVidorePhrases", "MiniVidoreKeywords", "MiniVidoreCrosslingual")
#: What a family or a set does to the score of every query, before the seed's own share.
EFFECT = {
    "s256": -0.02,
    "s512": -0.02,
    "s1024": -0.02,
    "p256": -0.08,
    "p512": -0.02,
    "p1024": -0.02,
    "rtn": -0.03,
    "fp8": 0.0,
}
SEED_SD = 0.004


def write(folder, spec: StudySpec, seed: int = 0) -> None:
    """runs.csv, queries.parquet, pages.parquet and provenance.json of all variants of `spec`."""
    rng, benchmark = np.random.default_rng(seed), minividore.load()
    tensors = [t for t in hub.read_headers(spec.model_path) if t.part != names.UNUSED]
    asked = pd.concat(
        [
            minividore.queries_of(benchmark, t, lang).assign(task=t)[["task", "lang", "query_id"]]
            for t in TASKS
            for lang in minividore.LANGUAGES
        ]
    )
    difficulty, runs, queries, pages = rng.uniform(0.3, 0.9, len(asked)), [], [], []
    for variant in spec.variants:
        shift = EFFECT.get(variant.set or variant.format, EFFECT["rtn"] if variant.method == "rtn" else 0.0)
        shift += (
            0
            if variant.seed is None
            else SEED_SD * np.random.default_rng([variant.seed, len(variant.set), variant.iters]).normal()
        )
        noise = 0.0 if variant.id == spec.base else rng.normal(0, 0.05, len(asked))
        queries.append(
            asked.assign(
                variant=variant.id,
                ndcg_at_5=np.clip(difficulty + shift + noise, 0, 1),
                first_rank=1,
                margin=0.1,
                kept=4,
                cosine=1 + shift,
                drift=abs(shift) + 1e-4,
            )
        )
        pages += [
            {
                "lang": lang,
                "scanned": scanned,
                "pages": 10,
                "tokens": 2660,
                "cosine_mean": 1 + shift,
                "cosine_p01": 0.9,
                "cosine_min": 0.8,
                "variant": variant.id,
            }
            for lang in minividore.LANGUAGES
            for scanned in (False, True)
        ]
        runs.append(
            {
                **spec.fields(variant),
                "bytes": study_weights.stored_bytes(variant, tensors),
                "not_finite": 0,
                "base": "base",
                "device": "made-up device",
                "worker": 0,
                "make_s": 1.0,
                "evaluate_s": 1.0,
                "digest": variant.id.removesuffix("-t1"),
                "error": "",
            }
        )
    files.write_table(folder / "queries.parquet", pd.concat(queries, ignore_index=True))
    files.write_table(folder / "pages.parquet", pd.DataFrame(pages))
    files.write_table(folder / "runs.csv", pd.DataFrame(runs))
    files.write_json(
        folder / "provenance.json",
        {
            "study": spec.name,
            "seed": spec.seed,
            "calls": [
                {"commit": "0", "workers": 3, "mps": False, "families": [], "variants": 9, "wall_s": 1.0}
            ],
            "left_out": [],
            "gpu": "made-up device",
            "packages": {"torch": "2", "auto-round": "0.16.1"},
        },
    )


#: Arithmetics of the base that `write_draws` makes up.
DRAWS = 10


def write_draws(folder, shift: float, seed: int = 1) -> None:
    """arithmetic-cuda.parquet and .json: the base of `write`, each draw by about `shift` higher."""
    rng, queries = np.random.default_rng(seed), pd.read_parquet(folder / "queries.parquet")
    base = queries.loc[queries["variant"] == "bf16", ["task", "lang", "query_id", "ndcg_at_5"]]
    draws = [
        base.assign(
            ndcg_at_5=base["ndcg_at_5"] + shift + rng.normal(0, 0.01, len(base)),
            draw=f"{dtype}-made-{number}",
        )
        for dtype, count in (("bfloat16", DRAWS), ("float32", 1))
        for number in range(count)
    ]
    files.write_table(folder / "arithmetic-cuda.parquet", pd.concat(draws, ignore_index=True))
    files.write_json(folder / "arithmetic-cuda.json", {"gpu": "made-up device", "draws": []})
