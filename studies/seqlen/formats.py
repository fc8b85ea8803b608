"""The folded parts of the report on number formats, the vision tower, single layers, drift and power."""

import pandas as pd

from colq_utils.report import markdown as md
from colq_utils.report import stats, wording
from studies.seqlen import analysis, drift, lengths, recipes
from studies.seqlen.analysis import SeqlenStudy
from studies.seqlen.sections import DESIGNS, change, page, picture, points, score_cells, two


def format_section(study: SeqlenStudy) -> str:
    table, rows = analysis.scores(study), []
    for _, run in table[table["family"].isin(["base", "rtn", "float"])].iterrows():
        row = {"label": run["variant"] if run["method"] == "base" else recipes.label(study, run)}
        row |= score_cells(run) | _judged(study, run)
        if run["variant"] == study.spec.base:
            row |= {"change": "-", "verdict": "-"}
        rows.append(row)
    tuned = [
        {"label": label, "seeds": mean["seeds"], "gain": points(mean["gain"]) if mean["gain"] else md.MISSING}
        | score_cells(mean)
        | _judged(study, mean)
        for label, mean in tuned_formats(study)
    ]
    caption = (
        "Checkpoint size and change of NDCG@5. g128: one scale for 128 weights; asym.: asymmetric; "
        "grey: within the margin"
    )
    return page(
        "formats.md.j2",
        study,
        rows=pd.DataFrame(rows),
        tuned=pd.DataFrame(tuned),
        near=100 * stats.NEAR,
        picture=picture(study, "pareto.png", caption),
    )


def _judged(study: SeqlenStudy, row: dict) -> dict[str, str]:
    verdict = wording.change(row["diff_low"], row["diff_high"], study.spec.margin)
    return {"size": md.megabytes(row["bytes"]), "change": change(row), "verdict": verdict}


def tuned_formats(study: SeqlenStudy) -> list[tuple[str, dict]]:
    """AutoRound by format, group size and symmetry (s512, 200 iterations): means over seeds."""
    runs = study.good[study.good["family"].isin(["length", "tuned"])]
    runs = runs[(runs["set"] == "s512") & (runs["iters"] == 200)]
    formats = []
    for (form, group, sym), subset in runs.groupby(["format", "group_size", "sym"], sort=False):
        twin = study.arm("rtn", format=form, group_size=group, sym=sym)["variant"].tolist()
        variants = subset["variant"].tolist()
        mean = analysis.mean_score(study, variants) | {"bytes": subset["bytes"].iloc[0]}
        mean["gain"] = analysis.contrast(study, variants, twin * len(variants)) if twin else None
        formats.append((f"{form.upper()}, groups of {group}{'' if sym else ', asymmetric'}", mean))
    return sorted(formats, key=lambda pair: -pair[1]["score"])


def vision_section(study: SeqlenStudy) -> str:
    table = analysis.scores(study)
    vision = table[table["family"] == "vision"]
    if vision.empty:
        return md.MISSING
    rows = [
        {"label": f"language model {run['format'].upper()}, vision tower {run['visual'].upper()}"}
        | _judged(study, run)
        for _, run in pd.concat([vision, table[table["variant"] == "w4-rtn"]]).iterrows()
    ]
    return page("vision.md.j2", study, rows=pd.DataFrame(rows))


def sensitivity_section(study: SeqlenStudy) -> str:
    table = drift.sensitivity(study)
    if table.empty:
        return md.MISSING
    frames, worst = [], []
    for family, heading in (("layers", "Decoder layer"), ("kinds", "Linear")):
        parts = table[table["family"] == family]
        parts = parts.assign(change=[change(row) for _, row in parts.iterrows()]).set_index("scope")
        four, two_bits = (parts[parts["format"] == form] for form in ("w4", "w2"))
        least = two_bits.sort_values("diff").iloc[0]
        worst.append(f"{least.name} ({least['change']} points at W2)")
        frame = pd.DataFrame({"w4": four["change"], "w2": two_bits["change"]}).loc[parts.index.unique()]
        for column in ("query_cosine", "page_cosine"):
            frame[column] = (1 - two_bits[column]).map(lambda value: md.number(value, 4))
        frames.append((heading, frame.reset_index()))
    four = table[table["format"] == "w4"]
    return page(
        "sensitivity.md.j2",
        study,
        frames=frames,
        worst=worst,
        n_clear=int(stats.resolved(four["diff_low"], four["diff_high"]).sum()),
        n_parts=len(four),
        picture=picture(study, "sensitivity.png", "One part of the language model rounded at a time"),
    )


#: Groups of `recipes.groups` that the tables by language and kind show side by side.
SIDE_BY_SIDE = ("W4", "W4 AutoRound, 512 tokens, 200 it.", "FP8", "MXFP4", "W3", "W2")


def drift_section(study: SeqlenStudy) -> str:
    wanted, table = recipes.groups(study), drift.by_variant(study)
    rows = []
    for label, variants in wanted.items():
        subset = table.loc[variants]
        mean = subset.mean()
        row = {"label": label, "page_cosine_min": md.number(subset["page_cosine_min"].min(), 3)}
        row |= {name: md.number(mean[name], 5) for name in ("query_cosine", "page_cosine", "score_drift")}
        rows.append(row | {"top5_kept": two(mean["top5_kept"], 1), "not_finite": subset["not_finite"].sum()})
    few = {label: wanted[label] for label in SIDE_BY_SIDE if label in wanted}
    parts = [(*words, *_by_query(study, few, by)) for by, words in BY.items()]
    pages = drift.by_page(study, few)
    pages["text"] = [
        f"{md.number(mean, 4)} / {md.number(least, 3)}"
        for mean, least in zip(pages["cosine_mean"], pages["cosine_min"])
    ]
    pages["scanned"] = pages["scanned"].map({True: "scanned", False: "clean"})
    return page(
        "drift.md.j2",
        study,
        rows=pd.DataFrame(rows),
        parts=parts,
        pages=pages.pivot(index=["lang", "scanned"], columns="group", values="text").reset_index(),
        few=list(few),
        n_broken=int(table["not_finite"].sum()),
        picture=picture(study, "drift.png", "Drift of vectors, scores and top five by format"),
    )


#: What drift is shown by: words of the sentence and of the heading.
BY = {"lang": ("language of the query", "Language"), "kind": ("kind of query", "Kind of query")}


def _by_query(study: SeqlenStudy, groups: dict[str, list[str]], by: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Changes with their intervals, and means of drift: a row by `by`, a column a group, as text."""
    table = drift.by_query(study, groups, by)
    table["points"] = [points(row) for _, row in table.iterrows()]
    table["means"] = [
        f"{md.number(row.query_cosine, 4)} / {md.number(row.score_drift, 4)} / {two(row.top5_kept, 1)}"
        for row in table.itertuples()
    ]
    table = table.astype({"n": str}).rename(columns={by: "by"})
    return tuple(
        table.pivot(index=["by", "n"], columns="group", values=column).reset_index()
        for column in ("points", "means")
    )


#: True losses in points for which the power of showing none beyond the margin is told.
LOSSES = (0.0, 0.2, 0.4)


def power_section(study: SeqlenStudy) -> str:
    compared, margin = {}, study.spec.margin
    if "w4-rtn" in study.names:
        compared["one checkpoint (W4 RTN)"] = ["w4-rtn"]
    for iters, blocks in lengths.designs(study, "length"):
        words = f"W4 AutoRound, 512 tokens, {iters:,} iterations, mean of {len(blocks)} seeds"
        compared[words] = blocks["s512"].tolist()
    shown = []
    for words, variants in compared.items():
        mean = analysis.mean_score(study, variants)
        se, df = mean["diff_se"], mean["diff_df"]
        row = {"what": words, "detectable": two(stats.minimal_detectable(se, df=df))}
        chances = {f"loss{loss}": two(stats.power(loss / 100, se, margin, df), 0) for loss in LOSSES}
        shown.append(row | chances)
    pairs = []
    for family, words in DESIGNS.items():
        for iters, blocks in lengths.designs(study, family):
            what = f"two lengths, {words}, {iters:,} iterations, {len(blocks)} seeds each"
            pairs.append({"what": what, "detectable": two(lengths.pairs(study, blocks)["mdd"].max())})
    return page("power.md.j2", study, losses=LOSSES, shown=pd.DataFrame(shown), pairs=pd.DataFrame(pairs))


def limits(study: SeqlenStudy) -> str:
    return page("limits.md.j2", study, failed=study.runs[study.runs["error"] != ""])


def provenance(study: SeqlenStudy) -> str:
    record = study.provenance
    single = {k: v for k, v in record.items() if not isinstance(v, (dict, list)) and v is not None}
    properties = [(name.replace("_", " "), value) for name, value in single.items()]
    properties += [(name, version) for name, version in record["packages"].items() if version]
    seconds = study.good[study.good["iters"] > 0].groupby("iters")["make_s"].agg(["size", "median", "max"])
    times = seconds.reset_index().assign(
        what=[f"AutoRound, {int(iters)} iterations" for iters in seconds.index],
        median=[md.number(value, 1) for value in seconds["median"]],
        longest=[md.number(value, 1) for value in seconds["max"]],
    )
    calls = pd.DataFrame(record["calls"])
    calls = calls.assign(call=calls.index + 1, seconds=[md.number(value, 0) for value in calls["wall_s"]])
    properties = pd.DataFrame(properties, columns=["name", "value"], dtype=object)
    return page("provenance.md.j2", study, properties=properties, calls=calls, times=times)
