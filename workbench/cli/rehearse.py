"""A rehearsal: a few texts of every kind that a recipe asks for, what they are worth, and what the whole will cost."""

import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from workbench.loop import prompts
from workbench.loop.writing import AskJob, complete_job, write_questions, write_rationales
from workbench.models import backends, start
from workbench.models.engine import Completion, Decoding
from workbench.models.loading import load_tokenizer
from workbench.models.trl import encode
from workbench.report.cost_estimate import estimate, measure, parameters_of
from workbench.runs.errors import RecipeError
from workbench.runs.recipe import Recipe
from workbench.runs.workers import Job, n_processes, one_thread, run_jobs
from workbench.tasks.task import Task, load_tasks, seed_pairs

N_QUESTIONS, N_WORKED, N_ITEMS = 6, 2, 6  # new questions; questions worked by every technique; questions answered
N_TRIED = 24  # answers at once where speed is measured: more are little faster on a CPU
KINDS = QUESTIONS, RATIONALES, ZERO, ONE = "questions", "rationales", "answers, zero-shot", "answers, one-shot"
TOO_FEW, ENOUGH = 0.1, 0.9


def rehearse(recipe: Recipe, task: Task) -> pd.DataFrame:
    """Let the recipe's teacher and first student write a few texts of a task, as the run would have them written.

    Returns:
        A row a text: kind, text, usable (a question, or an answer in the form asked for), right (missing where it is
        not known), cut off, tokens, and for one-shot answers of which draft: question and technique.
    """
    drafting, longest, rows = recipe.drafting, recipe.evaluation.max_new_tokens, []
    engine, student = start.teacher_of(recipe).start(), next(iter(start.students_of(recipe).values()))

    def add(kind: str, one: Completion, usable: bool, right: bool | None, of: tuple[str, str] = ("", "")) -> None:
        rows.append((kind, one.text, usable, right, not one.finished, one.n_tokens, *of))

    def answers(kind: str, written: list[Completion], golds: list[str], *of: tuple[str, str]) -> None:
        for one, gold in zip(written, golds, strict=True):
            right = task.answers.same(task.answers.read(one.text), gold) if gold else None
            add(kind, one, prompts.in_form(one.text, task.prompts), right, *of)

    shown = seed_pairs(task, drafting.n_seed_questions)
    prompt = prompts.question_prompt(task.description, shown, drafting.questions_per_call, task.prompts)
    asked = [(prompt, f"rehearsal/{task.name}/{n}") for n in range(N_QUESTIONS)]
    written = write_questions(engine, asked, Decoding(drafting.max_new_tokens, drafting.question_temperature), 0)
    found = [prompts.parse_questions(prompts.went_on(prompt, one.text)) for one in written]
    for one, pairs in zip(written, found, strict=True):
        known = [task.answers.same(target, gold) for question, target in pairs if (gold := task.solve(question))]
        add(QUESTIONS, one, bool(pairs), all(known) if known else None)
    worked = ([pairs[0] for pairs in found if pairs] or shown)[:N_WORKED]
    named = [(question, name, told) for question, _ in worked for name, told in task.techniques.items()]
    asked = [
        (prompts.technique_prompt(task.description, told, question, task.prompts), f"rehearsal/{name}/{question}")
        for question, name, told in named
    ]
    decoding = Decoding(drafting.max_new_tokens, drafting.rationale_temperature)
    drafts = write_rationales(engine, asked, decoding, 0)
    answers(RATIONALES, drafts, [task.solve(question) or dict(shown).get(question, "") for question, *_ in named])
    items = task.validation.head(N_ITEMS)
    asked = [("", prompts.naive_prompt(task.description, one, task.prompts)) for one in items["question"]]
    answers(ZERO, complete_job(AskJob(student, "zero-shot", asked, longest)), items["target"].tolist())
    for (question, name, _), draft in zip(named, drafts, strict=True):
        given = (task.description, question, draft.text)
        asked = [prompts.one_shot_prompt(*given, one, task.prompts) for one in items["question"]]
        of_draft = complete_job(AskJob(student, "one-shot", asked, longest))
        answers(ONE, of_draft, items["target"].tolist(), (question, name))
    columns = ["kind", "text", "usable", "right", "cut off", "tokens", "question", "technique"]
    return pd.DataFrame(rows, columns=columns).astype({"right": "Float64"})


def ties(texts: pd.DataFrame) -> float:
    """Return the share of questions whose drafts all have one score."""
    scores = texts[texts["kind"] == ONE].groupby(["question", "technique"])["right"].mean()
    return float((scores.groupby("question").nunique() == 1).mean())


def advice(task: Task, texts: pd.DataFrame) -> list[str]:
    """Return what speaks against a run, each with a way on; none if nothing does."""
    of = texts.groupby("kind")[["usable", "right", "cut off"]].mean()
    best, most = of.loc[[ZERO, ONE], "right"].max(), task.majority(task.validation["target"])
    worked = of["right"].fillna(1.0)[RATIONALES]  # where nobody can tell, nothing is held against it
    faults = {
        "no usable question was written; set prompts.questions to continued, or take another teacher": (
            of.loc[QUESTIONS, "usable"] <= TOO_FEW
        ),
        "no rationale ends in an answer of the form asked for; take another teacher, or another prompts.answer": (
            of.loc[RATIONALES, "usable"] <= TOO_FEW
        ),
        f"the rationales are right in {worked:.0%}, so what is taught would mostly be wrong; take another teacher": (
            worked < 0.5
        ),
        "the student keeps to no form of an answer; try another prompts.answer": (
            of.loc[[ZERO, ONE], "usable"].max() <= TOO_FEW
        ),
        f"{most:.0%} of the answers are one and the same, and who always gives it is right": most >= ENOUGH,
        f"the student ({best:.0%} right) is no better than its most frequent answer ({most:.0%})": (
            best <= most < ENOUGH
        ),
        "the student is right already, so there is no room": of.loc[ZERO, "right"] >= ENOUGH > most,
        "the drafts of each question score alike, so no pair would form; probe more items": ties(texts) == 1,
        "most rationales are cut off; raise drafting.max_new_tokens": of.loc[RATIONALES, "cut off"] > 0.5,
    }
    return [f"{task.name}: {said}" for said, holds in faults.items() if holds]


def in_words(recipe: Recipe) -> Iterator[str]:
    """Yield the rehearsal of a recipe: texts in full, shares, what the whole would take, and whether to start it."""
    if recipe.is_open:
        raise RecipeError(
            "Open answers are never right or wrong, so there is nothing to rehearse; plan shows the cost."
        )
    start.check(recipe)
    backends.check(recipe)
    against, rows = [], []
    for task in load_tasks(recipe).values():
        began = time.monotonic()
        with start.sharing(), one_thread():
            texts = rehearse(recipe, task)
        seconds = time.monotonic() - began
        for kind, own in texts.groupby("kind", sort=False):
            yield "\n".join([f"\n{task.name}, {kind}:", *map(_shown, own["text"].head(N_WORKED))])
        shares = texts.groupby("kind", sort=False)[["usable", "right", "cut off"]].mean()
        yield "\n" + shares.to_string(na_rep="-", float_format="{:.0%}".format)
        yield f"Most frequent answer: {task.majority(task.validation['target']):.0%}."
        yield f"All drafts alike in score: {ties(texts):.0%} of questions."
        yield f"{texts['tokens'].sum() / seconds:.0f} tokens a second, loading included."
        against += advice(task, texts)
        own = texts[texts["kind"] == RATIONALES]["text"]
        asked = [prompts.naive_prompt(task.description, question, task.prompts) for question in own]
        rows.append(pd.DataFrame({"prompt": asked, "completion": own}))
    yield _cost(recipe, pd.concat(rows))
    yield "\nWorth starting." if not against else f"\nNot worth starting as it is. {'. '.join(against)}."


def _cost(recipe: Recipe, rows: pd.DataFrame) -> str:
    """Return what the whole takes on this machine, after trying out generating, and one training with its saving."""
    student, settings = next(iter(recipe.models.students.values())), recipe.training
    once = {"training": settings.model_copy(update={"n_epochs": 1})}
    once["compute"] = recipe.compute.model_copy(update={"batch_size": N_TRIED})
    tried = recipe.model_copy(update=once)
    jobs = [Job(f"training of {student}, tried out", (tried, student, rows))] * n_processes(recipe.compute.workers)
    taken = run_jobs(_train_once, jobs, recipe.compute.workers, "trying out")
    seconds = sum(taken) / len(taken)
    encoded = encode(load_tokenizer(student), list(rows["prompt"]), list(rows["completion"]))
    # What a training takes grows with the model; one is tried out for all, in as many processes as the run has.
    speed = sum(len(start) + len(end) for start, end in encoded) / seconds * len(jobs) * parameters_of(student)
    measured = {ref: of._replace(trained=speed / parameters_of(ref)) for ref, of in measure(tried).items()}
    minutes = estimate(recipe, measured).groupby("stage", sort=False)["seconds"].sum() / 60
    parts = ", ".join(f"{stage} {n:.1f}" for stage, n in minutes.items())
    return (
        f"\nOne student was trained on {len(rows)} examples and saved, in {seconds:.0f} s.\nThe whole, in minutes on "
        f"this machine now: {parts}; together {minutes.sum():.0f}, the start of notebooks aside."
    )


def _train_once(recipe: Recipe, student: str, rows: pd.DataFrame) -> float:
    """Return the seconds of one training and its saving."""
    with tempfile.TemporaryDirectory(prefix="workbench-") as folder:
        n_batches = -(-len(rows) // recipe.training.batch_size)
        return backends.tune_sft(recipe, student, rows, n_batches, Path(folder), 0)["seconds"]


def _shown(text: str) -> str:
    """Return a model's text, indented, with what a terminal would obey made visible."""
    plain = "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)
    return textwrap.indent(plain.strip() or "(nothing)", "  | ")
