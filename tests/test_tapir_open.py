"""A curriculum of open instructions: judged, not checked, from the pool to the verdict, by a judge of a known rule."""

import json
import re

import pandas as pd
import pytest
from local_server import LocalServer
from small_classroom import recipe_of, run_whole
from test_difficulty import scores, sides_of

from workbench import figures
from workbench.cli.rehearse import in_words
from workbench.loop import prompts
from workbench.methods.tapir import TapirRecipe
from workbench.methods.tapir_labels import read_instructions
from workbench.report.card import result_card
from workbench.runs.errors import DataError, RecipeError
from workbench.runs.recipe import recipe_class
from workbench.runs.recipe_parts import TaskSource
from workbench.runs.run import open_run
from workbench.tasks.answers import Answers
from workbench.tasks.sources import items_of
from workbench.tasks.task import SETS, load_tasks
from workbench.verdict.ablations import hardest
from workbench.verdict.verdict import compare, counted, verdict

ARMS = ["base", "pool", "curriculum"]
TASKS = {"choosing": "yes", "writing": "no"}
SEEDS = (1, 2)
N_ITEMS, N_POOL = 8, {"choosing": 6, "writing": 18}


def worth(text: str) -> int:
    """Return the judge's score, from 1 to 10: by length and nothing else."""
    return min(1 + len(text) // 20, 10)


def seed_file(test_data, folder):
    """Write the real seeds of Self-Instruct that a tiny model can hold, labelled by whether they ask to choose."""
    path, lines = folder / "seeds.jsonl", (test_data / "self_instruct" / "seed_tasks.jsonl").read_text().splitlines()
    rows = [row | {"label": "yes" if row["is_classification"] else "no"} for row in map(json.loads, lines)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if len(json.dumps(row)) < 700))
    return path


def values_of(classroom, path, url="http://127.0.0.1:9/v1") -> dict:
    values = recipe_of(classroom).model_dump(exclude={"alignment"}) | {"method": "tapir"}
    sources = {name: {"path": str(path), "label": label, "answer_type": "open"} for name, label in TASKS.items()}
    values["tasks"] = {"names": list(TASKS), "sources": sources}
    values["preference_set"] = {"n_validation": 4, "n_items": 4}
    values["curriculum"] = {"pool": N_POOL, "n_items": 8, "hard_shares": [0.5, 1.0], "n_tries": 2, "threshold": 1.0}
    values["evaluation"] |= {"arms": ARMS, "shots": [0], "n_items": N_ITEMS, "max_new_tokens": 24}
    values["evaluation"]["primary"] = {"a": "curriculum", "b": "pool"}
    values["training"] |= {"max_length": 1024}
    values["models"]["judge"] = "m"
    served = {"engine": "openai", "base_url": url, "model_name": "m"}
    return values | {"engines": {"teacher": served, "judge": served | {"endpoint": "chat"}}}


def is_lost(prompt: str) -> bool:
    """Say whether the bad judge writes garbage: about one question in three, whoever answers it."""
    line = re.search(r"(?m)^-----[0-9a-f]{16}-----$", prompt)[0]
    return len(prompt.split(f"\n{line}\n")[1]) % 3 == 0


def run_with(
    classroom, test_data, folder, hard_shares, garbage=lambda prompt: False, fault=lambda n, prompt: ""
) -> None:
    numbers = iter(range(10**6))

    def reply(body: dict) -> str:
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        if "score_a" in prompt:
            return "I like both." if garbage(prompt) else scores(*map(worth, sides_of(prompt)))
        if "more question" in prompt:
            return f"<input>Name {next(numbers)} birds, and say of each where it lives.</input><target></target>"
        return "It is a long answer, as teachers like them; " * (1 + len(prompt) % 3) + "that is all."

    with LocalServer(reply, fault) as server:
        values = values_of(classroom, seed_file(test_data, folder), server.url)
        values["curriculum"]["hard_shares"] = hard_shares
        run_whole(folder / "runs", TapirRecipe.model_validate(values), ("curriculum", "evaluation"))


@pytest.fixture(scope="module")
def served(classroom, test_data, tmp_path_factory):
    """The folders of runs by two judges: one that answers, and one that is down half of the time and writes garbage."""
    folders, asked = (tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("bad")), set()

    def down(n: int, prompt: str) -> str:
        """Fail every second request, but never the same one twice: nobody waits for a judge that stays away."""
        is_new = prompt not in asked
        asked.add(prompt)
        return "500" if is_new and n % 2 and "score_a" in prompt else ""

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OPENAI_API_KEY", "k")
        run_with(classroom, test_data, folders[0], [0.5, 1.0])
        run_with(classroom, test_data, folders[1], [1.0], is_lost, down)
    return dict(zip(("good", "bad"), folders, strict=True))


@pytest.fixture
def opened(served, monkeypatch):
    def of(judge: str):
        monkeypatch.setenv("WORKBENCH_RUNS", str(served[judge] / "runs"))
        return open_run("loop")

    return of


def with_texts(run, predictions) -> pd.DataFrame:
    """Return predictions with what was asked, the reference, and what the judge's rule says of the two."""
    items = pd.concat([task.test.assign(task=name) for name, task in load_tasks(run.recipe).items()])
    told = predictions.merge(items, on=["task", "item_id"], validate="many_to_one")
    gaps = [worth(row.answer) - worth(row.target) for row in told.itertuples()]
    return told.assign(rule=[(gap > 0) + 0.5 * (gap == 0) for gap in gaps])


def test_the_pool_is_the_files_own_and_its_difficulty_what_the_rule_says(opened, test_data):
    run = opened("good")
    pool, tasks = run.read("questions"), load_tasks(run.recipe)
    assert pool["task"].value_counts().to_dict() == N_POOL and pool["kept"].all()
    real = read_instructions(test_data / "self_instruct" / "seed_tasks.jsonl")
    assert set(pool["question"]) <= set(real["question"])
    drafts, answers = run.read("drafts"), run.read("round-1/answers")
    assert drafts["gold"].eq("").all() and drafts["answer"].equals(drafts["rationale"].str.strip())
    told = run.read("round-1/difficulty").merge(drafts[["question_id", "rationale"]], on="question_id")
    told = told.merge(answers, on=["student", "arm", "seed", "task", "question_id"])
    assert len(told) == len(answers) == 24 * 2 * len(SEEDS)
    expected = [worth(row.rationale) - worth(row.text) for row in told.itertuples()]
    assert told["difficulty"].tolist() == expected and len(set(expected)) > 1
    kept_apart = [
        set(pool["question"]),
        *(set(pd.concat([getattr(t, s) for t in tasks.values()])["question"]) for s in SETS[1:]),
    ]
    assert not kept_apart[0] & kept_apart[1] and not kept_apart[0] & kept_apart[2] and not kept_apart[1] & kept_apart[2]


def test_rounds_keep_the_mix_and_write_what_is_new(opened):
    run = opened("good")
    plans = pd.concat([run.read(f"round-{n}/plan").assign(round=n) for n in (1, 2)])
    balanced = plans[plans["arm"] == "curriculum"]
    assert balanced["items"].eq(4).all() and balanced["written"].ge(2).all()
    examples = run.read("examples")
    own = examples[(examples["arm"] == "curriculum") & examples["kept"]]
    assert own.groupby(["seed", "task"]).size().sub(8).abs().le(1).all()
    assert set(own["question"]) & set(run.read("round-1/new")["question"])
    taught = {question for task in load_tasks(run.recipe).values() for question in task.test["question"]}
    assert not taught & set(examples["question"])
    assert len(run.read("students", "students")) == 2 * len(SEEDS)


def test_every_answer_is_judged_against_the_reference_and_the_verdict_counts_that(opened):
    run = opened("good")
    predictions = run.read("predictions")
    assert "correct" not in predictions and "in_form" not in predictions
    assert len(predictions) == 2 * N_ITEMS * (1 + 2 * len(SEEDS))
    told = with_texts(run, predictions)
    assert told["judged"].tolist() == told["rule"].tolist() and told["judged"].nunique() > 1
    result = run.verdict
    assert result["judged"] == {"answers": len(told), "not_judged": 0, "items": 16, "items_left": 16}
    for arm in ARMS:
        assert result["arms"][arm]["accuracy"] == pytest.approx(told.loc[told["arm"] == arm, "rule"].mean(), abs=1e-6)
    means = told.groupby("arm")["rule"].mean()
    first = result["comparisons"][0]
    assert first["difference"] == pytest.approx(means["curriculum"] - means["pool"], abs=1e-6)
    assert {"a", "b", "difference", "low", "high", "decision"} <= set(first) and "win_rate" not in first
    assert first["low"] <= first["difference"] <= first["high"] and first["decision"] == result["decision"]
    assert "majority" not in result and not any("could not be read" in said for said in result["warnings"])


def test_figures_and_card_say_judged_and_nothing_of_right_answers(opened):
    run = opened("good")
    shown = [figures.arm_accuracies(run.verdict), figures.comparisons(run.verdict)]
    shown += [figures.per_task(run.verdict), figures.sign_flips(run.read("predictions"), run.verdict)]
    text = [fig.to_json() for fig in shown] + [str(result_card(run))]
    assert all("judged better than the reference" in one for one in (*text[:2], text[-1]))
    assert not [one for one in text if re.search(r"right answer|answer right|% right|[Aa]ccuracy of", one)]
    assert run.verdict["primary"]["rule"].startswith(
        "answers judged better than the reference (a tie counts half) of curriculum"
    )


def test_a_judge_that_fails_loses_no_row_doubles_none_and_makes_no_score_up(opened):
    good, run = opened("good").read("predictions"), opened("bad")
    predictions = run.read("predictions")
    named = ["student", "arm", "seed", "shots", "task", "item_id"]
    assert len(predictions) == len(good) and not predictions.duplicated(named).any()
    told = with_texts(run, predictions)
    lost = told["question"].str.len() % 3 == 0
    assert lost.any() and told["judged"].isna().tolist() == lost.tolist()
    assert told.loc[~lost, "judged"].tolist() == told.loc[~lost, "rule"].tolist()
    left = told.loc[~lost, "item_id"].nunique()
    counts = {"answers": len(told), "not_judged": int(lost.sum()), "items": 16, "items_left": left}
    assert run.verdict["judged"] == counts and run.verdict["comparisons"][0]["n_items"] == left
    said = f"{lost.sum()} of {len(told)} answers were not judged; {left} of 16 items are left for all arms."
    assert said in run.verdict["warnings"]
    pool = run.read("round-1/difficulty").merge(run.read("questions")[["question_id", "question"]], on="question_id")
    assert pool["difficulty"].isna().tolist() == (pool["question"].str.len() % 3 == 0).tolist()
    assert len(pool) == 24 * 2 * len(SEEDS) and not pool.duplicated(["arm", "seed", "question_id"]).any()
    new = run.result("round-1/examples")["candidates"]
    assert new["difficulty"].isna().any() and not new.loc[new["difficulty"].isna(), "hard"].any()


def rows_of(judged: dict[str, list[list[float]]]) -> pd.DataFrame:
    """Return predictions with these judgements by arm, seed and item, of one task."""
    rows = [
        {"student": "s", "arm": arm, "seed": seed, "shots": 0, "task": "t", "item_id": f"i{item}", "judged": value}
        for arm, table in judged.items()
        for seed, values in enumerate(table)
        for item, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(answer="x", style="", parsed=True, finished=True)


def test_an_item_that_one_answer_of_was_not_judged_is_left_out_for_all_arms():
    told = rows_of(
        {"a": [[1.0, 0.5, 1.0, 0.0], [1.0, 0.5, 0.5, 1.0]], "b": [[0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 1.0, float("nan")]]}
    )
    assert set(counted(told)["item_id"]) == {"i0", "i1", "i2"}
    row = compare(told, "a", "b", 0, 0.05, 0.05)
    assert row["difference"] == pytest.approx((1 + 0 + 0.5 + 1 + 0.5 - 0.5) / 6) and row["n_items"] == 3
    # Item by item the sums over seeds are 2, 0.5 and 0, in halves 4, 1 and 0: all four patterns of signs are as far.
    assert row["p_value"] == pytest.approx(0.5)
    none = told.assign(judged=told["judged"].where(told["item_id"] == "i0"))
    with pytest.raises(DataError, match=r"12 of 16 answers were not judged, which leaves no task two items"):
        verdict(
            none,
            {
                "arms": ["a", "b"],
                "shots": [0],
                "margin": 0.05,
                "alpha": 0.05,
                "primary": {"a": "a", "b": "b", "shots": 0},
            },
            recipe="r",
            run="r",
            models="pocket",
            student="s",
        )


def test_open_answers_are_whole_replies_and_never_right_or_wrong():
    answers = Answers("open")
    reply = "<think>A poem?</think>\nRoses are red.\n\nQuestion: are they? <ans>Yes</ans>\n"
    assert answers.read(reply) == "Roses are red.\n\nQuestion: are they? <ans>Yes</ans>"
    assert not answers.same("Yes", "Yes") and answers.read_gold(" Yes ") == "Yes"


def test_prompts_of_open_tasks_ask_for_no_tags_no_steps_and_no_target(classroom, test_data, tmp_path):
    recipe = TapirRecipe.model_validate(values_of(classroom, seed_file(test_data, tmp_path)))
    task = load_tasks(recipe)["writing"]
    asked = prompts.naive_prompt(task.description, "Write a poem.", task.prompts)
    assert asked == "Task: Follow the instruction.\nQuestion: Write a poem.\nAnswer:"
    more = prompts.question_prompt(task.description, [("Write a poem.", "Roses are red")], 1, task.prompts)
    assert "<input>Write a poem.</input><target></target>" in more and "Roses" not in more


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda v: v["models"].pop("judge") and v["engines"].pop("judge"),
            "models.judge names no model, but open answers",
        ),
        (
            lambda v: v["tasks"]["sources"].pop("choosing"),
            "tasks.names has 'choosing', whose answers are checked, beside",
        ),
        (
            lambda v: v["tasks"]["sources"]["choosing"].update(generator="sums", path="", label=""),
            "open is set beside a gen",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_before_any_work(classroom, test_data, tmp_path, change, said):
    values = values_of(classroom, seed_file(test_data, tmp_path))
    change(values)
    with pytest.raises(ValueError, match=said):
        TapirRecipe.model_validate(values)


def test_methods_that_check_answers_refuse_open_ones(classroom, tmp_path):
    values = recipe_of(classroom).model_dump()
    values["tasks"]["sources"] = {name: {"answer_type": "open"} for name in values["tasks"]["names"]}
    with pytest.raises(
        ValueError, match="tasks.sources has open answers, but method arte checks answers; take another"
    ):
        recipe_class("arte").model_validate(values)


def test_tasks_are_cut_from_a_file_by_label_and_a_label_that_is_not_there_is_refused(test_data, tmp_path):
    path = seed_file(test_data, tmp_path)
    parts = {
        label: items_of(TaskSource(path=str(path), label=label, answer_type="open"), "t")[0] for label in ("yes", "no")
    }
    pool = read_instructions(test_data / "self_instruct" / "seed_tasks.jsonl").set_index("question")["answer"]
    assert all(pool[row["input"]] == row["target"] for rows in parts.values() for row in rows)
    whole = items_of(TaskSource(path=str(path), answer_type="open"), "t")[0]
    assert len(whole) == sum(map(len, parts.values())) and min(map(len, parts.values())) > 15
    with pytest.raises(
        DataError, match=r"has no row with the label 'maybe' in a column 'label'; it has no, yes, so take"
    ):
        items_of(TaskSource(path=str(path), label="maybe", answer_type="open"), "t")
    # What the step that labels leaves is such a file.
    labelled = tmp_path / "labelled.parquet"
    pool.reset_index().assign(label=["Math", "Law"] * 87 + ["Law"], read=True).to_parquet(labelled)
    assert len(items_of(TaskSource(path=str(labelled), label="Law", answer_type="open"), "t")[0]) == 88


def test_what_counts_right_answers_says_that_there_are_none(classroom, test_data, tmp_path):
    recipe = TapirRecipe.model_validate(values_of(classroom, seed_file(test_data, tmp_path)))
    with pytest.raises(
        RecipeError, match="Open answers are never right or wrong, so there is nothing to rehearse; plan"
    ):
        next(in_words(recipe))
    told = rows_of({"base": [[0.0, 0.5, 0.0, 1.0]], "a": [[1.0, 0.5, float("nan"), 0.0]]})
    assert set(hardest(told, 0)["item_id"]) == {"i0"}
