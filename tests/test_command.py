"""The `colq` command: help that teaches, one-line errors, exit codes; pages that run nothing; the Makefile's own help."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import nbformat
import pytest

from colq_utils import __main__ as command
from colq_utils import render, run
from colq_utils.base import config
from colq_utils.base.errors import ColqError

COMMANDS = ("run", "plan", "render", "readme", "clean", "new", "convert", "publish")
WITHOUT_EXPERIMENT = ("new", "convert")


def test_help_names_every_command(capsys):
    assert command.main([]) == 0
    alone = capsys.readouterr().out
    assert command.main(["--help"]) == 0
    assert capsys.readouterr().out == alone
    assert (
        re.findall(r"^  (\w+) +\w", alone.split("Commands:")[1], re.M) == list(COMMANDS)
        and "..." not in alone.split("Commands:")[1]
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example_and_what_comes_next(name, capsys):
    assert command.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"    colq {name}" in text and "Next: " in text
    assert name in WITHOUT_EXPERIMENT or ("EXPERIMENT" in text and "--output" in text)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from colq_utils.__main__ import main; main(['--help']); "
        "sys.exit(', '.join({'torch', 'transformers', 'pandas', 'papermill', 'nbconvert'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=config.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runn", "tiny"], "No such command 'runn'"),
        (["run"], "Missing argument 'EXPERIMENT'"),
        (["run", "tiny", "--colour"], "No such option: --colour"),
        (["run", "smoke", "-p", "colour"], "-p takes NAME=VALUE"),
        (["plan", "nonesuch"], "no experiment 'nonesuch'; there are:"),
        (["render", "nonesuch"], "results/nonesuch holds no report"),
    ],
)
def test_a_mistake_is_one_line_and_2(arguments, message, capsys):
    assert command.main(arguments) == 2
    shown = capsys.readouterr()
    assert (
        shown.err.startswith("error: ")
        and message in shown.err
        and shown.err.count("\n") == 1
        and not shown.out
    )


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept"),
        (ColqError("no such thing"), 2, "error: no such thing\n"),
        (OSError(28, "No space left on device"), 2, "error: the disk is full"),
        (run.StageFailed("cell 2 failed"), 1, "error: cell 2 failed"),
    ],
)
def test_exit_codes(raised, code, message, monkeypatch, tmp_path, capsys):
    def stop(*arguments, **options):
        raise raised

    monkeypatch.setattr(run, "run", stop)
    assert command.main(["run", "smoke", "--output", str(tmp_path)]) == code
    assert message in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "run", lambda *a, **k: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        command.main(["run", "smoke", "--output", str(tmp_path)])


def test_a_study_brings_its_own_load_and_step(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(
        run,
        "run",
        lambda experiment, source, stages, parameters, force, say, step: seen.update(
            source=source, stages=stages, parameters=parameters, force=force, step=step
        ),
    )
    load = lambda name, output: config.load("smoke", output)  # noqa: E731
    step = object()
    arguments = [
        "run",
        "another",
        "--stage",
        "inspect",
        "--stage",
        "report",
        "-p",
        "a=b=c",
        "--force",
        "--output",
        str(tmp_path),
    ]
    assert command.main(arguments, load=load, step=step) == 0
    assert seen == {
        "source": "another",
        "stages": ("inspect", "report"),
        "parameters": {"a": "b=c"},
        "force": True,
        "step": step,
    }


@pytest.fixture
def built(tmp_path):
    """A folder with a checkpoint of 3 MB and a result; the arguments that clean it."""
    for name, content in (
        ("build/smoke/checkpoints/a/model.safetensors", bytes(3_000_000)),
        ("results/smoke/quantize/variants.csv", b"x"),
        ("figures/smoke/a.png", b"x"),
        ("build/other/kept", b"x"),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path, ["clean", "smoke", "--output", str(tmp_path)]


def test_clean_names_what_goes_and_keeps_results(built, capsys):
    folder, arguments = built
    assert command.main([*arguments, "--yes"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"checkpoints +0\.003 GB", shown) and "keeps results/smoke and figures/smoke" in shown
    assert not (folder / "build/smoke").exists()
    assert all(
        (folder / kept).exists()
        for kept in ("results/smoke/quantize/variants.csv", "figures/smoke/a.png", "build/other/kept")
    )
    assert command.main(arguments) == 0 and "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("", 2)])
def test_clean_asks(built, answer, code):
    folder, arguments = built
    done = subprocess.run(
        [sys.executable, "-m", "colq_utils", *arguments],
        cwd=config.ROOT,
        input=answer,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert (folder / "build/smoke").exists() == (code == 2)


EVIL = '<script>alert("a")</script>'


@pytest.fixture
def written(tmp_path):
    """Results of two experiments: a report with a script in title and text, a picture, a fold and links; a notebook."""
    (tmp_path / "results/one/reports").mkdir(parents=True)
    (tmp_path / "results/two/notebooks").mkdir(parents=True)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.png").write_bytes(b"\x89PNG")
    (tmp_path / "results/one/reports/first.md").write_text(
        f"# A {EVIL} & `more`\n\n{EVIL}\n\nInline {EVIL} text, <img src=x onerror=alert(1)>.\n\n## What the *seed* moves\n\n"
        "![a figure](../../../figures/a.png) ![gone](../../../figures/b.png)\n\n"
        "<details>\n<summary>More</summary>\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n\n</details>\n\n<details onclick=alert(1)>\n\n"
        "[second](second.md#what-the-seed-moves) [bad](javascript:alert(1)) [out](https://example.org/)\n"
    )
    (tmp_path / "results/one/reports/second.md").write_text("# Second\n\n## What the seed moves\n")
    output = nbformat.v4.new_output(
        "execute_result", {"text/html": "<table><tr><td>1</td></tr></table>"}, execution_count=1
    )
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# 01 · Look"),
            nbformat.v4.new_code_cell("1 + 1", outputs=[output]),
        ]
    )
    nbformat.write(notebook, tmp_path / "results/two/notebooks/01_look.ipynb")
    return tmp_path


def test_index_lists_every_page_and_escapes_html(written):
    pages = render.render(written)
    index = pages[-1].read_text()
    assert pages[-1] == written / "results/html/index.html"
    links = re.findall(r'href="([^"]+)"', index)
    assert links == ["one/first.html", "one/second.html", "two/01_look.html"]
    assert all((pages[-1].parent / link) in pages for link in links)
    assert (
        "<script" not in index
        and "&lt;script&gt;alert(&#34;a&#34;)&lt;/script&gt; &amp; more" in index
        and "01 · Look" in index
    )


def test_pages_hold_everything_and_run_nothing(written):
    for page in render.render(written):
        text = page.read_text()
        assert f'content="{render.POLICY}"' in text and not re.search(
            r"<(script|link|iframe)|<img[^>]+(onerror|src=\"?(?!\"?data:))", text
        ), page


def test_a_report_becomes_a_page(written):
    text = next(page for page in render.render(written) if page.name == "first.html").read_text()
    assert "<details>" in text and "<summary>More</summary>" in text and "&lt;details onclick" in text
    assert '<td style="text-align:right">1</td>' in text and 'id="what-the-seed-moves"' in text
    assert 'src="data:image/png;base64,iVBORw=="' in text
    assert (
        "[gone]" in text
        and 'href="second.html#what-the-seed-moves"' in text
        and 'href="https://example.org/"' in text
        and "javascript:" not in text
    )


def test_rendering_one_leaves_the_others_in_the_index(written):
    assert "two/" not in render.render(written, "one")[-1].read_text()
    index = render.render(written, "two")[-1].read_text()
    assert "one/first.html" in index and "two/01_look.html" in index


def test_make_help_names_every_target():
    makefile = (config.ROOT / "Makefile").read_text()
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=config.ROOT, capture_output=True, text=True, check=True
    )
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.M)[1].split())
    assert (
        set(re.findall(r"^  make ([\w-]+) ", done.stdout, re.M))
        == targets
        == set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, re.M))
    )
    assert re.findall(r"^(\w+)$", done.stdout, re.M) == ["Run", "Look", "Develop"]


def test_make_clean_keeps_checkpoints():
    done = subprocess.run(
        ["make", "--dry-run", "clean"], cwd=config.ROOT, capture_output=True, text=True, check=True
    )
    removed = [line for line in done.stdout.splitlines() if "rm " in line]
    assert removed and not any(re.search(r"build|results|figures", line) for line in removed), removed


def test_what_is_imported_is_declared_and_locked():
    """Every package that the code imports by name is a dependency with a pin; every pin stands in requirements.lock."""
    project = tomllib.loads((config.ROOT / "pyproject.toml").read_text())["project"]
    pins = {
        pin.split(";")[0].strip().lower()
        for group in (project["dependencies"], *project["optional-dependencies"].values())
        for pin in group
    }
    locked = {line.lower() for line in (config.ROOT / "requirements.lock").read_text().splitlines()}
    assert pins - locked <= {pin.lower() for pin in project["optional-dependencies"]["cuda"]}
    sources = [
        path for folder in ("colq_utils", "studies", "tests") for path in (config.ROOT / folder).rglob("*.py")
    ]
    here = {"colq_utils", "studies", *(path.stem for path in (config.ROOT / "tests").glob("*.py"))}
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    modules = (
        {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - here - {"triton"}
    )  # comes with torch
    packages = packages_distributions()
    declared = {pin.split("==")[0].replace("_", "-") for pin in pins}
    missing = {
        module
        for module in modules
        if not {p.lower().replace("_", "-") for p in packages.get(module, [f"{module}-kernels"])} & declared
    }
    assert not missing, "imported, but in neither dependencies nor extras of pyproject.toml"


def test_contributing_names_what_is_there():
    """Every file that CONTRIBUTING.md names exists, and every name that it places in a file stands there."""
    text = (config.ROOT / "CONTRIBUTING.md").read_text()

    def where(path: str):
        return next((p for p in (config.ROOT / path, config.ROOT / "colq_utils" / path) if p.exists()), None)

    paths = [path for path in re.findall(r"`([\w./]+(?:/|\.(?:py|toml|lock|parquet)))`", text)]
    assert len(paths) > 20 and all(where(path) for path in paths), [path for path in paths if not where(path)]
    placed = re.findall(r"`(\w+)`(?: and `(\w+)`)? (?:in|of) `([\w/]+\.py)`", text)
    placed += re.findall(r"`(\w+)`() \(`([\w/]+\.py)`\)", text)
    assert len(placed) >= 7
    for first, second, path in placed:
        assert first in where(path).read_text() and second in where(path).read_text(), (first, second, path)
