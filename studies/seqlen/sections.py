"""The folded parts of the study's report on length, seed and content: frames here, words in `templates`."""

from pathlib import Path

import pandas as pd

from colq_utils.base.config import ROOT
from colq_utils.report import markdown as md
from colq_utils.report.prose import render
from studies.seqlen import analysis, bands, drift, lengths, overlap
from studies.seqlen import plots as study_plots
from studies.seqlen.analysis import SeqlenStudy
from studies.seqlen.lengths import designs

TEMPLATES = Path(__file__).parent / "templates"
MEASURES = {
    "query_cosine": "query token cosine",
    "page_cosine": "page token cosine",
    "score_drift": "MaxSim drift per query token",
}
#: Families whose lengths are compared, and what their design is called.
DESIGNS = {"length": "one budget", "confounded": "as published"}


def page(template: str, study: SeqlenStudy, **values) -> str:
    """A template of this study, which may write differences with `points` and NDCG units with `two`."""
    shared = {
        "study": study,
        "points": points,
        "two": two,
        "p_value": md.p_value,
        "length": study.spec.length,
    }
    return render(template, TEMPLATES, **shared, **values)


def points(row: dict) -> str:
    """A difference in points with its interval."""
    return md.points_ci(row["diff"], row["low"], row["high"])


def change(row: dict) -> str:
    """A difference to the base in points with its interval."""
    return md.points_ci(row["diff"], row["diff_low"], row["diff_high"])


def two(value, digits: int = 2) -> str:
    """NDCG units as points."""
    return md.number(100 * value, digits)


def score_cells(row: dict) -> dict[str, str]:
    return {"score": md.score_ci(row["score"], row["low"], row["high"]), "change": change(row)}


def picture(study: SeqlenStudy, name: str, caption: str) -> str:
    path = study_plots.folder(study) / name
    return md.picture(f"../../../figures/{study.spec.name}-study/{name}", caption) if path.exists() else ""


def design(study: SeqlenStudy) -> str:
    rows = []
    for wanted in study.spec.sets:
        runs = study.good[study.good["set"] == wanted.id]
        if len(runs):
            row = {name: str(getattr(wanted, name)) for name in ("id", "seqlen", "blocks", "batch_rows")}
            row["content"] = "pages, then queries" if wanted.kind == "pages" else "text"
            row["tokens"] = wanted.seqlen * wanted.blocks
            row["step_tokens"] = wanted.seqlen * wanted.batch_rows
            row["iters"] = md.listing([str(i) for i in sorted(runs["iters"].unique())])
            rows.append(row | {"seeds": runs["seed"].nunique()})
    tuned = int((study.good["method"] == "autoround").sum())
    shared = {"trained": overlap.training(study.spec), "overlap": overlap.queries(study.spec)}
    return page("design.md.j2", study, rows=pd.DataFrame(rows), tuned=tuned, **shared)


def length_section(study: SeqlenStudy) -> str:
    parts = []
    for iters, table in designs(study, "length"):
        seconds = study.runs.set_index("variant")["make_s"]
        means = [
            {"length": str(study.spec.length(name))}
            | score_cells(analysis.mean_score(study, variants.tolist()))
            | {"seconds": md.number(seconds[variants].median(), 1)}
            for name, variants in table.items()
        ]
        pairs = _named(study, lengths.pairs(study, table))
        reach = zip(pairs["seed_low"], pairs["seed_high"])
        pairs = pairs.assign(
            over_seeds=[f"[{md.number(100 * a, 2, True)}, {md.number(100 * b, 2, True)}]" for a, b in reach],
            p=pairs["p"].map(md.p_value),
            detectable=pairs["mdd"].map(two),
        )
        moves = _named(study, drift.pairs(study, table))
        intervals = zip(moves["diff"], moves["low"], moves["high"])
        moves["measure"] = moves["measure"].map(MEASURES)
        moves["difference"] = [md.value_ci(*interval, 5, True) for interval in intervals]
        part = {"iters": iters, "n_seeds": len(table), "means": pd.DataFrame(means), "pairs": pairs}
        parts.append(part | {"moves": moves, "spread": lengths.anova(study, table)})
    return page("lengths.md.j2", study, parts=parts)


def _named(study: SeqlenStudy, rows: pd.DataFrame) -> pd.DataFrame:
    """Pairs of sets with their lengths and difference as text."""
    first, second = (rows[column].map(study.spec.length) for column in ("first", "second"))
    difference = [points(row) for _, row in rows.iterrows()] if "diff" in rows else ""
    return rows.assign(pair=first.astype(str) + " - " + second.astype(str), difference=difference)


def seed_section(study: SeqlenStudy) -> str:
    spreads, rows = [], []
    for family, words in DESIGNS.items():
        for iters, table in designs(study, family):
            spread = lengths.anova(study, table)
            spreads.append(spread | {"iters": iters})
            interval = f"[{two(spread['seed_sd_low'])}, {two(spread['seed_sd_high'])}]"
            row = {"design": f"{words}, {iters} iterations", "seeds": spread["seeds"]}
            row["seed_sd"] = f"{two(spread['seed_sd'])} {interval}"
            row |= {
                name: two(spread[name])
                for name in ("chance_sd", "every_query_sd", "length_sd", "expected_sd")
            }
            rows.append(row | {"p": md.p_value(spread["p"])})
    return page(
        "seeds.md.j2",
        study,
        rows=pd.DataFrame(rows),
        spread=spreads[0] if spreads else None,
        gap=lengths.single_run_gap,
        parts=lengths.seed_parts(study),
        repeated=lengths.repeated(study),
        fp32=_fp32(study),
        agreement=_agreement(study),
        published=_published(study),
        bands=_bands(study),
        against=bands.against_each(study),
    )


def _bands(study: SeqlenStudy) -> pd.DataFrame:
    """`bands.table` as text."""
    table = bands.table(study)
    return (
        table
        if table.empty
        else table.assign(
            sd=table["sd"].map(lambda value: two(value, 3)),
            band=[
                f"{md.number(100 * a, 2, True)} to {md.number(100 * b, 2, True)}"
                for a, b in zip(table["low"], table["high"])
            ],
            differ=[two(share, 2) for share in table["differ"]],
            anywhere=[two(share, 2) for share in table["anywhere"]],
        )
    )


def _fp32(study: SeqlenStudy) -> dict | None:
    """What another arithmetic does to the unrounded weights."""
    if "fp32" not in study.names:
        return None
    row = analysis.scores(study).set_index("variant").loc["fp32"]
    return {"change": change(row), "top5_kept": drift.by_variant(study)["top5_kept"]["fp32"]}


def _agreement(study: SeqlenStudy) -> pd.DataFrame | None:
    """What another device, kernel and batch do to the same weights, as text."""
    path = study.folder / "agreement.csv"
    if not path.exists():
        return None
    table = pd.read_csv(path)
    both = zip(table["score"].map(md.score), table["other_score"].map(md.score))
    return table.assign(
        equal_ndcg=[two(share, 1) for share in table["equal_ndcg"]],
        equal_rank=[two(share, 1) for share in table["equal_rank"]],
        margin_change=[md.number(value, 5) for value in table["margin_change"]],
        both=[" / ".join(pair) for pair in both],
        change=[change(row) for _, row in table.iterrows()],
    )


def _published(study: SeqlenStudy) -> pd.DataFrame | None:
    """How far apart the published means of three lengths lie, one seed each."""
    path = ROOT / "data" / "published" / "averages.csv"
    if not path.exists():
        return None
    table = pd.read_csv(path)
    table = table[table["variant"].str.startswith("seqlen-")].drop_duplicates(["model", "scope", "variant"])
    means = table.groupby(["model", "scope"])["ndcg_at_5"].agg(["min", "max"]).reset_index()
    return means.assign(
        model=means["model"].str.upper(),
        scope=means["scope"].str.replace("_", " "),
        apart=(means["max"] - means["min"]).map(two),
    )


def confounded_section(study: SeqlenStudy) -> str:
    clean, parts = dict(designs(study, "length")), []
    for iters, table in designs(study, "confounded"):
        if iters in clean:
            rows = _named(study, lengths.interaction(study, table, clean[iters]))
            for column in ("confounded", "controlled", "added"):
                rows[column] = rows[column].map(points)
            means = [
                {"set": name, "length": str(study.spec.length(name))}
                | score_cells(analysis.mean_score(study, variants.tolist()))
                for name, variants in table.items()
            ]
            part = {"iters": iters, "means": pd.DataFrame(means), "pairs": rows}
            parts.append(part | {"own_length": _against_own_length(study, table, clean[iters])})
    return page("published.md.j2", study, parts=parts)


def _against_own_length(study: SeqlenStudy, published: pd.DataFrame, clean: pd.DataFrame) -> list[str]:
    """Each published setting against the controlled set of its length."""
    texts = []
    for ours, theirs in zip(published.columns, clean.columns):
        row = _contrast(study, published[ours], clean[theirs])
        texts.append(f"{study.spec.length(theirs)}: {points(row)}")
    return texts


def _contrast(study: SeqlenStudy, first: pd.Series, second: pd.Series) -> dict | None:
    """The contrast of two arms by seed over the seeds that both have, if they are two or more."""
    first, second = analysis.shared(first, second)
    return analysis.contrast(study, first.tolist(), second.tolist()) if len(first) > 1 else None


def content_rows(study: SeqlenStudy) -> list[tuple[int, dict]]:
    """By iterations: pages and queries minus text of the same shape."""
    rows = []
    for iters in sorted(study.arm("content")["iters"].unique()):
        text = study.by_seed("length", iters=iters, set="s512")
        row = _contrast(study, study.by_seed("content", iters=iters), text)
        if row:
            rows.append((int(iters), row))
    return rows


def content_drift(study: SeqlenStudy) -> list[tuple[str, dict]]:
    """Pages and queries minus text by token cosine, t intervals over seeds, at the fewest iterations."""
    table, iters = drift.by_variant(study), content_rows(study)[0][0]
    text = study.by_seed("length", iters=iters, set="s512")
    arms = analysis.shared(study.by_seed("content", iters=iters, set="pq512"), text)
    measures = (("page_cosine", "page vectors"), ("query_cosine", "query vectors"))
    return [(words, drift.difference(table[measure], *arms)) for measure, words in measures]


def content_section(study: SeqlenStudy) -> str:
    cosines, rows = drift.by_variant(study), []
    for iters, row in content_rows(study):
        arms = study.arm("content", iters=iters), study.arm("length", iters=iters, set="s512")
        means = [cosines.loc[arm["variant"], ["query_cosine", "page_cosine"]].mean() for arm in arms]
        cells = {"iters": str(iters), "difference": points(row), "seeds": row["seeds"]}
        for measure in ("query_cosine", "page_cosine"):
            cells[measure] = " / ".join(md.number(mean[measure], 5) for mean in means)
        rows.append(cells)
    budgets = []
    for name in study.arm("budget")["set"].unique():
        iters = int(study.arm("budget", set=name)["iters"].iloc[0])
        text = study.by_seed("length", iters=iters, set="s512")
        row, wanted = _contrast(study, study.by_seed("budget", set=name), text), study.spec.set(name)
        if row:
            cells = {"tokens": wanted.seqlen * wanted.blocks, "iters": iters, "seeds": row["seeds"]}
            budgets.append(cells | {"difference": points(row)})
    longer = []
    for name in ("s256", "s512", "s1024"):
        row = _contrast(study, *(study.by_seed("length", iters=iters, set=name) for iters in (1000, 200)))
        if row:
            cells = {"length": str(study.spec.length(name)), "seeds": row["seeds"]}
            longer.append(cells | {"difference": points(row)})
    frames = {"rows": rows, "budgets": budgets, "longer": longer}
    return page("content.md.j2", study, **{name: pd.DataFrame(frame) for name, frame in frames.items()})
