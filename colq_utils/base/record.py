"""Key values of a notebook, kept where tests and readers find them."""

import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import Experiment


def record(experiment: Experiment, stage: str, **values) -> pd.Series:
    """Write ``results/<experiment>/<stage>/recorded.json`` and return the values for display."""
    files.write_json(experiment.results(stage) / "recorded.json", values)
    return pd.Series(values, name=f"recorded by {stage}", dtype=object)
