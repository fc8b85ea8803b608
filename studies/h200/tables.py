"""The folded tables of the GPU report: every measured row, with the published figures of an A100 beside it.

What the published benchmark lacked (the kernel of each row, the roofline limit, real query lengths, pages,
load time) is here as well. Recommendations are picked from the tables by code, workload by workload.
"""

import numpy as np
import pandas as pd

from colq_utils.base.backends import BACKENDS
from colq_utils.report import markdown as md
from colq_utils.report import stats
from studies.h200.speed import KINDS, PAGES, PUBLISHED, QUERIES, Speed
from studies.published import figures_data as published

#: Around the snippet of `headline` in the README.
SPEED_MARKER = "<!-- speed -->"
#: The published reports' MB are torch's bytes over 2^20.
MIB = 1 << 20
ITEMS, CALLS = 80, 10


def reproduction(speed: Speed) -> str:
    name, gemms = speed.experiment.name, speed.read("benchmark/gemms.csv")
    marlin = gemms is not None and "marlin" in set(gemms.kernel)
    install = f".venv/bin/python -m {BACKENDS['marlin'].install.split(' (')[0]}\n" if marlin else ""
    return (
        f"```bash\nmake .venv/.installed\n.venv/bin/python -m pip install -c requirements.lock -e '.[cuda]'\n{install}make benchmark EXPERIMENT={name}\nmake summary EXPERIMENT={name}\n```\n\n"
        "`make` installs the versions of requirements.lock; the figures above are of those named under *Test environment*."
    )


def overview(speed: Speed) -> str:
    exp = speed.experiment
    kernels = speed.rows.drop_duplicates("variant").set_index("variant").kernel
    rows = [
        (
            f"`{name}`",
            _words(exp.by_id[name]),
            speed.rows[speed.rows.variant == name].encode.iloc[0],
            kernels[name],
        )
        for name in speed.names
    ]
    return (
        f"The {exp.model.size.upper()} model {'in random weights of the published dimensions' if exp.model.is_random else f'checkpoint `{exp.model.path}`'}, "
        "as published (transformers' own forward pass in bf16) and in the forms below. `fast` is the encode path of this repository.\n\n"
        + md.table(["Variant", "Weights", "Encode path", "Kernel of the language model"], rows, left=4)
    )


def _words(spec) -> str:
    parts = [spec.scheme.upper()]
    parts += ["embedding table in int8"] if spec.embedding else []
    parts += ["vision tower in FP8"] if spec.vision else []
    return ", ".join(parts)


def notes(speed: Speed) -> str:
    notes = [
        "The published 8B figures were taken on an A100 with a fallback kernel. Measured figures compare with each other; rows and columns marked "
        "*published* are of that machine and compare only with each other.",
        "Only the language model is quantized, unless a row says otherwise. The unused lm_head is not loaded by any variant here; the published "
        "memory figures include it.",
        "The forward pass is timed by CUDA events, with the inputs already on the GPU. Loading and the first call are reported apart. Times are medians unless a column says mean.",
        "Tokens are those of the texts and pages. Padding, which the plain path computes too, is counted neither in them nor in a roofline limit.",
        "In small batches the plain path waits for the host processor: those times say more about this host than about the GPU.",
        "The roofline limit is the time that reading the weights at the measured copy rate would take, or that multiplying at the measured rate of each part's format "
        "would take (attention in bf16), whichever is longer.",
    ]
    return "\n".join(f"- {note}" for note in notes)


def environment(speed: Speed) -> str:
    env, limits = speed.environment, speed.read("benchmark/ceilings.json") or {}
    rows = [
        ("GPU", env.get("gpu"), "NVIDIA A100-SXM4-40GB"),
        ("CUDA", env.get("cuda"), "12.8"),
        ("Attention", env.get("attention"), "SDPA"),
        ("torch", env["packages"].get("torch"), md.MISSING),
        ("transformers", env["packages"].get("transformers"), md.MISSING),
        *(
            (name, env["packages"][name], "-")
            for name in ("humming-kernels", "gptqmodel")
            if env["packages"].get(name)
        ),
        ("Weights", env.get("weights"), "published"),
        ("Commit", env.get("commit"), "-"),
        (
            "Rounds, a fresh process each",
            "–".join(dict.fromkeys(map(str, sorted(speed.samples.groupby("variant")["round"].nunique())))),
            1,
        ),
    ]
    rates = [("Copy on the GPU (TB/s, read and written)", limits.get("copy_bytes_per_s"), 1e12)]
    rates += [
        (f"GEMM, {name} (TFLOP/s)", limits.get(f"{name}_flop_per_s"), 1e12)
        for name in ("bfloat16", "fp8", "float32")
    ]
    return (
        md.table(["Parameter", "Here", "Published"], rows, left=3)
        + "\n\n"
        + md.table(
            ["Measured ceiling", "Rate"],
            [(name, None if value is None else md.number(value / unit, 2)) for name, value, unit in rates],
        )
    )


#: What a user decides on: label, (variant, workload, batch), compared with (variant, workload, batch); items
#: a second, larger is better.
def _comparisons(speed: Speed) -> list[tuple]:
    eager, base, w4, fp8, small = speed.eager, speed.base, speed.w4, speed.fp8, speed.small
    eight = "FP8 with the vision tower" if fp8 and speed.experiment.by_id[fp8].vision else "FP8"
    pairs = [("W4A16, against the base as published", w4, eager, PUBLISHED, 8)]
    pairs += [("W4A16, against bf16 on the same path", w4, base, QUERIES, b) for b in (1, 8, 32, 128)]
    pairs += [
        ("W4A16, against bf16 on the same path", w4, base, PUBLISHED, 8),
        ("W4A16, all eight-bit options, against bf16", small, base, QUERIES, 8),
    ]
    pairs += [(f"{eight}, against bf16 on the same path", fp8, base, QUERIES, b) for b in (1, 8, 32, 128)]
    pairs += [
        ("bf16 on the fast path, against the base as published", base, eager, kind, b)
        for kind, b in ((PUBLISHED, 8), (QUERIES, 32), (QUERIES, 128), (PAGES, 1), (PAGES, 8))
    ]
    pairs += [
        ("W4A16, against bf16 on the same path", w4, base, PAGES, 8),
        (f"{eight}, against bf16 on the same path", fp8, base, PAGES, 8),
    ]
    return pairs


def ratios(speed: Speed) -> pd.DataFrame:
    """Speed ratios of medians with 95 % intervals (`stats.median_ratio`): label, kind, batch, ratio, low, high."""
    rows = []
    for label, ours, theirs, kind, batch in _comparisons(speed):
        if (
            ours
            and theirs
            and speed.row(ours, kind, batch) is not None
            and speed.row(theirs, kind, batch) is not None
        ):
            ratio, low, high = stats.median_ratio(
                speed.calls(theirs, kind, batch), speed.calls(ours, kind, batch)
            )
            rows.append(
                {"label": label, "kind": kind, "batch": batch, "ratio": ratio, "low": low, "high": high}
            )
    return pd.DataFrame(rows, columns=["label", "kind", "batch", "ratio", "low", "high"])


def ratios_table(speed: Speed) -> str:
    rows = [
        (r.label, KINDS[r.kind], int(r.batch), md.value_ci(r.ratio, r.low, r.high, 2))
        for _, r in ratios(speed).iterrows()
    ]
    base = speed.row(speed.base, PUBLISHED, 8)
    floor = (
        ""
        if base is None
        else (
            f"\n\nThe fast bf16 path takes {md.number(base.latency_s_median / base.floor_s, 2)} times its roofline limit on the published workload "
            f"({md.milliseconds(base.latency_s_median)} ms against {md.milliseconds(base.floor_s)} ms)."
        )
    )
    return (
        md.table(["Comparison", "Workload", "Batch", "Times the speed"], rows, left=2)
        + "\n\nRatios of median latencies. The 95 % interval resamples processes (one per round) and their calls; with one process it covers "
        "the calls alone, with two it is too narrow. Other machines of the same kind are not covered." + floor
    )


#: Workloads of the README's table: kind, batch, heading.
HEADLINE = (
    (QUERIES, 1, "1 query"),
    (QUERIES, 8, "8 queries"),
    (QUERIES, 32, "32 queries"),
    (PAGES, 8, "8 pages"),
)


def headline(speed: Speed) -> str:
    """The README's snippet: speed of each scheme against bf16 on the same path, and what the GPU holds."""
    weights = "random weights" if speed.experiment.model.is_random else f"`{speed.experiment.model.path}`"
    base = [speed.row(speed.base, kind, batch) for kind, batch, _ in HEADLINE]
    rows = [
        (
            "BF16",
            *(
                md.MISSING if r is None else f"1 ({md.significant(1e3 * r.latency_s_median)} ms)"
                for r in base
            ),
            _peak_gb(speed, speed.base),
        )
    ]
    rows += [
        (
            _words(speed.experiment.by_id[name]),
            *(_times_base(speed, name, kind, batch) for kind, batch, _ in HEADLINE),
            _peak_gb(speed, name),
        )
        for name in (speed.fp8, speed.w4, speed.small)
        if name
    ]
    plain = [
        stats.median_ratio(speed.calls(speed.eager, kind, batch), speed.calls(speed.base, kind, batch))[0]
        for kind, batch, _ in HEADLINE
        if speed.eager
        and speed.row(speed.eager, kind, batch) is not None
        and speed.row(speed.base, kind, batch) is not None
    ]
    note = (
        f" BF16 on this path is {md.number(min(plain), 1)} to {md.number(max(plain), 1)} times as fast as transformers' own forward pass."
        if plain
        else ""
    )
    return (
        f"**{speed.experiment.model.size.upper()} dimensions, {weights}, one {speed.environment.get('gpu')}: times the speed of BF16 on the same encode path**\n\n"
        + md.table(["Weights", *(heading for *_, heading in HEADLINE), "Peak memory, queries (GB)"], rows)
        + f"\n\nRatios of median forward passes per call, with 95 % intervals; above 1 is faster.{note}"
    )


def _times_base(speed: Speed, name: str, kind: str, batch: int) -> str:
    if speed.row(name, kind, batch) is None or speed.row(speed.base, kind, batch) is None:
        return md.MISSING
    return md.value_ci(
        *stats.median_ratio(speed.calls(speed.base, kind, batch), speed.calls(name, kind, batch)), 2
    )


def _peak_gb(speed: Speed, name: str) -> str:
    peak = speed.peak(name, PUBLISHED)
    return md.MISSING if not peak else md.significant(peak / 1e9)


def _metric(
    figures: published.Published, metric: str, role: str, table: str = "Text Queries Benchmark"
) -> float | None:
    rows = figures.benchmark_8b[
        (figures.benchmark_8b.metric == metric) & (figures.benchmark_8b.table == table)
    ]
    return float(rows[role].iloc[0]) if len(rows) and pd.notna(rows[role].iloc[0]) else None


def _published(speed: Speed) -> published.Published | None:
    """The published benchmark is of the 8B; a report of another size has nothing to stand beside it."""
    return published.load() if speed.experiment.model.size == "8b" else None


def shown(speed: Speed) -> list[str]:
    wanted = [
        speed.eager,
        speed.base,
        speed.fp8,
        speed.w4,
        speed.small,
        speed.find(scheme="w4a16", tag="tritonv2"),
    ]
    return [name for name in wanted if name]


def memory_summary(speed: Speed) -> str:
    figures, base = _published(speed), speed.eager
    rows = []
    for label, metric, kind, name in (
        ("Peak memory", "peak_allocated_bytes", PUBLISHED, "CUDA peak allocated"),
        ("Allocated after loading", "allocated_bytes", None, "CUDA allocated"),
        ("Peak reserved", "peak_reserved_bytes", PUBLISHED, "CUDA peak reserved"),
    ):
        start = speed.bytes(base, metric, kind)
        for variant in shown(speed):
            value = speed.bytes(variant, metric, kind)
            change = None if value is None or not start else 100 * (value / start - 1)
            rows.append(
                (
                    label,
                    f"`{variant}`",
                    _mib(value),
                    md.megabytes(value, 0),
                    "-" if variant == base else md.number(change, 1, True, " %"),
                )
            )
        if figures is not None:
            before, after = _metric(figures, name, "original"), _metric(figures, name, "quantized")
            rows += [
                (label, "published BASE (A100)", md.number(before, 0), md.MISSING, "-"),
                (
                    label,
                    "published W4A16 (A100)",
                    md.number(after, 0),
                    md.MISSING,
                    md.number(100 * (after / before - 1), 1, True, " %"),
                ),
            ]
    return md.table(["Metric", "Variant", "MiB", "MB", "Change"], rows, left=2) + (
        "\n\nThe published MB are 2^20 bytes, here written MiB. Reserved is what the allocator holds on to, including what loading needed: FP8 weights and an FP8 vision tower "
        "are made from bf16 on the GPU."
    )


def _mib(value: float | None) -> str:
    return md.MISSING if value is None else md.number(value / MIB, 0)


def throughput_summary(speed: Speed) -> str:
    figures, rows = _published(speed), []
    for variant in shown(speed):
        r = speed.row(variant, PUBLISHED, 8)
        rows.append(
            (
                f"`{variant}`",
                None if r is None else r.kernel,
                None if r is None else md.number(8 / r.latency_s_mean, 1),
                None if r is None else md.milliseconds(r.latency_s_mean),
            )
        )
    if figures is not None:
        rows += [
            (
                f"published {label} (A100)",
                "fallback" if role == "quantized" else "torch",
                md.number(_metric(figures, "throughput", role), 1),
                md.number(_metric(figures, "mean latency", role), 2),
            )
            for label, role in (("BASE", "original"), ("W4A16", "quantized"))
        ]
    return md.table(["Variant", "Kernel", "Items/s", "Mean latency (ms/batch)"], rows, left=2) + (
        "\n\nItems divided by their total time, as published; other tables give items per second of the median call."
    )


def as_published(speed: Speed) -> str:
    figures, columns = _published(speed), shown(speed)
    measured = {name: speed.row(name, PUBLISHED, 8) for name in columns}

    def line(label: str, value, metric: str | None = None, digits: int = 0) -> tuple:
        cells = [None if measured[name] is None else value(name, measured[name]) for name in columns]
        old = (
            []
            if figures is None
            else [
                md.number(_metric(figures, metric, role), digits) if metric else md.MISSING
                for role in ("original", "quantized")
            ]
        )
        return (label, *cells, *old)

    rows = [
        line("Timed items", lambda _, r: int(8 * r.n_samples), "total items"),
        line(
            f"Time of {ITEMS} items (s)", lambda _, r: md.number(CALLS * r.latency_s_mean, 4), "total time", 3
        ),
        line("Throughput (items/s)", lambda _, r: md.number(8 / r.latency_s_mean, 1), "throughput", 1),
        line("Mean latency (ms/batch)", lambda _, r: md.milliseconds(r.latency_s_mean), "mean latency", 2),
        line(
            "Std of latency (ms/batch)",
            lambda _, r: md.milliseconds(r.latency_s_std),
            "standard deviation of latency",
            2,
        ),
        line("Median latency (ms/batch)", lambda _, r: md.milliseconds(r.latency_s_median)),
        line("CUDA allocated (MiB)", lambda n, _: _mib(speed.bytes(n, "allocated_bytes")), "CUDA allocated"),
        line("CUDA peak allocated (MiB)", lambda n, _: _mib(speed.peak(n, PUBLISHED)), "CUDA peak allocated"),
        line(
            "CUDA peak reserved (MiB)",
            lambda n, _: _mib(speed.bytes(n, "peak_reserved_bytes", PUBLISHED)),
            "CUDA peak reserved",
        ),
        line("Tokens per call", lambda _, r: md.number(r.tokens_per_call, 0)),
        line("Times the roofline limit", lambda _, r: md.number(r.latency_s_median / r.floor_s, 2)),
    ]
    header = [
        "Metric",
        *(f"`{n}`" for n in columns),
        *([] if figures is None else ["published BASE", "published W4A16"]),
    ]
    return "32 texts in batches of 8, 3 warm-up steps and 10 timed steps in each round.\n\n" + md.table(
        header, rows
    )


def workloads(speed: Speed) -> str:
    parts = []
    for kind in (QUERIES, PAGES):
        rows = []
        for batch in sorted(speed.rows[speed.rows.kind == kind].batch.unique()):
            for name in speed.names:
                r = speed.row(name, kind, batch)
                if r is None:
                    continue
                rows.append(
                    (
                        int(batch),
                        f"`{name}`",
                        int(r.n_samples),
                        md.number(r.tokens_per_call, 0),
                        md.number(batch / r.latency_s_median, 1),
                        md.milliseconds(r.latency_s_median),
                        md.milliseconds(r.latency_s_std),
                        md.milliseconds(r.latency_s_p90),
                        md.milliseconds(r.get("latency_s_p99")),
                        _mib(speed.peak(name, kind, int(batch))),
                        md.number(r.latency_s_median / r.floor_s, 2),
                    )
                )
        header = [
            "Batch",
            "Variant",
            "Calls",
            "Tokens per call",
            "Items/s",
            "Median (ms)",
            "Std (ms)",
            "p90 (ms)",
            "p99 (ms)",
            "Peak (MiB)",
            "Times the roofline limit",
        ]
        parts += [f"### {KINDS[kind].capitalize()}", md.table(header, rows, left=2)]
    return "\n\n".join([*parts, "p99 is given where there are at least 100 calls."])


def loading(speed: Speed) -> str:
    rows = []
    for name in speed.names:
        subset = speed.rows[(speed.rows.variant == name) & speed.rows.latency_s_median.notna()]
        if len(subset):
            first = subset.set_index(["kind", "batch"]).first_call_s
            rows.append(
                (
                    f"`{name}`",
                    md.number(subset.load_s.iloc[0], 1),
                    md.number(first.get((QUERIES, 1)), 2),
                    md.number(first.get((PAGES, 1)), 2),
                    _mib(speed.bytes(name, "rss_loaded_bytes")),
                )
            )
    return md.table(
        [
            "Variant",
            "Load (s)",
            "First call of a query (s)",
            "First call of a page (s)",
            "Host process after loading (MiB)",
        ],
        rows,
    ) + (
        "\n\nLoading includes the conversion to the fast path. The first calls shown are of the workloads with batch 1; they record the CUDA graphs. Kernels were compiled "
        "before, when the two paths were compared, and compiled code is kept on disk between processes."
    )


def sizes(speed: Speed) -> str:
    from colq_utils.base import config

    figures, rows = published.load().sizes, []
    for size in ("4b", "8b"):
        name = speed.experiment.name.replace(speed.experiment.model.size, size)
        if name in config.available():
            other = Speed(
                config.load(name, "" if speed.experiment.output == config.ROOT else speed.experiment.output)
            )
            if other.read("benchmark/memory.csv") is not None:
                base, w4 = (
                    other.bytes(other.find(**f), "allocated_bytes")
                    for f in ({"scheme": "bf16", "encode": "plain"}, {"scheme": "w4a16"})
                )
                small = other.bytes(
                    other.find(scheme="w4a16", embedding="int8", vision="fp8"), "allocated_bytes"
                )
                rows.append(
                    (
                        size.upper(),
                        "measured",
                        *(md.number(v / MIB / 1e3, 2) if v else None for v in (base, w4)),
                        md.number(100 * (w4 / base - 1), 1, True, " %"),
                        None
                        if small is None
                        else f"{md.number(small / MIB / 1e3, 2)} ({md.number(100 * (small / base - 1), 1, True, ' %')})",
                    )
                )
        old = figures[(figures.source == "benchmark_8b_report.md") & (figures.model == size)]
        rows += [
            (
                size.upper(),
                "published",
                md.number(r.original_gb, 1),
                md.number(r.quantized_gb, 1),
                md.number(-r.reduction_pct, 0, True, " %"),
                md.MISSING,
            )
            for _, r in old.iterrows()
        ]
    return md.table(
        [
            "Model",
            "Figures",
            "BASE memory (1000 MiB)",
            "W4A16 memory (1000 MiB)",
            "Change",
            "with eight-bit options (1000 MiB)",
        ],
        rows,
        left=2,
    ) + (
        "\n\nAllocated after loading, in the unit of the published figures (which call it GB). The published figures include the lm_head."
    )


def best(speed: Speed) -> pd.DataFrame:
    """The fastest variant by workload and batch, whether its lead over bf16 on the same path is detected, and who is as fast.

    Of variants without a detected difference from the fastest, the one that the experiment names first counts as it.
    """
    base, rows = speed.base, []
    for (kind, batch), subset in speed.rows[speed.rows.latency_s_median.notna()].groupby(
        ["kind", "batch"], sort=False
    ):
        if base not in set(subset.variant):
            continue
        fastest = subset.loc[subset.latency_s_median.idxmin()].variant
        tied = [
            name
            for name in speed.names
            if name == fastest
            or (
                name in set(subset.variant)
                and stats.median_ratio(speed.calls(name, kind, batch), speed.calls(fastest, kind, batch))[1]
                <= 1
            )
        ]
        ratio, low, high = stats.median_ratio(
            speed.calls(base, kind, batch), speed.calls(tied[0], kind, batch)
        )
        rows.append(
            {
                "kind": kind,
                "batch": int(batch),
                "variant": tied[0],
                "ratio": ratio,
                "low": low,
                "high": high,
                "resolved": base not in tied and low > 1,
                "tied": tied[1:],
            }
        )
    return pd.DataFrame(rows)


def recommendations(speed: Speed) -> str:
    rows = []
    for _, r in best(speed).iterrows():
        word = md.value_ci(r.ratio, r.low, r.high, 2) if r.resolved else "we detect no faster variant"
        rows.append(
            (
                KINDS[r.kind],
                r.batch,
                f"`{r.variant if r.resolved else speed.base}`",
                md.listing([f"`{name}`" for name in r.tied]) if r.tied and r.resolved else "-",
                word,
            )
        )
    small = min(
        ((speed.peak(n, PUBLISHED), n) for n in speed.names if speed.peak(n, PUBLISHED)), default=None
    )
    lines = [
        md.table(
            [
                "Workload",
                "Batch",
                "Fastest",
                "No detected difference from it",
                "Speed relative to bf16 on the same path",
            ],
            rows,
            left=1,
        )
    ]
    if small:
        lines.append(
            f"Least memory for text queries: `{small[1]}`, {md.megabytes(small[0], 0)} MB at its peak."
        )
    lines.append(
        "This covers speed and memory only; retrieval quality is measured by the evaluation stage on a trained checkpoint."
    )
    return "\n\n".join(lines)


def spoken(speed: Speed, name: str) -> str:
    """A variant in the words of the report."""
    spec = speed.experiment.by_id[name]
    scheme = {"bf16": "bf16"}.get(spec.scheme, spec.scheme.upper())
    options = [f"{spec.embedding} embedding table"] if spec.embedding else []
    options += [f"{spec.vision.upper()} vision tower"] if spec.vision else []
    row = speed.rows[speed.rows.variant == name].iloc[0]
    if spec.tag:
        scheme += f" ({row.kernel} kernel)"
    return (
        scheme
        + (f" with {md.listing(options)}" if options else "")
        + (", plain path" if spec.encode == "plain" else "")
    )


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return md.number(value, max(0, 2 - int(np.floor(np.log10(value)))))


CAPTIONS = {
    "gemms.png": "Time of all GEMMs of one decoder layer, by tokens per call.",
    "throughput_queries.png": "Text queries per second.",
    "throughput_pages.png": "Pages per second.",
    "memory.png": "Memory by variant.",
    "bytes_per_tower.png": "Bytes by part, stored and predicted.",
}


def picture(speed: Speed, name: str) -> str:
    """A figure of the experiment, or nothing where it was not drawn."""
    folder = speed.experiment.output / "figures" / speed.experiment.name
    return (
        md.picture(f"../../../figures/{speed.experiment.name}/{name}", CAPTIONS[name])
        if (folder / name).exists()
        else ""
    )


def figures(speed: Speed) -> str:
    """All figures but the one that the report opens with."""
    return "\n\n".join(filter(None, (picture(speed, name) for name in CAPTIONS if name != "gemms.png")))
