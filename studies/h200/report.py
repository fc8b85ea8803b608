"""benchmark_4b.md and benchmark_8b.md: speed and memory on one GPU, the answer first and every detail folded below it.

Sentences are chosen by the measured ratios and their intervals. Reads the inspect and benchmark stages alone;
the folded tables, which include every row of the published benchmark, come from `tables` and `detail`.
"""

from pathlib import Path

from colq_utils.base import config, files
from colq_utils.base.config import Experiment
from colq_utils.report import markdown as md
from colq_utils.report.build import update_readme
from studies.h200 import detail, tables, targets
from studies.h200.speed import KINDS, PAGES, PUBLISHED, QUERIES, Speed
from studies.h200.tables import SPEED_MARKER, headline

#: Title of a folded part and the function that writes it.
FOLDED = (
    ("Targets: which were met, which were missed and why", targets.text),
    ("All speed ratios with intervals", tables.ratios_table),
    ("Which variant is fastest, workload by workload", tables.recommendations),
    ("Memory for text queries, with the published figures", tables.memory_summary),
    ("Throughput for text queries, with the published figures", tables.throughput_summary),
    ("Text queries as published, every row", tables.as_published),
    ("Text queries of real lengths and pages, every batch size", tables.workloads),
    ("Loading and the first call", tables.loading),
    ("Where the time of a call goes", detail.profile),
    ("Predicted and measured bytes", detail.predicted),
    ("Eight-bit options for the embedding table and the vision tower", detail.options),
    ("Why 4 bits are slower or faster", detail.why),
    ("Scoring: MaxSim of queries against pages", detail.scoring),
    ("What quantizing costs", detail.cost),
    ("Do the fast path and the plain path agree?", detail.agreement),
    ("4B and 8B", tables.sizes),
    ("Variants and their kernels", tables.overview),
    ("How it was measured", tables.notes),
    ("Test environment", tables.environment),
    ("How to run it again", tables.reproduction),
    ("More figures", tables.figures),
)


def write(experiment: Experiment) -> Path:
    """Write the report into results/<experiment>/reports/.

    Raises:
        ColqError: the benchmark stage has not run.
    """
    return files.write_text(
        experiment.results("reports") / f"benchmark_{experiment.model.size}.md", text(Speed(experiment))
    )


def text(speed: Speed) -> str:
    """The whole report."""
    return md.document(
        f"# Benchmark: {speed.experiment.title}",
        "## The question",
        _question(speed),
        "## The answer",
        _answer(speed),
        "## The numbers",
        _numbers(speed),
        tables.picture(speed, "gemms.png"),
        "## What was not measured",
        _not_measured(speed),
        *(md.fold(title, part(speed)) for title, part in FOLDED),
    )


def _question(speed: Speed) -> str:
    size, weights = speed.experiment.model.size.upper(), "random weights in the published dimensions"
    what = weights if speed.experiment.model.is_random else f"`{speed.experiment.model.path}`"
    return (
        f"How fast is the {size} retriever on one {speed.environment.get('gpu')}, and how much memory does it take, in bf16, in FP8 and "
        f"with 4-bit weights (W4A16)? The model has {what}, so speed and bytes can be measured and retrieval quality cannot.\n\n"
        "*Plain* is transformers' own forward pass. *Fast* is the encode path of this repository: matrix multiplications (GEMMs) that share "
        "an input are stacked, each element-wise step between them is one kernel, queries are packed without padding, and calls are "
        "recorded as CUDA graphs. A speed ratio of 2 means half the time; brackets are 95 % intervals of the ratio of medians."
    )


def _answer(speed: Speed) -> str:
    lines = (
        _path_answer(speed),
        _four_bit_answer(speed),
        _fp8_answer(speed),
        _memory_answer(speed),
        _target_answer(speed),
    )
    return "\n".join(f"- {line}" for line in lines if line) + "\n\n" + _rounds(speed)


def _ratios(speed: Speed, ours: str, theirs: str, loads) -> dict[str, tuple[float, float, float]]:
    """Speed ratio of two variants with its interval by workload in words, of those that were measured."""
    values = {words: targets.ratio(ours, theirs, kind, batch)(speed) for words, kind, batch in loads}
    return {words: value for words, value in values.items() if value is not None}


def _said(values: dict) -> str:
    return md.listing([f"{md.value_ci(*value, 2)} for {words}" for words, value in values.items()])


def _path_answer(speed: Speed) -> str:
    values = _ratios(
        speed, "base", "eager", (("1 query", QUERIES, 1), ("32 queries", QUERIES, 32), ("8 pages", PAGES, 8))
    )
    if not values:
        return ""
    title = (
        "The fast path is faster."
        if min(low for _, low, _ in values.values()) > 1
        else "The fast path is not always faster."
    )
    return (
        f"**{title}** In bf16 its speed relative to the plain path is {_said(values)}. With few items the "
        "plain path waits for the host processor, so that ratio says as much about this host as about the GPU."
    )


LOADS = (
    ("1 query", QUERIES, 1),
    ("8 queries", QUERIES, 8),
    ("32 queries", QUERIES, 32),
    ("128 queries", QUERIES, 128),
    ("8 pages", PAGES, 8),
)
#: What a difference has to be to count in a headline: speeds of one sweep differ by a few per cent from
#: another's.
CLEAR = 1.05


def _four_bit_answer(speed: Speed) -> str:
    values = _ratios(speed, "w4", "base", LOADS)
    if not values:
        return ""
    faster = [words for words, (_, low, _) in values.items() if low > CLEAR]
    title = (
        "4 bits are faster for small calls only."
        if faster and "1 query" in faster and len(faster) < len(values)
        else ("4 bits are faster throughout." if faster else "4 bits are not faster.")
    )
    why = (
        (
            " A small call waits for weights to be read, and 4 bits leave fewer bytes to read; a large one waits for multiplications, "
            "which are the same."
        )
        if "only" in title
        else ""
    )
    return f"**{title}** The speed of W4A16 relative to bf16 on the same path is {_said(values)}.{why}"


def _fp8_answer(speed: Speed) -> str:
    values = _ratios(speed, "fp8", "base", LOADS)
    if not values:
        return ""
    faster = [words for words, (_, low, _) in values.items() if low > CLEAR]
    large = {"128 queries", "8 pages"} & set(values)
    title = (
        "FP8 is faster for large calls."
        if large and large <= set(faster)
        else "FP8 is faster for some calls."
        if faster
        else "FP8 is not faster."
    )
    return f"**{title}** Its speed relative to bf16 on the same path is {_said(values)}."


def _memory_answer(speed: Speed) -> str:
    peaks = [(name, speed.peak(name, PUBLISHED)) for name in (speed.base, speed.w4, speed.small) if name]
    peaks = [(name, peak) for name, peak in peaks if peak]
    if len(peaks) < 2:
        return ""
    first = peaks[0][1]
    return (
        "**Memory.** Encoding text queries takes "
        + md.listing(
            [
                f"{peak / 1e9:.2f} GB in {tables.spoken(speed, name)}"
                + ("" if peak == first else f" (−{100 * (1 - peak / first):.0f} %)")
                for name, peak in peaks
            ]
        )
        + " at its peak."
    )


def _target_answer(speed: Speed) -> str:
    table = targets.reached(speed)
    known = table[table.met.notna()]
    missed = [row.what for row in known.itertuples() if not row.met]
    return f"**Targets.** Of {len(known)} targets set for this size, {len(known) - len(missed)} were met" + (
        f"; missed: {'; '.join(missed)}." if missed else "."
    )


def _rounds(speed: Speed) -> str:
    rounds = speed.samples.groupby("variant")["round"].nunique()
    count = "–".join(dict.fromkeys(map(str, sorted(rounds))))
    return f"Each variant was timed in {count} fresh process{'' if count == '1' else 'es'}. " + (
        "The intervals therefore cover the calls of that process, not another process or machine."
        if rounds.max() == 1
        else "The intervals cover processes and calls, but so few processes make them too narrow; another machine is not covered."
    )


def _numbers(speed: Speed) -> str:
    """One row per variant: four workloads and the peak."""
    columns = ((QUERIES, 1), (QUERIES, 8), (QUERIES, 32), (PAGES, 8))
    rows = []
    for name in tables.shown(speed):
        cells = [speed.row(name, *column) for column in columns]
        peak = speed.peak(name, PUBLISHED)
        rows.append(
            (
                tables.spoken(speed, name),
                *(None if cell is None else tables.digits(1e3 * cell.latency_s_median) for cell in cells),
                None if peak is None else md.number(peak / 1e9, 2),
            )
        )
    header = [
        "Variant",
        "1 query (ms)",
        "8 queries (ms)",
        "32 queries (ms)",
        "8 pages (ms)",
        "Peak memory, queries (GB)",
    ]
    return md.table(header, rows) + (
        "\n\nMedian time of a forward pass; queries have the lengths of real ones, pages 1,280 visual tokens at most. GB are 10⁹ bytes. "
        "FP8 weights are made from the bf16 checkpoint on the GPU, which has to hold that once."
    )


def _not_measured(speed: Speed) -> str:
    lines = [
        "Retrieval quality: what a scheme does to it is measured by the evaluation stage on a trained checkpoint."
    ]
    lines += list(speed.environment.get("left_out", []))
    lines += [f"{md.listing([f'`{name}`' for name in speed.missing])}."] if speed.missing else []
    failed = speed.rows[speed.rows.error.fillna("") != ""]
    lines += [
        f"`{row.variant}`, {KINDS.get(row.kind, row.kind)}, batch {int(row.batch)}: {row.error}"
        for _, row in failed.iterrows()
    ]
    return "\n".join(f"- {line}" for line in lines)


if __name__ == "__main__":
    print(update_readme(config.ROOT / "README.md", headline(Speed(config.load("h200-8b"))), SPEED_MARKER))
