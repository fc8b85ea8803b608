"""A study file: which roundings of one base are compared, with which calibration, over which seeds.

An experiment makes checkpoints to keep; a study makes many roundings, measures each and keeps only the
measurements. Its arms are products of formats, group sizes, calibration sets, iterations and seeds;
`variants` spells them out, in the order in which they are to be run. What is done with a variant stands in
`weights`, how it is measured in `scores`.
"""

import json
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from colq_utils.base.config import ROOT, CalibrationSet, Model, Runtime
from colq_utils.base.errors import ColqError
from colq_utils.base.schema import Section, parse

STUDIES = ROOT / "studies" / "seqlen"
#: Storage of the quantized Linears: None where weights stay floating point numbers of 16 or 32 bits.
FORMATS = {"bf16": None, "fp32": None, "w8": 8, "w4": 4, "w3": 3, "w2": 2, "fp8": 8, "mxfp4": 4}
#: The seven Linears of a decoder layer.
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class SeqlenVariant(Section):
    """One rounding of the base.

    scope: which Linears of the language model: 'all', 'layer 3' or 'q_proj'; visual: format of the vision
    tower's Linears. seed draws the calibration text and AutoRound's batches; text_seed, where given, draws
    the text instead.
    """

    id: str
    family: str
    format: str
    method: Literal["base", "rtn", "autoround"]
    group_size: int = 128
    sym: bool = True
    scope: str = "all"
    visual: str = "bf16"
    set: str | None = None
    iters: int = 0
    seed: int | None = None
    text_seed: int | None = None

    @property
    def bits(self) -> int | None:
        return FORMATS[self.format]


class Arm(Section):
    """A product of choices; with `sets` its variants are AutoRound's, without they are rounded to nearest."""

    family: str
    formats: tuple[str, ...]
    group_sizes: tuple[int, ...] = (128,)
    sym: tuple[bool, ...] = (True,)
    scope: Literal["all", "layers", "kinds"] = "all"
    visual: tuple[str, ...] = ("bf16",)
    sets: tuple[str, ...] = ()
    iters: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    text_seed: int | None = None

    @model_validator(mode="after")
    def known(self):
        for name in (*self.formats, *self.visual):
            if name not in FORMATS:
                raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
        if not bool(self.sets) == bool(self.iters) == bool(self.seeds):
            raise ValueError(
                f"arm {self.family}: AutoRound takes sets, iters and seeds, rounding to nearest none of them"
            )
        integers = [name for name in FORMATS if name.startswith("w")]
        if self.sets and not set(self.formats) <= set(integers):
            raise ValueError(
                f"arm {self.family}: AutoRound tunes integer formats here ({', '.join(integers)})"
            )
        return self

    def variants(self, layers: int) -> list[SeqlenVariant]:
        if self.sets:
            choices = product(self.iters, self.seeds, self.formats, self.group_sizes, self.sym, self.sets)
            names = ("iters", "seed", "form", "group_size", "sym", "set")
            shared = {"family": self.family, "method": "autoround", "text_seed": self.text_seed}
            return [_variant(**shared, **dict(zip(names, values))) for values in choices]
        scopes = {"all": ["all"], "layers": [f"layer {i}" for i in range(layers)], "kinds": list(KINDS)}
        choices = product(self.formats, self.group_sizes, self.sym, scopes[self.scope], self.visual)
        names = ("form", "group_size", "sym", "scope", "visual")
        return [
            _variant(self.family, "base" if FORMATS[values[0]] is None else "rtn", **dict(zip(names, values)))
            for values in choices
        ]


def _variant(family: str, method: str, form: str, **choices) -> SeqlenVariant:
    """Name a variant by format, method and what departs from group 128, symmetric, whole language model."""
    parts = [form] + ([method] if method != "base" else [])
    parts += [choices["set"], f"i{choices['iters']}"] if method == "autoround" else []
    parts += [f"g{choices['group_size']}"] if choices["group_size"] != 128 else []
    parts += [] if choices["sym"] else ["asym"]
    parts += [choices["scope"].replace(" ", "")] if choices.get("scope", "all") != "all" else []
    parts += [f"vision-{choices['visual']}"] if choices.get("visual", "bf16") != "bf16" else []
    parts += [f"r{choices['seed']}"] if method == "autoround" else []
    parts += [f"t{choices['text_seed']}"] if choices.get("text_seed") is not None else []
    return SeqlenVariant(id="-".join(parts), family=family, format=form, method=method, **choices)


class StudySpec(Section):
    """A whole study. See `load`."""

    name: str
    title: str
    seed: int
    model: Model
    corpus: str
    margin: float
    sets: tuple[CalibrationSet, ...]
    arms: tuple[Arm, ...]
    # of the committed results; a run on a CPU computes in its float32
    runtime: Runtime = Runtime(device="cuda")

    @model_validator(mode="after")
    def consistent(self):
        known = {s.id for s in self.sets}
        for arm in self.arms:
            for name in arm.sets:
                if name not in known:
                    raise ValueError(
                        f"arm {arm.family}: no calibration set {name!r}; there are {sorted(known)}"
                    )
        ids = [v.id for v in self.variants]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"two arms make one variant: {twice[0]}")
        if ids[:1] != ["bf16"]:
            raise ValueError(
                "the first variant is the base that the others are compared with: "
                "let the first arm start with bf16"
            )
        return self

    @property
    def layers(self) -> int:
        """Decoder layers of the base."""
        path = ROOT / self.model.path / "config.json"
        if not path.exists():
            raise ValueError(f"no checkpoint folder {self.model.path}")
        return json.loads(path.read_text())["text_config"]["num_hidden_layers"]

    @property
    def variants(self) -> list[SeqlenVariant]:
        layers = self.layers
        return [variant for arm in self.arms for variant in arm.variants(layers)]

    @property
    def base(self) -> str:
        return self.variants[0].id

    def set(self, name: str) -> CalibrationSet:
        return next(s for s in self.sets if s.id == name)

    def length(self, name: str) -> int:
        """Tokens per row of a calibration set."""
        return self.set(name).seqlen

    def fields(self, variant: SeqlenVariant) -> dict:
        """A variant and its calibration set as columns of the table of runs."""
        wanted = self.set(variant.set).model_dump(exclude={"id"}) if variant.set else {}
        fields = variant.model_dump(exclude={"id"})
        return {"variant": variant.id, **fields, **{f"set_{key}": value for key, value in wanted.items()}}

    @property
    def model_path(self) -> str:
        return str(ROOT / self.model.path)


def load(name: str) -> StudySpec:
    """Read ``studies/seqlen/<name>.yaml`` (or the YAML file of that path).

    Raises:
        ColqError: no such study, or a value in it that cannot be.
    """
    path = Path(name) if name.endswith(".yaml") else STUDIES / f"{name}.yaml"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise ColqError(f"no study {name!r}; there are: {names} (files in studies/seqlen/)")
    return parse(StudySpec, path, name=path.stem)
