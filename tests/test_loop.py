"""The whole loop on models built here: killed and resumed, reused, its arms matched, and met by faults."""

import contextlib
import json
import multiprocessing
import resource
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
from kills import kill_often
from one_change import Replay, overlooked, recording
from small_classroom import STAGES, TASKS, compute, recipe_of, run_until_killed, run_whole

from workbench import loop, signals
from workbench.loop import drafting, prompts
from workbench.loop.budgets import _take
from workbench.loop.reviews import Reviews, apply_reviews, newer_than_alignment, reviews_in_force
from workbench.loop.writing import why_dropped
from workbench.models.engine import Decoding, Request
from workbench.models.loading import load
from workbench.models.start import students_of, teacher_of
from workbench.models.transformers_engine import TransformersEngine
from workbench.notebook.session import begin
from workbench.report.card import result_card
from workbench.report.summary import summarise
from workbench.runs.cache import read_json, write_json
from workbench.runs.errors import DataError, ModelError, RecipeError, RunError, spoken
from workbench.runs.identity import fingerprint
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import Run, open_run
from workbench.tasks import answers as answers_module
from workbench.tasks.contamination import normalise
from workbench.tasks.pocket_styles import STYLES
from workbench.tasks.task import load_tasks
from workbench.verdict.evaluation import same_rows, verdict_of

STEPS = {
    "drafting": ("questions", "drafts", "exemplars"),
    "probing": ("preference_set", "probes", "signals"),
    "alignment": ("pairs", "reviewed", "teachers", "examples"),
    "training": ("rows", "students"),
    "evaluation": ("predictions",),
}
ALL_STEPS = [step for steps in STEPS.values() for step in steps]
# One run dies at each of these in turn: between batches, between checkpoints, between trained models, and with its
# frames written but not its manifest.
KILLS = [
    ("drafting", "workbench.runs.cache:Cache.put_many", 2),
    ("drafting", "workbench.runs.run:_write", 2),
    ("probing", "workbench.runs.cache:Cache.put_many", 5),
    ("alignment", "transformers:Trainer._save_checkpoint", 1),
    ("alignment", "workbench.runs.cache:Cache.put_many", 4),
    ("training", "transformers:Trainer._save_checkpoint", 4),
    ("training", "transformers:Trainer._save_checkpoint", 3),
    ("evaluation", "workbench.runs.cache:Cache.put_many", 3),
    ("evaluation", "workbench.runs.run:_write", 1),
]


@pytest.fixture(scope="module")
def whole(classroom, tmp_path_factory, reads):
    """The folder of runs that holds one run, never interrupted."""
    with recording(reads):
        return run_whole(tmp_path_factory.mktemp("whole") / "runs", recipe_of(classroom))


@pytest.fixture
def copy(whole, tmp_path, monkeypatch):
    """A copy of the finished run that the test may spoil."""
    runs = tmp_path / "runs"
    shutil.copytree(whole, runs)
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs))
    return open_run("loop")


@pytest.fixture
def run(whole, monkeypatch):
    """The finished run, to be read only."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(whole))
    return open_run("loop")


def test_whatever_a_step_looks_at_in_the_recipe_makes_it_another_step(run, classroom, reads):
    """One setting at a time, all of those that any step looks at, and all that none may."""
    assert overlooked(run, reads, STAGES, classroom) == set(), "neither among their arguments nor in looks_at"
    harmless = run.recipe.model_copy(
        update={
            "name": "other",
            "compute": run.recipe.compute.model_copy(update={"workers": 2, "batch_size": 5, "device": "auto"}),
            "alignment": run.recipe.alignment.model_copy(update={"micro_batch_size": 1}),
            "training": run.recipe.training.model_copy(update={"micro_batch_size": 2}),
        }
    )
    assert Replay(run, STAGES).others(harmless) == set()


CHANGES = {
    "model.safetensors": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "chat_template.jinja": lambda data: data + b"{{ messages[0]['content'] }}",
    **dict.fromkeys(
        ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"), b"%b\n".__mod__
    ),
    "description": lambda data: data.replace(b'"description": "', b'"description": "So: ', 1),
    "techniques": lambda data: data.replace(b'"tally": "', b'"tally": "So: ', 1),
    "answer": lambda data: data.replace(b'"target": "', b'"target": "1', 1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_file_of_a_model_or_task_makes_what_is_computed_from_it_another(run, classroom, what):
    replay = Replay(run, STAGES)
    models = {"teacher": "questions", "student": "probes"}
    files = {classroom / "tasks" / f"{TASKS[1]}.json": "questions"}
    files = {classroom / role / what: step for role, step in models.items()} if "." in what else files
    for path, step in files.items():
        before = path.read_bytes() if path.is_file() else None
        changed = CHANGES[what](before or b"")
        try:
            assert changed != before and path.write_bytes(changed)
            assert step in replay.others(run.recipe)
        finally:
            path.unlink() if before is None else path.write_bytes(before)


def undo(run, *stages: str) -> None:
    for step in (step for stage in stages for step in STEPS[stage]):
        shutil.rmtree(run.path / step)


def is_whole(run) -> bool:
    return all(len(run.read(step)) for step in ALL_STEPS)


def answers_of(engine, asked: list[tuple[str, str]]) -> list:
    prompts_of = [engine.render_shared(*one) for one in asked]
    return engine.generate([Request(prompt, prefix=prefix) for prompt, prefix in prompts_of], Decoding(60), 0, None)


def is_one_sentence(error: Exception) -> bool:
    return "\n" not in str(error) and len(str(error)) < 700


def test_every_stage_leaves_something_to_look_at(run):
    assert run.steps() == ALL_STEPS and is_whole(run)
    questions, drafts = run.read("questions"), run.read("drafts")
    assert questions["kept"].sum() == 16 and len(drafts) == 64
    assert (drafts["answer"] != "").mean() > 0.6, "the small models do not keep to the form, so nothing here is tested"
    assert drafts.groupby("question_id")["technique"].nunique().eq(4).all()


def test_every_draft_is_probed_on_the_whole_preference_set(run):
    drafts, probes = run.read("drafts"), run.read("probes")
    chosen = run.read("preference_set").query("chosen")
    of_task = chosen.groupby("task")["item_id"].agg(set)
    asked = probes.merge(drafts[["draft_id", "task"]], on="draft_id").groupby(["task", "draft_id"])["item_id"].agg(set)
    assert len(asked) == drafts["finished"].sum()
    assert all(items == of_task[task] and len(items) == 8 for (task, _), items in asked.items())
    assert not probes.loc[~probes["parsed"], "correct"].any()


def test_signals_are_the_probes_counted_and_name_student_and_set(run, classroom):
    drafts, probes = run.read("drafts"), run.read("probes")
    signals = run.read("signals").set_index(["item_kind", "draft_id"])
    shares = probes.groupby("draft_id")["correct"].mean()
    for draft, share in shares.items():
        assert signals.loc[("rationale", draft), "value"] == pytest.approx(share)
    probed = drafts[drafts["draft_id"].isin(shares.index)]  # those cut off are not
    for question, own in probed.groupby("question_id")["draft_id"]:
        assert signals.loc[("question", question), "value"] == pytest.approx(shares[list(own)].mean())
    chosen = run.read("preference_set").query("chosen")["item_id"]
    assert set(signals["set_fp"]) == {fingerprint(sorted(chosen))}
    assert set(signals["student_fp"]) == {load(classroom / "student", device="cpu").fingerprint}


def test_a_probe_is_what_the_student_answers_when_asked_alone(run, classroom):
    drafts = run.read("drafts").set_index("draft_id")
    items = run.read("preference_set").set_index("item_id")
    tasks = load_tasks(run.recipe)
    some = run.read("probes").sample(12, random_state=0)
    engine = TransformersEngine(str(classroom / "student"), device="cpu", batch_size=1, share_prefixes=False)
    asked = []
    for probe in some.itertuples():
        draft, item = drafts.loc[probe.draft_id], items.loc[probe.item_id]
        description = tasks[draft["task"]].description
        asked.append(prompts.one_shot_prompt(description, draft["question"], draft["rationale"], item["question"]))
    answers = [answers_module.parse_answer(one.text) for one in answers_of(engine, asked)]
    assert answers == some["answer"].tolist()
    graded = [answers_module.grade(a, items.loc[i, "target"]) for a, i in zip(answers, some["item_id"], strict=True)]
    assert graded == some["correct"].tolist()


def test_rationales_of_a_task_are_written_by_several_jobs_as_by_one(copy, monkeypatch):
    tasks, asked = load_tasks(copy.recipe), []
    run_jobs = drafting.run_engine_jobs
    monkeypatch.setattr(drafting, "run_engine_jobs", lambda fn, jobs, *a: asked.extend(jobs) or run_jobs(fn, jobs, *a))
    monkeypatch.setattr(drafting, "DRAFTS_A_JOB", 9)
    techniques = {name: task.techniques for name, task in tasks.items()}
    frames = copy.read("questions"), copy.read("drafts")
    teacher, sampling = teacher_of(copy.recipe), Decoding(60, temperature=copy.recipe.drafting.rationale_temperature)
    again = loop.draft_rationales(teacher, tasks, frames[0], techniques, sampling, copy.recipe.seeds[0])
    pd.testing.assert_frame_equal(again, frames[1])
    assert [job.said.rpartition(", ")[2] for job in asked][:4] == [f"from question {n}" for n in (1, 3, 5, 7)]


def test_a_rationale_that_was_cut_off_is_counted_and_neither_probed_nor_taught(copy, classroom):
    tasks, teacher = load_tasks(copy.recipe), teacher_of(copy.recipe)
    kept = copy.read("questions").query("kept")
    asked = (tasks, kept, {name: {"plain": ""} for name in tasks})
    with pytest.raises(ValueError, match=r"ran into the limit of 2 tokens; raise drafting\.max_new_tokens"):
        loop.draft_rationales(teacher, *asked, Decoding(2), 1)
    lengths = loop.draft_rationales(teacher, *asked, Decoding(60), 1)["n_tokens"]
    drafts = loop.draft_rationales(teacher, *asked, Decoding(int(lengths.median())), 1)
    cut = drafts[~drafts["finished"]]
    assert 0 < len(cut) < len(drafts) and drafts.attrs["counts"]["drafts cut off at the limit"] == len(cut)
    probes = signals.probe_drafts(students_of(copy.recipe), tasks, drafts, copy.read("preference_set"), 4)
    assert set(probes["draft_id"]) == set(drafts["draft_id"]) - set(cut["draft_id"])
    assert why_dropped("5", finished=False) == "cut off at the limit" != why_dropped("", finished=True)


def test_arms_of_the_same_examples_are_no_comparison(copy):
    rows = copy.read("rows")
    assert same_rows(rows) == []
    own = rows[rows["arm"] == "tailored"]
    alike = pd.concat([rows[rows["arm"] != "untailored"], own.assign(arm="untailored").sample(frac=1, random_state=0)])
    said = same_rows(alike)
    assert said == ["No comparison: tailored and untailored of pupil were trained on the same examples."] or said == [
        "No comparison: untailored and tailored of pupil were trained on the same examples."
    ]
    values = read_json(copy.path / "verdict.json")
    write_json(copy.path / "verdict.json", values | {"warnings": said})
    (card,) = result_card(copy)
    assert card.rungs[-1].says.startswith(said[0])


def test_nothing_written_for_training_is_a_known_item(run):
    tasks = load_tasks(run.recipe)
    known = {
        normalise(question)
        for task in tasks.values()
        for part in (task.seeds, task.validation, task.test)
        for question in part["question"]
    }
    for frame in (run.read("questions"), run.read("examples")):
        kept = frame[frame["kept"]]
        assert not known & set(kept["question"].map(normalise))
        assert (frame.loc[~frame["kept"], "drop_reason"] != "").all() and (kept["drop_reason"] == "").all()
    within = run.read("examples").query("kept").groupby(["arm", "student", "seed", "task"])["question"]
    assert within.agg(lambda asked: asked.map(normalise).is_unique).all()


def test_arms_get_equal_tokens_and_equal_steps(run):
    rows, curve = run.read("rows"), run.read("students", "curve")
    assert set(rows["arm"]) == {"untailored", "random_pairs", "tailored"}
    for _, group in rows.groupby(["student", "seed", "task"]):
        totals = group.groupby("arm")["n_tokens"].sum()
        assert len(totals) == 3 and totals.max() - totals.min() <= group["n_tokens"].max()
    assert set(rows["seed"]) == {1, 2} and set(rows["task"]) == set(TASKS)
    took = curve[curve["metric"] == "tokens"].set_index(["seed", "arm"])
    assert took.groupby("seed")["step"].nunique().eq(1).all() and len(took) == 6
    trained = rows.groupby(["seed", "arm"])["n_tokens"].sum() * run.recipe.training.n_epochs
    assert (took["value"] == trained.reindex(took.index)).all()


def test_drafts_that_race_are_asked_less_and_answer_the_same(run):
    recipe = run.recipe
    given = (students_of(recipe), load_tasks(recipe), run.read("drafts"), run.read("preference_set"))
    raced = signals.probe_drafts(*given, recipe.evaluation.max_new_tokens, 0.3)
    every = run.read("probes").set_index(["student", "draft_id", "item_id"])
    assert 0 < len(raced) < len(every)
    own = every.loc[pd.MultiIndex.from_frame(raced[["student", "draft_id", "item_id"]])].reset_index()
    pd.testing.assert_frame_equal(raced[own.columns], own)
    # Drafts of one question are asked the same questions, and pairs are formed as ever.
    asked = raced.merge(run.read("drafts")[["draft_id", "question_id"]], on="draft_id")
    n_asked = asked.groupby(["question_id", "draft_id"]).size()
    assert (n_asked.groupby("question_id").nunique() == 1).all() and n_asked.nunique() > 1
    scores = signals.share_right(raced, run.read("drafts"), given[0])
    assert set(scores["draft_id"]) == set(run.read("signals")["draft_id"])


def test_a_student_is_distilled_on_the_questions_of_the_untailored_arm(run, tmp_path):
    arms = run.recipe.evaluation.model_copy(update={"arms": ["base", "untailored", "distilled"]})
    recipe = run.recipe.model_copy(update={"evaluation": arms, "seeds": run.recipe.seeds[:1]})
    students = students_of(recipe)
    rows = loop.equal_tokens(students, load_tasks(recipe), run.read("examples"))
    own, other = (rows[rows["arm"] == arm] for arm in ("distilled", "untailored"))
    assert set(own["prompt"]) == set(other["prompt"]) and set(own["completion"]) == {""}
    assert own["n_tokens"].sum() == other["n_tokens"].sum() and not same_rows(rows)
    curve = loop.train_students(students, rows, recipe.training, folder=tmp_path / "students")["curve"]
    last = curve[curve["metric"] == "tokens"].set_index("arm")
    of_both = run.recipe.training.n_epochs * own["n_tokens"].sum()
    assert last.at["untailored", "value"] == of_both and 0 < last.at["distilled", "value"] < 1.5 * of_both
    assert 0 < last.at["distilled", "step"] <= last.at["untailored", "step"]
    # With another teacher it is another training, and that of the other arm the same.
    keys = {path.parent.name: read_json(path)["key"] for path in tmp_path.glob("students/*/tuned.json")}
    models = recipe.models.model_copy(update={"teacher": recipe.models.students["pupil"]})
    students = students_of(recipe.model_copy(update={"models": models}))
    loop.train_students(students, rows, recipe.training, folder=tmp_path / "students")
    later = {path.parent.name: read_json(path)["key"] for path in tmp_path.glob("students/*/tuned.json")}
    assert [name for name in keys if keys[name] != later[name]] == [f"pupil-distilled-{recipe.seeds[0]}"]


def test_rows_are_examples_under_the_naive_prompt(run):
    rows = run.read("rows").merge(run.read("examples"), on="example_id", suffixes=("", "_e"))
    descriptions = {name: task.description for name, task in load_tasks(run.recipe).items()}
    assert len(rows) == len(run.read("rows"))
    assert (rows["completion"] == rows["rationale"]).all() and (rows["arm"] == rows["arm_e"]).all()
    expected = [prompts.naive_prompt(descriptions[row.task], row.question) for row in rows.itertuples()]
    assert rows["prompt"].tolist() == expected and rows["kept"].all()


def test_each_arm_is_written_by_its_own_teacher(run, classroom):
    """The untailored teacher is the recipe's as it was; the others are the aligned ones, asked in the same way."""
    examples = run.read("examples").query("kept")
    folders = {arm: run.path / "teachers" / f"pupil-{arm}" for arm in ("tailored", "random_pairs")}
    tasks = load_tasks(run.recipe)
    for arm, folder in {"untailored": classroom / "teacher", **folders}.items():
        own = examples[examples["arm"] == arm].head(6)
        assert set(own["student"]) == {"" if arm == "untailored" else "pupil"}
        asked = [("", prompts.naive_prompt(tasks[row.task].description, row.question)) for row in own.itertuples()]
        engine = TransformersEngine(str(folder), device="cpu")
        assert [one.text for one in answers_of(engine, asked)] == own["rationale"].tolist()
    fingerprints = {load(folder, device="cpu").fingerprint for folder in [classroom / "teacher", *folders.values()]}
    assert len(fingerprints) == 3


def test_the_control_teacher_saw_the_same_pairs_half_turned(run):
    pairs, curve = run.read("pairs"), run.read("teachers", "curve")
    assert not pairs["flipped"].any() and set(pairs["kind"]) <= {"rationale", "question"}
    steps = curve.groupby("arm")["step"].max()
    assert steps["tailored"] == steps["random_pairs"]
    first = curve[(curve["metric"] == "rewards/margins") & (curve["step"] == 1)]
    assert len(first) == 2 and first["value"].abs().max() < 1e-4


def test_the_verdict_speaks_of_what_was_run(run):
    verdict = verdict_of(run)
    assert (verdict["recipe"], verdict["run"], verdict["student"]) == ("small", "loop", "pupil")
    assert set(verdict["arms"]) == set(run.recipe.evaluation.arms)
    predictions = run.read("predictions")
    zero_shot = predictions[predictions["shots"] == 0]
    for arm, said in verdict["arms"].items():
        assert said["accuracy"] == pytest.approx(zero_shot[zero_shot["arm"] == arm]["correct"].mean())
    assert verdict["test_set"]["times_opened"] == 1 and "opened once" in verdict["test_set"]["note"]
    assert verdict["overlap"]["false_positive_rate"] == run.recipe.guard.false_positive_rate
    n_dropped = run.read("questions")["drop_reason"].str.startswith("same as").sum()
    found = [row["n"] for row in verdict["overlap"]["found"] if row["items"] == "drafted questions"]
    assert sum(found) == n_dropped and set(verdict["overlap"]["off"]) == set(TASKS)
    counts = predictions.groupby(["arm", "seed", "shots", "task"]).size()
    assert counts.eq(8).all() and len(counts) == (1 + 3 * 2) * 2 * 2


def test_the_summary_says_what_the_frames_hold(run):
    table = summarise(run)
    examples, verdict = run.read("examples"), verdict_of(run)
    row = table.iloc[0]
    assert list(table["student"]) == ["pupil"]
    kept = examples[examples["kept"] & (examples["arm"] == "tailored") & (examples["gold"] != "")]
    assert row["right_tailored"] == pytest.approx(kept.groupby("task")["correct"].mean().mean())
    (card,) = result_card(run)
    assert card.rungs[-1].word in (verdict["decision"], "no difference")
    assert card.student == "pupil" and [rung.asks.split()[0] for rung in card.rungs] == ["Did", "Did", "Does"]
    assert all(rung.word and rung.says for rung in card.rungs) and 1 <= len(card.compared) <= 5


def test_examples_are_taken_until_one_would_go_over_the_budget():
    """Not: as many as fit, or an arm that must leave some out would get shorter ones than the others."""
    examples = pd.DataFrame({"n_tokens": [30, 40, 50, 10, 20]})
    assert _take(examples, 85)["n_tokens"].tolist() == [30, 40]
    assert _take(examples, 150).equals(examples) and _take(examples, 29).empty


def test_every_answer_keeps_its_style(run):
    predictions = run.read("predictions")
    assert set(predictions["style"]) <= {"", *STYLES} and predictions["style"].ne("").any()


def test_the_ledger_counts_every_recipe_that_looks_at_the_items(copy):
    """Another decision rule, other items of the same files, or one of the tasks alone: each is one more look."""
    seen = [json.loads((copy.path / "verdict.json").read_text())["test_set"]["times_opened"]]
    changes = [{"margin": 0.1}, {"margin": 0.1}, {"n_items": 7}]
    for change in changes:
        evaluation = copy.recipe.evaluation.model_copy(update=change)
        again = Run("loop", copy.path, copy.recipe.model_copy(update={"evaluation": evaluation}))
        compute("evaluation", again)
        verdict = json.loads((copy.path / "verdict.json").read_text())
        seen.append(verdict["test_set"]["times_opened"])
    assert seen == [1, 2, 2, 3]
    assert "opened 3 times" in verdict["test_set"]["note"] and verdict["test_set"]["note"] in verdict["warnings"]


def test_another_guard_drafts_anew_and_goes_on_where_the_same_came_out(copy, capsys):
    guard = copy.recipe.guard.model_copy(update={"levels": ["exact", "normalised"]})
    again = Run("loop", copy.path, copy.recipe.model_copy(update={"guard": guard}))
    before = copy.read("questions")
    compute("drafting", again)
    assert "the earlier questions is kept in questions.superseded-" in capsys.readouterr().out
    if again.read("questions").equals(before):
        assert len(again.read("rows"))
    else:
        with pytest.raises(RunError, match="was made from earlier questions"):
            again.read("rows")


def test_an_unchanged_run_is_reused_and_says_so(run, monkeypatch, capsys):
    def no_work(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(TransformersEngine, "__init__", no_work)
    start = time.monotonic()
    before = (run.path / "verdict.json").read_bytes()
    for stage in STAGES:
        compute(stage, run)
    assert time.monotonic() - start < 20
    said = [line for line in capsys.readouterr().out.splitlines() if ": stored, " in line]
    assert [line.partition(":")[0] for line in said] == [f"✓ {spoken(step)}" for step in ALL_STEPS]
    assert (run.path / "verdict.json").read_bytes() == before


def test_reviewing_pairs_and_running_all_changes_nothing_that_is_finished(copy):
    before, said = {path: path.read_bytes() for path in copy.path.rglob("*.json")}, str(result_card(copy))
    pairs, reviews = copy.read("pairs"), Reviews.of_run(copy)
    for pair, review in zip(pairs.to_dict("records"), ("flip", "drop", "flip", "keep", "drop"), strict=False):
        reviews.add(pair, "review", review)
    for stage in STAGES:
        compute(stage, copy)
    assert {path: path.read_bytes() for path in copy.path.rglob("*.json")} == before and str(result_card(copy)) == said
    assert not list(copy.path.rglob("*.superseded-*"))
    told = newer_than_alignment(copy)
    assert "Of 4 pairs people say" in told and told.endswith("workbench run run:loop --name loop-reviewed")
    # The run that is offered: nothing before the alignment is computed again, and the reviews are taken.
    other = begin("loop-reviewed", "run:loop")
    assert other.steps() == [step for step in ALL_STEPS[: ALL_STEPS.index("reviewed")]]
    work = {stage: compute(stage, other) for stage in STAGES[:2]}
    assert work and not list(other.path.rglob("*.superseded-*"))
    reviewed = other.step("reviewed", apply_reviews, other.read("pairs"), reviews_in_force(other, other.read("pairs")))
    assert len(reviewed["reviewed"]) == len(pairs) - 2 and len(reviewed["reviews"]) == 5


def test_a_lost_verdict_is_written_again_from_what_is_stored(copy):
    path = copy.path / "verdict.json"
    before = path.read_bytes()
    path.unlink()
    compute("evaluation", copy)
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def forks():
    """Processes that start with everything imported, by fork from one that has computed nothing yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["small_classroom", "workbench.verdict.evaluation", "workbench.loop.budgets", "trl.trainer.dpo_trainer"]
        + [
            "workbench.loop.tailoring",
            "workbench.loop.alignment",
            "workbench.signals.one_shot",
            "workbench.loop.drafting",
            "trl.trainer.sft_trainer",
        ]
    )
    return context


def in_a_child(forks, *arguments) -> int:
    child = forks.Process(target=run_until_killed, args=arguments)
    child.start()
    child.join(300)
    return child.exitcode


def test_killed_in_every_stage_and_resumed_ends_the_same(whole, classroom, forks, tmp_path, monkeypatch):
    runs, recipe = tmp_path / "runs", recipe_of(classroom)
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs))
    for kill in KILLS:
        assert in_a_child(forks, str(runs), recipe, kill) == -signal.SIGKILL, f"it outlived {kill}"
        finished = set(open_run("loop").steps())
        assert [stage for stage in STAGES if set(STEPS[stage]) <= finished] == list(STAGES)[: STAGES.index(kill[0])]
    assert in_a_child(forks, str(runs), recipe, None) == 0
    assert (runs / "loop" / "verdict.json").read_bytes() == (whole / "loop" / "verdict.json").read_bytes()
    broken = open_run("loop")
    for step in ALL_STEPS:
        for frame in (whole / "loop" / step).glob("*.parquet"):
            pd.testing.assert_frame_equal(broken.read(step, frame.stem), pd.read_parquet(frame))
    models = sorted(path.relative_to(whole) for path in whole.rglob("model.safetensors"))
    assert models == sorted(path.relative_to(runs) for path in runs.rglob("model.safetensors")) and len(models) == 8
    assert all((whole / path).read_bytes() == (runs / path).read_bytes() for path in models)


@pytest.mark.slow
def test_killed_at_many_instants_nothing_is_lost_and_nothing_doubled(whole, classroom, tmp_path):
    """tests/kills.py does it as often as one likes, and to `workbench run` too."""
    counts = kill_often(tmp_path, recipe_of(classroom), 6, whole, seed=1)
    assert sum(n for how, n in counts.items() if how.startswith(("at ", "after "))) == 6
    assert [counts[one] for one in ("lost", "doubled", "failed", "left")] == [0] * 4


def test_a_damaged_frame_is_named_and_nothing_else_is_lost(copy):
    undo(copy, "alignment", "training", "evaluation")
    file = copy.path / "signals" / "signals.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(RunError, match=r"signals\.parquet is not what its manifest describes; rename the folder") as e:
        compute("alignment", copy)
    assert is_one_sentence(e.value) and len(copy.read("drafts")) and len(copy.read("probes"))
    # As the message says: the folder renamed, the step comes back.
    (copy.path / "signals").rename(copy.path.parent / "signals.damaged")
    compute("probing", copy)
    assert len(copy.read("signals"))


def test_a_damaged_record_of_items_is_named_and_no_stage_is_lost(copy):
    verdict = (copy.path / "verdict.json").read_bytes()
    undo(copy, "evaluation")
    record = copy.path.parent / "items.sqlite"
    for suffix in ("-wal", "-shm"):
        record.with_name(record.name + suffix).unlink(missing_ok=True)
    record.write_bytes(b"not a database at all" * 500)
    with pytest.raises(RunError, match=r"items\.sqlite is damaged .*rename it and run again") as error:
        compute("evaluation", copy)
    assert is_one_sentence(error.value) and len(copy.read("rows"))
    record.rename(record.with_suffix(".damaged"))
    compute("evaluation", copy)
    assert (copy.path / "verdict.json").read_bytes() == verdict


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "is not JSON in UTF-8"), ("[1, 2]", "must hold an object"), ('{"examples": []}', "has no items under")],
)
def test_a_task_file_that_cannot_be_read_stops_before_any_work(copy, classroom, tmp_path, content, said):
    tasks = tmp_path / "tasks"
    shutil.copytree(classroom / "tasks", tasks)
    changed = copy.recipe.tasks.model_copy(update={"folder": str(tasks)})
    copy.recipe = copy.recipe.model_copy(update={"tasks": changed})
    (tasks / f"{TASKS[1]}.json").write_text(content)
    for stage in ("drafting", "probing", "alignment", "evaluation"):
        with pytest.raises(DataError, match=said) as error:
            compute(stage, copy)
        assert is_one_sentence(error.value) and TASKS[1] in str(error.value)
    assert is_whole(copy)


@pytest.mark.parametrize(("role", "stage"), [("teacher", "drafting"), ("student", "probing"), ("student", "training")])
def test_a_missing_model_folder_stops_before_any_work(copy, tmp_path, role, stage):
    gone = str(tmp_path / "gone")
    changed = {"teacher": gone} if role == "teacher" else {"students": {"pupil": gone}}
    copy.recipe = copy.recipe.model_copy(update={"models": copy.recipe.models.model_copy(update=changed)})
    with pytest.raises(ModelError, match=r"gone does not exist; run `make pocket`") as error:
        compute(stage, copy)
    assert is_one_sentence(error.value) and len(copy.read("predictions"))


def test_a_misspelt_parameter_stops_before_any_work(copy):
    recipe = str(copy.path / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"alignment\.bta is not a key of a recipe .*did you mean alignment\.beta\?"):
        load_recipe(recipe, {"alignment.bta": "0.2"})
    with pytest.raises(RunError, match=r"begun with another recipe; .*alignment\.beta 0\.1 -> 0\.2"):
        open_run("loop", load_recipe(recipe, {"alignment.beta": "0.2"}))


@contextlib.contextmanager
def little_room(n_bytes: int):
    """Let no file grow beyond so many bytes: to whoever writes, as good as a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def made_in(run, stage: str) -> list:
    """Return what all frames of a stage hold, and the weights of all its models."""
    weights = [path for step in STEPS[stage] for path in sorted((run.path / step).rglob("*.safetensors"))]
    return [run.manifest(step)["contents"] for step in STEPS[stage]] + [
        (path.relative_to(run.path), path.read_bytes()) for path in weights
    ]


@pytest.mark.parametrize(("stage", "n_bytes"), [("drafting", 4_000), ("alignment", 400_000), ("training", 60_000)])
def test_no_room_left_is_one_sentence_and_the_run_goes_on_afterwards(copy, stage, n_bytes):
    made = made_in(copy, stage)
    undo(copy, *STAGES[STAGES.index(stage) :])
    with little_room(n_bytes), pytest.raises(RunError, match="could not be written") as error:
        compute(stage, copy)
    assert is_one_sentence(error.value) and "nothing earlier is lost" in str(error.value)
    assert not copy.has(STEPS[stage][-1])
    for earlier in STAGES[: STAGES.index(stage)]:
        assert all(len(copy.read(step)) for step in STEPS[earlier])
    compute(stage, copy)
    assert made_in(copy, stage) == made


def test_another_student_is_probed_anew_and_what_hung_on_the_old_one_is_refused(copy, classroom):
    other = classroom / "teacher"
    changed = copy.recipe.models.model_copy(update={"students": {"pupil": str(other)}})
    copy.recipe = copy.recipe.model_copy(update={"models": changed})
    old = copy.read("probes")
    compute("probing", copy)
    new = copy.read("probes")
    assert len(list(copy.path.glob("probes.superseded-*"))) == 1
    assert new["draft_id"].tolist() == old["draft_id"].tolist() and not np.array_equal(new["answer"], old["answer"])
    with pytest.raises(RunError, match="was made from earlier signals; bring it up to date"):
        compute("training", copy)


def test_a_teacher_that_writes_no_question_is_named_as_the_fault(copy, classroom):
    undo(copy, *STAGES)
    changed = copy.recipe.models.model_copy(update={"teacher": str(classroom / "babbler")})
    copy.recipe = copy.recipe.model_copy(update={"models": changed})
    with pytest.raises((ValueError, RunError), match=r"wrote no usable question of \w+") as error:
        compute("drafting", copy)
    assert is_one_sentence(error.value)
