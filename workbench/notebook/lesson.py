"""What a class sees and does in notebook 06: a small sample of a real run, and the loop in miniature, live."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from workbench import figures
from workbench.figures.verdict import block_of
from workbench.loop import prompts
from workbench.models.engine import Decoding, Request
from workbench.models.loading import render, render_shared
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.trl import tune_dpo
from workbench.runs.cache import StoreError, atomic_write, read_json
from workbench.runs.recipe import Recipe, project_root
from workbench.runs.run import Run, file_sha256
from workbench.runs.seeding import stream, stream_seed
from workbench.runs.workers import run_jobs
from workbench.tasks import answers
from workbench.tasks.pocket_questions import TEST_SIZES, solve, write
from workbench.tasks.task import Task, load_tasks
from workbench.verdict.intervals import clustered_mean, wilson

FOLDER = "data/samples/teaching"
STUDENTS = ("tally-strong", "story-strong", "diary-strong")
TASK = "object_counting"
# The recipe's method at a size for a lesson; a checkpoint after each of so many steps is what a class watches.
OVERRIDES = "alignment.n_epochs=2; alignment.batch_size=8; alignment.save_steps=2"
FRAMES = ("drafts", "signals", "pairs", "examples")
TEXTS_PER_GROUP = 2
UNALIGNED = "unaligned"
LARGE_TYPE = (
    "<style>.jp-RenderedMarkdown,.jp-RenderedHTMLCommon,.wb table{font-size:1.2rem!important;line-height:1.5}"
    ".wb table{font-size:1.05rem!important}</style>"
)
MADE_BY = "python -m workbench.notebook.lesson RUN"


@dataclass(frozen=True)
class _Job:
    """Who does something in the lesson (a model or a student), and what with."""

    who: str
    recipe: Recipe = field(repr=False)
    what: tuple = field(repr=False)


@dataclass(frozen=True)
class Sample:
    """What a finished run found about three students, small enough to ship.

    Attributes:
        drafts: All drafts, as their schema describes them.
        signals: Preference scores of these drafts by the three students.
        pairs: The pairs of rationales of one task, what the live part aligns to.
        examples: What the teachers wrote before and after alignment; most rows without their texts.
        verdict: The run's verdict, the three students' part of it.
        about: Where all this comes from.
    """

    drafts: pd.DataFrame = field(repr=False)
    signals: pd.DataFrame = field(repr=False)
    pairs: pd.DataFrame = field(repr=False)
    examples: pd.DataFrame = field(repr=False)
    verdict: Mapping = field(repr=False)
    about: Mapping

    def written_for(self, student: str) -> pd.DataFrame:
        """Return the examples that concern one student; those of the unaligned teacher are for everybody."""
        return self.examples[self.examples["student"].isin([student, ""])].assign(student=student)

    def texts_for(self, student: str) -> pd.DataFrame:
        """Return the examples of `written_for` whose texts the sample holds."""
        own = self.written_for(student)
        return own[own["rationale"] != ""]

    def origin(self) -> str:
        """Return where the sample comes from, in a sentence."""
        return (
            f"From run {self.about['run']} of recipe {self.about['recipe']}: {len(self.drafts)} drafts, "
            f"{len(self.signals):,} preference scores of {len(STUDENTS)} students, {len(self.examples):,} examples."
        )


def load_sample(folder: str | Path = FOLDER) -> Sample:
    """Return the committed sample.

    Raises:
        StoreError: If a file is missing or is not the one that was written.
    """
    folder = project_root() / folder
    about = read_json(folder / "about.json")
    for name, sha256 in about.get("files", {"about.json": ""}).items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            raise StoreError(f"{folder / name} is missing or changed; git checkout it, or make it again: {MADE_BY}")
    frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in FRAMES}
    return Sample(**frames, verdict=read_json(folder / "verdict.json"), about=about)


def make_sample(run: Run, folder: str | Path = FOLDER) -> list[Path]:
    """Write the sample of a finished run that has the three students and the task; return the files."""
    folder = project_root() / folder
    drafting, probing, alignment = (run.stage(name) for name in ("drafting", "probing", "alignment"))
    signals, pairs, examples = probing.read("signals"), alignment.read("pairs"), alignment.read("examples")
    of_pairs = (pairs["kind"] == "rationale") & (pairs["task"] == TASK) & ~pairs["flipped"]
    frames = {
        "drafts": drafting.read("drafts"),
        "signals": signals[signals["student"].isin(STUDENTS) & (signals["item_kind"] == "rationale")],
        "pairs": pairs[of_pairs & pairs["student"].isin(STUDENTS)],
        "examples": _thinned(examples[examples["kept"] & examples["student"].isin([*STUDENTS, ""])]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame.to_parquet(folder / f"{name}.parquet", index=False, compression="zstd", compression_level=19)
    atomic_write(folder / "verdict.json", json.dumps(_three(read_json(run.path / "verdict.json"))).encode("utf-8"))
    names = sorted([*(f"{name}.parquet" for name in frames), "verdict.json"])
    about = {
        "run": run.name,
        "recipe": run.recipe.name,
        "made_by": MADE_BY.replace("RUN", run.name),
        "commits": {stage.name: stage.manifest["git_commit"] for stage in (drafting, probing, alignment)},
        "files": {name: file_sha256(folder / name) for name in names},
    }
    atomic_write(folder / "about.json", (json.dumps(about, indent=1) + "\n").encode("utf-8"))
    return [folder / name for name in (*names, "about.json")]


def _thinned(examples: pd.DataFrame) -> pd.DataFrame:
    """Return what figures need of all examples, and the texts of the first few of each group."""
    columns = "arm student seed task question rationale gold correct style".split()
    thin = examples[columns].reset_index(drop=True)
    nth = thin.groupby(["arm", "student", "task"]).cumcount()
    thin.loc[nth >= TEXTS_PER_GROUP, ["question", "rationale"]] = ""
    return thin


def _three(verdict: Mapping) -> dict:
    """Return the part of a verdict that is about the three students."""
    blocks = {name: dict(block_of(verdict, name)) for name in STUDENTS}
    kept = {key: value for key, value in verdict.items() if key not in ("students", "per_task")}
    keys = ("student", "decision", "primary", "arms", "comparisons")
    return kept | {"students": {name: {key: block[key] for key in keys} for name, block in blocks.items()}}


def use_large_type() -> None:
    """Make the page and its figures readable from the back row."""
    from IPython.display import display

    figures.use_large_type()
    display({"text/html": LARGE_TYPE, "text/plain": "Large type for a projector."}, raw=True)


def fresh_questions(n: int, stream_name: str, seed: int = 0) -> list[str]:
    """Return n different questions of the lesson's task, as long as test questions, from the generator."""
    rng, found = stream(seed, "lesson", stream_name), {}
    while len(found) < n:
        found[write(TASK, rng, TEST_SIZES[TASK])] = None
    return list(found)


def meet(recipe: Recipe, n: int = 3) -> pd.DataFrame:
    """Return what each of the three students replies to the same questions, without any example.

    Returns:
        Columns student, question, reply, right.
    """
    questions = fresh_questions(n, "meet")
    # One thread each: small models take longer on several, and much longer where the cores are busy.
    jobs = [_Job(recipe.models.students[student], recipe, tuple(questions)) for student in STUDENTS]
    replies = run_jobs(_explain_job, jobs, 1, "meeting the students")
    return pd.DataFrame(
        [
            {"student": student, "question": question, "reply": text, "right": _is_right(question, text)}
            for student, texts in zip(STUDENTS, replies, strict=True)
            for question, text in zip(questions, texts, strict=True)
        ]
    )


def _explain_job(job: _Job) -> list[str]:
    return _explain(job.who, job.recipe, load_tasks(job.recipe)[TASK], list(job.what))


def _explain(model: str, recipe: Recipe, task: Task, questions: list[str]) -> list[str]:
    """Return a model's greedy reply to each plain question."""
    engine = TransformersEngine(model, recipe.models.dtype, recipe.compute.device, recipe.compute.batch_size)
    asked = [Request(render(engine.tokenizer, prompts.naive_prompt(task.description, q))) for q in questions]
    return [reply.text.strip() for reply in engine.generate(asked, Decoding(recipe.tailoring.max_new_tokens))]


def _is_right(question: str, reply: str) -> bool:
    return answers.grade(answers.parse_answer(reply), solve(TASK, question))


def watch_teachers(recipe: Recipe, sample: Sample, folder: Path, n: int = 24) -> pd.DataFrame:
    """Align the teacher to each student's pairs, and let it explain the same questions on the way.

    Args:
        recipe: Its alignment section says how, save_steps how often to look.
        sample: Its pairs are aligned to.
        folder: Where the teachers are kept; one aligned there already is not aligned again.
        n: How many questions the teacher explains each time.

    Returns:
        Columns student, step (optimiser steps so far), question, rationale, style, right; step 0 is the unaligned one.
    """
    pairs = sample.pairs
    jobs = [_Job(student, recipe, (pairs[pairs["student"] == student], folder, n)) for student in STUDENTS]
    return pd.concat(run_jobs(_watch_one, jobs, 1, "aligning the teacher"), ignore_index=True)


def _watch_one(job: _Job) -> pd.DataFrame:
    from IPython.utils.capture import capture_output

    recipe, student, (pairs, folder, n) = job.recipe, job.who, job.what
    work = folder / student
    if not (work / "config.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        # A library draws a bar of its own.
        with capture_output():
            tune_dpo(recipe, pairs.reset_index(drop=True), work, stream_seed(0, "lesson", student))
    task, questions = load_tasks(recipe)[TASK], fresh_questions(n, "watch")
    on_the_way = {int(path.name.rpartition("-")[2]): str(path) for path in work.glob("checkpoints/checkpoint-*")}
    rows = []
    for step, model in sorted({0: recipe.models.teacher, **on_the_way}.items()):
        for question, text in zip(questions, _explain(model, recipe, task, questions), strict=True):
            style = task.style(text) or "unrecognised"
            known = {"student": student, "step": step, "question": question, "rationale": text}
            rows.append(known | {"style": style, "right": _is_right(question, text)})
    return pd.DataFrame(rows)


def style_shares(watched: pd.DataFrame) -> pd.DataFrame:
    """Return which share of the questions each teacher explains in which style, step by step.

    Returns:
        Columns student, step, style, share, low, high (Wilson, 95 %), n; one row for every style seen anywhere.
    """
    styles, rows = sorted(watched["style"].unique()), []
    for (student, step), own in watched.groupby(["student", "step"], sort=False):
        for style in styles:
            share = float((own["style"] == style).mean())
            low, high = wilson(share, len(own))
            known = {"student": student, "step": step, "style": style, "share": share}
            rows.append(known | {"low": low, "high": high, "n": len(own)})
    return pd.DataFrame(rows)


def learn_by_example(recipe: Recipe, folder: Path, n_examples: int = 6, n_questions: int = 16) -> pd.DataFrame:
    """Give every student one example at a time from every teacher and ask it new questions.

    All teachers explain the same questions, so their columns differ in the explanations alone.

    Args:
        recipe: Its students and its unaligned teacher take part.
        folder: Where `watch_teachers` left the aligned ones.
        n_examples: Questions that each teacher explains.
        n_questions: Questions that are asked after each example.

    Returns:
        Columns student, teacher (whom it was aligned to, or "unaligned"), example, question, right.
    """
    examples = fresh_questions(n_examples, "examples")
    questions = fresh_questions(n_questions, "asked")
    teachers = {UNALIGNED: recipe.models.teacher} | {name: str(folder / name) for name in STUDENTS}
    jobs = [_Job(model, recipe, tuple(examples)) for model in teachers.values()]
    shown = dict(zip(teachers, run_jobs(_explain_job, jobs, 1, "writing examples"), strict=True))
    plan = [
        (name, example, text, question)
        for name, texts in shown.items()
        for example, text in zip(examples, texts, strict=True)
        for question in questions
    ]
    asked = run_jobs(_ask_one, [_Job(student, recipe, tuple(plan)) for student in STUDENTS], 1, "asking the students")
    columns = ["student", "teacher", "example", "question", "right"]
    return pd.DataFrame([row for rows in asked for row in rows], columns=columns)


def _ask_one(job: _Job) -> list[tuple]:
    """Return a row for each (teacher, example question, explanation, question) that a student is asked."""
    recipe, student, plan = job.recipe, job.who, job.what
    model, task = recipe.models.students[student], load_tasks(recipe)[TASK]
    engine = TransformersEngine(model, recipe.models.dtype, recipe.compute.device, recipe.compute.batch_size)
    requests = []
    for _, example, text, question in plan:
        prompt, shared = render_shared(
            engine.tokenizer, *prompts.one_shot_prompt(task.description, example, text, question)
        )
        requests.append(Request(prompt, prefix=shared))
    replies = engine.generate(requests, Decoding(recipe.evaluation.max_new_tokens))
    return [
        (student, teacher, example, question, _is_right(question, reply.text))
        for (teacher, example, _, question), reply in zip(plan, replies, strict=True)
    ]


def own_or_foreign(learned: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Return student -> how many points its own teacher's examples are ahead of the other students' teachers'.

    With the 95 % t interval over examples; "all students" pools them, with one cluster an example.
    """
    means = learned.groupby(["student", "example", "teacher"])["right"].mean().unstack("teacher") * 100
    gaps = pd.DataFrame(
        [
            {"student": student, "example": example, "gap": row[student] - row[_others(student)].mean()}
            for (student, example), row in means.iterrows()
        ]
    )
    found = {student: clustered_mean(own["gap"], own["example"]) for student, own in gaps.groupby("student")}
    return {**found, "all students": clustered_mean(gaps["gap"], gaps["example"])}


def _others(student: str) -> list[str]:
    return [name for name in STUDENTS if name != student]


if __name__ == "__main__":
    import sys

    from workbench.runs.run import open_run

    for made in make_sample(open_run(sys.argv[1])):
        print(f"{os.path.relpath(made)}  {made.stat().st_size / 1000:.0f} kB")
