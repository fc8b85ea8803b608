"""A variant of an experiment: which weights are stored, how they are run, and what that is called."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from colq_utils.base.schema import Id, Once, Section

#: Weight bits of every scheme known here; None: floating point, not quantized.
SCHEMES = {"bf16": None, "fp32": None, "fp8": None, "w8a16": 8, "w4a16": 4, "w3a16": 3, "w2a16": 2}
#: Fields of a variant that change how stored weights are held or run, not what is stored.
RUNTIME_OPTIONS = {"backend", "encode", "embedding", "vision", "tag"}


class Variant(Section):
    """One way of storing the weights. Method ``pack`` rounds to nearest by `colq_utils.model.packing`, to the
    bits of AutoRound's ``rtn``; `calibration` names a set, `backend` the kernel to insist on; `embedding` is
    the table in int8, `vision` the tower in FP8; `tag` tells two backends of one scheme apart.
    """

    scheme: Literal[*SCHEMES]
    method: Literal["base", "rtn", "pack", "autoround"] = "base"
    calibration: str | None = None
    iters: int = Field(0, ge=0)
    group_size: int = Field(128, ge=32, multiple_of=32)
    sym: bool = True
    backend: str | None = None
    exports: Annotated[tuple[Literal["auto_round", "auto_awq", "auto_gptq"], ...], Once] = ("auto_round",)
    encode: Literal["plain", "fast"] | None = None
    embedding: Literal["int8"] | None = None
    vision: Literal["fp8"] | None = None
    tag: Id | None = None

    @model_validator(mode="after")
    def consistent(self):
        if (self.bits is None) != (self.method == "base"):
            raise ValueError(f"scheme {self.scheme} does not go with method {self.method}")
        if (self.method == "autoround") != (self.calibration is not None and self.iters > 0):
            raise ValueError("method autoround takes `calibration` and `iters`, others take neither")
        if self.method == "pack" and not (self.sym and self.exports == ("auto_round",)):
            raise ValueError("for `sym: false` or other `exports` than auto_round, take method rtn, not pack")
        if self.bits is not None and "auto_round" not in self.exports:
            raise ValueError("auto_round is the export that is evaluated; add it to `exports`")
        return self

    @property
    def bits(self) -> int | None:
        return SCHEMES[self.scheme]

    def stored(self, size: str) -> str:
        """Id of the weights as stored: size-scheme-method, with what departs from group 128, symmetric."""
        method = None if self.method == "base" else self.method
        group = None if self.group_size == 128 else f"g{self.group_size}"
        asym = None if self.sym else "asym"
        return "-".join(filter(None, [size, self.scheme, method, self.calibration, group, asym]))

    def name(self, size: str) -> str:
        """Variant id: that of the stored weights, and the runtime options."""
        embedding = self.embedding and f"{self.embedding}embed"
        vision = self.vision and f"{self.vision}vision"
        return "-".join(filter(None, [self.stored(size), embedding, vision, self.tag, self.encode]))
