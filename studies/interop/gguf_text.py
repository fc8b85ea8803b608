"""Queries through llama.cpp: the language model as GGUF, the projection applied outside, against ColQ's own.

``python -m studies.interop.gguf_text tiny`` makes the environment (llama.cpp is compiled, which needs cmake
and a C++ compiler), asks it, and writes results/interop/<experiment>_gguf.csv. Pages are not tried: llama.cpp
wants the vision tower in a file of its own.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from colq_utils.base import config, files
from colq_utils.base.config import Experiment
from colq_utils.data import samples
from colq_utils.fast import load
from colq_utils.model import encode
from studies.interop import engines

ENGINE = engines.Engine(
    "llama-cpp",
    "llama.cpp",
    ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6"),
    "open_llama_cpp.py",
    "text alone",
)
QUERIES = 32


def prepare(experiment: Experiment, folder: Path) -> tuple[load.Loaded, list[list[int]]]:
    """Put text tower and token ids where the script looks for them; returns the base and the ids."""
    base = load.load(experiment, experiment.base)
    ids = [base.processor.queries([q])["input_ids"][0].tolist() for q in samples.queries(experiment, QUERIES)]
    tower = base.model.language_model
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "weights.npz", **{f"model.{n}": t.float().numpy() for n, t in tower.state_dict().items()}
    )
    files.write_json(folder / "config.json", tower.config.to_dict())
    files.write_text(folder / "ids.json", json.dumps(ids))
    return base, ids


@torch.inference_mode()
def compare(experiment: Experiment, base: load.Loaded, answer: Path) -> pd.DataFrame:
    """A row per format: bytes of the file, mean and least cosine of each token's vector with ColQ's."""
    own, rows = torch.cat(encode.queries(base, samples.queries(experiment, QUERIES))), []
    with np.load(answer) as states:
        for kind in (name for name in states if not name.endswith(" bytes")):
            vectors = base.model.embedding_proj_layer(torch.from_numpy(states[kind]))
            cosine = torch.cosine_similarity(vectors, own.float(), dim=-1)  # (n_tokens,)
            size = int(states[f"{kind} bytes"])
            rows.append((kind, size, QUERIES, len(cosine), cosine.mean().item(), cosine.min().item()))
    columns = ["format", "file_bytes", "queries", "tokens", "cosine_mean", "cosine_min"]
    return pd.DataFrame(rows, columns=columns)


def main(name: str) -> None:
    experiment = config.load(name)
    root = experiment.output / "build" / "interop"
    folder = root / experiment.name / "gguf"
    base, _ = prepare(experiment, folder)
    interpreter = engines.python(ENGINE, root)
    engines.ask(ENGINE, interpreter, folder, folder, folder / "answer.npz")
    table = compare(experiment, base, folder / "answer.npz")
    results = experiment.output / "results" / "interop"
    print(files.write_table(results / f"{experiment.name}_gguf.csv", table))


if __name__ == "__main__":
    main(sys.argv[1])
