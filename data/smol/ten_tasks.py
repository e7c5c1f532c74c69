"""What SmolLM2-135M-Instruct answers to ten tasks untaught, asked as pocket models are and as chat models are.

    python -m data.smol.ten_tasks FOLDER           FOLDER holds BIG-Bench Hard's files (boolean_expressions.json ...)

Twenty-four items a task; one-shot, the demonstration is another item with its bare answer in the form asked for.
"""

import sys
import time
from pathlib import Path

import pandas as pd

from data.smol.make import MODEL
from workbench.loop import prompts
from workbench.loop.writing import AskJob, complete_job
from workbench.models import start
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_file import load_recipe
from workbench.runs.workers import one_thread
from workbench.tasks.task import Task, load_tasks, seed_pairs

N_ITEMS = 24
BBH = {
    "boolean_expressions": "boolean",
    "navigate": "boolean",
    "sports_understanding": "boolean",
    "web_of_lies": "boolean",
    "date_understanding": "option",
    "hyperbaton": "option",
    "tracking_shuffled_objects_three_objects": "option",
    "multistep_arithmetic_two": "number",
}


def recipe_of(asked: str, folder: Path) -> Recipe:
    """Return the recipe arte-smol with the eight tasks beside its two, asked in one of two ways."""
    recipe = load_recipe("arte-smol", {"prompts": f"{{asked: {asked}}}", "models.teacher": str(MODEL)})
    described = {name: f"Answer a question of the kind {name.replace('_', ' ')}." for name in BBH}
    sources = {
        name: {"path": str(folder / f"{name}.json"), "question": "input", "answer": "target", "answer_type": kind}
        | {"description": described[name], "duplicates": "drop"}
        for name, kind in BBH.items()
    }
    tasks = recipe.tasks.model_dump() | {"names": [*recipe.tasks.names, *BBH]}
    tasks["sources"] |= sources
    return Recipe.model_validate(recipe.model_dump() | {"tasks": tasks})


def answers(recipe: Recipe, task: Task) -> dict:
    """Return a row of the table: percent right, in form and ended by itself, zero- and one-shot, and the majority."""
    student, items = start.students_of(recipe)["smol"], task.validation.head(N_ITEMS)
    question, target = seed_pairs(task, 1)[0]
    shown = (task.description, question, prompts.answer_in_form(target, task.prompts))
    row = {"task": task.name, "asked": recipe.prompts.asked, "majority": task.majority(items["target"])}
    for kind in ("0", "1"):
        asked = [
            prompts.one_shot_prompt(*shown, one, task.prompts)
            if kind == "1"
            else ("", prompts.naive_prompt(task.description, one, task.prompts))
            for one in items["question"]
        ]
        written = complete_job(AskJob(student, kind, asked, recipe.evaluation.max_new_tokens))
        right = [
            task.answers.same(task.answers.read(one.text), gold)
            for one, gold in zip(written, items["target"], strict=True)
        ]
        row[f"{kind}: right"] = sum(right) / len(right)
        row[f"{kind}: in form"] = sum(prompts.in_form(one.text, task.prompts) for one in written) / len(written)
        row[f"{kind}: ended"] = sum(one.finished for one in written) / len(written)
    return row


def main(folder: str) -> None:
    """Print the table, a row as it is known."""
    rows = []
    for asked in ("pocket", "chat"):
        recipe = recipe_of(asked, Path(folder).resolve())
        with start.sharing(), one_thread():
            for task in load_tasks(recipe).values():
                began = time.monotonic()
                rows.append(answers(recipe, task))
                print(f"{task.name}, {asked}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    numbers = table.select_dtypes("number").columns
    table[numbers] = (100 * table[numbers]).round().astype(int)
    print(table.sort_values(["task", "asked"], ascending=[True, False]).to_csv(sep="|", index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
