"""One model card per quantized variant, from result files alone; what was not measured is said to be so.

`colq publish` sends a card as the README.md of the checkpoint. Its snippets open an export folder that
`colq_utils.model.complete` has completed.
"""

from pathlib import Path

import pandas as pd

from colq_utils.base import files
from colq_utils.report import analysis, mixed_precision, names, speed, wording
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.parts import page

#: Export -> what its packing is called elsewhere.
PACKINGS = {
    "auto_round": "auto-round",
    "auto_awq": "awq",
    "auto_gptq": "gptq",
    "bitsandbytes": "bitsandbytes",
}


def write(study: Study) -> list[Path]:
    """Write the card of every quantized variant to results/<experiment>/cards/, and to its checkpoints."""
    experiment, paths = study.experiment, []
    for name, text in render(study).items():
        paths.append(files.write_text(experiment.results("cards") / f"{name}.md", text))
        for folder in (experiment.checkpoint(name, export) for export in experiment.quantized[name].exports):
            if folder.is_dir():
                files.write_text(folder / "README.md", text)
    return paths


def render(study: Study) -> dict[str, str]:
    """Variant -> text of its card."""
    return {name: card(study, name) for name in study.experiment.quantized}


def card(study: Study, name: str) -> str:
    """The card of one variant."""
    experiment, results = study.experiment, study.results
    spec, model = experiment.quantized[name], experiment.model
    rows = _of(results.variants, name)
    refused = rows.iloc[:0] if "accepted" not in rows else rows[~rows.accepted.astype(bool)]
    return page(
        "card.md.j2",
        study,
        variant=name,
        spec=spec,
        model=model,
        licence=_licence(study),
        tags=[f"{spec.bits}-bit", *(PACKINGS[export] for export in spec.exports)],
        refused=list(refused.get("export", [])),
        exports=rows,
        recipe=recipe(study, name, rows),
        scores=scores(study, name),
        average=_of(study.suite, name),
        mixed=mixed_precision.of(study, {"variant": name}),
        ratios=ratios(study, name),
        kernels=kernels(study, name),
        engines=engines(study, name),
    )


def _licence(study: Study) -> dict[str, str]:
    """What the base's own card says of its licence, by the hub's keys; "other" where it says nothing."""
    known = study.results.architecture or {}
    stated = {key: known[key] for key in ("license", "license_name", "license_link") if key in known}
    return {"license": "other"} | stated


def _of(table: pd.DataFrame | None, name: str) -> pd.DataFrame:
    return pd.DataFrame() if table is None else table[table.variant == name]


def recipe(study: Study, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """How the checkpoint was made, as property and value."""
    experiment, spec = study.experiment, study.experiment.quantized[name]
    words = names.calibration_words(experiment)
    record = study.results.quantize_environment or {}
    sets = study.results.sets
    packed = {} if sets is None else sets.set_index("set").to_dict("index").get(spec.calibration, {})
    amount = f" ({packed['blocks']:,} blocks, {packed['tokens']:,} tokens)" if packed else ""
    first = {} if rows.empty else rows.iloc[0]
    kind = "a table of 16 numbers" if spec.is_nf4 else "symmetric" if spec.sym else "asymmetric"
    versions, licence = record.get("packages") or {}, _licence(study)
    licence = licence.get("license_name", licence["license"])
    values = {
        "Base": experiment.model.path,
        "Licence of the base": "not stated" if licence == "other" else licence,
        "Base revision": experiment.model.revision or "a local folder, no revision",
        "Scheme": spec.scheme.upper(),
        "Method": "bitsandbytes" if spec.is_nf4 else names.METHODS.get(spec.method, spec.method),
        "Fallback used": first.get("fallback") or None,
        "Group size": f"{spec.group_size}, {kind}",
        "Calibration": words[spec.calibration] + amount if spec.calibration else "none",
        "Iterations": spec.iters or "none",
        "Seed": experiment.seed,
        "Revision of the weights": first.get("revision", md.MISSING),
        "Commit of ColQ": record.get("commit") or md.MISSING,
        "Versions": ", ".join(f"{key} {value}" for key, value in versions.items() if value) or md.MISSING,
    }
    kept = [(key, str(value)) for key, value in values.items() if value is not None]
    return pd.DataFrame(kept, columns=["key", "value"])


def scores(study: Study, name: str) -> pd.DataFrame:
    """NDCG@5 and its change by task, averaged over languages, the average of all first."""
    if name not in study.names:
        return pd.DataFrame()
    every = study.suite.assign(task="Average")
    table = pd.concat([every, analysis.by_task(study, study.counted)], ignore_index=True)
    table, margin = _of(table, name), study.experiment.evaluation.margin
    limits = list(zip(table["diff"], table.diff_low, table.diff_high))
    return table.assign(
        level=[md.score_ci(*level) for level in zip(table.score, table.low, table.high)],
        change=[md.change_ci(*change) for change in limits],
        shows=[wording.change(low, high, margin) for _, low, high in limits],
    )


def ratios(study: Study, name: str) -> pd.DataFrame:
    """Time per call over the base's, of whatever runs these weights, by workload and kernel."""
    by_id, table = study.experiment.by_id, speed.ratios(study)
    size = study.experiment.model.size
    runs = [other for other, spec in by_id.items() if spec.stored(size) == name]
    table = table[table.variant.isin(runs)]
    return table.assign(
        workload=[f"{speed.KINDS.get(kind, kind)}, batch {n}" for kind, n in zip(table.kind, table.batch)],
        times=[md.value_ci(*ratio, 2) for ratio in zip(table.ratio, table.low, table.high)],
    )


def kernels(study: Study, name: str) -> list[str]:
    """Kernels that ran these weights: where they were scored and where they were timed."""
    rows, by_id, size = _of(study.results.variants, name), study.experiment.by_id, study.experiment.model.size
    ran = [f"`{kernel}` (03_quantize, 05_evaluate)" for kernel in dict.fromkeys(rows.get("backend", []))]
    census = study.results.census
    if census is not None:
        packed = census[(census.tower == "language_model") & census.variant.isin(by_id)]
        timed = [
            kernel
            for other, kernel in zip(packed.variant, packed.kernel)
            if by_id[other].stored(size) == name
        ]
        ran += [f"`{kernel}` (04_benchmark)" for kernel in dict.fromkeys(timed)]
    return ran


def engines(study: Study, name: str) -> pd.DataFrame:
    """Rows of results/interop: engine, export, and how close its vectors are to ColQ's."""
    path = study.experiment.output / "results" / "interop" / f"{study.experiment.name}.csv"
    if not path.exists():
        return pd.DataFrame()
    table = files.read_table(path, "interop")
    table = table[table.checkpoint.str.startswith(f"{name}/")]
    cosines = {
        c: table[c].map("{:.5f}".format, na_action="ignore")
        for c in ("cosine_query_mean", "cosine_page_mean")
    }
    return table.assign(export=table.checkpoint.str.split("/").str[1], **cosines)
