"""Make a run that ships again: `python -m data.samples.run.make RUN`, from a run whose tests may be anywhere.

Its frames are written anew, packed tightly; models, notebooks and what tells a place on this machine are left out.
Of a studied run only what the study reads: `python -m data.samples.run.make RUN signals leaderboard`, or `goodhart
goodhart`: into that folder of data/samples, the table of that name with it.
"""

import shutil
import sys
from pathlib import Path

import pandas as pd

from workbench.runs.cache import atomic_write, write_json
from workbench.runs.run import MANIFEST, SHIPPED, VERDICT, Run, file_sha256, open_run

FOLDER = Path(__file__).parent
STEPS = {
    "signals": "questions exemplars preference_set drafts probes leaderboard",
    "goodhart": "questions exemplars preference_set drafts probes signals pairs reviewed teachers examples",
}
LEFT_OUT = "data/bbh"  # where the recipe looks for test items that are not shipped


def make(run: Run, study: str = "", table: str = "") -> None:
    """Write the frames, manifests and recipe of a run, and its verdict, into a folder, small enough to ship."""
    folder = FOLDER.parent / study if study else FOLDER
    for step in run.steps():
        if study and step.partition("/")[0] not in STEPS[study].split():
            continue
        shutil.rmtree(folder / step, ignore_errors=True)
        (folder / step).mkdir(parents=True)
        manifest = run.manifest(step)
        for name in manifest["files"]:
            path = folder / step / f"{name}.parquet"
            pd.read_parquet(run.path / step / path.name).to_parquet(
                path, index=False, compression="zstd", compression_level=19
            )
            manifest["files"][name] = file_sha256(path)
        write_json(folder / step / MANIFEST, manifest)
    tests = {"bbh_dir": LEFT_OUT if run.recipe.evaluation.bbh_dir else ""}
    recipe = run.recipe.model_copy(update={"evaluation": run.recipe.evaluation.model_copy(update=tests)})
    atomic_write(folder / "recipe.yaml", recipe.to_yaml().encode())
    if study:
        shutil.copy(run.path / f"{table}.parquet", folder)
    else:
        write_json(folder / VERDICT, run.verdict)
    by = " ".join(filter(None, [f"python -m data.samples.run.make {run.name}", study, table]))
    write_json(folder / SHIPPED, {"run": run.name, "made_by": by})


if __name__ == "__main__":
    make(open_run(sys.argv[1]), *sys.argv[2:])
