"""Measure a sweep against the stages it consists of, each counted once however many settings share it.

python -m tests.benchmarks.sweep_time arte-demo -p alignment.beta 0.05,0.1,0.2

The stages' own seconds are those of their manifests; where runs share one, the longest, which is the first. What is
above that are notebooks, pages and reading what is finished.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import Run

NAME = "timed"


def stages(folder: Path) -> pd.DataFrame:
    """Return a row a step of every run: run, step, key, seconds."""
    rows = []
    for path in sorted(folder.glob(f"{NAME}-*/recipe.yaml")):
        run = Run(path.parent.name, path.parent, load_recipe(path))
        manifests = [run.manifest(step) for step in run.steps()]
        rows += [{"run": run.name, **{key: one[key] for key in ("step", "key", "seconds")}} for one in manifests]
    return pd.DataFrame(rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_RUNS"] = folder
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "workbench", "sweep", *sys.argv[1:], "--name", NAME],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        took, table = time.perf_counter() - began, stages(Path(folder))
    distinct = table.groupby(["step", "key"])["seconds"].max()
    print(table.pivot_table(index="step", columns="run", values="seconds", sort=False).round(1).to_string())
    print(
        f"The sweep took {took:.0f} s; its {len(distinct)} distinct stages of {len(table)} took {distinct.sum():.0f} s "
        f"by themselves: {took / distinct.sum():.2f} times."
    )


if __name__ == "__main__":
    main()
