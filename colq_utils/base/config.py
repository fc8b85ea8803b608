"""Experiment files: one YAML a study, validated into frozen objects before anything runs.

An experiment decides the scale (embedded, one GPU, many); the notebooks never change. Unknown keys,
unknown schemes and duplicate variants are refused here, with the names that would have been accepted.
"""

from functools import cached_property
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from colq_utils.base.errors import ColqError

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("inspect", "calibrate", "quantize", "benchmark", "evaluate", "report")
#: Stage -> its notebook in notebooks/.
NOTEBOOKS = {stage: f"{number:02d}_{stage}.ipynb" for number, stage in enumerate(STAGES, 1)}
#: Weight bits of every scheme known here; None: floating point, not quantized.
SCHEMES = {"bf16": None, "fp32": None, "fp8": None, "w8a16": 8, "w4a16": 4, "w3a16": 3, "w2a16": 2}


#: What is computed in, by device.
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


#: `Model.path` of a checkpoint with random weights in the published dimensions of `size`; see `colq_utils.model.randomized`.
RANDOM = "random"


class Model(Section):
    """The base checkpoint: a folder of this repository, a hub id with a full commit hash, or `RANDOM`."""

    path: str
    size: str
    revision: str | None = None
    max_visual_tokens: int | None = (
        None  # of a page; None: the checkpoint's own limit, but at most 1,280, as published
    )

    @property
    def is_local(self) -> bool:
        return self.is_random or (ROOT / self.path).exists() or self.path.startswith(("models/", "/", "."))

    @property
    def is_random(self) -> bool:
        return self.path == RANDOM

    @model_validator(mode="after")
    def pinned(self):
        if not self.is_local and (self.revision is None or len(self.revision) != 40):
            raise ValueError(f"{self.path} is a hub id: give `revision`, the full 40-digit commit hash")
        return self


class Runtime(Section):
    """What all variants share, so that only the weights differ.

    `dtype` is what is computed in, not what is stored: bfloat16 on CUDA, float32 on a CPU (`colq_utils.base.arithmetic`).
    `backend` is the kernel of packed layers; ``unpack``, the default on a CPU, turns them into floats once, at loading.
    `encode` is the forward pass: ``plain`` is transformers' own, ``fast`` is `colq_utils.fast.path`, ``auto`` is fast on CUDA.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["bfloat16", "float32"]
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    threads: int | None = None
    backend: Literal["ark", "torch", "marlin", "humming", "tritonv2", "unpack"] = "unpack"
    encode: Literal["auto", "plain", "fast"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def of_the_device(cls, fields: dict) -> dict:
        device = fields.get("device", "cpu") if isinstance(fields, dict) else None
        return {"dtype": DTYPES[device], **fields} if isinstance(device, str) and device in DTYPES else fields

    @model_validator(mode="after")
    def portable(self):
        if (self.device, self.dtype) == ("cpu", "bfloat16"):
            raise ValueError(
                "on a CPU everything is computed in float32 (many processors emulate bfloat16, ten times slower and with other "
                "results): leave `dtype` out; weights are stored in bfloat16 all the same"
            )
        return self


class CalibrationSet(Section):
    """Exactly `blocks` blocks of `seqlen` tokens; `batch_rows` blocks make one tuning step."""

    id: str
    seqlen: int = 0
    blocks: int
    batch_rows: int
    kind: Literal["text", "pages"] = "text"

    @model_validator(mode="after")
    def whole_batches(self):
        if self.blocks % self.batch_rows:
            raise ValueError(
                f"calibration set {self.id}: blocks ({self.blocks}) is no multiple of batch_rows ({self.batch_rows})"
            )
        return self


class Calibration(Section):
    """Where calibration text comes from (folder, or hub data set with a commit hash) and how it is cut."""

    source: str
    file: str | None = None
    revision: str | None = None
    sets: tuple[CalibrationSet, ...]


#: Fields of a variant that change how stored weights are held or run, not what is stored.
RUNTIME_OPTIONS = {"backend", "encode", "embedding", "vision", "tag"}


class Variant(Section):
    """One way of storing the weights; `calibration` names a set, `backend` the kernel to insist on.

    Method ``pack`` is round to nearest by `colq_utils.model.packing`, the same bits as ``rtn``, which is AutoRound's. The
    runtime options change how stored weights are held or run, not what is stored: `encode` (as in `Runtime`),
    `embedding` (table in int8), `vision` (tower in FP8) and `tag`, a suffix that tells two backends of one scheme apart.
    """

    scheme: str
    method: Literal["base", "rtn", "pack", "autoround"] = "base"
    calibration: str | None = None
    iters: int = 0
    group_size: int = 128
    sym: bool = True
    backend: str | None = None
    exports: tuple[Literal["auto_round", "auto_awq", "auto_gptq"], ...] = ("auto_round",)
    encode: Literal["plain", "fast"] | None = None
    embedding: Literal["int8"] | None = None
    vision: Literal["fp8"] | None = None
    tag: str | None = None

    @model_validator(mode="after")
    def known(self):
        if self.scheme not in SCHEMES:
            raise ValueError(f"unknown scheme {self.scheme!r}; known: {', '.join(SCHEMES)}")
        if (SCHEMES[self.scheme] is None) != (self.method == "base"):
            raise ValueError(f"scheme {self.scheme} does not go with method {self.method}")
        if (self.method == "autoround") != (self.calibration is not None and self.iters > 0):
            raise ValueError(
                f"{self.scheme}: method autoround takes `calibration` and `iters`, others take neither"
            )
        if self.method == "pack" and not self.sym:
            raise ValueError(
                f"{self.scheme}: method pack is symmetric only; take method rtn for `sym: false`, or leave `sym` out"
            )
        if self.method == "pack" and self.exports != ("auto_round",):
            raise ValueError(
                f"{self.scheme}: method pack writes auto_round only; take method rtn for other `exports`, or leave them out"
            )
        if self.bits is not None and "auto_round" not in self.exports:
            raise ValueError(
                f"{self.scheme}: auto_round is the export that is benchmarked and evaluated; add it to `exports`"
            )
        return self

    @property
    def bits(self) -> int | None:
        return SCHEMES[self.scheme]

    def stored(self, size: str) -> str:
        """Id of the weights as stored: size-scheme-method, with whatever departs from group 128, symmetric."""
        parts = [size, self.scheme]
        if self.method != "base":
            parts += [self.method] + ([self.calibration] if self.calibration else [])
        if self.group_size != 128:
            parts.append(f"g{self.group_size}")
        return "-".join(parts + ([] if self.sym else ["asym"]))

    def name(self, size: str) -> str:
        """Variant id: that of the stored weights, and the runtime options."""
        options = ([f"{self.embedding}embed"] if self.embedding else []) + (
            [f"{self.vision}vision"] if self.vision else []
        )
        return "-".join([self.stored(size), *options, *filter(None, (self.tag, self.encode))])


class Workload(Section):
    """`kind` inputs in batches of `batch`, `iterations` timed calls after `warmup`, in each round.

    `source` tells where items come from: the ``embedded`` benchmark, or ``made`` (32 questions, drawn pages of full size);
    left out, it is the embedded benchmark where that is evaluated too.
    """

    kind: Literal["queries", "pages"]
    batch: int
    iterations: int
    warmup: int = 3
    items: int = 32
    source: Literal["embedded", "made"] | None = None


class Extra(Section):
    """A measurement beside the variants, in a child process: ``call(experiment, schedules, **arguments)``.

    `call` is a function of this repository, ``module:function``; what it returns, or its error, becomes
    `file` among the results. A change in its module's folder, or in what it `reads`, has it measured anew.
    """

    file: str = Field(pattern=r"^\w+\.(csv|json)$")
    call: str = Field(pattern=r"^(colq_utils|studies)(\.\w+)+:\w+$")
    arguments: dict = {}
    reads: tuple[str, ...] = ()


class Benchmark(Section):
    """What 04 measures; `tune` comes first and fits the schedules of the 4-bit kernels to the GPU."""

    variants: tuple[str, ...]
    workloads: tuple[Workload, ...]
    rounds: int = 2
    tune: Extra | None = None
    extras: tuple[Extra, ...] = ()


class Evaluation(Section):
    """Tasks by mteb name (none: all of the embedded suite).

    `share_vision` keeps page features on disk and runs the vision tower once for all variants;
    `random_init` adds the floor, the same architecture with random weights; `margin` is the loss
    of NDCG@5 that still counts as none, stated before the run. `processes` is how many variants are
    evaluated at once, on a CPU, each with its share of the threads; each holds a model in memory.
    """

    tasks: tuple[str, ...]
    suite: Literal["minividore", "mteb"] = "minividore"
    share_vision: bool = True
    batch: int = 8
    random_init: bool = False
    margin: float = 0.005
    processes: int = 1


class Experiment(Section):
    """A whole study. See `load`.

    `stages` are those that it runs. `notebooks` names a notebook of its own (from the repository's root) for a stage.
    """

    stages: tuple[Literal["inspect", "calibrate", "quantize", "benchmark", "evaluate", "report"], ...] = (
        STAGES
    )
    notebooks: dict[str, str] = {}
    name: str
    title: str
    seed: int = 42
    model: Model
    runtime: Runtime = Runtime()
    calibration: Calibration
    variants: tuple[Variant, ...]
    benchmark: Benchmark
    evaluation: Evaluation
    output: Path = ROOT

    @model_validator(mode="after")
    def consistent(self):
        sets = {s.id for s in self.calibration.sets}
        ids = [v.name(self.model.size) for v in self.variants]
        if len(set(ids)) < len(ids):
            raise ValueError(f"two variants have one id: {sorted(i for i in ids if ids.count(i) > 1)[0]}")
        if self.variants[0].method != "base":
            raise ValueError(
                "the first variant is the base that the others are compared with: give it method base"
            )
        for variant in self.variants:
            if variant.calibration and variant.calibration not in sets:
                raise ValueError(
                    f"{variant.name(self.model.size)}: no calibration set {variant.calibration!r}; there are {sorted(sets)}"
                )
        for wanted in self.benchmark.variants:
            if wanted not in ids:
                raise ValueError(f"benchmark names the variant {wanted!r}; there are {ids}")
        for variant in self.variants:
            stored = variant.stored(self.model.size)
            if variant.bits is not None and stored not in ids:
                raise ValueError(
                    f"{variant.name(self.model.size)} runs the weights of {stored}; list that variant too"
                )
        return self

    @cached_property
    def by_id(self) -> dict[str, Variant]:
        """Variant id -> variant, in the order of the file; the first is the base."""
        return {v.name(self.model.size): v for v in self.variants}

    @property
    def base(self) -> str:
        return next(iter(self.by_id))

    @property
    def quantized(self) -> dict[str, Variant]:
        """Variants with quantized weights of their own, without those that only run them otherwise."""
        return {
            name: v
            for name, v in self.by_id.items()
            if v.bits is not None and name == v.stored(self.model.size)
        }

    def notebook(self, stage: str) -> Path:
        """The notebook of a stage."""
        return (
            ROOT / self.notebooks[stage] if stage in self.notebooks else ROOT / "notebooks" / NOTEBOOKS[stage]
        )

    def encode_path(self, variant: str) -> str:
        """``plain`` or ``fast``, as variant or runtime say; left open, fast on CUDA."""
        wanted = self.by_id[variant].encode or self.runtime.encode
        return wanted if wanted != "auto" else "fast" if self.runtime.device == "cuda" else "plain"

    def results(self, stage: str) -> Path:
        """Folder of a stage's results, made if missing."""
        return _made(self.output / "results" / self.name / stage)

    @property
    def figures(self) -> Path:
        return _made(self.output / "figures" / self.name)

    def build(self, *parts: str) -> Path:
        """A place for large or intermediate files, outside git."""
        return self.output.joinpath("build", self.name, *parts)

    def checkpoint(self, variant: str, export: str = "auto_round") -> Path:
        """Folder of a quantized checkpoint (whether or not it exists yet)."""
        return self.build("checkpoints", self.by_id[variant].stored(self.model.size), export)

    @property
    def model_path(self) -> str:
        """What the loaders take: an absolute folder for a local model, else the hub id."""
        if self.model.is_random:
            return str(self.build("base"))
        return str(ROOT / self.model.path) if self.model.is_local else self.model.path


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def available(folder: Path = ROOT / "experiments") -> list[str]:
    """Names of the experiment files in a folder."""
    return sorted(p.stem for p in folder.glob("*.yaml"))


def load(
    name: str,
    output: str | Path = "",
    folder: Path = ROOT / "experiments",
    kind: type[BaseModel] | None = None,
):
    """Read ``experiments/<name>.yaml`` as an `Experiment`.

    Args:
        name: of an experiment here, or the path of a YAML file elsewhere.
        output: folder that receives results/, figures/ and build/; the repository by default.
        folder, kind: where a study keeps its own files, and what it reads them as.

    Raises:
        ColqError: no such experiment, or a key or value in it that cannot be.
    """
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.exists():
        raise ColqError(
            f"no experiment {name!r}; there are: {', '.join(available(folder))} (files in {folder.relative_to(ROOT)}/)"
        )
    fields = read(
        path,
        {"name": "an experiment has the name of its file", "output": "the folder is given with --output"},
    )
    return validated(
        kind or Experiment,
        path,
        fields | {"name": path.stem, "output": Path(output).resolve() if output else ROOT},
    )


def read(path: Path, given: dict[str, str]) -> dict:
    """The keys and values of a YAML file.

    Args:
        given: keys that may not stand in it, because they follow from elsewhere, and from where.

    Raises:
        ColqError: not valid YAML, no mapping, one of the keys `given`.
    """
    try:
        fields = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ColqError(f"{path.name} is not valid YAML: {error}") from None
    if not isinstance(fields, dict):
        raise ColqError(
            f"{path.name} holds a {type(fields).__name__}: write it as `key: value` lines, as experiments/tiny.yaml is"
        )
    for key in given.keys() & fields.keys():
        raise ColqError(f"{path.name}: leave out `{key}`; {given[key]}")
    return fields


def validated(kind: type[BaseModel], path: Path, fields: dict):
    """`fields` of a file as a `kind`; a value that cannot be is a `ColqError` that names file and key."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ColqError(f"{path.name}:\n" + "\n".join(lines)) from None
