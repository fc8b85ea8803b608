"""What every report shares: its page, warnings, environment, figures, how a hole is named."""

from functools import partial

import pandas as pd

from colq_utils.report import markdown as md
from colq_utils.report import stats
from colq_utils.report.analysis import Study
from colq_utils.report.prose import render
from colq_utils.report.tables import table

#: From results/<experiment>/reports/ to figures/<experiment>/.
TO_FIGURES = "../../../figures"


def page(template: str, study: Study, **values) -> str:
    """A template filled with `values` and with what every report may say."""
    experiment = study.experiment
    shared = {
        "study": study,
        "experiment": experiment,
        "labels": study.labels,
        "base": experiment.base,
        "margin": f"{100 * experiment.evaluation.margin:g}",
        "bundled": is_bundled(study),
        "warning": rejected(study),
        "failures": _failures(study),
        "missing": missing,
        "near": stats.NEAR,
        "figures": partial(figures, study),
        "environment": partial(environment, study.results.evaluate_environment, "evaluate"),
    }
    return render(template, **shared, **values)


def missing(stage: str, what: str) -> str:
    """A part that has no result file, with the target that would make it."""
    return f"{what[0].upper()}{what[1:]}: {md.MISSING} (`make {stage}` measures it)."


def rejected(study: Study) -> str:
    """A warning for the top of a report where 03_quantize rejected a variant, else empty."""
    checkpoints = study.results.variants
    if checkpoints is None or "accepted" not in checkpoints or checkpoints.accepted.all():
        return ""
    rows = checkpoints[~checkpoints.accepted]
    return render(
        "rejected.md.j2", named=[f"{study.labels[r.variant]} ({r.export})" for r in rows.itertuples()]
    )


def _failures(study: Study) -> pd.DataFrame:
    """Tasks that could not be run, with the reason; no rows if there are none."""
    failures = study.results.failures
    if failures is None:
        return pd.DataFrame()
    return failures.assign(variant=[study.labels.get(name, name) for name in failures.variant])


def environment(record: dict | None, stage: str) -> str:
    """Machine, versions and code that made a stage's results."""
    if record is None:
        return missing(stage, "the environment")
    arithmetic = {k: v for k, v in record.get("arithmetic", {}).items() if k != "dtype"}
    flat = record | record.get("packages", {}) | arithmetic
    rows = [
        (key.replace("_", " "), "none" if value is None else value)
        for key, value in flat.items()
        if not isinstance(value, dict | list)
    ]
    frame = pd.DataFrame(rows, columns=["key", "value"], dtype=object)
    return table(frame, {"key": "Property", "value": f"Stage {stage}"})


def figures(study: Study, wanted: dict[str, str], name_missing: bool = True) -> str:
    """The figures that exist, with their captions; the others are named as missing unless told not to."""
    drawn = [name for name in wanted if (study.experiment.figures / name).exists()]
    absent = [name for name in wanted if name not in drawn]
    path = f"{TO_FIGURES}/{study.experiment.name}"
    parts = [md.picture(f"{path}/{name}", wanted[name]) for name in drawn]
    if absent and name_missing:
        parts.append(f"Not drawn: {md.listing(absent)}.")
    return "\n\n".join(parts)


def is_bundled(study: Study) -> bool:
    """True where the model is one that this repository carries."""
    return study.experiment.model.path.startswith("models/")
