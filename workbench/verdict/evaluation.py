"""Evaluation: every arm's student answers the same test items, and the verdict says what that shows.

The test set is opened here and nowhere else; each look is counted in the ledger. The decision rule is the recipe's,
fixed beforehand. Ours throughout; ARTE reports neither seeds nor intervals.
"""

import json
import time
from collections.abc import Iterator

import pandas as pd

from workbench.loop import prompts
from workbench.loop.reviews import newer_than_alignment
from workbench.loop.writing import AskJob, complete_job
from workbench.models.start import engine_fingerprint, run_engine_jobs
from workbench.models.trl import student_folder
from workbench.runs import schemas
from workbench.runs.cache import StoreError, atomic_write, read_json, record_test_access
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run, Stage, fingerprint
from workbench.tasks.overlap import overlap_report, overlap_warnings
from workbench.tasks.task import Task, load_tasks, load_test_items, name_of_test_set
from workbench.verdict.in_words import opened_in_words
from workbench.verdict.verdict import BASE_SEED, verdict

VERSION = 5


def evaluate(run: Run) -> dict[str, pd.DataFrame]:
    """Let every trained student and every untrained one answer the test items, and write verdict.json.

    Returns:
        predictions, as its schema describes it.
    """
    recipe, stage = run.recipe, run.stage("evaluation")
    drafting, training = stage.require("drafting"), stage.require("training")
    tasks = load_tasks(recipe)
    tests = {name: load_test_items(recipe, task) for name, task in tasks.items()}
    test_sha = fingerprint({name: [sha256, recipe.evaluation.n_items] for name, (_, sha256) in tests.items()})
    parents = {name: run.stage(name).manifest["fingerprint"] for name in ("drafting", "training")}
    sections = recipe.section_json("evaluation", "models.dtype", "models.students", "guard")
    inputs = {"version": VERSION, "recipe": sections, "test": test_sha, **parents}
    mark = stage.fingerprint(inputs | engine_fingerprint(recipe, "student", compared=True))
    # Without its verdict the stage is worked through again; its answers are all in the record of finished items.
    if stage.finished(mark) and (run.path / "verdict.json").exists():
        return {"predictions": stage.read("predictions")}
    start = time.monotonic()
    items = {name: frame for name, (frame, _) in tests.items()}
    # By file: the same items in another number, or beside other tasks, are no new test set.
    source = recipe.evaluation.bbh_dir or recipe.tasks.folder
    opened = max(record_test_access(sha256, f"{name} of {source}", mark) for name, (_, sha256) in tests.items())
    predictions, n_tokens = _answers(recipe, run.stage("training"), tasks, items, drafting.read("exemplars"))
    frames = {"predictions": stage.write("predictions", predictions)}
    test_set = {
        "name": name_of_test_set(recipe, tasks),
        "sha256": test_sha,
        "times_opened": opened,
        "note": opened_in_words(opened),
    }
    overlap = overlap_report(recipe, tasks, drafting.read("questions"), run.read("examples"))
    _write_verdict(run, predictions, training.read("curve"), test_set, overlap)
    counts = {"answers": len(predictions), "answers not readable": (~predictions["parsed"]).sum()}
    stage.finish(mark, counts, time.monotonic() - start, n_tokens, parents)
    return frames


def students_of(recipe: Recipe, training: Stage) -> Iterator[tuple[str, str, int, str]]:
    """Yield (student, arm, seed, model folder or id) of everyone who is evaluated."""
    for student, ref in recipe.models.students.items():
        if "base" in recipe.evaluation.arms:
            yield student, "base", BASE_SEED, ref
        for arm in recipe.trained_arms(student):
            for seed in recipe.seeds:
                yield student, arm, seed, str(student_folder(training.path, student, arm, seed))


def _answers(
    recipe: Recipe, training: Stage, tasks: dict[str, Task], items: dict[str, pd.DataFrame], exemplars: pd.DataFrame
) -> tuple[pd.DataFrame, int]:
    jobs, plans = [], []
    for student, arm, seed, ref in students_of(recipe, training):
        asked, plan = [], []
        for shots in recipe.evaluation.shots:
            for name, task in tasks.items():
                shown = exemplars[exemplars["task"] == name][["question", "rationale"]].head(shots)
                shown = list(shown.itertuples(index=False, name=None))
                for item in items[name].itertuples():
                    asked.append(("", prompts.few_shot_prompt(task.description, shown, item.question)))
                    plan.append((shots, task, item.item_id, item.target))
        jobs.append(AskJob(recipe, ref, f"{student}, {arm}, seed {seed}", asked, [], compared=True))
        plans.append((student, arm, seed, plan))
    rows, n_tokens = [], 0
    answers = run_engine_jobs(complete_job, jobs, recipe, "student", "answering test items", compared=True)
    for (student, arm, seed, plan), found in zip(plans, answers, strict=True):
        for (shots, task, item_id, target), completion in zip(plan, found, strict=True):
            answer = task.answers.read(completion.text)
            n_tokens += completion.n_tokens
            rows.append(
                {
                    "student": student,
                    "arm": arm,
                    "seed": seed,
                    "shots": shots,
                    "task": task.name,
                    "item_id": item_id,
                    "answer": answer,
                    "style": task.style(completion.text),
                    "parsed": bool(answer),
                    "correct": task.answers.same(answer, target),
                }
            )
    return schemas.build(rows, "predictions"), n_tokens


def _write_verdict(run: Run, predictions: pd.DataFrame, curve: pd.DataFrame, test_set: dict, overlap: dict) -> None:
    recipe = run.recipe
    took = curve[curve["metric"] == "tokens"]
    training = took.rename(columns={"value": "tokens", "step": "steps"})[["student", "arm", "seed", "tokens", "steps"]]
    models = (
        "pocket" if recipe.profile == "pocket" else f"{recipe.models.teacher} -> {', '.join(recipe.models.students)}"
    )
    result = verdict(
        predictions,
        recipe.evaluation.model_dump(),
        recipe=recipe.name,
        run=run.name,
        models=models,
        student=next(iter(recipe.models.students)),
        training=training,
        test_set=test_set,
        warnings=[*overlap_warnings(overlap), *filter(None, [newer_than_alignment(run)])],
    )
    result["overlap"] = overlap
    atomic_write(run.path / "verdict.json", (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())


def verdict_of(run: Run) -> dict:
    """Return the run's verdict as stored.

    Raises:
        StoreError: If the run has none yet.
    """
    found = read_json(run.path / "verdict.json")
    if not found:
        raise StoreError(
            f"Run {run.name} has no verdict yet; run notebooks/05_evaluation.ipynb or: "
            f"workbench run {run.recipe.name} --name {run.name}"
        )
    return found
