"""The folded parts of the study's report: each function writes the body of one, from the result files alone."""

import pandas as pd

from colq_utils.base.config import ROOT
from colq_utils.report import markdown as md
from colq_utils.report import stats
from studies.seqlen import analysis, recipes
from studies.seqlen import plots as study_plots
from studies.seqlen.analysis import SeqlenStudy

TO_FIGURES = "../../../figures"
LENGTHS = study_plots.LENGTHS
MEASURES = {
    "query_cosine": "query token cosine",
    "page_cosine": "page token cosine",
    "score_drift": "MaxSim drift per query token",
}


def points(row: dict) -> str:
    """A difference in points with its interval."""
    return md.points_ci(row["diff"], row["low"], row["high"])


def two(value, digits: int = 2) -> str:
    """NDCG units as points."""
    return md.number(100 * value, digits)


# --- sections ------------------------------------------------------------------------------------------------------------


def budget_sentence(study: SeqlenStudy, iters: int) -> str:
    """Each published setting against the controlled set of its length."""
    published, clean = dict(designs(study, "confounded"))[iters], dict(designs(study, "length"))[iters]
    parts = []
    for p, c in zip(published.columns, clean.columns):
        seeds = published.index.intersection(clean.index)
        r = analysis.contrast(study, published.loc[seeds, p].tolist(), clean.loc[seeds, c].tolist())
        parts.append(f"{LENGTHS[c]}: {points(r)}")
    return "Against the controlled set of its own length: " + "; ".join(parts) + " points."


def single_run_gap(spread: dict) -> float:
    """The difference of two single runs (NDCG units) that the seed alone exceeds in one case of twenty; `spread` as from `analysis.anova`."""
    return 1.96 * 2**0.5 * spread["seed_sd"]


def content_drift(study: SeqlenStudy) -> list[tuple[str, float, float, float]]:
    """Pages and queries minus text by token cosine, with t intervals over seeds, at the fewest iterations that were run."""
    drift, iters = analysis.drift(study).set_index("variant"), content_rows(study)[0][0]
    own, other = (
        study.arm(family, iters=iters, set=name).set_index("seed")["variant"]
        for family, name in (("content", "pq512"), ("length", "s512"))
    )
    seeds, rows = own.index.intersection(other.index), []
    for measure, what in (("page_cosine", "page vectors"), ("query_cosine", "query vectors")):
        each = drift[measure][own[seeds]].to_numpy() - drift[measure][other[seeds]].to_numpy()
        reach = analysis.seed_reach(each)
        rows.append((what, each.mean(), each.mean() - reach, each.mean() + reach))
    return rows


def design(study: SeqlenStudy) -> str:
    rows = []
    for s in study.spec.sets:
        chosen = study.runs[(study.runs["set"] == s.id) & (study.runs["error"] == "")]
        if len(chosen):
            rows.append(
                (
                    s.id,
                    "pages, then queries" if s.kind == "pages" else "text",
                    s.seqlen,
                    s.blocks,
                    s.batch_rows,
                    f"{s.seqlen * s.blocks:,}",
                    f"{s.seqlen * s.batch_rows:,}",
                    md.listing([f"{i}" for i in sorted(chosen["iters"].unique())]),
                    chosen["seed"].nunique(),
                )
            )
    good = study.runs[study.runs["error"] == ""]
    tuned = int((good["method"] == "autoround").sum())
    return md.document(
        f"{len(good)} variants of `{study.spec.model.path}`, {tuned} of them tuned by AutoRound {study.provenance['packages']['auto-round']}, "
        f"each scored on {len(study.asked):,} queries, {study.n_queries:,} of them in the {len(study.draws.strata)} task × language entries whose mean is the suite score. "
        f"Everything but the weights is shared: device ({good['device'].iloc[0]}), bf16, attention, page features, queries.",
        "Weights are rounded and stored as the bf16 numbers that the packed integers and scales stand for (a test checks that they equal what AutoRound packs), so no kernel enters the "
        "comparison. FP8 (e4m3: one scale per output channel for weights, one per token for activations) and MXFP4 (weights, blocks of 32) are rounded the same way, in plain torch. "
        "A seed draws the calibration text (which passages, in which order) and AutoRound's batches; the variants of one seed share their text, "
        "so that lengths are compared seed by seed. 'Points' are NDCG@5 × 100; brackets are 95 % intervals over queries (translations of a query drawn together) "
        "and, where AutoRound is involved, over seeds too.",
        md.table(
            [
                "Calibration set",
                "Content",
                "Tokens per row",
                "Rows",
                "Rows per step",
                "Tokens",
                "Tokens per step",
                "Iterations",
                "Seeds",
            ],
            rows,
            left=2,
        ),
    ).strip()


def designs(study: SeqlenStudy, family: str):
    """Iterations and blocks (a row a seed, a column a set) of a family that has at least two seeds."""
    for iters in sorted(study.arm(family)["iters"].unique()):
        table = analysis.blocks(study, family, iters)
        if len(table) >= 2 and table.shape[1] >= 2:
            yield int(iters), table


def length_section(study: SeqlenStudy) -> str:
    parts = []
    for iters, table in designs(study, "length"):
        means = [
            (
                LENGTHS[c],
                *_mean_cells(analysis.mean_score(study, table[c].tolist())),
                seconds(study, table[c].tolist()),
            )
            for c in table.columns
        ]
        rows = [
            (
                f"{LENGTHS[r['first']]} - {LENGTHS[r['second']]}",
                points(r),
                f"[{md.number(100 * r['seed_low'], 2, True)}, {md.number(100 * r['seed_high'], 2, True)}]",
                md.p_value(r["p"]),
                two(r["mdd"]),
                r["resolved"],
            )
            for _, r in analysis.pairs(study, table).iterrows()
        ]
        a = analysis.anova(study, table)
        best = md.listing([f"{LENGTHS[c]} in {n}" for c, n in a["best"].items()])
        parts += [
            f"### {iters} iterations, {len(table)} seeds",
            md.table(
                ["Length", "NDCG@5, mean of seeds", "Change against bf16 (points)", "Median time (s)"], means
            ),
            md.table(
                [
                    "Pair",
                    "Difference (points, over queries and seeds)",
                    "Over seeds alone",
                    "p (t test over seeds)",
                    "Detectable (points)",
                    "Difference detected",
                ],
                rows,
            ),
            f"The three intervals hold together (Bonferroni). *Detectable* is the difference that would be detected with 80 % power. Two-way analysis of variance with seeds as blocks, for these queries: "
            f"F({a['df'][0]}, {a['df'][1]}) = {md.number(a['f'])}, p = {md.p_value(a['p'])}; the length accounts for {md.number(100 * a['share'], 0)} % of the variance between runs "
            f"(ω²). With one seed, the winner would have depended on the seed: the best was {best} of {a['seeds']} seeds.",
            "Drift from bf16, for these queries (intervals over seeds; they hold for all rows of the table together):",
            md.table(
                ["Measure", "Pair", "Difference", "Difference detected"],
                [
                    (
                        MEASURES[r["measure"]],
                        f"{LENGTHS[r['first']]} - {LENGTHS[r['second']]}",
                        md.value_ci(r["diff"], r["low"], r["high"], 5, True),
                        r["resolved"],
                    )
                    for _, r in analysis.drift_pairs(study, table).iterrows()
                ],
                left=2,
            ),
        ]
    return "\n\n".join(parts)


def seconds(study: SeqlenStudy, variants: list[str]) -> str:
    """Median seconds that AutoRound took for `variants`, many of them at once on the device."""
    return md.number(study.runs.set_index("variant")["make_s"][variants].median(), 1)


def _mean_cells(row: dict) -> tuple[str, str]:
    return md.score_ci(row["score"], row["low"], row["high"]), md.points_ci(
        row["diff"], row["diff_low"], row["diff_high"]
    )


def seed_section(study: SeqlenStudy) -> str:
    rows = []
    for family in ("length", "confounded"):
        for iters, table in designs(study, family):
            a = analysis.anova(study, table)
            rows.append(
                (
                    ("one budget" if family == "length" else "as published") + f", {iters} iterations",
                    a["seeds"],
                    f"{two(a['seed_sd'])} [{two(a['seed_sd_low'])}, {two(a['seed_sd_high'])}]",
                    two(a["length_sd"]),
                    two(a["expected_sd"]),
                    md.p_value(a["p"]),
                )
            )
    parts, twice = analysis.seed_parts(study), analysis.repeated(study)
    lines = [
        "### What the seed alone moves",  # other reports link to this heading
        md.table(
            [
                "Design",
                "Seeds",
                "Between seeds of one length (points)",
                "Between the lengths' means",
                "Expected from seeds alone",
                "p (F test)",
            ],
            rows,
        ),
    ]
    if rows:
        a = analysis.anova(study, next(designs(study, "length"))[1])
        lines.append(
            f"The columns are standard deviations. Two checkpoints of one recipe that differ in their seed alone are {two(single_run_gap(a))} points apart or more in one case of twenty "
            f"({next(designs(study, 'length'))[0]} iterations): a smaller difference between two single runs says nothing about the recipes."
        )
    if parts:
        lines.append(
            f"Where the seed acts: with text and batches drawn anew the standard deviation is {two(parts['both_sd'])} points [{two(parts['both_low'])}, {two(parts['both_high'])}] "
            f"({parts['both_n']} seeds); with one text and only the batches drawn anew it is {two(parts['order_sd'])} [{two(parts['order_low'])}, {two(parts['order_high'])}] "
            f"({parts['order_n']} runs; set {parts['set']}, {parts['iters']} iterations); the two are "
            f"{'different' if parts['p'] < 0.05 else 'not detectably different'} (F test p = {md.p_value(parts['p'])})."
        )
    if twice is not None:
        lines.append(
            "A run made twice with one seed gave "
            + (
                "the same weights bit for bit: what differs between seeds is the seed."
                if twice
                else "other weights: part of the spread between seeds is arithmetic that does not repeat on this device."
            )
        )
    return "\n\n".join([*lines, *arithmetic(study), *published(study)])


def arithmetic(study: SeqlenStudy) -> list[str]:
    """What another arithmetic does to the very same weights."""
    lines, table, kept = (
        [],
        analysis.scores(study).set_index("variant"),
        analysis.drift(study).set_index("variant")["top5_kept"],
    )
    if "fp32" in table.index:
        lines.append(
            f"Arithmetic alone moves scores too: the unrounded weights in fp32 instead of bf16 change the suite score by {md.points_ci(*table.loc['fp32', ['diff', 'diff_low', 'diff_high']])} "
            f"points and {md.number(100 * (1 - kept['fp32']), 1)} % of the top fives. Every change from bf16 in this report includes the arithmetic of that one base."
        )
    path = study.folder / "agreement.csv"
    if path.exists():
        rows = [
            (
                r["variant"],
                r["other"],
                f"{r['queries']:,}",
                md.number(100 * r["equal_ndcg"], 1),
                md.number(100 * r["equal_rank"], 1),
                md.number(r["margin_change"], 5),
                f"{md.score(r['score'])} / {md.score(r['other_score'])}",
                md.points_ci(r["diff"], r["diff_low"], r["diff_high"]),
            )
            for _, r in pd.read_csv(path).iterrows()
        ]
        lines += [
            "The same weights scored by the evaluate stage (through mteb, on a CPU, packed where they are quantized):",
            md.table(
                [
                    "Here",
                    "There",
                    "Queries",
                    "Equal NDCG@5 (%)",
                    "Equal first rank (%)",
                    "Mean change of the margin",
                    "Suite score here / there",
                    "There minus here (points)",
                ],
                rows,
                left=2,
            ),
            "The intervals do not cover this difference, so a verdict that lies this close to the margin can change with the device.",
        ]
    return lines


def published(study: SeqlenStudy) -> list[str]:
    """How far apart the published means of three lengths lie, one seed each."""
    path = ROOT / "data" / "published" / "averages.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path)
    quantized = table[table["variant"].str.startswith("seqlen-")].drop_duplicates(
        ["model", "scope", "variant"]
    )
    rows = [
        (model.upper(), scope.replace("_", " "), two(subset["ndcg_at_5"].max() - subset["ndcg_at_5"].min()))
        for (model, scope), subset in quantized.groupby(["model", "scope"])
    ]
    return [
        "For scale: how far apart the published means of the three lengths lie. They are single runs, and what a seed moves in those models is not measured.",
        md.table(["Published model", "Tasks", "Largest minus smallest (points)"], rows, left=2),
    ]


def confounded_section(study: SeqlenStudy) -> str:
    published, clean = dict(designs(study, "confounded")), dict(designs(study, "length"))
    lines = []
    for iters in [i for i in published if i in clean]:
        rows = analysis.interaction(study, published[iters], clean[iters])
        cells = [
            (
                f"{LENGTHS[r['first']]} - {LENGTHS[r['second']]}",
                points(r["confounded"]),
                points(r["controlled"]),
                points(r["added"]),
            )
            for _, r in rows.iterrows()
        ]
        means = [
            (p, LENGTHS[p], *_mean_cells(analysis.mean_score(study, published[iters][p].tolist())))
            for p in published[iters].columns
        ]
        lines += [
            "The published 4B study took 300, 600 and 560 samples in batches of 300, 200 and 80 at 256, 512 and 1024 tokens: the longer sets hold up to 7.5 times the text, "
            f"and at 256 tokens every step sees every sample, so the seed draws nothing. It ran 1000 iterations. Here: a tenth of each count, {iters} iterations.",
            md.table(
                ["Set", "Length", "NDCG@5, mean of seeds", "Change against bf16 (points)"], means, left=1
            ),
            md.table(["Pair", "As published (points)", "One budget (points)", "What the design adds"], cells),
            budget_sentence(study, iters),
        ]
    return "\n\n".join(lines) or md.MISSING


def content_rows(study: SeqlenStudy) -> list[tuple[int, dict]]:
    rows = []
    for iters in sorted(study.arm("content")["iters"].unique()):
        own = study.arm("content", iters=iters).set_index("seed")["variant"]
        other = study.arm("length", iters=iters, set="s512").set_index("seed")["variant"]
        shared = own.index.intersection(other.index)
        if len(shared) > 1:
            rows.append((int(iters), analysis.contrast(study, own[shared].tolist(), other[shared].tolist())))
    return rows


def content_section(study: SeqlenStudy) -> str:
    lines, drift = [], analysis.drift(study).set_index("variant")
    rows = []
    for iters, r in content_rows(study):
        own, other = (
            study.arm("content", iters=iters)["variant"].tolist(),
            study.arm("length", iters=iters, set="s512")["variant"].tolist(),
        )
        rows.append(
            (
                iters,
                points(r),
                r["seeds"],
                *(
                    f"{md.number(drift.loc[a, c].mean(), 5)} / {md.number(drift.loc[b, c].mean(), 5)}"
                    for c, (a, b) in (("query_cosine", (own, other)), ("page_cosine", (own, other)))
                ),
            )
        )
    if rows:
        lines += [
            "Each row of the set is a drawn page's prompt followed by queries (512 tokens, 4 rows per step, 65,536 tokens in all); it is compared with text of the same shape.",
            md.table(
                [
                    "Iterations",
                    "Pages and queries minus text (points)",
                    "Seeds",
                    "Query token cosine (pages+queries / text)",
                    "Page token cosine (pages+queries / text)",
                ],
                rows,
            ),
        ]
    budget = []
    for name in study.arm("budget")["set"].unique():
        own = study.arm("budget", set=name)
        other = study.arm("length", iters=own["iters"].iloc[0], set="s512").set_index("seed")["variant"]
        shared = own.set_index("seed")["variant"]
        seeds = shared.index.intersection(other.index)
        if len(seeds) > 1:
            s = study.spec.set(name)
            budget.append(
                (
                    f"{s.seqlen * s.blocks:,}",
                    int(own["iters"].iloc[0]),
                    len(seeds),
                    points(analysis.contrast(study, shared[seeds].tolist(), other[seeds].tolist())),
                )
            )
    if budget:
        lines += [
            "Other token budgets at one length (512) and step size, compared with 65,536 tokens:",
            md.table(["Tokens", "Iterations", "Seeds", "Difference (points)"], budget),
        ]
    rows = []
    for name in ("s256", "s512", "s1024"):
        many, few = (study.arm("length", iters=i, set=name).set_index("seed")["variant"] for i in (1000, 200))
        seeds = many.index.intersection(few.index)
        if len(seeds) > 1:
            rows.append(
                (
                    LENGTHS[name],
                    len(seeds),
                    points(analysis.contrast(study, many[seeds].tolist(), few[seeds].tolist())),
                )
            )
    if rows:
        lines += [
            "1000 iterations compared with 200, by length:",
            md.table(["Length", "Seeds", "1000 - 200 (points)"], rows),
        ]
    return "\n\n".join(lines) or md.MISSING


def format_section(study: SeqlenStudy) -> str:
    table = analysis.scores(study)
    plain = table[table["family"].isin(["base", "rtn", "float"])]
    rows = [
        (
            r["variant"] if r["method"] == "base" else recipes.label(study, r),
            md.megabytes(r["bytes"]),
            md.score_ci(r["score"], r["low"], r["high"]),
            "-"
            if r["variant"] == study.spec.base
            else md.points_ci(r["diff"], r["diff_low"], r["diff_high"]),
            "-"
            if r["variant"] == study.spec.base
            else recipes.verdict(r["diff_low"], r["diff_high"], study.spec.margin),
        )
        for _, r in plain.iterrows()
    ]
    tuned = [
        (
            label,
            md.megabytes(r["bytes"]),
            *_mean_cells(r),
            recipes.verdict(r["diff_low"], r["diff_high"], study.spec.margin),
            r["seeds"],
            md.points_ci(r["gain"]["diff"], r["gain"]["low"], r["gain"]["high"]) if r["gain"] else md.MISSING,
        )
        for label, r in tuned_formats(study)
    ]
    return "\n\n".join(
        [
            picture(
                study,
                "pareto.png",
                "Checkpoint size and change of NDCG@5. g128: one scale for 128 weights; asym.: asymmetric; grey: within the margin",
            ),
            f"The margin, {two(study.spec.margin, 1)} points, was fixed before the run; an interval that ends within {recipes.NEAR} points of it gets no verdict. Groups of 128, symmetric, unless named. The bytes of FP8 and MXFP4 are counted, not stored.",
            md.table(
                [
                    "Rounding to nearest",
                    "Checkpoint (MB)",
                    "NDCG@5",
                    "Change (points)",
                    "Against the margin (points)",
                ],
                rows,
            ),
            "AutoRound (512 tokens, 65,536 in all, 200 iterations), means over seeds:",
            md.table(
                [
                    "AutoRound",
                    "Checkpoint (MB)",
                    "NDCG@5",
                    "Change (points)",
                    "Against the margin (points)",
                    "Seeds",
                    "Against RTN of the same format (points)",
                ],
                tuned,
            ),
        ]
    )


def tuned_formats(study: SeqlenStudy) -> list[tuple[str, dict]]:
    """AutoRound by format, group size and symmetry at 200 iterations on s512: mean over seeds, and gain over rounding to nearest."""
    table = study.runs[
        (study.runs["error"] == "")
        & study.runs["family"].isin(["length", "tuned"])
        & (study.runs["set"] == "s512")
        & (study.runs["iters"] == 200)
    ]
    formats = []
    for (form, group, sym), subset in table.groupby(["format", "group_size", "sym"], sort=False):
        twin = study.arm("rtn", format=form, group_size=group, sym=sym)["variant"].tolist()
        chosen = subset["variant"].tolist()
        gain = analysis.contrast(study, chosen, twin * len(chosen)) if twin else None
        label = f"{form.upper()}, groups of {group}{'' if sym else ', asymmetric'}"
        formats.append(
            (
                label,
                {
                    **analysis.mean_score(study, chosen),
                    "names": chosen,
                    "bytes": subset["bytes"].iloc[0],
                    "gain": gain,
                },
            )
        )
    return sorted(formats, key=lambda pair: -pair[1]["score"])


def vision_section(study: SeqlenStudy) -> str:
    table = analysis.scores(study).set_index("variant")
    chosen = table[table["family"] == "vision"]
    if chosen.empty:
        return md.MISSING
    rows = [
        (
            f"language model {r['format'].upper()}, vision tower {r['visual'].upper()}",
            md.megabytes(r["bytes"]),
            md.points_ci(r["diff"], r["diff_low"], r["diff_high"]),
            recipes.verdict(r["diff_low"], r["diff_high"], study.spec.margin),
        )
        for _, r in chosen.iterrows()
    ]
    if "w4-rtn" in table.index:
        r = table.loc["w4-rtn"]
        rows.append(
            (
                "language model W4, vision tower BF16",
                md.megabytes(r["bytes"]),
                md.points_ci(r["diff"], r["diff_low"], r["diff_high"]),
                recipes.verdict(r["diff_low"], r["diff_high"], study.spec.margin),
            )
        )
    return (
        "The linear layers of the vision tower are rounded to nearest as well (groups of 128, symmetric); its position table and patch embedding stay in bf16.\n\n"
        + md.table(["Rounded", "Checkpoint (MB)", "Change (points)", "Against the margin (points)"], rows)
    )


def sensitivity_section(study: SeqlenStudy) -> str:
    table = analysis.sensitivity(study)
    if table.empty:
        return md.MISSING
    lines = []
    for family, what in (("layers", "Decoder layer"), ("kinds", "Linear")):
        chosen = table[table["family"] == family]
        cells = {f: chosen[chosen["format"] == f].set_index("scope") for f in ("w4", "w2")}
        rows = [
            (
                scope,
                *(
                    md.points_ci(*cells[f].loc[scope, ["diff", "diff_low", "diff_high"]])
                    for f in ("w4", "w2")
                ),
                *(md.number(1 - cells["w2"].loc[scope, c], 4) for c in ("query_cosine", "page_cosine")),
            )
            for scope in dict.fromkeys(chosen["scope"])
        ]
        lines.append(
            md.table(
                [
                    f"{what} rounded alone",
                    "W4 (points)",
                    "W2 (points)",
                    "Query drift at W2 (1 - cosine)",
                    "Page drift at W2",
                ],
                rows,
            )
        )
    worst = {
        f: table[(table["family"] == f) & (table["format"] == "w2")].sort_values("diff")
        for f in ("layers", "kinds")
    }
    said = [
        f"{w['scope'].iloc[0]} ({md.points_ci(*w.iloc[0][['diff', 'diff_low', 'diff_high']])} points at W2)"
        for w in worst.values()
    ]
    four = table[table["format"] == "w4"]
    clear = int(stats.resolved(four["diff_low"], four["diff_high"]).sum())
    return "\n\n".join(
        [
            f"One part is rounded at a time; everything else stays in bf16. Most is lost in {md.listing(said)}. At W4 we detect a loss or gain for {clear} of {len(four)} parts.",
            picture(study, "sensitivity.png", "One part of the language model rounded at a time"),
            *lines,
        ]
    )


def drift_section(study: SeqlenStudy) -> str:
    wanted, drift = study_plots.groups(study), analysis.drift(study).set_index("variant")
    rows = []
    for label, variants in wanted.items():
        subset = drift.loc[variants]
        rows.append(
            (
                label,
                md.number(subset["query_cosine"].mean(), 5),
                md.number(subset["page_cosine"].mean(), 5),
                md.number(subset["page_cosine_min"].min(), 3),
                md.number(subset["score_drift"].mean(), 5),
                md.number(100 * subset["top5_kept"].mean(), 1),
                int(subset["not_finite"].sum()),
            )
        )
    broken = int(drift["not_finite"].sum())
    few = {
        label: wanted[label]
        for label in ("W4", "W4 AutoRound, 512 tokens, 200 it.", "FP8", "MXFP4", "W3", "W2")
        if label in wanted
    }
    lines = [
        f"NaN or infinite numbers, counted over all vectors of all variants: {broken}.",
        picture(study, "drift.png", "Drift of vectors, scores and top five by format"),
        "Formats are rounded to nearest in groups of 128 unless they say otherwise; it. = iterations of AutoRound; FP8 covers weights and activations.",
        md.table(
            [
                "Variant",
                "Query token cosine",
                "Page token cosine",
                "Least page token cosine",
                "MaxSim drift per query token",
                "Top five kept (%)",
                "NaN, Inf",
            ],
            rows,
        ),
    ]
    for by, title in (("lang", "Language"), ("kind", "Kind of query")):
        table = analysis.drift_by(study, few, by)
        lines += [
            f"By {'language of the query' if by == 'lang' else 'kind of query'} (all tasks, mean over queries):",
            md.table(
                [title, "Queries", *(f"{label}: change (points)" for label in few)],
                [
                    (
                        value,
                        int(subset["n"].iloc[0]),
                        *(
                            md.points_ci(*subset.set_index("group").loc[label, ["diff", "low", "high"]])
                            for label in few
                        ),
                    )
                    for value, subset in table.groupby(by)
                ],
            ),
            md.table(
                [title, *(f"{label}: cosine / MaxSim drift / top five kept (%)" for label in few)],
                [
                    (
                        value,
                        *(
                            f"{md.number(r['query_cosine'], 4)} / {md.number(r['score_drift'], 4)} / {md.number(100 * r['top5_kept'], 1)}"
                            for r in (subset.set_index("group").loc[label] for label in few)
                        ),
                    )
                    for value, subset in table.groupby(by)
                ],
            ),
        ]
    pages = analysis.page_drift(study, few)
    lines += [
        "Page tokens by language and kind of page (mean cosine / least):",
        md.table(
            ["Language", "Pages", *few],
            [
                (
                    lang,
                    "scanned" if scanned else "clean",
                    *(
                        f"{md.number(r['cosine_mean'], 4)} / {md.number(r['cosine_min'], 3)}"
                        for r in (subset.set_index("group").loc[label] for label in few)
                    ),
                )
                for (lang, scanned), subset in pages.groupby(["lang", "scanned"])
            ],
            left=2,
        ),
    ]
    return "\n\n".join(lines)


def power_section(study: SeqlenStudy) -> str:
    table = analysis.scores(study).set_index("variant")
    rows = (
        [
            (
                "one variant against bf16 (W4 RTN), queries alone",
                two(stats.minimal_detectable(table.loc["w4-rtn", "diff_se"])),
            )
        ]
        if "w4-rtn" in table.index
        else []
    )
    for family in ("length", "confounded"):
        for iters, blocks in designs(study, family):
            r = analysis.pairs(study, blocks)
            rows.append(
                (
                    f"two lengths, {'one budget' if family == 'length' else 'as published'}, {iters} iterations, {len(blocks)} seeds each, three pairs tested together",
                    two(r["mdd"].max()),
                )
            )
    return "This study reliably detects (80 % power) true differences of at least:\n\n" + md.table(
        ["Comparison", "Difference (points)"], rows
    )


def against_fp32(study: SeqlenStudy, names: list[str]) -> str:
    """The same recipe against the base in fp32, whose arithmetic is not that of one bf16 run."""
    if "fp32" not in study.names:
        return ""
    other = analysis.contrast(study, names, ["fp32"] * len(names))
    return f" ({md.points_ci(other['diff'], other['low'], other['high'])} against the base computed in fp32)"


def limits(study: SeqlenStudy) -> str:
    return "\n".join(
        f"- {line}"
        for line in (
            "The demo model has 15 million parameters and was trained to read printed words. It shows how such a study has to be made and how large its noise is, not what a 4B or 8B model loses.",
            "Intervals over seeds rest on as many seeds as the tables say; the standard deviation of a few seeds is itself uncertain, as its interval shows.",
            "The pages-and-queries rows let queries see a page before them, which retrieval does not: AutoRound takes the positions of a batch from its first row, so pages and queries cannot be separate rows of one batch.",
            "AutoRound leaves the padding token out of its loss. That token also ends every query ten times; text calibration never tunes on it, the pages-and-queries set does (another padding token is named to AutoRound there).",
            "Rounded weights are multiplied in bf16: whatever a 4-bit kernel adds or changes is not in these numbers.",
            *study.provenance.get("notes", []),
            f"Left out of the run: {md.listing(study.provenance['left_out'])}."
            if study.provenance["left_out"]
            else "Every variant of the study file was run.",
            *(f"Failed: {r.variant}: {r.error}." for r in study.runs[study.runs["error"] != ""].itertuples()),
        )
    )


def provenance(study: SeqlenStudy) -> str:
    record = study.provenance
    flat = {
        k.replace("_", " "): v for k, v in record.items() if not isinstance(v, (dict, list)) and v is not None
    } | {k: v for k, v in record["packages"].items() if v}
    good = study.runs[study.runs["error"] == ""]
    times = [
        (
            f"AutoRound, {int(i)} iterations",
            len(subset),
            md.number(subset["make_s"].median(), 1),
            md.number(subset["make_s"].max(), 1),
        )
        for i, subset in good[good["iters"] > 0].groupby("iters")
    ]
    calls = [
        (i, c["commit"], c["workers"], c["mps"], c["variants"], md.number(c["wall_s"], 0))
        for i, c in enumerate(record["calls"], 1)
    ]
    return "\n\n".join(
        [
            md.table(["Property", "Value"], flat.items(), left=2),
            md.table(["Call", "Commit", "Processes", "MPS", "Variants asked for", "Seconds"], calls),
            "Seconds to make one variant, with that many processes sharing the device:",
            md.table(["", "Variants", "Median (s)", "Longest (s)"], times),
            f"To run it again: `python -m studies.seqlen.run {study.spec.name} --device cuda --workers {record['calls'][0]['workers']}`. To make this report again from the results: `make study`.",
        ]
    )


def picture(study: SeqlenStudy, name: str, caption: str) -> str:
    path = study_plots.folder(study) / name
    return md.picture(f"{TO_FIGURES}/{study.spec.name}-study/{name}", caption) if path.exists() else ""
