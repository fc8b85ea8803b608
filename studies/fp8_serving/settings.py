"""The experiment file of a detection study; that of retrievers is `colq_utils.base.config.Experiment`."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from colq_utils.base import cache, config, files
from colq_utils.base.config import DTYPES, ROOT, Experiment, Model, Section
from colq_utils.run import Step
from studies.fp8_serving import RECIPES


class Local(Section):
    """Where the in-process engine runs; it computes in `colq_utils.base.config.DTYPES` of the device."""

    device: Literal["cpu", "cuda"] = "cpu"
    attention: Literal["sdpa"] = "sdpa"
    threads: int | None = None

    @property
    def dtype(self) -> str:
        return DTYPES[self.device]


class Serving(Section):
    """How answers are asked for and timed.

    Engine ``transformers`` runs in process. ``vllm`` starts ``vllm serve`` on `port` for each variant, or,
    with `url`, uses a server that runs already (one variant: it serves one model). `memory` is its
    --gpu-memory-utilization.
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    url: str | None = None
    port: int = 8199
    healthy_s: float = 300
    timeout_s: float = 60
    memory: float = 0.5
    max_model_len: int = 2048
    requests: int = 56
    rounds: int = 2
    warmup: int = 8
    concurrency: tuple[int, ...] = (1, 8)
    extra: tuple[str, ...] = ()


class Pictures(Section):
    """How many pictures of each kind."""

    count: int = 200  # held out, to evaluate on
    calibration: int = 32  # scenes, for the static recipe
    compared: int = 20  # answered by transformers' own loader too
    shown: int = 6  # in the report


class DetectionExperiment(Section):
    """A detection study: one base checkpoint and FP8 recipes of it. See `load`."""

    stages: tuple[Literal["fp8_serving"], ...] = ("fp8_serving",)
    name: str
    title: str
    seed: int = 42
    model: Model
    runtime: Local = Local()
    variants: tuple[str, ...]
    serving: Serving = Serving()
    pictures: Pictures = Pictures()
    output: Path = ROOT

    results, build = Experiment.results, Experiment.build
    figures, model_path = Experiment.figures, Experiment.model_path

    @model_validator(mode="after")
    def consistent(self):
        if self.variants[:1] != ("bf16",):
            raise ValueError("the first variant is the base that the others are compared with: bf16")
        for name in self.variants[1:]:
            if name not in RECIPES:
                raise ValueError(f"unknown variant {name!r}; known after bf16: {', '.join(RECIPES)}")
        if self.serving.url and len(self.variants) > 1:
            raise ValueError(
                "a server given by url serves one model: name one variant, bf16, "
                "and compare the results of two experiments"
            )
        return self

    def variant_id(self, variant: str) -> str:
        """size-variant, as ``tiny-fp8-dynamic``."""
        return f"{self.model.size}-{variant}"

    def folder(self, variant: str) -> Path:
        """The checkpoint of a variant, whether or not it exists yet."""
        if variant == "bf16":
            return Path(self.model_path)
        return self.build("checkpoints", self.variant_id(variant))

    def notebook(self, stage: str) -> Path:
        """The notebook of the whole study."""
        return Path(__file__).with_name("fp8_serving.ipynb")


def load(name: str, output: str | Path = "") -> DetectionExperiment:
    """Read ``studies/fp8_serving/<name>.yaml``; errors as `colq_utils.base.config.load`."""
    return config.load(name, output, Path(__file__).parent, DetectionExperiment)


def step(experiment: DetectionExperiment, stage: str) -> Step:
    """The study's one notebook, with what decides its results, for the driver."""
    results, home = experiment.output / "results" / experiment.name, Path(__file__).parent
    code = sorted(p for p in home.rglob("*") if p.suffix in (".py", ".csv", ".j2"))
    model = sorted(p for p in Path(experiment.model_path).glob("*") if p.suffix in (".json", ".safetensors"))
    package = cache.digest("base", "report/stats.py", "report/markdown.py", "report/prose.py")
    checkpoints = [experiment.folder(variant) / "model.safetensors" for variant in experiment.variants[1:]]
    return Step(
        stage,
        experiment.notebook(stage),
        experiment.model_dump(mode="json", exclude={"output"}),
        files.sha256(*code) + package,
        (*model, ROOT / "data" / "nutrition" / "pictures.parquet", ROOT / "results" / "nutrition-fp8-7b"),
        (
            *(results / part for part in ("quantize", "benchmark", "evaluate", "reports")),
            results / "notebooks" / "fp8_serving.ipynb",
            *checkpoints,
        ),
    )
