"""The detector: pictures and their truth, the forward pass, FP8, the embedded checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from colq_utils.base import config, files
from colq_utils.base.errors import ColqError
from studies.fp8_serving import (
    boxes,
    checkpoint,
    engine,
    forward,
    fp8,
    generate,
    make,
    pictures,
    scenes,
    tiny,
    train,
)

HOME = config.ROOT / "models" / "tiny-qwen2vl-nutrition"


@pytest.fixture(scope="module")
def held_out():
    return pictures.load()


def saved(folder, towers=("language_model",)):
    """The embedded detector in FP8, as a checkpoint."""
    model = fp8.quantize(checkpoint.load(HOME), "fp8-dynamic", towers=towers)
    return checkpoint.save(model, "fp8-dynamic", HOME, folder, towers)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("fp8") / "dynamic")


def test_held_out_pictures_are_those_of_the_fingerprint(held_out):
    assert len(held_out) == pictures.COUNT
    assert {"pictures": len(held_out), "sha256": pictures.fingerprint(held_out)} == pictures.stated()
    assert {(p.width, p.height) for p in held_out} == set(scenes.SHAPES)
    for p in held_out:
        x1, y1, x2, y2 = p.box
        assert 0 < x1 < x2 < 1 and 0 < y1 < y2 < 1 and (x2 - x1) * (y2 - y1) > 0.05


def test_the_generator_still_draws_the_held_out_scenes(held_out):
    for number in (0, 7):
        scene, kept = scenes.draw([scenes.HELD_OUT, number]), held_out[number]
        assert scene.box == pytest.approx(kept.box, abs=1e-9) and scene.package == kept.package
        difference = np.asarray(scene.image, int) - np.asarray(pictures.decode(kept.data), int)
        assert np.abs(difference).mean() < 6, "the same picture, but for its compression"


@pytest.mark.parametrize("kind", ["box", "can"])
def test_the_truth_follows_the_table(kind):
    """A table drawn in one colour that nothing else has: its pixels' extent is the box."""
    corners = np.array([(0, 0), (100, 0), (100, 80), (0, 80)], float)
    seen_at = np.array([(30, 20), (210, 40), (190, 180), (20, 150)], float)
    matrix = scenes._homography(corners, seen_at)
    front = Image.new("RGB", (100, 80))
    front.paste((255, 0, 0), (20, 15, 70, 60))
    front = scenes._rolled(front) if kind == "can" else front
    seen = np.asarray(scenes._seen(front, matrix, (240, 200), Image.Resampling.BILINEAR))
    rows, columns = np.nonzero(seen[:, :, 0] > 60)
    extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    edge = scenes._project(matrix, scenes._bend(scenes._edge((20, 15, 70, 60)), 100, kind))
    assert np.abs(np.concatenate((edge.min(0), edge.max(0))) - extent).max() < 2.5


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[0.05, 0.38, 0.55, 0.6]", [0.05, 0.38, 0.55, 0.6]),
        ("The box is [0, 0, 1, 1].", [0, 0, 1, 1]),
        ("[0.5, 0.4, 0.5, 0.6]", None),
        ("[0.1, 0.2, 1.5, 0.6]", None),
        ("[0.1, 0.2, 0.3]", None),
        ("no table", None),
        ("[0.1, 0.2, 0.3, 0.4] [0.1, 0.2, 0.3, 0.4]", None),
        ("", None),
    ],
)
def test_parsing(answer, box):
    assert boxes.parse(answer) == box


def test_box_measures():
    assert boxes.text((0.051, 0.384, 0.5499, 0.6)) == "[0.05, 0.38, 0.55, 0.6]"
    assert boxes.iou([0, 0, 0.5, 1], [0.25, 0, 0.75, 1]) == pytest.approx(1 / 3)
    assert boxes.iou(None, [0, 0, 1, 1]) == 0
    assert boxes.iou([0, 0, 0.1, 0.1], [0.5, 0.5, 1, 1]) == 0
    assert boxes.shift_px([0, 0, 1, 1], [0.1, 0, 1, 0.9], 100, 200) == pytest.approx((10 + 20) / 4)
    assert np.isnan(boxes.shift_px(None, [0, 0, 1, 1], 100, 200))


def test_a_broken_picture_is_one_line():
    with pytest.raises(ColqError, match="does not decode"):
        pictures.decode(b"RIFF no picture")


def test_answers_are_those_of_generate(held_out):
    """Own positions, cache and patches against transformers, in fp32 so that no near tie decides."""
    runner = engine.InProcess(HOME, model=checkpoint.load(HOME, dtype=torch.float32), batch=2)
    chosen = [next(p.data for p in held_out if (p.width, p.height) == size) for size in scenes.SHAPES]
    expected, _ = make.through_transformers(HOME, chosen, torch.float32)
    assert [answer.text for answer in runner.answer(chosen)] == expected


def test_patches_are_those_of_the_image_processor(held_out):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    fields = json.loads((HOME / "preprocessor_config.json").read_text())
    size, mean, std = (fields[key] for key in ("size", "image_mean", "image_std"))
    image = pictures.decode(held_out[0].data).resize((300, 500))
    processor = Qwen2VLImageProcessorPil(size=size, image_mean=mean, image_std=std)
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    own = generate.patches([generate.fitted(image, *size.values())], mean, std)[0]
    assert torch.allclose(own, expected, atol=2e-6)


def test_a_batch_answers_as_each_alone(held_out):
    runner = engine.InProcess(HOME)
    given = [p.data for p in held_out if (p.width, p.height) == scenes.SHAPES[0]][:3]
    alone = [a.text for a in runner.answer(given)]
    runner.batch = 3
    assert [a.text for a in runner.answer(given)] == alone


def test_the_embedded_detector_finds_tables(held_out):
    answers = engine.InProcess(HOME, batch=8).answer([p.data for p in held_out[:32]])
    assert np.mean([boxes.iou(a.box, p.box) for a, p in zip(answers, held_out)]) >= 0.85
    assert not engine.reasons(answers)


def test_fp8_layer_computes_the_stated_function():
    torch.manual_seed(0)
    weight, x = torch.randn(32, 48) * torch.logspace(-3, 1, 32)[:, None], torch.randn(2, 5, 48) * 7
    x[0, 0] = 0
    stored, scale = fp8.quantize_weight(weight, per_channel=True)
    assert stored.dtype == torch.float8_e4m3fn and scale.shape == (32, 1)
    given = x.abs().amax(-1, keepdim=True) / 448
    given[given == 0] = 1
    inputs, weights = (x / given).to(fp8.E4M3).double() * given.double(), stored.double() * scale.double()
    out = fp8.Fp8Linear(stored, scale, torch.ones(32))(x)
    assert torch.allclose(out.double(), inputs @ weights.T + 1, rtol=1e-4, atol=1e-4)
    exact = x @ weight.T + 1
    assert (out - exact).norm() / exact.norm() < 0.05
    matrix, single = fp8.quantize_weight(weight, per_channel=False)
    static = fp8.Fp8Linear(matrix, single, None, fp8.scale_of(x.abs().max().reshape(1)))(x)
    assert (static - x @ weight.T).norm() / exact.norm() < 0.08
    assert fp8.rounded(torch.tensor([1e9]), torch.tensor([1.0])).float().item() == 448, "saturates, no NaN"


def test_quantized_part_is_about_half(quantized):
    base, small = make.stored_bytes(HOME), make.stored_bytes(quantized)
    assert small["blocks"] <= 0.55 * base["blocks"]
    assert small | {"blocks": 0} == base | {"blocks": 0}, "the other parts stay as they are"
    tensors = make.tensors(quantized)
    assert tensors["bytes"].sum() == sum(small.values())
    assert set(tensors[tensors["dtype"] == "F8_E4M3"]["part"]) == {"blocks"}
    table = make.tensors(HOME)
    predicted = (table["bytes"] - table["fp8"] * table["bytes"] // 2).sum() + 4 * table["channels"].sum()
    assert predicted == sum(small.values())
    assert fp8.census(checkpoint.load(quantized)) == {"float32": 19, "fp8 reference": 28}


def test_fp8_checkpoint_opens_in_transformers_with_the_same_answers(quantized, held_out):
    pytest.importorskip("compressed_tensors")
    given = [p.data for p in held_out[:2]]
    own = np.array([a.box for a in engine.InProcess(quantized).answer(given)])
    other, version = make.through_transformers(quantized, given)
    assert version and [boxes.parse(t) for t in other] == pytest.approx(own, abs=0.021)


def test_other_towers_when_asked(tmp_path):
    folder = saved(tmp_path / "head", ("language_model", "lm_head"))
    assert isinstance(checkpoint.load(folder).lm_head, fp8.Fp8Linear)
    fields = json.loads((folder / "config.json").read_text())
    assert fields["quantization_config"]["ignore"] == ["re:.*visual.*"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t, c: t.pop("model.layers.0.mlp.up_proj.weight_scale"), "Missing key"),
        (lambda t, c: t.update(extra=torch.zeros(1)), "Unexpected key"),
        (lambda t, c: c["quantization_config"].update(format="pack-quantized"), "is not read here"),
        (lambda t, c: c["text_config"].update(num_hidden_layers=3), "is no Qwen2-VL's: .*layer_types"),
    ],
)
def test_a_damaged_checkpoint_is_refused(quantized, tmp_path, damage, message):
    tensors = load_file(quantized / "model.safetensors")
    fields = json.loads((quantized / "config.json").read_text())
    damage(tensors, fields)
    save_file(tensors, tmp_path / "model.safetensors")
    files.write_json(tmp_path / "config.json", fields)
    with pytest.raises(ColqError, match=message):
        checkpoint.load(tmp_path)


def test_mistakes_of_quantization(tmp_path):
    with pytest.raises(ColqError, match="unknown recipe 'int3'"):
        fp8.quantize(checkpoint.load(HOME), "int3")
    with pytest.raises(ColqError, match="calibration"):
        fp8.quantize(checkpoint.load(HOME), "fp8-static")
    with pytest.raises(ColqError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)


def test_names_in_checkpoints_and_back():
    names = list(checkpoint.load(HOME).state_dict())
    assert [checkpoint.module_name(checkpoint.stored_name(n)) for n in names] == names
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert checkpoint.stored_name(name) == "model.layers.0.mlp.up_proj.weight"


def test_training_scenes_move_with_their_boxes():
    torch.manual_seed(3)
    truth = torch.tensor([[0.3, 0.25, 0.6, 0.7], [0.1, 0.1, 0.5, 0.4]])
    size = torch.tensor([448, 336, 448, 336])
    images = torch.zeros((2, 336, 448, 3), dtype=torch.uint8)
    for image, box in zip(images, truth):
        x1, y1, x2, y2 = (box * size).round().int().tolist()
        image[y1:y2, x1:x2] = 255
    for _ in range(4):
        pixels, moved = train.vary(images, truth)
        for picture, box in zip(pixels.mean(1), moved):
            inside = picture > (picture.min() + picture.max()) / 2
            inside = inside if inside[0, 0] == 0 else ~inside
            rows, columns = inside.nonzero().unbind(1)
            extent = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / size
            assert (extent - box).abs().max() < 0.01


def test_a_training_step_learns_one_answer():
    trainer = train.Trainer("cpu", compiled=False)
    trainer.model = tiny.new(1)
    trainer.adam = torch.optim.AdamW(trainer.model.parameters(), lr=2e-3)
    trainer.muon = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    pixels, truth = torch.rand(2, 3, 56, 56), torch.tensor([[0.1, 0.2, 0.5, 0.6]] * 2)
    losses = [float(trainer.update(pixels, truth, 1.0)) for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]
    answer = trainer.answers(truth)[0].tolist()
    assert trainer.tokenizer.decode(answer, skip_special_tokens=True) == "[0.1, 0.2, 0.5, 0.6]"


def test_rope_tables_are_those_of_transformers():
    ids = torch.tensor([[1, 2, 3] + [5] * 12 + [7, 8]])
    expected, _ = checkpoint.load(HOME).model.get_rope_index(
        ids, image_grid_thw=torch.tensor([[1, 6, 8]]), mm_token_type_ids=(ids == 5).int()
    )
    assert torch.equal(forward.text_positions(3, 3, 4, 2, "cpu"), expected[:, 0])
