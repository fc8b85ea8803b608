"""The stand-in hub against the unchanged client libraries, in a process that knows only its address."""

import json
import subprocess
import sys

import pytest
import yaml

from colq_utils.base import config
from colq_utils.base.config import ROOT
from studies.rehearsal import __main__ as rehearsal
from studies.rehearsal import hub, standins

#: What the process does: fetches as stages do, and says what came of it as JSON.
CLIENT = """
import json, sys
import mteb
from colq_utils.base import config, files
from colq_utils.base.errors import ColqError
from colq_utils.model import hub

experiment = config.load(sys.argv[1])
model, text = experiment.model, experiment.calibration
folder = hub.fetch_folder(model.path, model.revision)
told = {"tensors": [t.name for t in hub.read_headers(model.path, model.revision)], "tasks": {}, "refused": {}}
told["weights"] = {p.name: files.sha256_bytes(p.read_bytes()) for p in folder.glob("*.safetensors")}
told["text"] = files.sha256_bytes(hub.fetch_dataset(text.source, text.file, text.revision).read_bytes())
for task in mteb.get_tasks(tasks=list(experiment.evaluation.tasks)):
    task.load_data()
    task.convert_v1_dataset_format_to_v2(1)
    told["tasks"][task.metadata.name] = {
        subset: [len(split["corpus"]), len(split["queries"]), sum(map(len, split["relevant_docs"].values()))]
        for subset, splits in task.dataset.items() for split in splits.values()
    }
for name, revision in (("org/gated", "2" * 40), (model.path, "3" * 40), ("org/missing", "4" * 40)):
    try:
        hub.fetch(name, "config.json", revision)
    except ColqError as error:
        told["refused"][name] = str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What the client says, the hub it asked, and the digests of what lay there."""
    folder = tmp_path_factory.mktemp("rehearsal")
    fields = yaml.safe_load((config.EXPERIMENTS / "tomoro-4b.yaml").read_text())
    file = folder / "tomoro-4b.yaml"
    file.write_text(yaml.safe_dump(rehearsal.shrunk(fields, short=True)))
    experiment = config.load(str(file), folder)
    served = standins.repositories(experiment, folder / "hub", pages=2)
    served["models/org/gated"] = hub.Repository(folder / "hub/models" / experiment.model.path, "2" * 40, True)
    (parquet,) = served[f"datasets/{experiment.calibration.source}"].digests.values()
    faults = [hub.Fault(f"store/{parquet}", "cut"), hub.Fault("resolve/.*/README.md", "busy")]
    with hub.running(served, faults) as running:
        command = [sys.executable, "-c", CLIENT, str(file)]
        environment = rehearsal.environment(running, folder)
        child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return (
        json.loads(child.stdout.splitlines()[-1]),
        running,
        served[f"models/{experiment.model.path}"],
        parquet,
    )


def test_a_checkpoint_in_shards_comes_whole(asked):
    told, _, repository, _ = asked
    assert told["weights"] == {n: d for n, d in repository.digests.items() if n.endswith(".safetensors")}
    assert len(told["weights"]) == standins.SHARDS and standins.HEAD in told["tensors"]


def test_a_download_cut_half_way_goes_on_and_a_busy_hub_is_asked_again(asked):
    told, running, _, parquet = asked
    assert told["text"] == parquet
    assert [status for _, path, status in running.requests if path == f"/store/{parquet}"] == [200, 200]
    assert 206 in [status for *_, status in running.requests], "headers of weights are read by range"
    assert [fault.times for fault in running.faults] == [0, 0]


def test_each_generation_of_vidore_has_its_entries(asked):
    tasks = asked[0]["tasks"]
    assert set(tasks) == set(rehearsal.SHORT)
    assert tasks["VidoreTabfquadRetrieval"] == {"default": [2, 2, 2]}
    languages = ("english", "french", "german", "spanish")
    # in v2 all languages search one corpus and hold the answers of all queries
    assert tasks["Vidore2ESGReportsRetrieval"] == {lang: [2, 2, 8] for lang in languages}
    assert tasks["Vidore3HrRetrieval"] == {lang: [2, 2, 2] for lang in (*languages, "italian", "portuguese")}


@pytest.mark.parametrize("name, reason", [("gated", "401"), ("tomoro", "404"), ("missing", "404")])
def test_what_cannot_be_had_is_one_line(asked, name, reason):
    ((model, message),) = [item for item in asked[0]["refused"].items() if name in item[0]]
    assert message.startswith(model) and "cannot be fetched from the hub" in message and reason in message
    assert "\n" not in message and "give the folder as model.path" in message


def test_what_is_changed_for_a_cpu_is_said():
    before = {"runtime": {"device": "cuda", "dtype": "bfloat16"}, "variants": [{"iters": 1000}], "seed": 1}
    after = {"runtime": {"device": "cpu"}, "variants": [{"iters": 2}], "seed": 1}
    assert rehearsal.differences(before, after) == [
        "runtime.device: cuda -> cpu",
        "runtime.dtype: bfloat16 -> None",
        "variants.0.iters: 1000 -> 2",
    ]
