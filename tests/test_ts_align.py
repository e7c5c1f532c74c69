"""TS-Align: what is mined, who orders it and what it costs, in every arm; what is refused; and a small run whole."""

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_steps import compute
from one_change import overlooked, recording
from reward_models import write_reward_model
from small_classroom import recipe_of, run_whole

from workbench.methods import ts_align_rounds as rounds
from workbench.methods.rounds import learners_of
from workbench.methods.ts_align import ARMS, Ingredients, TsAlignRecipe, best_and_worst
from workbench.models.loading import load
from workbench.models.start import students_of
from workbench.models.trl import encode, tune_dpo
from workbench.runs.errors import ModelError, RecipeError, RunError
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import open_run
from workbench.signals.difficulty import WHOSE, Key
from workbench.signals.reward import CheckingReward, JudgeReward, RewardModel
from workbench.tasks.task import load_tasks

STAGES = ("ts_align", "evaluation")
N_ARMS = list(ARMS)[:-1]  # without the one that needs another run
KNOWN = {"student": "pupil", "seed": 1, "task": "web_of_lies", "question": "A?", "gold": "Yes", "prompt": "Q: A?"}


def small(folder, **rewards) -> TsAlignRecipe:
    values = recipe_of(folder).model_dump()
    settings = {"student": str(folder / "small"), "teacher": str(folder / "large"), "n_prompts": 4, "n_samples": 3}
    settings |= {"n_held_out": 4, "temperature": 1.5}
    values |= {"method": "ts-align", "rewards": settings | rewards}
    values["alignment"] |= {"sft_weight": 0.5}
    values["evaluation"] |= {"arms": ["base", *N_ARMS], "shots": [0], "primary": {"a": "ts_align", "b": "base"}}
    return TsAlignRecipe.model_validate(values)


@pytest.fixture(scope="module")
def whole(classroom, tmp_path_factory, reads):
    """The folder of runs that holds one run of all arms, never interrupted."""
    for seed, name in enumerate(("small", "large")):
        write_reward_model(classroom / name, classroom / "teacher", seed)
    with recording(reads):
        return run_whole(tmp_path_factory.mktemp("whole") / "runs", small(classroom), STAGES)


@pytest.fixture
def run(whole, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(whole))
    return open_run("loop")


def test_whatever_a_step_looks_at_in_the_recipe_makes_it_another_step(run, classroom, reads):
    assert overlooked(run, reads, STAGES, classroom) == set()


def sampled(rewards: list[float], texts: list[str] | None = None, arm: str = "ts_align", at: str = "q") -> pd.DataFrame:
    texts = texts or [f"text {n}" for n in range(len(rewards))]
    rows = [{"arm": arm, "question_id": at, "text": text, "reward": r} for text, r in zip(texts, rewards, strict=True)]
    return pd.DataFrame(rows).assign(**KNOWN)


def test_the_best_and_the_worst_make_the_pair():
    (pair,) = best_and_worst(sampled([0.5, 2.0, -1.0, np.nan])).to_dict("records")
    assert (pair["chosen"], pair["rejected"], pair["drop_reason"]) == ("text 1", "text 2", "")
    assert (pair["reward_chosen"], pair["reward_rejected"]) == (2.0, -1.0)


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (sampled([1.0, 1.0]), "rewards alike"),
        (sampled([1.0, 1.0], ["same", "same"]), "samples alike"),
        (sampled([np.nan, np.nan]), "no reward"),
    ],
)
def test_what_cannot_be_compared_says_why_and_is_no_pair(samples, why):
    pairs = best_and_worst(pd.concat([sampled([1.0, 2.0], at="first"), samples, sampled([3.0, 1.0], at="last")]))
    assert pairs["drop_reason"].tolist() == ["", why, ""]
    assert pairs["question_id"].tolist() == ["first", "q", "last"]


def ordered(arms: list[str], told: dict[str, float], n: int = 1, teacher_margin: float = 0.1) -> pd.DataFrame:
    """Return the pairs of n questions, of which the student likes "text 1", by a teacher that gives what is told."""
    parts = [sampled([0.0, 1.0], arm=arm, at=f"q{at}") for arm in arms for at in range(n)]
    settings = small_settings(teacher_margin=teacher_margin)
    return rounds.order_pairs(
        best_and_worst(pd.concat(parts, ignore_index=True)), lambda asked: asked["text"].map(told).to_numpy(), settings
    )


def small_settings(**given):
    return load_recipe("ts-align").rewards.model_copy(update={"n_samples": 8, **given})


def test_the_teacher_may_swap_and_only_arms_that_ask_it_pay():
    pairs = ordered(N_ARMS, {"text 0": 5.0, "text 1": 1.0}).set_index("arm")
    assert pairs["swapped"].to_dict() == {arm: ARMS[arm].reranks for arm in N_ARMS}
    assert all(pairs["chosen"] == ["text 0" if ARMS[arm].reranks else "text 1" for arm in N_ARMS])
    calls = {"ts_align": 2, "no_reranking": 2, "no_update": 2, "student_only": 0, "teacher_only": 8}
    assert pairs["calls"].to_dict() == calls
    assert pairs.loc[["ts_align", "no_update"], "teacher_margin"].tolist() == [4.0, 4.0]
    assert pairs.loc["no_reranking", "teacher_margin"] == -4.0  # the student still learns from it
    assert pairs.loc[["student_only", "teacher_only"], "teacher_margin"].isna().all()
    assert (pairs.loc["ts_align", "reward_chosen"], pairs.loc["ts_align", "reward_rejected"]) == (0.0, 1.0)


@pytest.mark.parametrize("told", [{"text 0": 1.0, "text 1": 1.05}, {"text 0": np.nan, "text 1": 1.0}])
def test_a_pair_without_a_margin_of_the_teacher_is_dropped_and_counted(told):
    pairs = ordered(["ts_align"], told)
    assert pairs["drop_reason"].tolist() == ["no teacher margin"] and not pairs["used"].any()
    counts = pairs.attrs["counts"]
    assert (counts["pairs dropped, no teacher margin"], counts["calls of the teacher"]) == (1, 2)


def test_arms_of_a_seed_use_as_many_pairs_as_the_one_with_the_fewest():
    settings, parts = small_settings(), [sampled([0.0, 1.0], arm="student_only", at=f"q{n}") for n in range(5)]
    parts += [sampled([0.0, 1.0 + n], arm="ts_align", at=f"q{n}", texts=["low", f"high {n}"]) for n in range(5)]
    told = lambda asked: asked["text"].map({"low": 0.0, "high 0": 1.0, "high 1": 1.0}).fillna(0.0).to_numpy()  # noqa: E731
    pairs = rounds.order_pairs(best_and_worst(pd.concat(parts, ignore_index=True)), told, settings)
    assert pairs.groupby("arm")["used"].sum().to_dict() == {"student_only": 2, "ts_align": 2}
    none = rounds.order_pairs(best_and_worst(pd.concat(parts)), lambda asked: np.zeros(len(asked)), settings)
    assert not none["used"].any()


def test_every_arm_but_the_whole_one_leaves_something_out():
    for arm, own in ARMS.items():
        off = [name for name, value in own._asdict().items() if value != Ingredients._field_defaults[name]]
        assert bool(off) == (arm != "ts_align"), arm
    assert len(set(ARMS.values())) == len(ARMS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_prompts": 5}, r"n_questions must be at least rewards.n_rounds times n_prompts \(10\).*got 8"),
        ({"n_held_out": 11}, r"n_held_out must be at most preference_set.n_validation \(10\), got 11; lower it"),
        ({"successor": "x"}, "evaluation.arms has 'successor' if and only if rewards.successor names its folder"),
        ({"n_samples": 1}, "greater than or equal to 2"),
        ({"n_prompts": 0}, "greater than or equal to 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_fix(small_models, change, said):
    with pytest.raises(ValueError, match=said):
        small(small_models, **change)


def test_the_loss_of_sft_needs_whole_batches_in_one_process():
    with pytest.raises(RecipeError, match="micro_batch_size must be 0 with sft_weight, got 4.*lower batch_size"):
        load_recipe("ts-align", {"alignment.micro_batch_size": "4"})
    with pytest.raises(RecipeError, match=r"alignment.sft_weight is for one process; set it to 0 or take out"):
        load_recipe("ts-align", {"compute.launcher": "accelerate"})
    assert "sft_weight" not in load_recipe("arte").alignment.model_dump()  # keys of older runs stay


def test_who_the_teacher_is(small_models):
    tasks = load_tasks(small(small_models))
    assert isinstance(rounds.teacher_of(small(small_models), tasks), RewardModel)
    assert isinstance(rounds.teacher_of(small(small_models, teacher=""), tasks), CheckingReward)
    judged = small(small_models, teacher="").model_dump()
    judged["models"]["judge"] = "somebody"
    assert isinstance(rounds.teacher_of(TsAlignRecipe.model_validate(judged), tasks), JudgeReward)


def test_too_few_prompts_and_no_pair_at_all_are_errors_that_say_what_to_do(small_models, tmp_path):
    recipe = small(small_models)
    learners = learners_of(students_of(recipe))
    questions = pd.DataFrame({"task": "web_of_lies", "question_id": ["a"], "question": ["A?"], "kept": [True]})
    with pytest.raises(ValueError, match=r"1 questions of web_of_lies were kept, but 1 rounds take 4; raise drafting"):
        rounds.draw_prompts(1, learners, questions, 4)
    same = pd.concat([sampled([1.0, 1.0], ["same", "same"], arm) for arm in N_ARMS])
    pairs = rounds.order_pairs(best_and_worst(same), lambda asked: np.zeros(len(asked)), recipe.rewards)
    one = {key: model for key, model in learners.items() if key == Key("pupil", "ts_align", 1)}
    with pytest.raises(ValueError, match=r"No pair is left for pupil-ts_align-1 \(1 samples alike\); raise rewards"):
        rounds.align_policies(one, pairs, recipe.alignment, folder=tmp_path)


def test_a_reward_that_rises_while_right_answers_fall_is_said():
    row = {"student": "p", "arm": "a", "reward_before": 0.0, "gold_before": 0.5}
    assert not rounds.parted(pd.DataFrame([row | {"reward_after": 1.0, "gold_after": 0.6}]))
    assert not rounds.parted(pd.DataFrame([row | {"reward_after": -1.0, "gold_after": 0.4}]))
    (said,) = rounds.parted(pd.DataFrame([row | {"reward_after": 1.0, "gold_after": 0.4}]))
    assert said.startswith("p, a: the student's reward rose from 0.00 to 1.00 while right answers fell from 50% to 40%")


def test_a_run_ends_with_policies_of_every_arm_that_took_as_many_steps(run):
    curve, models = run.read("students", "curve"), run.read("students", "students")
    assert len(models) == 2 * len(N_ARMS)
    steps = curve[curve["metric"] == "tokens"].pivot(index="seed", columns="arm", values="step")
    assert set(steps.columns) == set(N_ARMS) and (steps.nunique(axis=1) == 1).all() and (steps > 0).all(axis=None)
    assert set(run.read("predictions")["arm"]) == {"base", *N_ARMS}


def test_rounds_have_other_prompts_and_none_is_held_out_or_of_the_test(run):
    first, second = (run.read(f"round-{n}/prompts") for n in (1, 2))
    for seed in run.recipe.seeds:
        assert not set(first[first["seed"] == seed]["question_id"]) & set(second[second["seed"] == seed]["question_id"])
    kept = run.read("questions").query("kept")
    assert set(first["question_id"]) | set(second["question_id"]) <= set(kept["question_id"])
    for task in load_tasks(run.recipe).values():
        assert not set(kept["question"]) & {*task.validation["question"], *task.test["question"]}
    assert set(first["arm"]) == {"ts_align"}  # all arms are one model so far
    # Arms that were aligned to the same pairs are one model still.
    assert {"ts_align"} < set(second["arm"]) <= set(N_ARMS)


def test_the_second_round_is_ranked_by_what_the_first_one_taught(run):
    made = run.read("round-1/updated")
    assert set(made["arm"]) == {"ts_align", "no_reranking"}
    old, new = (run.read(f"round-1/held-{side}") for side in ("old", "new"))
    changed = old.assign(same=np.isclose(old["reward"], new["reward"], equal_nan=True)).groupby("arm")["same"].all()
    assert changed.to_dict() == {arm: not ARMS[arm].updates for arm in N_ARMS}
    compared = run.read("round-1/compared")
    assert compared[[f"agreement_{when}" for when in ("before", "after")]].stack().between(0, 1).all()


def test_examples_are_the_chosen_sides_that_were_used(run):
    examples, mined = run.read("examples"), [run.read(f"round-{n}/mined") for n in (1, 2)]
    used = pd.concat(frame[frame["used"]] for frame in mined)
    assert len(examples) == len(used) and set(examples["rationale"]) == set(used["chosen"])
    assert (used.groupby(["seed", "arm"]).size().unstack().nunique(axis=1) == 1).all()


def test_a_round_computed_again_is_reused_to_the_last(run, capsys):
    compute("ts_align", run)
    said = capsys.readouterr().out
    assert said.count(": stored, ") >= 18


def test_a_final_student_reward_model_can_align_another_policy(run, classroom):
    folder = run.path / "round-2/updated" / "pupil-ts_align-1"
    values = small(classroom).model_dump()
    values["rewards"]["successor"] = str(folder)
    values["evaluation"] |= {"arms": ["base", "student_only", "successor"]}
    values["evaluation"]["primary"] = {"a": "successor", "b": "student_only", "shots": 0}
    recipe = TsAlignRecipe.model_validate(values)
    learners = learners_of(students_of(recipe))
    refs = {key.arm: model.ref for key, model in rounds.students_of(recipe, learners).items()}
    assert refs == {"student_only": str(classroom / "small"), "successor": str(folder)}
    assert {key.arm for key in rounds.different(learners)} == {"student_only"}


def test_a_reward_model_of_the_wrong_kind_stops_the_run_where_it_is_asked(classroom, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    two = write_reward_model(tmp_path / "two", classroom / "teacher", labels=2)
    recipe = small(classroom, student=str(two))
    learners = learners_of(students_of(recipe))
    key = next(iter(learners))
    samples = pd.DataFrame([key._asdict() | {"task": "web_of_lies", "question_id": "q", "sample": 0, "text": "No"}])
    question = pd.DataFrame([{"task": "web_of_lies", "question_id": "q", "question": "A?"}])
    samples = samples.assign(answer="No", finished=True)
    given = ({key: learners[key]}, {key: RewardModel(recipe, str(two))}, question, samples)
    with pytest.raises((ModelError, RunError), match="has 2 labels, and a reward is one number"):
        rounds.reward_samples(*given, load_tasks(recipe))
    assert list(samples[WHOSE].iloc[0]) == list(key)


def letters(frame: pd.DataFrame) -> np.ndarray:
    return frame["text"].str.len().to_numpy(float)


def test_a_text_that_was_cut_off_has_no_reward_and_is_not_taught(classroom):
    recipe = small(classroom)
    learners = dict(list(learners_of(students_of(recipe)).items())[:1])
    key = next(iter(learners))
    question = pd.DataFrame([{"task": "web_of_lies", "question_id": "q", "question": "A?", "gold": "No"}])
    told = {"text": ["No, since", "No", "So no", "Let me see: I"], "answer": ["No", "No", "No", ""]}
    samples = pd.DataFrame(told).assign(task="web_of_lies", question_id="q", sample=range(4), **key._asdict())
    samples["finished"] = [True, True, True, False]
    rewarded = rounds.reward_samples(learners, {key: letters}, question, samples, load_tasks(recipe))
    assert rewarded["reward"].isna().tolist() == [False, False, False, True]
    (pair,) = best_and_worst(rewarded).to_dict("records")
    assert (pair["chosen"], pair["rejected"], pair["drop_reason"]) == ("No, since", "No", "")


def test_the_loss_of_sft_makes_the_chosen_side_likelier_than_dpo_alone_does(small_models, tmp_path):
    recipe, means = small(small_models), {}
    pairs = pd.DataFrame([{"prompt": f"Q: {n}", "chosen": "Yes Yes", "rejected": "Yes No"} for n in range(8)])
    for weight in (0.0, 5.0):
        settings = recipe.alignment.model_copy(update={"sft_weight": weight})
        work = tmp_path / str(weight)
        work.mkdir()
        tune_dpo(recipe.model_copy(update={"alignment": settings}), pairs, work, 1)
        means[weight] = mean_logprob(work, "Q: 3", "Yes Yes")
    assert means[5.0] > means[0.0] + 0.05


def mean_logprob(folder, prompt: str, completion: str) -> float:
    loaded = load(folder, device="cpu")
    ((start, end),) = encode(loaded.tokenizer, [prompt], [completion])
    with torch.no_grad():
        logits = loaded.model(torch.tensor([start + end])).logits[0, len(start) - 1 : -1]
    return logits.log_softmax(-1)[range(len(end)), end].mean().item()
