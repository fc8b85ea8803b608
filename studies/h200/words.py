"""How the GPU report writes variants, bytes and figures, and its templates."""

from pathlib import Path

import numpy as np
import pandas as pd

from colq_utils.report import markdown as md
from colq_utils.report.prose import render
from studies.h200.speed import KINDS, Speed

TEMPLATES = Path(__file__).parent / "templates"
#: The published reports' MB are torch's bytes over 2^20.
MIB = 1 << 20
CAPTIONS = {
    "gemms.png": "Time of all GEMMs of one decoder layer, by tokens per call.",
    "throughput_queries.png": "Text queries per second.",
    "throughput_pages.png": "Pages per second.",
    "memory.png": "Memory by variant.",
    "bytes_per_tower.png": "Bytes by part, stored and predicted.",
}


def page(template: str, speed: Speed, **values) -> str:
    """A template of this study; lists of rows become frames."""
    frames = {
        name: pd.DataFrame(value, dtype=object) if isinstance(value, list) else value
        for name, value in values.items()
    }
    shared = {"speed": speed, "experiment": speed.experiment, "model": speed.experiment.model, "kinds": KINDS}
    return render(template, TEMPLATES, **shared, **frames)


def scheme(spec) -> str:
    """The weights of a variant, for a table."""
    parts = [spec.scheme.upper()]
    parts += ["embedding table in int8"] if spec.embedding else []
    parts += ["vision tower in FP8"] if spec.vision else []
    return ", ".join(parts)


def spoken(speed: Speed, name: str) -> str:
    """A variant in the words of the report."""
    spec = speed.experiment.by_id[name]
    text = "bf16" if spec.scheme == "bf16" else spec.scheme.upper()
    options = [f"{spec.embedding} embedding table"] if spec.embedding else []
    options += [f"{spec.vision.upper()} vision tower"] if spec.vision else []
    if spec.tag:
        text += f" ({speed.rows[speed.rows.variant == name].kernel.iloc[0]} kernel)"
    text += f" with {md.listing(options)}" if options else ""
    return text + (", plain path" if spec.encode == "plain" else "")


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return md.number(value, max(0, 2 - int(np.floor(np.log10(value)))))


def mib(value: float | None, digits: int = 0, unit: float = MIB) -> str:
    return md.MISSING if value is None else md.number(value / unit, digits)


def percent(value: float | None, start: float | None, digits: int = 1) -> str:
    """`value` against `start` as a signed change."""
    known = value is not None and start
    return md.number(100 * (value / start - 1), digits, True, " %") if known else md.MISSING


def picture(speed: Speed, name: str) -> str:
    """A figure of the experiment, or nothing where it was not drawn."""
    experiment = speed.experiment
    if not (experiment.output / "figures" / experiment.name / name).exists():
        return ""
    return md.picture(f"../../../figures/{experiment.name}/{name}", CAPTIONS[name])


def figures(speed: Speed) -> str:
    """All figures but the one that the report opens with."""
    return "\n\n".join(filter(None, (picture(speed, name) for name in CAPTIONS if name != "gemms.png")))
