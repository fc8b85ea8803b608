"""What was measured and on what: variants, environment, every workload and batch size, loading."""

from colq_utils.base.backends import BACKENDS
from colq_utils.report import markdown as md
from studies.h200.speed import KINDS, PAGES, QUERIES, Speed
from studies.h200.words import mib, page, scheme


def reproduction(speed: Speed) -> str:
    gemms = speed.read("benchmark/gemms.csv")
    marlin = gemms is not None and "marlin" in set(gemms.kernel)
    package = BACKENDS["marlin"].install.split(" (")[0]
    return page("reproduction.md.j2", speed, install=package if marlin else "")


def overview(speed: Speed) -> str:
    rows = speed.rows.drop_duplicates("variant").set_index("variant").loc[speed.names].reset_index()
    rows["weights"] = [scheme(speed.experiment.by_id[name]) for name in rows.variant]
    return page("overview.md.j2", speed, rows=rows.assign(variant="`" + rows.variant + "`"))


def notes(speed: Speed) -> str:
    return page("notes.md.j2", speed)


def environment(speed: Speed) -> str:
    env, limits = speed.environment, speed.read("benchmark/ceilings.json") or {}
    packages = env["packages"]
    rows = [
        ("GPU", env.get("gpu"), "NVIDIA A100-SXM4-40GB"),
        ("CUDA", env.get("cuda"), "12.8"),
        ("Attention", env.get("attention"), "SDPA"),
        ("torch", packages.get("torch"), md.MISSING),
        ("transformers", packages.get("transformers"), md.MISSING),
    ]
    optional = ("humming-kernels", "gptqmodel")
    rows += [(name, packages[name], "-") for name in optional if packages.get(name)]
    rows += [("Weights", env.get("weights"), "published"), ("Commit", env.get("commit"), "-")]
    rows.append(("Rounds, a fresh process each", speed.rounds, "1"))
    rates = [("Copy on the GPU (TB/s, read and written)", limits.get("copy_bytes_per_s"))]
    for name in ("bfloat16", "fp8", "float32"):
        rates.append((f"GEMM, {name} (TFLOP/s)", limits.get(f"{name}_flop_per_s")))
    rates = [
        {"name": name, "rate": md.MISSING if rate is None else md.number(rate / 1e12, 2)}
        for name, rate in rates
    ]
    rows = [dict(zip(("name", "here", "published"), row)) for row in rows]
    return page("environment.md.j2", speed, rows=rows, rates=rates)


def workloads(speed: Speed) -> str:
    frames = {kind: _workload(speed, kind) for kind in (QUERIES, PAGES)}
    return "\n\n".join(
        [page("workload.md.j2", speed, kind=KINDS[kind], rows=rows).strip() for kind, rows in frames.items()]
        + ["p99 is given where there are at least 100 calls."]
    )


def _workload(speed: Speed, kind: str) -> list[dict]:
    rows = []
    for batch in sorted(speed.rows[speed.rows.kind == kind].batch.unique()):
        for name in speed.names:
            r = speed.row(name, kind, batch)
            if r is not None:
                row = {"batch": int(batch), "variant": f"`{name}`", "calls": str(int(r.n_samples))}
                row["tokens"] = md.number(r.tokens_per_call, 0)
                row["items"] = md.number(batch / r.latency_s_median, 1)
                for part in ("median", "std", "p90", "p99"):
                    row[part] = md.milliseconds(r.get(f"latency_s_{part}"))
                row["peak"] = mib(speed.peak(name, kind, int(batch)))
                rows.append(row | {"limit": md.number(r.latency_s_median / r.floor_s, 2)})
    return rows


def loading(speed: Speed) -> str:
    rows, measured = [], speed.rows[speed.rows.latency_s_median.notna()]
    for name in speed.names:
        subset = measured[measured.variant == name]
        first = subset.set_index(["kind", "batch"]).first_call_s
        row = {"variant": f"`{name}`", "load": md.number(subset.load_s.iloc[0], 1)}
        row |= {kind: md.number(first.get((kind, 1)), 2) for kind in (QUERIES, PAGES)}
        rows.append(row | {"host": mib(speed.bytes(name, "rss_loaded_bytes"))})
    return page("loading.md.j2", speed, rows=rows)
