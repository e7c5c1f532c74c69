"""What the pocket classroom stands on: how students answer before, with a demonstration and after training, by style.

Demonstrations and training examples come from the generator here, so that every style is equally right and the table
shows the students alone; questions are validation questions. No run reads it. The gates are those of docs/classroom.md.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

from data.pocket.make.classroom import NATIVE_SIZES, STUDENTS, Student
from data.pocket.make.questions import TEST_SIZES, write
from data.pocket.make.rationales import rationale_for
from workbench.loop import prompts
from workbench.runs.recipe import Recipe
from workbench.runs.seeding import stream
from workbench.runs.workers import run_jobs
from workbench.studies.trials import FineTuneJob, run_trial
from workbench.tasks.pocket_styles import STYLES, style_of
from workbench.tasks.task import Task, load_tasks
from workbench.verdict.intervals import auc, wilson

MIXED = "all four"
N_DEMONSTRATIONS, N_ASKED = 8, 24
N_EXAMPLES = 80  # a task, where the gates are decided
SEEDS = (5, 6, 7)  # no run's seeds
SIZES = {"guesser": (30, 300, 1000), "learner": (100, 400, 1200)}  # further numbers of examples a task
RATES = (3e-4, 3e-3)  # further learning rates


@dataclass(frozen=True)
class Case:
    """What is done with a student before it is asked.

    Attributes:
        when: "before" (as it is), "one shot" or "trained".
        style: Of the demonstration or the examples.
        shown: Which of the demonstrations; -1 without one.
        n: Training examples a task.
        learning_rate: Of training.
        seed: Draws examples and their order.
    """

    when: str
    style: str = ""
    shown: int = -1
    n: int = 0
    learning_rate: float = 0.0
    seed: int = SEEDS[0]


def cases_of(recipe: Recipe, name: str, curves: bool) -> list[Case]:
    """Return what is done with a student: the gates' cases or, with curves, further numbers and learning rates.

    Training at the recipe's settings is repeated with three seeds where the styles are to be shown alike.
    """
    student, n, rate = STUDENTS[name], N_EXAMPLES, recipe.training.learning_rate
    if curves:
        kind = "guesser" if student.native_sizes == NATIVE_SIZES and not student.always_bare else "learner"
        styles = (student.native or STYLES[0], MIXED)
        longer = [Case("trained", style, n=more, learning_rate=rate) for style in styles for more in SIZES[kind]]
        return longer + [Case("trained", style, n=n, learning_rate=other) for style in styles for other in RATES]
    seeds = SEEDS if student.dose == "none" else SEEDS[:1]
    shown = [Case("one shot", style, k) for style in STYLES for k in range(N_DEMONSTRATIONS)]
    styles = (*STYLES, MIXED)
    return [Case("before"), *shown] + [Case("trained", s, -1, n, rate, seed) for s in styles for seed in seeds]


def measure(recipe: Recipe, names: list[str], curves: bool = False) -> pd.DataFrame:
    """Return one row for every student, case and task.

    Columns: student, task, what a Case holds, accuracy with its 95 % interval (low, high), n_asked, bare (share of
    answers without working) and answered_in (the style most answers are in, "" for none).
    """
    tasks = load_tasks(recipe)
    with tempfile.TemporaryDirectory() as folder:
        trials, labels = [], []
        for name in names:
            own = {task: tasks[task] for task in STUDENTS[name].tasks}
            for index, case in enumerate(cases_of(recipe, name, curves)):
                asked = _questions(own, case)
                targets = [(task.answers, target) for _, target, task in asked]
                settings = recipe.training.model_copy(update={"learning_rate": case.learning_rate})
                trials.append(
                    FineTuneJob(
                        recipe.model_copy(update={"training": settings}),
                        name,
                        _examples(own, case) if case.n else None,
                        [prompt for prompt, _, _ in asked],
                        targets,
                        case.seed,
                        Path(folder) / f"{name}-{index}",
                    )
                )
                labels.append((name, case, [task.name for _, _, task in asked]))
        answered = run_jobs(run_trial, trials, recipe.compute.workers, "measuring")
    rows = []
    for (name, case, of_task), told in zip(labels, answered, strict=True):
        frame = pd.DataFrame(told, columns=["text", "right"]).assign(task=of_task)
        rows += [{"student": name, "task": task, **vars(case), **_row(own)} for task, own in frame.groupby("task")]
    return pd.DataFrame(rows)


def _row(answers: pd.DataFrame) -> dict:
    styles, share = answers["text"].map(style_of), answers["right"].mean()
    low, high = wilson(share, len(answers))
    most = styles.value_counts().idxmax()
    return {
        "accuracy": share,
        "low": low,
        "high": high,
        "n_asked": len(answers),
        "bare": (styles == "").mean(),
        "answered_in": most,
    }


def _worked(task: Task, style: str, rng) -> tuple[str, str]:
    question = write(task.name, rng, TEST_SIZES[task.name])
    return question, f" {rationale_for(task.name, question, style)}"


def _questions(tasks: dict[str, Task], case: Case) -> list[tuple]:
    """Return (prompt in two parts, target, task): zero-shot, or one-shot with one demonstration in the style."""
    asked = []
    for name, task in tasks.items():
        items = task.validation.head(N_ASKED) if case.when == "one shot" else task.validation
        shown = _worked(task, case.style, stream(case.shown, "measure", "shown", name)) if case.shown >= 0 else None
        for question, target in items[["question", "target"]].itertuples(index=False, name=None):
            plain = ("", prompts.naive_prompt(task.description, question))
            prompt = prompts.one_shot_prompt(task.description, *shown, question) if shown else plain
            asked.append((prompt, target, task))
    return asked


def _examples(tasks: dict[str, Task], case: Case) -> pd.DataFrame:
    rows = []
    for name, task in tasks.items():
        rng = stream(case.seed, "measure", "examples", name)
        for n in range(case.n):
            question, rationale = _worked(task, STYLES[n % len(STYLES)] if case.style == MIXED else case.style, rng)
            rows.append({"prompt": prompts.naive_prompt(task.description, question), "completion": rationale})
    return pd.DataFrame(rows)


def gates(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each gate and student it is for: gate, student, value, wanted, passed.

    Args:
        table: As measure returns it, without curves.
    """
    rows = []
    for name, own in table.groupby("student", sort=False):
        student = STUDENTS[name]
        if student.bare_share == 0 or student.always_bare:
            continue
        before = own[own["when"] == "before"]
        trained = own[(own["when"] == "trained") & own["style"].isin([student.native] if student.native else STYLES)]
        base, gain = before["accuracy"].mean(), trained["accuracy"].mean() - before["accuracy"].mean()
        rows.append(("bare", name, before["bare"].mean(), "at least 0.90", before["bare"].mean() >= 0.9))
        rows.append(("room: base", name, base, "at most 0.55", base <= 0.55))
        rows.append(("room: gain", name, gain, "at least 0.10", gain >= 0.1))
        if student.dose == "strong":
            area = seen(own, student)["auc"].mean()
            rows.append(("seen", name, area, "above 0.80", area > 0.8))
        if student.dose == "none":
            for style, (difference, half) in alike(own).items():
                holds = f"within {half:.3f} of 0"
                rows.append((f"alike: {style}", name, difference, holds, abs(difference) <= half))
    return pd.DataFrame(rows, columns=["gate", "student", "value", "wanted", "passed"])


def seen(own: pd.DataFrame, student: Student) -> pd.DataFrame:
    """Return, by task, the area under the ROC curve of one-shot accuracy: native against foreign demonstrations."""
    shown = own[own["when"] == "one shot"]
    return pd.DataFrame(
        [
            {"task": task, "auc": auc(rows["accuracy"], rows["style"] == student.native, rows.index)[0]}
            for task, rows in shown.groupby("task")
        ]
    )


def alike(own: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return, by style, its mean accuracy minus that of the four, and half its 95 % interval for four comparisons.

    The interval is over training seeds: t, with Bonferroni's correction.
    """
    trained = own[(own["when"] == "trained") & own["style"].isin(STYLES)]
    means = trained.pivot_table(index="seed", columns="style", values="accuracy")
    apart = means.sub(means.mean(axis=1), axis=0)
    half = stats.t.ppf(1 - 0.05 / (2 * len(STYLES)), len(apart) - 1) * apart.std() / len(apart) ** 0.5
    return {style: (apart[style].mean(), half[style]) for style in STYLES}


def _label(row) -> str:
    if row.when == "trained":
        return f"trained: {row.style}, {row.n} at {row.learning_rate:g}"
    return f"{row.when}: {row.style}" if row.style else row.when


def in_words(table: pd.DataFrame) -> str:
    """Return accuracies in percent, a row a student and case and a column a task; and the gates, if they are there."""
    usual = table.assign(column=[_label(row) for row in table.itertuples()])
    parts = [
        usual.pivot_table(index=["student", "column"], columns="task", values="accuracy", sort=False)
        .mul(100)
        .round(0)
        .to_string()
    ]
    if (table["when"] == "before").any():
        parts.append(gates(table).round(3).to_string())
    return "\n\n".join(parts)


def measured(recipe: Recipe, names: list[str], folder: Path, curves: bool) -> pd.DataFrame:
    """Measure students that lie in the folder; see measure."""
    students = {name: str(folder / name) for name in names}
    models = recipe.models.model_copy(update={"students": students})
    return measure(recipe.model_copy(update={"models": models}), names, curves)
