"""Drafting: the unaligned teacher proposes questions, and a rationale of each by every reasoning technique.

Source: ARTE, arXiv:2406.19227, section 3.1 and appendices A and H. Ours: near-copies of known items are dropped and
counted; the seed questions get a rationale each, for the prompts with several demonstrations. By the method montessori
(arXiv:2410.14208) the teacher synthesises instructions, and responds to each by the plain prompt alone.
"""

import time
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from workbench.loop import prompts
from workbench.loop.new_questions import write_new_questions
from workbench.loop.writing import Written, write_rationales
from workbench.models.engine import Decoding, Engine
from workbench.models.start import engine_fingerprint, model_fingerprint, run_engine_jobs, start_engine
from workbench.runs import schemas
from workbench.runs.cache import Cache, shared_cache
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run
from workbench.runs.schemas import text_id
from workbench.tasks.task import Task, as_written, load_tasks, load_test_items, seed_pairs

VERSION = 3
PLAIN = "plain"  # what a response by the plain prompt is called where others have a technique


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    task: Task
    writer: Task
    seed: int

    def __repr__(self) -> str:
        return f"drafting {self.task.name}"


def draft(run: Run) -> dict[str, pd.DataFrame]:
    """Draft questions and rationales for every task of the run, or reuse those it has.

    Returns:
        questions, drafts and exemplars, as their schemas describe them.
    """
    recipe, stage = run.recipe, run.stage("drafting")
    tasks = load_tasks(recipe)
    teacher = model_fingerprint(recipe, "teacher", recipe.models.teacher)
    parents = {"teacher": teacher} | {f"task {name}": task.sha256 for name, task in tasks.items()}
    parents |= {f"test {name}": load_test_items(recipe, task)[1] for name, task in tasks.items()}
    sections = recipe.section_json("drafting", "tasks", "models.dtype", "guard")
    inputs = {"version": VERSION, "recipe": sections, "seed": recipe.seeds[0], **parents}
    if recipe.method == "montessori":
        seeds = {name: seed_pairs(task, len(task.seeds)) for name, task in as_written(recipe, tasks).items()}
        inputs |= {"method": recipe.method, "synthesis": recipe.synthesis.model_dump(), "seed questions": seeds}
    mark = stage.fingerprint(inputs | engine_fingerprint(recipe, "teacher"))
    names = ("questions", "drafts", "exemplars")
    if stage.finished(mark):
        return {name: stage.read(name) for name in names}
    start = time.monotonic()
    writers = as_written(recipe, tasks)
    jobs = [_Job(recipe, task, writers[name], recipe.seeds[0]) for name, task in tasks.items()]
    done = run_engine_jobs(_draft_task, jobs, recipe, "teacher", "drafting")
    frames = {name: stage.write(name, schemas.build([r for one in done for r in one[name]], name)) for name in names}
    questions, drafts = frames["questions"], frames["drafts"]
    counts = {"questions": questions["kept"].sum(), "drafts": len(drafts)}
    counts |= {f"questions dropped, {why}": n for why, n in Counter(questions["drop_reason"]).items() if why}
    counts["drafts without an answer"] = (drafts["answer"] == "").sum()
    stage.finish(mark, counts, time.monotonic() - start, drafts["n_tokens"].sum(), parents)
    return frames


def _draft_task(job: _Job) -> dict[str, list[dict]]:
    recipe, task, drafting, items = job.recipe, job.task, job.recipe.drafting, shared_cache()
    engine = start_engine(recipe, "teacher", recipe.models.teacher)
    decoding = Decoding(drafting.max_new_tokens, drafting.question_temperature, recipe.synthesis.top_p)
    given = (drafting.n_questions, decoding, job.seed, "drafting", items)
    written = write_new_questions(engine, recipe, job.writer, *given)
    if all(one.drop_reason for one in written):
        raise ValueError(
            f"The teacher wrote no usable question of {task.name} in {len(written)} tries (the last: "
            f"{written[-1].drop_reason}, {written[-1].reply[:60]!r}); take another models.teacher."
        )
    questions = [_question(recipe, task, one) for one in written]
    kept = [question for question in questions if question["kept"]]
    return {
        "questions": questions,
        "drafts": _draft_rationales(engine, job.writer, kept, recipe, job.seed, items),
        "exemplars": _work_exemplars(engine, task, drafting.n_seed_questions, recipe, items),
    }


def _question(recipe: Recipe, task: Task, one: Written) -> dict:
    return {
        "task": task.name,
        "question_id": text_id(f"{task.name}/{one.call}/{one.index}/{one.question}"),
        "question": one.question,
        "drafted_target": one.target,
        "reply": one.reply,
        "prompt_id": text_id(one.prompt),
        "call": one.call,
        "index": one.index,
        "kept": not one.drop_reason,
        "drop_reason": one.drop_reason,
        **({"prompt": one.prompt} if recipe.method == "montessori" else {}),
    }


def _techniques(recipe: Recipe, task: Task) -> dict[str, str]:
    """Return name and text of each way in which the teacher is asked for a rationale; plain responses have no text."""
    if recipe.method == "montessori":
        return {PLAIN if not n else f"{PLAIN}-{n + 1}": "" for n in range(recipe.synthesis.n_responses)}
    return task.techniques


def _draft_rationales(
    engine: Engine, task: Task, questions: list[dict], recipe: Recipe, seed: int, items: Cache
) -> list[dict]:
    asked = [
        (question, name, prompts.technique_prompt(task.description, technique, question["question"]))
        for question in questions
        for name, technique in _techniques(recipe, task).items()
    ]
    decoding = Decoding(recipe.drafting.max_new_tokens, recipe.drafting.rationale_temperature, recipe.synthesis.top_p)
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


def _work_exemplars(engine: Engine, task: Task, n: int, recipe: Recipe, items: Cache) -> list[dict]:
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
