"""Variants in words, as figures and tables call them."""

from colq_utils.base.config import Experiment, Variant

#: `pack` rounds to the bits of `rtn`, so it has its name.
METHODS = {"rtn": "RTN", "pack": "RTN", "autoround": "AutoRound", "base": ""}
#: Field of a variant -> what it is when it is set.
EIGHT_BITS = {"embedding": "int8 table", "vision": "FP8 vision"}


def of(experiment: Experiment) -> dict[str, str]:
    """Variant id -> the variant in words."""
    words = calibration_words(experiment)
    return {name: _label(variant, words) for name, variant in experiment.by_id.items()}


def _label(variant: Variant, calibrations: dict[str, str]) -> str:
    """Scheme, method, what departs from usual symmetric groups, calibration, parts in eight bits."""
    parts = [variant.scheme.upper(), METHODS[variant.method], variant.group, "" if variant.sym else "asym"]
    words = " ".join(filter(None, parts))
    if variant.calibration:
        words += f", {calibrations.get(variant.calibration, variant.calibration)}"
    parts = [part for field, part in EIGHT_BITS.items() if getattr(variant, field)]
    return ", ".join([words, *parts, *([f"{variant.encode} path"] if variant.encode else [])])


def calibration_words(experiment: Experiment) -> dict[str, str]:
    """Calibration set -> '1,024 tokens' or 'pages', with its id where two sets in use would read alike."""
    used = {variant.calibration for variant in experiment.by_id.values()}
    sets = [s for s in experiment.calibration.sets if s.id in used]
    words = {s.id: f"{s.seqlen:,} tokens" if s.kind == "text" else "pages" for s in sets}
    texts = list(words.values())
    return {name: text if texts.count(text) == 1 else f"{text} ({name})" for name, text in words.items()}
