"""The experiment file of a detection study (``task: detection``); the other one is `colq_utils.config.Experiment`."""
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from ..config import DTYPES, ROOT, STAGES, Experiment, Model, Section
from . import RECIPES


class Local(Section):
    """Where the in-process engine runs; it computes in `colq_utils.config.DTYPES` of the device."""

    device: Literal["cpu", "cuda"] = "cpu"
    attention: Literal["sdpa"] = "sdpa"
    threads: int | None = None

    @property
    def dtype(self) -> str:
        return DTYPES[self.device]


class Serving(Section):
    """How answers are asked for and timed.

    Engine ``transformers`` runs in process. ``vllm`` starts ``vllm serve`` on `port` for each variant, or, with `url`,
    uses a server that runs already (one variant: it serves one model). `memory` is its --gpu-memory-utilization.
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
    """How many: held-out pictures to evaluate on, scenes to calibrate the static recipe on, pictures whose answers are compared
    with those of transformers' own loader, pictures drawn in the report.
    """

    count: int = 200
    calibration: int = 32
    compared: int = 20
    shown: int = 6


class DetectionExperiment(Section):
    """A detection study: one base checkpoint and FP8 recipes of it."""

    task: Literal["detection"]
    name: str
    title: str
    seed: int = 42
    model: Model
    runtime: Local = Local()
    variants: tuple[str, ...]
    serving: Serving = Serving()
    pictures: Pictures = Pictures()
    output: Path = ROOT

    results, build, figures, model_path = Experiment.results, Experiment.build, Experiment.figures, Experiment.model_path

    @model_validator(mode="after")
    def consistent(self):
        if self.variants[:1] != ("bf16",):
            raise ValueError("the first variant is the base that the others are compared with: bf16")
        for name in self.variants[1:]:
            if name not in RECIPES:
                raise ValueError(f"unknown variant {name!r}; known after bf16: {', '.join(RECIPES)}")
        if self.serving.url and len(self.variants) > 1:
            raise ValueError("a server given by url serves one model: name one variant, bf16, and compare the results of two experiments")
        return self

    def variant_id(self, variant: str) -> str:
        """size-variant, as ``tiny-fp8-dynamic``."""
        return f"{self.model.size}-{variant}"

    def folder(self, variant: str) -> Path:
        """The checkpoint of a variant, whether or not it exists yet."""
        return Path(self.model_path) if variant == "bf16" else self.build("checkpoints", self.variant_id(variant))

    def sections(self, stage: str) -> tuple[str, ...]:
        """Fields that a stage depends on."""
        return {"inspect": ("model", "variants"), "calibrate": ("model", "pictures", "seed"), "quantize": ("model", "variants", "pictures", "seed"),
                "benchmark": ("model", "runtime", "variants", "serving", "seed"), "evaluate": ("model", "runtime", "variants", "pictures", "serving"),
                "report": ("title", "model", "runtime", "variants", "serving", "pictures")}[stage]

    def inputs(self, stage: str) -> list[Path]:
        """Files whose content decides a stage's results."""
        model = sorted(p for p in Path(self.model_path).glob("*") if p.suffix in (".json", ".safetensors"))
        held_out = [ROOT / "data" / "nutrition" / "pictures.parquet"]
        made = [self.folder(v) / "model.safetensors" for v in self.variants[1:]]
        return {"inspect": model, "calibrate": [*model, *held_out], "quantize": [*model, *held_out, self.build("calibration")],
                "benchmark": [*model, *held_out, *made], "evaluate": [*model, *held_out, *made],
                "report": [*(self.output / "results" / self.name / s for s in STAGES[:-1]), ROOT / "results" / "nutrition-fp8-7b"]}[stage]

    def outputs(self, stage: str) -> list[Path]:
        """What a stage writes outside its results folder."""
        return {"calibrate": [self.build("calibration")], "quantize": [self.folder(v) / "model.safetensors" for v in self.variants[1:]],
                "report": [self.output / "results" / self.name / "reports"]}.get(stage, [])
