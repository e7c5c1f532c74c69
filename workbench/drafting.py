"""Drafting: the unaligned teacher proposes questions, and a rationale of each by every reasoning technique.

Source: ARTE, arXiv:2406.19227, section 3.1 and appendices A and H. Ours: near-copies of known items are dropped and
counted; the seed questions get a rationale each, for the prompts with several demonstrations.
"""

import time
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from workbench import prompts, records
from workbench.generation import Decoding, Engine
from workbench.items import Items, shared_items
from workbench.recipe import Recipe
from workbench.records import text_id
from workbench.starting import engine_mark, model_mark, run_engine_jobs, start_engine
from workbench.store import Run
from workbench.tasks import Task, load_tasks, load_test_items, seed_pairs
from workbench.writing import guard_of, refuse_copies, write_questions, write_rationales

VERSION = 2


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    task: Task
    seed: int

    def __repr__(self) -> str:
        return f"drafting {self.task.name}"


def draft(run: Run) -> dict[str, pd.DataFrame]:
    """Draft questions and rationales for every task of the run, or reuse those it has.

    Returns:
        questions, drafts and exemplars, as their schemas in records describe them.
    """
    recipe, stage = run.recipe, run.stage("drafting")
    tasks = load_tasks(recipe)
    teacher = model_mark(recipe, "teacher", recipe.models.teacher)
    parents = {"teacher": teacher} | {f"task {name}": task.sha256 for name, task in tasks.items()}
    parents |= {f"test {name}": load_test_items(recipe, task)[1] for name, task in tasks.items()}
    sections = recipe.section_json("drafting", "tasks", "models.dtype", "guard")
    inputs = {"version": VERSION, "recipe": sections, "seed": recipe.seeds[0], **parents}
    mark = stage.fingerprint(inputs | engine_mark(recipe, "teacher"))
    names = ("questions", "drafts", "exemplars")
    if stage.finished(mark):
        return {name: stage.read(name) for name in names}
    start = time.monotonic()
    jobs = [_Job(recipe, task, recipe.seeds[0]) for task in tasks.values()]
    done = run_engine_jobs(_draft_task, jobs, recipe, "teacher", "drafting")
    frames = {name: stage.write(name, records.build([r for one in done for r in one[name]], name)) for name in names}
    questions, drafts = frames["questions"], frames["drafts"]
    counts = {"questions": questions["kept"].sum(), "drafts": len(drafts)}
    counts |= {f"questions dropped, {why}": n for why, n in Counter(questions["drop_reason"]).items() if why}
    counts["drafts without an answer"] = (drafts["answer"] == "").sum()
    stage.finish(mark, counts, time.monotonic() - start, drafts["n_tokens"].sum(), parents)
    return frames


def _draft_task(job: _Job) -> dict[str, list[dict]]:
    recipe, task, drafting = job.recipe, job.task, job.recipe.drafting
    items = shared_items()
    engine = start_engine(recipe, "teacher", recipe.models.teacher)
    seeds = seed_pairs(task, drafting.n_seed_questions)
    prompt = prompts.question_prompt(task.description, seeds, drafting.questions_per_call)
    decoding = Decoding(drafting.max_new_tokens, drafting.question_temperature)
    written = write_questions(
        engine,
        task,
        prompt,
        drafting.n_questions,
        drafting.questions_per_call,
        decoding,
        job.seed,
        "drafting",
        items,
        guard_of(recipe, task),
    )
    refuse_copies(recipe, task, written)
    if all(one.drop_reason for one in written):
        raise ValueError(
            f"The teacher wrote no usable question of {task.name} in {len(written)} tries (the last: "
            f"{written[-1].drop_reason}, {written[-1].reply[:60]!r}); take another models.teacher."
        )
    questions = [
        {
            "task": task.name,
            "question_id": text_id(f"{task.name}/{one.call}/{one.index}/{one.question}"),
            "question": one.question,
            "drafted_target": one.target,
            "reply": one.reply,
            "prompt_id": text_id(prompt),
            "call": one.call,
            "index": one.index,
            "kept": not one.drop_reason,
            "drop_reason": one.drop_reason,
        }
        for one in written
    ]
    return {
        "questions": questions,
        "drafts": _draft_rationales(engine, task, [q for q in questions if q["kept"]], recipe, job.seed, items),
        "exemplars": _work_exemplars(engine, task, drafting.n_seed_questions, recipe, items),
    }


def _draft_rationales(
    engine: Engine, task: Task, questions: list[dict], recipe: Recipe, seed: int, items: Items
) -> list[dict]:
    asked = [
        (question, name, prompts.technique_prompt(task.description, technique, question["question"]))
        for question in questions
        for name, technique in task.techniques.items()
    ]
    decoding = Decoding(recipe.drafting.max_new_tokens, recipe.drafting.rationale_temperature)
    named = [(prompt, f"rationale/{question['question_id']}/{name}") for question, name, prompt in asked]
    drafts = []
    for (question, name, prompt), completion in zip(
        asked, write_rationales(engine, named, decoding, seed, items), strict=True
    ):
        answer, gold = task.answers.read(completion.text), task.solve(question["question"])
        drafts.append(
            {
                "draft_id": text_id(
                    f"{task.name}/{text_id(prompt)}/{name}/{question['question_id']}/{completion.text}"
                ),
                "task": task.name,
                "question_id": question["question_id"],
                "question": question["question"],
                "technique": name,
                "rationale": completion.text,
                "answer": answer,
                "gold": gold,
                "correct": task.answers.same(answer, gold),
                "n_tokens": completion.n_tokens,
            }
        )
    return drafts


def _work_exemplars(engine: Engine, task: Task, n: int, recipe: Recipe, items: Items) -> list[dict]:
    """Return the seed questions with the teacher's own rationale where it is right, else with the bare target."""
    seeds = task.seeds.head(n)
    asked = [(prompts.naive_prompt(task.description, question), "") for question in seeds["question"]]
    completions = write_rationales(engine, asked, Decoding(recipe.drafting.max_new_tokens), 0, items)
    exemplars = []
    for seed, completion in zip(seeds.itertuples(), completions, strict=True):
        worked = task.answers.same(task.answers.read(completion.text), seed.target)
        exemplars.append(
            {
                "task": task.name,
                "item_id": seed.item_id,
                "question": seed.question,
                "rationale": completion.text if worked else f"<ans>{seed.target}</ans>",
                "worked": worked,
            }
        )
    return exemplars
