"""Make the finished run that ships again: `python -m data.samples.run.make RUN`, from a run whose tests may be anywhere.

Its frames are written anew, packed tightly; models, notebooks and what tells a place on this machine are left out.
"""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd

from workbench.runs.cache import atomic_write, read_json
from workbench.runs.run import MANIFEST, SHIPPED, Run, file_sha256, open_run

FOLDER = Path(__file__).parent
LEFT_OUT = "data/bbh"  # where the recipe looks for test items that are not shipped


def make(run: Run, folder: Path = FOLDER) -> None:
    """Write the frames, manifests, recipe and verdict of a run into a folder, small enough to ship."""
    for step in run.steps():
        shutil.rmtree(folder / step, ignore_errors=True)
        (folder / step).mkdir(parents=True)
        manifest = run.manifest(step)
        for name in manifest["files"]:
            path = folder / step / f"{name}.parquet"
            pd.read_parquet(run.path / step / path.name).to_parquet(
                path, index=False, compression="zstd", compression_level=19
            )
            manifest["files"][name] = file_sha256(path)
        atomic_write(folder / step / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    tests = {"bbh_dir": LEFT_OUT if run.recipe.evaluation.bbh_dir else ""}
    recipe = run.recipe.model_copy(update={"evaluation": run.recipe.evaluation.model_copy(update=tests)})
    atomic_write(folder / "recipe.yaml", recipe.to_yaml().encode())
    atomic_write(folder / "verdict.json", json.dumps(read_json(run.path / "verdict.json"), indent=1).encode() + b"\n")
    about = {"run": run.name, "made_by": f"python -m data.samples.run.make {run.name}"}
    atomic_write(folder / SHIPPED, (json.dumps(about) + "\n").encode())


if __name__ == "__main__":
    make(open_run(sys.argv[1]))
