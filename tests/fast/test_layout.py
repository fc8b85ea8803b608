"""The layout of packed rows: buckets, positions, padding on either side."""

import torch

from colq_utils.fast import layout, steps


def test_buckets_hold_what_they_are_for():
    assert layout.bucket(1, 5, 5) == (1, 16, 16) and layout.bucket(3, 24, 60) == (4, 32, 64)
    assert layout.bucket(8, 28, 202) == (8, 32, 208) and layout.bucket(32, 130, 1100) == (32, 192, 1152)


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
    actual = steps.attend_packed(qkv, layout.Packed(mask, 8), 2, 2)
    for row in (slice(0, 2), slice(2, 6)):
        assert torch.allclose(actual[row], steps.attend(qkv[row], 1, 2, 2, causal=True), atol=1e-6)


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
    actual = layout.page_positions(types, inputs["image_grid_thw"], 2)
    assert torch.equal(actual * mask, expected * mask)


def test_shifting_left_and_back():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    order, back = layout.shifts(mask)
    rows = torch.tensor([[9, 9, 1, 2], [3, 4, 5, 6]])
    assert rows.gather(1, order)[0, :2].tolist() == [1, 2]
    assert torch.equal(rows.gather(1, order).gather(1, back), rows)
