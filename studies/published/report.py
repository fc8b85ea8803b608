"""The published comparison and analysis again, from their transcribed tables, and what those can carry.

Two reports under results/published/reports: `comparison_4b_english.md` in the shape of the published one, and
`analysis.md` for the aggregates of the others. Every number is transcribed or recomputed from transcribed
ones; none was measured here, and both reports open by saying so. Sentences and tables are in `templates`.
"""

from itertools import combinations
from pathlib import Path

import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.report import markdown as md
from colq_utils.report import prose, stats
from studies.published import audit, plots
from studies.published import figures_data as pub
from studies.published.figures_data import LENGTHS, ORIGINAL, Published

TEMPLATES = Path(__file__).parent / "templates"
NAMES = {ORIGINAL: "Original (FP16)", **{name: name.replace("-", "=") for name in LENGTHS}}
TESTS = {"sign": "Sign test", "wilcoxon": "Wilcoxon", "randomization": "Randomization"}
DESIGN = dict(nsamples="samples", batch_size="batch size", tokens="tokens", tokens_per_step="tokens per step")


def write(output: Path, p: Published | None = None) -> list[Path]:
    """Write both reports below `output`/results, and their figures; same tables, same bytes."""
    p, folder = p or pub.load(), Path(output) / "results" / "published" / "reports"
    plots.draw(output, p)
    return [files.write_text(folder / name, text) for name, text in render(p).items()]


def render(p: Published) -> dict[str, str]:
    """File name -> text."""
    return {"comparison_4b_english.md": comparison(p), "analysis.md": analysis(p)}


def comparison(p: Published) -> str:
    """The published English comparison of the 4B, regenerated, and tests across its tasks."""
    configuration = p.configurations[p.configurations.source == p.own].loc[:, "bits":]
    improved, unchanged, degraded = zip(*(stats.win_tie_loss(p.differences[name]) for name in LENGTHS))
    across, worth = pub.across_tasks(p), pub.worth(p)
    return _filled(
        "comparison.md.j2",
        p,
        model=p.models[p.models.source == p.own].iloc[0],
        size=p.sizes[p.sizes.source == p.own].iloc[0],
        configuration=[(key, map(_setting, column)) for key, column in configuration.items()],
        mean=p.english.mean(),
        counts={"Improved": improved, "Degraded": degraded, "Unchanged": unchanged},
        across=across,
        families=[
            _family("against the original", across[across.second == ORIGINAL]),
            _family("between two lengths", across[across.second != ORIGINAL]),
        ],
        resamples=pub.RESAMPLES,
        worth=worth,
        below_one_query=int((worth.abs() < 1).sum().sum()),
        queries=p.tasks.set_index("task").english_queries,
        scores=_scores,
        against=_against,
    )


def analysis(p: Published) -> str:
    """The other published reports, recomputed where that can be: the answer first, every table folded."""
    audited, across, counted = audit.table(p), pub.across_tasks(p), pub.count_tests(p)
    averages = p.changes.assign(tasks=p.changes.scope.str.replace("english", "English"))
    english = averages[(averages.model == "4b") & (averages.scope == "english")].set_index("report")
    of = averages[averages.report == "analysis"].set_index(["model", "scope"]).scores
    lost = counted[(counted.scope == "all languages") & (counted.holm_sign < 0.05)]
    serving = audited[audited.source == "fp8_serving_report.md"]
    order = [audit.REPRODUCED, audit.ROUNDING, audit.DIFFERS, audit.AS_PUBLISHED]
    tally = audited.groupby(["source", "table", "status"], sort=False).size().unstack(fill_value=0)
    environment = p.settings[p.settings.source == "benchmark_8b_report.md"]
    return _filled(
        "analysis.md.j2",
        p,
        entries=p.counts.drop_duplicates(["model", "scope"]).set_index(["model", "scope"]).entries,
        averages=list(averages.itertuples()),
        comparison=english.loc["comparison"],
        analysis=english.loc["analysis"],
        across=across,
        clear=int((across[[f"holm_{test}" for test in TESTS]] < 0.05).any(axis=1).sum()),
        counted=counted[counted.source == "quantization_analysis_report.md"],
        lost=[f"the {r.model.upper()} at {_tokens(r.variant)}" for r in lost.itertuples()],
        audited=audited,
        status=audited.status.value_counts().reindex(order, fill_value=0),
        tally=tally[[status for status in order if status in tally]],
        open=audited[audited.status.isin([audit.ROUNDING, audit.DIFFERS])],
        scores_of={m: (of[m, "all languages"], of[m, "english"]) for m in ("8b", "4b")},
        designs=pub.designs(p),
        pairs=_pairs(pub.designs(p)),
        recipe=_recipe(p),
        environment=(environment["name"] + " " + environment.value).tolist(),
        served_model=p.models[p.models.source == "fp8_serving_report.md"]["name"].iloc[0],
        steady=[md.number(v, 0) for v in serving[serving.what.str.contains("after the first")].recomputed],
        wrong_serving=serving[serving.status == audit.DIFFERS].drop_duplicates(["what", "printed"]),
        tokens=_tokens,
        saved=pub.saved,
        printed=lambda value, digits: "-" if pd.isna(value) else f"{value:+.{digits}f}%",
        published=lambda value, spec=",.0f": "not published" if pd.isna(value) else format(value, spec),
        change=lambda scores, name: "-" if name == ORIGINAL else _percent(scores[name], scores[ORIGINAL]),
    )


def _filled(template: str, p: Published, **values) -> str:
    common = dict(p=p, md=md, names=NAMES, lengths=LENGTHS, tests=TESTS, figure=_figure)
    return prose.render(template, TEMPLATES, percent=_percent, p_holm=_p_holm, **common, **values)


def _figure(name: str) -> str:
    return md.picture(f"../../../figures/published/{name}", plots.CAPTIONS[name])


def _setting(value) -> str:
    """A value of a configuration; numbers with a gap in their column are floats."""
    if pd.isna(value):
        return "none"
    return f"{value:.0f}" if isinstance(value, float) else md.cell(value)


def _percent(new: float, old: float, digits: int = 2) -> str:
    return md.number(pub.percent(new, old), digits, True, "%")


def _p_holm(p: float, adjusted: float) -> str:
    return f"{md.p_value(p)} ({md.p_value(adjusted)})"


def _scores(row: pd.Series) -> list[str]:
    """The original's score, then score and change of each length."""
    cells = [md.number(row[ORIGINAL], 5)]
    for name in LENGTHS:
        cells += [md.number(row[name], 5), _percent(row[name], row[ORIGINAL])]
    return cells


def _family(name: str, rows: pd.DataFrame) -> dict:
    """Which differences the tests support at 5 %: taken alone, with the tests that do, and after Holm."""
    alone, kept = [], []
    for _, r in rows.iterrows():
        pair = f"{NAMES[r['first']]} against {_against(r.second)}"
        supporting = [word for test, word in TESTS.items() if r[f"p_{test}"] < 0.05]
        alone += [f"{pair} ({md.listing(supporting)})"] if supporting else []
        kept += [pair] if any(r[f"holm_{test}"] < 0.05 for test in TESTS) else []
    return {"name": name, "size": len(rows), "alone": alone, "kept": kept}


def _against(name: str) -> str:
    return "the original" if name == ORIGINAL else NAMES[name]


def _tokens(variant: str) -> str:
    return f"{int(variant.removeprefix('seqlen-')):,} tokens"


def _pairs(designs: pd.DataFrame) -> list[dict]:
    """For each two lengths of a model: what else differs between them, and what is not published of them."""
    pairs = []
    for model, group in designs.groupby("model"):
        for (_, a), (_, b) in combinations(group.iterrows(), 2):
            known = [c for c in DESIGN if pd.notna(a[c]) and pd.notna(b[c])]
            unlike = [f"{DESIGN[c]} ({a[c]:,.0f} and {b[c]:,.0f})" for c in known if a[c] != b[c]]
            hidden = [word for c, word in DESIGN.items() if c not in known]
            lengths = {"first": int(a.seqlen), "second": int(b.seqlen)}
            pairs.append({"model": model, **lengths, "unlike": unlike, "hidden": hidden})
    return pairs


def _recipe(p: Published) -> dict:
    """The recommended recipe, and with how many samples the 4B of its length was made."""
    recipe = p.configurations[p.configurations.table == "Quantization Recipe"].iloc[0]
    designs = pub.designs(p)
    used = designs[(designs.model == "4b") & (designs.seqlen == recipe.seqlen)].iloc[0]
    return {"nsamples": recipe.nsamples, "seqlen": recipe.seqlen, "used": used.nsamples}


if __name__ == "__main__":
    for path in write(ROOT):
        print(path)
