"""The fast path gives what the plain model gives, on a CPU as on a GPU."""

import copy
import importlib.util

import pytest
import torch

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.fast import graphs, layout, load
from colq_utils.fast import path as fast
from colq_utils.model import eightbit, encode, kernels, loading

TEXTS = ["alpha", "beta gamma delta", "epsilon " * 5]


RUNTIME = config.Runtime()


def fresh(random_model):
    """The random model once more: the fast path converts in place."""
    return loading.Loaded(
        "copy", copy.deepcopy(random_model.model), random_model.processor, random_model.census, 0.0
    )


def test_same_embeddings_as_the_plain_path(random_model, page_images):
    loaded = fresh(random_model)
    plain = encode.queries(loaded, TEXTS), encode.pages(loaded, page_images)
    accelerated = load.accelerate(loaded, "unpack")
    for before, after in zip(
        plain, (encode.queries(accelerated, TEXTS), encode.pages(accelerated, page_images)), strict=True
    ):
        cosine = fast.agreement(before, after)
        assert cosine["mean"] > 0.9999 and cosine["min"] > 0.999, cosine
    ((_, stored, grids),) = encode.stream_features(accelerated, range(4), page_images.__getitem__, 4)
    again = encode.pages_from_features(accelerated, stored, grids)
    assert fast.agreement(plain[1], again)["mean"] > 0.9999


def test_pages_of_several_sizes_keep_their_order(random_model, page_images):
    mixed = [page_images[0], page_images[1].resize((96, 160)), page_images[2]]
    loaded = fresh(random_model)
    plain = encode.pages(loaded, mixed)
    accelerated = load.accelerate(loaded, "unpack")
    assert fast.agreement(plain, encode.pages(accelerated, mixed))["mean"] > 0.9999


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is here")
def test_a_gpu_without_triton_is_told_what_to_do():
    with pytest.raises(ColqError, match=r"needs triton.*runtime\.encode"):
        fast._steps(on_gpu=True)


def test_padding_may_stand_on_either_side(random_model, page_images):
    mixed = [page_images[0], page_images[1].resize((320, 256))]
    inputs = random_model.processor.pages(mixed)
    order, _ = layout.shifts(inputs["attention_mask"])
    right = {
        name: value.gather(1, order) if value.shape == order.shape else value
        for name, value in inputs.items()
    }
    short = int(inputs["attention_mask"].sum(1).argmin())
    assert right["attention_mask"][short, -1] == 0 and inputs["attention_mask"][short, 0] == 0
    model = fast.FastColQwen3(fresh(random_model).model)
    actual, expected = model(**right).embeddings, model(**inputs).embeddings
    assert torch.allclose(actual, expected.gather(1, order.unsqueeze(-1).expand_as(expected)), atol=1e-2)
    queries = random_model.processor.queries(TEXTS[:1])
    assert torch.equal(model(queries["input_ids"]).embeddings, model(**queries).embeddings)


def test_the_oldest_graphs_are_let_go():
    kept = dict.fromkeys(range(graphs.KEPT + 2))
    graphs.latest(kept, 0)
    assert len(kept) == graphs.KEPT and 0 in kept and 1 not in kept and 2 not in kept


def test_a_packed_checkpoint_is_autorounds(packed_checkpoint, random_model, page_images):
    """AutoRound's own loader reads it; its torch kernel agrees with the fast path on unpacked weights."""
    ours = loading.Loaded(
        "ours",
        loading.open_packed(str(packed_checkpoint), torch.float32, RUNTIME),
        random_model.processor,
        (),
        0.0,
    )
    theirs = loading.Loaded(
        "theirs", loading.open_model(str(packed_checkpoint), backend="torch"), random_model.processor, (), 0.0
    )
    expected = encode.queries(theirs, TEXTS), encode.pages(theirs, page_images)
    assert fast.agreement(expected[0], encode.queries(ours, TEXTS))["mean"] > 0.9995
    accelerated = load.accelerate(ours, "unpack")
    assert fast.agreement(expected[1], encode.pages(accelerated, page_images))["mean"] > 0.9995
    census = {
        use.kernel: use.layers for use in kernels.census(accelerated.model) if use.tower == "language_model"
    }
    assert census == {"unpack": 8}


def test_fp8_runs_through_both_paths(random_model, page_images):
    loaded = fresh(random_model)
    expected = encode.pages(loaded, page_images)
    eightbit.fp8_(loaded.model.language_model.layers)
    eightbit.fp8_(loaded.model.visual)
    plain = encode.pages(loaded, page_images)
    accelerated = load.accelerate(loaded, "unpack")
    assert fast.agreement(expected, plain)["mean"] > 0.98
    assert fast.agreement(plain, encode.pages(accelerated, page_images))["mean"] > 0.999
