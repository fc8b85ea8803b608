"""The fast path, packed layers and eight-bit parts give what the plain model gives, on a CPU as on a GPU."""

import copy
import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from colq_utils.base import backends, config
from colq_utils.base.errors import ColqError
from colq_utils.fast import graphs, layout, load, steps
from colq_utils.fast import path as fast
from colq_utils.model import eightbit, encode, kernels, loading, packing
from studies.fp8_serving.fp8 import quantize_weight
from studies.h200.extras import schedules
from studies.seqlen.weights import round_fp8

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
        found = fast.agreement(before, after)
        assert found["mean"] > 0.9999 and found["min"] > 0.999, found
    ((_, stored, grids),) = encode.stream_features(accelerated, range(4), page_images.__getitem__, 4)
    again = encode.pages_from_features(accelerated, stored, grids)
    assert fast.agreement(plain[1], again)["mean"] > 0.9999


def test_pages_of_several_sizes_keep_their_order(random_model, page_images):
    mixed = [page_images[0], page_images[1].resize((96, 160)), page_images[2]]
    loaded = fresh(random_model)
    plain = encode.pages(loaded, mixed)
    accelerated = load.accelerate(loaded, "unpack")
    assert fast.agreement(plain, encode.pages(accelerated, mixed))["mean"] > 0.9999


def test_buckets_hold_what_they_are_for():
    assert layout.bucket(1, 5, 5) == (1, 16, 16) and layout.bucket(3, 24, 60) == (4, 32, 64)
    assert layout.bucket(8, 28, 202) == (8, 32, 208) and layout.bucket(32, 130, 1100) == (32, 192, 1152)


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is here")
def test_a_gpu_without_triton_is_told_what_to_do():
    with pytest.raises(ColqError, match=r"needs triton.*runtime\.encode"):
        fast._steps(on_gpu=True)


def test_packed_rows_come_back():
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    packed = layout.Packed(mask, 8)
    assert packed.source[:6].tolist() == [2, 3, 8, 9, 10, 11] and packed.positions[:6].tolist() == [
        0,
        1,
        0,
        1,
        2,
        3,
    ]
    assert packed.offsets.tolist() == [0, 2, 2, 6]
    assert packed.unpack(torch.arange(1.0, 9).unsqueeze(1)).squeeze(-1).tolist() == [
        [0, 0, 1, 2],
        [0, 0, 0, 0],
        [3, 4, 5, 6],
    ]


def test_attention_of_packed_rows_sees_its_own_row_alone():
    torch.manual_seed(0)
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    qkv = torch.randn(8, 6 * 8)  # two query heads and two key/value heads of 8
    found = steps.attend_packed(qkv, layout.Packed(mask, 8), 2, 2)
    for row in (slice(0, 2), slice(2, 6)):
        assert torch.allclose(found[row], steps.attend(qkv[row], 1, 2, 2, causal=True), atol=1e-6)


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
    found, expected = model(**right).embeddings, model(**inputs).embeddings
    assert torch.allclose(found, expected.gather(1, order.unsqueeze(-1).expand_as(expected)), atol=1e-2)
    queries = random_model.processor.queries(TEXTS[:1])
    assert torch.equal(model(queries["input_ids"]).embeddings, model(**queries).embeddings)


def test_the_oldest_graphs_are_let_go():
    kept = dict.fromkeys(range(graphs.KEPT + 2))
    graphs.latest(kept, 0)
    assert len(kept) == graphs.KEPT and 0 in kept and 1 not in kept and 2 not in kept


def test_positions_are_the_models(random_model, page_images):
    mixed = [page_images[0], page_images[1].resize((96, 160)), page_images[2].resize((320, 64))]
    inputs = random_model.processor.pages(mixed)
    order, _ = layout.shifts(inputs["attention_mask"])
    ids, mask, types = (
        inputs[name].gather(1, order) for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    )
    expected, _ = random_model.model.vlm.model.get_rope_index(
        ids, image_grid_thw=inputs["image_grid_thw"], attention_mask=mask, mm_token_type_ids=types
    )
    found = layout.page_positions(types, inputs["image_grid_thw"], 2)
    assert torch.equal(found * mask, expected * mask)


def test_shifting_left_and_back():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    order, back = layout.shifts(mask)
    rows = torch.tensor([[9, 9, 1, 2], [3, 4, 5, 6]])
    assert rows.gather(1, order)[0, :2].tolist() == [1, 2]
    assert torch.equal(rows.gather(1, order).gather(1, back), rows)


@pytest.mark.parametrize("bits", packing.BITS)
def test_packing_is_undone_and_rounds_to_the_nearest(bits):
    torch.manual_seed(bits)
    weight = torch.randn(64, 256)
    integers, scales = packing.round_to_nearest(weight, bits, 128)
    assert torch.equal(packing.unpack(packing.pack(integers.T.contiguous(), bits), bits).T, integers)
    layer = packing.PackedLinear(256, 64, bits, 128)
    for name, value in packing.packed_tensors(weight, bits, 128).items():
        setattr(layer, name, value)
    error = (layer.weight(torch.float32) - weight).abs().view(64, 2, 128)
    inside = (
        integers.view(64, 2, 128) < 2**bits - 1
    )  # the end opposite the largest entry may be clipped; the product is fp16
    assert (error <= scales.abs().unsqueeze(-1) * (0.5 + 2**bits / 2**10))[inside].all()


def test_stacked_layers_compute_side_by_side():
    layers = []
    for out in (64, 32):
        layer = packing.PackedLinear(128, out, 4, 128)
        for name, value in packing.packed_tensors(torch.randn(out, 128), 4, 128).items():
            setattr(layer, name, value)
        layers.append(layer)
    x = torch.randn(3, 128)
    assert torch.equal(packing.PackedLinear.stacked(layers)(x), torch.cat([layer(x) for layer in layers], -1))


@pytest.fixture(scope="module")
def packed_checkpoint(random_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    packing.write_checkpoint(random_checkpoint, folder, 4, 128, "cpu")
    return folder


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


def test_every_backend_class_takes_a_stacked_layer():
    """AutoRound's torch kernel, built from a packed layer, multiplies as unpacking does."""
    layer = packing.PackedLinear(128, 64, 4, 128)
    for name, value in packing.packed_tensors(torch.randn(64, 128), 4, 128).items():
        setattr(layer, name, value)
    x = torch.randn(3, 128)
    assert torch.allclose(kernels.build(layer, "torch")(x).float(), layer(x), atol=2e-2)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "mismatched"])
def test_a_damaged_packed_checkpoint_is_refused(packed_checkpoint, tmp_path, damage):
    tensors = load_file(packed_checkpoint / "model.safetensors")
    name = next(n for n in tensors if n.endswith("qweight"))
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["vlm.surprise"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((packed_checkpoint / "config.json").read_text())
    with pytest.raises(ColqError, match=damage):
        loading.open_packed(str(tmp_path), torch.float32, RUNTIME)


def test_other_packings_are_refused(packed_checkpoint, tmp_path):
    content = json.loads((packed_checkpoint / "config.json").read_text())
    content["quantization_config"]["packing_format"] = "auto_round:auto_awq"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ColqError, match="set encode to plain"):
        loading.open_packed(str(tmp_path), torch.float32, RUNTIME, fast=True)
    content["quantization_config"]["packing_format"] = "auto_round:exllama"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        ColqError, match="packed as auto_round:exllama with 4 bits; read are the layouts of GPTQ and AWQ"
    ):
        loading.open_packed(str(tmp_path), torch.float32, RUNTIME)


def test_fp8_rounds_to_three_bits_of_mantissa():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32).bfloat16()
    x = torch.randn(5, 64).bfloat16()
    values, scale = eightbit.scaled(x)
    assert (values.float() * scale - x.float()).abs().max() <= x.float().abs().max() / 16
    made = eightbit.Fp8Linear(linear.weight.data, linear.bias.data)
    expected = linear(x).float()
    assert (made(x).float() - expected).abs().max() < 0.1 * expected.abs().max()
    assert torch.equal(made(x), made((values, scale)))


def test_every_fp8_path_scales_rows_alike():
    """The same numbers as by the formula, whatever the magnitude; a row of zeros stays one of zeros."""
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 8, 400)[:, None]
    for rows in (x, x.bfloat16()):
        values, scale = eightbit.scaled(rows)
        plain = rows.float().abs().amax(-1, keepdim=True) / 448
        assert torch.equal(scale, plain)
        assert torch.equal(values.float(), (rows.float() / plain).to(values.dtype).float())
        stored = quantize_weight(rows, per_channel=True)
        assert torch.equal(stored[0].float(), values.float()) and torch.equal(stored[1], scale)
        assert torch.equal(round_fp8(rows), (values.float() * scale).to(rows.dtype))
    for zeros in (eightbit.scaled(x * 0)[0], quantize_weight(x * 0, True)[0], round_fp8(x * 0)):
        assert (zeros.float() == 0).all()


def test_int8_embedding_restores_rows():
    table = torch.nn.Embedding(10, 16).bfloat16()
    made = eightbit.Int8Embedding(table)
    ids = torch.tensor([[1, 2], [3, 9]])
    assert (made(ids).float() - table(ids).float()).abs().max() < table.weight.abs().max() / 100
    assert made.weight.dtype == torch.int8


def test_fp8_runs_through_both_paths(random_model, page_images):
    loaded = fresh(random_model)
    expected = encode.pages(loaded, page_images)
    eightbit.fp8_(loaded.model.language_model.layers)
    eightbit.fp8_(loaded.model.visual)
    plain = encode.pages(loaded, page_images)
    accelerated = load.accelerate(loaded, "unpack")
    assert fast.agreement(expected, plain)["mean"] > 0.98
    assert fast.agreement(plain, encode.pages(accelerated, page_images))["mean"] > 0.999


def test_a_tuned_schedule_stands_where_it_is_faster():
    own = [[0, 24, {"of": "few"}], [24, 48, {"of": "some"}], [48, 9999, {"of": "many"}]]
    best = {
        16: (0.9, '{"of": "tuned"}'),
        32: (0.99, '{"of": "hardly better"}'),
        64: (0.5, '{"of": "tuned too"}'),
    }
    assert schedules._ranges(own, dict.fromkeys(best, 1.0), best) == [
        [0, 16, {"of": "tuned"}],
        [16, 24, {"of": "few"}],
        [24, 32, {"of": "some"}],
        [32, 64, {"of": "tuned too"}],
        [64, 9999, {"of": "many"}],
    ]
    assert json.loads(schedules._heuristic(own, 24)) == {"of": "few"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("n", [300, 5000])
def test_gpu_kernels_do_what_the_plain_steps_do(n, fp8):
    from colq_utils.fast import steps_triton

    def same(found, expected):
        if isinstance(found, tuple):
            found, expected = (values.float() * scale for values, scale in (found, expected))
        found, expected = found.float(), expected.float()
        assert (found - expected).norm() < (0.02 if fp8 else 0.004) * expected.norm()

    torch.manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    x, delta, weight, bias = some(n, 2560), some(n, 2560), some(2560), some(2560)
    for found, expected in zip(
        steps_triton.add_norm(x, delta, weight, 1e-6, fp8),
        steps.add_norm(x, delta, weight, 1e-6, fp8),
        strict=True,
    ):
        same(found, expected)
    for found, expected in zip(
        steps_triton.add_layer_norm(x, delta, weight, bias, 1e-6, fp8),
        steps.add_layer_norm(x, delta, weight, bias, 1e-6, fp8),
        strict=True,
    ):
        same(found, expected)
    wide = some(n, 2 * 9728)
    same(steps_triton.swiglu(wide, fp8), steps.swiglu(wide, fp8))
    for rows in (x, some(n, 4096), some(n, 4304)):
        same(steps_triton.gelu_tanh(rows, fp8), steps.gelu_tanh(rows, fp8))
        same(steps_triton.to_fp8(rows, fp8), steps.to_fp8(rows, fp8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("heads, kv_heads, head_dim", [(32, 8, 128), (16, 16, 72)])
def test_gpu_rotation_and_attention(heads, kv_heads, head_dim):
    from colq_utils.fast import steps_triton

    torch.manual_seed(0)
    mask = (torch.rand(8, 28, device="cuda") < 0.7).long()
    packed = layout.Packed(mask, 208)
    qkv = torch.randn(208, (heads + 2 * kv_heads) * head_dim, device="cuda", dtype=torch.bfloat16)
    cos, sin = torch.rand(2, 208, head_dim, device="cuda").bfloat16()
    norms = tuple(torch.rand(2, head_dim, device="cuda").bfloat16())
    for weights in (norms, None):
        found, expected = qkv.clone(), qkv.clone()
        steps_triton.rotate_(found, cos, sin, heads, kv_heads, weights, 1e-6)
        steps.rotate_(expected, cos, sin, heads, kv_heads, weights, 1e-6)
        assert (found.float() - expected.float()).norm() < 0.004 * expected.float().norm()
    real = int(mask.sum())
    found, expected = (
        way.attend_packed(qkv, packed, heads, kv_heads)[:real].float() for way in (steps_triton, steps)
    )
    assert (found - expected).norm() < 0.006 * expected.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", [None, "humming", "tritonv2", "marlin"])
def test_graphs_give_the_same_embeddings(
    random_checkpoint, packed_checkpoint, random_model, page_images, backend
):
    runtime = config.Runtime(device="cuda")
    if backend is None:
        model = loading.open_model(str(random_checkpoint), device="cuda")
    else:
        pytest.importorskip(backends.BACKENDS[backend].package)
        model = loading.open_packed(str(packed_checkpoint), torch.bfloat16, runtime)
    loaded = loading.Loaded("gpu", model, random_model.processor, (), 0.0)
    plain = encode.queries(loaded, TEXTS), encode.pages(loaded, page_images)
    accelerated = load.accelerate(loaded, backend)
    for _ in range(2):  # captured, then replayed
        assert fast.agreement(plain[0], encode.queries(accelerated, TEXTS))["mean"] > 0.9995
    assert fast.agreement(plain[0][:1], encode.queries(accelerated, TEXTS[:1]))["mean"] > 0.9995
    for order in (
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2],
        [2, 0, 1],
    ):  # as they come, captured, replayed, replayed with others
        found = encode.pages(accelerated, [page_images[i] for i in order])
        assert fast.agreement([plain[1][i] for i in order], found)["mean"] > 0.9995
    longer = [text * 60 for text in TEXTS]
    with accelerated.model.unrecorded():
        eager = encode.queries(accelerated, longer)
    assert fast.agreement(eager, encode.queries(accelerated, longer))["mean"] > 0.9995
