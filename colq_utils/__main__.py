"""The command line behind the Makefile: ``python -m colq_utils run tiny``."""
import argparse
import sys

from colq_utils.base.errors import ColqError


def main(arguments: list[str] | None = None, load=None, step=None) -> int:
    """Parse, act, and turn a user's mistake into one line and exit code 2. A study brings its own `load` and `step`."""
    parser = argparse.ArgumentParser(prog="colq_utils", description="Run the notebooks of an experiment.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute the notebooks, skipping what is fresh")
    run.add_argument("--stage", action="append", help="only this stage (may be repeated)")
    run.add_argument("--force", action="store_true", help="even if nothing changed")
    run.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter")
    render = commands.add_parser("render", help="executed notebooks to self-contained HTML")
    clean = commands.add_parser("clean", help="remove what can be made again (build/)")
    readme = commands.add_parser("readme", help="put the headline table of the results into README.md")
    plan = commands.add_parser("plan", help="what an experiment would run, fetch, take and occupy; runs nothing")
    for command in (run, render, clean, readme, plan):
        command.add_argument("experiment", help="name of a file in experiments/, or the path of one")
        command.add_argument("--output", default="", help="folder for results/, figures/ and build/ (default: the repository)")
    options = parser.parse_args(arguments)
    try:
        return act(options, load, step)
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a notebook's own copy cannot be written either
        from colq_utils.base.files import FULL, is_full
        if not is_full(error):
            raise
        print(f"error: {FULL}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; finished work is kept, the same command goes on from there", file=sys.stderr)
        return 130


def act(options: argparse.Namespace, load=None, step=None) -> int:
    from colq_utils.base import config
    experiment = (load or config.load)(options.experiment, options.output)
    if options.command == "clean":
        from colq_utils.run import clean
        clean(experiment)
    elif options.command == "render":
        from colq_utils.render import render
        print(render(experiment)[-1])
    elif options.command == "plan":
        from colq_utils import plan
        print(plan.text(plan.make(experiment)), end="")
    elif options.command == "readme":
        from colq_utils.report import build as report
        print(report.refresh_readme(config.ROOT / "README.md", experiment))
    else:
        from colq_utils import run
        stages = tuple(options.stage or experiment.stages)
        try:
            parameters = dict(p.split("=", 1) for p in options.parameter)
        except ValueError:
            raise ColqError("-p takes NAME=VALUE") from None
        try:
            run.run(experiment, options.experiment, stages, parameters, options.force, say=lambda line: print(line, flush=True), step=step or run.step)
        except run.StageFailed as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 2 if failure.mistake else 1
        if run.rejected(experiment):
            print(f"error: 03_quantize rejected {', '.join(run.rejected(experiment))}: results/{experiment.name}/quantize/variants.csv says why; "
                  "everything else is done and kept", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
