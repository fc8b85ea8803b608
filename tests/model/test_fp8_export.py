"""FP8 checkpoints: the numbers that loading rounds to, in a format that others open."""

import json

import pytest
import torch
from safetensors.torch import load_file

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.model import (
    checkpoints,
    eightbit,
    encode,
    footprint,
    fp8_export,
    hub,
    kernels,
    loading,
    modeling,
)
from colq_utils.stages import quantize

TEXTS = ["alpha beta", "gamma delta epsilon"]
RUNTIME = config.Runtime()


def opened(model, random_model):
    return loading.Loaded("fp8", model, random_model.processor, kernels.census(model), 0.0)


@pytest.fixture(scope="module", params=[False, True], ids=["language model", "and vision tower"])
def export(request, random_checkpoint, tmp_path_factory):
    """An export of the random checkpoint, and whether its vision tower is in FP8."""
    folder = tmp_path_factory.mktemp("fp8")
    fp8_export.write_checkpoint(random_checkpoint, folder, request.param)
    return folder, request.param


def test_an_export_opens_as_what_loading_rounds_to(export, random_checkpoint, random_model, page_images):
    folder, vision = export
    stored = opened(loading.open_fp8(str(folder), torch.float32, RUNTIME), random_model)
    model = loading.open_model(str(random_checkpoint))
    for part in (model.language_model.layers, *([model.visual] if vision else [])):
        eightbit.fp8_(part)
    rounded = opened(model, random_model)
    assert stored.census == rounded.census
    assert {use.tower: use.layers for use in stored.census if use.weight_bits == 8} == (
        {"language_model": 14, "visual": 12} if vision else {"language_model": 14}
    )
    for own, other in (
        (encode.queries(stored, TEXTS), encode.queries(rounded, TEXTS)),
        (encode.pages(stored, page_images), encode.pages(rounded, page_images)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_an_export_holds_what_was_predicted_and_else_the_bases_bytes(export, random_checkpoint):
    folder, vision = export
    base, headers = hub.read_headers(str(random_checkpoint)), hub.read_headers(str(folder))
    assert footprint.unlike(footprint.eight_bits(base, vision), headers) == []
    before, after = (load_file(path / "model.safetensors") for path in (random_checkpoint, folder))
    for tensor in base:
        kept = after[tensor.name].dtype == torch.bfloat16
        assert kept != footprint.in_fp8(tensor, vision)
        if kept:
            assert torch.equal(after[tensor.name], before[tensor.name])
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert ("re:.*visual.*" in said["ignore"]) != vision
    odd = hub.Tensor("vlm.model.language_model.layers.0.mlp.up_proj.weight", "BF16", (24, 64))
    assert footprint.is_linear(odd, False) and not footprint.in_fp8(odd, False)


def test_transformers_opens_an_export(export, random_model):
    """Its layers round as those here do. Of queries: it scales a vision tower otherwise."""
    pytest.importorskip("compressed_tensors")
    folder, _ = export
    theirs, report = modeling.ColQwen3ForRetrieval.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours = loading.open_fp8(str(folder), torch.float32, RUNTIME)
    pairs = zip(*(encode.queries(opened(m.eval(), random_model), TEXTS) for m in (ours, theirs)), strict=True)
    cosines = torch.cat([torch.cosine_similarity(a, b, dim=-1) for a, b in pairs])
    assert cosines.mean() > 0.9995
    x = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(0))
    name = "layers.1.mlp.up_proj"
    one, other = (m.language_model.get_submodule(name)(x) for m in (ours, theirs))
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_another_format_is_refused(packed_checkpoint):
    with pytest.raises(ColqError, match="is stored as None, not as float-quantized"):
        loading.open_fp8(str(packed_checkpoint), torch.float32, RUNTIME)


def test_stored_and_unstored_variants(experiment_file, tmp_path):
    """What is exported is made, read and counted; every variant that is scored has a revision of its own."""
    fp8 = {"scheme": "fp8", "exports": ["compressed_tensors"]}
    variants = [
        {"scheme": "bf16"},
        fp8,
        fp8 | {"vision": "fp8"},
        {"scheme": "w4a16", "method": "pack"},
        {"scheme": "w4a16", "method": "pack", "embedding": "int8", "vision": "fp8"},
        {"scheme": "bf16", "embedding": "int8"},
        {"scheme": "w4a16", "method": "pack", "backend": "torch", "tag": "torch"},
    ]
    experiment = config.load(experiment_file(tmp_path, "eight", variants=variants), tmp_path / "out")
    stored = ["random-fp8", "random-fp8-fp8vision", "random-w4a16-pack"]
    assert list(experiment.quantized) == stored
    unstored = ["random-w4a16-pack-int8embed-fp8vision", "random-bf16-int8embed"]
    assert list(experiment.compared) == stored + unstored, "the other kernel has the same numbers"
    with pytest.raises(ColqError, match="random-fp8 has no compressed_tensors checkpoint yet"):
        loading.plain(experiment, "random-fp8")
    for name in stored:
        quantize.run(experiment, name)
    revisions = [checkpoints.revision(experiment, name) for name in (experiment.base, *experiment.compared)]
    assert len(set(revisions)) == len(revisions)
    eight = {
        name: {use.tower for use in loading.plain(experiment, name).census if use.kernel.startswith("fp8")}
        for name in experiment.compared
    }
    assert eight["random-fp8"] == {"language_model"}
    assert eight["random-fp8-fp8vision"] == {"language_model", "visual"}
    assert eight["random-w4a16-pack-int8embed-fp8vision"] == {"visual"}
    table = loading.plain(experiment, "random-bf16-int8embed").model.language_model.embed_tokens
    assert isinstance(table, eightbit.Int8Embedding)
