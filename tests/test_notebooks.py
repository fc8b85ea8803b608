"""The notebooks: their contract, all six run headlessly at smoke size, the driver and mistakes."""

import dataclasses
import json
import re
import subprocess
import sys

import nbformat
import pytest

from colq_utils import run
from colq_utils.base import cache, config

NOTEBOOKS = [
    *sorted((config.ROOT / "notebooks").glob("*.ipynb")),
    *sorted((config.ROOT / "studies").rglob("*.ipynb")),
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_contract(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert tagged == code[:1], "the first code cell, and no other, holds the parameters"
    assert len(code) <= (25 if path.stem == "fp8_serving" else 15), "six stages in one"
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    for cell in code:
        assert not cell.outputs and cell.execution_count is None, "outputs are kept in results/, not here"
        assert len(cell.source.splitlines()) <= 12
        assert not re.search(r"^\s*(def|class)\s|^\s*[!%]pip", cell.source, re.M)
    intro = "\n".join(c.source for c in cells[:2]).lower()
    assert "?" in intro and "reads" in intro and "writes" in intro and ("takes" in intro or "time" in intro)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The whole smoke experiment, run once in a folder of its own."""
    experiment = config.load("smoke", tmp_path_factory.mktemp("smoke"))
    lines = []
    run.run(experiment, "smoke", say=lines.append)
    return experiment, lines


def recorded(experiment, stage):
    return json.loads((experiment.results(stage) / "recorded.json").read_text())


def test_every_stage_ran(outcome):
    experiment, lines = outcome
    assert [line.split()[0][3:] for line in lines if "done" in line] == list(config.STAGES)
    assert all((experiment.results("notebooks") / name).exists() for name in config.NOTEBOOKS.values())


def test_recorded_values(outcome):
    experiment, _ = outcome
    calibrate, quantize, evaluate = (recorded(experiment, s) for s in ("calibrate", "quantize", "evaluate"))
    assert calibrate["tokens"][0] == 8 * 64 and calibrate["shared_8grams"] == 0
    assert "tiny-w4a16-rtn" in quantize["accepted"] and not quantize["rejected"]
    assert evaluate["tasks"] == 2 and evaluate["queries"] > 400
    assert "ended early" not in (experiment.results("notebooks") / "05_evaluate.ipynb").read_text(), (
        "variants are evaluated side by side"
    )


def test_the_embedded_model_reads(outcome):
    import pandas as pd

    experiment, _ = outcome
    scores = pd.read_csv(experiment.results("evaluate") / "scores.csv")
    scores = scores[scores["task"] == "MiniVidoreReading"].set_index(["variant", "lang"])["ndcg_at_5"]
    assert (scores["tiny-bf16"] >= 0.95).all(), "the easy reading check, every language"
    assert (scores["tiny-w4a16-rtn"] >= 0.9).all() and (scores["bm25"] >= 0.95).all()


def test_reports_and_figures_are_there(outcome):
    experiment, _ = outcome
    reports = {p.name for p in (experiment.results("reports")).glob("*.md")}
    assert {"quantization_analysis.md", "comparison_english.md", "benchmark.md"} <= reports
    linked = 0
    for report in experiment.results("reports").glob("*.md"):
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", report.read_text()):
            linked += 1
            assert (report.parent / link).resolve().exists(), f"{report.name} links {link}"
    assert linked


def test_executed_notebooks_show_their_figures_and_no_local_path(outcome):
    experiment, _ = outcome
    pictures = 0
    for name in config.NOTEBOOKS.values():
        text = (experiment.results("notebooks") / name).read_text()
        pictures += text.count("image/png")
        assert str(config.ROOT) not in text and str(experiment.output) not in text, name
    assert pictures >= 5


def test_nothing_changed_means_nothing_runs(outcome, monkeypatch):
    experiment, _ = outcome
    monkeypatch.setattr(run, "execute", lambda *a: pytest.fail("ran again"))
    lines = []
    run.run(experiment, "smoke", say=lines.append)
    assert len(lines) == 6 and all(line.endswith("nothing changed") for line in lines)


def test_only_what_depends_on_a_change_is_stale(outcome, monkeypatch):
    experiment, _ = outcome
    before = {stage: run.fingerprint(run.step(experiment, stage), {}) for stage in config.STAGES}
    section = experiment.evaluation.model_copy(update={"margin": 0.01})
    after = {
        stage: run.fingerprint(run.step(experiment.model_copy(update={"evaluation": section}), stage), {})
        for stage in config.STAGES
    }
    assert [s for s in config.STAGES if before[s] != after[s]] == ["evaluate", "report"]


def test_editing_a_gpu_kernel_leaves_every_cpu_stage_fresh(outcome):
    """Staleness goes by reachable folders: the GPU path where it is run on, reports for 06 alone."""
    experiment, _ = outcome
    here = {stage: cache.code(experiment, stage) for stage in config.STAGES}
    on_gpu = experiment.model_copy(update={"runtime": config.Runtime(device="cuda")})
    with pytest.MonkeyPatch.context() as patch:
        digest = cache.digest
        patch.setattr(cache, "digest", lambda *parts: digest(*parts) + ("edited" if "fast" in parts else ""))
        assert {stage: cache.code(experiment, stage) for stage in config.STAGES} == here
        assert [s for s in config.STAGES if cache.code(on_gpu, s) != here[s]] == list(config.STAGES[:-1])
        patch.setattr(
            cache, "digest", lambda *parts: digest(*parts) + ("edited" if "report" in parts else "")
        )
        assert [s for s in config.STAGES if cache.code(experiment, s) != here[s]] == ["report"]


@pytest.mark.parametrize("stage", config.STAGES)
def test_what_a_stage_imports_lies_in_the_folders_it_is_keyed_by(stage):
    """Follows every import below a stage's folder, within functions too; the GPU path is keyed apart."""
    package = config.ROOT / "colq_utils"
    reachable = [package / part for part in cache.REACH[stage]]
    allowed, todo, seen = [*reachable, package / "fast"], [], set()
    for place in reachable:
        if "stages" in place.parts or (stage == "report" and place.name == "report"):
            todo += [place] if place.is_file() else sorted(place.rglob("*.py"))
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        assert any(path == place or place in path.parents for place in allowed), (
            f"{stage} reaches {path.relative_to(package)}"
        )
        for name in re.findall(r"from colq_utils\.([\w.]+) import ([^\n]+)", path.read_text()):
            base = package.joinpath(*name[0].split("."))
            todo += (
                [base.with_suffix(".py")]
                if base.with_suffix(".py").exists()
                else [f for word in re.findall(r"\w+", name[1]) if (f := base / f"{word}.py").exists()]
            )
    assert len(seen) > 5


def test_a_rejected_variant_is_in_the_exit_code(tmp_path, monkeypatch, capsys):
    """Everything ran, nothing failed; the exit of `make report` still says not to use a checkpoint."""
    from colq_utils.__main__ import main
    from colq_utils.base import files

    monkeypatch.setattr(run, "run", lambda *a, **k: [])
    assert main(["run", "smoke", "--output", str(tmp_path)]) == 0
    path = config.load("smoke", tmp_path).results("quantize") / "recorded.json"
    files.write_json(path, {"rejected": ["tiny-w4a16-rtn"]})
    assert main(["run", "smoke", "--output", str(tmp_path)]) == 1
    assert (
        "03_quantize rejected tiny-w4a16-rtn: results/smoke/quantize/variants.csv says why"
        in capsys.readouterr().err
    )
    files.write_json(path, {"rejected": []})
    assert main(["run", "smoke", "--output", str(tmp_path)]) == 0


def test_a_checkpoint_that_is_cut_short_is_made_again(outcome):
    experiment, _ = outcome
    weights = next(experiment.build("checkpoints").rglob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert not run.is_fresh(experiment, run.step(experiment, "quantize"), {})
    weights.write_bytes(content)
    assert run.is_fresh(experiment, run.step(experiment, "quantize"), {})


def test_a_figure_that_is_gone_is_drawn_again(outcome):
    experiment, _ = outcome
    figure = experiment.figures / "headline.png"
    content = figure.read_bytes()
    figure.unlink()
    assert not run.is_fresh(experiment, run.step(experiment, "report"), {}) and run.is_fresh(
        experiment, run.step(experiment, "evaluate"), {}
    )
    figure.write_bytes(content)
    assert run.is_fresh(experiment, run.step(experiment, "report"), {})


def test_render(outcome):
    from colq_utils.render import render

    experiment, _ = outcome
    pages = render(experiment.output, experiment.name)
    index = pages[-1].read_text()
    names = {page.stem for page in pages[:-1]}
    assert {"summary", "benchmark", "01_inspect", "06_report"} <= names
    for page in pages[:-1]:
        html = page.read_text()
        assert page.name in index and not re.search(r'<(script|link|img)[^>]+(src|href)="https?://', html)


def test_readme_shows_the_committed_results():
    from colq_utils.report import analysis, results
    from colq_utils.report import build as report

    tiny = config.load("tiny")
    snippet = report.headline(analysis.study(results.load(tiny)))
    assert (config.ROOT / "README.md").read_text().split(report.MARKER)[1].strip() == snippet.strip()


def command(*arguments):
    """The command line as a user has it."""
    return subprocess.run(
        [sys.executable, "-m", "colq_utils", *arguments], cwd=config.ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nonesuch"], "no experiment 'nonesuch'; there are:"),
        (["run", "smoke", "--stage", "train"], "no stage 'train'; the stages of smoke are: inspect"),
        (
            ["run", "smoke", "--stage", "inspect", "-p", "colour=blue"],
            "has no parameter 'colour'; it has: experiment, output",
        ),
        (["run", "smoke", "--stage", "evaluate"], "make quantize EXPERIMENT=smoke"),
        (["run", "smoke", "--stage", "report"], "make evaluate EXPERIMENT=smoke"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    extra = ["--output", str(tmp_path)] if arguments[1] == "smoke" else []
    done = command(*arguments, *extra)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.rglob("*.csv"))


def test_a_failing_cell_names_itself_and_the_partial_notebook(tmp_path, monkeypatch):
    experiment = config.load("smoke", tmp_path)
    broken = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell('experiment = "tiny"\noutput = ""', metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("1 / 0"),
        ],
        metadata={"language_info": {"name": "python"}},
    )
    (tmp_path / "notebooks").mkdir()
    nbformat.write(broken, tmp_path / "notebooks" / config.NOTEBOOKS["inspect"])
    step = dataclasses.replace(
        run.step(experiment, "inspect"), notebook=tmp_path / "notebooks" / config.NOTEBOOKS["inspect"]
    )
    with pytest.raises(run.StageFailed, match="ZeroDivisionError") as failure:
        run.execute(experiment, step, "smoke", {})
    assert "1 / 0" in str(failure.value) and str(experiment.build("executed")) in str(failure.value)
    assert not (experiment.results("notebooks") / config.NOTEBOOKS["inspect"]).exists()
