"""Sizes predicted from shapes against checkpoints on disk and against published figures."""

import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shards import shard

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.model import checkpoints, footprint, hub, loading, processing, randomized
from colq_utils.stages import inspect

EXPORTS = {"auto_round": "auto-round-auto-gptq", "auto_awq": "auto-awq", "auto_gptq": "auto-gptq"}


def rtn(source, out, scheme: str, format: str, **options) -> list[str]:
    """Folders of the checkpoints that AutoRound writes when it rounds to nearest."""
    from auto_round import AutoRound

    processor = processing.from_pretrained(str(source))
    rows = [
        {"input_ids": torch.randint(5, 200, (4, 32)), "attention_mask": torch.ones(4, 32, dtype=torch.long)}
    ]
    folders = AutoRound(
        loading.open_model(str(source)),
        tokenizer=processor.tokenizer,
        processor=processor,
        scheme=scheme,
        dataset=rows,
        iters=0,
        disable_opt_rtn=True,
        seqlen=32,
        nsamples=4,
        batch_size=4,
        device_map="cpu",
        enable_torch_compile=False,
        **options,
    ).quantize_and_save(str(out), format=format)[1]
    return folders if isinstance(folders, list) else [folders]


def lines(tensors) -> list[tuple]:
    return sorted((t.name, t.dtype, t.shape) for t in tensors)


@pytest.mark.parametrize(
    "scheme, group_size, exports",
    [
        ("W4A16", 128, tuple(EXPORTS)),
        ("W2A16", 128, ("auto_round",)),
        ("W3A16", 64, ("auto_round",)),
        ("W8A16", 32, ("auto_round",)),
    ],
)
def test_prediction_equals_autoround(random_checkpoint, tmp_path, monkeypatch, scheme, group_size, exports):
    monkeypatch.chdir(tmp_path)  # AutoRound leaves a work space in the current folder
    folders = rtn(random_checkpoint, tmp_path, scheme, ",".join(exports), group_size=group_size)
    base = hub.read_headers(str(random_checkpoint))
    assert len(folders) == len(exports)
    for export in exports:
        written = hub.read_headers(
            next(f for f in folders if len(folders) == 1 or Path(f).name == EXPORTS[export])
        )
        expected = footprint.quantized(base, int(scheme[1]), group_size, export)
        assert lines(written) == lines(expected)
        assert footprint.total(written) == footprint.total(expected)


@pytest.mark.parametrize("size, mebibytes", [("4b", 8466), ("8b", 16724)])
def test_published_sizes(size, mebibytes):
    """mteb's ModelMeta gives the memory of the published checkpoints in MiB."""
    assert round(footprint.total(footprint.from_config(footprint.real_config(size))) / 2**20) == mebibytes


def test_configuration_implies_the_stored_tensors(random_checkpoint):
    stored = hub.read_headers(str(random_checkpoint))
    implied = footprint.from_config(
        hub.read_config(str(random_checkpoint)) | {"projection_bias": True}
    )  # which no published config tells
    assert lines(implied) == lines(stored) and "embedding_proj_layer.bias" in {t.name for t in stored}


@pytest.fixture
def published_layout(random_checkpoint, tmp_path):
    """The random checkpoint in two shards, with the head that retrieval never uses."""
    folder = tmp_path / "published"
    shutil.copytree(random_checkpoint, folder)
    shard(folder, 2, torch.zeros(384, 128, dtype=torch.bfloat16))
    return folder


def test_head_is_a_line_of_its_own(random_checkpoint, published_layout):
    plain, with_head = (hub.read_headers(str(p)) for p in (random_checkpoint, published_layout))
    towers = inspect.towers(with_head).set_index("tower")
    assert towers.loc["lm_head", "bytes"] == 384 * 128 * 2
    assert towers["share"].sum() == pytest.approx(1)
    assert inspect.predicted(with_head).equals(inspect.predicted(plain))


def test_seven_layers_a_block(random_checkpoint):
    layers = inspect.quantizable_layers(hub.read_headers(str(random_checkpoint)))
    assert layers["layers"].tolist() == [2] * 7


def test_stage_writes_its_files(random_checkpoint, tmp_path):
    fields = {"path": str(random_checkpoint), "size": "random"}
    base = config.load("tiny", tmp_path)
    exp = base.model_copy(update={"name": "made", "model": config.Model(**fields)})
    inspected = inspect.inspect(exp)
    assert {p.name for p in exp.results("inspect").iterdir()} == {
        "architecture.json",
        "layers.csv",
        "towers.csv",
        "predicted.csv",
        "published.csv",
    }
    assert inspected.towers["bytes"].sum() == inspected.architecture["stored"]["bytes"]
    assert inspected.predicted.reduction_pct.iloc[0] == 0


@pytest.mark.parametrize(
    "damage, message", [("cut", "cut short"), ("header", "cut short"), ("gone", "missing")]
)
def test_damaged_files_are_refused(random_checkpoint, tmp_path, damage, message):
    shutil.copytree(random_checkpoint, tmp_path / "bad")
    file = tmp_path / "bad" / "model.safetensors"
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-100] if damage == "cut" else struct.pack("<Q", 10**12) + content[8:])
    with pytest.raises(ColqError, match=message):
        hub.read_headers(str(tmp_path / "bad"))


def test_absent_folder_and_impossible_packing(random_checkpoint):
    with pytest.raises(ColqError, match="no checkpoint folder"):
        hub.read_headers("/nowhere/at/all")
    layer = next(t for t in hub.read_headers(str(random_checkpoint)) if t.quantizable)
    with pytest.raises(ColqError, match="no packing 'auto_awq' for 3 bits"):
        footprint.packed(layer, 3, 128, "auto_awq")


def test_an_index_that_is_none_is_said(published_layout):
    index = published_layout / "model.safetensors.index.json"
    for content in ("{", "{}", "[]"):
        index.write_text(content)
        assert "model.safetensors.index.json" in checkpoints.damage(published_layout)


def test_a_hub_that_does_not_answer_is_one_line():
    """As the tests run offline, none does."""
    for fetch in (
        hub.read_headers,
        hub.fetch_folder,
        lambda path, commit: hub.fetch(path, "config.json", commit),
    ):
        with pytest.raises(ColqError, match=r"^a/b@cccccccc cannot be fetched .* the folder as model\.path$"):
            fetch("a/b", "c" * 40)
    with pytest.raises(ColqError, match=r"cannot be fetched .* as calibration\.source$"):
        hub.fetch_dataset("a/b", "x.parquet", "c" * 40)


def test_random_weights_leave_the_residual_stream_in_front():
    """What is added to a stream is small beside it, so that rounding errors do not grow with depth."""
    config = SimpleNamespace(
        text_config=SimpleNamespace(num_hidden_layers=36), vision_config=SimpleNamespace(depth=24)
    )
    generator = torch.Generator().manual_seed(0)
    sigmas = {
        "vlm.model.language_model.embed_tokens.weight": 1.0,
        "vlm.model.language_model.layers.3.self_attn.q_proj.weight": 0.02,
        "vlm.model.language_model.layers.3.self_attn.o_proj.weight": 0.02 / 72**0.5,
        "vlm.model.language_model.layers.3.mlp.down_proj.weight": 0.02 / 72**0.5,
        "vlm.model.visual.blocks.2.attn.proj.weight": 0.02 / 48**0.5,
        "vlm.model.visual.blocks.2.mlp.linear_fc2.weight": 0.02 / 48**0.5,
        "vlm.model.visual.merger.linear_fc2.weight": 0.02,
    }
    for name, sigma in sigmas.items():
        assert randomized._random(
            name, torch.Size([200, 300]), generator, config
        ).float().std().item() == pytest.approx(sigma, rel=0.02), name
    assert set(
        randomized._random("a.input_layernorm.weight", torch.Size([9]), generator, config).tolist()
    ) == {1.0}
