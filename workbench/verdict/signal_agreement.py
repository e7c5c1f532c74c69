"""One-shot accuracy and local data influence of the same drafts: how they agree, what they cost, what they predict.

Drafts are those of a run of method arte: four rationales of each question, so that groups of high- and low-scored ones
ask the same questions. Influence is measured as the recipe montessori does it, on the questions that the student was
probed with; the first questions, a quarter of them at most, warm the student up and are compared by neither signal.
"""

import numpy as np
import pandas as pd
from scipy import stats

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
from workbench.verdict import validity

SIGNALS = {"one_shot": "one-shot accuracy", "influence": "local data influence"}
SETTINGS = Influence(n_warm_up=8, n_steps=8)
N_RESAMPLES = 1000
COPIED = ["draft_id", "task", "question_id", "question", "technique", "rationale", "answer", "correct", "n_tokens"]


def both(run: Run, settings: Influence = SETTINGS) -> pd.DataFrame:
    """Return every draft outside the warm-up set with both signals, for each student.

    What was measured once is read from the finished items.

    Args:
        run: With finished probes.
        settings: How influence is measured.

    Returns:
        Columns student, those of drafts, one_shot (share right), influence (nats per reference token, the step at zero
        gradient subtracted), the standard error of either (one_shot_stderr, influence_stderr), one_shot_tokens
        (generated) and influence_tokens (read).

    Raises:
        RunError: If it was not probed.
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
    table = drafts[COPIED]
    for name, signals in (("one_shot", run.read("signals")), ("influence", found["influences"])):
        own = signals[signals["item_kind"] == "rationale"][["student", "draft_id", "value", "stderr", "tokens"]]
        named = {"value": name, "stderr": f"{name}_stderr", "tokens": f"{name}_tokens"}
        table = table.merge(own.rename(columns=named), on=["student", "draft_id"] if "student" in table else "draft_id")
    return table


def rank_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's correlation of the two signals for each student, with 95 % bootstrap intervals over questions.

    Args:
        table: As both returns it.

    Returns:
        Columns student, across, across_low, across_high (over all drafts of a task, mean over tasks), within,
        within_low, within_high (over the rationales of one question, which is what forms pairs; mean over questions),
        n (drafts).
    """
    rows = []
    for student, own in table.groupby("student", sort=False):
        rng, row = stream(0, "two signals", student), {"student": student}
        values = own[list(SIGNALS)].to_numpy()
        tasks = own["task"].factorize()[0]
        parts = list(own.reset_index(drop=True).groupby("question_id", sort=False).indices.values())
        inside = np.array([_correlation(values[part]) for part in parts])
        drawn = [rng.integers(len(parts), size=len(parts)) for _ in range(N_RESAMPLES)]
        drawn_rows = (np.concatenate([parts[one] for one in at]) for at in drawn)
        samples = {
            "across": (_across(values, tasks, np.arange(len(own))), [_across(values, tasks, at) for at in drawn_rows]),
            "within": (_mean(inside), [_mean(inside[at]) for at in drawn]),
        }
        for name, (value, draws) in samples.items():
            low, high = np.nanpercentile(draws, [2.5, 97.5]) if np.isfinite(draws).any() else (np.nan, np.nan)
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"n": len(own)})
    return pd.DataFrame(rows)


def _across(values: np.ndarray, tasks: np.ndarray, at: np.ndarray) -> float:
    """Return the mean over tasks of the correlation of some rows, shape (rows, signals)."""
    return _mean(np.array([_correlation(values[at[tasks[at] == task]]) for task in np.unique(tasks)]))


def _correlation(values: np.ndarray) -> float:
    """Return Spearman's correlation of two columns; nan where one is all alike and so says nothing."""
    if len(values) < 2 or not np.ptp(values, axis=0).all():
        return np.nan
    x, y = stats.rankdata(values, axis=0).T
    return float(np.corrcoef(x, y)[0, 1])


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def costs(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Return what each signal costs for one draft and one student, in tokens: generated, read, and stepped on.

    A probe reads the demonstration and the question; where prefixes are shared the former is read once for all.
    """
    items = run.read("preference_set")
    n_asked = items["chosen"].sum() / items["task"].nunique()
    tasks, rows = load_tasks(run.recipe), []
    for student, own in table.groupby("student", sort=False):
        tokenizer = load_tokenizer(run.recipe.models.students[student])
        length = np.mean([len(text) for text in texts_of(tokenizer, texts_to_learn(tasks, own))])
        read = {"one_shot": n_asked * 2 * length, "influence": own["influence_tokens"].mean()}
        for name, words in SIGNALS.items():
            row = {"student": student, "signal": words, "read": read[name]}
            row["generated"] = own["one_shot_tokens"].mean() if name == "one_shot" else 0.0
            rows.append(row | {"stepped on": length if name == "influence" else 0.0})
    return pd.DataFrame(rows)


def gains(run: Run, table: pd.DataFrame, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """Train students on groups of drafts by either signal; the outcomes are kept as validity-SIGNAL.csv.

    Args:
        run: As for both.
        table: As both returns it.
        seeds: Training seeds.

    Returns:
        By signal what validity.train_on_groups returns.
    """
    made = {}
    for name in SIGNALS:
        signals = table[["student", "draft_id"]].assign(item_kind="rationale", value=table[name])
        made[name] = validity.train_on_groups(run, seeds, signals, f"validity-{name}")
    return made


def predictions(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return for each signal and student how much more the best group gained than the worst, and the correlation.

    Returns:
        Columns signal, student, best_minus_worst, low, high (gain as a share, mean over tasks; 95 % t interval over
        training seeds), correlation, correlation_low, correlation_high (see validity.predictive_validity).
    """
    rows = []
    for name, table in found.items():
        agreement = validity.predictive_validity(table).set_index("student")
        for student, own in table.groupby("student", sort=False):
            wide = own.groupby(["seed", "group"])["gain"].mean().unstack("group")
            apart = (wide[wide.columns.min()] - wide[wide.columns.max()]).to_numpy()
            half = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
            row = {"signal": SIGNALS[name], "student": student, "best_minus_worst": apart.mean()}
            row |= {"low": apart.mean() - half, "high": apart.mean() + half}
            which = agreement.loc[student]
            row |= {"correlation": which["correlation"]}
            rows.append(row | {"correlation_low": which["low"], "correlation_high": which["high"]})
    return pd.DataFrame(rows)
