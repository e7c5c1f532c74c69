"""The influence of every draft on every student: each is warmed up on some drafts, the others are steps it may take.

Source: Montessori-Instruct, arXiv:2410.14208, section 3 and official code: warm-up set, probing set, one AdamW step.
Ours: whose answers the reference set holds (see reference), and that a draft question's value is the mean over its
responses.
"""

from pathlib import Path

import pandas as pd

from workbench.loop import prompts
from workbench.loop.drafting import finished
from workbench.models.start import Model
from workbench.runs.identity import looks_at
from workbench.runs.recipe_parts import Influence
from workbench.runs.seeding import stream, stream_seed
from workbench.signals.difficulty import Judge
from workbench.signals.influence import JudgedAnswers, measure
from workbench.signals.judging import judge_of
from workbench.signals.reference import guard_of_tests
from workbench.signals.warm_up import WarmUp, warm_up
from workbench.tasks.task import Task

VERSION = 3
WARMED = "warmed"


@looks_at("evaluation.max_new_tokens")
def measure_influence(
    students: dict[str, Model],
    tasks: dict[str, Task],
    questions: pd.DataFrame,
    drafts: pd.DataFrame,
    reference: pd.DataFrame,
    settings: Influence,
    seed: int,
    judge: Judge | None = None,
    *,
    folder: Path,
) -> dict[str, pd.DataFrame]:
    """Warm every student up and measure the influence of every draft outside the warm-up set.

    Args:
        tasks: By name; their test sets are what the reference set may not touch.
        questions: As drafted; the first settings.n_warm_up of a task, with their siblings, are the warm-up set.
        reference: As build_reference returns it.
        judge: Scores the answers where settings.estimator is judge; None takes the recipe's (see judge_of).

    Returns:
        "influences": of drafts, and of questions as means over their drafts, in nats per reference token (a judge's
        points per question where settings.estimator is judge); value (positive = the example helps), raw (with the step
        at zero gradient left in) and zero_step.

    Raises:
        ModelError: If there is no reference set, it overlaps a test set, or a loss is not finite.
        ModelError: If a warmed state is damaged or does not fit, or a text is too long.
    """
    warm, rows = warm_up_questions(questions, settings.n_warm_up), texts_to_learn(tasks, drafts)
    warming, probing = (rows[rows["question_id"].isin(warm) == inside] for inside in (True, False))
    how = WarmUp(settings.n_steps, settings.batch_size, settings.learning_rate)
    parts = []
    for student, model in students.items():
        path, device = folder / WARMED / student, model.recipe.compute.device
        warm_up(model.ref, warming, how, stream_seed(seed, "warm-up", student), path, device)
        values = _measured(student, model, path, probing, reference, tasks, settings, judge)
        parts.append(with_questions(values, drafts))
    influences = pd.concat(parts, ignore_index=True)
    of_drafts = influences[influences["item_kind"] == "rationale"]
    influences.attrs["counts"] = {"drafts scored": len(of_drafts), "of them helpful": (of_drafts["value"] > 0).sum()}
    influences.attrs["tokens"] = of_drafts["tokens"].sum()
    return {"influences": influences}


def influence_of_examples(
    students: dict[str, Model],
    tasks: dict[str, Task],
    examples: pd.DataFrame,
    reference: pd.DataFrame,
    warmed: Path,
    settings: Influence,
    seed: int,
    n: int = 48,
) -> pd.DataFrame:
    """Return the influence of what each arm's teacher wrote, on the student as it was warmed up for its drafts.

    Args:
        reference: As build_reference returns it.
        warmed: The folder of the step that measured the drafts.
        n: Examples of each student, arm and task, drawn from all seeds; the same ones whatever other arms there are.

    Returns:
        Columns student, arm, task, question_id, value and raw, in nats per reference token.
    """
    kept, parts = examples[examples["kept"]], []
    for student, model in students.items():
        own = kept[kept["student"].isin([student, ""])]
        drawn = [
            part.iloc[stream(seed, "examples measured", student, arm, task).permutation(len(part))[:n]]
            for (arm, task), part in own.groupby(["arm", "task"])
        ]
        drawn = pd.concat(drawn).rename(columns={"example_id": "draft_id"})
        texts, path = texts_to_learn(tasks, drawn), warmed / WARMED / student
        values = _measured(student, model, path, texts, reference, tasks, settings)
        known = drawn[["draft_id", "arm", "task", "question_id"]].merge(values, on="draft_id")
        parts.append(known[["student", "arm", "task", "question_id", "value", "raw"]])
    return pd.concat(parts, ignore_index=True)


def _measured(
    student: str,
    model: Model,
    warmed: Path,
    texts: pd.DataFrame,
    reference: pd.DataFrame,
    tasks: dict[str, Task],
    settings: Influence,
    judge: Judge | None = None,
) -> pd.DataFrame:
    """Return the influence of texts on one student, by its losses or, where the settings say so, by a judge."""
    recipe, own, judged = model.recipe, reference[reference["student"] == student], None
    if settings.estimator == "judge":
        asked = own[["task", "question", "target", "prompt", "completion"]].reset_index(drop=True)
        judged = JudgedAnswers(judge or judge_of(recipe, tasks), asked, recipe.evaluation.max_new_tokens)
    guard, compute = guard_of_tests(recipe, tasks), recipe.compute
    return measure(model.ref, warmed, texts, own, guard, student, compute.device, compute.workers, judged)


def warm_up_questions(questions: pd.DataFrame, n: int) -> set[str]:
    """Return the ids of the first n kept questions of each task, with their siblings: the warm-up set."""
    kept = questions[questions["kept"]]
    first = kept.groupby("task", sort=False).head(n)
    return set(kept.merge(first[["task", "call"]].drop_duplicates(), on=["task", "call"])["question_id"])


def texts_to_learn(tasks: dict[str, Task], drafts: pd.DataFrame) -> pd.DataFrame:
    """Return drafts as SFT sees them: draft_id, question_id, item_kind, prompt and completion."""
    drafts = finished(drafts)
    kept = drafts[["draft_id", "question_id"]].assign(item_kind="rationale")
    return kept.assign(prompt=prompts.naive_prompts(tasks, drafts), completion=drafts["rationale"])


def with_questions(influences: pd.DataFrame, drafts: pd.DataFrame) -> pd.DataFrame:
    """Return signals of drafts, and after them those of questions: means over the responses to each.

    The standard error of a mean is that of fully correlated responses, since all share the reference set.
    """
    known = influences.merge(drafts[["draft_id", "question_id"]], on="draft_id")
    how = dict.fromkeys(influences.columns, "first") | {"value": "mean", "stderr": "mean", "tokens": "sum"}
    how |= {name: "mean" for name in ("raw", "zero_step") if name in influences}
    how.pop("draft_id")
    of_questions = known.groupby("question_id", sort=False).agg(how).reset_index(names="draft_id")
    return pd.concat([influences, of_questions.assign(item_kind="question")[influences.columns]], ignore_index=True)
