"""One set of notebooks for several kinds of study: which cells belong to an experiment's task.

Cells up to and including the first after the parameters (imports, the experiment) are everyone's. Of the others, those
whose first line says ``detection`` or ``speed`` belong to studies of that task, the rest to retrieval. A study of speed
has cells of its own in the report alone; elsewhere it takes retrieval's. In a notebook, cells of another task do
nothing; the driver leaves them out of executed copies.
"""
MARKS = {"# detection": "detection", "<!-- detection -->": "detection", "# speed": "speed", "<!-- speed -->": "speed"}
#: Stages that a study of speed has no use for.
IDLE = {"speed": ("calibrate", "evaluate")}


def here(task: str, stage: str) -> str:
    """Whose cells an experiment of `task` uses in the notebook of `stage`."""
    return "retrieval" if task == "speed" and stage != "report" else task


def of(source: str) -> str:
    """The task of a cell after the shared ones, from its first line."""
    return MARKS.get(source.split("\n", 1)[0].strip(), "retrieval")


def cells(notebook, task: str) -> list:
    """The cells of a notebook that an experiment of `task` uses, in order."""
    setup = next(i for i, c in enumerate(notebook.cells)
                 if c.cell_type == "code" and not {"parameters", "injected-parameters"} & set(c.metadata.get("tags", [])))
    return [c for i, c in enumerate(notebook.cells) if i <= setup or of(c.source) == task]


def only(experiment, stage: str = "") -> str:
    """From here on, skip this notebook's cells of other tasks; returns the experiment's title."""
    from IPython import get_ipython
    wanted = here(experiment.task, stage)

    def skip(lines: list[str]) -> list[str]:
        return lines if of("".join(lines)) == wanted else []

    shell = get_ipython()
    if shell is not None:
        others = [f for f in shell.input_transformers_cleanup if getattr(f, "__name__", "") != "skip"]
        shell.input_transformers_cleanup[:] = [skip, *others]
    return experiment.title
