"""What explains: where time and bytes go, why a kernel is slower or faster, what quantizing costs."""

import numpy as np
import pandas as pd

from colq_utils.base.backends import ON_GPU
from colq_utils.base.names import GRAIN
from colq_utils.report import markdown as md
from studies.h200 import targets
from studies.h200.speed import KINDS, PAGES, PUBLISHED, QUERIES, Speed
from studies.h200.words import page

#: From which difference on two GEMM times are called different: sweeps of the 8B on two machines agreed to
#: this, but for 1 of 52 points.
APART = 0.05


def predicted(speed: Speed) -> str:
    predicted, towers = speed.read("inspect/predicted.csv"), speed.read("inspect/towers.csv")
    if predicted is None or towers is None:
        return f"Not measured (`make inspect EXPERIMENT={speed.experiment.name}`)."
    packed = (predicted.group_size == 128) & (predicted.packing == "auto_round")
    sizes = predicted[(predicted.scheme == "bf16") | ((predicted.scheme == "w4a16") & packed)]
    sizes = sizes.drop_duplicates("scheme").set_index("scheme").predicted_bytes
    rows = []
    for scheme in ("bf16", "w4a16"):
        name, size = speed.find(scheme=scheme), sizes[scheme]
        row = {"variant": f"`{name}`", "predicted": md.megabytes(size, 0)}
        for metric in ("tensors", "allocated"):
            value = speed.bytes(name, f"{metric}_bytes")
            row[metric] = md.megabytes(value, 0)
            off = None if value is None else 100 * (value / size - 1)
            row[f"{metric}_off"] = md.number(off, 2, True, " %")
        rows.append(row)
    parts = []
    for r in towers.to_dict("records"):
        part = {"part": r["tower"], "parameters": r["parameters"], "stored": md.megabytes(r["bytes"], 0)}
        for role in ("base", "w4"):
            part[role] = "not loaded"
            if r["tower"] != "lm_head":
                held = speed.bytes(getattr(speed, role), f"tensors_{r['tower']}_bytes")
                part[role] = md.megabytes(held, 0)
        parts.append(part)
    return page("predicted.md.j2", speed, rows=rows, parts=parts)


def options(speed: Speed) -> str:
    """Each eight-bit option on its own line: its bytes are those measured of the part it changes."""
    start, effects = speed.bytes(speed.eager, "tensors_bytes"), speed.read("benchmark/options.csv")
    w4, small = (
        {part: speed.bytes(name, f"tensors_{part}_bytes") for part in ("embedding", "visual")}
        for name in (speed.w4, speed.small)
    )
    whole_w4, rows = speed.bytes(speed.w4, "tensors_bytes"), []
    for label, changed in (
        ("W4A16", ()),
        ("… embedding table in int8", ("embedding",)),
        ("… vision tower in FP8", ("visual",)),
        ("… both", ("embedding", "visual")),
    )[: 1 if speed.small is None else None]:
        parts = {part: (small if part in changed else w4)[part] for part in w4}
        row = {"label": label} | {part: md.megabytes(size, 0) for part, size in parts.items()}
        known = None not in (whole_w4, *parts.values())
        whole = whole_w4 + sum(parts.values()) - sum(w4.values()) if known else None
        row["whole"] = md.megabytes(whole, 0)
        change = 100 * (whole / start - 1) if whole and start else None
        rows.append(row | {"change": md.number(change, 1, True, " %")})
    peaks = [
        f"`{name}` {md.megabytes(peak, 0)} MB ({md.number(peak / targets.GIB, 2)} GiB)"
        for name in (speed.w4, speed.small)
        if name and (peak := speed.peak(name, PUBLISHED))
    ]
    if effects is not None:
        means, least = (
            effects[name].map(lambda v, d=d: md.number(v, d)) for name, d in (("mean", 6), ("min", 4))
        )
        effects = effects.assign(mean=means, min=least, tokens=effects["tokens"].astype(int).astype(str))
    return page("options.md.j2", speed, rows=rows, peaks=tuple(peaks), effects=effects)


def profile(speed: Speed) -> str:
    rows = []
    for kind, batch in ((QUERIES, 1), (PUBLISHED, 8), (QUERIES, 32), (PAGES, 1), (PAGES, 8)):
        for name in speed.names:
            profile, row = targets.parts(speed, name, kind, batch), speed.row(name, kind, batch)
            if profile is not None and row is not None:
                seconds = {part: value for part, value in profile.items() if part != "kernels"}
                cells = {"workload": KINDS[kind], "batch": batch, "variant": f"`{name}`"}
                for part in targets.PART_NAMES:
                    cells[part] = md.milliseconds(seconds.get(part, 0.0))
                cells["busy"] = md.milliseconds(sum(seconds.values()))
                cells["median"] = md.milliseconds(row.latency_s_median)
                rows.append(cells | {"kernels": md.number(profile["kernels"], 0)})
    return page("profile.md.j2", speed, rows=rows) if rows else "Not measured."


def why(speed: Speed) -> str:
    """GEMM times by kernel, and the schedules that were tuned for them."""
    return md.document(gemms(speed), tuning(speed))


def gemms(speed: Speed) -> str:
    table = speed.read("benchmark/gemms.csv")
    if table is None or "layer_s" not in table:
        return "Not measured."
    measured = table.dropna(subset=["layer_s"])
    wide = measured.pivot_table(index="tokens", columns="kernel", values="layer_s", sort=False)
    wide = (wide * _layers(speed)).sort_index()
    verdicts = []
    for kernel in wide.columns.drop("bf16"):
        faster = wide.index[wide[kernel] < (1 - APART) * wide["bf16"]]
        slower = wide.index[wide[kernel] > (1 + APART) * wide["bf16"]]
        verdicts.append((kernel, _ranges(faster), _ranges(slower)))
    errors = table.dropna(subset=["error"]) if "error" in table else table.iloc[:0].assign(error="")
    errors = [(r.kernel, r.error.removeprefix("ColqError: ")) for r in errors.itertuples()]
    absent = [f"`{name}`" for name in ON_GPU if name not in set(table.kernel)]
    headings = {"tokens": "Tokens per call"} | {kernel: f"`{kernel}`" for kernel in wide.columns}
    rows = wide.map(md.milliseconds).reset_index().astype({"tokens": int}).astype({"tokens": str})
    words = {"verdicts": tuple(verdicts), "errors": tuple(errors), "absent": tuple(absent)}
    return page("gemms.md.j2", speed, rows=rows, headings=headings, apart=APART, **words)


def _layers(speed: Speed) -> int:
    return speed.architecture["language_model"]["num_hidden_layers"]


def _ranges(values: pd.Index) -> str:
    return md.listing([f"{int(v):,}" for v in values]) if len(values) else "none of the measured"


def tuning(speed: Speed) -> str:
    table = speed.read("benchmark/tuning.csv")
    if table is None:
        return ""
    if "tuned_s" not in table:
        return f"Tuning the schedules of the 4-bit kernel failed, so its own were used: {table.error.iloc[0]}"
    total = table.groupby("tokens")[["default_s", "tuned_s", "bf16_s"]].sum()
    micros = (1e6 * total).map(lambda value: md.number(value, 1))
    rows = micros.assign(gain=(total.default_s / total.tuned_s).map(md.number)).reset_index()
    return page("tuning.md.j2", speed, rows=rows.assign(tokens=[str(int(n)) for n in rows.tokens]))


def scoring(speed: Speed) -> str:
    table = speed.read("benchmark/scoring.csv")
    if table is None or "seconds" not in table:
        return "Not measured."
    limits, first, limit_s = speed.read("benchmark/ceilings.json"), table.iloc[0], np.nan
    if limits is not None:
        compute_s = first.flop / limits["bfloat16_flop_per_s"]
        limit_s = max(compute_s, first.read_bytes / limits["copy_bytes_per_s"])
    table = table.assign(
        ms=[md.milliseconds(value, 1) for value in table.seconds],
        per_s=[md.number(value, 0) for value in table.queries / table.seconds],
        error=[f"{value:.1e}" for value in table.error_max],
        limit=[md.number(value) for value in table.seconds / limit_s],
    )
    return page("scoring.md.j2", speed, rows=table, first=first)


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
    each, n_layers = cost["block_s"][1:] or cost["block_s"], _layers(speed)
    commit = cost["commit"] if cost["commit"] != speed.environment.get("commit") else ""
    block_s = float(np.mean(each))
    return page("cost.md.j2", speed, cost=cost, block_s=block_s, n_layers=n_layers, commit=commit)


def agreement(speed: Speed) -> str:
    table = speed.read("benchmark/agreement.csv")
    if table is None or table.empty:
        return "Not measured."
    cosines = table.groupby(["variant", "kind"], sort=False).agg(
        mean=("mean", "min"), least=("min", "min"), tokens=("tokens", "first")
    )
    base = {kind: row["mean"] for (name, kind), row in cosines.iterrows() if name == speed.base}
    rows = cosines.reset_index()
    rows["variant"], rows["tokens"] = "`" + rows.variant + "`", rows.tokens.astype(int).astype(str)
    for column in ("mean", "least"):
        rows[column] = [md.number(value, 6) for value in rows[column]]
    return page("agreement.md.j2", speed, rows=rows, base=base, grain=base.get(GRAIN))
