"""Publishing through huggingface_hub unchanged to a hub on loopback: nothing rejected or by accident."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from loopback_hub import running
from safetensors.torch import save_file

from colq_utils import publish
from colq_utils.base import config
from colq_utils.base.errors import ColqError

VARIANT = "tiny-w4a16-rtn"


@pytest.fixture
def experiment(tmp_path):
    """The default experiment with one accepted checkpoint of a single tensor, and a card."""
    settings = config.load("tiny", tmp_path)
    folder = settings.checkpoint(VARIANT)
    folder.mkdir(parents=True)
    save_file({"a": torch.arange(6.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "notes.bin").write_bytes(b"never sent")
    results = settings.results("quantize")
    table = pd.DataFrame({"variant": [VARIANT], "export": ["auto_round"], "accepted": [True]})
    table.to_csv(results / "variants.csv", index=False)
    cards = results.parent / "cards"
    cards.mkdir()
    (cards / f"{VARIANT}.md").write_text("---\nlicense: apache-2.0\n---\n# card\n")
    return settings


def through_hub(experiment, address: str, token: str) -> subprocess.CompletedProcess:
    """The command line in a process whose hub is `address`."""
    output = str(experiment.output)
    command = ["publish", "tiny", VARIANT, "--to", "me/model", "--output", output, "--yes"]
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    surroundings |= {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": output}
    return subprocess.run(
        [sys.executable, "-m", "colq_utils", *command],
        env=surroundings, cwd=config.ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_what_arrives_is_what_was_made(experiment):
    with running() as hub:
        outcome = through_hub(experiment, hub.address, hub.token)
        arrived = hub.repositories["me/model"]
    assert outcome.returncode == 0, outcome.stderr
    folder = experiment.checkpoint(VARIANT)
    assert {"model.safetensors", "config.json", "README.md", "modeling_colqwen3.py"} <= set(arrived)
    assert "notes.bin" not in arrived
    assert arrived["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert arrived["README.md"].startswith(b"---\nlicense")
    assert json.loads(arrived["config.json"])["auto_map"]["AutoModel"] == "modeling_colqwen3.ColQwen3"


def test_a_wrong_token_is_one_line(experiment):
    with running() as hub:
        outcome = through_hub(experiment, hub.address, "hf_wrong")
        assert hub.repositories == {}
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr
    assert "nothing was published to me/model" in outcome.stderr and "hf auth login" in outcome.stderr


def test_nothing_is_sent_without_yes(experiment, capsys):
    from colq_utils.__main__ import main

    output = str(experiment.output)
    assert main(["publish", "tiny", VARIANT, "--to", "me/model", "--output", output]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said and "notes.bin" not in said and "--yes" in said


def test_a_rejected_variant_is_refused(experiment):
    path = experiment.results("quantize") / "variants.csv"
    path.write_text(path.read_text().replace("True", "False"))
    with pytest.raises(ColqError, match="was not accepted by 03_quantize"):
        publish.prepare(experiment, VARIANT, "me/model")


@pytest.mark.parametrize(
    "variant, to, message",
    [
        ("tiny-bf16", "a/b", "exports no tiny-bf16"),
        (VARIANT, "name", "ORGANISATION/NAME"),
        (VARIANT, "../x", "ORGANISATION/NAME"),
    ],
)
def test_what_cannot_be_published(experiment, variant, to, message):
    with pytest.raises(ColqError, match=message):
        publish.prepare(experiment, variant, to)


def test_a_damaged_checkpoint_is_refused(experiment):
    weights = experiment.checkpoint(VARIANT) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ColqError, match="cut short"):
        publish.prepare(experiment, VARIANT, "me/model")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "is not JSON"),
        ("config.json", '{"auto_map": [1]}', "auto_map that names no classes"),
        ("processor_config.json", "[]", "holds a list where an object"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../a"}}', "no file of its folder"),
        ("variants.csv", "", "cannot be read"),
        ("variants.csv", "a,b\n1,2\n", "was not accepted"),
    ],
)
def test_a_damaged_file_is_one_line(experiment, capsys, file, content, message):
    results = experiment.results("quantize")
    folder = results if file == "variants.csv" else experiment.checkpoint(VARIANT)
    (folder / file).write_text(content)
    before = sorted(folder.iterdir())
    from colq_utils.__main__ import main

    assert main(["publish", "tiny", VARIANT, "--to", "me/model", "--output", str(experiment.output)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0] and sorted(folder.iterdir()) == before
