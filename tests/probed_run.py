"""A run that was drafted and probed without a model, for what begins with its pairs; aligning it is real and quick."""

import numpy as np
import pandas as pd

from data.pocket.make.rationales import rationale_for
from workbench.loop import prompts
from workbench.loop.pairs import build_pairs
from workbench.methods import ALL
from workbench.models.start import students_of
from workbench.runs import schemas
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run, open_run
from workbench.signals import scores
from workbench.tasks.pocket_styles import STYLES
from workbench.tasks.task import load_tasks, seed_pairs

TASK = "object_counting"
STUDENTS = ("ada", "bo")


def recipe_of(n_questions: int = 6, n_items: int = 8, students=STUDENTS) -> Recipe:
    """Return a recipe on the shipped models, as small as an alignment can be."""
    tuning = {"learning_rate": 1.0e-5, "n_epochs": 1, "batch_size": 4, "max_length": 512}
    return Recipe.model_validate(
        {
            "name": "probed",
            "profile": "pocket",
            "seeds": [1, 2],
            "models": {
                "teacher": "data/pocket/teacher",
                "students": dict.fromkeys(students, "data/pocket/tally-strong"),
            },
            "tasks": {"folder": "data/pocket/tasks", "names": [TASK]},
            "drafting": {"n_questions": n_questions, "questions_per_call": 1, "max_new_tokens": 60},
            "preference_set": {"n_validation": n_items, "n_items": n_items, "selection": "random"},
            "pairs": {"n_question_pairs": 1},
            "alignment": {"beta": 0.1, **tuning},
            "tailoring": {"n_examples": 2, "max_new_tokens": 40},
            "training": tuning,
            "evaluation": {
                "n_items": 4,
                "max_new_tokens": 40,
                "arms": ["base", "tailored"],
                "shots": [0],
                "primary": {"a": "tailored", "b": "base"},
            },
            "compute": {"workers": 1, "batch_size": 16, "device": "cpu"},
        }
    )


def write_run(name: str = "probed", recipe: Recipe | None = None, rationales: list[str] | None = None) -> Run:
    """Store questions, drafts, probes and signals of a run; the answers are drawn, each style with its own chance.

    Args:
        name: Of the run.
        recipe: What it is to hold.
        rationales: Texts to take, over and over, in place of real ones.
    """
    recipe = recipe or recipe_of()
    work, task = open_run(name, recipe), load_tasks(recipe)[TASK]
    rng, texts = np.random.default_rng(0), iter((rationales or []) * 1000)
    asked = task.validation.tail(recipe.drafting.n_questions)
    questions, drafts = [], []
    shown = seed_pairs(task, recipe.drafting.n_seed_questions)
    prompt = prompts.question_prompt(task.description, shown, recipe.drafting.questions_per_call)
    for n, (question, target) in enumerate(zip(asked["question"], asked["target"], strict=True)):
        one = {"task": TASK, "question_id": schemas.text_id(question), "question": question}
        reply = prompts.question_reply(question, target)
        more = {"drafted_target": target, "reply": reply, "prompt_id": "p", "call": n, "index": 0}
        more["prompt"] = prompt
        questions.append(one | more | {"kept": True, "drop_reason": ""})
        for style in STYLES:
            text = next(texts, None) or " " + rationale_for(TASK, question, style)
            draft = {"draft_id": schemas.text_id(f"{question}/{style}/{text}"), **one, "technique": style}
            # Tally is right and diary is not, wherever that can be told.
            right = style != "diary"
            draft |= {"rationale": text, "answer": target if right else "99", "gold": target, "correct": right}
            drafts.append(draft | {"n_tokens": 20})
    questions, drafts = schemas.build(questions, "questions"), schemas.build(drafts, "drafts")
    items = task.validation.head(recipe.preference_set.n_items).assign(task=TASK, chosen=True)
    items = items.assign(discrimination=np.nan, difficulty=np.nan)
    chance = {"tally": 0.8, "meter": 0.6, "story": 0.5, "diary": 0.4}
    probes = pd.DataFrame(
        [
            {"student": student, "draft_id": draft.draft_id, "item_id": item.item_id, "answer": item.target}
            | {"correct": bool(rng.random() < chance[draft.technique]), "parsed": True, "n_tokens": 40}
            for student in recipe.models.students
            for draft in drafts.itertuples()
            for item in items.itertuples()
        ]
    )
    probes.loc[~probes["correct"], "answer"] = "0"
    columns = list(schemas.SCHEMAS["preference_set"].columns)
    store(work, questions=questions, drafts=drafts, preference_set=items[columns], probes=probes)
    students = students_of(recipe)
    work.step("signals", scores.share_right, work.read("probes"), work.read("drafts"), students)
    return work


def store(work: Run, **frames: pd.DataFrame) -> None:
    """Store frames as finished steps."""
    for name, frame in frames.items():
        work.step(name, as_it_is, frame)


def form_pairs(work: Run) -> Run:
    """Form the pairs of a run that was written here, by the rules of its method."""
    frames = [work.read(name) for name in ("questions", "drafts", "signals", "probes")]
    rules, recipe = ALL[work.recipe.method].pair_rules, work.recipe
    work.step("pairs", build_pairs, rules, load_tasks(recipe), *frames, recipe.pairs, recipe.seeds[0])
    return work


def as_it_is(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame."""
    return frame
