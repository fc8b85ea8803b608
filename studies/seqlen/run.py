"""Run a study: every variant of a study file rounded, measured and written down, in parallel processes on one device.

``python -m studies.seqlen.run seqlen --device cuda --workers 14 --seconds 500`` takes the variants of
``studies/seqlen.yaml`` in the order of the file. The model is small and a GPU waits for its launches, so
several processes share it. Each finished variant is a file; what is finished is pooled into the output folder
again and again, a run that is cut off loses only what was under way, and the same command goes on from there.
A variant that fails is a row with its exception. No mteb, no quantization kernel: see `study_scores` and
`study_weights`.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from colq_utils.base import files, names, provenance
from colq_utils.base.config import DTYPES, ROOT
from colq_utils.base.errors import ColqError
from colq_utils.base.process import describe
from colq_utils.model import hub, kernels, loading, processing
from colq_utils.model.loading import Loaded
from studies.seqlen import scores as study_scores
from studies.seqlen import spec as study_spec
from studies.seqlen import weights as study_weights
from studies.seqlen.spec import SeqlenVariant, StudySpec

#: The tables of a study and what identifies a row of each.
TABLES = {
    "queries.parquet": ["task", "lang", "query_id", "variant"],
    "pages.parquet": ["lang", "scanned", "variant"],
}
POOL_EVERY_S = 20


@dataclass(frozen=True)
class SeqlenPlan:
    """What all processes of a run know."""

    study: str
    device: str
    scratch: Path
    deadline: float
    tasks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    @property
    def spec(self) -> StudySpec:
        return study_spec.load(self.study)

    def part(self, variant: str, table: str) -> Path:
        return self.scratch / "parts" / f"{variant}.{table}"


def run(plan: SeqlenPlan, out: Path, workers: int, only: tuple[str, ...] = ()) -> pd.DataFrame:
    """Run the study's variants (those of the families `only`) and pool them in `out`; returns the table of runs.

    Raises:
        ColqError: results of another base or study lie in `out`.
    """
    spec, started = plan.spec, time.time()
    plan.scratch.mkdir(parents=True, exist_ok=True)
    wanted = [v for v in spec.variants if not only or v.family in only or v.id == spec.base]
    _unpool(plan, out, spec)
    todo = [v.id for v in wanted if not plan.part(v.id, "json").exists()]
    context = multiprocessing.get_context("spawn")
    jobs, rate = context.Queue(), context.Value("d", 0.0)
    for variant in todo:
        if variant != spec.base:
            jobs.put(variant)
    others = [
        context.Process(target=work, args=(i, plan, jobs, rate), daemon=True)
        for i in range(min(workers, len(todo)))
    ]
    for process in others:
        process.start()
    try:
        prepare(plan, spec, wanted)
        while any(p.is_alive() for p in others) and time.time() < plan.deadline:
            time.sleep(min(POOL_EVERY_S, max(0.2, plan.deadline - time.time())) if len(todo) > 20 else 0.5)
            if hopeless(pool(plan, out, spec)):
                break
    finally:
        for process in others:
            process.terminate()
    runs = pool(plan, out, spec)
    call = {
        "commit": provenance.collect(spec)["commit"],
        "workers": workers,
        "mps": "CUDA_MPS_PIPE_DIRECTORY" in os.environ,
        "families": list(only),
        "variants": len(todo),
        "wall_s": round(time.time() - started, 1),
    }
    record_call(out, spec, runs, call)
    return runs


def record_call(out: Path, spec: StudySpec, runs: pd.DataFrame, call: dict) -> None:
    """Add a call to ``provenance.json``: a study may take several, all on one kind of device."""
    path = out / "provenance.json"
    earlier = json.loads(path.read_text())["calls"] if path.exists() else []
    done = set(runs["variant"][runs["error"] == ""])
    files.write_json(
        path,
        {
            "study": spec.name,
            "study_digest": files.sha256_bytes(spec.model_dump_json().encode())[:16],
            "base": base_digest(spec),
            **{
                k: v
                for k, v in provenance.collect(spec).items()
                if k not in ("experiment", "commit", "max_visual_tokens")
            },
            "calls": [*earlier, call],
            "left_out": [v.id for v in spec.variants if v.id not in done],
        },
    )


def hopeless(runs: pd.DataFrame) -> bool:
    """Whether so many variants fail that going on is a waste of the device."""
    if "iters" not in runs:
        return len(runs) >= 8
    failed = int((runs["error"] != "").sum())
    return failed >= 8 and failed > int((runs["iters"] > 0).sum())


def base_digest(spec: StudySpec) -> str:
    return files.sha256(*sorted(Path(spec.model_path).glob("*.safetensors")))[:16]


# --- what is prepared once
# -----------------------------------------------------------------------------------------------


def prepare(plan: SeqlenPlan, spec: StudySpec, wanted: list[SeqlenVariant]) -> None:
    """Page features of each vision tower that is wanted, the base's vectors and scores, and the base's own rows."""
    questions = study_scores.bench(plan.tasks, plan.languages)
    towers = {tower_of(v): v for v in reversed(wanted)}
    models = {name: open_tower(spec, plan.device, variant) for name, variant in towers.items()}
    features, grid = study_scores.page_features(models, questions)
    for name, values in features.items():
        _save({"features": values, "grid": torch.tensor(grid)}, plan.scratch / f"features-{name}.safetensors")
    base = models["bf16"]
    vectors = study_scores.embed(base, features["bf16"], grid, questions.queries["text"].tolist())
    scores = study_scores.score_matrix(questions, vectors, base.device)
    reference = study_scores.Reference(vectors, scores)
    if not plan.part(spec.base, "json").exists():
        _write(
            plan,
            spec,
            questions,
            next(v for v in wanted if v.id == spec.base),
            vectors,
            reference,
            {"worker": -1},
        )
    lengths = torch.tensor([len(q) for q in vectors.queries])
    _save(
        {"pages": vectors.pages, "queries": torch.cat(vectors.queries), "lengths": lengths, "scores": scores},
        plan.scratch / "reference.safetensors",
    )


def tower_of(variant: SeqlenVariant) -> str:
    """Name of the vision tower that a variant reads its pages through."""
    return "fp32" if variant.format == "fp32" else variant.visual


def open_tower(spec: StudySpec, device: str, variant: SeqlenVariant) -> Loaded:
    """The base in the precision of `variant`'s vision tower."""
    loaded = open_base(spec, device, torch.float32 if tower_of(variant) == "fp32" else None)
    if tower_of(variant) in ("bf16", "fp32"):
        return loaded
    state = loaded.model.state_dict()
    vision = {
        n: study_weights.rounded(w, variant.visual, variant.group_size, variant.sym)
        for n, w in state.items()
        if study_weights.is_visual_linear(n, w)
    }
    loaded.model.load_state_dict(vision, strict=False)
    return loaded


def open_base(spec: StudySpec, device: str, dtype: torch.dtype | None = None) -> Loaded:
    """The base on `device`, computed in `dtype` or in what that device computes in (`config.DTYPES`)."""
    dtype = dtype or getattr(torch, DTYPES[device.split(":")[0]])
    model = loading.open_model(spec.model_path, dtype, device)
    return Loaded(spec.base, model, processing.from_pretrained(spec.model_path), kernels.census(model), 0.0)


def _save(tensors: dict, path: Path) -> None:
    with files.atomic(path) as target:
        save_file(tensors, target)


# --- a worker
# ------------------------------------------------------------------------------------------------------------


def work(index: int, plan: SeqlenPlan, jobs, rate) -> None:
    """Take variants until none is left or the deadline is near."""
    torch.set_num_threads(1)
    (plan.scratch / "logs").mkdir(exist_ok=True)
    log = (plan.scratch / "logs" / f"worker-{index}.log").open("a", buffering=1)
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        spec, bench = plan.spec, None
        by_id, model = {v.id: v for v in spec.variants}, open_base(spec, plan.device)
        while True:
            try:
                variant = by_id[jobs.get(timeout=1)]
            except queue.Empty:
                return
            if time.time() + 6 + rate.value * variant.iters * spec.layers > plan.deadline:
                continue  # it would not end in time; a shorter one behind it may
            try:
                bench = bench or Bench.open(plan, spec)
                measure(plan, spec, variant, model, bench, rate, index)
            except Exception as error:
                files.write_json(
                    plan.part(variant.id, "json"), {"variant": variant.id, "error": describe(error)}
                )


@dataclass
class Bench:
    """The benchmark as a worker holds it; the reference is read when the first variant needs it."""

    questions: study_scores.Questions
    reference: study_scores.Reference | None = None

    @classmethod
    def open(cls, plan: SeqlenPlan, spec: StudySpec) -> "Bench":
        return cls(study_scores.bench(plan.tasks, plan.languages))

    def base(self, plan: SeqlenPlan) -> study_scores.Reference:
        if self.reference is None:
            stored = load_file(_wait_for(plan, "reference.safetensors"))
            vectors = study_scores.Embedded(
                stored["pages"], list(stored["queries"].split(stored["lengths"].tolist()))
            )
            self.reference = study_scores.Reference(vectors, stored["scores"])
        return self.reference


def _wait_for(plan: SeqlenPlan, name: str) -> Path:
    path = plan.scratch / name
    while not path.exists():
        if time.time() > plan.deadline:
            raise TimeoutError(f"{name} was not there in time")
        time.sleep(0.2)
    return path


def measure(
    plan: SeqlenPlan, spec: StudySpec, variant: SeqlenVariant, base: Loaded, bench: Bench, rate, index: int
) -> None:
    """Round, embed, score and write one variant; the base is given back as it was."""
    start = time.time()
    original = {n: w.clone() for n, w in base.model.state_dict().items() if study_weights.in_scope(n, "all")}
    if variant.method == "autoround":
        rounded = study_weights.tune(spec, variant, plan.device, plan.scratch)
        rate.value = (time.time() - start) / (variant.iters * spec.layers)
    else:
        rounded = study_weights.round_to_nearest(variant, base.model.state_dict())
    made_s, reference = time.time() - start, bench.base(plan)
    start = time.time()
    loaded = open_base(spec, plan.device, torch.float32) if variant.format == "fp32" else base
    language = {n: w for n, w in rounded.items() if study_weights.in_scope(n, "all")}
    hooks = study_weights.fp8_activations(loaded.model) if variant.format == "fp8" else []
    try:
        loaded.model.load_state_dict(language, strict=False)
        features = load_file(_wait_for(plan, f"features-{tower_of(variant)}.safetensors"))
        vectors = study_scores.embed(
            loaded, features["features"], features["grid"].tolist(), bench.questions.queries["text"].tolist()
        )
    finally:
        for hook in hooks:
            hook.remove()
        base.model.load_state_dict(original, strict=False)
    notes = {
        "make_s": round(made_s, 2),
        "evaluate_s": round(time.time() - start, 2),
        "worker": index,
        "rounded_tensors": len(rounded),
        "digest": study_weights.digest(rounded),
    }
    _write(plan, spec, bench.questions, variant, vectors, reference, notes)


def _write(
    plan: SeqlenPlan,
    spec: StudySpec,
    questions: study_scores.Questions,
    variant: SeqlenVariant,
    vectors,
    reference,
    notes: dict,
) -> None:
    """The parts of a finished variant; the JSON comes last and says that it is finished."""
    device = torch.device(plan.device)
    scores = (
        reference.scores
        if vectors is reference.vectors
        else study_scores.score_matrix(questions, vectors, device)
    )
    rows = study_scores.query_rows(questions, vectors, scores, reference)
    files.write_table(plan.part(variant.id, "queries.parquet"), rows.assign(variant=variant.id))
    files.write_table(
        plan.part(variant.id, "pages.parquet"),
        study_scores.page_rows(questions, vectors, reference).assign(variant=variant.id),
    )
    tensors = [t for t in hub.read_headers(spec.model_path) if t.part != names.UNUSED]
    own = (
        {"set_" + k: v for k, v in spec.set(variant.set).model_dump(exclude={"id"}).items()}
        if variant.set
        else {}
    )
    fields = variant.model_dump(exclude={"id"})
    record = {
        "variant": variant.id,
        **fields,
        **own,
        "bytes": study_weights.stored_bytes(variant, tensors),
        "not_finite": study_scores.not_finite(vectors),
        "base": base_digest(spec),
        "device": _device_name(plan.device),
        **notes,
        "error": "",
    }
    files.write_json(plan.part(variant.id, "json"), record)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"


# --- pooling ------------------------------------------------------------------------------------------------
# -------------


def pool(plan: SeqlenPlan, out: Path, spec: StudySpec) -> pd.DataFrame:
    """Write what is finished into `out`: a row a query and variant, a row a page group and variant, a row a variant."""
    order = {v.id: i for i, v in enumerate(spec.variants)}
    records = [json.loads(path.read_text()) for path in plan.scratch.glob("parts/*.json")]
    runs = pd.DataFrame(
        sorted((r for r in records if r["variant"] in order), key=lambda r: order[r["variant"]])
    )
    if runs.empty:
        return pd.DataFrame(columns=["variant", "error"])
    good = runs["variant"][runs["error"] == ""]
    for table, keys in TABLES.items():
        parts = [pd.read_parquet(plan.part(v, table)) for v in good]
        if parts:  # rows of one query lie side by side: they are nearly equal and compress well
            both = pd.concat(parts, ignore_index=True)
            both["variant"] = pd.Categorical(both["variant"], categories=list(order))
            files.write_table(
                out / table, both.sort_values(keys, kind="stable", ignore_index=True).astype({"variant": str})
            )
    files.write_table(out / "runs.csv", runs)
    return runs


def _unpool(plan: SeqlenPlan, out: Path, spec: StudySpec) -> None:
    """What an earlier run has pooled in `out`, as parts again."""
    if not (out / "runs.csv").exists():
        return
    runs = pd.read_csv(out / "runs.csv")
    runs["error"] = runs["error"].fillna("")
    if set(runs["base"][runs["error"] == ""]) - {base_digest(spec)}:
        raise ColqError(f"{out} holds results of another base: move them away, or give --out another folder")
    tables = {name: pd.read_parquet(out / name) for name in TABLES}
    for record in runs[runs["error"] == ""].to_dict("records"):
        for name, table in tables.items():
            if not plan.part(record["variant"], name).exists():
                files.write_table(
                    plan.part(record["variant"], name), table[table["variant"] == record["variant"]]
                )
        if not plan.part(record["variant"], "json").exists():
            files.write_json(
                plan.part(record["variant"], "json"), {k: v for k, v in record.items() if pd.notna(v)}
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="studies.seqlen.run", description="Run a study of studies/.")
    parser.add_argument("study")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="start nothing that would end later than this"
    )
    parser.add_argument("--out", default="", help="folder of the results (default: results/<study>-study)")
    parser.add_argument(
        "--scratch", default="", help="folder of intermediate files (default: build/<study>-study)"
    )
    parser.add_argument(
        "--family", action="append", default=[], help="only this family of variants (may be repeated)"
    )
    parser.add_argument(
        "--task", action="append", default=[], help="only this task of the benchmark (may be repeated)"
    )
    parser.add_argument("--lang", action="append", default=[], help="only this language (may be repeated)")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # workers inherit it
    try:
        name = study_spec.load(options.study).name
        scratch = Path(options.scratch).resolve() if options.scratch else ROOT / "build" / f"{name}-study"
        plan = SeqlenPlan(
            options.study,
            options.device,
            scratch,
            time.time() + options.seconds,
            tuple(options.task),
            tuple(options.lang),
        )
        out = Path(options.out).resolve() if options.out else ROOT / "results" / f"{name}-study"
        runs = run(plan, out, options.workers, tuple(options.family))
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = runs[runs["error"] != ""]
    print(f"{len(runs) - len(failed)} variants measured, {len(failed)} failed, in {out}")
    print(*(f"  {r.variant}: {r.error}" for r in failed.itertuples()), sep="\n")
    return 1 if len(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
