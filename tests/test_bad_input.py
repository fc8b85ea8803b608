"""Input that others made, damaged or hostile: one line, code 2, nothing written, no code of theirs run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from colq_utils import new
from colq_utils.__main__ import main
from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.model import hub, loading, processing

SAMPLE, INDEX = config.ROOT / "data" / "documents", "model.safetensors.index.json"


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command that must fail with one line; returns the line."""
    monkeypatch.setattr(new, "EXPERIMENTS", tmp_path / "experiments")

    def run(*arguments) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return lines[0]

    return run


@pytest.fixture
def model(random_checkpoint, tmp_path):
    """A private copy of the random checkpoint, to spoil."""
    return shutil.copytree(random_checkpoint, tmp_path / "modèle d'essai")


def write(file: str, content: bytes, without: str = ""):
    """A spoiler: puts a file into a checkpoint, and takes one away."""

    def spoil(folder):
        (folder / file).write_bytes(content)
        if without:
            (folder / without).unlink()

    return spoil


def cut(folder):
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)


ADAPTER, WEIGHTS = "adapter_config.json", "model.safetensors"
SPOILT = {
    "config a list": (write("config.json", b"[]"), "holds a list where an object"),
    "config null": (write("config.json", b"null"), "holds a NoneType where an object"),
    "config cut": (write("config.json", b'{"model_type": '), "is not JSON"),
    "config no text": (write("config.json", b"\xff\xfe\x00"), "is not JSON"),
    "config a bomb": (write("config.json", b"[" * 100_000), "is not JSON"),
    "config of another family": (write("config.json", b'{"model_type": "bert"}'), "'bert'"),
    "index abroad": (write(INDEX, b'{"weight_map": {"a": "../a.safetensors"}}'), "no file of its folder"),
    "index absolute": (write(INDEX, b'{"weight_map": {"a": "/a.safetensors"}}'), "no file of its folder"),
    "index of numbers": (write(INDEX, b'{"weight_map": {"a": 5}}'), "names 5, which is no file"),
    "index of a list": (write(INDEX, b'{"weight_map": ["a"]}'), "has no weight_map"),
    "adapter cut": (write(ADAPTER, b"{", WEIGHTS), "is not JSON"),
    "adapter a list": (write(ADAPTER, b"[]", WEIGHTS), "holds a list where an object"),
    "weights cut": (cut, "damaged or cut short"),
    "weights no weights": (write(WEIGHTS, b"\xff" * 100), "damaged or cut short"),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("command", ["new", "convert"])
def test_a_spoilt_checkpoint(refused, model, tmp_path, how, command):
    spoil, message = SPOILT[how]
    spoil(model)
    options = {
        "new": ["x", "--documents", SAMPLE, "--model", model],
        "convert": [model, "--to", tmp_path / "to"],
    }
    assert message in refused(command, *options[command])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write("config.json", b'{"model_type": "colqwen3"}'), "has no text_config"),
        (write("config.json", b'{"model_type": "colqwen3", "text_config": "x"}'), "is not of a ColQwen3"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer or image processor cannot be read"),
    ],
)
def test_what_only_opening_shows(refused, model, spoil, message):
    spoil(model)
    assert message in refused("new", "x", "--documents", SAMPLE, "--model", model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("query,file,page\na,installation guide.pdf,²\n", "both are whole numbers"),
        ("query,Query\na,b\n", "has the columns query, query"),
        ("query,file,page\na,installation guide.pdf,1,5,6\n", "more fields than"),
        ("query\n", "holds no query"),
        ("query,file\n\0,\0\n", "no such document"),
    ],
)
def test_queries_that_cannot_be(refused, model, tmp_path, content, message):
    (tmp_path / "q.csv").write_text(content, encoding="utf-8")
    options = ["--documents", SAMPLE, "--model", model, "--queries", tmp_path / "q.csv"]
    assert message in refused("new", "x", *options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"title: !!python/object/apply:pathlib.Path.touch [EVIL]\n", "could not determine a constructor"),
        (b"a:\t- b\n", "is not valid YAML"),
        (b"title: \xe9t\xe9\n", "is not valid YAML"),
        (b"[" * 5000, "is not valid YAML"),
        (b"- a\n", "holds a list"),
    ],
)
def test_an_experiment_file_that_cannot_be(refused, tmp_path, content, message):
    (tmp_path / "x.yaml").write_bytes(content)
    assert message in refused("plan", tmp_path / "x.yaml")


def test_a_folder_is_no_experiment_file(refused, tmp_path):
    (tmp_path / "x.yaml").mkdir()
    assert "no experiment" in refused("plan", tmp_path / "x.yaml")


def test_code_in_a_checkpoint_is_never_run(model, tmp_path, monkeypatch, page_images):
    """By whatever name its configurations call it: it would write a file."""
    monkeypatch.setattr(new, "EXPERIMENTS", tmp_path / "experiments")
    classes = {f"Auto{kind}": f"evil.{kind}" for kind in ("Config", "Model", "Processor", "ImageProcessor")}
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        fields = json.loads((model / name).read_text())
        fields["auto_map"] = classes | {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}
        (model / name).write_text(json.dumps(fields))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'EVIL')!r}, 'w').close()\n")
    assert main(["new", "x", "--model", str(model), "--documents", str(SAMPLE)]) == 0
    opened, processor = loading.open_model(str(model)), processing.from_pretrained(str(model))
    assert opened(**processor.pages(page_images[:1])).embeddings.isfinite().all()
    assert not (tmp_path / "EVIL").exists()


def test_an_index_that_names_files_elsewhere_is_not_followed(model, tmp_path):
    shutil.copy(model / WEIGHTS, tmp_path / "a.safetensors")
    names = [tensor.name for tensor in hub.file_headers(model / WEIGHTS)]
    (model / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "../a.safetensors")}))
    with pytest.raises(ColqError, match="no file of its folder"):
        loading.open_model(str(model))


def test_a_nested_configuration_is_read(model, tmp_path, monkeypatch):
    """As some checkpoints have it: both towers in a `vlm_config`."""
    monkeypatch.setattr(new, "EXPERIMENTS", tmp_path / "experiments")
    fields = json.loads((model / "config.json").read_text())
    fields["vlm_config"] = {key: fields.pop(key) for key in ("text_config", "vision_config")}
    (model / "config.json").write_text(json.dumps(fields))
    assert main(["new", "x", "--model", str(model), "--documents", str(SAMPLE)]) == 0
    assert config.load(str(tmp_path / "experiments" / "x.yaml")).model.size == "d128"


def test_weights_that_are_no_numbers_rank_nothing(model, page_images, tmp_path):
    from datasets import Dataset, Features, Image, Value

    from colq_utils.model import kernels
    from colq_utils.stages.evaluate.retriever import Retriever

    tensors = load_file(model / WEIGHTS)
    tensors["embedding_proj_layer.weight"][0, 0] = torch.nan
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    opened = loading.open_model(str(model))
    processor = processing.from_pretrained(str(model))
    loaded = loading.Loaded("nan", opened, processor, kernels.census(opened), 0.0)
    retriever = Retriever(loaded, tmp_path / "pages", None, 2)
    features = Features({"id": Value("string"), "image": Image()})
    retriever.index(Dataset.from_dict({"id": ["a"], "image": page_images[:1]}, features=features), "task")
    with pytest.raises(ColqError, match="nan gives scores that are no numbers"):
        retriever.rank(Dataset.from_dict({"id": ["q"], "text": ["alpha"]}))
