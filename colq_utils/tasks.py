"""One set of notebooks for two kinds of study: which cells belong to an experiment's task.

Cells up to and including the first after the parameters (imports, the experiment) are everyone's. Of the others, those
whose first line says ``detection`` belong to detection studies, the rest to retrieval. In a notebook, cells of the
other task do nothing; the driver leaves them out of executed copies.
"""
MARKS = {"# detection": "detection", "<!-- detection -->": "detection"}


def of(source: str) -> str:
    """The task of a cell after the shared ones, from its first line."""
    return MARKS.get(source.split("\n", 1)[0].strip(), "retrieval")


def cells(notebook, task: str) -> list:
    """The cells of a notebook that an experiment of `task` uses, in order."""
    setup = next(i for i, c in enumerate(notebook.cells)
                 if c.cell_type == "code" and not {"parameters", "injected-parameters"} & set(c.metadata.get("tags", [])))
    return [c for i, c in enumerate(notebook.cells) if i <= setup or of(c.source) == task]


def only(experiment) -> str:
    """From here on, skip this notebook's cells of the other task; returns the experiment's title."""
    from IPython import get_ipython

    def skip(lines: list[str]) -> list[str]:
        return lines if of("".join(lines)) == experiment.task else []

    shell = get_ipython()
    if shell is not None:
        others = [f for f in shell.input_transformers_cleanup if getattr(f, "__name__", "") != "skip"]
        shell.input_transformers_cleanup[:] = [skip, *others]
    return experiment.title
