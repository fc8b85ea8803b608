"""Strict loading: the published layout loads, and nothing that is not exactly a ColQwen3 does."""

import json
import shutil
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from shards import shard

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.fast import load
from colq_utils.model import encode, kernels, loading, packing, processing
from colq_utils.model.modeling import ColQwen3Config


@pytest.fixture
def copy(random_checkpoint, tmp_path):
    """A private copy of the random checkpoint, to spoil."""
    return shutil.copytree(random_checkpoint, tmp_path / "copy")


def rewrite(folder, change):
    """Apply `change` to the tensors of a one-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_published_layout(copy):
    """Sharded with an index, carrying the unused head: the layout of the real checkpoints."""
    tensors = shard(copy, 2, torch.zeros(384, 128))
    model = loading.open_model(str(copy))
    own = model.state_dict()
    assert "vlm.lm_head.weight" not in own
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items() if "lm_head" not in name)


def test_the_bias_follows_the_checkpoint(copy):
    """The configuration does not say whether the projection has a bias: the stored tensors do."""
    assert "projection_bias" not in json.loads((copy / "config.json").read_text())
    with_bias = loading.open_model(str(copy))
    stored = load_file(copy / "model.safetensors")["embedding_proj_layer.bias"]
    assert torch.equal(with_bias.embedding_proj_layer.bias, stored.float()) and stored.abs().max() > 0
    rewrite(copy, lambda t: t.pop("embedding_proj_layer.bias"))
    without = loading.open_model(str(copy))
    assert without.embedding_proj_layer.bias is None
    ids = torch.tensor([[5, 6, 7]])
    difference = with_bias(input_ids=ids).embeddings - without(input_ids=ids).embeddings
    assert difference.abs().max() > 1e-2, "a bias that is dropped changes the embeddings"


def test_another_width_than_the_config_says(copy):
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | {"embed_dim": 320}))
    with pytest.raises(ColqError, match=r"the projection is 32 x 128 where config.json says 320 x 128"):
        loading.open_model(str(copy))


def test_pages_are_capped_as_published(copy):
    """1,280 tokens unless the experiment says otherwise; a checkpoint's own lower limit stays."""
    assert processing.from_pretrained(str(copy)).image_processor.size["longest_edge"] == 64 * 32 * 32
    fields = json.loads((copy / "processor_config.json").read_text())
    fields["image_processor"]["size"]["longest_edge"] = 16_777_216
    (copy / "processor_config.json").write_text(json.dumps(fields))
    large = Image.new("RGB", (3000, 4000))
    tokens = {
        limit: processing.from_pretrained(str(copy), None, limit)
        .pages([large])["mm_token_type_ids"]
        .sum()
        .item()
        for limit in (None, 2000, 16)
    }
    assert 1200 < tokens[None] <= 1280 and 1900 < tokens[2000] <= 2000 and tokens[16] <= 16


@pytest.mark.parametrize("key", ["embed_dim", "dims", "dim", "projection_dim", "colbert_dim"])
def test_width_is_found_under_every_published_name(key):
    assert ColQwen3Config(**{key: 64}).embed_dim == 64


def test_nested_configuration(random_checkpoint):
    flat = json.loads((random_checkpoint / "config.json").read_text())
    nested = {
        "vlm_config": {k: flat[k] for k in ("text_config", "vision_config", "image_token_id")},
        "dim": flat["embed_dim"],
    }
    config = ColQwen3Config(**nested)
    assert (
        config.text_config.hidden_size == flat["text_config"]["hidden_size"]
        and config.embed_dim == flat["embed_dim"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("embedding_proj_layer.weight"), "missing: embedding_proj_layer.weight"),
        (
            lambda t: t.update({"vlm.model.visual.extra": torch.zeros(1)}),
            "unexpected: vlm.model.visual.extra",
        ),
        (lambda t: t.update({"embedding_proj_layer.weight": torch.zeros(3, 3)}), "the projection is 3 x 3"),
        (lambda t: t.update({"embedding_proj_layer.bias": torch.zeros(3)}), "embedding_proj_layer.bias"),
    ],
)
def test_wrong_tensors_are_refused_by_name(copy, change, message):
    rewrite(copy, change)
    with pytest.raises(ColqError, match=message):
        loading.open_model(str(copy))


def test_truncated_weights(copy):
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ColqError, match="damaged or cut short") as refusal:
        loading.open_model(str(copy))
    assert "make quantize" not in str(refusal.value), "which experiment made it, if any, is not known here"


def test_missing_or_damaged_checkpoint_names_the_experiment(experiment_file, copy, tmp_path):
    variants = [{"scheme": "bf16"}, {"scheme": "w4a16", "method": "rtn"}]
    experiment = config.load(experiment_file(tmp_path, "random", variants=variants), tmp_path)
    folder = experiment.checkpoint("random-w4a16-rtn")
    with pytest.raises(
        ColqError, match="no auto_round checkpoint yet: run `make quantize EXPERIMENT=random`"
    ):
        load.load(experiment, "random-w4a16-rtn")
    shutil.copytree(copy, folder)
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(1000)
    with pytest.raises(
        ColqError,
        match=rf"safetensors is damaged.* Delete {folder.parent} and run `make quantize EXPERIMENT=random`",
    ):
        load.load(experiment, "random-w4a16-rtn")


def test_missing_folder_and_foreign_architecture(copy, tmp_path):
    with pytest.raises(ColqError, match="no checkpoint folder"):
        loading.open_model(str(tmp_path / "nowhere"))
    (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ColqError, match=r"'bert' .*, not a colqwen3"):
        loading.open_model(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(ColqError, match="not JSON"):
        loading.open_model(str(copy))


def test_backend_that_cannot_run_names_the_remedy(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ColqError, match="pip install auto-round-lib"):
        kernels.require("ark")
    with pytest.raises(ColqError, match="known: ark"):
        kernels.require("fast")


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="torch has one thread only")
def test_threads_taken_from_a_packed_kernel_are_said():
    pytest.importorskip("auto_round_kernel")
    kernels.require("ark")
    torch.set_num_threads(1)
    with pytest.raises(ColqError, match=r"wrong products in this process: torch was given fewer threads"):
        kernels.require("ark")
    assert kernels.on_cpu("auto_round", 4) == "torch"


def test_backend_installed_in_part_names_the_remedy(monkeypatch):
    monkeypatch.setattr(kernels, "require", lambda backend: None)
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    with pytest.raises(ColqError, match=r"in part.*pip install --no-deps gptqmodel"):
        kernels.build(packing.PackedLinear(128, 64, 4, 128), "marlin")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_no_gpu_is_said(random_checkpoint):
    with pytest.raises(ColqError, match="no CUDA device is visible"):
        loading.open_model(str(random_checkpoint), device="cuda")


def test_shared_vision_features_give_the_same_bits(random_model, page_images):
    whole = encode.pages(random_model, page_images, batch=2)
    ((_, stored, grids),) = encode.stream_features(random_model, range(4), page_images.__getitem__, 4)
    again = encode.pages_from_features(random_model, stored, grids)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_queries_do_not_depend_on_their_batch(random_model):
    texts = ["a", "several words of a longer query", "two words"]
    together, alone = (
        encode.queries(random_model, texts),
        [encode.queries(random_model, [t])[0] for t in texts],
    )
    for a, b in zip(together, alone, strict=True):
        assert a.shape == b.shape and torch.cosine_similarity(a.float(), b.float()).min() > 0.999
        assert torch.allclose(a.float().norm(dim=-1), torch.ones(len(a)), atol=1e-2)
