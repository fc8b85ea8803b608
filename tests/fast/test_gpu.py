"""On a CUDA device: kernels against the plain steps, recorded graphs against eager embeddings."""

import pytest
import torch

from colq_utils.base import backends, config
from colq_utils.fast import layout, load, steps
from colq_utils.fast import path as fast
from colq_utils.model import eightbit, encode, loading

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXTS = ["alpha", "beta gamma delta", "epsilon " * 5]


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("n", [300, 5000])
def test_gpu_kernels_do_what_the_plain_steps_do(n, fp8):
    from colq_utils.fast import steps_triton

    def same(actual, expected):
        if isinstance(actual, tuple):
            actual, expected = (values.float() * scale for values, scale in (actual, expected))
        actual, expected = actual.float(), expected.float()
        assert (actual - expected).norm() < (0.02 if fp8 else 0.004) * expected.norm()

    torch.manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    x, delta, weight, bias = noise(n, 2560), noise(n, 2560), noise(2560), noise(2560)
    norms = {"add_norm": (x, delta, weight), "add_layer_norm": (x, delta, weight, bias)}
    for step, tensors in norms.items():
        pair = (getattr(way, step)(*tensors, 1e-6, fp8) for way in (steps_triton, steps))
        for actual, expected in zip(*pair, strict=True):
            same(actual, expected)
    wide = noise(n, 2 * 9728)
    same(steps_triton.swiglu(wide, fp8), steps.swiglu(wide, fp8))
    for rows in (x, noise(n, 4096), noise(n, 4304)):
        same(steps_triton.gelu_tanh(rows, fp8), steps.gelu_tanh(rows, fp8))
        same(steps_triton.to_fp8(rows, fp8), steps.to_fp8(rows, fp8))


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
        actual, expected = qkv.clone(), qkv.clone()
        steps_triton.rotate_(actual, cos, sin, heads, kv_heads, weights, 1e-6)
        steps.rotate_(expected, cos, sin, heads, kv_heads, weights, 1e-6)
        assert (actual.float() - expected.float()).norm() < 0.004 * expected.float().norm()
    real = int(mask.sum())
    actual, expected = (
        way.attend_packed(qkv, packed, heads, kv_heads)[:real].float() for way in (steps_triton, steps)
    )
    assert (actual - expected).norm() < 0.006 * expected.norm()


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
    # as they come, captured, replayed, replayed with others
    for order in ([0, 1, 2], [0, 1, 2], [0, 1, 2], [2, 0, 1]):
        actual = encode.pages(accelerated, [page_images[i] for i in order])
        assert fast.agreement([plain[1][i] for i in order], actual)["mean"] > 0.9995
    longer = [text * 60 for text in TEXTS]
    with accelerated.model.unrecorded():
        eager = encode.queries(accelerated, longer)
    assert fast.agreement(eager, encode.queries(accelerated, longer))["mean"] > 0.9995


def test_a_gpu_multiplies_fp8_as_the_cpu_emulates_it():
    """The same roundings, so the same numbers up to the bf16 of the outputs and the order of sums.

    A GPU divides by a constant through its inverse: a scale may differ in its last bit, which tips ties.
    """

    def same(actual, expected):
        (values, scale), (others, other_scale) = actual, expected
        values, others, scale = values.cpu().float(), others.float(), scale.cpu()
        assert torch.allclose(scale, other_scale, rtol=2**-22, atol=0)
        assert (values != others).float().mean() < 0.01
        assert ((values - others).abs() <= others.abs() / 8).all()  # the neighbouring number at most

    torch.manual_seed(0)
    weight, shift = torch.randn(96, 256).bfloat16(), torch.randn(96).bfloat16()
    x = torch.randn(40, 256).bfloat16()
    emulated = eightbit.Fp8Linear(weight.float(), shift.float())
    layer = eightbit.Fp8Linear(weight.cuda(), shift.cuda())
    same((layer.weight, layer.scale), (emulated.weight, emulated.scale))
    same(eightbit.scaled(x.cuda()), eightbit.scaled(x))
    layer.weight.copy_(emulated.weight)
    layer.scale.copy_(emulated.scale)
    values, scale = (part.cuda() for part in eightbit.scaled(x))
    expected = emulated(x.float())
    for actual in (layer(x.cuda()), layer((values, scale))):
        # Hopper's tensor cores sum FP8 products with fewer bits than fp32 has
        assert (actual.cpu().float() - expected).norm() < 0.004 * expected.norm()
    table = torch.nn.Embedding(50, 16).bfloat16()
    on_cpu = eightbit.Int8Embedding(table.float())(torch.arange(50))
    on_gpu = eightbit.Int8Embedding(table.bfloat16().cuda())(torch.arange(50).cuda())
    assert torch.equal(on_cpu, on_gpu.cpu().float())


@pytest.mark.parametrize("vision", [False, True])
def test_fp8_embeddings_of_a_gpu_are_those_of_the_emulation(
    random_checkpoint, random_model, page_images, vision
):
    """Closer to the CPU's than the bf16 base is: the roundings that cost quality are the same ones."""

    def embedded(device, rounded):
        model = loading.open_model(str(random_checkpoint), device=device)
        for part in (model.language_model.layers, *([model.visual] if vision else [])) if rounded else ():
            eightbit.fp8_(part)
        loaded = loading.Loaded(device, model, random_model.processor, (), 0.0)
        loaded = load.accelerate(loaded, None) if device == "cuda" else loaded
        return encode.pages(loaded, page_images), encode.queries(loaded, TEXTS)

    gpu, emulated, base = embedded("cuda", True), embedded("cpu", True), embedded("cuda", False)
    for ours, theirs, plain in zip(emulated, gpu, base, strict=True):
        close = fast.agreement(ours, [row.cpu() for row in theirs])["mean"]
        assert close > 0.99
        assert close > fast.agreement(ours, [row.cpu() for row in plain])["mean"]
