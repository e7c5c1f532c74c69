"""What a student says of a draft; each method has one module here whose probe is its stage."""

import importlib

import pandas as pd

from workbench.store import Run

PROBES = {"arte": "icl", "montessori": "montessori"}


def probe(run: Run) -> dict[str, pd.DataFrame]:
    """Ask every student of a run about every draft by the recipe's method, or reuse what the run has."""
    return importlib.import_module(f"workbench.signals.{PROBES[run.recipe.method]}").probe(run)
