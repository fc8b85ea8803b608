"""The `colq` command behind the Makefile: ``colq run tiny``, or ``python -m colq_utils run tiny``.

Each command's docstring is its ``--help``: what it does, an example, what comes next. Everything heavy is
imported within the commands, so that help appears at once. A study runs its own experiments through `main`.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from colq_utils.base import config
from colq_utils.base.errors import ColqError

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=HELP
)
Option = typer.Option
Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A file of experiments/, or its path.")]
Output = Annotated[
    str, Option(metavar="FOLDER", help="Where results/, figures/ and build/ are (default: the repository).")
]


@app.callback()
def colq():
    """Quantize a visual-document retriever and measure what that costs and gains.

    An experiment is one file in experiments/. Its notebooks run in order, each only when something that it
    depends on has changed; reports and figures are made from the results.

    \b
    Start here:
      colq plan tiny        what would run, and what it would take
      colq run tiny         run it: offline, on a CPU
      colq render tiny      the notebooks and reports as web pages

    Exit codes: 0 all is well, 1 a notebook failed or a quantized checkpoint was rejected, 2 a mistake to mend
    (the message says which), 130 interrupted.
    """


@app.command()
def run(
    context: typer.Context,
    name: Name,
    stage: Annotated[list[str] | None, Option(help="Only this stage; may be repeated.")] = None,
    force: Annotated[bool, Option("--force", help="Run even if nothing has changed.")] = False,
    parameter: Annotated[
        list[str] | None,
        Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter of the notebook."),
    ] = None,
    output: Output = "",
) -> int:
    """Run an experiment's notebooks, skipping fresh ones.

    Executed notebooks, tables and reports go to results/EXPERIMENT, figures to figures/EXPERIMENT,
    checkpoints to build/EXPERIMENT. After an interruption the same command goes on where it stopped.

    \b
    Examples:
      colq run tiny
      colq run tiny --stage benchmark --force

    Next: read results/EXPERIMENT/reports, or make web pages of it with `colq render EXPERIMENT`.
    """
    from colq_utils import run as driver

    load, step = context.obj
    experiment = load(name, output)
    if not all("=" in text for text in parameter or ()):
        raise ColqError("-p takes NAME=VALUE")
    parameters = dict(text.split("=", 1) for text in parameter or ())
    stages, step = tuple(stage or experiment.stages), step or driver.step
    try:
        driver.run(experiment, name, stages, parameters, force, lambda line: print(line, flush=True), step)
    except driver.StageFailed as failure:
        return _error(failure, 1)
    if rejected := driver.rejected(experiment):
        table = f"results/{experiment.name}/quantize/variants.csv"
        names = ", ".join(rejected)
        return _error(f"03_quantize rejected {names}: {table} says why; everything else is done and kept", 1)
    return 0


@app.command()
def plan(context: typer.Context, name: Name, output: Output = ""):
    """Show what an experiment would run; runs nothing.

    Also what it would download and occupy. GPU-hours are counted from measured rates where there are any, and
    are "not measured" where there are none.

    \b
    Example:
      colq plan tomoro-4b

    Next: `colq run EXPERIMENT`.
    """
    from colq_utils import plan as planning

    load, _ = context.obj
    print(planning.text(planning.make(load(name, output))), end="")


@app.command()
def render(
    name: Annotated[str | None, typer.Argument(metavar="EXPERIMENT", help="Default: all results.")] = None,
    output: Output = "",
):
    """Make web pages of notebooks and reports.

    Writes results/html: one index page, and a folder of pages per experiment. The pages need no network:
    pictures are inside. Without EXPERIMENT, everything in results/ is rendered.

    \b
    Example:
      colq render tiny

    Next: open results/html/index.html, or send the folder to someone.
    """
    from colq_utils import render as rendering

    print(rendering.render(Path(output or config.ROOT), name)[-1])


@app.command()
def readme(context: typer.Context, name: Name, output: Output = ""):
    """Put an experiment's table of scores into README.md.

    \b
    Example:
      colq readme tiny

    Next: look at the change with `git diff README.md`, then commit it with the results.
    """
    from colq_utils.report import build

    load, _ = context.obj
    print(build.refresh_readme(config.ROOT / "README.md", load(name, output)))


@app.command()
def clean(
    context: typer.Context,
    name: Name,
    output: Output = "",
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
):
    """Remove an experiment's checkpoints, after asking.

    Lists what is in build/EXPERIMENT (checkpoints, caches, the record of what is fresh) and how large it is,
    then removes the folder. To make it again can take hours. Results and figures stay.

    \b
    Examples:
      colq clean tiny
      colq clean tiny --yes

    Next: `colq run EXPERIMENT` makes it all again.
    """
    load, _ = context.obj
    experiment = load(name, output)
    folder = experiment.build()
    if not folder.exists():
        print(f"nothing to remove: {folder} does not exist")
        return
    for path in sorted(folder.iterdir()):
        print(f"  {path.name:<14} {_gigabytes(path):9.3f} GB")
    kept = f"results/{experiment.name} and figures/{experiment.name}"
    print(f"removes {folder} ({_gigabytes(folder):.3f} GB); keeps {kept}")
    if not yes and not typer.confirm("Remove it?"):
        raise typer.Abort
    shutil.rmtree(folder)
    print(f"removed {folder}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the experiment.")],
    model: Annotated[str, typer.Option(metavar="FOLDER|HUB_ID", help="The checkpoint to quantize.")],
    documents: Annotated[str, typer.Option(metavar="FOLDER", help="PDFs and pictures of pages.")],
    queries: Annotated[
        str | None, typer.Option(metavar="FILE", help="CSV (query, file, page, grade), or a query per line.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model (default: newest).")] = None,
) -> None:
    """Write an experiment for your checkpoint and your documents.

    Checks both and writes experiments/NAME.yaml, commented: the base, eight bits, four bits twice.
    With the pages that answer each query you get NDCG@5; without, how far a variant agrees with the base.

    \b
    Example:
      colq new mine --model models/tiny-colqwen3 --documents data/documents

    Next: `colq run NAME`.
    """
    from colq_utils import new as writing

    written = writing.write(name, model, documents, queries, revision)
    for row in written.documents[written.documents.problem != ""].itertuples():
        print(f"note: {row.file}: {row.problem}")
    asked = ", ".join(f"{n:,} {kind}" for kind, n in written.kinds.items()) or "no queries file"
    print(f"{len(written.documents):,} documents, {written.documents.pages.sum():,} pages; {asked}")
    print(f"wrote {written.path}\nnext: make report EXPERIMENT={name} (make plan says what it would take)")


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A ColQwen3 of colpali-engine.")],
    to: Annotated[Path, Option(metavar="FOLDER", help="The new folder.")],
) -> None:
    """Rewrite a model of colpali-engine in the published layout.

    \b
    Example:
      colq convert theirs --to ours

    Next: `colq new NAME --model ours --documents FOLDER`.
    """
    from colq_utils.model import convert as converting

    converting.convert(folder, to)
    print(f"wrote {to}")


@app.command()
def publish(
    context: typer.Context,
    name: Name,
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="Id of a quantized variant.")],
    to: Annotated[str, typer.Option(metavar="ORG/NAME", help="The repository on the hub.")],
    export: Annotated[str, typer.Option(help="Which packing (default: the one evaluated).")] = "",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    output: Output = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send it; without this nothing is sent.")] = False,
) -> None:
    """Show what publishing a checkpoint sends; --yes sends it.

    The card goes with it. A variant that 03_quantize rejected is refused. A new repository is private unless
    --public is given.

    \b
    Example:
      colq publish tiny tiny-w4a16-rtn --to me/tiny-colqwen3-w4a16

    Next: the same with --yes, after `hf auth login`.
    """
    from colq_utils import publish as publishing

    load, _ = context.obj
    upload = publishing.prepare(load(name, output), variant, to, export)
    print("\n".join([f"{upload.folder} to {to}:", *upload.lines()]))
    print(f"sent: {publishing.send(upload, not public)}" if yes else "nothing was sent; add --yes to send it")


def _gigabytes(path: Path) -> float:
    """GB of a file, or of all files below a folder."""
    paths = (p for p in (path, *path.rglob("*")) if p.is_file() and not p.is_symlink())
    return sum(p.stat().st_size for p in paths) / 1e9


def _error(message, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def main(arguments: list | None = None, load: Callable = config.load, step: Callable | None = None) -> int:
    """Run one command and return its exit code; a mistake of the user is one line on stderr and exit code 2.

    Args:
        arguments: those of the command line by default.
        load, step: a study's own way to read its experiment files and to describe a stage.
    """
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = typer.main.get_command(app)
    try:
        code = command(arguments, prog_name="colq", standalone_mode=False, obj=(load, step)) or 0
    except ColqError as error:
        return _error(error, 2)
    except typer.TyperException as error:
        return _error(f"{error.format_message()} (`colq --help` says what there is)", 2)
    except typer.Abort:
        return _error("nothing was removed; answer y, or give --yes", 2)
    except OSError as error:  # a notebook's own copy cannot be written either
        from colq_utils.base.files import FULL, is_full

        if not is_full(error):
            raise
        return _error(FULL, 2)
    if code == 130:  # what an interrupt becomes
        print("\ninterrupted; finished work is kept, the same command goes on from there", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
