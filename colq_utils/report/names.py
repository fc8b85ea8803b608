"""What figures and tables call a variant and its calibration set."""

from colq_utils.base.config import Experiment, Variant

#: `pack` rounds to the bits of `rtn`, so it has its name.
METHODS = {"rtn": "RTN", "pack": "RTN", "autoround": "AutoRound", "base": ""}


def labels(experiment: Experiment) -> dict[str, str]:
    """Variant id -> what figures and tables call it."""
    words = calibration_words(experiment)
    return {name: label(variant, words) for name, variant in experiment.by_id.items()}


def label(variant: Variant, calibrations: dict[str, str]) -> str:
    """A variant in words: scheme, method, unusual groups, calibration, how it runs."""
    parts = [variant.scheme.upper(), METHODS[variant.method], variant.group, "" if variant.sym else "asym"]
    options = [
        calibrations.get(variant.calibration, variant.calibration),
        variant.embedding and f"{variant.embedding} embedding table",
        variant.vision and f"{variant.vision.upper()} vision tower",
        variant.encode and f"{variant.encode} path",
    ]
    return ", ".join([" ".join(filter(None, parts)), *filter(None, options)])


def calibration_words(experiment: Experiment) -> dict[str, str]:
    """Calibration set -> '1,024 tokens' or 'pages', with its id where two sets in use would read alike."""
    used = {variant.calibration for variant in experiment.by_id.values()}
    sets = [s for s in experiment.calibration.sets if s.id in used]
    words = {s.id: f"{s.seqlen:,} tokens" if s.kind == "text" else "pages" for s in sets}
    texts = list(words.values())
    return {name: text if texts.count(text) == 1 else f"{text} ({name})" for name, text in words.items()}
