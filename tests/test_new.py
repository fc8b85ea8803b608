"""`colq new`: what it writes can be run, and what cannot be is one line before anything is written."""

import json
import os
import subprocess
import sys

import pytest
from loopback_hub import running

from colq_utils import new
from colq_utils.__main__ import main
from colq_utils.base import config
from colq_utils.base.errors import ColqError

SAMPLE, MODEL = str(config.ROOT / "data" / "documents"), str(config.ROOT / "models" / "tiny-colqwen3")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Experiments are written to a folder of the test's own."""
    monkeypatch.setattr(new, "EXPERIMENTS", tmp_path)
    return tmp_path


def test_the_file_is_an_experiment(root, capsys):
    queries = f"{SAMPLE}/queries.csv"
    assert main(["new", "mine", "--model", MODEL, "--documents", SAMPLE, "--queries", queries]) == 0
    said = capsys.readouterr().out
    assert "2 documents, 32 pages; 68 labelled" in said and "make report EXPERIMENT=mine" in said
    written = config.load(str(root / "mine.yaml"))
    assert written.model.path == "models/tiny-colqwen3" and written.evaluation.documents.queries
    assert list(written.quantized) == ["tiny-w8a16-rtn", "tiny-w4a16-rtn", "tiny-w4a16-autoround-s256"]


def test_one_line_and_nothing_written(root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for arguments, message in [
        (("a b", MODEL, SAMPLE), "is no name for an experiment"),
        (("x", "nowhere/at/all", SAMPLE), "neither a checkpoint folder nor a hub id"),
        (("x", str(other), SAMPLE), "is missing: not a checkpoint folder"),
        (("x", MODEL, str(other)), "holds no PDF and no picture"),
        (("x", MODEL, SAMPLE, str(other / "q.csv")), "no queries file"),
    ]:
        with pytest.raises(ColqError, match=message):
            new.write(*arguments, *[None] * (5 - len(arguments)))
    assert not list(root.glob("*.yaml"))


def test_a_lora_on_the_hub_is_refused_with_the_command_that_merges_it(root):
    """By `new` and by `convert`, in processes whose hub is on loopback; nothing is written."""
    adapter = {"base_model_name_or_path": "org/base", "revision": "b" * 40, "peft_type": "LORA"}
    ours = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(root / "home")}
    commands = (
        ["new", "hub-lora", "--model", "org/lora", "--documents", SAMPLE],
        ["convert", "org/lora", "--to", str(root / "ours")],
    )
    with running() as hub:
        hub.repositories["org/lora"] = {"adapter_config.json": json.dumps(adapter).encode()}
        for arguments in commands:
            command = [sys.executable, "-m", "colq_utils", *arguments]
            ours |= {"HF_ENDPOINT": hub.address}
            done = subprocess.run(
                command, env=ours, cwd=config.ROOT, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
            assert "org/lora is a LoRA adapter" in done.stderr and "merge_and_unload" in done.stderr
            assert "loading.open_model('org/base'" in done.stderr
            assert "from_pretrained(model, 'org/lora', revision='" in done.stderr
    assert not (root / "ours").exists() and not (config.ROOT / "experiments" / "hub-lora.yaml").exists()


@pytest.mark.parametrize(("present", "timed"), [(True, "tiny-w4a16-rtn-ark"), (False, "tiny-w4a16-rtn")])
def test_a_packed_kernel_is_timed_where_it_runs(root, monkeypatch, present, timed):
    monkeypatch.setattr(new, "_runs", lambda backend: present)
    written = config.load(str(new.write("mine", MODEL, SAMPLE, None, None).path))
    assert written.benchmark.variants == ("tiny-bf16", timed)
    assert (written.backend(timed) == "ark") == present


def test_a_name_is_taken_once(root):
    new.write("mine", MODEL, SAMPLE, None, None)
    with pytest.raises(ColqError, match="is there already"):
        new.write("mine", MODEL, SAMPLE, None, None)
