"""The report of a study, from its result files alone: every number is computed here and every sentence is chosen by an interval.

``python -m studies.seqlen.report seqlen`` writes the report and the figures that it shows; with ``--against
results/tiny/evaluate/queries.parquet`` it first compares the scores with those that `evaluate` gave the same weights.
"""
import argparse
import sys
from pathlib import Path

import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError
from colq_utils.report import markdown as md
from colq_utils.report import stats
from studies.seqlen import analysis
from studies.seqlen import plots as study_plots
from studies.seqlen.analysis import Study

TO_FIGURES = "../../../figures"
LENGTHS = study_plots.LENGTHS
MEASURES = {"query_cosine": "query token cosine", "page_cosine": "page token cosine", "score_drift": "MaxSim drift a query token"}


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
    return "**Does the length matter at one budget?** By NDCG@5, " + opened("; ".join(parts))[0].lower() + opened("; ".join(parts))[1:] + " " + drift_answer(found) if parts else ""


def drift_answer(found: Study) -> str:
    """Which lengths keep query vectors closest to the base's, as far as the seeds tell them apart."""
    parts = []
    for iters, table in designs(found, "length"):
        rows = analysis.drift_pairs(found, table)
        clear = rows[rows["resolved"] & (rows["measure"] == "query_cosine")]
        said = [f"{LENGTHS[r['first' if r['diff'] > 0 else 'second']]} stays closer than {LENGTHS[r['second' if r['diff'] > 0 else 'first']]}" for _, r in clear.iterrows()]
        parts.append(f"at {iters} iterations " + (md.listing(said) if said else "no two lengths are told apart"))
    return "By the drift of query vectors, a finer measure, " + "; ".join(parts) + "."


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
    if not parts:
        return ""
    drift = [f"{what} {'stay closer to' if low > 0 else 'move further from' if high < 0 else 'are not told apart in their distance to'} bf16 (token cosine {md.value_ci(diff, low, high, 5, True)})"
             for what, diff, low, high in content_drift(found)]
    return ("**Should calibration show pages and queries?** Rows of a page and queries against text rows of the same length, budget and step size: "
            + md.listing(parts) + ". By drift, " + md.listing(drift) + ".")


def content_drift(found: Study) -> list[tuple[str, float, float, float]]:
    """Pages and queries minus text by token cosine, with t intervals over seeds, at the fewest iterations that were run."""
    drift, iters = analysis.drift(found).set_index("variant"), content_rows(found)[0][0]
    own, other = (found.arm(family, iters=iters, set=name).set_index("seed")["variant"] for family, name in (("content", "pq512"), ("length", "s512")))
    seeds, rows = own.index.intersection(other.index), []
    for measure, what in (("page_cosine", "page vectors"), ("query_cosine", "query vectors")):
        each = drift[measure][own[seeds]].to_numpy() - drift[measure][other[seeds]].to_numpy()
        reach = analysis.seed_reach(each)
        rows.append((what, each.mean(), each.mean() - reach, each.mean() + reach))
    return rows


def choice_answer(found: Study) -> str:
    return "**What should a user choose?** " + choice_section(found)


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
        means = [(LENGTHS[c], *_mean_cells(analysis.mean_score(found, table[c].tolist())), seconds(found, table[c].tolist())) for c in table.columns]
        rows = [(f"{LENGTHS[r['first']]} - {LENGTHS[r['second']]}", points(r), f"[{md.number(100 * r['seed_low'], 2, True)}, {md.number(100 * r['seed_high'], 2, True)}]",
                 md.p_value(r["p"]), two(r["mdd"]), r["resolved"]) for _, r in analysis.pairs(found, table).iterrows()]
        a = analysis.anova(found, table)
        best = md.listing([f"{LENGTHS[c]} in {n}" for c, n in a["best"].items()])
        parts += [f"### {iters} iterations, {len(table)} seeds", md.table(["Length", "NDCG@5, mean of seeds", "Change against bf16 (points)", "Median time (s)"], means),
                  md.table(["Pair", "Difference (points, over queries and seeds)", "Over seeds alone", "p (t test over seeds)", "Detectable (points)", "Told apart"], rows),
                  f"Intervals of the pairs hold for all three together (Bonferroni). Two-way analysis of variance with seeds as blocks, for these queries: "
                  f"F({a['df'][0]}, {a['df'][1]}) = {md.number(a['f'])}, p = {md.p_value(a['p'])}; the length accounts for {md.number(100 * a['share'], 0)} % of the variance between runs "
                  f"(ω²). A study of one seed would have named a different winner from seed to seed: best was {best} of {a['seeds']} seeds.",
                  "By drift from bf16, for these queries (intervals over seeds, all rows of the table together):",
                  md.table(["Measure", "Pair", "Difference", "Told apart"], [(MEASURES[r["measure"]], f"{LENGTHS[r['first']]} - {LENGTHS[r['second']]}",
                           md.value_ci(r["diff"], r["low"], r["high"], 5, True), r["resolved"]) for _, r in analysis.drift_pairs(found, table).iterrows()], left=2)]
    return "\n\n".join([*parts, picture(found, "seeds.png", "Every run as a dot, by calibration length; diamonds are means with 95 % intervals over queries and seeds")])


def seconds(found: Study, variants: list[str]) -> str:
    """Median seconds that AutoRound took for `variants`, many of them at once on the device."""
    return md.number(found.runs.set_index("variant")["make_s"][variants].median(), 1)


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
                     f"({parts['order_n']} runs; set {parts['set']}, {parts['iters']} iterations); the two are "
                     f"{'told apart' if parts['p'] < 0.05 else 'not told apart'} (F test p = {md.p_value(parts['p'])}).")
    if twice is not None:
        lines.append("A run made twice with one seed gave " + ("the same weights bit for bit: what differs between seeds is the seed." if twice else
                     "other weights: part of the spread between seeds is arithmetic that does not repeat on this device."))
    return "\n\n".join([*lines, *arithmetic(found), *published(found)])


def arithmetic(found: Study) -> list[str]:
    """What another arithmetic does to the very same weights."""
    lines, table, kept = [], analysis.scores(found).set_index("variant"), analysis.drift(found).set_index("variant")["top5_kept"]
    if "fp32" in table.index:
        lines.append(f"Arithmetic alone moves scores as well: the unrounded weights in fp32 instead of bf16 change the suite score by {md.points_ci(*table.loc['fp32', ['diff', 'diff_low', 'diff_high']])} "
                     f"points and {md.number(100 * (1 - kept['fp32']), 1)} % of the top fives. Every change against bf16 in this report carries the arithmetic of that one base.")
    path = found.folder / "agreement.csv"
    if path.exists():
        rows = [(r["variant"], r["other"], f"{r['queries']:,}", md.number(100 * r["equal_ndcg"], 1), md.number(100 * r["equal_rank"], 1), md.number(r["margin_change"], 5),
                 f"{md.score(r['score'])} / {md.score(r['other_score'])}", md.points_ci(r["diff"], r["diff_low"], r["diff_high"])) for _, r in pd.read_csv(path).iterrows()]
        lines += ["The same weights scored by the evaluate stage (through mteb, on a CPU, packed where they are quantized):",
                  md.table(["Here", "There", "Queries", "Equal NDCG@5 (%)", "Equal first rank (%)", "Mean change of the margin", "Suite score here / there", "There minus here (points)"], rows, left=2),
                  "No interval of a comparison holds such a difference: a verdict that lies this close to the margin can change with the arithmetic of its base."]
    return lines


def published(found: Study) -> list[str]:
    """How far apart the published means of three lengths lie, one seed each."""
    path = ROOT / "data" / "published" / "averages.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path)
    quantized = table[table["variant"].str.startswith("seqlen-")].drop_duplicates(["model", "scope", "variant"])
    rows = [(model.upper(), scope.replace("_", " "), two(some["ndcg_at_5"].max() - some["ndcg_at_5"].min())) for (model, scope), some in quantized.groupby(["model", "scope"])]
    return ["For scale, how far the published means of the three lengths lie apart; they are single runs, and what a seed moves in those models is not measured:",
            md.table(["Published model", "Tasks", "Largest minus smallest (points)"], rows, left=2)]


def confounded_section(found: Study) -> str:
    published, clean = dict(designs(found, "confounded")), dict(designs(found, "length"))
    lines = []
    for iters in [i for i in published if i in clean]:
        rows = analysis.interaction(found, published[iters], clean[iters])
        cells = [(f"{LENGTHS[r['first']]} - {LENGTHS[r['second']]}", points(r["confounded"]), points(r["controlled"]), points(r["added"])) for _, r in rows.iterrows()]
        means = [(p, LENGTHS[p], *_mean_cells(analysis.mean_score(found, published[iters][p].tolist()))) for p in published[iters].columns]
        lines += ["The published 4B study took 300, 600 and 560 samples in batches of 300, 200 and 80 at 256, 512 and 1024 tokens: the longer sets hold up to 7.5 times the text, "
                  f"and at 256 every step sees every sample, so that nothing is drawn; iterations were 1000. Here a tenth of each, at {iters} iterations.",
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
        made.append((label, {**analysis.mean_score(found, mine), "names": mine, "bytes": some["bytes"].iloc[0], "gain": gain}))
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
        lines += [f"By {'language of the query' if by == 'lang' else 'kind of query'} (all tasks, mean over queries):", md.table(
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
    """The smallest checkpoint whose whole interval clears the margin, with the vision tower and without it, in words."""
    table = analysis.scores(found)
    rows = [{"label": spoken(r), "vision": r["visual"] != "bf16", "names": [r["variant"]], **r[["bytes", "diff", "diff_low", "diff_high"]]}
            for _, r in table[table["family"].isin(["rtn", "float", "vision"])].iterrows()]
    rows += [{"label": f"AutoRound {label}", "vision": False, **{k: r[k] for k in ("names", "bytes", "diff", "diff_low", "diff_high")}} for label, r in tuned_formats(found)]
    every = pd.DataFrame(rows)
    clear = every[every["diff_low"] > -found.spec.margin].sort_values(["bytes", "diff"], ascending=[True, False])
    margin, parts = two(found.spec.margin, 1), []
    for some, what in ((clear, ""), (clear[~clear["vision"]], " with the vision tower left alone")):
        if some.empty:
            parts.append(f"No quantized variant{what} is shown to stay within {margin} points: where that loss is too much, keep bf16.")
        else:
            best = some.iloc[0]
            parts.append(f"The smallest checkpoint{what} whose whole interval lies above -{margin} points is {best['label']}, {md.megabytes(best['bytes'])} MB, "
                         f"{md.points_ci(best['diff'], best['diff_low'], best['diff_high'])} points{against_fp32(found, best['names'])}.")
    parts = list(dict.fromkeys(parts))
    apart = [r["resolved"].any() for r in (analysis.pairs(found, t) for _, t in designs(found, "length"))]
    parts.append("No length is told apart by NDCG@5 at one budget, so choose it by what it costs to run." if apart and not any(apart) else
                 "Lengths differ where the tables above say so." if apart else "")
    parts.append(f"These are the best of {len(every)} recipes, picked after the fact; with a single seed their order would be chance: compare means over seeds, with an interval.")
    return " ".join(filter(None, parts))


def against_fp32(found: Study, names: list[str]) -> str:
    """The same recipe against the base in fp32, whose arithmetic is not that of one bf16 run."""
    if "fp32" not in found.names:
        return ""
    other = analysis.contrast(found, names, ["fp32"] * len(names))
    return f" ({md.points_ci(other['diff'], other['low'], other['high'])} against the base computed in fp32)"


def spoken(row: pd.Series) -> str:
    """A variant that is rounded to nearest, in words."""
    where = "" if row["visual"] == "bf16" else f", vision tower {row['visual'].upper()}"
    detail = "" if not str(row["format"]).startswith("w") else f" g{row['group_size']} {'symmetric' if row['sym'] else 'asymmetric'}"
    return f"language model {str(row['format']).upper()}{detail}{where} (rounded to nearest)" if row["visual"] != "bf16" else f"{str(row['format']).upper()}{detail}, rounded to nearest"


def limits(found: Study) -> str:
    return "\n".join(f"- {line}" for line in (
        "The embedded model has 15 million parameters and was trained to read printed words; it can show how such a study must be made and how large its noise is, not what a 4B or 8B model loses.",
        "Intervals over seeds rest on as many seeds as the tables say; the standard deviation of a few seeds is itself uncertain, as its interval shows.",
        "The pages-and-queries rows let queries see a page before them, which retrieval does not: AutoRound takes the positions of a batch from its first row, so pages and queries cannot be separate rows of one batch.",
        "AutoRound leaves the padding token out of its loss. That token also ends every query ten times; text calibration never tunes on it, the pages-and-queries set does (another padding token is named to AutoRound there).",
        "Rounded weights are multiplied in bf16: what a kernel adds is not in these figures.",
        *found.provenance.get("notes", []),
        f"Left out of the run: {md.listing(found.provenance['left_out'])}." if found.provenance["left_out"] else "Every variant of the study file was run.",
        *(f"Failed: {r.variant}: {r.error}." for r in found.runs[found.runs["error"] != ""].itertuples())))


def provenance(found: Study) -> str:
    record = found.provenance
    flat = {k.replace("_", " "): v for k, v in record.items() if not isinstance(v, (dict, list)) and v is not None} | {k: v for k, v in record["packages"].items() if v}
    good = found.runs[found.runs["error"] == ""]
    times = [(f"AutoRound, {int(i)} iterations", len(some), md.number(some["make_s"].median(), 1), md.number(some["make_s"].max(), 1))
             for i, some in good[good["iters"] > 0].groupby("iters")]
    calls = [(i, c["commit"], c["workers"], c["mps"], c["variants"], md.number(c["wall_s"], 0)) for i, c in enumerate(record["calls"], 1)]
    return "\n\n".join([md.table(["Property", "Value"], flat.items(), left=2),
                        md.table(["Call", "Commit", "Processes", "MPS", "Variants asked for", "Seconds"], calls),
                        "Seconds to make a variant, with so many processes on the device at once:", md.table(["", "Variants", "Median (s)", "Longest (s)"], times),
                        f"Again: `python -m studies.seqlen.run {found.spec.name} --device cuda --workers {record['calls'][0]['workers']}`; this report from the results: `make study`."])


def picture(found: Study, name: str, caption: str) -> str:
    path = study_plots.folder(found) / name
    return md.picture(f"{TO_FIGURES}/{found.spec.name}-study/{name}", caption) if path.exists() else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="studies.seqlen.report", description="Write the report and the figures of a study from its results.")
    parser.add_argument("study")
    parser.add_argument("--against", help="queries.parquet of an experiment with the same weights: writes agreement.csv, which the report shows")
    options = parser.parse_args(arguments)
    try:
        found = analysis.load_named(options.study)
        if options.against:
            files.write_table(found.folder / "agreement.csv", analysis.agreement(found, Path(options.against)))
        print(build(found))
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
