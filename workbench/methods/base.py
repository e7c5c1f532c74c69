"""What depends on a run's method: which probe its students are asked by."""

import importlib

import pandas as pd

from workbench.runs.run import Run


def probe(run: Run) -> dict[str, pd.DataFrame]:
    """Ask every student of a run about every draft by the recipe's method, or reuse what the run has."""
    return importlib.import_module(f"workbench.methods.{run.recipe.method}").probe(run)


def by_influence(work: Run) -> bool:
    """Say whether the run's student was asked by local data influence instead of one-shot probes."""
    return work.recipe.method == "montessori"
