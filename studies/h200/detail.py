"""The parts of the GPU report that explain: where time and bytes go, why a kernel is slower or faster, what quantizing costs."""

import numpy as np

from colq_utils.base.backends import ON_GPU
from colq_utils.base.names import GRAIN
from colq_utils.report import markdown as md
from studies.h200 import targets
from studies.h200.speed import KINDS, PAGES, PUBLISHED, QUERIES, Speed

#: From which difference on two GEMM times are called different: sweeps of the 8B on two machines agreed to
#: this, but for 1 of 52 points.
APART = 0.05


def predicted(speed: Speed) -> str:
    predicted, towers = speed.read("inspect/predicted.csv"), speed.read("inspect/towers.csv")
    if predicted is None or towers is None:
        return f"Not measured (`make inspect EXPERIMENT={speed.experiment.name}`)."
    sizes = {
        "bf16": predicted[predicted.scheme == "bf16"].predicted_bytes.iloc[0],
        "w4a16": predicted[
            (predicted.scheme == "w4a16")
            & (predicted.group_size == 128)
            & (predicted.packing == "auto_round")
        ].predicted_bytes.iloc[0],
    }
    rows = []
    for scheme, size in sizes.items():
        name = speed.find(scheme=scheme)
        measured = speed.bytes(name, "tensors_bytes")
        allocated = speed.bytes(name, "allocated_bytes")
        off = None if measured is None else 100 * (measured / size - 1)
        over = None if allocated is None else 100 * (allocated / size - 1)
        rows.append(
            (
                f"`{name}`",
                md.megabytes(size, 0),
                md.megabytes(measured, 0),
                md.number(off, 2, True, " %"),
                md.megabytes(allocated, 0),
                md.number(over, 2, True, " %"),
            )
        )
    parts = [
        (
            r.tower,
            f"{int(r.parameters):,}",
            md.megabytes(r["bytes"], 0),
            "not loaded"
            if r.tower == "lm_head"
            else md.megabytes(speed.bytes(speed.base, f"tensors_{r.tower}_bytes"), 0),
            "not loaded"
            if r.tower == "lm_head"
            else md.megabytes(speed.bytes(speed.w4, f"tensors_{r.tower}_bytes"), 0),
        )
        for _, r in towers.iterrows()
    ]
    return (
        md.table(["Variant", "Predicted (MB)", "Tensors (MB)", "Off by", "Allocated (MB)", "Off by"], rows)
        + "\n\n*Allocated* includes workspaces of the matrix libraries and the recorded graphs.\n\n"
        + md.table(
            ["Part", "Parameters", "Stored in bf16 (MB)", "bf16 in memory (MB)", "W4A16 in memory (MB)"],
            parts,
        )
    )


def options(speed: Speed) -> str:
    """Each eight-bit option on its own line: its bytes are those measured of the part it changes."""
    start, effects = speed.bytes(speed.eager, "tensors_bytes"), speed.read("benchmark/options.csv")
    w4, small = (
        {part: speed.bytes(name, f"tensors_{part}_bytes") for part in ("embedding", "visual")}
        | {"all": speed.bytes(name, "tensors_bytes")}
        for name in (speed.w4, speed.small)
    )
    rows = []
    for label, changed in (
        ("W4A16", ()),
        ("… embedding table in int8", ("embedding",)),
        ("… vision tower in FP8", ("visual",)),
        ("… both", ("embedding", "visual")),
    ):
        parts = [(small if part in changed else w4)[part] for part in ("embedding", "visual")]
        whole = (
            None if None in (*parts, w4["all"]) else w4["all"] + sum(parts) - w4["embedding"] - w4["visual"]
        )
        rows.append(
            (
                label,
                *(md.megabytes(p, 0) for p in parts),
                md.megabytes(whole, 0),
                md.number(100 * (whole / start - 1), 1, True, " %") if whole and start else None,
            )
        )
    peaks = [
        f"`{name}` {md.megabytes(peak, 0)} MB ({md.number(peak / targets.GIB, 2)} GiB)"
        for name in (speed.w4, speed.small)
        if name and (peak := speed.peak(name, PUBLISHED))
    ]
    if speed.small is None:
        rows = rows[:1]
    table = md.table(
        ["Weights", "Embedding table (MB)", "Vision tower (MB)", "All tensors (MB)", "Against bf16"], rows
    )
    table += (
        "\n\nThe rows with one option are put together from the parts of the two measured models."
        if speed.small
        else "\n\nThe eight-bit options were not measured at this size."
    )
    table += f"\n\nPeak of text queries as published: {md.listing(peaks)}." if peaks else ""
    if effects is None:
        return table
    lines = [
        (r.option, r.kind, md.number(r["mean"], 6), md.number(r["min"], 4), int(r.tokens))
        for _, r in effects.iterrows()
    ]
    return (
        table
        + "\n\nRandom weights cannot say what the options do to embeddings. On the **bundled demo model**, token cosine to its own bf16:\n\n"
        + md.table(["Option", "Compared on", "Mean", "Lowest", "Tokens"], lines, left=2)
    )


def profile(speed: Speed) -> str:
    rows = []
    for kind, batch in ((QUERIES, 1), (PUBLISHED, 8), (QUERIES, 32), (PAGES, 1), (PAGES, 8)):
        for name in speed.names:
            profile, row = targets.parts(speed, name, kind, batch), speed.row(name, kind, batch)
            if profile is not None and row is not None:
                busy = sum(value for part, value in profile.items() if part != "kernels")
                rows.append(
                    (
                        KINDS[kind],
                        batch,
                        f"`{name}`",
                        *(
                            md.milliseconds(profile.get(part, 0.0))
                            for part in ("products", "attention", "steps", "rest")
                        ),
                        md.milliseconds(busy),
                        md.milliseconds(row.latency_s_median),
                        md.number(profile["kernels"], 0),
                    )
                )
    if not rows:
        return "Not measured."
    header = [
        "Workload",
        "Batch",
        "Variant",
        "GEMMs (ms)",
        "Attention (ms)",
        "Element-wise (ms)",
        "Rest (ms)",
        "GPU busy (ms)",
        "Median call (ms)",
        "Kernels",
    ]
    return (
        "The kernels of one batch under the profiler, sorted by name into GEMMs, attention, this repository's element-wise kernels, and the rest, which on the plain path "
        "is everything between GEMMs. A kernel may start while the one before it still runs; the shared time counts for the earlier one. One batch is run "
        "three times in a row, so the busy time can exceed the median call. Where a call takes much longer than the GPU is busy, it waits for the host.\n\n"
        + md.table(header, rows, left=3)
    )


def why(speed: Speed) -> str:
    """GEMM times by kernel, and the schedules that were tuned for them."""
    return "\n\n".join(filter(None, (gemms(speed), tuning(speed))))


def gemms(speed: Speed) -> str:
    table = speed.read("benchmark/gemms.csv")
    if table is None or "layer_s" not in table:
        return "Not measured."
    layers = _layers(speed)
    wide = (
        table.dropna(subset=["layer_s"]).pivot_table(
            index="tokens", columns="kernel", values="layer_s", sort=False
        )
        * layers
    )
    rows = [(int(n), *(md.milliseconds(wide.loc[n, k]) for k in wide.columns)) for n in sorted(wide.index)]
    base, words = wide["bf16"], []
    for kernel in (k for k in wide.columns if k != "bf16"):
        faster = [int(n) for n in sorted(wide.index) if wide.loc[n, kernel] < (1 - APART) * base[n]]
        slower = [int(n) for n in sorted(wide.index) if wide.loc[n, kernel] > (1 + APART) * base[n]]
        words.append(
            f"- `{kernel}`: faster than bf16 at {_ranges(faster)} tokens per call, slower at {_ranges(slower)}."
        )
    errors = [
        f"- `{r.kernel}`: not measured here, {r.error.removeprefix('ColqError: ')}."
        for _, r in table.iterrows()
        if "error" in table and isinstance(r.get("error"), str)
    ]
    absent = [f"`{name}`" for name in ON_GPU if name not in set(table.kernel)]
    errors += [f"- {md.listing(absent)}: not measured here."] if absent else []
    return (
        "All GEMMs of the language model as one CUDA graph (ms), by tokens per call: no launches, no attention, no norms.\n\n"
        + md.table(["Tokens per call", *(f"`{k}`" for k in wide.columns)], rows)
        + "\n\n"
        + "\n".join(words + errors)
        + f"\n\n*Faster* and *slower* mean by more than {100 * APART:.0f} %, because this is one sweep in one process and another differs by a few per cent. "
        "With few tokens the time goes into reading weights, and a quarter of the bytes is a gain. With many it goes into multiplying, which a "
        "weight-only kernel does in bf16 like the base, after unpacking. FP8 halves the bytes and doubles the rate of multiplication, but has to quantize its "
        "inputs first; the column with inputs ready shows what that costs."
    )


def _layers(speed: Speed) -> int:
    return speed.architecture["language_model"]["num_hidden_layers"]


def _ranges(values: list[int]) -> str:
    return md.listing([f"{v:,}" for v in values]) if values else "none of the measured"


def tuning(speed: Speed) -> str:
    table = speed.read("benchmark/tuning.csv")
    if table is None:
        return ""
    if "tuned_s" not in table:
        return f"Tuning the schedules of the 4-bit kernel failed, so its own were used: {table.error.iloc[0]}"
    total = table.groupby("tokens")[["default_s", "tuned_s", "bf16_s"]].sum()
    rows = [
        (
            int(n),
            md.number(1e6 * r.default_s, 1),
            md.number(1e6 * r.tuned_s, 1),
            md.number(1e6 * r.bf16_s, 1),
            md.number(r.default_s / r.tuned_s, 2),
        )
        for n, r in total.iterrows()
    ]
    return (
        "Before the benchmark, the schedules of the 4-bit kernel were tuned to this GPU (the four GEMMs of a layer, µs):\n\n"
        + md.table(["Tokens per call", "Default", "Tuned", "bf16", "Gain"], rows)
    )


def scoring(speed: Speed) -> str:
    table = speed.read("benchmark/scoring.csv")
    if table is None or "seconds" not in table:
        return "Not measured."
    limits, first = speed.read("benchmark/ceilings.json"), table.iloc[0]
    limit_s = (
        np.nan
        if limits is None
        else max(first.flop / limits["bfloat16_flop_per_s"], first.read_bytes / limits["copy_bytes_per_s"])
    )
    rows = [
        (
            r.method,
            md.milliseconds(r.seconds, 1),
            md.number(r.queries / r.seconds, 0),
            f"{r.error_max:.1e}",
            md.number(r.seconds / limit_s, 2),
        )
        for _, r in table.iterrows()
    ]
    return (
        f"{int(first.queries)} queries of {int(first.query_tokens)} tokens against {int(first.pages):,} pages of {int(first.page_tokens):,} tokens of {int(first['dim'])} "
        f"numbers in bf16 ({md.number(first.read_bytes / 1e9, 1)} GB), random unit vectors.\n\n"
        + md.table(["How", "ms", "Queries/s", "Largest error of a score", "Times the roofline limit"], rows)
        + "\n\nThe error is relative to fp32 multiplication, on scores that are sums over the tokens of a query."
    )


def cost(speed: Speed) -> str:
    cost = speed.read("benchmark/autoround_cost.json")
    if cost is None:
        return (
            "Not measured."
            if any(extra.file == "autoround_cost.json" for extra in speed.experiment.benchmark.extras)
            else "Not measured: this experiment does not ask for it (`benchmark.extras`)."
        )
    if "error" in cost:
        return f"Failed: {cost['error']}"
    each, whole = cost["block_s"][1:] or cost["block_s"], _layers(speed)
    block, complete = float(np.mean(each)), cost["blocks"] >= whole
    last = (
        f"In all {md.number(cost['total_s'] / 60, 1)} minutes."
        if complete
        else f"*Extrapolated* to {whole} blocks: {md.number(whole * block / 60, 1)} minutes."
    )
    return (
        f"AutoRound W4A16 on {'all' if complete else cost['blocks']} blocks of the {cost['size'].upper()} dimensions, random weights, {cost['samples']} samples of {cost['seqlen']:,} tokens, "
        f"{cost['iters']} iterations of {cost['batch_rows']} rows: **{md.number(block, 1)} s per block** after the first, which took {md.number(cost['block_s'][0], 1)} s with what is "
        f"collected before it; peak {md.megabytes(cost['peak_allocated_bytes'], 0)} MB allocated, {md.megabytes(cost['peak_reserved_bytes'], 0)} MB reserved. {last}"
        + (
            f" Measured at commit {cost['commit']}."
            if cost["commit"] != speed.environment.get("commit")
            else ""
        )
    )


def agreement(speed: Speed) -> str:
    table = speed.read("benchmark/agreement.csv")
    if table is None or table.empty:
        return "Not measured."
    cosines = (
        table.groupby(["variant", "kind"], sort=False)
        .agg(mean=("mean", "min"), least=("min", "min"), tokens=("tokens", "first"))
        .reset_index()
    )
    rows = [
        (f"`{r.variant}`", r.kind, md.number(r["mean"], 6), md.number(r.least, 6), int(r.tokens))
        for _, r in cosines.iterrows()
    ]
    base = cosines[cosines.variant == speed.base].set_index("kind")
    word = (
        ""
        if base.empty or GRAIN not in base.index
        else (
            f"\n\nFor scale: the plain path, given the same queries one by one instead of eight in a batch, has a mean cosine of {md.number(base['mean'][GRAIN], 6)} to itself; the fast "
            f"path has {md.number(base['mean']['queries'], 6)}."
        )
    )
    return (
        "Before it measures anything, each process compares its fast path with the plain one on the same weights, by token cosine. Only in bf16 does a disagreement stop "
        "the run: FP8 rounds the inputs of each GEMM, and a small difference before that can move a number to the next representable value.\n\n"
        + md.table(["Variant", "Compared on", "Mean", "Lowest", "Tokens"], rows, left=2)
        + word
    )
