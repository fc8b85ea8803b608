"""The path of published checkpoints, on a stand-in: their layout, ViDoRe's three shapes, interrupted runs.

The notebooks' own cells run here, all but the benchmark's (which the smoke experiment runs).
"""

import importlib
import json
import shutil

import local_tasks
import nbformat
import pandas as pd
import pytest
import torch
import yaml
from shards import shard

from colq_utils import run
from colq_utils.base import config
from colq_utils.stages.evaluate import evaluate, store

PAGES = {"LocalSingle": 6, "LocalShared": 7, "LocalCopies": 8}


@pytest.fixture(scope="module")
def standin(random_checkpoint, tmp_path_factory):
    """The random model as the 8B is published: untied, an unused head, shards with an index."""
    folder = shutil.copytree(random_checkpoint, tmp_path_factory.mktemp("standin") / "checkpoint")
    shard(folder, 3, torch.randn(384, 128).bfloat16())
    fields = json.loads((folder / "config.json").read_text())
    assert {"text_config", "vision_config", "embed_dim"} <= set(fields)
    (folder / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": False}))
    return folder


@pytest.fixture(scope="module")
def experiment(standin, corpus, tmp_path_factory):
    """tomoro-8b on the stand-in: its calibration and evaluation, three local tasks and one that fails."""
    folder = tmp_path_factory.mktemp("experiment")
    fields = yaml.safe_load((config.ROOT / "experiments" / "tomoro-8b.yaml").read_text())
    fields["model"] = {"path": str(standin), "size": "standin", "max_visual_tokens": 16}
    fields["runtime"] = {"device": "cpu", "encode": "plain"}
    fields["calibration"] = {
        "source": str(corpus),
        "sets": [
            {"id": "s16", "seqlen": 16, "blocks": 8, "batch_rows": 4},
            {"id": "s32", "seqlen": 32, "blocks": 4, "batch_rows": 2},
        ],
    }
    fields["variants"] = [
        {"scheme": "bf16"},
        *({"scheme": "w4a16", "method": "autoround", "calibration": s, "iters": 8} for s in ("s16", "s32")),
    ]
    fields["benchmark"] = {"variants": [], "workloads": []}
    fields["evaluation"] |= {"tasks": list(local_tasks.TASKS), "batch": 2}
    (folder / "standin.yaml").write_text(yaml.safe_dump(fields))
    return folder / "standin.yaml", config.load(str(folder / "standin.yaml"), folder / "out")


@pytest.fixture(scope="module", autouse=True)
def registered():
    """mteb knows the local tasks by name, as it knows ViDoRe's."""
    registry = importlib.import_module("mteb.get_tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "TASK_LIST", (*registry.TASK_LIST, *local_tasks.TASKS.values()))
        patch.setattr(registry, "_TASKS_REGISTRY", registry._TASKS_REGISTRY | local_tasks.TASKS)
        yield


def notebook(stage: str, experiment) -> dict:
    """Run the code cells of a stage's notebook here, with its parameters set; their names."""
    path, loaded = experiment
    names = {"experiment": str(path), "output": str(loaded.output)}
    for cell in nbformat.read(loaded.notebook(stage), as_version=4).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            exec(compile(cell.source, f"{stage} {cell.id}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def embedded():
    """Keys of pages embedded, by variant, in the order they were stored."""
    return {}


@pytest.fixture(scope="module")
def outcome(experiment, embedded):
    """All stages; evaluation killed within a corpus, then between two tasks, and started again each time."""
    for stage in ("inspect", "calibrate", "quantize"):
        notebook(stage, experiment)
    extend, left = (
        store.VectorStore.extend,
        [3 + 21 + 4, 10_000],
    )  # pages until the first kill: in the second variant's first corpus

    def counted(self, keys, matrices, **notes):
        if self.folder.name != "pages":  # the base's queries
            return extend(self, keys, matrices, **notes)
        left[0] -= len(keys)
        if left[0] < 0:
            left.pop(0)
            raise KeyboardInterrupt
        extend(self, keys, matrices, **notes)
        embedded.setdefault(self.folder.parent.name.rsplit("-", 1)[0], []).extend(keys)

    finished = []
    write = evaluate.files.write_table

    def between(path, frame):
        write(path, frame)
        finished.append(path.name)
        if len(finished) == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.VectorStore, "extend", counted)
        with pytest.raises(KeyboardInterrupt):
            notebook("evaluate", experiment)
        patch.setattr(evaluate.files, "write_table", between)
        with pytest.raises(KeyboardInterrupt):
            notebook("evaluate", experiment)
        patch.setattr(evaluate.files, "write_table", write)
        notebook("evaluate", experiment)
    notebook("report", experiment)
    return experiment[1]


def test_every_page_is_embedded_once_a_variant_whatever_happened(outcome, embedded):
    assert set(embedded) == set(outcome.by_id)
    for variant, keys in embedded.items():
        assert len(keys) == len(set(keys)) == sum(PAGES.values()), variant
    queries = pd.read_parquet(outcome.results("evaluate") / "queries.parquet")
    once = queries.groupby(["variant", "task"]).encoded_pages.first().unstack("task")
    assert once.loc[outcome.base].to_dict() == PAGES, (
        "languages, in one corpus or in copies, share their pages"
    )


def test_entries_are_named_by_language_and_translations_share_a_source(outcome):
    queries = pd.read_parquet(outcome.results("evaluate") / "queries.parquet")
    scores = pd.read_csv(outcome.results("evaluate") / "scores.csv")
    entries = scores[scores.variant == outcome.base].set_index(["task", "lang"]).n_queries.to_dict()
    assert entries == {
        ("LocalSingle", "en"): 5,
        ("LocalShared", "fr"): 4,
        ("LocalShared", "en"): 4,
        ("LocalShared", "de"): 4,
        ("LocalCopies", "en"): 6,
        ("LocalCopies", "it"): 6,
    }
    base = queries[queries.variant == outcome.base]
    assert base.groupby("task").source.nunique().to_dict() == {
        "LocalSingle": 5,
        "LocalShared": 4,
        "LocalCopies": 6,
    }
    assert base[base.task == "LocalShared"].groupby("source").lang.agg(set).eq({"fr", "en", "de"}).all()


def test_a_task_that_fails_leaves_the_others_and_a_named_hole(outcome):
    failures = pd.read_csv(outcome.results("evaluate") / "failures.csv")
    assert set(failures.variant) == set(outcome.by_id) and set(failures.task) == {"LocalBroken"}
    text = (outcome.results("reports") / "quantization_analysis.md").read_text()
    assert "| LocalBroken | BF16 (base) | ConnectionError: the data cannot be had |" in text
    state = outcome.build("state", "evaluate.json")
    kept = {
        "inputs": run.fingerprint(run.step(outcome, "evaluate"), {}),
        "outputs": None,
        "figures": {},
        "weights": {},
    }
    state.parent.mkdir(parents=True, exist_ok=True)
    (outcome.results("notebooks") / config.NOTEBOOKS["evaluate"]).write_text("{}")
    state.write_text(json.dumps(kept | {"outputs": run.files.sha256(*run.step(outcome, "evaluate").outputs)}))
    assert not run.is_fresh(outcome, run.step(outcome, "evaluate"), {}), "a failed task is tried again"


def test_reports_of_the_published_shape(outcome):
    analysis, english = (
        (outcome.results("reports") / name).read_text()
        for name in ("quantization_analysis.md", "comparison_english.md")
    )
    for heading in (
        "## Answer",
        "## Which one for what",
        "## Recipe",
        "## Limits",
        "## Evidence",
        "Scores: all languages, English, task by task",
        "Acceptance and size of the checkpoints",
        "How it was quantized and calibrated",
        "Machine and versions",
    ):
        assert heading in analysis, heading
    assert (
        "| LocalSingle (5) |" in english
        and "| LocalShared (4) |" in english
        and "| LocalCopies (6) |" in english
    )
    assert "s16 and s32 hold the same number of tokens" in analysis
    figures = {p.name for p in outcome.figures.glob("*.png")}
    assert {
        "comparison.png",
        "difference.png",
        "comparison_english.png",
        "difference_english.png",
        "average.png",
    } <= figures


def test_the_head_is_left_out(outcome):
    variants = pd.read_csv(outcome.results("quantize") / "variants.csv")
    assert variants.accepted.all() and variants.fallback.isna().all()
    assert (variants.predicted_bytes == variants.tensor_bytes).all()
    architecture = json.loads((outcome.results("inspect") / "architecture.json").read_text())
    assert architecture["stored"]["unused_head_bytes"] > 0
