"""One process of a run: what is prepared once, and a variant rounded, embedded, scored and written."""

import contextlib
import queue
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from colq_utils.base import files, names
from colq_utils.base.config import DTYPES
from colq_utils.base.process import describe
from colq_utils.model import hub, kernels, loading, processing
from colq_utils.model.loading import Loaded
from studies.seqlen import scores as study_scores
from studies.seqlen import weights as study_weights
from studies.seqlen.pool import SeqlenPlan, base_digest
from studies.seqlen.spec import SeqlenVariant, StudySpec


def prepare(plan: SeqlenPlan, spec: StudySpec, wanted: list[SeqlenVariant]) -> None:
    """Page features of each vision tower, the base's vectors and scores, and the base's own rows."""
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
        variant = next(v for v in wanted if v.id == spec.base)
        _write(plan, spec, questions, variant, vectors, reference, {"worker": -1})
    tensors = {"pages": vectors.pages, "queries": torch.cat(vectors.queries), "scores": scores}
    tensors["lengths"] = torch.tensor([len(q) for q in vectors.queries])
    _save(tensors, plan.scratch / "reference.safetensors")


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
                failed = {"variant": variant.id, "error": describe(error)}
                files.write_json(plan.part(variant.id, "json"), failed)


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
            queries = stored["queries"].split(stored["lengths"].tolist())
            vectors = study_scores.Embedded(stored["pages"], list(queries))
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
        stored = load_file(_wait_for(plan, f"features-{tower_of(variant)}.safetensors"))
        features, grid = stored["features"], stored["grid"].tolist()
        vectors = study_scores.embed(loaded, features, grid, bench.questions.queries["text"].tolist())
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
    scores = reference.scores
    if vectors is not reference.vectors:
        scores = study_scores.score_matrix(questions, vectors, torch.device(plan.device))
    queries = study_scores.query_rows(questions, vectors, scores, reference)
    pages = study_scores.page_rows(questions, vectors, reference)
    for name, rows in (("queries.parquet", queries), ("pages.parquet", pages)):
        files.write_table(plan.part(variant.id, name), rows.assign(variant=variant.id))
    tensors = [t for t in hub.read_headers(spec.model_path) if t.part != names.UNUSED]
    record = {
        **spec.fields(variant),
        "bytes": study_weights.stored_bytes(variant, tensors),
        "not_finite": study_scores.not_finite(vectors),
        "base": base_digest(spec),
        "device": torch.cuda.get_device_name() if plan.device.startswith("cuda") else "cpu",
        **notes,
        "error": "",
    }
    files.write_json(plan.part(variant.id, "json"), record)
