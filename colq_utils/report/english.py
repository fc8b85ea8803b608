"""comparison_english.md: base against the 4-bit variants, task by task, on English queries alone.

Published comparisons of these models report English; here every change has an interval.
"""

import pandas as pd

from colq_utils.report import analysis, findings, wording
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.parts import page
from colq_utils.report.quantization import calibration_sets, configuration
from colq_utils.report.tables import table

#: Variants side by side in one table of changes.
SIDE_BY_SIDE = 5


def write(study: Study) -> str:
    """The whole report as markdown."""
    if not study.english.any():
        title = f"# English queries: {study.experiment.title}"
        return md.document(title, f"No counted task has English queries: {md.MISSING}.")
    suite = wording.averages(study, study.english_suite)
    shown = suite[suite.variant.isin(findings.four_bits(study)) & suite["diff"].notna()]
    changes, by_task = _tables(study)
    return page(
        "comparison_english.md.j2",
        study,
        suite=suite,
        shown=shown,
        holes=suite.label[suite.score.isna()],
        entries=study.entries[study.english],
        changes=changes,
        by_task=by_task,
        base_bytes=analysis.sizes(study.results).set_index("variant")["bytes"].get(study.experiment.base),
        configuration=_configuration(study),
        sets=calibration_sets(study),
    )


def _tables(study: Study) -> tuple[str, str]:
    """Changes by task in points, and below each other scores and relative changes, as published."""
    base, names, labels = study.experiment.base, findings.four_bits(study), study.labels
    frame, task = by_task(study, [base, *names]), {"task": "Task (queries)"}
    changes = [
        table(
            frame,
            {
                **task,
                f"score {base}": "Base",
                **{f"change {n}": labels[n] for n in names[i : i + SIDE_BY_SIDE]},
            },
            left=1,
        )
        for i in range(0, len(names), SIDE_BY_SIDE)
    ]
    columns = task | {f"score {base}": labels[base]}
    for name in names:
        columns |= {f"score {name}": labels[name], f"relative {name}": "Change (%)"}
    return "\n\n".join(changes), table(frame, columns, left=1)


def by_task(study: Study, names: list[str]) -> pd.DataFrame:
    """A row per English task and the average in bold: scores, changes, relative changes, as text."""
    entries = study.entries[study.english]
    english = study.by_entry.merge(entries[["task", "lang"]])
    frame = {"task": [f"{e.task} ({int(e.n_queries)})" for e in entries.itertuples()] + ["**Average**"]}
    tables = {n: pd.concat([t[t.variant == n] for t in (english, study.english_suite)]) for n in names}
    base = tables[study.experiment.base].score
    for name, rows in tables.items():
        changes = list(zip(rows["diff"], rows.diff_low, rows.diff_high))
        frame[f"score {name}"] = _last_in_bold(md.significant(score) for score in rows.score)
        frame[f"change {name}"] = _last_in_bold(md.change_ci(*change) for change in changes)
        relative = [md.percent_ci(*change, score) for change, score in zip(changes, base)]
        frame[f"relative {name}"] = _last_in_bold(relative)
    return pd.DataFrame(frame)


def _last_in_bold(texts) -> list[str]:
    *tasks, average = texts
    return [*tasks, f"**{average}**"]


def _configuration(study: Study) -> str:
    """A column per 4-bit variant: how it was quantized, and its size."""
    names = findings.four_bits(study)
    specs = pd.DataFrame([study.experiment.by_id[name].model_dump() for name in names], index=names)
    sizes = analysis.sizes(study.results).set_index("variant")["bytes"].reindex(names)
    columns = {
        "bits": [study.experiment.by_id[name].bits for name in names],
        "group size": specs.group_size,
        "symmetric": specs.sym,
        "method": specs.method,
        "iterations": specs.iters,
        "calibration set": specs.calibration.fillna("none"),
        "size (MB)": (sizes / 1e6).map(md.significant),
    }
    made = configuration(study).drop_duplicates("variant").set_index("variant")
    if study.results.variants is not None and "fallback" in made:
        columns["fallback used"] = made.fallback.reindex(names)
    rows = [[key, *map(md.cell, values)] for key, values in columns.items()]
    frame = pd.DataFrame(rows, columns=["key", *names])
    return table(frame, {"key": "Property"} | {name: study.labels[name] for name in names}, left=1)
