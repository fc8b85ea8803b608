"""Interoperability: do the exported checkpoints answer through a real vLLM server as they do here?

vLLM lives in an environment of its own (its packages clash with this one's): ``make vllm-check
VLLM=/path/to/its/bin``. Base and FP8 are served in turn; every answer is compared with that of
transformers' own loader on the same picture. The reference computes in fp64, which leaves no rounding of
its own around the FP8 products; the server computes in fp32 (in BF16 two engines that round in another
order fall apart at near ties, and a difference would say nothing). How much hangs on fp32's own grain is
measured beside it: transformers' answers in fp32, once as they are and several times with a disturbance of
a millionth on what enters the layers. A checkpoint that the server refuses is a line with its reason. No
time is taken.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from colq_utils.base import files
from colq_utils.base.errors import ColqError
from studies.fp8_serving import boxes, checkpoint, engine, make, pictures, settings
from studies.fp8_serving.pictures import Picture
from studies.fp8_serving.server import Remote, serving
from studies.fp8_serving.settings import Serving

PICTURES = 20
#: Relative disturbance: a few roundings of fp32.
GRAIN = 1e-6
DRAWS = 5


def versions() -> str | None:
    """What the ``vllm`` on the PATH says it is."""
    done = subprocess.run(["vllm", "--version"], capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 and done.stdout.strip() else None


def check(name: str, extra: tuple[str, ...] = (), port: int = 8199) -> pd.DataFrame:
    """Serve every variant of an experiment and compare; write ``vllm/answers.csv`` and ``vllm/check.json``.

    Raises:
        ColqError: no vllm on the PATH, a checkpoint is missing.
    """
    experiment = settings.load(name)
    if shutil.which("vllm") is None:
        raise ColqError("no `vllm` on the PATH: make vllm-check VLLM=/path/to/its/bin")
    arguments = ("--dtype", "float32", *extra)
    serve = Serving(engine="vllm", port=port, healthy_s=400, timeout_s=120, extra=arguments)
    held_out, tables, lines = pictures.load(count=PICTURES), [], []
    given = [p.data for p in held_out]
    for variant in experiment.variants:
        folder, line = engine.ready(experiment, variant), {"variant": experiment.variant_id(variant)}
        line["pictures"] = len(given)
        expected = references(folder, given)
        log = experiment.build("servers", f"check-{variant}.log")
        try:
            with serving(folder, line["variant"], serve, log) as server:
                answers = Remote(server, serve.timeout_s, 2).answer(given)
        except ColqError as error:
            lines.append(line | {"refused": _cause(error, log)})
        else:
            tables.append(compared(held_out, answers, expected))
            tables[-1].insert(0, "variant", line["variant"])
            lines.append(line | summary(tables[-1]))
        print(json.dumps(lines[-1]), flush=True)
    files.write_table(experiment.results("vllm") / "answers.csv", pd.concat(tables or [pd.DataFrame()]))
    report = {"vllm": versions(), "arguments": list(extra), "variants": lines}
    files.write_json(experiment.results("vllm") / "check.json", report)
    return pd.DataFrame(lines)


def references(folder: Path, given: list[bytes]) -> pd.DataFrame:
    """Answers without a server, one row a picture; how many of the disturbed ones differ from fp64's."""
    texts = make.through_transformers(folder, given, torch.float64)[0]
    rounded = make.through_transformers(folder, given, torch.float32)[0]
    stirred = [
        make.through_transformers(folder, given, torch.float32, GRAIN, seed)[0] for seed in range(DRAWS)
    ]
    model = checkpoint.load(folder, dtype=torch.float32)
    own = [answer.text for answer in engine.InProcess(folder, model=model).answer(given)]
    table = pd.DataFrame({"transformers": texts, "transformers_fp32": rounded, "in_process": own})
    changed = [sum(other != text for other in others) for text, *others in zip(texts, *stirred)]
    return table.assign(stirred_changed=changed)


def compared(held_out: list[Picture], answers: list[engine.Answer], expected: pd.DataFrame) -> pd.DataFrame:
    """The server's answers beside the `references`, with overlap and shift."""
    ids, texts = [p.id for p in held_out], [answer.text for answer in answers]
    table = pd.concat([pd.DataFrame({"picture": ids, "vllm": texts}), expected], axis=1)
    table["reason"] = [answer.reason for answer in answers]
    table["iou"] = [boxes.iou(answer.box, p.box) for p, answer in zip(held_out, answers)]
    table["shift_px"] = [
        boxes.shift_px(answer.box, boxes.parse(text), p.width, p.height)
        for p, answer, text in zip(held_out, answers, expected["transformers"])
    ]
    return table


def summary(table: pd.DataFrame) -> dict:
    """Counts of equal answers; are those apart in fp32 those that transformers does not hold there?"""
    unsteady = table["stirred_changed"] > 0
    return {
        "equal_to_transformers": int((table["vllm"] == table["transformers"]).sum()),
        "equal_to_in_process": int((table["vllm"] == table["in_process"]).sum()),
        "equal_to_transformers_fp32": int((table["vllm"] == table["transformers_fp32"]).sum()),
        "failed": int(table["reason"].notna().sum()),
        "iou_mean": float(table["iou"].mean()),
        "shift_px_max": float(table["shift_px"].max()),
        "grain": GRAIN,
        "draws": DRAWS,
        "unsteady": int(unsteady.sum()),
        "apart_and_unsteady": int((unsteady & (table["vllm"] != table["transformers_fp32"])).sum()),
    }


def _cause(error: ColqError, log: Path) -> str:
    """Why the server refused: the last error in its log, or else what was raised."""
    text = log.read_text(errors="replace") if log.exists() else ""
    causes = re.findall(r"\b\w+Error: (?!Engine core).+", text) or [str(error).splitlines()[0]]
    return causes[-1][:300]


def main(
    experiment: str, extra: Annotated[list[str] | None, typer.Argument()] = None, port: int = 8199
) -> None:
    """The command line of ``make vllm-check``; EXTRA: further arguments of vllm serve, after --."""
    try:
        check(experiment, tuple(extra or ()), port)
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
