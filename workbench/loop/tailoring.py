"""Alignment: preference pairs, a teacher aligned to each student by DPO, and the examples each teacher then writes.

Source: ARTE, arXiv:2406.19227, section 3.3 and appendices F and G. Where the paper contradicts itself, questions are
written at temperature 1 and rationales greedily, as appendix F says. Ours: the control teacher aligned to the same
pairs with half of them flipped.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from workbench.loop import prompts
from workbench.loop.arms import aligned_arms, draft_examples, pairs_of_arm
from workbench.loop.new_questions import write_new_questions
from workbench.loop.pairs import build_pairs
from workbench.loop.reviews import Reviewed, Reviews, Standing, apply_reviews, digest, standing
from workbench.loop.writing import write_rationales
from workbench.models.backends import tune_dpo
from workbench.models.engine import Decoding
from workbench.models.start import engine_fingerprint, model_fingerprint, run_engine_jobs, start_engine
from workbench.models.trl import Tuned, teacher_folder, tuned
from workbench.runs import schemas
from workbench.runs.cache import shared_cache
from workbench.runs.recipe import BY_TRAINING_LOSS, Recipe
from workbench.runs.run import Run, Stage, fingerprint
from workbench.runs.schemas import text_id
from workbench.runs.seeding import stream_seed
from workbench.runs.workers import run_jobs
from workbench.tasks.task import Task, as_written, load_tasks

VERSION = 2
EVERY_STUDENT = ""  # the student of examples that no student's preference went into


@dataclass(frozen=True)
class _Align:
    recipe: Recipe
    student: str
    arm: str
    pairs: pd.DataFrame = field(repr=False)
    folder: Path

    def __repr__(self) -> str:
        return f"DPO of the teacher, {self.arm}, {self.student}"


@dataclass(frozen=True)
class _Write:
    recipe: Recipe
    teacher: str
    student: str
    arm: str
    seed: int
    task: Task

    def __repr__(self) -> str:
        return f"{self.arm} examples of {self.task.name} for {self.student or 'every student'}, seed {self.seed}"


def align(run: Run) -> dict[str, pd.DataFrame]:
    """Build pairs, align the teachers and let them write the training examples, or reuse what the run has.

    What people said of the pairs overrules the signal; the fingerprint leaves out their keeps and notes, which change
    no pair.

    Returns:
        pairs, curve and examples, and the reviews that were used if there were any, as their schemas describe them.
    """
    recipe, stage = run.recipe, run.stage("alignment")
    drafting, probing = stage.require("drafting"), stage.require("probing")
    tasks = load_tasks(recipe)
    teacher = model_fingerprint(recipe, "teacher", recipe.models.teacher)
    parents = {name: stage.run.stage(name).manifest["fingerprint"] for name in ("drafting", "probing")}
    sections = recipe.section_json(
        "pairs", "alignment", "tailoring", "drafting", "models.dtype", "seeds", "evaluation.arms", "guard"
    )
    # Read once: what is said while this works counts the next time.
    held = standing(Reviews.of_run(run).events())
    formed = _form_pairs(recipe, tasks, drafting, probing, held) if held else None
    said = {"reviews": changes} if formed and (changes := digest(formed.reviews)) else {}
    inputs = {"version": VERSION, "recipe": sections, "teacher": teacher, **parents, **said}
    if recipe.method == "montessori":
        inputs |= {"synthesis": recipe.synthesis.model_dump(), "influence": recipe.influence.model_dump()}
    mark = stage.fingerprint(inputs | engine_fingerprint(recipe, "teacher", compared=True))
    if stage.finished(mark):
        return {name: stage.read(name) for name in stage.manifest["files"]}
    start = time.monotonic()
    drafts, signals = drafting.read("drafts"), probing.read("signals")
    pairs, reviews, counts = formed or _form_pairs(recipe, tasks, drafting, probing, held)
    by_arm = {arm: pairs_of_arm(recipe, pairs, arm) for arm in aligned_arms(recipe)}
    if BY_TRAINING_LOSS in by_arm:
        by_loss, _ = build_pairs(recipe, tasks, *_frames(drafting, probing, "losses"))
        by_arm[BY_TRAINING_LOSS] = pairs_of_arm(recipe, by_loss, BY_TRAINING_LOSS)
        stage.write("pairs_by_loss", by_loss)
    aligned = _align_teachers(recipe, stage, by_arm, teacher)
    writers = as_written(recipe, tasks)
    rows = _write_examples(recipe, writers, aligned) + draft_examples(recipe, writers, drafts, signals)
    examples = schemas.build(rows, "examples")
    curve = [
        {"stage": "alignment", "arm": arm, "student": student, "seed": recipe.seeds[0], **point}
        for (student, arm), result in aligned.items()
        for point in result.curve
    ]
    made = {"pairs": pairs, "curve": schemas.build(curve, "curve"), "examples": examples}
    made |= {} if reviews.empty else {"reviews": reviews}
    frames = {name: stage.write(name, frame) for name, frame in made.items()}
    counts |= {"pairs": len(pairs), "examples": examples["kept"].sum()}
    counts |= {f"examples dropped, {why}": n for why, n in Counter(examples["drop_reason"]).items() if why}
    n_tokens = examples["n_tokens"].sum() + sum(result.n_tokens for result in aligned.values())
    stage.finish(mark, counts, time.monotonic() - start, n_tokens, parents | {"teacher": teacher})
    return frames


def _form_pairs(recipe: Recipe, tasks: dict[str, Task], drafting: Stage, probing: Stage, held: Standing) -> Reviewed:
    pairs, counts = build_pairs(recipe, tasks, *_frames(drafting, probing))
    changed = apply_reviews(pairs, held)
    return changed._replace(counts=counts | changed.counts)


def _frames(drafting: Stage, probing: Stage, signal: str = "signals") -> tuple[pd.DataFrame, ...]:
    """Return what pairs are built from: questions, drafts, what they are scored by, and probes."""
    return drafting.read("questions"), drafting.read("drafts"), probing.read(signal), probing.read("probes")


def _align_teachers(
    recipe: Recipe, stage: Stage, by_arm: dict[str, pd.DataFrame], teacher: str
) -> dict[tuple[str, str], Tuned]:
    """Return the aligned teachers by (student, arm), each aligned to the pairs of its arm."""
    jobs = []
    for arm, used in by_arm.items():
        for student in recipe.models.students:
            own = used[used["student"] == student].reset_index(drop=True)
            if own.empty:
                raise ValueError(
                    f"Student {student} left no preference pair for the arm {arm} (every group tied or of one sign, "
                    "or dropped by the rule or by reviews); lower pairs.min_gap and pairs.min_probability, draft more "
                    "questions or probe on a larger preference set."
                )
            if arm == "random_pairs" and not own["flipped"].any():
                raise ValueError(
                    f"Student {student} left a single preference pair, of which no half can be flipped; draft more "
                    "questions, or take random_pairs out of evaluation.arms."
                )
            jobs.append(_Align(recipe, student, arm, own, teacher_folder(stage.path, student, arm)))
    key = [VERSION, teacher, recipe.section_json("alignment", "models.dtype")]
    columns = ["prompt", "chosen", "rejected"]
    keyed = [(job, fingerprint([*key, _seed(job), job.pairs[columns].to_numpy().tolist()])) for job in jobs]
    results = run_jobs(_align_one, keyed, recipe.compute.trained_at_once, "aligning teachers")
    return {(job.student, job.arm): result for job, result in zip(jobs, results, strict=True)}


def _align_one(keyed: tuple[_Align, str]) -> Tuned:
    job, key = keyed
    return tuned(job.folder, key, lambda work: tune_dpo(job.recipe, job.pairs, work, _seed(job)))


def _seed(job: _Align) -> int:
    """Return the seed of a DPO run, the same for all arms of a student: they differ in the pairs alone."""
    return stream_seed(job.recipe.seeds[0], "dpo", job.student)


def _write_examples(recipe: Recipe, tasks: dict[str, Task], aligned: dict[tuple[str, str], Tuned]) -> list[dict]:
    teachers = {(student, arm): str(result.folder) for (student, arm), result in aligned.items()}
    if "untailored" in recipe.evaluation.arms:
        teachers[(EVERY_STUDENT, "untailored")] = recipe.models.teacher
    jobs = [
        _Write(recipe, folder, student, arm, seed, task)
        for (student, arm), folder in teachers.items()
        for seed in recipe.seeds
        for task in tasks.values()
    ]
    done = run_engine_jobs(_write_one, jobs, recipe, "teacher", "writing examples", compared=True)
    return [row for rows in done for row in rows]


def _write_one(job: _Write) -> list[dict]:
    recipe, task, tailoring = job.recipe, job.task, job.recipe.tailoring
    items = shared_cache()
    engine = start_engine(recipe, "teacher", job.teacher, compared=True)
    top_p = recipe.synthesis.top_p
    decoding = Decoding(tailoring.max_new_tokens, tailoring.question_temperature, top_p)
    given = (tailoring.n_examples, decoding, job.seed, "tailoring", items)
    written = write_new_questions(engine, recipe, task, *given)
    kept = [one for one in written if not one.drop_reason]
    asked = [
        (prompts.naive_prompt(task.description, one.question), f"tailored/{task.name}/{text_id(one.question)}")
        for one in kept
    ]
    decoding = Decoding(tailoring.max_new_tokens, tailoring.rationale_temperature, top_p)
    completions = iter(write_rationales(engine, asked, decoding, job.seed, items))
    rows = []
    for n, one in enumerate(written):
        text, n_tokens = "", 0
        reason = one.drop_reason
        if not reason:
            completion = next(completions)
            text, n_tokens = completion.text, completion.n_tokens
            reason = "" if task.answers.read(text) else "rationale without an answer"
        gold = task.solve(one.question)
        answer = task.answers.read(text)
        rows.append(
            {
                "example_id": text_id(f"{job.arm}/{job.student}/{job.seed}/{task.name}/{n}"),
                "arm": job.arm,
                "student": job.student,
                "seed": job.seed,
                "task": task.name,
                "question_id": text_id(one.question),
                "question": one.question,
                "rationale": text,
                "answer": answer,
                "gold": gold,
                "correct": task.answers.same(answer, gold),
                "style": task.style(text),
                "n_tokens": n_tokens,
                "kept": not reason,
                "drop_reason": reason,
            }
        )
    return rows
