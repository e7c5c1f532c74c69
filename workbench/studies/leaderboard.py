"""Which signal tells the truth? Every way to ask a student, on the same drafts, against what training really gains.

Groups hold one draft of each question, and are the same for all signals: each technique, one drawn at random, and the
best and the worst by each of some leading signals. A student is trained on every group under every seed, once: lengths
are snapshots of one training at a constant rate. It is asked validation questions outside the preference set, and its
gain is accuracy after so many steps minus before. Correlations are over groups, within student and task.

Source: ours. The comparisons in the papers (see signals/) are each of one signal, across teachers, mostly of one seed.
"""

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.methods import FIRST_RECIPE
from workbench.models import loading
from workbench.models.start import students_of, teacher_of
from workbench.runs import progress
from workbench.runs.cache import atomic_write
from workbench.runs.errors import RunError
from workbench.runs.recipe import ONE_SHOT, Recipe
from workbench.runs.recipe_parts import Influence
from workbench.runs.run import Run
from workbench.runs.seeding import stream
from workbench.runs.workers import Job, run_jobs
from workbench.signals.by_name import PASSES, measure_signals
from workbench.signals.influence_of_drafts import measure_influence, warm_up_questions
from workbench.signals.measured_gain import Questions, gains_along, kept
from workbench.signals.reference import build_reference
from workbench.signals.warm_up import WarmUp, texts_of
from workbench.studies.trials import held_out, training_rows
from workbench.tasks.task import guard_of_sets, load_tasks
from workbench.verdict.intervals import clustered_mean, percentiles, rank_correlation

VERSION = 1
AT = "leaderboard"
INFLUENCE = Influence(n_warm_up=8, n_steps=8)
CONTROLS = {"length": "n_tokens", "right": "correct"}  # what a signal may stand for; nobody is asked
N_RESAMPLES = 400
NUMBERS = ("spearman", "pearson", "apart", "regret")
POSED = ["right", "well posed, wrong", "ill posed"]


def signals_of(run: Run, names: Sequence[str], n_measured: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return every signal of every draft that each of them could score, and what each signal costs.

    Args:
        run: With finished probes, of a method whose drafts were probed one-shot.
        names: Of by_name.PASSES; "influence" leaves its warm-up questions out, for all signals.
        n_measured: Questions of each task of whose drafts measured_gain is taken.

    Returns:
        Columns student, draft_id, task, question_id, technique, signal, value; and signal, forward and backward (passes
        over a text a draft; of what is written, one a token) and seconds a draft, nan where they were not taken.
    """
    if not run.has("probes"):
        raise RunError(
            f"The drafts of run {run.name} were not probed one-shot; take a run whose were, for example: "
            f"workbench run {FIRST_RECIPE} --name demo --to probing"
        )
    if unknown := set(names) - set(PASSES):
        raise RunError(f"There is no signal {min(unknown)!r}; there are {', '.join(PASSES)}.")
    recipe, drafts, probes = run.recipe, run.read("drafts"), run.read("probes")
    students, items, costs, parts = students_of(recipe), run.read("preference_set"), [], []
    kept = drafts[drafts["answer"] != ""]
    if "influence" in names:
        n_warm_up = max(1, min(INFLUENCE.n_warm_up, recipe.drafting.n_questions // 4))
        settings = INFLUENCE.model_copy(update={"n_warm_up": n_warm_up})
        kept = kept[~kept["question_id"].isin(warm_up_questions(run.read("questions"), n_warm_up))]
    for name in names:
        at, some = f"{AT}/{name}", drafts
        if name == "influence":
            at = f"{at}/influences"
            found = _influences(run, settings, at)
        else:
            if name == "measured_gain":
                first = kept.drop_duplicates("question_id").groupby("task").head(n_measured)["question_id"]
                some = drafts[drafts["question_id"].isin(first)]
            given = ([name], teacher_of(recipe), load_tasks(recipe), items, recipe.seeds[0])
            found = run.step(at, measure_signals, probes, some, students, *given)["signals"]
        own = found[found["item_kind"] == "rationale"].merge(kept, on="draft_id")
        parts.append(own.assign(signal=name))
        asked, (forward, backward) = "probes" if name in (ONE_SHOT, "self_consistency") else at, PASSES[name]
        if forward is None:
            forward = backward + own["n"].mean() * (1 if name == "influence" else 1 + probes["n_tokens"].mean())
        costs.append((name, forward, backward, run.manifest(asked)["seconds"] / max(1, len(students) * len(some))))
    ruled = kept.groupby("task")["gold"].transform("max") != ""  # elsewhere nobody knows what is right
    for name, column in CONTROLS.items():
        own = kept.assign(signal=name, value=kept[column].astype(float).where(ruled | (name != "right")))
        parts += [own.assign(student=student) for student in students]
    columns = ["student", "draft_id", "task", "question_id", "technique", "signal", "value"]
    costs = pd.DataFrame(costs, columns=["signal", "forward", "backward", "seconds"])
    return pd.concat(parts, ignore_index=True)[columns], costs


def _influences(run: Run, settings: Influence, at: str) -> pd.DataFrame:
    """Return local data influence as the method for it measures it, on the questions that the student was probed on."""
    recipe, tasks, students = run.recipe, load_tasks(run.recipe), students_of(run.recipe)
    teacher, seed = teacher_of(recipe), recipe.seeds[0]
    writers = {"student": students, "teacher": dict.fromkeys(students, teacher), "target": None}[settings.reference]
    given = (run.read("preference_set"), settings.n_tries, recipe.evaluation.max_new_tokens, seed)
    reference = run.step(f"{AT}/reference", build_reference, writers, students, tasks, *given)
    given = (run.read("questions"), run.read("drafts"), reference, settings, seed)
    return run.step(at, measure_influence, students, tasks, *given)["influences"]


def groups_of(signals: pd.DataFrame, leaders: Sequence[str], seed: int) -> pd.DataFrame:
    """Return the common groups: columns student, group (its names, joined by "; "), question_id, draft_id.

    Techniques of several tasks go together by the order of their names. Only questions with a draft of every technique
    of their task are in any group; ties are broken at random, and groups of the same drafts are one.
    """
    wide = signals.pivot_table(index=["student", "question_id", "draft_id"], columns="signal", values="value")
    known = signals.drop_duplicates(["student", "draft_id"]).set_index(["student", "question_id", "draft_id"])
    rows = []
    for student, own in known.groupby(level="student", sort=False):
        own = own.reset_index()
        of_task = own.groupby("task")["technique"]
        place = of_task.transform(lambda names: names.astype("category").cat.codes)
        own["name"] = own.groupby(place)["technique"].transform(lambda names: "/".join(sorted(set(names))))
        own = own[own.groupby("question_id")["technique"].transform("nunique") == of_task.transform("nunique")]
        if own.empty:
            raise RunError(f"No question has a usable draft of every technique for {student}; draft more questions.")
        own = own.iloc[stream(seed, "leaderboard", student).permutation(len(own))].reset_index(drop=True)
        picked = {name: part["draft_id"] for name, part in own.groupby("name")}
        picked["random"] = own.drop_duplicates("question_id")["draft_id"]
        for name in leaders:
            value = own["draft_id"].map(wide.loc[student][name].droplevel("question_id")).dropna()
            of_question = value.groupby(own["question_id"])
            for end, at in (("best", of_question.idxmax()), ("worst", of_question.idxmin())):
                picked[f"{end} {name}"] = own["draft_id"][at]
        same: dict[tuple, list[str]] = {}
        for name, ids in picked.items():
            same.setdefault(tuple(sorted(ids)), []).append(name)
        names = {draft: question for draft, question in zip(own["draft_id"], own["question_id"], strict=True)}
        rows += [(student, "; ".join(of), names[one], one) for ids, of in same.items() for one in ids]
    return pd.DataFrame(rows, columns=["student", "group", "question_id", "draft_id"])


def posed_groups(run: Run) -> pd.DataFrame:
    """Return groups by whether a question is well posed (it can be solved) and the answer right, at equal tokens.

    SOAR (arXiv:2601.18778) found that for questions a teacher writes well posed matters more than right. Only tasks
    with drafts of all three kinds count. Columns as of groups_of, the same drafts for every student; no rows where no
    task has all three.
    """
    drafts = run.read("drafts").query("answer != ''")
    kinds = np.select([drafts["correct"], drafts["gold"] != ""], POSED[:2], POSED[2])
    drafts = drafts.assign(group=kinds).iloc[stream(run.recipe.seeds[0], "posed").permutation(len(drafts))]
    totals = drafts.pivot_table(index="task", columns="group", values="n_tokens", aggfunc="sum")
    budget = totals.reindex(columns=POSED).dropna().min(axis=1)
    own = drafts[drafts["task"].isin(budget.index)]
    own = own[own.groupby(["task", "group"])["n_tokens"].cumsum() <= own["task"].map(budget).astype(float)]
    frames = [own.assign(student=student) for student in run.recipe.models.students]
    return pd.concat(frames, ignore_index=True)[["student", "group", "question_id", "draft_id"]]


def posed(answers: pd.DataFrame) -> pd.DataFrame:
    """Return what training on each of posed_groups gained, and its differences, in accuracy at every length.

    Returns:
        Columns student, steps, what ("right, gain" or "right minus wrong"), and value with its 95 % interval (low,
        high) over held-out questions, which are the clusters; seeds are averaged.
    """
    wide = answers.pivot_table(index=["student", "item"], columns=["group", "steps"], values="correct", aggfunc="mean")
    lengths = sorted(set.intersection(*({steps for of, steps in wide if of == kind} for kind in POSED)))
    pairs, rows = [*((one, "") for one in POSED), *itertools.combinations(POSED, 2)], []
    for student, own in wide.astype(float).groupby(level="student", sort=False):
        for steps, (a, b) in itertools.product(lengths, pairs):
            apart = own[a, steps] - own[b, steps if b else 0]
            value, low, high = clustered_mean(apart.reset_index(drop=True), pd.Series(range(len(apart))))
            what = f"{a} minus {b}" if b else f"{a}, gain"
            rows.append({"student": student, "steps": steps, "what": what, "value": value, "low": low, "high": high})
    return pd.DataFrame(rows)


def train(
    run: Run, groups: pd.DataFrame, seeds: Sequence[int], lengths: Sequence[int], batch: int, n_asked: int
) -> pd.DataFrame:
    """Train every student on every group under every seed, and ask it at every length; finished trainings are kept.

    Args:
        run: Whose students, and held-out questions, these are; of one that ships the answers are as they are.
        groups: As groups_of returns them.
        seeds: Of the order of rows.
        lengths: Steps, rising; an epoch, as many as the rows fill at this batch, is added.
        n_asked: Held-out questions a task.

    Returns:
        One answer a row: student, group ("" before any training), seed, steps, is_epoch, task, item, correct; also
        written to the run's folder as leaderboard.parquet.
    """
    if run.is_shipped:
        return pd.read_parquet(run.path / "leaderboard.parquet")
    recipe, tasks, drafts = run.recipe, load_tasks(run.recipe), run.read("drafts").set_index("draft_id")
    names, asked, targets = held_out(run, tasks)
    chosen = pd.Series(names).groupby(names).head(n_asked).index.tolist()
    readers, right = zip(*(targets[n] for n in chosen), strict=True)
    given = ["".join(asked[n]) for n in chosen], list(readers), list(right), recipe.evaluation.max_new_tokens
    questions, plan, epochs = Questions(*given), [], {}
    for student, own in groups.groupby("student", sort=False):
        plan.append((student, "", 0, None, (0,)))
        for group, members in own.groupby("group", sort=False):
            rows = training_rows(drafts.loc[sorted(members["draft_id"])], tasks)
            epochs[student, group] = max(1, round(len(rows) / batch))
            at = tuple(sorted({*lengths, epochs[student, group]}))
            plan += [(student, group, seed, rows, at) for seed in seeds]
    # Seed by seed, so that what a killed study has is whole for the first ones.
    plan.sort(key=lambda one: one[2])
    jobs = [
        Job(f"{student} on {group}, seed {seed}", (recipe, student, seed, rows, questions, batch, at))
        for student, group, seed, rows, at in plan
    ]
    with progress.of(run.path / AT, run.watching("training on groups")):
        told = run_jobs(_train_one, jobs, recipe.compute.workers, "training on groups")
    where = {"task": [names[n] for n in chosen], "item": chosen}
    frames = [
        pd.DataFrame(where)
        .assign(student=student, group=group, seed=seed, steps=steps, correct=right)
        .assign(is_epoch=steps == epochs.get((student, group)))
        for (student, group, seed, _, at), found in zip(plan, told, strict=True)
        for steps, right in zip(at, found, strict=True)
    ]
    table = pd.concat(frames, ignore_index=True)
    atomic_write(run.path / "leaderboard.parquet", table.to_parquet(index=False))
    return table


def _train_one(
    recipe: Recipe, name: str, seed: int, rows: pd.DataFrame | None, questions: Questions, batch: int, at: tuple
) -> list[list[bool]]:
    """Return for each length in `at` what a student answers rightly, trained on rows; without rows it is as it is."""
    student, rate = recipe.models.students[name], recipe.training.learning_rate
    texts = [] if rows is None else rows[["prompt", "completion"]].to_numpy().tolist()
    source = [VERSION, loading.fingerprint_model(loading.resolve(student)), questions.key, texts, seed]

    def trained() -> list[list[bool]]:
        loaded = loading.load(student, "float32", recipe.compute.device, merged=False)
        learned = [] if rows is None else texts_of(loaded.tokenizer, rows)
        return gains_along(loaded, learned, questions, WarmUp(0, batch, rate), at, seed)

    return kept(AT, [*source, batch, rate, list(at)], trained)


def board(signals: pd.DataFrame, groups: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Return how far each signal tells what training gains: for each student and length, and for all students.

    A group's signal is the mean over its drafts of a task, its gain the accuracy on that task's questions after minus
    before, mean over seeds; all numbers are within student and task, averaged over tasks. spearman and pearson:
    correlation over groups. apart: gain of the group that the signal likes best minus that of the one it likes least.
    regret: by how much the best group gained more than the one the signal likes best (the best is known only
    afterwards, and even a random choice among groups that are alike regrets something).

    Returns:
        Columns student ("all students" too), signal, steps (0: one epoch), and each of NUMBERS with its 95 % interval
        by bootstrap over seeds, draft questions and held-out questions (see centred); n_groups.
    """
    rows, drawn = [], {}
    for student, own in groups.groupby("student", sort=False):
        table = _Table(own, signals[signals["student"] == student], answers[answers["student"] == student])
        rng = stream(0, "leaderboard", student)
        estimate = table.numbers(*table.places())
        again = np.stack([table.numbers(*table.places(rng)) for _ in range(N_RESAMPLES)])
        drawn[student] = estimate, again
        rows += _rows(student, table, estimate, again)
    if len(drawn) > 1 and len({one.shape for one, _ in drawn.values()}) == 1:
        together = [_mean(np.stack([pair[at] for pair in drawn.values()]), 0) for at in (0, 1)]
        rows += _rows("all students", table, *together)
    return pd.DataFrame(rows)


def _rows(student: str, table: "_Table", estimate: np.ndarray, again: np.ndarray) -> list[dict]:
    rows = []
    for s, signal in enumerate(table.signals):
        for k, steps in enumerate(table.lengths):
            row = {"student": student, "signal": signal, "steps": steps}
            for n, name in enumerate(NUMBERS):
                low, high = percentiles(centred(again[:, n, s, k], estimate[n, s, k], name))
                row |= {name: estimate[n, s, k], f"{name}_low": low, f"{name}_high": high}
            rows.append(row | {"n_groups": len(table.groups)})
    return rows


def centred(again: np.ndarray, estimate: float, name: str) -> np.ndarray:
    """Return resampled numbers with their mean moved onto the estimate: correlations as Fisher's z, none out of range.

    Resampling adds the noise of the data a second time, which pulls correlations towards zero and regret up; the
    intervals keep their width, which that makes too large rather than too small, and hold what was estimated.
    """
    correlation = name in ("spearman", "pearson")
    z, middle = (np.arctanh(np.clip(one, -0.999, 0.999)) if correlation else one for one in (again, estimate))
    with warnings.catch_warnings(action="ignore"):  # all nan: says nothing
        moved = z - np.nanmean(z) + middle
    return np.tanh(moved) if correlation else np.maximum(moved, 0.0) if name == "regret" else moved


class _Table:
    """One student's groups: values (signals, groups, questions), and gains (lengths, groups, seeds, items)."""

    def __init__(self, groups: pd.DataFrame, signals: pd.DataFrame, answers: pd.DataFrame):
        self.groups, self.signals = list(groups["group"].unique()), list(signals["signal"].unique())
        wide = signals.pivot_table(index="draft_id", columns="signal", values="value").reindex(columns=self.signals)
        members = groups.pivot(index="group", columns="question_id", values="draft_id").reindex(self.groups)
        task_of = signals.drop_duplicates("question_id").set_index("question_id")["task"]
        self.of_question = task_of[members.columns].to_numpy()
        values = wide.reindex(members.to_numpy().ravel()).to_numpy()
        self.values = np.moveaxis(values.reshape(*members.shape, len(self.signals)), 2, 0)
        before = answers[answers["group"] == ""].set_index("item")["correct"].astype(float)
        self.of_item = answers.drop_duplicates("item").set_index("item")["task"][before.index].to_numpy()
        after = answers[answers["group"].isin(self.groups)]
        n_rows = after.groupby("steps").size()
        steps = n_rows.index[n_rows == n_rows.max()].tolist()  # an epoch may be as long for all groups, or not
        self.lengths = [0, *steps]
        parts = [after[after["is_epoch"]], *(after[after["steps"] == one] for one in steps)]
        cubes = [one.pivot(index=["group", "seed"], columns="item", values="correct") for one in parts]
        order = pd.MultiIndex.from_product([self.groups, sorted(set(after["seed"]))])
        cubes = [one.reindex(order)[before.index].to_numpy(float) - before.to_numpy() for one in cubes]
        self.gains = np.stack(cubes).reshape(len(parts), len(self.groups), -1, len(before))

    def places(self, rng: np.random.Generator | None = None) -> tuple[np.ndarray, ...]:
        """Return the places of questions, seeds and items: all of them, or as many drawn again, within task."""
        n_seeds = self.gains.shape[2]
        if rng is None:
            return np.arange(len(self.of_question)), np.arange(n_seeds), np.arange(len(self.of_item))
        drawn = [
            np.concatenate([rng.choice(np.flatnonzero(of == task), (of == task).sum()) for task in np.unique(of)])
            for of in (self.of_question, self.of_item)
        ]
        return drawn[0], rng.integers(n_seeds, size=n_seeds), drawn[1]

    def numbers(self, questions: np.ndarray, seeds: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return NUMBERS for these places, shape (numbers, signals, lengths)."""
        found = []
        for task in np.unique(self.of_item):
            gains = self.gains[:, :, seeds][..., items[self.of_item[items] == task]].mean(axis=(2, 3))
            values = _mean(self.values[:, :, questions[self.of_question[questions] == task]], -1)
            found.append(compare(values.round(9), gains.round(9)))
        return _mean(np.stack(found), 0)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of what is not nan; nan where all is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis) / known.sum(axis)


def compare(values: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Return NUMBERS of groups by each signal, shape (numbers, signals, lengths); nan where groups are alike to it.

    Args:
        values: Of the groups, shape (signals, groups).
        gains: Of the same groups, shape (lengths, groups).

    Example:
        >>> compare(np.array([[1.0, 2.0, 3.0]]), np.array([[0.0, 0.1, 0.4]])).round(3)[:, 0, 0].tolist()
        [1.0, 0.961, 0.4, 0.0]
    """
    x, y = values[:, None], gains[None]
    with np.errstate(invalid="ignore"):
        # Where all are alike, rounding would leave something to correlate.
        a, b = ((one - one.mean(-1, keepdims=True)).round(12) for one in (x, y))
        pearson = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
        ends = [(x == end).astype(float) for end in (x.max(-1, keepdims=True), x.min(-1, keepdims=True))]
        best, worst = ((at * y).sum(-1) / at.sum(-1) for at in ends)
    numbers = np.stack([rank_correlation(x, y), pearson, best - worst, y.max(-1) - best])
    told = ~np.isnan(x).any(-1) & (np.ptp(x, axis=-1) > 0)
    return np.where(told, numbers, np.nan)


def agreement(signals: pd.DataFrame) -> pd.DataFrame:
    """Return the rank correlation of every two signals over the drafts of a question, mean over questions and students.

    That is what pairs are made of. Signals as rows and columns; nan where one never differs within a question.
    """
    wide = signals.pivot_table(index=["student", "question_id", "draft_id"], columns="signal", values="value")
    wide = wide[list(signals["signal"].unique())]
    parts = [own.corr("spearman") for _, own in wide.groupby(level=["student", "question_id"]) if len(own) > 2]
    return pd.concat(parts).groupby(level=0, sort=False).mean().reindex(wide.columns)


def leaks(run: Run) -> pd.DataFrame:
    """Return what probes owe to drafts that give answers away: for each student and task.

    A probe leaks where the guard takes the draft's question for a copy of the preference question, or where the draft
    states the very answer that is right there, so that copying it would do.

    Returns:
        Columns student, task, copies (share of drafts that copy a preference question), same_answer (share of probes),
        right_if_same and right_else (shares right), score (mean over drafts) and without (the same without probes that
        leak), owed (score minus without) with its 95 % interval over draft questions (low, high), and order: the rank
        correlation of the two scores over the drafts of a question, mean over questions.
    """
    tasks, items, rows = load_tasks(run.recipe), run.read("preference_set"), []
    drafts = run.read("drafts")[["draft_id", "task", "question_id", "question", "answer"]]
    probes = run.read("probes")[["student", "draft_id", "item_id", "correct"]].merge(drafts, on="draft_id")
    for name, task in tasks.items():
        chosen = items[items["chosen"] & (items["task"] == name)].set_index("item_id")
        guard = guard_of_sets(run.recipe, {"validation": task.validation["question"]})
        asked = {text: {one.item for one in guard.matches(text)} for text in drafts["question"][drafts["task"] == name]}
        own = probes[probes["task"] == name]
        own = own.assign(target=own["item_id"].map(chosen["target"]), item=own["item_id"].map(chosen["question"]))
        pairs = own[["answer", "target"]].drop_duplicates()
        same = {pair: task.answers.alike(*pair) for pair in pairs.itertuples(index=False, name=None)}
        own["same"] = [same[pair] for pair in own[["answer", "target"]].itertuples(index=False, name=None)]
        own["copy"] = [item in asked[text] for text, item in own[["question", "item"]].itertuples(index=False)]
        for student, told in own.groupby("student", sort=False):
            kept = told[~told["same"] & ~told["copy"]]
            scores = pd.DataFrame({"score": told.groupby("draft_id")["correct"].mean()})
            scores["without"] = kept.groupby("draft_id")["correct"].mean()
            scores = scores.dropna().join(drafts.set_index("draft_id")["question_id"])
            owed, low, high = clustered_mean(scores["score"] - scores["without"], scores["question_id"])
            order = [rank_correlation(one["score"], one["without"]) for _, one in scores.groupby("question_id")]
            shares = {"copies": told.groupby("draft_id")["copy"].any().mean(), "same_answer": told["same"].mean()}
            shares |= {"right_if_same": told["correct"][told["same"]].mean()}
            shares |= {"right_else": told["correct"][~told["same"]].mean()} | scores.mean(numeric_only=True).to_dict()
            row = {"student": student, "task": name} | shares | {"owed": owed, "low": low, "high": high}
            rows.append(row | {"order": pd.Series(order).mean()})
    return pd.DataFrame(rows)
