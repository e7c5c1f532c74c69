"""One-shot accuracy and local data influence of the same drafts: how they agree, what they cost, what they predict.

Drafts are those of a run of method arte: four rationales of each question, so that groups of high- and low-scored ones
ask the same questions. Influence is measured as the recipe montessori does it, on the questions that the student was
probed with; the first questions, a quarter of them at most, warm the student up and are compared by neither signal.
"""

import numpy as np
import pandas as pd

from workbench.methods import FIRST_RECIPE
from workbench.models.loading import load_tokenizer
from workbench.models.start import students_of, teacher_of
from workbench.runs.errors import RunError
from workbench.runs.recipe_parts import Influence
from workbench.runs.run import Run
from workbench.runs.seeding import stream
from workbench.signals.influence_of_drafts import measure_influence, texts_to_learn
from workbench.signals.reference import build_reference
from workbench.signals.warm_up import texts_of
from workbench.tasks.task import load_tasks
from workbench.verdict.intervals import percentiles, rank_correlation

SIGNALS = {"one_shot": "one-shot accuracy", "influence": "local data influence"}
SETTINGS = Influence(n_warm_up=8, n_steps=8)
N_RESAMPLES = 1000
COPIED = "draft_id task question_id question technique rationale answer gold correct n_tokens".split()


def both(run: Run, settings: Influence = SETTINGS) -> pd.DataFrame:
    """Return every draft outside the warm-up set with both signals, for each student of a run with finished probes.

    Returns:
        Columns student, those of drafts, one_shot (share right), influence (nats per reference token, the step at zero
        gradient subtracted), one_shot_tokens (generated) and influence_tokens (read).
    """
    if not run.has("probes"):
        raise RunError(
            f"The drafts of run {run.name} were not probed one-shot; take a run whose were, for example: "
            f"workbench run {FIRST_RECIPE} --name demo --to probing"
        )
    n_warm_up = max(1, min(settings.n_warm_up, run.recipe.drafting.n_questions // 4))
    settings = settings.model_copy(update={"n_warm_up": n_warm_up})
    recipe, tasks = run.recipe, load_tasks(run.recipe)
    students, teacher, seed = students_of(recipe), teacher_of(recipe), recipe.seeds[0]
    writers = {"student": students, "teacher": dict.fromkeys(students, teacher), "target": None}[settings.reference]
    drafts, chosen, longest = run.read("drafts"), run.read("preference_set"), recipe.evaluation.max_new_tokens
    given = (writers, students, tasks, chosen, settings.n_tries, longest, seed)
    reference = run.step("signal_agreement/reference", build_reference, *given)
    given = (students, tasks, run.read("questions"), drafts, reference, settings, seed)
    found = run.step("signal_agreement/influences", measure_influence, *given)
    values = []
    for name, signals in zip(SIGNALS, (run.read("signals"), found["influences"]), strict=True):
        own = signals[signals["item_kind"] == "rationale"].set_index(["student", "draft_id"])[["value", "tokens"]]
        values.append(own.set_axis([name, f"{name}_tokens"], axis=1))
    return drafts[COPIED].merge(values[0].join(values[1], how="inner").reset_index(), on="draft_id")


def rank_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's correlation of the two signals for each student, with 95 % bootstrap intervals over questions.

    Returns:
        Columns student, what ("across": over all drafts of a task, mean over tasks; "within": over the rationales of
        one question, which is what forms pairs, mean over questions), correlation, low, high.
    """
    rows = []
    for student, own in table.groupby("student", sort=False):
        rng = stream(0, "two signals", student)
        values, tasks = own[list(SIGNALS)].to_numpy(), own["task"].to_numpy()
        parts = list(own.reset_index(drop=True).groupby("question_id", sort=False).indices.values())
        drawn = [rng.integers(len(parts), size=len(parts)) for _ in range(N_RESAMPLES)]
        again = [_across(values, tasks, np.concatenate([parts[one] for one in at])) for at in drawn]
        rows.append((student, "across", _across(values, tasks, np.arange(len(own))), *percentiles(again)))
        inside = pd.Series([rank_correlation(*values[part].T) for part in parts])
        rows.append((student, "within", inside.mean(), *percentiles([inside.iloc[at].mean() for at in drawn])))
    return pd.DataFrame(rows, columns=["student", "what", "correlation", "low", "high"])


def _across(values: np.ndarray, tasks: np.ndarray, at: np.ndarray) -> float:
    """Return the mean over tasks of the correlation of some rows, shape (rows, signals)."""
    return pd.Series([rank_correlation(*values[at[tasks[at] == task]].T) for task in pd.unique(tasks[at])]).mean()


def costs(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Return what each signal costs for one draft and one student, in tokens: generated, read, and stepped on.

    A probe reads the demonstration and the question; where prefixes are shared the former is read once for all.
    """
    items, tasks, rows = run.read("preference_set"), load_tasks(run.recipe), []
    n_asked = items["chosen"].sum() / items["task"].nunique()
    for student, own in table.groupby("student", sort=False):
        tokenizer = load_tokenizer(run.recipe.models.students[student])
        length = np.mean([len(text) for text in texts_of(tokenizer, texts_to_learn(tasks, own))])
        probe = (n_asked * 2 * length, own["one_shot_tokens"].mean(), 0.0)
        step = (own["influence_tokens"].mean(), 0.0, length)
        rows += [(student, *row) for row in zip(SIGNALS.values(), (probe, step), strict=True)]
    table = pd.DataFrame([(student, name, *tokens) for student, name, tokens in rows])
    return table.set_axis(["student", "signal", "read", "generated", "stepped on"], axis=1)
