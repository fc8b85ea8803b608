"""The files of a run: parts, one set per finished variant, and the tables that they are pooled into."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from colq_utils.base import files
from colq_utils.base.errors import ColqError
from studies.seqlen import spec as study_spec
from studies.seqlen.spec import StudySpec

#: The tables of a study and what identifies a row of each.
TABLES = {
    "queries.parquet": ["task", "lang", "query_id", "variant"],
    "pages.parquet": ["lang", "scanned", "variant"],
}


@dataclass(frozen=True)
class SeqlenPlan:
    """What all processes of a run know."""

    study: str
    device: str
    scratch: Path
    deadline: float
    tasks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    @property
    def spec(self) -> StudySpec:
        return study_spec.load(self.study)

    def part(self, variant: str, table: str) -> Path:
        return self.scratch / "parts" / f"{variant}.{table}"


def base_digest(spec: StudySpec) -> str:
    return files.sha256(*sorted(Path(spec.model_path).glob("*.safetensors")))[:16]


def pool(plan: SeqlenPlan, out: Path, spec: StudySpec) -> pd.DataFrame:
    """Write what is finished into `out`: rows per query, per page group and per variant."""
    order = {v.id: i for i, v in enumerate(spec.variants)}
    records = [json.loads(path.read_text()) for path in plan.scratch.glob("parts/*.json")]
    known = [record for record in records if record["variant"] in order]
    runs = pd.DataFrame(sorted(known, key=lambda record: order[record["variant"]]))
    if runs.empty:
        return pd.DataFrame(columns=["variant", "error"])
    good = runs["variant"][runs["error"] == ""]
    for table, keys in TABLES.items():
        parts = [pd.read_parquet(plan.part(v, table)) for v in good]
        if parts:  # rows of one query lie side by side: they are nearly equal and compress well
            both = pd.concat(parts, ignore_index=True)
            both["variant"] = pd.Categorical(both["variant"], categories=list(order))
            both = both.sort_values(keys, kind="stable", ignore_index=True).astype({"variant": str})
            files.write_table(out / table, both)
    files.write_table(out / "runs.csv", runs)
    return runs


def unpool(plan: SeqlenPlan, out: Path, spec: StudySpec) -> None:
    """What an earlier run has pooled in `out`, as parts again."""
    if not (out / "runs.csv").exists():
        return
    runs = pd.read_csv(out / "runs.csv")
    runs["error"] = runs["error"].fillna("")
    if set(runs["base"][runs["error"] == ""]) - {base_digest(spec)}:
        raise ColqError(f"{out} holds results of another base: move them away, or give --out another folder")
    tables = {name: pd.read_parquet(out / name) for name in TABLES}
    for record in runs[runs["error"] == ""].to_dict("records"):
        variant = record["variant"]
        for name, table in tables.items():
            if not plan.part(variant, name).exists():
                files.write_table(plan.part(variant, name), table[table["variant"] == variant])
        if not plan.part(variant, "json").exists():
            known = {key: value for key, value in record.items() if pd.notna(value)}
            files.write_json(plan.part(variant, "json"), known)


def hopeless(runs: pd.DataFrame) -> bool:
    """Whether so many variants fail that going on is a waste of the device."""
    if "iters" not in runs:
        return len(runs) >= 8
    failed = int((runs["error"] != "").sum())
    return failed >= 8 and failed > int((runs["iters"] > 0).sum())
