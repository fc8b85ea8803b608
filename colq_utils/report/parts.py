"""Sections that every report shares: environment, figures, limits, and how a hole is named."""
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study

#: From results/<experiment>/reports/ to figures/<experiment>/.
TO_FIGURES = "../../../figures"


def missing(stage: str, what: str) -> str:
    """A part that has no result file, with the target that would make it."""
    return f"{what[0].upper()}{what[1:]}: {md.MISSING} (`make {stage}` measures it)."


def rejected(study: Study) -> str:
    """A warning for the top of a report where 03_quantize rejected a variant; empty where it rejected none."""
    made = study.results.variants
    if made is None or "accepted" not in made or made.accepted.all():
        return ""
    rows = made[~made.accepted]
    names = md.listing([f"{study.labels[r.variant]} ({r.export})" for _, r in rows.iterrows()])
    return (f"> **Rejected: {names}.** 03_quantize did not accept {'it' if len(rows) == 1 else 'them'} (see `quantize/variants.csv`: finite, smaller "
            "than the base, close to the base on text and pages). No figure below that rests on such a checkpoint should be used.")


def environment(record: dict | None, stage: str) -> str:
    """Machine, versions and code that made a stage's results."""
    if record is None:
        return missing(stage, "the environment")
    flat = {k: v for k, v in record.items() if k not in ("packages", "left_out", "arithmetic")} | (record.get("packages") or {})
    flat |= {k: v for k, v in (record.get("arithmetic") or {}).items() if k != "dtype"}
    shown = {True: "yes", False: "no", None: "none"}
    rows = [(key.replace("_", " "), shown[v] if v is None or isinstance(v, bool) else v) for key, v in flat.items() if not isinstance(v, (dict, list))]
    return md.table(["Property", f"Stage {stage}"], rows, left=2)


def figures(study: Study, wanted: dict[str, str], name_missing: bool = True) -> str:
    """The figures that exist, with their captions; the others are named as missing unless told not to."""
    folder = study.experiment.output / "figures" / study.experiment.name
    there = [md.picture(f"{TO_FIGURES}/{study.experiment.name}/{name}", caption) for name, caption in wanted.items() if (folder / name).exists()]
    absent = [name for name in wanted if name_missing and not (folder / name).exists()]
    return "\n\n".join(there + ([f"Not drawn: {md.listing(absent)}."] if absent else []))


def is_embedded(study: Study) -> bool:
    """True where the model is one that this repository carries."""
    return study.experiment.model.path.startswith("models/")


def limits(study: Study) -> str:
    """What the results cannot tell, by the kind of model and device."""
    lines = ["One seed of the quantizer: what another seed moves is not measured, and no ranking of nearly equal variants should rest on this report.",
             "The intervals speak for queries like these on pages like these, not for other collections."]
    if is_embedded(study):
        lines += ["Arithmetic is not in the intervals: the same weights on another processor, or in fp32, score differently by tenths of a point "
                  "([measured](../../seqlen-study/reports/seqlen_study.md#what-the-seed-alone-moves)); a verdict that close to the margin can change with it.",
                  "The embedded model is small and was trained from scratch to read printed words. It can tell whether the pipeline works end to end "
                  "(packing, loading, kernels, scores) and in which order bits and rounding hurt.",
                  "It cannot tell how much a 4B or 8B checkpoint loses: those have wider layers, outlier channels and semantic queries that this one "
                  "has not. Run their experiment files for that.",
                  "Its share of quantized bytes is smaller than theirs, so its reduction in size is no estimate of theirs."]
    if study.experiment.runtime.device == "cpu":
        lines.append("Measured on a CPU: nothing here speaks of GPU kernels.")
    return "\n".join(f"- {line}" for line in lines)
