"""Where a checkpoint's bytes are, and how many are left under each quantization scheme: from shapes alone.

A safetensors file opens with a table of its tensors (name, dtype, shape). Those tables and
``config.json`` say all that can be said about size, in a few kilobytes, for an 8B model on the hub
as for the embedded one; no weight is read. Predictions are sums over the tensors that AutoRound
writes, so they agree with a real checkpoint to the byte (tested). What a running process holds on
top (activations, libraries) is measured in `colq_utils.bench`, not guessed here.
"""
import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import pandas as pd

from .config import Experiment
from .errors import ColqError
from .files import write_json, write_table
from .kernels import tower_of

#: Bytes of one number of each safetensors dtype.
WIDTH = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1, "BOOL": 1}
#: Parts of a checkpoint, in the order of tables and figures.
PARTS = ("language_model", "embedding", "visual", "projection", "lm_head", "other")
#: Layers that AutoRound quantizes: every Linear of the language model's blocks (their norms are vectors).
QUANTIZABLE = re.compile(r"^vlm\.model\.language_model\.layers\.\d+\..*\.weight$")
#: The projection's weight and, where the checkpoint has one, its bias.
PROJECTION, BIAS = "embedding_proj_layer.weight", "embedding_proj_layer.bias"
#: Packings and the weight bits each exists for. The first is what AutoRound writes by default.
PACKINGS = {"auto_round": (8, 4, 3, 2), "auto_gptq": (8, 4, 3, 2), "auto_awq": (4,)}
GROUP_SIZES = (32, 64, 128)
#: The part that has no share in a prediction: the head is never loaded.
UNUSED = "lm_head"


def part_of(name: str) -> str:
    """One of `PARTS`; the embedding table stands apart from the blocks that are quantized."""
    if "lm_head" in name:
        return "lm_head"
    return "embedding" if "embed_tokens." in name else tower_of(name)


@dataclass(frozen=True)
class Tensor:
    """One line of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.parameters * WIDTH[self.dtype]

    @property
    def part(self) -> str:
        return part_of(self.name)

    @property
    def quantizable(self) -> bool:
        return len(self.shape) == 2 and QUANTIZABLE.match(self.name) is not None


def read_headers(path: str, revision: str | None = None) -> list[Tensor]:
    """The tensors of a checkpoint folder (one file or sharded), or of a hub id at a pinned revision.

    Raises:
        ColqError: no weights there, a shard that is missing or cut short, or the hub cannot be reached.
    """
    if not Path(path).is_dir():
        return _hub_headers(path, revision)
    index = Path(path) / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    return [tensor for name in names for tensor in _file_header(Path(path) / name)]


def _file_header(file: Path) -> list[Tensor]:
    """Parse the header of one file: eight bytes of length, then JSON."""
    if not file.exists():
        raise ColqError(f"{file} is missing: not a checkpoint folder, or an incomplete one")
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if needed != size:
            raise ValueError(f"it holds {size:,} bytes where its header promises {needed:,}")
    except (ValueError, struct.error) as error:
        raise ColqError(f"{file} is damaged or cut short ({error}); fetch or make it again") from None
    return [Tensor(name, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()]


def _hub_headers(path: str, revision: str | None) -> list[Tensor]:
    """Headers of a hub checkpoint by range requests: some kilobytes, whatever the model's size."""
    if Path(path).is_absolute() or revision is None:
        raise ColqError(f"no checkpoint folder {path}: restore it, or give a hub id and its revision as model in the experiment")
    from huggingface_hub import get_safetensors_metadata
    try:
        found = get_safetensors_metadata(path, revision=revision)
    except Exception as error:  # the hub client raises a dozen kinds; each means "not to be had from here"
        raise ColqError(f"the headers of {path}@{revision[:8]} cannot be read from the hub ({type(error).__name__}); "
                        "download it elsewhere and give the folder as model.path") from None
    return [Tensor(name, info.dtype, tuple(info.shape))
            for file in found.files_metadata.values() for name, info in file.tensors.items()]


def from_config(config: dict) -> list[Tensor]:
    """The tensors that a configuration implies, in bf16, without any weights (built on the meta device).

    An untied configuration gets the ``lm_head`` that its published checkpoint carries.
    """
    import torch

    from .modeling import ColQwen3Config, ColQwen3ForRetrieval
    built = ColQwen3Config(**{k: v for k, v in config.items() if k != "quantization_config"})
    with torch.device("meta"):
        state = ColQwen3ForRetrieval(built).state_dict()
    tensors = [Tensor(name, "BF16", tuple(value.shape)) for name, value in state.items()]
    if not built.tie_word_embeddings:
        text = built.text_config
        tensors.append(Tensor("vlm.lm_head.weight", "BF16", (text.vocab_size, text.hidden_size)))
    return tensors


def packed(tensor: Tensor, bits: int, group_size: int, packing: str = "auto_round") -> list[Tensor]:
    """The tensors that AutoRound writes in place of a Linear's weight ``(out, in)``.

    Weights and zero points are packed into int32 words, scales are fp16, one of each a group and
    output. ``auto_gptq`` adds ``g_idx``, an int32 a column. AWQ packs along the other dimension.

    Raises:
        ColqError: a packing that does not exist for this many bits.
    """
    if bits not in PACKINGS.get(packing, ()):
        raise ColqError(f"no packing {packing!r} for {bits} bits; there are: "
                        + ", ".join(f"{name} ({'/'.join(map(str, b))})" for name, b in PACKINGS.items()))
    out, columns = tensor.shape
    layer, groups = tensor.name.removesuffix("weight"), -(-columns // group_size)
    weight = (columns, _words(out, bits)) if packing == "auto_awq" else (_words(columns, bits), out)
    made = [Tensor(layer + "qweight", "I32", weight), Tensor(layer + "qzeros", "I32", (groups, _words(out, bits))),
            Tensor(layer + "scales", "F16", (groups, out))]
    return made + ([Tensor(layer + "g_idx", "I32", (columns,))] if packing == "auto_gptq" else [])


def _words(numbers: int, bits: int) -> int:
    """32-bit words that hold so many numbers (three bits: ten and two thirds a word, as GPTQ does)."""
    return -(-numbers * bits // 32)


def quantized(tensors: Iterable[Tensor], bits: int, group_size: int, packing: str = "auto_round") -> list[Tensor]:
    """The checkpoint that quantizing `tensors` gives, without the unused head."""
    made = []
    for tensor in tensors:
        if tensor.part != UNUSED:
            made += packed(tensor, bits, group_size, packing) if tensor.quantizable else [tensor]
    return made


def total(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.bytes for tensor in tensors)


def towers(tensors: list[Tensor]) -> pd.DataFrame:
    """Tensors, parameters, bytes and share (of all bytes) of each part present."""
    rows = []
    for part in PARTS:
        mine = [t for t in tensors if t.part == part]
        if mine:
            rows.append({"tower": part, "tensors": len(mine), "parameters": sum(t.parameters for t in mine), "bytes": total(mine)})
    table = pd.DataFrame(rows)
    return table.assign(share=table["bytes"] / table["bytes"].sum())


def predicted(tensors: list[Tensor]) -> pd.DataFrame:
    """Bytes under every scheme, group size and packing; `reduction_pct` is against bf16 without the unused head."""
    base = sum(2 * t.parameters for t in tensors if t.part != UNUSED)
    rows = [{"scheme": "bf16", "group_size": pd.NA, "packing": "none", "predicted_bytes": base}]
    for bits in PACKINGS["auto_round"]:
        rows += [{"scheme": f"w{bits}a16", "group_size": group, "packing": packing,
                  "predicted_bytes": total(quantized(tensors, bits, group, packing))}
                 for packing, known in PACKINGS.items() if bits in known for group in GROUP_SIZES]
    table = pd.DataFrame(rows).astype({"group_size": "Int64"})
    return table.assign(reduction_pct=100 * (1 - table["predicted_bytes"] / base))


def quantizable_layers(tensors: list[Tensor]) -> pd.DataFrame:
    """The Linear layers that are quantized, one line a kind: count, shape, parameters."""
    lines = [{"layer": re.sub(r".*layers\.\d+\.", "", t.name).removesuffix(".weight"), "out_features": t.shape[0],
              "in_features": t.shape[1], "parameters": t.parameters} for t in tensors if t.quantizable]
    table = pd.DataFrame(lines, columns=["layer", "out_features", "in_features", "parameters"])
    keys = ["layer", "out_features", "in_features"]
    return table.groupby(keys, sort=False, as_index=False).agg(layers=("parameters", "size"), parameters=("parameters", "sum"))


def architecture(config: dict, tensors: list[Tensor]) -> dict:
    """The model as a tree of plain values: towers, widths, depths, what is quantized."""
    from .modeling import ColQwen3Config
    built = ColQwen3Config(**{k: v for k, v in config.items() if k != "quantization_config"})
    text = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size")
    vision = ("depth", "hidden_size", "num_heads", "intermediate_size", "patch_size", "spatial_merge_size",
              "num_position_embeddings", "deepstack_visual_indexes")
    chosen = [t for t in tensors if t.quantizable]
    return {
        "language_model": {name: getattr(built.text_config, name) for name in text} | {"tied_embedding": built.tie_word_embeddings},
        "visual": {name: getattr(built.vision_config, name) for name in vision},
        "projection": {"embed_dim": built.embed_dim, "bias": any(t.name == BIAS for t in tensors)},
        "stored": {"tensors": len(tensors), "parameters": sum(t.parameters for t in tensors), "bytes": total(tensors),
                   "dtypes": sorted({t.dtype for t in tensors}), "unused_head_bytes": total(t for t in tensors if t.part == UNUSED)},
        "quantizable": {"layers": len(chosen), "parameters": sum(t.parameters for t in chosen), "bytes": total(chosen)},
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
    tensors = from_config(config) if experiment.model.is_random else read_headers(experiment.model_path, experiment.model.revision)
    found = Inspection(architecture(config, tensors), quantizable_layers(tensors), towers(tensors), predicted(tensors), published())
    folder = experiment.results("inspect")
    write_json(folder / "architecture.json",
               {"model": experiment.model.path, "revision": experiment.model.revision, **found.architecture})
    for name in ("layers", "towers", "predicted", "published"):
        write_table(folder / f"{name}.csv", getattr(found, name))
    return found


def configuration(experiment: Experiment) -> dict:
    """The configuration of an experiment's base checkpoint."""
    from .loading import read_config  # transformers takes seconds to import; sizes alone do not need it
    return real_config(experiment.model.size) if experiment.model.is_random else read_config(experiment.model_path, experiment.model.revision)


def real_config(size: str) -> dict:
    """The configuration of the published ``4b`` or ``8b`` model, by its dimensions."""
    wide = {"4b": 2560, "8b": 4096}[size]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {"vocab_size": 151936, "hidden_size": wide, "intermediate_size": {"4b": 9728, "8b": 12288}[size],
            "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rope_parameters": rope}
    vision = {"patch_size": 16, "spatial_merge_size": 2, "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": wide}
    vision |= {"4b": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]},
               "8b": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}}[size]
    return {"text_config": text, "vision_config": vision, "embed_dim": 320, "projection_bias": True, "tie_word_embeddings": size == "4b"}


def unlike(predicted: Iterable[Tensor], stored: Iterable[Tensor]) -> list[str]:
    """Where stored tensors are not those predicted: a line each, with name, dtype and shape."""
    wanted, found = ({t.name: t for t in tensors} for tensors in (predicted, stored))
    lines = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"{name} ({found[name].dtype}, {found[name].bytes:,} bytes) is not expected" for name in sorted(found.keys() - wanted.keys())]
    return lines + [f"{name} is stored as {found[name].dtype} {found[name].shape} where {wanted[name].dtype} {wanted[name].shape} was predicted"
                    for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]]


def published() -> pd.DataFrame:
    """What the published 4B and 8B come to: bf16 as stored (head included), and W4A16 in groups of 128 without the head."""
    rows = []
    for size in ("4b", "8b"):
        tensors = from_config(real_config(size))
        head = total(t for t in tensors if t.part == UNUSED)
        w4 = total(quantized(tensors, bits=4, group_size=128))
        rows.append({"size": size, "parameters": sum(t.parameters for t in tensors), "bf16_bytes": total(tensors),
                     "unused_head_bytes": head, "w4a16_bytes": w4, "reduction_pct": 100 * (1 - w4 / (total(tensors) - head))})
    return pd.DataFrame(rows)
