"""Interoperability: do the exported checkpoints answer through a real vLLM server as they do here?

vLLM lives in an environment of its own (its packages clash with this one's): ``make vllm-check VLLM=/path/to/its/bin``.
Base and FP8 are served in turn; every answer is compared with that of transformers' own loader on the same picture. The
reference computes in fp64, which leaves no rounding of its own around the FP8 products; the server computes in fp32 (in BF16
two engines that round in another order fall apart at near ties, and a difference would say nothing). How much hangs on fp32's
own grain is measured beside it: transformers' answers in fp32, once as they are and several times with a disturbance of a
millionth on what enters the layers. A checkpoint that the server refuses is a line with its reason. No time is taken.
"""

import argparse
import json
import re
import subprocess
import sys

import pandas as pd
import torch

from colq_utils.base import config, files
from colq_utils.base.errors import ColqError
from studies.fp8_serving import boxes, engine, fp8, make, pictures
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
        ColqError: no vllm on the PATH, a checkpoint is missing, the server did not come up.
    """
    experiment = config.load(name)
    settings = Serving(
        engine="vllm", port=port, healthy_s=400, timeout_s=120, extra=("--dtype", "float32", *extra)
    )
    held, rows, lines = pictures.load(count=PICTURES), [], []
    given = [p.data for p in held]
    for variant in experiment.variants:
        folder, called = experiment.folder(variant), experiment.variant_id(variant)
        files.required(folder / "model.safetensors", f"quantize EXPERIMENT={name}")
        here, _ = make.through_transformers(folder, given, torch.float64)
        single, _ = make.through_transformers(folder, given, torch.float32)
        stirred = [
            make.through_transformers(folder, given, torch.float32, GRAIN, seed)[0] for seed in range(DRAWS)
        ]
        native = [
            a.text
            for a in engine.InProcess(folder, model=fp8.load(folder, dtype=torch.float32)).answer(given)
        ]
        log = experiment.build("servers", f"check-{variant}.log")
        try:
            with serving(folder, called, settings, log) as server:
                answers = Remote(server, settings.timeout_s, 2).answer(given)
        except ColqError as error:
            causes = (
                re.findall(r"\b\w+Error: (?!Engine core).+", log.read_text(errors="replace"))
                if log.exists()
                else []
            )
            lines.append(
                {
                    "variant": called,
                    "pictures": len(given),
                    "refused": (causes or [str(error).splitlines()[0]])[-1][:300],
                }
            )
            print(json.dumps(lines[-1]), flush=True)
            continue
        for picture, answer, text, rounded, own, *others in zip(
            held, answers, here, single, native, *stirred, strict=True
        ):
            both = answer.box is not None and boxes.parse(text) is not None
            rows.append(
                {
                    "variant": called,
                    "picture": picture.id,
                    "vllm": answer.text,
                    "transformers": text,
                    "transformers_fp32": rounded,
                    "in_process": own,
                    "stirred_changed": sum(other != text for other in others),
                    "reason": answer.reason,
                    "iou": boxes.iou(answer.box, picture.box),
                    "shift_px": boxes.shift_px(answer.box, boxes.parse(text), picture.width, picture.height)
                    if both
                    else None,
                }
            )
        mine = pd.DataFrame([r for r in rows if r["variant"] == called])
        unsteady = mine["stirred_changed"] > 0
        lines.append(
            {
                "variant": called,
                "pictures": len(mine),
                "equal_to_transformers": int((mine["vllm"] == mine["transformers"]).sum()),
                "equal_to_in_process": int((mine["vllm"] == mine["in_process"]).sum()),
                "equal_to_transformers_fp32": int((mine["vllm"] == mine["transformers_fp32"]).sum()),
                "failed": int(mine["reason"].notna().sum()),
                "iou_mean": float(mine["iou"].mean()),
                "shift_px_max": float(mine["shift_px"].astype(float).max()),
                "grain": GRAIN,
                "draws": DRAWS,
                "unsteady": int(unsteady.sum()),
                "apart_and_unsteady": int((unsteady & (mine["vllm"] != mine["transformers_fp32"])).sum()),
            }
        )
        print(json.dumps(lines[-1]), flush=True)
    files.write_table(experiment.results("vllm") / "answers.csv", pd.DataFrame(rows))
    files.write_json(
        experiment.results("vllm") / "check.json",
        {"vllm": versions(), "arguments": list(extra), "variants": lines},
    )
    return pd.DataFrame(lines)


def main() -> int:
    """The command line of ``make vllm-check``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("experiment")
    parser.add_argument("--port", type=int, default=8199)
    parser.add_argument("extra", nargs="*", help="further arguments of vllm serve, after --")
    given = parser.parse_args()
    try:
        check(given.experiment, tuple(given.extra), given.port)
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
