"""One model in many arithmetics: the same weights, other batches, attention kernels, padding and precision.

A sum of floating-point numbers depends on its order, and the order on what stands beside a row in its batch.
So one run of the base is one draw of arithmetic, and a variant that differs from it by less than two draws do
is not told apart from it. Each draw scores every query; `pool` of the study, its seeds and quantized weights
have no part in this.

``python -m studies.seqlen.arithmetic seqlen --device cuda`` writes arithmetic-cuda.parquet and .json into the
study's results; each draw is written when it is finished.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from colq_utils.base import files, provenance
from colq_utils.base.config import DTYPES, ROOT
from colq_utils.base.errors import ColqError
from colq_utils.base.schema import Section
from colq_utils.model import encode, kernels, loading, processing
from colq_utils.model.loading import Loaded
from colq_utils.stages.evaluate.scores import per_query
from studies.seqlen import scores as study_scores
from studies.seqlen import spec as study_spec
from studies.seqlen.scores import Questions
from studies.seqlen.spec import StudySpec


class Draw(Section):
    """One arithmetic: batch sizes, attention kernel, side of the padding, tokens padded to a multiple."""

    attention: str
    pages: int
    queries: int
    side: str = "left"
    multiple: int = 1
    dtype: str = ""

    @property
    def id(self) -> str:
        parts = [self.dtype, self.attention, f"p{self.pages}", f"q{self.queries}", self.side]
        return "-".join(parts + ([f"m{self.multiple}"] if self.multiple > 1 else []))


#: The first is the study's own arithmetic, the second that of stage evaluate.
DRAWS = (
    Draw(attention="sdpa", pages=16, queries=128),
    Draw(attention="sdpa", pages=8, queries=32),
    Draw(attention="eager", pages=16, queries=128),
    Draw(attention="sdpa", pages=16, queries=128, side="right"),
    Draw(attention="sdpa", pages=8, queries=32, multiple=64),
    Draw(attention="eager", pages=8, queries=32, side="right"),
    Draw(attention="sdpa", pages=1, queries=1),
    Draw(attention="eager", pages=4, queries=64, multiple=64),
    Draw(attention="sdpa", pages=4, queries=16, side="right", multiple=64),
    Draw(attention="eager", pages=2, queries=8),
    Draw(attention="sdpa", pages=32, queries=256, multiple=128),
    Draw(attention="eager", pages=32, queries=256, side="right", multiple=128),
)


def draws(device: str) -> list[Draw]:
    """`DRAWS` in what the device computes in, then two of them in fp32 where that is something else."""
    own = [draw.model_copy(update={"dtype": DTYPES[device]}) for draw in DRAWS]
    exact = [draw.model_copy(update={"dtype": "float32"}) for draw in (DRAWS[0], DRAWS[2])]
    return own + [draw for draw in exact if draw.id not in {d.id for d in own}]


def opened(spec: StudySpec, device: str, draw: Draw) -> Loaded:
    """The base as a draw computes it."""
    model = loading.open_model(spec.model_path, getattr(torch, draw.dtype), device, draw.attention)
    processor = processing.from_pretrained(spec.model_path)
    processor.tokenizer.padding_side = draw.side
    if draw.multiple > 1:
        tokenizer = processor.tokenizer
        processor.tokenizer = functools.partial(tokenizer, pad_to_multiple_of=draw.multiple)
    return Loaded(draw.id, model, processor, kernels.census(model), 0.0)


def score(loaded: Loaded, questions: Questions, draw: Draw) -> pd.DataFrame:
    """One row per query: task, lang, query_id, ndcg_at_5, first_rank."""
    keys = range(len(questions.images))
    stream = encode.stream_pages(
        loaded, keys, lambda i: study_scores.picture(questions.images[i]), draw.pages
    )
    pages = torch.stack([vectors for _, matrices in stream for vectors in matrices])
    queries = encode.queries(loaded, questions.queries["text"].tolist(), draw.queries)
    vectors = study_scores.Embedded(pages, queries)
    if broken := study_scores.not_finite(vectors):
        raise ColqError(f"{draw.id}: {broken} numbers are NaN or infinite")
    return rows(questions, study_scores.score_matrix(questions, vectors, loaded.device))


def rows(questions: Questions, scores: torch.Tensor) -> pd.DataFrame:
    """What is kept of a matrix of scores ``(n_queries, n_pages)``; see `score`."""
    frames, ids = [], questions.page_ids
    for (task, lang), columns in questions.corpora.items():
        places = questions.rows(task, lang)
        asked = questions.queries.iloc[places]
        relevant = {q: dict.fromkeys(r, 1) for q, r in zip(asked["query_id"], asked["relevant"], strict=True)}
        own = scores[places][:, columns]
        frame = per_query(
            own, asked["query_id"].tolist(), [ids[i] for i in columns], [1] * len(asked), relevant
        )
        frames.append(frame.assign(task=task, lang=lang))
    table = pd.concat(frames, ignore_index=True)[["task", "lang", "query_id", "ndcg_at_5", "first_rank"]]
    return table.astype({"ndcg_at_5": "float32", "first_rank": "int16"})


def run(spec: StudySpec, device: str, out: Path, questions: Questions, wanted: list[Draw]) -> Path:
    """Score every draw and write both files again after each; returns the table's path.

    Raises:
        ColqError: a draw that gives NaN or infinite numbers.
    """
    path, tables, settings = out / f"arithmetic-{device}.parquet", [], []
    for draw in wanted:
        start = time.time()
        tables.append(score(opened(spec, device, draw), questions, draw).assign(draw=draw.id))
        settings.append({"id": draw.id, **draw.model_dump(), "seconds": round(time.time() - start, 1)})
        print(f"{settings[-1]['seconds']:6.1f} s  {draw.id}", flush=True)
        files.write_table(path, pd.concat(tables, ignore_index=True))
        files.write_json(path.with_suffix(".json"), {"draws": settings, **surroundings(spec, questions)})
    return path


def surroundings(spec: StudySpec, questions: Questions) -> dict:
    """What the draws were made with."""
    told = provenance.collect(spec)
    kept = {key: told[key] for key in ("commit", "cpu", "cores", "gpu", "cuda", "python", "packages")}
    base = files.sha256(*sorted(Path(spec.model_path).glob("*.safetensors")))[:16]
    return {"base": base, "queries": len(questions.queries), "pages": len(questions.pages), **kept}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="studies.seqlen.arithmetic", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("study")
    add("--device", default="cpu", choices=list(DTYPES))
    add("--out", type=Path, help="folder of the results (default: results/<study>-study)")
    add("--task", action="append", default=[], help="only this task of the benchmark (may be repeated)")
    add("--lang", action="append", default=[], help="only this language (may be repeated)")
    add("--draws", type=int, default=len(DRAWS) + 2, help="only the first so many")
    options = parser.parse_args(arguments)
    try:
        spec = study_spec.load(options.study)
        out = options.out or ROOT / "results" / f"{spec.name}-study"
        questions = study_scores.bench(tuple(options.task), tuple(options.lang))
        wanted = draws(options.device)[: options.draws]
        print(run(spec, options.device, out, questions, wanted))
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
