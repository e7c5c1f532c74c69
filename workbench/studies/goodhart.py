"""Does the probe go on telling the truth when it is pushed? Rounds of alignment, each probed and each trained on.

Round 0 is what the unaligned teacher writes and round 1 what the run's aligned teacher writes. In every further round
the teacher of the round before drafts anew, its drafts are probed on the same preference set, and it is aligned to the
pairs they form. What each round's teacher writes is probed (the score that alignment pushes up) and trained on (the
gain that it is meant to stand for). The gain is counted on validation questions outside the preference set.

Source: ours; ARTE (arXiv:2406.19227) has one round. That a measure which is pushed parts from what it stands for was
measured for reward models by Gao, Schulman and Hilton 2022, arXiv:2210.10760.
"""

import itertools

import pandas as pd

from workbench.loop.alignment import align_teachers, models_of
from workbench.loop.arms import pairs_by_arm
from workbench.loop.budgets import batches_per_epoch, equal_rows
from workbench.loop.drafting import draft_questions, draft_rationales
from workbench.loop.pairs import build_pairs
from workbench.loop.tailoring import write_examples
from workbench.loop.writing import Guards, OnePrompt
from workbench.methods import ALL
from workbench.models.engine import Decoding
from workbench.models.start import students_of, teacher_of
from workbench.runs.cache import atomic_write
from workbench.runs.errors import RunError
from workbench.runs.recipe import Recipe
from workbench.runs.run import Frames, Run
from workbench.runs.seeding import stream
from workbench.signals.one_shot import probe_drafts
from workbench.studies.trials import AFTER, BEFORE, FORMAT, LENGTH, format_of, train_and_ask, usable
from workbench.tasks.task import load_tasks
from workbench.verdict.intervals import VarianceComponents, half_width, holm, interval_p_value, spread

SCORE, GAIN = "score", "gain"
ALPHA = 0.05  # of the warning, and of the intervals
COLUMNS = ["student", "round", "seed", "what", "task", "item_id", "value"]


def follow(run: Run, n_rounds: int, n_seeds: int, n_probed: int, students: list[str] | None = None) -> pd.DataFrame:
    """Align again and again, probe and train on what each round writes; kept in the run's folder as goodhart.parquet.

    Rounds are trained on at equal completion tokens and steps. Finished work is kept, and more rounds can be added.
    Of a run that ships the table is as it is, whatever is asked for.

    Args:
        run: With finished alignment, and the arms untailored and tailored.
        n_rounds: The last round, 1 or more.
        n_seeds: Seeds of writing and training, the first ones of the recipe; 2 or more.
        n_probed: So many examples a task, seed and round are probed.
        students: Names in the recipe; None takes all.

    Returns:
        One value a row, columns COLUMNS. what is "score" (item: a preference question, value: share of the examples
        under which it was answered right), "gain" (item: a held-out question, value: right after training minus right
        before) or what an example is like (n_tokens, correct, n_steps, digits; item: the example).
    """
    recipe, kept = run.recipe, run.path / "goodhart.parquet"
    if run.is_shipped:
        return pd.read_parquet(kept)
    if not 2 <= n_seeds <= len(recipe.seeds):
        raise RunError(f"Seeds must be 2 (for an interval) to {len(recipe.seeds)}, those of {run.name}, got {n_seeds}.")
    students = students or list(recipe.models.students)
    for student in students:
        usable(run, student)
    parts = []
    for student in students:
        parts.append(_one_student(run, _alone(recipe, student, n_seeds), student, n_rounds, n_probed))
        table = pd.concat(parts, ignore_index=True)
        atomic_write(kept, table.to_parquet(index=False))
    return table


def _alone(recipe: Recipe, student: str, n_seeds: int) -> Recipe:
    """Return the recipe for one student and one aligned arm, on the first seeds."""
    primary = recipe.evaluation.primary.model_copy(update={"a": AFTER, "b": BEFORE})
    changes = {
        "models": {"students": {student: recipe.models.students[student]}, "licences": {}},
        "evaluation": {"arms": [AFTER], "primary": primary},
    }
    sections = {name: getattr(recipe, name).model_copy(update=changed) for name, changed in changes.items()}
    return recipe.model_copy(update=sections | {"seeds": recipe.seeds[:n_seeds]})


def _one_student(run: Run, recipe: Recipe, student: str, n_rounds: int, n_probed: int) -> pd.DataFrame:
    examples = _examples_by_round(run, recipe, student, n_rounds)
    model, tasks = students_of(recipe)[student], load_tasks(recipe)
    rows = equal_rows(model, tasks, student, examples, list(examples["arm"].unique()))
    taken = rows[["arm", "seed", "task", "example_id"]].merge(examples, on=["arm", "seed", "task", "example_id"])
    taken = taken.assign(**pd.DataFrame([format_of(text) for text in taken["rationale"]], taken.index, FORMAT))
    like = taken.melt(["arm", "seed", "task", "example_id"], [*LENGTH, *FORMAT], var_name="what")
    like = like.rename(columns={"example_id": "item_id"}).astype({"value": float})
    parts = [_scores(run, recipe, taken, n_probed), _gains(run, recipe, student, rows), like]
    table = pd.concat(parts, ignore_index=True).rename(columns={"arm": "round"})
    return table.assign(student=student, round=table["round"].astype(int))[COLUMNS]


def _examples_by_round(run: Run, recipe: Recipe, student: str, n_rounds: int) -> pd.DataFrame:
    """Return what each round's teacher wrote for the student; arm is the number of the round."""
    made = usable(run, student)
    frames = [made[made["arm"] == arm].assign(arm=str(number)) for number, arm in enumerate((BEFORE, AFTER))]
    aligned = run.result("teachers")
    for number in range(2, n_rounds + 1):
        print(f"{student}: round {number} of {n_rounds}", flush=True)
        teacher = models_of(aligned, "teachers")[student, AFTER]
        models = recipe.models.model_copy(update={"teacher": str(teacher)})
        again = _round(run, recipe.model_copy(update={"models": models}), f"goodhart/{student}/round-{number}")
        if again is None:
            print(f"{student}: the drafts of round {number} form no pair any more, so the rounds end before it")
            break
        aligned, examples = again
        frames.append(examples.assign(arm=str(number)))
    together = pd.concat(frames, ignore_index=True)
    return together[together["kept"] & together["seed"].isin(recipe.seeds)].reset_index(drop=True)


def _round(run: Run, recipe: Recipe, at: str) -> tuple[Frames, pd.DataFrame] | None:
    """Draft, probe on the run's preference set, align and write once more; None where no pair is formed.

    The recipe's teacher is the last round's; the run's steps are made under `at`.
    """
    teacher, students, tasks, seed = teacher_of(recipe), students_of(recipe), load_tasks(recipe), recipe.seeds[0]
    drafting, longest, method = recipe.drafting, recipe.evaluation.max_new_tokens, ALL[recipe.method]
    prompts = run.read("questions").drop_duplicates("task").set_index("task")["prompt"].to_dict()
    writer, guards = OnePrompt(prompts, drafting.questions_per_call), Guards(recipe)
    warm = Decoding(drafting.max_new_tokens, drafting.question_temperature)
    given = (writer, drafting.n_questions, warm, guards, seed)
    questions = run.step(f"{at}/questions", draft_questions, teacher, tasks, *given)
    techniques = {name: task.techniques for name, task in tasks.items()}
    sampling = Decoding(drafting.max_new_tokens, drafting.rationale_temperature)
    drafts = run.step(f"{at}/drafts", draft_rationales, teacher, tasks, questions, techniques, sampling, seed)
    probes = run.step(f"{at}/probes", probe_drafts, students, tasks, drafts, run.read("preference_set"), longest)
    signals = run.step(f"{at}/signals", method.signal, probes, drafts, students)
    given = (questions, drafts, signals, probes, recipe.pairs, seed)
    pairs = run.step(f"{at}/pairs", build_pairs, dict(method.pair_rules), tasks, *given)
    by_arm = pairs_by_arm(recipe, pairs, method.aligned_on)
    if by_arm[AFTER].empty:
        return None
    aligned = run.step(f"{at}/teachers", align_teachers, teacher, by_arm, recipe.alignment, seed)
    given = (writer, recipe.tailoring, guards, drafts, signals)
    return aligned, run.step(f"{at}/examples", write_examples, teacher, aligned, tasks, *given)


def _scores(run: Run, recipe: Recipe, examples: pd.DataFrame, n_probed: int) -> pd.DataFrame:
    """Return how often each preference question is answered right with an example as the only demonstration."""
    chosen = run.read("preference_set")
    parts = []
    for (number, seed, task), own in examples.groupby(["arm", "seed", "task"], sort=False):
        order = stream(int(seed), "goodhart", task, number).permutation(len(own))[:n_probed]
        parts.append(own.iloc[order])
    shown = pd.concat(parts, ignore_index=True)
    shown["draft_id"] = [f"{row.arm}/{row.example_id}" for row in shown.itertuples()]
    longest = recipe.evaluation.max_new_tokens
    probes = probe_drafts(students_of(recipe), load_tasks(recipe), shown, chosen, longest)
    known = probes[["draft_id", "item_id", "correct"]].merge(shown[["draft_id", "arm", "seed", "task"]], on="draft_id")
    means = known.groupby(["arm", "seed", "task", "item_id"], as_index=False)["correct"].mean()
    return means.rename(columns={"correct": "value"}).assign(what=SCORE)


def _gains(run: Run, recipe: Recipe, student: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return for each held-out question how much more often it is answered right after training than before."""
    sets = [({"student": student, "arm": "before", "seed": 0}, None, 0)]
    for seed, of_seed in rows.groupby("seed", sort=False):
        n_batches = batches_per_epoch(of_seed, recipe.training.batch_size)
        for number, own in of_seed.groupby("arm", sort=False):
            sets.append(({"student": student, "arm": number, "seed": int(seed)}, own, n_batches))
    at = "goodhart/students/{student}-{arm}-{seed}"
    answered = train_and_ask(run, recipe, sets, at, "training on rounds").astype({"correct": float})
    untrained = answered["arm"] == "before"
    before = answered[untrained].set_index("item_id")["correct"]
    after = answered[~untrained]
    gains = after.assign(value=after["correct"] - after["item_id"].map(before), what=GAIN)
    return gains.drop(columns=["student", "correct"])


def by_round(table: pd.DataFrame) -> pd.DataFrame:
    """Return score and gain of every round with 95 % intervals over seeds and questions, and what its texts are like.

    Returns:
        Columns student, round, score, score_low, score_high, gain, gain_low, gain_high, n_seeds, and where the table
        has them the means n_tokens, correct, n_steps, digits.
    """
    rows = []
    for (student, number), own in table.groupby(["student", "round"], sort=False):
        row = {"student": student, "round": int(number)}
        row |= _estimate(_wide(own, SCORE), SCORE)[1] | _estimate(_wide(own, GAIN), GAIN)[1]
        means = own.groupby("what")["value"].mean()
        n_seeds = own.loc[own["what"] == GAIN, "seed"].nunique()
        rows.append(row | {"n_seeds": n_seeds} | {k: means[k] for k in (*LENGTH, *FORMAT) if k in means})
    return pd.DataFrame(rows)


def _wide(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Return a row a seed and a column a (task, item)."""
    of = table[table["what"] == what]
    return of.pivot(index="seed", columns=["task", "item_id"], values="value").sort_index(axis=1)


def _estimate(wide: pd.DataFrame, what: str) -> tuple[VarianceComponents, dict]:
    """Return the spread of a table, and its mean with the interval under the name of what it measures."""
    of = spread(wide.to_numpy(), wide.columns.get_level_values("task"))
    half = float(half_width(of, ALPHA))
    return of, {what: of.mean, f"{what}_low": of.mean - half, f"{what}_high": of.mean + half}


def partings(table: pd.DataFrame) -> pd.DataFrame:
    """Return where score and gain part: for every two rounds of a student, whether one rose while the other fell.

    They part when from the earlier to the later round the score is higher and the gain lower and both are surer than
    chance: the p-value of a pair of rounds is the larger of the two two-sided ones (at which the interval over seeds
    and questions just leaves out zero), 1 when a direction is another; Holm's correction over the pairs of rounds of a
    student; at most ALPHA.

    Returns:
        Columns student, earlier, later, score, score_low, score_high, gain, gain_low, gain_high (later minus earlier),
        p_holm, parted.
    """
    rows = []
    for student, own in table.groupby("student", sort=False):
        rounds, found = own.groupby("round"), []
        wides = {(number, what): _wide(of, what) for number, of in rounds for what in (SCORE, GAIN)}
        for earlier, later in itertools.combinations(sorted(rounds.groups), 2):
            row, p_values = {"student": student, "earlier": earlier, "later": later}, []
            for what, sign in ((SCORE, 1), (GAIN, -1)):
                of, ends = _estimate(wides[later, what] - wides[earlier, what], what)
                row |= ends
                p_values.append(interval_p_value(of) if sign * of.mean > 0 else 1.0)
            found.append(row | {"p": max(p_values)})
        for row, p in zip(found, holm([row.pop("p") for row in found]), strict=True):
            rows.append(row | {"p_holm": float(p), "parted": bool(p <= ALPHA)})
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame) -> list[str]:
    """Return a sentence a student: a warning where score and gain parted, else how they moved where it matters most."""
    said = []
    for student, own in partings(table).groupby("student", sort=False):
        alone = own[(own[f"{SCORE}_low"] > 0) & (own[f"{GAIN}_high"] < 0)]
        to_last = own[own["earlier"] == own["earlier"].min()].tail(1)
        row = next(of for of in (own[own["parted"]], alone, to_last) if len(of)).sort_values("gain").iloc[0].to_dict()
        moved, p = _moved(row), row["p_holm"]
        if row["parted"]:
            after = f"The score no longer stands for the gain; stop at round {row['earlier']}."
            said.append(f"Warning: for {student} score and gain part. {moved}. {after}")
        elif len(alone):
            after = f"Alone that would be a parting; of {len(own)} pairs of rounds one may be so by chance (p {p:.2f})."
            said.append(f"Undecided for {student}. {moved}. {after}")
        else:  # what did not rise cannot part
            after = "" if row[f"{SCORE}_low"] > 0 else " The score did not rise beyond chance, so this shows little."
            said.append(f"No parting is seen for {student}. {moved}.{after}")
    return said


def _moved(row: dict) -> str:
    score, gain = (
        f"{100 * row[what]:+.1f} points ({100 * row[f'{what}_low']:+.1f} to {100 * row[f'{what}_high']:+.1f})"
        for what in (SCORE, GAIN)
    )
    return f"From round {row['earlier']} to round {row['later']} the score moved {score}, the held-out gain {gain}"
