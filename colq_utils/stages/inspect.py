"""Where a checkpoint's bytes are and how many each scheme leaves, from headers and config.json alone."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import pandas as pd

from colq_utils.base.config import Experiment
from colq_utils.base.files import write_json, write_table
from colq_utils.base.names import BIAS, PARTS, UNUSED
from colq_utils.model import footprint
from colq_utils.model.footprint import PACKINGS, total
from colq_utils.model.hub import Tensor, read_headers, read_licence


def towers(tensors: list[Tensor]) -> pd.DataFrame:
    """Tensors, parameters, bytes and share (of all bytes) of each part present."""
    of_part = {part: [t for t in tensors if t.part == part] for part in PARTS}
    table = pd.DataFrame([{"tower": part, **_counts("tensors", of)} for part, of in of_part.items() if of])
    return table.assign(share=table["bytes"] / table["bytes"].sum())


def predicted(tensors: list[Tensor]) -> pd.DataFrame:
    """Bytes under every scheme, group size and packing; reduction against bf16 without the unused head."""
    base = sum(2 * t.parameters for t in tensors if t.part != UNUSED)
    rows = [("bf16", pd.NA, "none", base)]
    for bits, packing, group in product(PACKINGS["auto_round"], PACKINGS, footprint.GROUP_SIZES):
        if bits in PACKINGS[packing]:
            size = total(footprint.quantized(tensors, bits, group, packing))
            rows.append((f"w{bits}a16", group, packing, size))
    table = pd.DataFrame(rows, columns=["scheme", "group_size", "packing", "predicted_bytes"])
    reduction_pct = 100 * (1 - table["predicted_bytes"] / base)
    return table.astype({"group_size": "Int64"}).assign(reduction_pct=reduction_pct)


def quantizable_layers(tensors: list[Tensor]) -> pd.DataFrame:
    """The Linear layers that are quantized, one line a kind: count, shape, parameters."""
    keys = ["layer", "out_features", "in_features"]
    layers = [
        (re.sub(r".*layers\.\d+\.", "", t.name).removesuffix(".weight"), *t.shape, t.parameters)
        for t in tensors
        if t.quantizable
    ]
    table = pd.DataFrame(layers, columns=[*keys, "parameters"])
    return table.groupby(keys, sort=False, as_index=False).agg(
        layers=("parameters", "size"), parameters=("parameters", "sum")
    )


#: What `architecture` shows of both towers.
ATTENTION = ("num_attention_heads", "num_key_value_heads", "head_dim")
TEXT = ("num_hidden_layers", "hidden_size", *ATTENTION, "intermediate_size", "vocab_size")
PATCHES = ("patch_size", "spatial_merge_size", "num_position_embeddings")
VISION = ("depth", "hidden_size", "num_heads", "intermediate_size", *PATCHES, "deepstack_visual_indexes")


def architecture(config: dict, tensors: list[Tensor]) -> dict:
    """The model as a tree of plain values: towers, widths, depths, what is quantized."""
    from colq_utils.model.modeling import configuration

    built = configuration({k: v for k, v in config.items() if k != "quantization_config"})
    text = {name: getattr(built.text_config, name) for name in TEXT}
    return {
        "language_model": text | {"tied_embedding": built.tie_word_embeddings},
        "visual": {name: getattr(built.vision_config, name) for name in VISION},
        "projection": {"embed_dim": built.embed_dim, "bias": any(t.name == BIAS for t in tensors)},
        "stored": {
            **_counts("tensors", tensors),
            "dtypes": sorted({t.dtype for t in tensors}),
            "unused_head_bytes": _head_bytes(tensors),
        },
        "quantizable": _counts("layers", [t for t in tensors if t.quantizable]),
    }


def _counts(what: str, tensors: list[Tensor]) -> dict[str, int]:
    return {what: len(tensors), "parameters": sum(t.parameters for t in tensors), "bytes": total(tensors)}


def _head_bytes(tensors: Iterable[Tensor]) -> int:
    return total(t for t in tensors if t.part == UNUSED)


def published() -> pd.DataFrame:
    """Sizes of the published 4B and 8B: bf16 as stored, with the head; W4A16 in groups of 128 without it."""
    rows = []
    for size in ("4b", "8b"):
        tensors = footprint.from_config(footprint.real_config(size))
        counts, head_bytes = _counts("tensors", tensors), _head_bytes(tensors)
        w4a16_bytes = total(footprint.quantized(tensors, bits=4, group_size=128))
        reduction_pct = 100 * (1 - w4a16_bytes / (counts["bytes"] - head_bytes))
        rows.append((size, counts["parameters"], counts["bytes"], head_bytes, w4a16_bytes, reduction_pct))
    columns = ["size", "parameters", "bf16_bytes", "unused_head_bytes", "w4a16_bytes", "reduction_pct"]
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class Inspection:
    """What `inspect` gives; every table is also a file of the stage."""

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
    config, model = footprint.configuration(experiment), experiment.model
    if model.is_random:  # sizes follow from the dimensions; no weights are made for them
        tensors = footprint.from_config(config)
    else:
        tensors = read_headers(experiment.model_path, model.revision)
    tables = (quantizable_layers(tensors), towers(tensors), predicted(tensors), published())
    inspection, folder = Inspection(architecture(config, tensors), *tables), experiment.results("inspect")
    source = {"model": model.path, "revision": model.revision}
    source |= {} if model.is_random else read_licence(experiment.model_path, model.revision)
    write_json(folder / "architecture.json", source | inspection.architecture)
    for name in ("layers", "towers", "predicted", "published"):
        write_table(folder / f"{name}.csv", getattr(inspection, name))
    return inspection
