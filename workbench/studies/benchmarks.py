"""Standard benchmarks through lm-evaluation-harness, beside the verdict: what else changed in the students?

Asked are each student untrained and, of the primary comparison's two arms, the student of the first seed. The harness's
own response cache is never used, since it is not keyed by the model; what is finished is kept here, keyed by everything
that can change it.
"""

import difflib
import importlib.metadata
import importlib.util
from pathlib import Path

import pandas as pd

from workbench.loop.alignment import models_of
from workbench.models.loading import load
from workbench.models.start import students_of
from workbench.runs.cache import read_json, write_json
from workbench.runs.errors import DataError
from workbench.runs.recipe import Recipe, project_root
from workbench.runs.run import Run, file_sha256, fingerprint
from workbench.verdict.evaluation import everyone

VERSION = 1
COLUMNS = ["student", "arm", "benchmark", "metric", "value", "stderr", "n"]


def ask(run: Run) -> pd.DataFrame:
    """Ask the run's students the benchmarks its recipe names, or return what was found before.

    Returns:
        Columns student, arm, benchmark, metric, value, stderr and n (items); empty if the recipe names none.
    """
    recipe, rows = run.recipe, []
    if not recipe.benchmarks.tasks:
        return pd.DataFrame(columns=COLUMNS)
    models, path = models_of(run.result("students"), "students"), run.path / "benchmarks.json"
    compared = (recipe.evaluation.primary.a, recipe.evaluation.primary.b)
    for student, arm, seed, model in everyone(students_of(recipe), models):
        if not (arm == "base" or arm in compared and seed == recipe.seeds[0]):
            continue
        key = fingerprint([VERSION, model.fingerprint, _what_is_asked(recipe)])
        found = read_json(path)
        if key not in found:
            found[key] = ask_model(recipe, model.ref)
            write_json(path, found)
        rows += [{"student": student, "arm": arm, **row} for row in found[key]]
    return pd.DataFrame(rows, columns=COLUMNS)


def ask_model(recipe: Recipe, ref: str) -> list[dict]:
    """Return what a model scores on the recipe's benchmarks: benchmark, metric, value, stderr, n."""
    tasks = _known(recipe)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    loaded = load(ref, recipe.models.dtype, recipe.compute.device)
    found = simple_evaluate(
        HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=recipe.training.batch_size),
        tasks=recipe.benchmarks.tasks,
        task_manager=tasks,
        limit=recipe.benchmarks.n_items or None,
        apply_chat_template=bool(loaded.tokenizer.chat_template),
        use_cache=None,
        log_samples=False,
        bootstrap_iters=1000,
    )
    rows, counts = [], found["n-samples"]
    for name, scores in found["results"].items():
        for metric, value in scores.items():
            if isinstance(value, int | float) and "," in metric and "_stderr," not in metric:
                stderr = scores.get(metric.replace(",", "_stderr,", 1))
                row = {"benchmark": name, "metric": metric.removesuffix(",none"), "value": float(value)}
                # The harness writes "N/A" where it has no standard error.
                row["stderr"] = float(stderr) if isinstance(stderr, int | float) else None
                rows.append(row | {"n": counts[name]["effective"] if name in counts else 0})
    return rows


def _what_is_asked(recipe: Recipe) -> list:
    """Return all that decides what is asked: the recipe's section, the harness, and the files of local benchmarks."""
    _require_installed()
    folder = _folder(recipe)
    files = {path.name: file_sha256(path) for path in sorted(folder.glob("*")) if path.is_file()} if folder else {}
    return [recipe.section_json("benchmarks", "models.dtype"), importlib.metadata.version("lm_eval"), files]


def _folder(recipe: Recipe) -> Path | None:
    return project_root() / Path(recipe.benchmarks.folder).expanduser() if recipe.benchmarks.folder else None


def _require_installed() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise DataError(
            "benchmarks.tasks are asked through lm-evaluation-harness, which is not installed; run: "
            "make lm-eval, or take them out."
        )


def _known(recipe: Recipe):
    """Return the harness's list of tasks, the folder's own alone if they are all that is asked for."""
    _require_installed()
    from lm_eval.tasks import TaskManager

    folder, wanted = _folder(recipe), recipe.benchmarks.tasks
    if folder and not folder.is_dir():
        raise DataError(f"benchmarks.folder {folder} is no folder; name the one that holds the YAML files.")
    if folder:
        tasks = TaskManager(include_path=str(folder), include_defaults=False)
        if set(wanted) <= set(tasks.all_tasks):
            return tasks
    tasks = TaskManager(include_path=str(folder) if folder else None)
    if unknown := [name for name in wanted if name not in tasks.all_tasks]:
        close = difflib.get_close_matches(unknown[0], tasks.all_tasks, n=1)
        fix = f"did you mean {close[0]}?" if close else "correct it, or put its YAML file into benchmarks.folder."
        raise DataError(f"benchmarks.tasks names {unknown[0]!r}, which lm-evaluation-harness does not know; {fix}")
    return tasks
