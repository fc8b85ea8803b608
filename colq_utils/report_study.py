"""The report of a study, from its result files alone: every number is computed here and every sentence is chosen by an interval.

``python -m colq_utils.report_study seqlen`` writes the report and the figures that it shows.
"""
import argparse
import sys
from pathlib import Path

import pandas as pd

from . import files, stats, study_plots
from . import markdown as md
from . import study_analysis as analysis
from .errors import ColqError
from .study_analysis import Study

TO_FIGURES = "../../../figures"
LENGTHS = study_plots.LENGTHS


def build(found: Study) -> Path:
    """Draw the figures and write ``reports/<name>_study.md`` beside the results."""
    study_plots.draw(found)
    return files.write_text(found.folder / "reports" / f"{found.spec.name}_study.md", text(found))


def text(found: Study) -> str:
    return md.document(
        f"# {found.spec.title}", summary(found), design(found), "## Does the length matter?", length_section(found), "## What the seed alone moves",
        seed_section(found), "## What the confounding did", confounded_section(found), "## Text against pages and queries, and the budget",
        content_section(found), "## Formats: bytes and NDCG@5", format_section(found), "## Vision tower too", vision_section(found),
        "## Which part of the language model hurts", sensitivity_section(found), "## Drift", drift_section(found), "## What can be told apart",
        power_section(found), "## What to choose", choice_section(found), "## Limits", limits(found), "## How it was made", provenance(found))


def points(row: dict) -> str:
    """A difference in points with its interval."""
    return md.points_ci(row["diff"], row["low"], row["high"])


def two(value, digits: int = 2) -> str:
    """NDCG units as points."""
    return md.number(100 * value, digits)


def opened(sentence: str) -> str:
    """With a capital letter and a full stop."""
    return sentence[0].upper() + sentence[1:] + "."


# --- sections ------------------------------------------------------------------------------------------------------------

def summary(found: Study) -> str:
    return "## Answers in short\n\n" + "\n".join(f"- {line}" for line in filter(None, (
        length_answer(found), seed_answer(found), confounded_answer(found), content_answer(found), choice_answer(found)))) + (
        "\n\nThese are findings about the embedded model and benchmark. They show what such a comparison needs before it can rank calibration lengths; "
        "they are no measurement of the published 4B and 8B checkpoints.")


def length_answer(found: Study) -> str:
    parts = []
    for iters, table in designs(found, "length"):
        rows = analysis.pairs(found, table)
        clear, widest = rows[rows["resolved"]], rows.loc[rows["diff"].abs().idxmax()]
        said = ("no pair of lengths is told apart" if clear.empty else
                "told apart: " + md.listing([f"{LENGTHS[r['first']]} {'above' if r['diff'] > 0 else 'below'} {LENGTHS[r['second']]}" for _, r in clear.iterrows()]))
        parts.append(f"at {iters} iterations {said} (largest difference: {LENGTHS[widest['first']]} against {LENGTHS[widest['second']]}, {points(widest)} points, {len(table)} seeds)")
    return "**Does the length matter at one budget?** " + opened("; ".join(parts)) if parts else ""


def seed_answer(found: Study) -> str:
    parts = []
    for iters, table in designs(found, "length"):
        a = analysis.anova(found, table)
        parts.append(f"at {iters} iterations the seed moves the suite score with a standard deviation of {two(a['seed_sd'])} points [{two(a['seed_sd_low'])}, "
                     f"{two(a['seed_sd_high'])}], the three lengths' means lie {two(a['length_sd'])} apart (standard deviation) where {two(a['expected_sd'])} is "
                     f"expected if the length did nothing (F test p = {md.p_value(a['p'])})")
    return "**What does the seed alone move?** " + opened("; ".join(parts)) if parts else ""


def confounded_answer(found: Study) -> str:
    found_designs = dict(designs(found, "confounded"))
    clean = dict(designs(found, "length"))
    shared = [i for i in found_designs if i in clean]
    if not shared:
        return ""
    iters = shared[0]
    rows = analysis.interaction(found, found_designs[iters], clean[iters])
    wide = rows.loc[[abs(r["added"]["diff"]) for _, r in rows.iterrows()].index(max(abs(r["added"]["diff"]) for _, r in rows.iterrows()))]
    clear = [r for _, r in rows.iterrows() if stats.resolved(r["added"]["low"], r["added"]["high"])]
    said = ("the design is not shown to have made a difference" if not clear else
            "it made a difference for " + md.listing([f"{LENGTHS[r['first']]} against {LENGTHS[r['second']]}" for r in clear]))
    return (f"**What did the confounding do?** With sample counts and batches as published (a tenth of each), {said}: the largest change of a pair is that of "
            f"{LENGTHS[wide['first']]} against {LENGTHS[wide['second']]}, {points(wide['confounded'])} points where the controlled design has {points(wide['controlled'])}, "
            f"a change of {points(wide['added'])}. {budget_sentence(found, iters)}")


def budget_sentence(found: Study, iters: int) -> str:
    """Each published setting against the controlled set of its length."""
    published, clean = dict(designs(found, "confounded"))[iters], dict(designs(found, "length"))[iters]
    parts = []
    for p, c in zip(published.columns, clean.columns):
        seeds = published.index.intersection(clean.index)
        r = analysis.contrast(found, published.loc[seeds, p].tolist(), clean.loc[seeds, c].tolist())
        parts.append(f"{LENGTHS[c]}: {points(r)}")
    return "Against the controlled set of its own length: " + "; ".join(parts) + " points."


def content_answer(found: Study) -> str:
    parts = [f"{points(r)} points of NDCG@5 at {iters} iterations" for iters, r in content_rows(found)]
    return ("**Should calibration show pages and queries?** Rows of a page and queries against text rows of the same length, budget and step size: "
            + md.listing(parts) + "." if parts else "")


def choice_answer(found: Study) -> str:
    return "**What should a user choose?** " + choice_section(found).split("\n\n")[0]


def design(found: Study) -> str:
    rows = []
    for s in found.spec.sets:
        mine = found.runs[(found.runs["set"] == s.id) & (found.runs["error"] == "")]
        if len(mine):
            rows.append((s.id, "pages, then queries" if s.kind == "pages" else "text", s.seqlen, s.blocks, s.batch_rows, f"{s.seqlen * s.blocks:,}", f"{s.seqlen * s.batch_rows:,}",
                         md.listing([f"{i}" for i in sorted(mine["iters"].unique())]), mine["seed"].nunique()))
    good = found.runs[found.runs["error"] == ""]
    tuned = int((good["method"] == "autoround").sum())
    return md.document(
        "## Design",
        f"{len(good)} variants of `{found.spec.model.path}`, {tuned} of them tuned by AutoRound {found.provenance['packages']['auto-round']}, "
        f"each scored on {len(found.asked):,} queries, {found.n_queries:,} of them in the {len(found.draws.strata)} task × language entries whose mean is the suite score. "
        f"Everything but the weights is shared: device ({good['device'].iloc[0]}), bf16, attention, page features, queries.",
        "Weights are rounded and stored as the bf16 numbers that integers and scales stand for (the numbers that AutoRound packs, tested), so that no kernel enters the "
        "comparison. FP8 (e4m3: a scale an output channel for weights, a scale a token for activations) and MXFP4 (weights, blocks of 32) are such roundings in plain torch as well. "
        "A seed draws the calibration text (which passages, in which order) and AutoRound's batches; the variants of one seed share their text, "
        "so that lengths are compared seed by seed. 'Points' are NDCG@5 × 100; brackets are 95 % intervals over queries (translations of a query drawn together) "
        "and, where AutoRound is involved, over seeds too.",
        md.table(["Calibration set", "Content", "Length", "Rows", "Rows a step", "Tokens", "Tokens a step", "Iterations", "Seeds"], rows, left=2)).strip()


def designs(found: Study, family: str):
    """Iterations and blocks (a row a seed, a column a set) of a family that has at least two seeds."""
    for iters in sorted(found.arm(family)["iters"].unique()):
        table = analysis.blocks(found, family, iters)
        if len(table) >= 2 and table.shape[1] >= 2:
            yield int(iters), table


def length_section(found: Study) -> str:
    parts = []
    for iters, table in designs(found, "length"):
        means = [(LENGTHS[c], *_mean_cells(analysis.mean_score(found, table[c].tolist()))) for c in table.columns]
        rows = [(f"{LENGTHS[r['first']]} - {LENGTHS[r['second']]}", points(r), f"[{md.number(100 * r['seed_low'], 2, True)}, {md.number(100 * r['seed_high'], 2, True)}]",
                 md.p_value(r["p"]), two(r["mdd"]), r["resolved"]) for _, r in analysis.pairs(found, table).iterrows()]
        a = analysis.anova(found, table)
        best = md.listing([f"{LENGTHS[c]} in {n}" for c, n in a["best"].items()])
        parts += [f"### {iters} iterations, {len(table)} seeds", md.table(["Length", "NDCG@5, mean of seeds", "Change against bf16 (points)"], means),
                  md.table(["Pair", "Difference (points, over queries and seeds)", "Over seeds alone", "p (t test over seeds)", "Detectable (points)", "Told apart"], rows),
                  f"Intervals of the pairs hold for all three together (Bonferroni). Two-way analysis of variance with seeds as blocks, for these queries: "
                  f"F({a['df'][0]}, {a['df'][1]}) = {md.number(a['f'])}, p = {md.p_value(a['p'])}; the length accounts for {md.number(100 * a['share'], 0)} % of the variance between runs "
                  f"(ω²). A study of one seed would have named a different winner from seed to seed: best was {best} of {a['seeds']} seeds."]
    return "\n\n".join([*parts, picture(found, "seeds.png", "Every run as a dot, by calibration length; diamonds are means with 95 % intervals over queries and seeds")])


def _mean_cells(row: dict) -> tuple[str, str]:
    return md.score_ci(row["score"], row["low"], row["high"]), md.points_ci(row["diff"], row["diff_low"], row["diff_high"])


def seed_section(found: Study) -> str:
    rows = []
    for family in ("length", "confounded"):
        for iters, table in designs(found, family):
            a = analysis.anova(found, table)
            rows.append((("one budget" if family == "length" else "as published") + f", {iters} iterations", a["seeds"],
                         f"{two(a['seed_sd'])} [{two(a['seed_sd_low'])}, {two(a['seed_sd_high'])}]", two(a["length_sd"]), two(a["expected_sd"]), md.p_value(a["p"])))
    parts, twice = analysis.seed_parts(found), analysis.repeated(found)
    lines = [md.table(["Design", "Seeds", "Between seeds, one length (points)", "Between the lengths' means", "Expected of the seeds alone", "p"], rows)]
    if rows:
        a = analysis.anova(found, next(designs(found, "length"))[1])
        lines.append(f"Two checkpoints of one recipe that differ in their seed alone are therefore {two(1.96 * 2 ** 0.5 * a['seed_sd'])} points apart or more in one of twenty cases "
                     f"({next(designs(found, 'length'))[0]} iterations): a single-seed difference below that ranks nothing.")
    if parts:
        lines.append(f"Where the seed acts: with text and batches drawn anew the standard deviation is {two(parts['both_sd'])} points [{two(parts['both_low'])}, {two(parts['both_high'])}] "
                     f"({parts['both_n']} seeds); with one text and only the batches drawn anew it is {two(parts['order_sd'])} [{two(parts['order_low'])}, {two(parts['order_high'])}] "
                     f"({parts['order_n']} runs; set {parts['set']}, {parts['iters']} iterations).")
    if twice is not None:
        lines.append("A run made twice with one seed gave " + ("the same weights bit for bit: what differs between seeds is the seed." if twice else
                     "other weights: part of the spread between seeds is arithmetic that does not repeat on this device."))
    return "\n\n".join(lines)


def confounded_section(found: Study) -> str:
    published, clean = dict(designs(found, "confounded")), dict(designs(found, "length"))
    lines = []
    for iters in [i for i in published if i in clean]:
        rows = analysis.interaction(found, published[iters], clean[iters])
        cells = [(f"{LENGTHS[r['first']]} - {LENGTHS[r['second']]}", points(r["confounded"]), points(r["controlled"]), points(r["added"])) for _, r in rows.iterrows()]
        means = [(p, LENGTHS[p], *_mean_cells(analysis.mean_score(found, published[iters][p].tolist()))) for p in published[iters].columns]
        lines += ["The published 4B study took 300, 600 and 560 samples in batches of 300, 200 and 80 at 256, 512 and 1024 tokens: the longer sets hold up to 7.5 times the text, "
                  "and at 256 every step sees every sample, so that nothing is drawn. Here a tenth of each.",
                  md.table(["Set", "Length", "NDCG@5, mean of seeds", "Change against bf16 (points)"], means, left=1),
                  md.table(["Pair", "As published (points)", "One budget (points)", "What the design adds"], cells), budget_sentence(found, iters)]
    return "\n\n".join(lines) or md.MISSING


def content_rows(found: Study) -> list[tuple[int, dict]]:
    rows = []
    for iters in sorted(found.arm("content")["iters"].unique()):
        own = found.arm("content", iters=iters).set_index("seed")["variant"]
        other = found.arm("length", iters=iters, set="s512").set_index("seed")["variant"]
        shared = own.index.intersection(other.index)
        if len(shared) > 1:
            rows.append((int(iters), analysis.contrast(found, own[shared].tolist(), other[shared].tolist())))
    return rows


def content_section(found: Study) -> str:
    lines, drift = [], analysis.drift(found).set_index("variant")
    rows = []
    for iters, r in content_rows(found):
        own, other = found.arm("content", iters=iters)["variant"].tolist(), found.arm("length", iters=iters, set="s512")["variant"].tolist()
        rows.append((iters, points(r), r["seeds"], *(f"{md.number(drift.loc[a, c].mean(), 5)} / {md.number(drift.loc[b, c].mean(), 5)}"
                                                     for c, (a, b) in (("query_cosine", (own, other)), ("page_cosine", (own, other))))))
    if rows:
        lines += ["Each row of the set is a drawn page's prompt followed by queries (512 tokens, 4 rows a step, 65,536 tokens in all), against text of the same shape.",
                  md.table(["Iterations", "Pages and queries minus text (points)", "Seeds", "Query token cosine (pages+queries / text)", "Page token cosine (pages+queries / text)"], rows)]
    budget = []
    for name in found.arm("budget")["set"].unique():
        own = found.arm("budget", set=name)
        other = found.arm("length", iters=own["iters"].iloc[0], set="s512").set_index("seed")["variant"]
        shared = own.set_index("seed")["variant"]
        seeds = shared.index.intersection(other.index)
        if len(seeds) > 1:
            s = found.spec.set(name)
            budget.append((f"{s.seqlen * s.blocks:,}", int(own["iters"].iloc[0]), len(seeds), points(analysis.contrast(found, shared[seeds].tolist(), other[seeds].tolist()))))
    if budget:
        lines += ["Budgets at one length (512) and step size, against 65,536 tokens:", md.table(["Tokens", "Iterations", "Seeds", "Difference (points)"], budget)]
    rows = []
    for name in ("s256", "s512", "s1024"):
        many, few = (found.arm("length", iters=i, set=name).set_index("seed")["variant"] for i in (1000, 200))
        seeds = many.index.intersection(few.index)
        if len(seeds) > 1:
            rows.append((LENGTHS[name], len(seeds), points(analysis.contrast(found, many[seeds].tolist(), few[seeds].tolist()))))
    if rows:
        lines += ["1000 iterations against 200, by length:", md.table(["Length", "Seeds", "1000 - 200 (points)"], rows)]
    return "\n\n".join(lines) or md.MISSING


def format_section(found: Study) -> str:
    table = analysis.scores(found)
    plain = table[table["family"].isin(["base", "rtn", "float"])]
    rows = [(r["variant"], md.megabytes(r["bytes"]), md.score_ci(r["score"], r["low"], r["high"]), "-" if r["variant"] == found.spec.base else
             md.points_ci(r["diff"], r["diff_low"], r["diff_high"]), "-" if r["variant"] == found.spec.base else stats.verdict(r["diff_low"], r["diff_high"], found.spec.margin))
            for _, r in plain.iterrows()]
    tuned = [(label, md.megabytes(r["bytes"]), *_mean_cells(r), stats.verdict(r["diff_low"], r["diff_high"], found.spec.margin), r["seeds"],
              md.points_ci(r["gain"]["diff"], r["gain"]["low"], r["gain"]["high"]) if r["gain"] else md.MISSING) for label, r in tuned_formats(found)]
    return "\n\n".join([
        picture(found, "pareto.png", "Checkpoint bytes and change of NDCG@5; grey: within the margin"),
        f"Margin stated before the run: {two(found.spec.margin, 1)} points. Group 128, symmetric, unless named. Bytes of FP8 and MXFP4 are counted, not stored.",
        md.table(["Rounding to nearest", "Checkpoint (MB)", "NDCG@5", "Change (points)", "At the margin"], rows),
        "AutoRound (512 tokens, 65,536 in all, 200 iterations), means over seeds:",
        md.table(["AutoRound", "Checkpoint (MB)", "NDCG@5", "Change (points)", "At the margin", "Seeds", "Against RTN of the same format (points)"], tuned)])


def tuned_formats(found: Study) -> list[tuple[str, dict]]:
    """AutoRound by format, group size and symmetry at 200 iterations on s512: mean over seeds, and gain over rounding to nearest."""
    table = found.runs[(found.runs["error"] == "") & found.runs["family"].isin(["length", "tuned"]) & (found.runs["set"] == "s512") & (found.runs["iters"] == 200)]
    made = []
    for (form, group, sym), some in table.groupby(["format", "group_size", "sym"], sort=False):
        twin = found.arm("rtn", format=form, group_size=group, sym=sym)["variant"].tolist()
        mine = some["variant"].tolist()
        gain = analysis.contrast(found, mine, twin * len(mine)) if twin else None
        label = f"{form.upper()} g{group} {'symmetric' if sym else 'asymmetric'}"
        made.append((label, {**analysis.mean_score(found, mine), "bytes": some["bytes"].iloc[0], "gain": gain}))
    return sorted(made, key=lambda pair: -pair[1]["score"])


def vision_section(found: Study) -> str:
    table = analysis.scores(found).set_index("variant")
    mine = table[table["family"] == "vision"]
    if mine.empty:
        return md.MISSING
    rows = [(f"language model {r['format'].upper()}, vision tower {r['visual'].upper()}", md.megabytes(r["bytes"]), md.points_ci(r["diff"], r["diff_low"], r["diff_high"]),
             stats.verdict(r["diff_low"], r["diff_high"], found.spec.margin)) for _, r in mine.iterrows()]
    if "w4-rtn" in table.index:
        r = table.loc["w4-rtn"]
        rows.append(("language model W4, vision tower BF16", md.megabytes(r["bytes"]), md.points_ci(r["diff"], r["diff_low"], r["diff_high"]), stats.verdict(r["diff_low"], r["diff_high"], found.spec.margin)))
    return ("The vision tower's Linears rounded to nearest as well (group 128, symmetric); position table and patch embedding keep bf16.\n\n"
            + md.table(["Rounded", "Checkpoint (MB)", "Change (points)", "At the margin"], rows))


def sensitivity_section(found: Study) -> str:
    table = analysis.sensitivity(found)
    if table.empty:
        return md.MISSING
    lines = []
    for family, what in (("layers", "Decoder layer"), ("kinds", "Linear")):
        mine = table[table["family"] == family]
        cells = {f: mine[mine["format"] == f].set_index("scope") for f in ("w4", "w2")}
        rows = [(scope, *(md.points_ci(*cells[f].loc[scope, ["diff", "diff_low", "diff_high"]]) for f in ("w4", "w2")),
                 *(md.number(1 - cells["w2"].loc[scope, c], 4) for c in ("query_cosine", "page_cosine"))) for scope in dict.fromkeys(mine["scope"])]
        lines.append(md.table([f"{what} rounded alone", "W4 (points)", "W2 (points)", "Query drift at W2 (1 - cosine)", "Page drift at W2"], rows))
    worst = {f: table[(table["family"] == f) & (table["format"] == "w2")].sort_values("diff") for f in ("layers", "kinds")}
    said = [f"{w['scope'].iloc[0]} ({md.points_ci(*w.iloc[0][['diff', 'diff_low', 'diff_high']])} points at W2)" for w in worst.values()]
    four = table[table["format"] == "w4"]
    clear = int(stats.resolved(four["diff_low"], four["diff_high"]).sum())
    return "\n\n".join([f"Everything else keeps bf16. Most is lost in {md.listing(said)}; at W4, {clear} of {len(four)} single parts are told from bf16.",
                        picture(found, "sensitivity.png", "One part of the language model rounded at a time"), *lines])


def drift_section(found: Study) -> str:
    wanted, drift = study_plots.groups(found), analysis.drift(found).set_index("variant")
    rows = []
    for label, variants in wanted.items():
        some = drift.loc[variants]
        rows.append((label, md.number(some["query_cosine"].mean(), 5), md.number(some["page_cosine"].mean(), 5), md.number(some["page_cosine_min"].min(), 3),
                     md.number(some["score_drift"].mean(), 5), md.number(100 * some["top5_kept"].mean(), 1), int(some["not_finite"].sum())))
    broken = int(drift["not_finite"].sum())
    few = {label: wanted[label] for label in ("W4 RTN", "W4 AutoRound s512 i200", "FP8 (weights, activations)", "MXFP4", "W3 RTN", "W2 RTN") if label in wanted}
    lines = [f"NaN or infinite numbers in all vectors of all variants: {broken}.", picture(found, "drift.png", "Drift of vectors, scores and top five by format"),
             md.table(["Variant", "Query token cosine", "Page token cosine", "Least page token cosine", "MaxSim drift a query token", "Top five kept (%)", "NaN, Inf"], rows)]
    for by, title in (("lang", "Language"), ("kind", "Kind of query")):
        table = analysis.drift_by(found, few, by)
        lines += [f"By {title.lower()} of the query (all tasks, mean over queries):", md.table(
            [title, "Queries", *(f"{label}: change (points)" for label in few)],
            [(value, int(some["n"].iloc[0]), *(md.points_ci(*some.set_index("group").loc[label, ["diff", "low", "high"]]) for label in few)) for value, some in table.groupby(by)]),
            md.table([title, *(f"{label}: cosine / MaxSim drift / top five kept (%)" for label in few)],
                     [(value, *(f"{md.number(r['query_cosine'], 4)} / {md.number(r['score_drift'], 4)} / {md.number(100 * r['top5_kept'], 1)}"
                                for r in (some.set_index("group").loc[label] for label in few))) for value, some in table.groupby(by)])]
    pages = analysis.page_drift(found, few)
    lines += ["Page tokens by language and kind of page (mean cosine / least):", md.table(
        ["Language", "Pages", *few], [(lang, "scanned" if scanned else "clean", *(f"{md.number(r['cosine_mean'], 4)} / {md.number(r['cosine_min'], 3)}"
                                       for r in (some.set_index("group").loc[label] for label in few))) for (lang, scanned), some in pages.groupby(["lang", "scanned"])], left=2)]
    return "\n\n".join(lines)


def power_section(found: Study) -> str:
    table = analysis.scores(found).set_index("variant")
    rows = [("one variant against bf16 (W4 RTN), queries alone", two(stats.minimal_detectable(table.loc["w4-rtn", "diff_se"])))] if "w4-rtn" in table.index else []
    for family in ("length", "confounded"):
        for iters, blocks in designs(found, family):
            r = analysis.pairs(found, blocks)
            rows.append((f"two lengths, {'one budget' if family == 'length' else 'as published'}, {iters} iterations, {len(blocks)} seeds each, three pairs together", two(r["mdd"].max())))
    return "True differences that a study of this kind finds in four of five repetitions:\n\n" + md.table(["Comparison", "Detectable difference (points)"], rows)


def choice_section(found: Study) -> str:
    """The smallest checkpoint whose whole interval clears the margin; in words."""
    table = analysis.scores(found)
    rows = [{"label": r["variant"], "bytes": r["bytes"], **{k: r[k] for k in ("diff", "diff_low", "diff_high")}}
            for _, r in table[table["family"].isin(["rtn", "float", "vision"])].iterrows()]
    rows += [{"label": f"AutoRound {label}", "bytes": r["bytes"], **{k: r[k] for k in ("diff", "diff_low", "diff_high")}} for label, r in tuned_formats(found)]
    clear = pd.DataFrame(rows)
    clear = clear[clear["diff_low"] > -found.spec.margin].sort_values(["bytes", "diff"], ascending=[True, False])
    lengths = [r["resolved"].any() for r in (analysis.pairs(found, t) for _, t in designs(found, "length"))]
    length = "No length is told apart at one budget, so take the one that is cheapest to run" if lengths and not any(lengths) else "Lengths differ where the table above says so"
    if clear.empty:
        return f"No quantized variant's whole interval lies above -{two(found.spec.margin, 1)} points: where that loss is too much, keep bf16. {length}; spend the effort on several seeds."
    best = clear.iloc[0]
    others = clear[clear["bytes"] <= 1.01 * best["bytes"]].iloc[1:]
    also = f" (of about that size also: {md.listing(others['label'].head(4).tolist())})" if len(others) else ""
    return (f"The smallest checkpoint whose whole interval lies above -{two(found.spec.margin, 1)} points is {best['label']}, {md.megabytes(best['bytes'])} MB, "
            f"{md.points_ci(best['diff'], best['diff_low'], best['diff_high'])} points{also}. {length}. One seed ranks nothing: compare means over seeds, with an interval.")


def limits(found: Study) -> str:
    return "\n".join(f"- {line}" for line in (
        "The embedded model has 15 million parameters and was trained to read printed words; it can show how such a study must be made and how large its noise is, not what a 4B or 8B model loses.",
        "Intervals over seeds rest on as many seeds as the tables say; the standard deviation of a few seeds is itself uncertain, as its interval shows.",
        "The pages-and-queries rows let queries see a page before them, which retrieval does not: AutoRound takes the positions of a batch from its first row, so pages and queries cannot be separate rows of one batch.",
        "AutoRound leaves the padding token out of its loss. That token also ends every query ten times; text calibration never tunes on it, the pages-and-queries set does (another padding token is named to AutoRound there).",
        "Rounded weights are multiplied in bf16: what a kernel adds is not in these figures.",
        f"Left out of the run: {md.listing(found.provenance['left_out'])}." if found.provenance["left_out"] else "Every variant of the study file was run.",
        *(f"Failed: {r.variant}: {r.error}." for r in found.runs[found.runs["error"] != ""].itertuples())))


def provenance(found: Study) -> str:
    record = found.provenance
    flat = {k.replace("_", " "): v for k, v in record.items() if not isinstance(v, (dict, list)) and v is not None} | {k: v for k, v in record["packages"].items() if v}
    good = found.runs[found.runs["error"] == ""]
    times = [(f"AutoRound, {int(i)} iterations", len(some), md.number(some["make_s"].median(), 1), md.number(some["make_s"].max(), 1))
             for i, some in good[good["iters"] > 0].groupby("iters")]
    return "\n\n".join([md.table(["Property", "Value"], flat.items(), left=2),
                        f"Seconds to make a variant, {record['workers']} processes on one device at once:", md.table(["", "Variants", "Median (s)", "Longest (s)"], times),
                        f"Again: `python -m colq_utils.controlled {found.spec.name} --device cuda --workers {record['workers']}`; this report from the results: `make study`."])


def picture(found: Study, name: str, caption: str) -> str:
    path = study_plots.folder(found) / name
    return md.picture(f"{TO_FIGURES}/{found.spec.name}-study/{name}", caption) if path.exists() else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="colq_utils.report_study", description="Write the report and the figures of a study from its results.")
    parser.add_argument("study")
    try:
        print(build(analysis.load_named(parser.parse_args(arguments).study)))
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
