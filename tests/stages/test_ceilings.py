"""What a machine could do at best: bytes and operations counted, and the roofline limit by hand."""

import torch

from colq_utils.stages.benchmark import ceilings


def test_floors():
    need = ceilings.Demand(weight_bytes=100, text_flop=600, vision_flop=300, attention_flop=100)
    limits = ceilings.floors(
        need,
        {"copy_bytes_per_s": 100, "bfloat16_flop_per_s": 100, "fp8_flop_per_s": 200},
        "fp8",
        "bfloat16",
        "bfloat16",
    )
    assert limits == {"bandwidth_floor_s": 1.0, "compute_floor_s": 7.0, "floor_s": 7.0}


def test_demand_counts_products_and_weights(random_model, page_images):
    """Against a count of what passes through every layer."""
    model, passed = random_model.model, []

    def note(module, arguments, output):
        fan_in = module.weight[0].numel() if isinstance(module, torch.nn.Conv3d) else module.in_features
        passed.append(2 * output.numel() * fan_in)

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv3d))]
    hooks = [m.register_forward_hook(note) for _, m in layers]
    text, vision = model.config.text_config, model.config.vision_config
    for inputs in (
        dict(random_model.processor.queries(["alpha beta"])),
        dict(random_model.processor.pages(page_images)),
    ):
        passed.clear()
        model(**inputs)
        rows, n = inputs["input_ids"].shape
        attention = (
            2 * rows * n**2 * text.num_attention_heads * text.head_dim * text.num_hidden_layers
        )  # causal: half
        attention += sum(
            4 * int(grid.prod()) ** 2 * vision.hidden_size * vision.depth
            for grid in inputs.get("image_grid_thw", [])
        )
        need = ceilings.demand(model, inputs)
        assert need.flop == sum(passed) + attention
        linear = sum(m.weight.nbytes for n, m in layers if "image_grid_thw" in inputs or ".visual" not in n)
        assert linear <= need.weight_bytes < 1.1 * linear  # norms, biases and positions besides
    for hook in hooks:
        hook.remove()
