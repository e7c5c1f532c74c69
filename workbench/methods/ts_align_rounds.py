"""The rounds of TS-Align: sampled, rewarded, mined, aligned, updated, compared. Its numbers: see ts_align."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.loop import prompts
from workbench.loop.alignment import dpo_job
from workbench.loop.budgets import curve_of
from workbench.loop.writing import example_of
from workbench.methods.ts_align import ARMS, Rewards, TsAlignRecipe
from workbench.models.start import Model
from workbench.models.trl import TuneJob, model_folder, tune_all
from workbench.runs import schemas
from workbench.runs.identity import fingerprint, identify
from workbench.runs.recipe import Alignment
from workbench.runs.seeding import stream, stream_seed
from workbench.signals.difficulty import WHOSE, Key, rows_of
from workbench.signals.judging import judge_of
from workbench.signals.reward import CheckingReward, JudgeReward, RewardModel, Scorer, agreement, scored
from workbench.signals.reward_models import update_reward
from workbench.tasks.task import Task

VERSION = 3
PROMPT = ["task", "question_id", "question", "gold", "prompt"]


def teacher_of(recipe: TsAlignRecipe, tasks: Mapping[str, Task]) -> Scorer:
    """Return the teacher: the reward model that the recipe names, else its judge, else whoever checks answers."""
    if recipe.rewards.teacher:
        return RewardModel(recipe, recipe.rewards.teacher)
    if recipe.models.judge:
        return JudgeReward(judge_of(recipe, tasks))
    return CheckingReward(tasks)


def students_of(recipe: TsAlignRecipe, learners: Mapping[Key, Model]) -> dict[Key, RewardModel]:
    """Return every learner's student reward model as it begins."""
    settings = recipe.rewards
    of = {"successor": settings.successor}
    return {key: RewardModel(recipe, of.get(ARMS[key.arm].ranks, settings.student)) for key in learners}


def ranking(students: Mapping[Key, RewardModel], teacher: Scorer) -> dict[Key, Scorer]:
    """Return who ranks every learner's samples in a round."""
    return {key: teacher if ARMS[key.arm].ranks == "teacher" else student for key, student in students.items()}


def different(learners: Mapping[Key, Model]) -> dict[Key, Model]:
    """Return one learner for each that is another model so far, student and seed by student and seed."""
    first: dict[tuple, Key] = {}
    for key, model in learners.items():
        first.setdefault((key.student, key.seed, model.key), key)
    return {key: learners[key] for key in first.values()}


def draw_prompts(n_round: int, learners: Mapping[Key, Model], questions: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the prompts of a round (from 1), n of each task for each learner: new each round, for a seed the same.

    Args:
        questions: As draft_questions returns them.

    Raises:
        ValueError: If too few questions were kept.
    """
    kept, frames = questions[questions["kept"]], []
    for key in learners:
        for task, own in kept.groupby("task", sort=False):
            if len(own) < n_round * n:
                raise ValueError(
                    f"{len(own)} questions of {task} were kept, but {n_round} rounds take {n_round * n}; raise "
                    "drafting.n_questions or lower rewards.n_prompts."
                )
            order = stream(key.seed, "prompts", task).permutation(len(own))[(n_round - 1) * n : n_round * n]
            frames.append(own.iloc[order][["task", "question_id", "question"]].assign(**key._asdict()))
    return pd.concat(frames, ignore_index=True)


def held_out(tasks: Mapping[str, Task], n: int) -> pd.DataFrame:
    """Return the first n validation questions of each task, which are neither prompts nor test items."""
    frames = [task.validation.head(n).assign(task=name) for name, task in tasks.items()]
    return pd.concat(frames, ignore_index=True).rename(columns={"item_id": "question_id", "target": "gold"})


def reward_samples(
    learners: Mapping[Key, Model],
    scorers: Mapping[Key, Scorer],
    questions: pd.DataFrame,
    samples: pd.DataFrame,
    tasks: Mapping[str, Task],
) -> pd.DataFrame:
    """Return every learner's samples with the reward that its own scorer gives them.

    Args:
        learners: Whose samples; those that were not asked themselves have those of the same model.
        questions: Columns task, question_id, question, and gold where it is known already.
        samples: As answer_questions returns them.

    Returns:
        Columns student, arm, seed, task, question_id, question, gold, prompt, sample, text, correct, reward: missing
        where it could not be had, and of texts that were cut off, which are neither preferred nor taught.
    """
    asked = {(key.student, key.seed, model.key): key for key, model in reversed(different(learners).items())}
    texts = questions.drop_duplicates(["task", "question_id"])
    if "gold" not in texts:
        rows = texts[["task", "question"]].itertuples(index=False, name=None)
        texts = texts.assign(gold=[tasks[task].solve(question) for task, question in rows])
    texts = texts.assign(prompt=prompts.naive_prompts(tasks, texts))[PROMPT]
    known = samples.merge(texts, on=["task", "question_id"], validate="many_to_one")
    known["correct"] = [tasks[row.task].answers.same(row.answer, row.gold) for row in known.itertuples()]
    frames = [
        rows_of(known, asked[key.student, key.seed, model.key]).assign(**key._asdict()).reset_index(drop=True)
        for key, model in learners.items()
    ]
    workers = next(iter(learners.values())).recipe.compute.workers
    rewards = scored([(scorers[key], frame) for key, frame in zip(learners, frames, strict=True)], workers)
    made = [
        frame.assign(reward=np.where(frame["finished"], values, np.nan))
        for frame, values in zip(frames, rewards, strict=True)
    ]
    return pd.concat(made, ignore_index=True)[[*WHOSE, *PROMPT, "sample", "text", "correct", "reward"]]


def order_pairs(pairs: pd.DataFrame, teacher: Scorer, settings: Rewards) -> pd.DataFrame:
    """Return the pairs as each arm has them ordered, those without a teacher's margin dropped, and equally many used.

    Args:
        pairs: As best_and_worst returns them.
        teacher: Scores only both sides, where the arm asks it.

    Returns:
        The pairs with teacher_margin (of chosen over rejected, missing where it was not asked), swapped, drop_reason,
        used (in the alignment of this round: as many in each arm of a seed), and calls of the teacher so far.
    """
    ways = [ARMS[arm] for arm in pairs["arm"]]
    asks = np.array([way.reranks or way.updates for way in ways]) & (pairs["drop_reason"] == "").to_numpy()
    margin = np.full(len(pairs), np.nan)
    margin[asks] = _margins(teacher, pairs[asks])
    reranks = np.array([way.reranks for way in ways])
    swapped = reranks & (margin < 0)
    frame = pairs.copy()
    for one, other in (("chosen", "rejected"), ("reward_chosen", "reward_rejected")):
        frame[one], frame[other] = pairs[one].where(~swapped, pairs[other]), pairs[other].where(~swapped, pairs[one])
    # Not judged is not ordered either.
    open_ = reranks & asks & ~(np.abs(margin) > settings.teacher_margin)
    frame["drop_reason"] = frame["drop_reason"].mask(open_, "no teacher margin")
    all_samples = np.array([way.ranks == "teacher" for way in ways])
    frame = frame.assign(
        teacher_margin=np.where(swapped, -margin, margin),
        swapped=swapped,
        calls=np.where(all_samples, settings.n_samples, 2 * asks),
        used=frame["drop_reason"] == "",
    )
    for (_, seed), own in frame[frame["used"]].groupby(["student", "seed"], sort=False):
        of_arm = own.groupby("arm", sort=False).size()
        n = of_arm.min() if set(of_arm.index) == set(pairs["arm"]) else 0
        for arm, rows in own.groupby("arm", sort=False):
            order = stream(int(seed), "pairs", arm).permutation(len(rows))
            frame.loc[rows.index[order[n:]], "used"] = False
    dropped = frame["drop_reason"].value_counts().to_dict()
    frame.attrs["counts"] = {
        "pairs used": frame["used"].sum(),
        "pairs swapped by the teacher": frame[frame["drop_reason"] == ""]["swapped"].sum(),
    }
    frame.attrs["counts"] |= {f"pairs dropped, {why}": n for why, n in dropped.items() if why}
    frame.attrs["counts"] |= {"calls of the teacher": frame["calls"].sum()}
    return frame


def _margins(teacher: Scorer, pairs: pd.DataFrame) -> np.ndarray:
    """Return the teacher's reward of the chosen minus that of the rejected side, shape (n,); equal pairs asked once."""
    if pairs.empty:
        return np.zeros(0)
    asked = pairs[[*PROMPT, "chosen", "rejected"]].drop_duplicates().reset_index(drop=True)
    sides = [asked[PROMPT].assign(text=asked[side], pair=asked.index) for side in ("chosen", "rejected")]
    both = pd.concat(sides, ignore_index=True)
    # A judge compares within a question, and here within a pair.
    both["question_id"] += "/" + both["pair"].astype(str)
    rewards = teacher(both)
    asked["margin"] = rewards[: len(asked)] - rewards[len(asked) :]
    known = pairs.merge(asked, on=[*PROMPT, "chosen", "rejected"], how="left", validate="many_to_one")
    return known["margin"].to_numpy()


def align_policies(
    learners: Mapping[Key, Model],
    pairs: pd.DataFrame,
    settings: Alignment,
    before: pd.DataFrame | None = None,
    *,
    folder: Path,
) -> dict[str, pd.DataFrame]:
    """Align every policy to its pairs by DPO, with the loss of SFT on the chosen side; the reference is where it was.

    Args:
        pairs: As order_pairs returns them.
        before: The curve so far, which goes on.

    Returns:
        "students": student, arm, seed and the model's name in the folder; "curve": as its schema describes it.

    Raises:
        ValueError: If an arm has no pair, so that no arm of its seed has one.
    """
    jobs = []
    for key, model in learners.items():
        own = rows_of(pairs[pairs["used"]], key)
        if own.empty:
            why = rows_of(pairs, key)["drop_reason"].replace("", "an arm of this seed has none").value_counts()
            said = ", ".join(f"{n} {what}" for what, n in why.items())
            raise ValueError(
                f"No pair is left for {'-'.join(map(str, key))} ({said}); "
                "raise rewards.n_prompts, n_samples or temperature, or lower rewards.teacher_margin."
            )
        models = model.recipe.models.model_copy(update={"teacher": model.ref})
        recipe = model.recipe.model_copy(update={"models": models, "alignment": settings})
        jobs.append(dpo_job(model, recipe, own, stream_seed(key.seed, "dpo", key.student), key._asdict(), folder))
    at_once = next(iter(learners.values())).recipe.compute.trained_at_once
    frame, points = tune_all(jobs, at_once, "aligning policies", "aligned policies")
    return {"students": frame, "curve": curve_of(points, before)}


def update_students(
    students: Mapping[Key, RewardModel], pairs: pd.DataFrame, settings: Rewards, folder: Path
) -> pd.DataFrame:
    """Teach the student reward models of arms that do so the order that the teacher gave this round's pairs.

    Args:
        pairs: As order_pairs returns them; those with too small a margin of the teacher teach nothing.

    Returns:
        Columns student, arm, seed, model (its name in the folder), n_pairs; no row where nothing was learned.
    """
    ordered = pairs[pairs["teacher_margin"].abs() > settings.teacher_margin]
    back, jobs = ordered["teacher_margin"] < 0, []
    ordered = ordered.assign(
        chosen=ordered["chosen"].where(~back, ordered["rejected"]),
        rejected=ordered["rejected"].where(~back, ordered["chosen"]),
    )
    for key, student in students.items():
        own = rows_of(ordered, key)[["prompt", "chosen", "rejected"]].reset_index(drop=True)
        if ARMS[key.arm].updates and len(own):
            seed, margin = stream_seed(key.seed, "update", key.student), settings.margin
            texts = own.to_numpy().tolist()
            mark = fingerprint([VERSION, student.key, identify(settings.update), margin, seed, texts])
            train = partial(update_reward, student.recipe, student.ref, settings.update, margin, own, seed=seed)
            whose = {**key._asdict(), "n_pairs": len(own)}
            said, at = f"update of {'-'.join(map(str, key))}", folder / model_folder(*key)
            jobs.append(TuneJob(said, whose, at, mark, train))
    at_once = next(iter(students.values())).recipe.compute.trained_at_once
    frame, _ = tune_all(jobs, at_once, "updating student reward models", "updated student reward models")
    return frame.reindex(columns=[*WHOSE, "model", "n_pairs"])


def updated(students: Mapping[Key, RewardModel], made: pd.DataFrame, folder: Path) -> dict[Key, RewardModel]:
    """Return the student reward models as a round's update left them."""
    at = {Key(*row[:3]): folder / row[3] for row in made[[*WHOSE, "model"]].itertuples(index=False, name=None)}
    return {key: student.updated(at[key]) if key in at else student for key, student in students.items()}


def compare_rewards(
    old: pd.DataFrame, new: pd.DataFrame, later: pd.DataFrame, teacher: Scorer, teacher_margin: float
) -> pd.DataFrame:
    """Return how a round changed each learner's student reward model and policy, on held-out questions.

    Args:
        old: Samples of the policy before the round, two a question, rewarded by the student before its update.
        new: The same samples, rewarded by the student after it.
        later: Samples of the policy after the round, rewarded by the student before its update.
        teacher: Orders the two samples of each question.
        teacher_margin: Pairs whose teacher's rewards lie no further apart are left out of the agreement.

    Returns:
        Columns student, arm, seed, n_pairs, agreement_before, agreement_after (shares of pairs that student and teacher
        order alike), reward_before, reward_after (means, the same student's), gold_before, gold_after (shares right).
    """
    first, second = (new[new["sample"] == n].reset_index(drop=True) for n in (0, 1))
    apart = (first["text"] != second["text"]).to_numpy()
    told = _margins(teacher, first.rename(columns={"text": "chosen"}).assign(rejected=second["text"])[apart])
    told = np.where(np.abs(told) > teacher_margin, told, np.nan)
    sides = [frame[frame["sample"] == n]["reward"].to_numpy()[apart] for frame in (old, new) for n in (0, 1)]
    margins = first.loc[apart, WHOSE].assign(told=told, before=sides[0] - sides[1], after=sides[2] - sides[3])
    rows = []
    for key in dict.fromkeys(Key(*row) for row in old[WHOSE].itertuples(index=False, name=None)):
        own, of = rows_of(margins, key), [rows_of(frame, key) for frame in (old, later)]
        row = key._asdict() | {"n_pairs": int(own["told"].notna().sum())}
        row |= {f"agreement_{when}": agreement(own[when], own["told"]) for when in ("before", "after")}
        for name, column in (("reward", "reward"), ("gold", "correct")):
            row |= {f"{name}_{when}": part[column].mean() for when, part in zip(("before", "after"), of, strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)


def parted(compared: pd.DataFrame) -> list[str]:
    """Return a warning for each arm in which the student's reward rose and right answers became fewer, over seeds."""
    means = compared.groupby(["student", "arm"], sort=False)[
        ["reward_before", "reward_after", "gold_before", "gold_after"]
    ].mean()
    return [
        f"{student}, {arm}: the student's reward rose from {row.reward_before:.2f} to {row.reward_after:.2f} while "
        f"right answers fell from {row.gold_before:.0%} to {row.gold_after:.0%}: the policy has learned to please it."
        for (student, arm), row in means.iterrows()
        if row.reward_after > row.reward_before and row.gold_after < row.gold_before
    ]


def examples_of(pairs: Sequence[pd.DataFrame], tasks: Mapping[str, Task]) -> pd.DataFrame:
    """Return the chosen sides that policies were aligned to, as examples."""
    rows = []
    for n_round, frame in enumerate(pairs, 1):
        for row in frame[frame["used"]].to_dict("records"):
            task, text = tasks[row["task"]], row["chosen"]
            answer = task.answers.read(text)
            read = {"rationale": text, "answer": answer, "correct": task.answers.same(answer, row["gold"])}
            whose = {name: row[name] for name in WHOSE}
            name = f"{'/'.join(map(str, whose.values()))}/{task.name}/{n_round}/{row['question_id']}"
            rows.append(example_of(task, name, whose, row | read | {"n_tokens": 0}))
    return schemas.build(rows, "examples")
