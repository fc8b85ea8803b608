"""A variant of an experiment: which weights are stored, how they are run, and what that is called."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from colq_utils.base.schema import Id, Once, Section

#: Weight bits of every scheme known here; None: floating point, not quantized.
SCHEMES = {"bf16": None, "fp32": None, "fp8": None, "nf4": 4, "w8a16": 8, "w4a16": 4, "w3a16": 3, "w2a16": 2}
#: Weights that share a scale, and the export that is evaluated, where they are not 128 and AutoRound's.
GROUPS, USUAL_EXPORT = {"nf4": 64}, {"nf4": "bitsandbytes"}
#: Packings of integer weights, by AutoRound's names, and the formats of NF4 and FP8 weights.
EXPORTS = ("auto_round", "auto_awq", "auto_gptq", "bitsandbytes", "compressed_tensors")
#: Fields of a variant that change how stored weights are held or run, not what is stored.
RUNTIME_OPTIONS = {"backend", "encode", "embedding", "vision", "tag"}


def _group(fields: dict) -> int:
    return GROUPS.get(fields["scheme"], 128)


def _exports(fields: dict) -> tuple[str, ...]:
    return (USUAL_EXPORT.get(fields["scheme"], "auto_round"),)


class Variant(Section):
    """One way of storing the weights. Method ``pack`` rounds to nearest by `colq_utils.model.packing`, to the
    bits of AutoRound's ``rtn``; scheme ``nf4`` takes no method: bitsandbytes rounds it. `calibration` names a
    set, `backend` the kernel to insist on; `embedding` is the table in int8, `vision` the tower in FP8; `tag`
    tells two backends of one scheme apart. FP8 is rounded at loading, or stored as well if `exports` is
    ``compressed_tensors``.
    """

    scheme: Literal[*SCHEMES]
    method: Literal["base", "rtn", "pack", "autoround"] = "base"
    calibration: str | None = None
    iters: int = Field(0, ge=0)
    group_size: int = Field(default_factory=_group, ge=32, multiple_of=32)
    sym: bool = True
    backend: str | None = None
    exports: Annotated[tuple[Literal[*EXPORTS], ...], Once] = Field(default_factory=_exports)
    encode: Literal["plain", "fast"] | None = None
    embedding: Literal["int8"] | None = None
    vision: Literal["fp8"] | None = None
    tag: Id | None = None

    @model_validator(mode="after")
    def consistent(self):
        if (self.bits is None or self.is_nf4) != (self.method == "base"):
            raise ValueError(f"scheme {self.scheme} does not go with method {self.method}")
        if (self.method == "autoround") != (self.calibration is not None and self.iters > 0):
            raise ValueError("method autoround takes `calibration` and `iters`, others take neither")
        if self.method == "pack" and not (self.sym and self.exports == ("auto_round",)):
            raise ValueError("for `sym: false` or other `exports` than auto_round, take method rtn, not pack")
        if self.is_nf4 and not (self.sym and self.group_size == GROUPS["nf4"] and len(self.exports) == 1):
            raise ValueError("nf4 has blocks of 64 and one export: leave out group_size, sym and exports")
        if self.is_nf4 and self.backend not in (None, "unpack", "bitsandbytes"):
            raise ValueError(f"nf4 runs on backend unpack or bitsandbytes, not {self.backend}")
        usual = _exports({"scheme": self.scheme})[0]
        if self.bits is not None and usual not in self.exports:
            raise ValueError(f"{usual} is the export that is evaluated; add it to `exports`")
        if "compressed_tensors" in self.exports and (self.scheme, len(self.exports)) != ("fp8", 1):
            raise ValueError("compressed_tensors is the export of scheme fp8, which has no other")
        return self

    @property
    def bits(self) -> int | None:
        return SCHEMES[self.scheme]

    @property
    def is_nf4(self) -> bool:
        return self.scheme == "nf4"

    @property
    def group(self) -> str | None:
        """The group size where it is not the usual one of the scheme, as names have it."""
        return None if self.group_size == _group({"scheme": self.scheme}) else f"g{self.group_size}"

    @property
    def export(self) -> str:
        """The export that is evaluated."""
        usual = _exports({"scheme": self.scheme})[0]
        return usual if usual in self.exports else self.exports[0]

    @property
    def is_stored(self) -> bool:
        """Whether it has a checkpoint beside the base's: packed weights, or FP8 that is exported."""
        return self.bits is not None or self.export == "compressed_tensors"

    @property
    def is_converted(self) -> bool:
        """Whether something is rounded to eight bits at loading, which may change what it finds."""
        return self.scheme == "fp8" or self.embedding is not None or self.vision is not None

    @property
    def runtime_options(self) -> set[str]:
        """`RUNTIME_OPTIONS` of this variant: of stored FP8 the tower is stored too."""
        return RUNTIME_OPTIONS - ({"vision"} if self.export == "compressed_tensors" else set())

    def stored(self, size: str) -> str:
        """Id of the weights as stored: size-scheme-method, with what departs from usual groups, symmetric."""
        method = None if self.method == "base" else self.method
        asym = None if self.sym else "asym"
        vision = None if "vision" in self.runtime_options else self._vision
        return "-".join(filter(None, [size, self.scheme, method, self.calibration, self.group, asym, vision]))

    def name(self, size: str) -> str:
        """Variant id: that of the stored weights, and the runtime options."""
        return "-".join(filter(None, [self.stored(size), *self.rounded, self.tag, self.encode]))

    @property
    def rounded(self) -> list[str]:
        """What is rounded at loading beside the scheme, as ids say it."""
        vision = self._vision if "vision" in self.runtime_options else None
        return list(filter(None, [self.embedding and f"{self.embedding}embed", vision]))

    @property
    def _vision(self) -> str | None:
        return self.vision and f"{self.vision}vision"
