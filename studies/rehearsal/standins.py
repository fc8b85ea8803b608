"""What the rehearsal's hub serves: stand-ins in the published layouts, made from bundled data.

The checkpoint is the bundled demo model as the published ones are stored (shards with an index, the unused
``lm_head``); the data sets hold a few pages of MiniVidore under the names, configurations and columns that
mteb reads from ViDoRe. They stand in for layout and protocol, not for content: scores mean nothing.
"""

import json
import shutil
from pathlib import Path

import mteb
import pandas as pd
import torch
from datasets import Dataset, Features, Image, Value
from safetensors.torch import load_file, save_file

from colq_utils.base.config import ROOT, Experiment
from colq_utils.data import minividore
from studies.rehearsal.hub import Repository

MODEL = ROOT / "models" / "tiny-colqwen3"
HEAD = "vlm.lm_head.weight"  # published with the checkpoints; retrieval never uses it
SHARDS = 3


def repositories(experiment: Experiment, folder: Path, pages: int = 4) -> dict[str, Repository]:
    """Everything that `experiment` fetches, as repositories under `folder`, which is made anew.

    Args:
        pages: of each data set; every page has one query in each language.
    """
    shutil.rmtree(folder, ignore_errors=True)
    served = {f"models/{experiment.model.path}": experiment.model.revision}
    checkpoint(folder / f"models/{experiment.model.path}")
    source = experiment.calibration
    served[f"datasets/{source.source}"] = source.revision
    text(folder / f"datasets/{source.source}" / source.file)
    for number, task in enumerate(mteb.get_tasks(tasks=list(experiment.evaluation.tasks))):
        name = f"datasets/{task.metadata.dataset['path']}"
        served[name] = task.metadata.dataset["revision"]
        retrieval(folder / name, task, number * pages, pages)
    return {name: Repository(folder / name, commit) for name, commit in served.items()}


def checkpoint(folder: Path) -> None:
    """The bundled model in `SHARDS` files with an index, with an output head that nothing reads."""
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.csv"))
    tensors = load_file(MODEL / "model.safetensors")
    tensors[HEAD] = torch.zeros_like(tensors["vlm.model.language_model.embed_tokens.weight"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2))
    places = {}
    for number in range(SHARDS):
        file, names = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors", sorted(tensors)[number::SHARDS]
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def text(file: Path) -> None:
    """The bundled calibration corpus with the columns of pile-10k."""
    file.parent.mkdir(parents=True)
    passages = pd.read_parquet(ROOT / "data" / "calibration" / "corpus.parquet")["text"]
    meta = [{"pile_set_name": "stand-in"}] * len(passages)
    pd.DataFrame({"text": passages, "meta": meta}).to_parquet(file)


def retrieval(folder: Path, task, start: int, pages: int) -> None:
    """A data set in the shape that `task` reads, with `pages` pages of MiniVidore from `start` on.

    ViDoRe v1 has one language; in v2 languages share a corpus and each other's answers; v3 has a corpus per
    language. A query is words from the middle of its page, the same ones in every language.
    """
    rows = minividore.load().pages.iloc[start : start + pages]
    images = [{"bytes": content, "path": None} for content in rows["image"]]
    queries = [" ".join(words.split()[10:16]) for words in rows["text"]]
    numbers, name = list(range(pages)), task.metadata.name
    if name.startswith("Vidore3"):
        for language in task.hf_subsets:
            ids = [f"{language}-{n}" for n in numbers]
            _write(folder, f"{language}-corpus", {"id": ids, "image": images})
            _write(folder, f"{language}-queries", {"id": [f"q-{i}" for i in ids], "text": queries})
            judged = {"query-id": [f"q-{i}" for i in ids], "corpus-id": ids, "score": [2] * pages}
            _write(folder, f"{language}-qrels", judged)
    else:
        languages = (
            task.hf_subsets if name.startswith("Vidore2") and len(task.hf_subsets) > 1 else ["english"]
        )
        ids = list(range(pages * len(languages)))
        _write(folder, "corpus", {"corpus-id": numbers, "image": images, "doc-id": ["document"] * pages})
        asked = {"query-id": ids, "query": queries * len(languages)}
        _write(folder, "queries", asked | {"language": [lang for lang in languages for _ in numbers]})
        answers = numbers * len(languages)
        _write(folder, "qrels", {"query-id": ids, "corpus-id": answers, "score": [1] * len(ids)})
    _describe(folder)


def _write(folder: Path, configuration: str, columns: dict[str, list]) -> None:
    """The one parquet file of a configuration's test split."""
    kinds = {"image": Image(), "corpus-id": None, "query-id": None, "score": Value("int64")}
    values = {
        name: kinds.get(name) or Value("int64" if isinstance(of[0], int) else "string")
        for name, of in columns.items()
    }
    file = folder / configuration / "test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    Dataset.from_dict(columns, Features(values)).to_parquet(file)


def _describe(folder: Path) -> None:
    """The card of a data set, whose front matter names its configurations."""
    names = sorted(path.name for path in folder.iterdir())
    entry = "- config_name: {0}\n  data_files:\n  - split: test\n    path: {0}/test-*\n"
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(map(entry.format, names)) + "---\n")
