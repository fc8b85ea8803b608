"""The benchmark results of one experiment on a GPU, as the report and the targets ask for them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.report import results, stats

#: The experiments of this study by model size: each report shows the memory of both.
EXPERIMENTS = {"4b": "h200-4b", "8b": "h200-8b"}
QUERIES, PUBLISHED, PAGES = "queries", "queries_published", "pages"
KINDS = {
    PUBLISHED: "text queries as published",
    QUERIES: "text queries of real lengths",
    PAGES: "pages at the budget of 1,280 visual tokens",
}


@dataclass(frozen=True)
class Speed:
    """The benchmark results of one experiment on a GPU; a table is None where its file is missing."""

    experiment: Experiment

    def read(self, name: str):
        path = self.experiment.output / "results" / self.experiment.name / name
        if not path.exists():
            return None
        return files.read_json(path, "benchmark") if path.suffix == ".json" else pd.read_csv(path)

    @cached_property
    def rows(self) -> pd.DataFrame:
        return results.of_benchmark(self.experiment, "rows.csv")

    @cached_property
    def samples(self) -> pd.DataFrame:
        return results.of_benchmark(self.experiment, "samples.parquet")

    def calls(self, name: str, kind: str, batch: int) -> list[np.ndarray]:
        """Seconds of every timed call of a variant and workload, by process."""
        return results.calls(self.samples, name, kind, batch)

    @cached_property
    def memory(self) -> pd.DataFrame:
        return results.of_benchmark(self.experiment, "memory.csv")

    @cached_property
    def environment(self) -> dict:
        return results.of_benchmark(self.experiment, "environment.json")

    @cached_property
    def architecture(self) -> dict:
        return files.read_json(
            self.experiment.results("inspect") / "architecture.json",
            f"inspect EXPERIMENT={self.experiment.name}",
        )

    @property
    def names(self) -> list[str]:
        """The variants that were measured, at least in part."""
        measured = set(self.rows[self.rows.latency_s_median.notna()].variant)
        return [n for n in self.experiment.benchmark.variants if n in measured]

    @property
    def missing(self) -> list[str]:
        return [n for n in self.experiment.benchmark.variants if n not in self.names]

    @property
    def shown(self) -> list[str]:
        """The variants that short tables show."""
        tritonv2 = self.find(scheme="w4a16", tag="tritonv2")
        return [n for n in (self.eager, self.base, self.fp8, self.w4, self.small, tritonv2) if n]

    @property
    def rounds(self) -> str:
        """How many processes measured each variant."""
        counts = sorted(self.samples.groupby("variant")["round"].nunique())
        return "–".join(dict.fromkeys(map(str, counts)))

    @property
    def eager(self) -> str | None:
        return self.find(scheme="bf16", encode="plain")

    @property
    def base(self) -> str | None:
        return self.find(scheme="bf16")

    @property
    def w4(self) -> str | None:
        return self.find(scheme="w4a16")

    @property
    def fp8(self) -> str | None:
        """FP8 with the vision tower, or without it where that alone was measured."""
        return self.find(scheme="fp8", vision="fp8") or self.find(scheme="fp8")

    @property
    def small(self) -> str | None:
        return self.find(scheme="w4a16", embedding="int8", vision="fp8")

    def row(self, name: str | None, kind: str, batch: int) -> pd.Series | None:
        """The row of a variant and workload, if it was measured."""
        rows = self.rows[(self.rows.variant == name) & (self.rows.kind == kind) & (self.rows.batch == batch)]
        return rows.iloc[0] if len(rows) and np.isfinite(rows.latency_s_median.iloc[0]) else None

    def ratio(self, name: str | None, other: str | None, kind: str, batch: int) -> tuple | None:
        """The speed of a variant over another's with its interval, if both were measured."""
        if self.row(name, kind, batch) is None or self.row(other, kind, batch) is None:
            return None
        return stats.median_ratio(self.calls(other, kind, batch), self.calls(name, kind, batch))

    def bytes(
        self, name: str | None, metric: str, kind: str | None = None, batch: int | None = None
    ) -> float | None:
        """Mean over rounds of a memory metric: after loading, or of a workload (no batch: the largest)."""
        rows = self.memory[(self.memory.variant == name) & (self.memory.metric == metric)]
        rows = rows[rows.kind == kind] if kind else rows[rows.kind.isna()]
        rows = rows if batch is None else rows[rows.batch == batch]
        return None if rows.empty else float(rows.groupby("round").bytes.max().mean())

    def peak(self, name: str | None, kind: str, batch: int | None = None) -> float | None:
        """Peak of the allocator in a workload."""
        return self.bytes(name, "peak_allocated_bytes", kind, batch)

    def find(self, **wanted) -> str | None:
        """The first measured variant with these properties; unnamed runtime options must be off."""
        defaults = {"encode": None, "embedding": None, "vision": None, "tag": None}
        for name in self.names:
            spec = self.experiment.by_id[name]
            if all(getattr(spec, key) == value for key, value in {**defaults, **wanted}.items()):
                return name
        return None
