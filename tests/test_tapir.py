"""A curriculum in rounds: shares that come out, what each arm leaves out, who is held back, and a small run whole."""

import math
import shutil

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_server import LocalServer
from notebook_steps import compute
from one_change import overlooked, recording
from small_classroom import recipe_of, run_whole
from test_difficulty import scores, sides_of

from workbench.methods import rounds, tapir, tapir_rounds
from workbench.methods.tapir import ARMS, Ingredients, TapirRecipe
from workbench.methods.tapir_rounds import apportion, choose_items, level_of, plan_round
from workbench.models.start import students_of
from workbench.notebook.watch import expected_steps
from workbench.report.cost_estimate import estimate
from workbench.runs.errors import RecipeError
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import open_run
from workbench.signals.difficulty import WHOSE
from workbench.tasks.task import SETS, load_tasks

ROUNDS = 2
STAGES = ("curriculum", "evaluation")


def small(folder, n_left_out=1, **curriculum) -> TapirRecipe:
    values = recipe_of(folder).model_dump(exclude={"alignment"})
    settings = {
        "pool": {"web_of_lies": 9, "object_counting": 3},
        "styles": {"web_of_lies": "tally"},
        "n_items": 6,
        "hard_shares": [0.5, 1.0],
        "n_tries": 2,
    }
    arms = ["base", *ARMS][: len(ARMS) + 1 - n_left_out]
    values |= {"method": "tapir", "curriculum": settings | curriculum}
    values["evaluation"] |= {"arms": arms, "shots": [0], "primary": {"a": "curriculum", "b": "pool"}}
    return TapirRecipe.model_validate(values)


@pytest.fixture(scope="module")
def whole(classroom, tmp_path_factory, reads):
    """The folder of runs that holds one run of all arms, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    # The aligned teacher is the teacher under another name: what it writes must be the same.
    shutil.copytree(small(classroom).models.teacher, folder / "teacher")
    recipe = small(classroom, 0, aligned_teacher=str(folder / "teacher"))
    with recording(reads):
        return run_whole(folder / "runs", recipe, STAGES)


@pytest.fixture
def run(whole, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(whole))
    return open_run("loop")


def test_whatever_a_step_looks_at_in_the_recipe_makes_it_another_step(run, classroom, reads):
    assert overlooked(run, reads, STAGES, classroom) == set()


shares = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.001, 100), min_size=1)


@given(st.integers(0, 300), shares)
def test_shares_add_up_and_none_is_off_by_an_item(n, wanted):
    numbers = apportion(n, wanted)
    assert sum(numbers.values()) == n and list(numbers) == list(wanted)
    assert all(abs(numbers[name] - n * share / sum(wanted.values())) < 1 + 1e-9 for name, share in wanted.items())


@given(st.integers(1, 200), shares, st.floats(0, 1), st.dictionaries(st.sampled_from("abcd"), st.integers(0, 50)))
def test_a_round_takes_no_more_from_the_pool_than_there_is_and_writes_the_rest(n, wanted, hard_share, spare):
    plan = plan_round(n, wanted, hard_share, spare).set_index("task")
    assert plan["items"].sum() == n and (plan["items"] == plan["from_pool"] + plan["written"]).all()
    for task, row in plan.iterrows():
        assert 0 <= row["from_pool"] <= spare.get(task, 0)
        assert row["written"] >= math.floor(hard_share * row["items"])


def test_a_learner_goes_on_when_it_has_got_better_and_is_held_back_otherwise():
    assert level_of([0.4], 0.01) == 0
    assert level_of([0.4, 0.5, 0.6], 0.01) == 2
    assert level_of([0.4, 0.405, 0.6], 0.01) == 1  # held back once
    assert level_of([0.4, 0.3], 0.01) == 0


def test_every_arm_but_the_plain_one_leaves_out_one_ingredient():
    for arm, own in ARMS.items():
        off = [name for name, value in own._asdict().items() if value != Ingredients._field_defaults[name]]
        assert len(off) == {"curriculum": 0, "pool": 5}.get(arm, 1), arm


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool": {"web_of_lies": 9}}, "curriculum.pool lacks the task 'object_counting'"),
        ({"pool": {"web": 9}}, "curriculum.pool names 'web', which is none of "),
        ({"shares": {"web_of_lies": 1.0}}, "curriculum.shares lacks the task 'object_counting'"),
        ({"hard_shares": [0.9, 0.3]}, "hard_shares must not fall from round to round"),
        ({"n_items": 7}, "holds 12 questions, but the arm 'pool' takes 14"),
        ({"aligned_teacher": "x"}, "evaluation.arms has 'aligned_teacher' if and only if"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_fix(small_models, change, said):
    with pytest.raises(ValueError, match=said):
        small(small_models, **change)


def test_arms_of_other_methods_and_unknown_styles_are_refused(small_models, tmp_path):
    with pytest.raises(RecipeError, match="evaluation.arms names 'untailored', which is none of base, curriculum"):
        load_recipe("tapir", {"evaluation.arms": "[base, untailored, curriculum, pool]"})
    tasks = load_tasks(small(small_models))
    with pytest.raises(ValueError, match=r"asks for 'rhyme' in web_of_lies, which has tally.*take one of these"):
        tapir_rounds.techniques_of(tasks, {"web_of_lies": "rhyme"})


def test_the_hard_ones_come_first_and_others_fill_the_place(small_models):
    recipe = small(small_models)
    tasks, key = load_tasks(recipe), {"student": "pupil", "seed": 1}
    item = {"task": "web_of_lies", "rationale": "<ans>Yes</ans>", "answer": "Yes", "gold": "Yes", "correct": True}
    item |= {"n_tokens": 3}
    pool = pd.DataFrame(
        [item | {"question_id": f"old{n}", "question": f"Old {n}?", "technique": "tally"} for n in range(4)]
    )
    arms = ("curriculum", "no_difficulty")
    new = pd.DataFrame(
        [item | key | {"arm": a, "question_id": f"new{n}", "question": f"New {n}?"} for a in arms for n in range(6)]
    )
    hard = new[[*WHOSE, "task", "question_id"]].assign(difficulty=[0.0, -1.0, 1.0, float("nan"), 0.0, 1.0] * 2)
    cells = [key | {"arm": arm, "task": "web_of_lies", "items": 6, "from_pool": 2, "written": 4} for arm in arms]
    before = pd.DataFrame([key | {"arm": "curriculum", "question_id": "old0"}])
    made = choose_items(1, pd.DataFrame(cells), pool, new, hard, [before], tasks, recipe.curriculum)
    taken = made["examples"].groupby("arm")["question_id"].agg(list)
    assert taken["curriculum"][2:] == ["new2", "new5", "new0", "new1"]  # not judged is not hard
    assert taken["no_difficulty"][2:] == ["new0", "new1", "new2", "new3"]
    assert "old0" not in taken["curriculum"] and len(set(taken["curriculum"])) == 6
    counts = made["examples"].attrs["counts"]
    assert (counts["new items"], counts["new items that are hard"], counts["new items not judged"]) == (8, 3, 2)


def test_a_run_ends_with_students_of_every_arm_on_equal_tokens(run):
    plan = pd.concat([run.read(f"round-{n}/plan").assign(round=n) for n in range(1, ROUNDS + 1)])
    wide = plan.pivot_table(index=["arm", "seed", "round"], columns="task", values="items")
    balanced = [arm for arm, of in ARMS.items() if of.balance and arm in set(plan["arm"])]
    assert (wide.loc[balanced] == 3).all(axis=None)
    assert not (wide.loc[["no_balance", "pool"]] == 3).any(axis=None)
    assert plan[plan["arm"] == "pool"]["written"].sum() == 0
    rows = run.read("round-1/rows")
    tokens = rows.groupby(["seed", "arm"])["n_tokens"].sum().unstack()
    longest = rows["n_tokens"].max()
    assert (tokens.max(axis=1) - tokens.min(axis=1) <= longest).all()
    curve, models = run.read("students", "curve"), run.read("students", "students")
    assert len(models) == 2 * len(run.recipe.trained_arms("pupil"))
    # What only some recipes ask for, as labels of open instructions, nobody waits for.
    assert {name for name in expected_steps(run) if not run.has(name)} <= {"predictions"}
    last = curve[curve["metric"] == "tokens"].set_index(["arm", "seed"])
    both = [run.read(f"round-{n}/rows" if n else "rows") for n in range(ROUNDS + 1)]
    assert len(both[0]) == len(both[1]) + len(both[2]) and both[0]["row_id"].is_unique
    n_epochs = run.recipe.training.n_epochs
    assert (last["value"] == n_epochs * both[0].groupby(["arm", "seed"])["n_tokens"].sum().reindex(last.index)).all()
    assert set(run.read("predictions")["arm"]) == {"base", *run.recipe.trained_arms("pupil")}


def test_the_second_round_asks_trained_learners_and_only_those_whose_arm_goes_by_it(run):
    first, second = (run.read(f"round-{n}/difficulty") for n in (1, 2))
    assert set(first["arm"]) == set(run.recipe.trained_arms("pupil"))
    assert set(second["arm"]) == {"curriculum", "no_balance", "no_style", "aligned_teacher"}
    by_seed = first.pivot_table(index="question_id", columns=["arm", "seed"], values="score_student")
    assert by_seed.eq(by_seed.iloc[:, 0], axis=0).all(axis=None)  # untrained, they are one
    items = run.result("round-2/examples")["candidates"]
    balanced = items[[ARMS[arm].balance for arm in items["arm"]]]
    assert balanced.groupby(["arm", "seed", "task"])["taken"].sum().le(3).all()
    chosen = items[items["arm"] != "no_difficulty"]
    by_cell = chosen.groupby(["arm", "seed", "task"])
    assert all(own[own["taken"]]["hard"].sum() == min(own["hard"].sum(), own["taken"].sum()) for _, own in by_cell)


def test_no_question_is_taught_twice_to_one_learner_and_none_is_of_the_pool_anew(run):
    examples, pool = run.read("examples"), run.read("questions")
    assert not examples.duplicated([*WHOSE, "question_id"]).any()
    new = run.read("round-1/new")
    assert not set(new["question"]) & set(pool[pool["kept"]]["question"])


def test_answers_are_in_the_style_that_the_task_asks_for(run):
    examples = run.read("examples")
    styled = examples[examples["task"] == "web_of_lies"]
    drafts = run.read("drafts").set_index(["question_id", "technique"])["rationale"]
    for arm, technique in (("curriculum", "tally"), ("no_style", "plain"), ("pool", "plain")):
        own = styled[(styled["arm"] == arm) & styled["question_id"].isin(run.read("questions")["question_id"])]
        assert len(own)
        assert all(row.rationale == drafts[row.question_id, technique] for row in own.itertuples())


def test_an_aligned_teacher_writes_for_its_arm_alone(run):
    new, examples = run.read("round-1/new"), run.read("examples")
    assert set(new.loc[new["teacher"] == "aligned", "arm"]) == {"aligned_teacher"}
    assert run.has("round-2/aligned/drafts") and run.has("round-2/teacher/drafts")
    columns = ["seed", "task", "question", "rationale", "correct"]
    same, own = (examples.loc[examples["arm"] == arm, columns] for arm in ("curriculum", "aligned_teacher"))
    pd.testing.assert_frame_equal(same.reset_index(drop=True), own.reset_index(drop=True))


def test_the_plan_counts_what_rounds_write_and_ask(classroom):
    recipe = small(classroom)
    amounts = tapir.plan_of(recipe)
    n_arms, n_seeds, n_tasks = 5, len(recipe.seeds), 2  # all but base and pool write
    written = n_arms * n_seeds * 1.5 * 6 / n_tasks * 2
    assert amounts.in_rounds == pytest.approx(written)
    assert amounts.asked_in_rounds == pytest.approx(6 + 3 * n_seeds * 6 + written)  # 12 of the pool, asked again by 3
    table = estimate(recipe).set_index("work")
    assert table.loc["rationales of all rounds", "generations"] == round(2 * written * n_tasks)
    assert not table.index.str.contains("DPO|preference set").any()


def test_a_recipe_is_read_back_as_it_was_and_has_no_alignment(classroom):
    recipe = small(classroom)
    values = recipe.model_dump(mode="json")
    assert "alignment" not in values and TapirRecipe.model_validate(values) == recipe
    with pytest.raises(ValueError, match="a curriculum aligns nobody, so alignment has no use here; leave"):
        TapirRecipe.model_validate(values | {"alignment": {"beta": 0.1}})


def test_a_round_computed_again_is_reused_to_the_last(run, capsys):
    compute("curriculum", run)
    said = capsys.readouterr().out
    assert said.count(": stored, ") >= 20 and "stopped" not in said


def test_another_rule_changes_the_round_and_not_what_came_before(run, whole, tmp_path, monkeypatch):
    learners = rounds.learners_of(students_of(run.recipe))
    pool, judged = run.read("drafts"), [run.read("round-1/difficulty")]

    def all_new(n, shares, hard_share, spare):
        return plan_round(n, shares, 1.0, {})

    plan = tapir_rounds.plan_rounds(1, all_new, learners, pool, judged, [], run.recipe.curriculum)
    assert (plan["written"] == plan["items"]).all() and plan["items"].sum() == 6 * len(learners)


def test_a_curriculum_runs_on_a_generator(classroom, tmp_path, monkeypatch):
    """By a teacher and a judge on a server that answer by rule: no pocket model was raised on such questions."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    numbers = iter(range(10**6))

    def reply(body: dict) -> str:
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        if "score_a" in prompt:
            return scores(*(8 if "so <ans>" in side else 2 for side in sides_of(prompt)))
        if "more question" in prompt:
            return f"<input>Add 4 to {next(numbers)} in your head.</input><target>5</target>"
        return " I add, so <ans>5</ans>"

    source = {"generator": "basic_arithmetic", "level": 1, "answer_type": "tagged", "description": "Calculate."}
    values = recipe_of(classroom).model_dump(exclude={"alignment"}) | {"method": "tapir"}
    values["tasks"] = {"names": ["sums"], "sources": {"sums": source}}
    values["curriculum"] = {"pool": {"sums": 8}, "n_items": 4, "hard_shares": [1.0], "n_tries": 1}
    arms = ["base", "pool", "curriculum"]
    values["evaluation"] |= {"arms": arms, "shots": [0], "primary": {"a": "curriculum", "b": "pool"}}
    values["models"]["judge"] = "m"
    with LocalServer(reply) as server:
        to_server = {"engine": "openai", "base_url": server.url, "model_name": "m"}
        values["engines"] = {"teacher": to_server, "judge": to_server | {"endpoint": "chat"}}
        runs = run_whole(tmp_path / "runs", TapirRecipe.model_validate(values), ("curriculum", "evaluation"))
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs))
    run = open_run("loop")
    predictions, task = run.read("predictions"), load_tasks(run.recipe)["sums"]
    assert set(predictions["arm"]) == set(arms) and set(predictions["task"]) == {"sums"}
    assert set(predictions["item_id"]) <= set(task.test["item_id"])
    targets = task.test.set_index("item_id")["target"]
    right = [task.answers.same(row.answer, targets[row.item_id]) for row in predictions.itertuples()]
    assert predictions["correct"].tolist() == right
    assert run.read("round-1/difficulty")["difficulty"].gt(0).any()
    taught = pd.concat([run.read("examples"), run.read("drafts")])
    assert not set(taught["question"]) & {question for part in SETS for question in getattr(task, part)["question"]}
