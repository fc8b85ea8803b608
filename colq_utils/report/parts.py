"""Sections that every report shares: environment, figures, limits, and how a hole is named."""

import pandas as pd

from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.prose import render
from colq_utils.report.tables import table

#: From results/<experiment>/reports/ to figures/<experiment>/.
TO_FIGURES = "../../../figures"
YES_NO = {True: "yes", False: "no", None: "none"}


def missing(stage: str, what: str) -> str:
    """A part that has no result file, with the target that would make it."""
    return f"{what[0].upper()}{what[1:]}: {md.MISSING} (`make {stage}` measures it)."


def rejected(study: Study) -> str:
    """A warning for the top of a report where 03_quantize rejected a variant; empty where it rejected none."""
    checkpoints = study.results.variants
    if checkpoints is None or "accepted" not in checkpoints or checkpoints.accepted.all():
        return ""
    rows = checkpoints[~checkpoints.accepted]
    named = md.label_list([f"{study.labels[r.variant]} ({r.export})" for _, r in rows.iterrows()])
    return (
        f"> **Rejected: {named}.** 03_quantize did not accept {'it' if len(rows) == 1 else 'them'} (see `quantize/variants.csv`: finite, smaller "
        "than the base, close to the base on text and pages). No figure below that rests on such a checkpoint should be used."
    )


def failed(study: Study) -> str:
    """Tasks that could not be run, with the reason; nothing if there are none."""
    failures = study.results.failures
    if failures is None or failures.empty:
        return ""
    rows = failures.assign(variant=[study.labels.get(name, name) for name in failures.variant])
    return (
        f"**Tasks that failed**, so that a variant named here has no average (`make evaluate EXPERIMENT={study.experiment.name}` tries them "
        "again):\n\n" + table(rows, {"task": "Task", "variant": "Variant", "error": "Error"})
    )


def environment(record: dict | None, stage: str) -> str:
    """Machine, versions and code that made a stage's results."""
    if record is None:
        return missing(stage, "the environment")
    flat = {k: v for k, v in record.items() if k not in ("packages", "left_out", "arithmetic")} | (
        record.get("packages") or {}
    )
    flat |= {k: v for k, v in (record.get("arithmetic") or {}).items() if k != "dtype"}
    rows = [
        (key.replace("_", " "), YES_NO[v] if v is None or isinstance(v, bool) else v)
        for key, v in flat.items()
        if not isinstance(v, (dict, list))
    ]
    return table(
        pd.DataFrame(rows, columns=["key", "value"], dtype=object),
        {"key": "Property", "value": f"Stage {stage}"},
    )


def figures(study: Study, wanted: dict[str, str], name_missing: bool = True) -> str:
    """The figures that exist, with their captions; the others are named as missing unless told not to."""
    folder = study.experiment.output / "figures" / study.experiment.name
    there = [
        md.picture(f"{TO_FIGURES}/{study.experiment.name}/{name}", caption)
        for name, caption in wanted.items()
        if (folder / name).exists()
    ]
    absent = [name for name in wanted if name_missing and not (folder / name).exists()]
    return "\n\n".join(there + ([f"Not drawn: {md.listing(absent)}."] if absent else []))


def is_bundled(study: Study) -> bool:
    """True where the model is one that this repository carries."""
    return study.experiment.model.path.startswith("models/")


def limits(study: Study) -> str:
    """What the results cannot tell, by the kind of model and device."""
    return render(
        "limits.md.j2",
        bundled=is_bundled(study),
        cpu=study.experiment.runtime.device == "cpu",
        seed=study.experiment.seed,
    )
