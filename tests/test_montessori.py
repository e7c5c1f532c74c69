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
from rapidfuzz.distance import Indel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_classroom import TASKS, compute, recipe_of, run_until_killed, run_whole
from workbench.loop.new_questions import _Sieve
from workbench.runs.recipe_montessori import Synthesis

from workbench.loop import prompts
from workbench.loop.arms import pairs_of_arm
from workbench.loop.pairs import build_pairs
from workbench.loop.reviews import Reviews
from workbench.methods import montessori
from workbench.models.trl import student_folder, teacher_folder
from workbench.notebook import asked, headless
from workbench.report.cost_estimate import n_items
from workbench.report.lineage import lineage
from workbench.report.summary import summarise
from workbench.runs.errors import ModelError, RecipeError
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import Stage, open_run
from workbench.signals import influence
from workbench.signals.influence import KIND
from workbench.signals.reference import build_reference
from workbench.signals.warm_up import STATE
from workbench.tasks.contamination import Guard, NearDuplicates, words
from workbench.tasks.task import as_written, load_tasks

ARMS = ["base", "untailored", "random_pairs", "tailored", "rationale_only", "by_training_loss"]


def small(folder: Path, **more) -> Recipe:
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
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def whole(classroom, tmp_path_factory):
    """The folder of runs that holds one run, never interrupted."""
    return run_whole(tmp_path_factory.mktemp("whole") / "runs", small(classroom))


@pytest.fixture
def run(whole, monkeypatch):
    """The finished run, to be read only."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(whole))
    return open_run("loop")


def read(run, stage: str, frame: str) -> pd.DataFrame:
    return run.stage(stage).read(frame)


def scored(run) -> tuple[pd.DataFrame, ...]:
    """Return what pairs are built from."""
    frames = [("drafting", "questions"), ("drafting", "drafts"), ("probing", "signals"), ("probing", "probes")]
    return tuple(read(run, *names) for names in frames)


def test_siblings_share_a_prompt_of_seeds_and_earlier_instructions(run):
    tasks, questions = load_tasks(run.recipe), read(run, "drafting", "questions")
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
    questions, drafts = read(run, "drafting", "questions"), read(run, "drafting", "drafts")
    assert set(drafts["question_id"]) == set(questions.loc[questions["kept"], "question_id"])
    assert drafts.groupby("question_id")["technique"].agg(sorted).map(" ".join).eq("plain plain-2").all()


def test_the_first_instructions_warm_up_and_all_others_are_scored(run):
    questions, drafts = read(run, "drafting", "questions"), read(run, "drafting", "drafts")
    warm = montessori.warm_up_questions(questions, run.recipe.influence.n_warm_up)
    assert (questions[questions["question_id"].isin(warm)].groupby("task").size() >= 4).all()
    found = read(run, "probing", "influences").query("item_kind == 'rationale'")
    assert set(found["draft_id"]) == set(drafts.loc[~drafts["question_id"].isin(warm), "draft_id"])
    # Siblings are never parted.
    parted = questions[questions["kept"]].assign(warm=lambda frame: frame["question_id"].isin(warm))
    assert parted.groupby(["task", "call"])["warm"].nunique().eq(1).all()


def test_a_question_is_worth_the_mean_of_its_responses(run):
    drafts, found = read(run, "drafting", "drafts"), read(run, "probing", "influences")
    by_draft = found[found["item_kind"] == "rationale"].set_index("draft_id")["value"]
    for row in found[found["item_kind"] == "question"].itertuples():
        own = drafts.loc[drafts["question_id"] == row.draft_id, "draft_id"]
        assert row.value == pytest.approx(by_draft[own].mean())


def test_reference_answers_are_the_students_own_right_ones_and_outside_the_test_set(run):
    tasks, reference = load_tasks(run.recipe), read(run, "probing", "reference")
    chosen = read(run, "probing", "preference_set").query("chosen")
    assert len(reference) >= 4 and set(reference["item_id"]) <= set(chosen["item_id"])
    for row in reference.itertuples():
        assert tasks[row.task].answers.same(tasks[row.task].answers.read(row.completion), row.target)
        assert row.question not in set(tasks[row.task].test["question"])


@pytest.mark.parametrize("whose", ["teacher", "target"])
def test_reference_answers_may_be_the_teachers_or_the_bare_target(run, classroom, whose):
    recipe = small(classroom, influence={"reference": whose})
    chosen = read(run, "probing", "preference_set").query("chosen")
    reference, _ = build_reference(recipe, load_tasks(recipe), chosen)
    assert len(reference) and set(reference["student"]) == {"pupil"}
    bare = reference["completion"] == [f" <ans>{target}</ans>" for target in reference["target"]]
    assert bare.all() if whose == "target" else not bare.any()


def test_pairs_are_all_helpful_siblings_with_all_harmful_ones(run):
    questions, pairs = read(run, "drafting", "questions"), read(run, "alignment", "pairs").query("kind == 'question'")
    values = read(run, "probing", "influences").query("item_kind == 'question'").set_index("draft_id")["value"]
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


def test_a_margin_leaves_out_pairs_that_are_close(run):
    tasks, every = load_tasks(run.recipe), read(run, "alignment", "pairs")
    gap = float(every["score_gap"].median())
    apart = run.recipe.model_copy(update={"pairs": run.recipe.pairs.model_copy(update={"min_gap": gap})})
    pairs, counts = build_pairs(apart, tasks, *scored(run))
    assert set(pairs["pair_id"]) == set(every.loc[every["score_gap"] >= gap, "pair_id"])
    assert counts["question groups of siblings"] > counts["question groups of one sign"]


def test_relative_to_its_siblings_every_group_forms_pairs(run, classroom):
    relative = small(classroom, influence={"sign": "relative"})
    tasks, plain = load_tasks(relative), read(run, "alignment", "pairs")
    pairs, counts = build_pairs(relative, tasks, *scored(run))
    by_prompt = read(run, "drafting", "questions").drop_duplicates("question_id").set_index("question_id")["prompt_id"]
    values = read(run, "probing", "signals").query("item_kind == 'question'").set_index("draft_id")["value"]
    means = values.groupby(by_prompt.reindex(values.index)).mean()
    own = pairs[pairs["kind"] == "question"]
    line = means[by_prompt[own["chosen_id"]]].to_numpy()
    assert (own["score_chosen"] > line).all() and (own["score_rejected"] < line).all()
    assert len(own) > (plain["kind"] == "question").sum() and counts["question groups of one sign"] == 0
    assert ((own["score_chosen"] > 0) & (own["score_rejected"] > 0)).any()


def test_reviews_overrule_the_sign(run, tmp_path, monkeypatch):
    before = read(run, "alignment", "pairs").set_index("pair_id", drop=False)
    shutil.copytree(run.path.parent, tmp_path / "runs")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    again = open_run("loop")
    said = {before.index[0]: "flip", before.index[1]: "drop"}
    for pair_id, review in said.items():
        Reviews.of_run(again).add(before.loc[pair_id], "review", review)
    frames = compute("alignment", again)
    found = frames["pairs"].set_index("pair_id")
    flipped, dropped = said
    assert set(found.index) == set(before.index) - {dropped}
    assert found.loc[flipped, "chosen"] == before.loc[flipped, "rejected"]
    assert found.loc[flipped, "score_gap"] == -before.loc[flipped, "score_gap"]
    assert len(frames["reviews"]) == 2


def test_the_raw_sign_counts_the_step_at_zero_gradient_in(run, classroom):
    influences, signals = read(run, "probing", "influences"), read(run, "probing", "signals")
    assert list(signals["value"]) == list(influences["value"])
    frames = read(run, "drafting", "drafts"), read(run, "drafting", "questions"), read(run, "probing", "reference")
    raw = small(classroom, influence={"sign": "raw"})
    folder = run.stage("probing").path
    found = montessori.measure_drafts(raw, load_tasks(raw), *frames, folder)["signals"]
    assert list(found["value"]) == list(influences["raw"])
    assert not np.allclose(influences["raw"], influences["value"])


def test_the_arms_differ_in_what_the_teacher_is_aligned_to(run):
    tasks, pairs = load_tasks(run.recipe), read(run, "alignment", "pairs")
    assert set(pairs_of_arm(run.recipe, pairs, "tailored")["kind"]) == {"question"}
    responses = pairs_of_arm(run.recipe, pairs, "rationale_only")
    drafts = read(run, "drafting", "drafts").set_index("draft_id")
    for pair in responses.itertuples():
        assert pair.prompt == prompts.naive_prompt(tasks[pair.task].description, drafts.loc[pair.chosen_id, "question"])
        assert drafts.loc[pair.chosen_id, "question_id"] == drafts.loc[pair.rejected_id, "question_id"]
    by_loss = read(run, "alignment", "pairs_by_loss")
    assert (by_loss["score_chosen"] > by_loss["score_rejected"]).all() and (by_loss["score_rejected"] > 0).all()
    assert set(by_loss["pair_id"]) != set(pairs["pair_id"])
    teachers = {arm: teacher_folder(run.stage("alignment").path, "pupil", arm) for arm in ARMS[2:]}
    weights = {arm: (folder / "model.safetensors").read_bytes() for arm, folder in teachers.items()}
    assert len(set(weights.values())) == len(weights)


def test_which_examples_are_measured_does_not_hang_on_the_other_arms(run, monkeypatch):
    def unmeasured(ref, warmed, texts, reference, guard, settings, student, *rest):
        return texts[["draft_id"]].assign(student=student, value=0.0, raw=0.0)

    def without_arms(stage, name):
        frame = read_all(stage, name)
        return frame[~frame["arm"].isin(without)] if name == "examples" else frame

    read_all, without = Stage.read, {"random_pairs", "by_training_loss"}
    monkeypatch.setattr(montessori, "measure", unmeasured)
    every = montessori.measure_examples(run, 2)
    monkeypatch.setattr(Stage, "read", without_arms)
    fewer = montessori.measure_examples(run, 2)
    assert set(every["arm"]) - set(fewer["arm"]) == without
    left = every[~every["arm"].isin(without)].reset_index(drop=True)
    assert fewer.equals(left) and (left.groupby(["arm", "task"]).size() <= 2).all()


def test_every_arm_trains_a_fresh_student_and_is_judged(run):
    predictions = read(run, "evaluation", "predictions")
    assert set(predictions["arm"]) == set(ARMS)
    assert all((student_folder(run.stage("training").path, "pupil", arm, 1)).is_dir() for arm in ARMS[1:])
    assert "undecided" in headless.verdict_in_words(run) or "tailored" in headless.verdict_in_words(run)
    assert len(summarise(run)) and n_items(run.recipe, "probing") > 0


def test_what_is_shown_of_it_says_what_was_measured(run):
    probed = {name: read(run, "probing", name) for name in ("signals", "influences", "preference_set", "probes")}
    draft = asked.example(run, probed, "pupil")
    text, _, said = asked.one_probe(run, probed, draft, "pupil")
    assert draft["question"] in text and draft["rationale"] in text and "thousandths of a nat" in said
    assert asked.metrics(run, probed)["n_scored"] == len(probed["influences"].query("item_kind == 'rationale'"))
    for figure in asked.score_figures(run, probed, "small models"):
        assert "small models" in figure.layout.title.subtitle.text
    assert "influence" in lineage(run, draft["draft_id"])
    row = read(run, "training", "rows").query("arm == 'tailored'").iloc[0]
    assert "influence" in lineage(run, row["row_id"])


def count_steps(runs: Path) -> int:
    with sqlite3.connect(runs / "items.sqlite") as connection:
        return connection.execute("SELECT COUNT(*) FROM items WHERE kind = ?", [KIND]).fetchone()[0]


def test_killed_while_scoring_no_draft_is_scored_twice(run, classroom, tmp_path, monkeypatch):
    kill = ("probing", "workbench.signals.influence:SnapshotStudent.at", 6)
    given = (str(tmp_path), small(classroom), kill)
    died = multiprocessing.get_context("spawn").Process(target=run_until_killed, args=given)
    died.start()
    died.join()
    assert died.exitcode == -signal.SIGKILL
    n_known = count_steps(tmp_path)
    assert n_known == 5, "the step at zero gradient and four drafts were stored, the fifth was not"
    stepped = []
    original = influence.step_job
    monkeypatch.setattr(influence, "step_job", lambda job: stepped.extend(job.candidates) or original(job))
    whole = read(run, "probing", "influences")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    again = open_run("loop")
    compute("probing", again)
    assert n_known + len(stepped) == count_steps(tmp_path)
    # Threads differ between the processes that warmed up, and with them the last digits.
    pd.testing.assert_frame_equal(read(again, "probing", "influences"), whole, rtol=1e-4, atol=1e-6)


def test_a_second_iteration_begins_with_the_teacher_of_the_first(run, classroom):
    teacher = teacher_folder(run.stage("alignment").path, "pupil", "tailored")
    arms = {"arms": ["base", "untailored", "tailored"]}
    recipe = small(classroom, evaluation=arms, models={"teacher": str(teacher)})
    second = open_run("second", recipe)
    for stage in ("drafting", "probing", "alignment"):
        compute(stage, second)
    first, now = (read(one, "alignment", "examples") for one in (run, second))
    columns = ["seed", "task", "question", "rationale"]
    before = first[first["arm"] == "tailored"][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(now[now["arm"] == "untailored"][columns].reset_index(drop=True), before)
    assert len(now[now["arm"] == "tailored"])
    assert (
        second.stage("drafting").manifest["parents"]["teacher"] != run.stage("drafting").manifest["parents"]["teacher"]
    )


def test_a_student_that_is_never_right_leaves_no_reference_set(run, classroom):
    recipe = small(classroom, models={"students": {"pupil": str(classroom / "babbler")}})
    babbling = open_run("babbling", recipe)
    compute("drafting", babbling)
    with pytest.raises(ModelError, match="There is no reference set"):
        compute("probing", babbling)


def frames_to_measure(run) -> tuple:
    return read(run, "drafting", "drafts"), read(run, "drafting", "questions"), read(run, "probing", "reference")


def test_a_reference_question_that_is_tested_later_is_refused(run, tmp_path):
    tasks = load_tasks(run.recipe)
    leaky = {name: dataclasses.replace(task, test=task.validation) for name, task in tasks.items()}
    with pytest.raises(ModelError, match="same as an? .* test item.*take it out of the reference set"):
        montessori.measure_drafts(run.recipe, leaky, *frames_to_measure(run), tmp_path)


def test_an_optimiser_state_that_does_not_fit_is_refused(run, tmp_path):
    source = run.stage("probing").path / "warmed" / "pupil"
    tensors = load_file(source / STATE)
    lost = next(name for name in tensors if name.startswith("exp_avg/"))
    target = tmp_path / "warmed" / "pupil"
    target.mkdir(parents=True)
    (target / "tuned.json").write_bytes((source / "tuned.json").read_bytes())
    with safe_open(source / STATE, "pt") as file:
        facts = file.metadata()
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, target / STATE, metadata=facts)
    with pytest.raises(ModelError, match="exp_avg do not fit the model"):
        montessori.measure_drafts(run.recipe, load_tasks(run.recipe), *frames_to_measure(run), tmp_path)


def test_a_loss_that_is_not_finite_is_refused(run, classroom, tmp_path):
    wild = small(classroom, influence={"learning_rate": 1.0e30})
    with pytest.raises(ModelError, match="not finite"):
        montessori.measure_drafts(wild, load_tasks(wild), *frames_to_measure(run), tmp_path)


def test_seeds_may_come_from_another_task(classroom):
    recipe = small(classroom, synthesis={"seeds_from": {TASKS[0]: TASKS[1]}})
    tasks = load_tasks(recipe)
    written = as_written(recipe, tasks)
    assert written[TASKS[0]].description == tasks[TASKS[1]].description
    assert list(written[TASKS[0]].seeds["question"]) == list(tasks[TASKS[1]].seeds["question"])
    assert list(written[TASKS[0]].test["question"]) == list(tasks[TASKS[0]].test["question"])
    assert written[TASKS[1]] is tasks[TASKS[1]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"influence": {"n_warm_up": 16}}, "n_warm_up must leave some"),
        ({"synthesis": {"seeds_from": {"poetry": "web_of_lies"}}}, "none of the tasks"),
        ({"synthesis": {"max_characters": 2}}, "max_characters must be at least"),
    ],
)
def test_sections_that_do_not_fit_are_refused(classroom, changes, said):
    with pytest.raises(ValueError, match=said):
        small(classroom, **changes)


def test_the_sections_belong_to_the_method():
    with pytest.raises(RecipeError, match="influence is set, but method arte takes none"):
        load_recipe("arte-demo", {"influence.n_warm_up": "8"})
    with pytest.raises(RecipeError, match="an arm of method montessori"):
        load_recipe("arte-demo", {"evaluation.arms": "[base, untailored, tailored, by_training_loss]"})


def test_the_papers_recipe_differs_from_ours_in_models_scale_and_sign():
    ours, paper = load_recipe("montessori"), load_recipe("montessori-paper")
    assert (ours.influence.sign, paper.influence.sign) == ("corrected", "raw")
    assert (ours.influence.batch_means, paper.influence.batch_means) == (0, 8)
    assert paper.synthesis.n_seeds + paper.synthesis.n_own == 8
    assert ours.method == paper.method == "montessori"


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
