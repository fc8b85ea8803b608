"""The `colq` command: help that teaches, one-line errors, exit codes."""

import re
import subprocess
import sys

import pytest

from colq_utils import __main__ as command
from colq_utils import run
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
        "heavy = {'torch', 'transformers', 'pandas', 'papermill', 'nbconvert'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
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
