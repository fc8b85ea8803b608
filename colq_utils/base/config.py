"""Experiment files: a YAML file each, validated into frozen objects before anything runs. An experiment
decides the scale (embedded, one GPU, many); the notebooks never change.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from colq_utils.base.errors import ColqError
from colq_utils.base.schema import Count, Id, Names, Once, Section, each_once, parse
from colq_utils.base.variant import Variant

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
STAGES = ("inspect", "calibrate", "quantize", "benchmark", "evaluate", "report")
#: Stage -> its notebook in notebooks/.
NOTEBOOKS = {stage: f"{number:02d}_{stage}.ipynb" for number, stage in enumerate(STAGES, 1)}
#: What is computed in, by device.
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
#: `Model.path` of random weights in the published dimensions of `size`; see `colq_utils.model.randomized`.
RANDOM = "random"

Stage = Literal[*STAGES]


class Model(Section):
    """The base checkpoint: a folder of this repository, a hub id with a full commit hash, or `RANDOM`."""

    path: str
    size: Id
    revision: str | None = None
    max_visual_tokens: Count | None = None  # of a page; None: the checkpoint's own, at most 1,280

    @property
    def is_random(self) -> bool:
        return self.path == RANDOM

    @property
    def is_local(self) -> bool:
        return self.is_random or (ROOT / self.path).exists() or self.path.startswith(("models/", "/", "."))

    @model_validator(mode="after")
    def pinned(self):
        if not self.is_local and len(self.revision or "") != 40:
            raise ValueError(f"{self.path} is a hub id: give `revision`, the full 40-digit commit hash")
        return self


class Runtime(Section):
    """What all variants share. `dtype` is what is computed in, not what is stored; `backend` is the kernel of
    packed layers (``unpack``: floats, made at loading); `encode` is the forward pass: ``plain`` transformers'
    own, ``fast`` that of `colq_utils.fast.path`, ``auto`` fast on CUDA.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["bfloat16", "float32"] = Field(default_factory=lambda fields: DTYPES[fields["device"]])
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    threads: Count | None = None
    backend: Literal["ark", "torch", "marlin", "humming", "tritonv2", "unpack"] = "unpack"
    encode: Literal["auto", "plain", "fast"] = "auto"

    @model_validator(mode="after")
    def portable(self):
        if (self.device, self.dtype) == ("cpu", "bfloat16"):
            raise ValueError("on a CPU everything is computed in float32: leave out `dtype`")
        return self


class CalibrationSet(Section):
    """Exactly `blocks` blocks of `seqlen` tokens, or so many pages; `batch_rows` make a tuning step."""

    id: Id
    seqlen: int = Field(0, ge=0)
    blocks: Count
    batch_rows: Count
    kind: Literal["text", "pages", "documents"] = "text"

    @model_validator(mode="after")
    def whole_batches(self):
        if self.kind == "text" and self.seqlen == 0:
            raise ValueError("seqlen of a set of text is greater than 0, not 0")
        if self.blocks % self.batch_rows:
            raise ValueError(f"blocks ({self.blocks}) is no multiple of batch_rows ({self.batch_rows})")
        return self


class Calibration(Section):
    """Where calibration text comes from (folder, or hub data set with a commit hash) and how it is cut."""

    source: str
    file: str | None = None
    revision: str | None = None
    sets: tuple[CalibrationSet, ...]


class Workload(Section):
    """`iterations` timed calls on batches of `batch` inputs, after `warmup`, in each round; the `items` are
    those of the ``embedded`` benchmark (the default where it is evaluated), or ``made``: drawn, of full size.
    """

    kind: Literal["queries", "pages"]
    batch: Count
    iterations: Count
    warmup: int = Field(3, ge=0)
    items: Count = 32
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

    variants: Names
    workloads: tuple[Workload, ...]
    rounds: Count = 2
    tune: Extra | None = None
    extras: tuple[Extra, ...] = ()


class Documents(Section):
    """One's own documents: a folder of PDFs and pictures, and `queries`, a CSV with columns query, file,
    page (and grade), or a text with a query per line. Of each file the first `max_pages` pages are drawn, at
    `dpi`; up to `known_items` queries come from text layers.
    """

    folder: str
    queries: str | None = None
    dpi: int = Field(150, ge=36, le=600)
    max_pages: Count = 500
    known_items: int = Field(200, ge=0)


class Evaluation(Section):
    """Tasks by mteb name (none: all of the suite). `share_vision` keeps the features of pages on disk;
    `random_init` adds a model of random weights; `margin` is the loss of NDCG@5 that counts as none, stated
    before the run; `processes` variants are evaluated at once on a CPU, with a share of the threads each.
    """

    tasks: Names = ()
    suite: Literal["minividore", "mteb", "documents"] = "minividore"
    documents: Documents | None = None
    share_vision: bool = True
    batch: Count = 8
    random_init: bool = False
    margin: float = Field(0.005, ge=0, le=1)
    processes: Count = 1

    @model_validator(mode="after")
    def whole(self):
        if (self.suite == "documents") != (self.documents is not None):
            raise ValueError("suite documents and the section `documents` go together")
        return self


class Experiment(Section):
    """The `stages` that are run, `notebooks` of its own for some, and what they read. See `load`."""

    stages: Annotated[tuple[Stage, ...], Once] = Field(STAGES, min_length=1)
    notebooks: dict[Stage, str] = {}
    name: str
    title: str
    seed: int = Field(42, ge=0, lt=2**32)
    model: Model
    runtime: Runtime = Runtime()
    calibration: Calibration
    variants: tuple[Variant, ...]
    benchmark: Benchmark
    evaluation: Evaluation
    output: Path = ROOT

    @model_validator(mode="after")
    def consistent(self):
        ids, sets = list(self.by_id), [s.id for s in self.calibration.sets]
        each_once([f"calibration set {name}" for name in sets])
        each_once([f"variant {variant.name(self.model.size)}" for variant in self.variants])
        if not self.variants or self.variants[0].bits is not None:
            raise ValueError("the first of `variants`, 1 or more, is the base of all others: not quantized")
        for name, variant in self.by_id.items():
            if variant.calibration not in (None, *sets):
                raise ValueError(f"{name}: no calibration set {variant.calibration!r}; there are {sets}")
            stored = variant.stored(self.model.size)
            if variant.is_stored and stored not in ids:
                raise ValueError(f"{name} runs the weights of {stored}; list that variant too")
        for name in sorted(set(self.benchmark.variants) - set(ids)):
            raise ValueError(f"benchmark names the variant {name!r}; there are {ids}")
        return self

    @property
    def by_id(self) -> dict[str, Variant]:
        """Variant id -> variant, in the order of the file; the first is the base."""
        return {variant.name(self.model.size): variant for variant in self.variants}

    @property
    def base(self) -> str:
        return self.variants[0].name(self.model.size)

    @property
    def quantized(self) -> dict[str, Variant]:
        """Variants with a checkpoint of their own, without those that only run one otherwise."""
        size = self.model.size
        return {n: v for n, v in self.by_id.items() if v.is_stored and n == v.stored(size)}

    @property
    def compared(self) -> dict[str, Variant]:
        """Variants that are scored beside the base: the quantized, and those that loading rounds further."""
        quantized = self.quantized
        return {n: v for n, v in self.by_id.items() if n in quantized or v.is_converted}

    def notebook(self, stage: str) -> Path:
        return ROOT / self.notebooks.get(stage, f"notebooks/{NOTEBOOKS[stage]}")

    def encode_path(self, variant: str) -> str:
        """``plain`` or ``fast``, as variant or runtime say; left open, fast on CUDA."""
        wanted = self.by_id[variant].encode or self.runtime.encode
        return {"cpu": "plain", "cuda": "fast"}[self.runtime.device] if wanted == "auto" else wanted

    def results(self, stage: str) -> Path:
        """Folder of a stage's results; made if missing, as that of the figures is."""
        return _with_folder(self.output / "results" / self.name / stage)

    @property
    def figures(self) -> Path:
        return _with_folder(self.output / "figures" / self.name)

    def build(self, *parts: str) -> Path:
        """A place for large or intermediate files, outside git."""
        return self.output.joinpath("build", self.name, *parts)

    def backend(self, variant: str) -> str:
        """The kernel of a variant's packed layers; NF4 is unpacked unless the variant says otherwise."""
        spec = self.by_id[variant]
        return spec.backend or ("unpack" if spec.is_nf4 else self.runtime.backend)

    def checkpoint(self, variant: str, export: str | None = None) -> Path:
        """Folder of a checkpoint (whether or not it exists yet); by default, of the export evaluated."""
        spec = self.by_id[variant]
        return self.build("checkpoints", spec.stored(self.model.size), export or spec.export)

    @property
    def model_path(self) -> str:
        """What the loaders take: an absolute folder for a local model, else the hub id."""
        local = self.build("base") if self.model.is_random else ROOT / self.model.path
        return str(local) if self.model.is_local else self.model.path


def _with_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def available(folder: Path = EXPERIMENTS) -> list[str]:
    """Names of the experiment files in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(name: str, output: str | Path = "", folder: Path = EXPERIMENTS, kind: type[BaseModel] = Experiment):
    """The experiment of a name in `folder`, or a path; `output` receives results/, figures/ and build/.

    Raises:
        ColqError: no such experiment, or a key or value in it that cannot be.
    """
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        there = f"{', '.join(available(folder))} (files in {folder.relative_to(ROOT)}/)"
        raise ColqError(f"no experiment {name!r}; there are: {there}")
    return parse(kind, path, name=path.stem, output=Path(output).resolve() if output else ROOT)
