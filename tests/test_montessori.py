"""Montessori-Instruct on models built here: synthesis, influence, pairs by sign, the loop, killed and begun again."""

import dataclasses
import multiprocessing
import shutil
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from one_change import overlooked, recording
from rapidfuzz.distance import Indel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_classroom import compute, recipe_of, run_until_killed, run_whole

from workbench.loop import prompts
from workbench.loop.alignment import models_of
from workbench.loop.arms import pairs_by_arm
from workbench.loop.instructions import _Sieve
from workbench.loop.reviews import Reviews
from workbench.methods.montessori import MONTESSORI, MontessoriRecipe, Synthesis
from workbench.models.start import students_of, teacher_of
from workbench.notebook.session import begin
from workbench.report.lineage import lineage
from workbench.report.summary import summarise
from workbench.runs.cache import read_json, write_json
from workbench.runs.errors import ModelError, RecipeError
from workbench.runs.recipe import recipe_class
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import open_run
from workbench.signals import influence, influence_of_drafts
from workbench.signals.influence import KIND
from workbench.signals.reference import build_reference
from workbench.signals.warm_up import STATE
from workbench.tasks.contamination import Guard, NearDuplicates, words
from workbench.tasks.task import load_tasks

ARMS = ["base", "untailored", "random_pairs", "tailored", "rationale_only"]
STAGES = ("influence", "training", "evaluation")


def small(folder: Path, **more) -> MontessoriRecipe:
    """Return the recipe of the small classroom for this method, sections changed where given."""
    values = recipe_of(folder).model_dump()
    changes = {
        "method": "montessori",
        "drafting": {"n_questions": 16, "rationale_temperature": 1.0},
        "synthesis": {
            "n_seeds": 2,
            "n_own": 1,
            "n_siblings": 4,
            "n_responses": 2,
            "near_duplicate": 0.0,
            "max_characters": 800,
        },
        "preference_set": {"selection": "random"},
        "influence": {"n_warm_up": 4, "n_steps": 30, "batch_size": 4, "learning_rate": 1.0e-3, "n_tries": 8},
        "evaluation": {"arms": ARMS, "shots": [0]},
    }
    for name, section in {**changes, **{name: changes.get(name, {}) | part for name, part in more.items()}}.items():
        values[name] = section if isinstance(section, str) else {**values.get(name, {}), **section}
    return MontessoriRecipe.model_validate(values)


@pytest.fixture(scope="module")
def whole(classroom, tmp_path_factory, reads):
    """The folder of runs that holds one run, never interrupted."""
    with recording(reads):
        return run_whole(tmp_path_factory.mktemp("whole") / "runs", small(classroom), STAGES)


@pytest.fixture
def run(whole, monkeypatch):
    """The finished run, to be read only."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(whole))
    return open_run("loop")


def test_whatever_a_step_looks_at_in_the_recipe_makes_it_another_step(run, classroom, reads):
    assert overlooked(run, reads, STAGES, classroom) == set()


class Stopped(Exception):
    """A step was begun that was not wanted."""


class StopsBefore:
    """A run that computes no step of that name, nor any after it."""

    def __init__(self, run, step: str):
        self.run, self.last = run, step

    def __getattr__(self, name: str):
        return getattr(self.run, name)

    def step(self, name: str, *given):
        if name == self.last:
            raise Stopped
        return self.run.step(name, *given)


def test_siblings_share_a_prompt_of_seeds_and_earlier_instructions(run):
    tasks, questions = load_tasks(run.recipe), run.read("questions")
    assert questions.groupby("call")["index"].max().eq(3).all()
    for (task, call), siblings in questions.groupby(["task", "call"]):
        assert siblings["prompt"].nunique() == 1
        shown = prompts.parse_questions(siblings["prompt"].iloc[0])
        assert len(shown) == 3
        earlier = questions[(questions["task"] == task) & (questions["call"] < call) & questions["kept"]]
        own = [question for question, _ in shown if question not in set(tasks[task].seeds["question"])]
        assert len(own) <= 1 and set(own) <= set(earlier["question"])
    assert any(
        question in set(questions["question"])
        for prompt in questions["prompt"]
        for question, _ in prompts.parse_questions(prompt)
    ), "no prompt shows an instruction written before, so nothing here is tested"


def test_every_kept_instruction_has_its_responses_to_the_plain_prompt(run):
    questions, drafts = run.read("questions"), run.read("drafts")
    assert set(drafts["question_id"]) == set(questions.loc[questions["kept"], "question_id"])
    assert drafts.groupby("question_id")["technique"].agg(sorted).map(" ".join).eq("plain plain-2").all()


def test_the_first_instructions_warm_up_and_all_others_are_scored(run):
    questions, drafts = run.read("questions"), run.read("drafts")
    warm = influence_of_drafts.warm_up_questions(questions, run.recipe.influence.n_warm_up)
    assert (questions[questions["question_id"].isin(warm)].groupby("task").size() >= 4).all()
    found = run.read("influences").query("item_kind == 'rationale'")
    whole = drafts[drafts["finished"] & ~drafts["question_id"].isin(warm)]  # those cut off are not scored
    assert set(found["draft_id"]) == set(whole["draft_id"])
    # Siblings are never parted.
    parted = questions[questions["kept"]].assign(warm=lambda frame: frame["question_id"].isin(warm))
    assert parted.groupby(["task", "call"])["warm"].nunique().eq(1).all()


def test_a_question_is_worth_the_mean_of_its_responses(run):
    drafts, found = run.read("drafts"), run.read("influences")
    by_draft = found[found["item_kind"] == "rationale"].set_index("draft_id")["value"]
    for row in found[found["item_kind"] == "question"].itertuples():
        own = drafts.loc[(drafts["question_id"] == row.draft_id) & drafts["finished"], "draft_id"]
        assert row.value == pytest.approx(by_draft[own].mean())


def test_reference_answers_are_the_students_own_right_ones_and_outside_the_test_set(run):
    tasks, reference = load_tasks(run.recipe), run.read("reference")
    chosen = run.read("preference_set").query("chosen")
    assert len(reference) >= 4 and set(reference["item_id"]) <= set(chosen["item_id"])
    for row in reference.itertuples():
        assert tasks[row.task].answers.same(tasks[row.task].answers.read(row.completion), row.target)
        assert row.question not in set(tasks[row.task].test["question"])


@pytest.mark.parametrize("whose", ["teacher", "target"])
def test_reference_answers_may_be_the_teachers_or_the_bare_target(run, whose):
    students = students_of(run.recipe)
    writers = dict.fromkeys(students, teacher_of(run.recipe)) if whose == "teacher" else None
    reference = build_reference(writers, students, load_tasks(run.recipe), run.read("preference_set"), 8, 60, 1)
    assert len(reference) and set(reference["student"]) == {"pupil"}
    bare = reference["completion"] == [f" <ans>{target}</ans>" for target in reference["target"]]
    assert bare.all() if whose == "target" else not bare.any()


def test_pairs_are_all_helpful_siblings_with_all_harmful_ones(run):
    questions, pairs = run.read("questions"), run.read("pairs").query("kind == 'question'")
    values = run.read("influences").query("item_kind == 'question'").set_index("draft_id")["value"]
    known = questions[questions["question_id"].isin(values.index)].set_index("question_id")
    assert len(pairs) and (pairs["score_chosen"] > 0).all() and (pairs["score_rejected"] < 0).all()
    for pair in pairs.itertuples():
        sides = known.loc[[pair.chosen_id, pair.rejected_id]]
        assert list(sides["prompt"]) == [pair.prompt] * 2 and list(sides["reply"]) == [pair.chosen, pair.rejected]
        assert (pair.score_chosen, pair.score_rejected) == tuple(values[[pair.chosen_id, pair.rejected_id]])
    n_wanted = sum(
        sum(
            a > 0 > b and known.loc[i, "reply"] != known.loc[j, "reply"] for i, a in own.items() for j, b in own.items()
        )
        for _, own in values.groupby(known["prompt_id"].reindex(values.index))
    )
    assert len(pairs) == n_wanted
    assert run.counts("pairs")["question groups"] > run.counts("pairs")["question groups without a pair"]


def test_reviews_overrule_the_sign(run, tmp_path, monkeypatch):
    before = run.read("pairs").set_index("pair_id", drop=False)
    shutil.copytree(run.path.parent, tmp_path / "runs")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    said = {before.index[0]: "flip", before.index[1]: "drop"}
    for pair_id, review in said.items():
        Reviews.of_run(open_run("loop")).add(before.loc[pair_id], "review", review)
    again = begin("overruled", "run:loop")
    with pytest.raises(Stopped):
        compute("influence", StopsBefore(again, "teachers"))
    assert again.read("pairs").equals(run.read("pairs"))
    found = again.read("reviewed").set_index("pair_id")
    flipped, dropped = said
    assert set(found.index) == set(before.index) - {dropped}
    assert found.loc[flipped, "chosen"] == before.loc[flipped, "rejected"]
    assert found.loc[flipped, "score_gap"] == -before.loc[flipped, "score_gap"]
    assert len(again.read("reviewed", "reviews")) == 2


def test_the_raw_sign_counts_the_step_at_zero_gradient_in(run):
    influences = run.read("influences")
    assert list(run.read("signals")["value"]) == list(influences["value"])
    assert list(MONTESSORI.signal(influences, "raw")["value"]) == list(influences["raw"])
    assert influences["raw"].to_numpy() == pytest.approx((influences["value"] + influences["zero_step"]).to_numpy())
    assert not np.allclose(influences["raw"], influences["value"])


def test_the_arms_differ_in_what_the_teacher_is_aligned_to(run):
    tasks, by_arm = load_tasks(run.recipe), pairs_by_arm(run.recipe, run.read("reviewed"), MONTESSORI.aligned_on)
    assert set(by_arm["tailored"]["kind"]) == {"question"} and set(by_arm["rationale_only"]["kind"]) == {"rationale"}
    drafts = run.read("drafts").set_index("draft_id")
    for pair in by_arm["rationale_only"].itertuples():
        assert pair.prompt == prompts.naive_prompt(tasks[pair.task].description, drafts.loc[pair.chosen_id, "question"])
        assert drafts.loc[pair.chosen_id, "question_id"] == drafts.loc[pair.rejected_id, "question_id"]
    used = run.read("teachers", "pairs_used")
    assert {arm: len(own) for arm, own in used.groupby("arm")} == {arm: len(own) for arm, own in by_arm.items()}
    folders = models_of(run.result("teachers"), "teachers")
    assert set(folders) == {("pupil", arm) for arm in ARMS[2:]}
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders.values()}) == len(folders)


def test_which_examples_are_measured_does_not_hang_on_the_other_arms(run, monkeypatch):
    def unmeasured(ref, warmed, texts, reference, guard, student, *rest):
        return texts[["draft_id"]].assign(student=student, value=0.0, raw=0.0)

    def measured(examples):
        given = (load_tasks(run.recipe), examples, run.read("reference"), run.path, run.recipe.influence, 1, 2)
        return influence_of_drafts.influence_of_examples(students_of(run.recipe), *given)

    monkeypatch.setattr(influence_of_drafts, "measure", unmeasured)
    examples, without = run.read("examples"), {"random_pairs", "rationale_only"}
    every, fewer = measured(examples), measured(examples[~examples["arm"].isin(without)])
    assert set(every["arm"]) - set(fewer["arm"]) == without
    left = every[~every["arm"].isin(without)].reset_index(drop=True)
    assert fewer.equals(left) and (left.groupby(["arm", "task"]).size() <= 2).all()


def test_every_arm_trains_a_fresh_student_and_is_judged(run):
    assert set(run.read("predictions")["arm"]) == set(ARMS)
    folders = models_of(run.result("students"), "students")
    assert set(folders) == {("pupil", arm, seed) for arm in ARMS[1:] for seed in run.recipe.seeds}
    assert all(folder.is_dir() for folder in folders.values()) and len(summarise(run))


def test_where_a_draft_and_a_row_came_from_is_told_with_their_influence(run):
    assert "influence" in lineage(run, run.read("influences")["draft_id"].iloc[0])
    assert "influence" in lineage(run, run.read("rows").query("arm == 'tailored'")["row_id"].iloc[0])


def count_steps(runs: Path) -> int:
    with sqlite3.connect(runs / "items.sqlite") as connection:
        return connection.execute("SELECT COUNT(*) FROM items WHERE kind = ?", [KIND]).fetchone()[0]


def test_killed_while_scoring_no_draft_is_scored_twice(run, classroom, tmp_path, monkeypatch):
    kill = ("influence", "workbench.signals.influence:SnapshotStudent.after_update", 6)
    given = (str(tmp_path), small(classroom), kill, STAGES)
    died = multiprocessing.get_context("spawn").Process(target=run_until_killed, args=given)
    died.start()
    died.join()
    assert died.exitcode == -signal.SIGKILL
    n_known = count_steps(tmp_path)
    assert n_known == 5, "the step at zero gradient and four drafts were stored, the fifth was not"
    stepped = []
    original = influence.step_job
    monkeypatch.setattr(influence, "step_job", lambda job: stepped.extend(job.candidates) or original(job))
    whole = run.read("influences")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    again = open_run("loop")
    # What was measured is all that is asked of it here: the steps after it need no second look.
    with pytest.raises(Stopped):
        compute("influence", StopsBefore(again, "signals"))
    assert n_known + len(stepped) == count_steps(tmp_path)
    # Threads differ between the processes that warmed up, and with them the last digits.
    pd.testing.assert_frame_equal(again.read("influences"), whole, rtol=1e-4, atol=1e-6)


def test_a_second_iteration_begins_with_the_teacher_of_the_first(run, classroom):
    teacher = models_of(run.result("teachers"), "teachers")["pupil", "tailored"]
    arms = {"arms": ["base", "untailored", "tailored"]}
    second = open_run("second", small(classroom, evaluation=arms, models={"teacher": str(teacher)}))
    compute("influence", second)
    first, now = (one.read("examples") for one in (run, second))
    columns = ["seed", "task", "question", "rationale"]
    before = first[first["arm"] == "tailored"][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(now[now["arm"] == "untailored"][columns].reset_index(drop=True), before)
    assert len(now[now["arm"] == "tailored"])
    assert second.manifest("questions")["inputs"]["teacher"] != run.manifest("questions")["inputs"]["teacher"]


def test_a_student_that_is_never_right_leaves_no_reference_set(run, classroom):
    recipe = small(classroom, models={"students": {"pupil": str(classroom / "babbler")}})
    with pytest.raises(ModelError, match="There is no reference set"):
        compute("influence", open_run("babbling", recipe))


def measure_drafts(run, folder: Path, tasks=None, **settings) -> dict[str, pd.DataFrame]:
    """Measure the drafts of a run again, in another folder, tasks and settings changed where given."""
    frames = [run.read(name) for name in ("questions", "drafts", "reference")]
    given = (tasks or load_tasks(run.recipe), *frames, run.recipe.influence.model_copy(update=settings), 1)
    return influence_of_drafts.measure_influence(students_of(run.recipe), *given, folder=folder)


def test_a_reference_question_that_is_tested_later_is_refused(run, tmp_path):
    tasks = load_tasks(run.recipe)
    leaky = {name: dataclasses.replace(task, test=task.validation) for name, task in tasks.items()}
    with pytest.raises(ModelError, match="same as an? .* test item.*take it out of the reference set"):
        measure_drafts(run, tmp_path, leaky)


def test_an_optimiser_state_that_does_not_fit_is_refused(run, tmp_path):
    source, target = (folder / influence_of_drafts.WARMED / "pupil" for folder in (run.path / "influences", tmp_path))
    tensors = load_file(source / STATE)
    lost = next(name for name in tensors if name.startswith("exp_avg/"))
    target.mkdir(parents=True)
    # As if it had been written so: with the old checksums it would be damage, and warmed up anew.
    write_json(target / "tuned.json", {k: v for k, v in read_json(source / "tuned.json").items() if k != "files"})
    with safe_open(source / STATE, "pt") as file:
        facts = file.metadata()
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, target / STATE, metadata=facts)
    with pytest.raises(ModelError, match="exp_avg do not fit the model"):
        measure_drafts(run, tmp_path)


def test_a_loss_that_is_not_finite_is_refused(run, tmp_path):
    with pytest.raises(ModelError, match="not finite"):
        measure_drafts(run, tmp_path, learning_rate=1.0e30)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"influence": {"n_warm_up": 16}}, "n_warm_up must leave some"),
        ({"synthesis": {"max_characters": 2}}, "max_characters must be at least"),
    ],
)
def test_sections_that_do_not_fit_are_refused(classroom, changes, said):
    with pytest.raises(ValueError, match=said):
        small(classroom, **changes)


def test_the_sections_belong_to_the_method():
    with pytest.raises(RecipeError, match="influence is not a key of a recipe|influence.n_warm_up is not a key"):
        load_recipe("arte-demo", {"influence.n_warm_up": "8"})
    assert recipe_class("montessori") is MontessoriRecipe


def test_the_papers_recipe_differs_from_ours_in_models_scale_and_sign():
    ours, paper = load_recipe("montessori"), load_recipe("montessori-paper")
    assert (ours.influence.sign, paper.influence.sign) == ("corrected", "raw")
    assert paper.synthesis.n_seeds + paper.synthesis.n_own == 8 and paper.n_seeds_wanted == 1000
    assert isinstance(ours, MontessoriRecipe) and isinstance(paper, MontessoriRecipe)


def draw_texts(n: int, n_words: int, length: int) -> list[str]:
    rng = np.random.default_rng(0)
    texts = [[f"w{at}" for at in rng.zipf(1.5, length) % n_words] for _ in range(n)]
    for at in range(0, n, 3):
        near = list(texts[at])
        near[rng.integers(length)] = "other"
        texts.append(near)
    return [" ".join(text) for text in texts]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9])
def test_near_duplicates_are_those_that_comparing_all_finds(threshold):
    texts, known, seen = draw_texts(120, 60, 21), NearDuplicates(threshold), []
    found = []
    for text in texts:
        alike = [Indel.normalized_similarity(words(text), words(other)) for other in seen]
        assert known.holds(text) == any(one > threshold for one in alike)
        found.append(known.holds(text))
        known.add(text)
        seen.append(text)
    assert any(found) and not all(found)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("Why?", "too short"),
        ("Tell " * 200, "too long"),
        ("Draw a map of France for me.", "a forbidden word"),
        ("Describe these pictures.", "a forbidden word"),
        ("- Name a river.", "begins with a sign"),
        ("Élan, what does it mean?", "begins with a sign"),
        ("Name three rivers of Spain.", "nearly a seed or one written before"),
        ("How does a kettle work?", ""),
    ],
)
def test_filters_say_why(question, reason):
    settings = Synthesis(forbidden_words=["map", "picture"])
    sieve = _Sieve(settings, Guard({"test": []}), [("Name three rivers of France.", "Seine")])
    reply = prompts.question_reply(question, "x")
    assert sieve.read(reply, 0, 0, "p").drop_reason == reason
    if not reason:
        assert sieve.read(reply, 0, 1, "p").drop_reason == "written before"
    assert sieve.read("no tags", 0, 2, "p").drop_reason == "not in the form asked for"
