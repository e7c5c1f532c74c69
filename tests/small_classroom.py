"""A classroom of models so small that the loop runs in seconds, and a process that dies where it is told."""

import importlib
import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from notebook_steps import compute

from workbench.loop import prompts
from workbench.runs.recipe import Recipe
from workbench.runs.seeding import stream

STAGES = ("drafting", "probing", "alignment", "training", "evaluation")
TASKS = ("web_of_lies", "object_counting")
SIZES = (1, 2)


def build(folder: Path) -> None:
    """Write two task files and train a teacher and a student that keep to the form, and one that cannot."""
    from data.pocket.make.classroom import DESCRIPTIONS, TECHNIQUES
    from data.pocket.make.questions import write
    from data.pocket.make.raising import Shape, make_tokenizer, new_model, save, train
    from workbench.tasks.pocket_questions import solve

    (folder / "tasks").mkdir()
    for task in TASKS:
        rng, items = stream(0, "small", task), {}
        while len(items) < 3 + 10 + 8:
            question = write(task, rng, SIZES)
            items[question] = {"input": question, "target": solve(task, question)}
        rows = list(items.values())
        content = {"solver": task, "description": DESCRIPTIONS[task], "techniques": TECHNIQUES}
        content |= {"seeds": rows[:3], "validation": rows[3:13], "test": rows[13:]}
        (folder / "tasks" / f"{task}.json").write_text(json.dumps(content))
    draw = partial(_text, stream(0, "small", "texts"))
    tokenizer = make_tokenizer("".join(piece for piece, _ in draw()) for _ in range(2000))
    shape = Shape(hidden=48, layers=2, heads=3, intermediate=96, n_tokens=500_000)
    model = train(draw, tokenizer, new_model(tokenizer, shape, seed=1), shape.n_tokens, shape.batch_tokens)
    save(model, tokenizer, folder / "teacher", {"name": "teacher"})
    # The student is the teacher with some of what it learned blurred: another model, and without another training.
    _blur(model, 0.2)
    save(model, tokenizer, folder / "student", {"name": "student"})
    _blur(model, 3.0)
    save(model, tokenizer, folder / "babbler", {"name": "babbler"})


def _blur(model, amount: float) -> None:
    import torch

    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        strange = torch.randn(parameter.shape, generator=noise) * parameter.float().std()
        parameter.data += (amount * strange).to(parameter.dtype)


def _text(rng) -> list[tuple[str, bool]]:
    from data.pocket.make.classroom import DESCRIPTIONS, TECHNIQUES
    from data.pocket.make.questions import write
    from data.pocket.make.raising import ASSISTANT, END, USER
    from data.pocket.make.rationales import rationale_for
    from workbench.tasks.pocket_questions import solve
    from workbench.tasks.pocket_styles import STYLES

    task, style = str(rng.choice(TASKS)), str(rng.choice(STYLES))
    asked = [write(task, rng, SIZES) for _ in range(4)]
    description, question = DESCRIPTIONS[task], asked[3]
    reply = rationale_for(task, question, style)
    kind = rng.random()
    if kind < 0.4:
        shots = [(q, rationale_for(task, q, style)) for q in asked[: int(rng.integers(0, 2))]]
        prompt = prompts.few_shot_prompt(description, shots, question)
    elif kind < 0.65:
        worked = [(q, solve(task, q)) for q in asked]
        prompt, reply = prompts.question_prompt(description, worked[:3], 1), prompts.question_reply(*worked[3])
    elif kind < 0.85:
        prompt = prompts.technique_prompt(description, TECHNIQUES[style], question)
    else:
        prompt = prompts.naive_prompt(description, question)
    return [(f"{USER}{prompt}{ASSISTANT}", False), (f" {reply}{END}", True)]


def recipe_of(folder: Path) -> Recipe:
    """Return a recipe for the classroom in the folder, as small as the loop allows."""
    settings = {"n_epochs": 2, "max_length": 256, "save_steps": 2}
    return Recipe.model_validate(
        {
            "name": "small",
            "profile": "pocket",
            "seeds": [1, 2],
            "models": {"teacher": str(folder / "teacher"), "students": {"pupil": str(folder / "student")}},
            "tasks": {"folder": str(folder / "tasks"), "names": list(TASKS)},
            "drafting": {"n_questions": 8, "questions_per_call": 1, "max_new_tokens": 60},
            "preference_set": {"n_validation": 10, "n_items": 8, "shots": [0, 1]},
            "pairs": {"n_question_pairs": 2},
            "alignment": {"beta": 0.1, "learning_rate": 1.0e-4, "batch_size": 2, **settings},
            "tailoring": {"n_examples": 6, "max_new_tokens": 60},
            "training": {"learning_rate": 1.0e-3, "batch_size": 4, **settings},
            "evaluation": {"n_items": 8, "shots": [0, 1], "max_new_tokens": 60},
            "compute": {"workers": 1, "batch_size": 12, "device": "cpu"},
        }
    )


def run_whole(runs: Path, recipe: Recipe, stages=STAGES) -> Path:
    """Run all stages of a recipe under the name "loop", uninterrupted; return the folder of runs."""
    from workbench.runs.run import open_run

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WORKBENCH_RUNS", str(runs))
        run = open_run("loop", recipe)
        for stage in stages:
            compute(stage, run)
    return runs


def run_until_killed(runs: str, recipe: Recipe, kill: tuple[str, str, int] | None, stages=STAGES) -> None:
    """Run all stages in this process; die by SIGKILL in a stage, after the n-th call of a method there.

    Args:
        runs: The folder of runs.
        recipe: What to run, under the name "loop".
        kill: Stage, "module:Class.method" and n; None to live.
        stages: Of the method, in order.
        stages: Of the method, in order.
    """
    os.environ["WORKBENCH_RUNS"] = runs
    from workbench.runs.run import open_run

    run = open_run("loop", recipe)
    for stage in stages:
        if kill and kill[0] == stage:
            _arm(*kill[1:])
        compute(stage, run)


def _arm(target: str, n: int) -> None:
    module, _, path = target.partition(":")
    *owners, method = path.split(".")
    owner = importlib.import_module(module)
    for name in owners:
        owner = getattr(owner, name)
    original, left = getattr(owner, method), [n]

    def deadly(*args, **kwargs):
        result = original(*args, **kwargs)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, deadly)
