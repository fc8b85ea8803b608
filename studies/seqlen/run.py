"""Run a study: every variant rounded, measured and written down, in parallel processes on one device.

``python -m studies.seqlen.run seqlen --device cuda --workers 14 --seconds 500`` takes the variants of
``studies/seqlen/seqlen.yaml`` in the order of the file. The model is small and a GPU waits for its launches,
so several processes share it. Each finished variant is a file; what is finished is pooled into the output
folder again and again, a run that is cut off loses only what was under way, and the same command goes on from
there. A variant that fails is a row with its exception. No mteb, no quantization kernel: see `scores` and
`weights`.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pandas as pd

from colq_utils.base import files, provenance
from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError
from studies.seqlen import spec as study_spec
from studies.seqlen.pool import SeqlenPlan, base_digest, hopeless, pool, unpool
from studies.seqlen.spec import StudySpec
from studies.seqlen.worker import prepare, work

POOL_EVERY_S = 20


def run(plan: SeqlenPlan, out: Path, workers: int, only: tuple[str, ...] = ()) -> pd.DataFrame:
    """Run the study's variants (of the families `only`) and pool them in `out`; returns the table of runs.

    Raises:
        ColqError: results of another base or study lie in `out`.
    """
    spec, started = plan.spec, time.time()
    plan.scratch.mkdir(parents=True, exist_ok=True)
    wanted = [v for v in spec.variants if not only or v.family in only or v.id == spec.base]
    unpool(plan, out, spec)
    todo = [v.id for v in wanted if not plan.part(v.id, "json").exists()]
    context = multiprocessing.get_context("spawn")
    jobs, rate = context.Queue(), context.Value("d", 0.0)
    for variant in todo:
        if variant != spec.base:
            jobs.put(variant)
    n_workers = min(workers, len(todo))
    others = [context.Process(target=work, args=(i, plan, jobs, rate), daemon=True) for i in range(n_workers)]
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
    surroundings = provenance.collect(spec)
    for key in ("experiment", "commit", "max_visual_tokens"):
        surroundings.pop(key, None)
    record = {
        "study": spec.name,
        "study_digest": files.sha256_bytes(spec.model_dump_json().encode())[:16],
        "base": base_digest(spec),
        **surroundings,
        "calls": [*earlier, call],
        "left_out": [v.id for v in spec.variants if v.id not in done],
    }
    files.write_json(path, record)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="studies.seqlen.run", description="Run a study of studies/.")
    add = parser.add_argument
    add("study")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--workers", type=int, default=1)
    add("--seconds", type=float, default=1e9, help="start nothing that would end later than this")
    add("--out", help="folder of the results (default: results/<study>-study)")
    add("--scratch", help="folder of intermediate files (default: build/<study>-study)")
    add("--family", action="append", default=[], help="only this family of variants (may be repeated)")
    add("--task", action="append", default=[], help="only this task of the benchmark (may be repeated)")
    add("--lang", action="append", default=[], help="only this language (may be repeated)")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # workers inherit it
    try:
        name = f"{study_spec.load(options.study).name}-study"
        scratch = Path(options.scratch or ROOT / "build" / name).resolve()
        out = Path(options.out or ROOT / "results" / name).resolve()
        deadline, tasks, languages = time.time() + options.seconds, tuple(options.task), tuple(options.lang)
        plan = SeqlenPlan(options.study, options.device, scratch, deadline, tasks, languages)
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
