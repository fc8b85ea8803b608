"""Where a checkpoint's bytes are, and how many are left under each quantization scheme: from headers and config.json alone."""

import re
from dataclasses import dataclass

import pandas as pd

from colq_utils.base.config import Experiment
from colq_utils.base.files import write_json, write_table
from colq_utils.base.names import BIAS, PARTS, UNUSED
from colq_utils.model.footprint import (
    GROUP_SIZES,
    PACKINGS,
    configuration,
    from_config,
    quantized,
    real_config,
    total,
)
from colq_utils.model.hub import Tensor, read_headers


def towers(tensors: list[Tensor]) -> pd.DataFrame:
    """Tensors, parameters, bytes and share (of all bytes) of each part present."""
    rows = []
    for part in PARTS:
        mine = [t for t in tensors if t.part == part]
        if mine:
            rows.append(
                {
                    "tower": part,
                    "tensors": len(mine),
                    "parameters": sum(t.parameters for t in mine),
                    "bytes": total(mine),
                }
            )
    table = pd.DataFrame(rows)
    return table.assign(share=table["bytes"] / table["bytes"].sum())


def predicted(tensors: list[Tensor]) -> pd.DataFrame:
    """Bytes under every scheme, group size and packing; `reduction_pct` is against bf16 without the unused head."""
    base = sum(2 * t.parameters for t in tensors if t.part != UNUSED)
    rows = [{"scheme": "bf16", "group_size": pd.NA, "packing": "none", "predicted_bytes": base}]
    for bits in PACKINGS["auto_round"]:
        rows += [
            {
                "scheme": f"w{bits}a16",
                "group_size": group,
                "packing": packing,
                "predicted_bytes": total(quantized(tensors, bits, group, packing)),
            }
            for packing, known in PACKINGS.items()
            if bits in known
            for group in GROUP_SIZES
        ]
    table = pd.DataFrame(rows).astype({"group_size": "Int64"})
    return table.assign(reduction_pct=100 * (1 - table["predicted_bytes"] / base))


def quantizable_layers(tensors: list[Tensor]) -> pd.DataFrame:
    """The Linear layers that are quantized, one line a kind: count, shape, parameters."""
    lines = [
        {
            "layer": re.sub(r".*layers\.\d+\.", "", t.name).removesuffix(".weight"),
            "out_features": t.shape[0],
            "in_features": t.shape[1],
            "parameters": t.parameters,
        }
        for t in tensors
        if t.quantizable
    ]
    table = pd.DataFrame(lines, columns=["layer", "out_features", "in_features", "parameters"])
    keys = ["layer", "out_features", "in_features"]
    return table.groupby(keys, sort=False, as_index=False).agg(
        layers=("parameters", "size"), parameters=("parameters", "sum")
    )


def architecture(config: dict, tensors: list[Tensor]) -> dict:
    """The model as a tree of plain values: towers, widths, depths, what is quantized."""
    from colq_utils.model.modeling import ColQwen3Config

    built = ColQwen3Config(**{k: v for k, v in config.items() if k != "quantization_config"})
    text = (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
    )
    vision = (
        "depth",
        "hidden_size",
        "num_heads",
        "intermediate_size",
        "patch_size",
        "spatial_merge_size",
        "num_position_embeddings",
        "deepstack_visual_indexes",
    )
    chosen = [t for t in tensors if t.quantizable]
    return {
        "language_model": {name: getattr(built.text_config, name) for name in text}
        | {"tied_embedding": built.tie_word_embeddings},
        "visual": {name: getattr(built.vision_config, name) for name in vision},
        "projection": {"embed_dim": built.embed_dim, "bias": any(t.name == BIAS for t in tensors)},
        "stored": {
            "tensors": len(tensors),
            "parameters": sum(t.parameters for t in tensors),
            "bytes": total(tensors),
            "dtypes": sorted({t.dtype for t in tensors}),
            "unused_head_bytes": total(t for t in tensors if t.part == UNUSED),
        },
        "quantizable": {
            "layers": len(chosen),
            "parameters": sum(t.parameters for t in chosen),
            "bytes": total(chosen),
        },
    }


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found; every table is also a file of the stage."""

    architecture: dict
    layers: pd.DataFrame
    towers: pd.DataFrame
    predicted: pd.DataFrame
    published: pd.DataFrame


def inspect(experiment: Experiment) -> Inspection:
    """Read an experiment's base checkpoint (headers only) and write the stage's results.

    Raises:
        ColqError: no checkpoint, another architecture, damaged files, hub not reachable.
    """
    config = configuration(experiment)
    # the sizes of random weights follow from the dimensions; none are made for them
    tensors = (
        from_config(config)
        if experiment.model.is_random
        else read_headers(experiment.model_path, experiment.model.revision)
    )
    found = Inspection(
        architecture(config, tensors),
        quantizable_layers(tensors),
        towers(tensors),
        predicted(tensors),
        published(),
    )
    folder = experiment.results("inspect")
    write_json(
        folder / "architecture.json",
        {"model": experiment.model.path, "revision": experiment.model.revision, **found.architecture},
    )
    for name in ("layers", "towers", "predicted", "published"):
        write_table(folder / f"{name}.csv", getattr(found, name))
    return found


def published() -> pd.DataFrame:
    """What the published 4B and 8B come to: bf16 as stored (head included), and W4A16 in groups of 128 without the head."""
    rows = []
    for size in ("4b", "8b"):
        tensors = from_config(real_config(size))
        head = total(t for t in tensors if t.part == UNUSED)
        w4 = total(quantized(tensors, bits=4, group_size=128))
        rows.append(
            {
                "size": size,
                "parameters": sum(t.parameters for t in tensors),
                "bf16_bytes": total(tensors),
                "unused_head_bytes": head,
                "w4a16_bytes": w4,
                "reduction_pct": 100 * (1 - w4 / (total(tensors) - head)),
            }
        )
    return pd.DataFrame(rows)
