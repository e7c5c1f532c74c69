"""The leaderboard on made signals and answers, where the truth is known, and how groups are formed."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from probed_run import recipe_of, store, write_run

from workbench import figures
from workbench.runs.errors import RunError
from workbench.studies import leaderboard
from workbench.studies.leaderboard import POSED, _Table, agreement, board, centred, compare, groups_of, leaks
from workbench.verdict.intervals import percentiles

TECHNIQUES, TASKS, N_QUESTIONS = ("tally", "meter", "story", "diary"), ("sums", "moves"), 6


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(leaderboard, "N_RESAMPLES", 60)


def made(truth: dict[str, float], student: str = "s") -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Signals that tell the drafts' worth, its opposite, or nothing; groups; answers as that worth has them, 16 steps.

    After 4 steps nothing is learned yet.
    """
    rng, rows = np.random.default_rng(0), []
    for task, n, technique in itertools.product(TASKS, range(N_QUESTIONS), TECHNIQUES):
        worth = {"tally": 0.9, "meter": 0.6, "story": 0.4, "diary": 0.1}[technique] + 0.05 * rng.random()
        one = {"student": student, "task": task, "question_id": f"{task}{n}", "technique": technique}
        for name, sign in truth.items():
            value = sign * worth + (0.0 if sign else rng.random())
            rows.append(one | {"draft_id": f"{task}{n}{technique}", "signal": name, "value": value, "worth": worth})
    signals = pd.DataFrame(rows)
    groups = groups_of(signals, list(truth), 1)
    worth = signals.drop_duplicates("draft_id").set_index("draft_id")["worth"]
    of_task = signals.drop_duplicates("draft_id").set_index("draft_id")["task"]
    told = []
    for task, item in itertools.product(TASKS, range(40)):
        base = {"student": student, "task": task, "item": TASKS.index(task) * 100 + item}
        told.append(base | {"group": "", "seed": 0, "steps": 0, "correct": item < 4, "is_epoch": False})
        for group, own in groups.groupby("group"):
            mean = worth[own["draft_id"]][of_task[own["draft_id"]].to_numpy() == task].mean()
            for seed, (steps, share) in itertools.product((1, 2, 3), ((4, 0.1), (16, 0.1 + 0.8 * mean))):
                more = {"group": group, "seed": seed, "steps": steps, "is_epoch": steps == 16}
                told.append(base | more | {"correct": (item * 7 + seed) % 40 < 40 * share})
    return signals.drop(columns="worth"), groups, pd.DataFrame(told)


def test_numbers_by_hand():
    values = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 2.0], [5.0, 5.0, 5.0], [1.0, np.nan, 2.0]])
    found = compare(values, np.array([[0.3, 0.0, 0.1], [0.2, 0.2, 0.2]]))
    spearman, pearson, apart, regret = found[:, :, 0]
    assert spearman[0] == pytest.approx(1.0) and pearson[0] == pytest.approx(
        np.corrcoef(values[0], [0.3, 0, 0.1])[0, 1]
    )
    assert apart[0] == pytest.approx(0.3) and regret[0] == pytest.approx(0.0)
    # Of groups that a signal likes alike the mean counts.
    assert apart[1] == pytest.approx(0.1 - 0.15) and regret[1] == pytest.approx(0.2)
    assert np.isnan(found[:, 2:]).all() and np.isnan(found[:2, :2, 1]).all() and np.allclose(found[2:, :2, 1], 0)


def test_a_signal_that_tells_the_truth_leads_and_one_that_lies_is_last():
    signals, groups, answers = made({"true": 1.0, "lying": -1.0, "idle": 0.0})
    found = board(signals, groups, answers).set_index(["signal", "steps"])
    epoch = found.xs(0, level="steps")
    assert epoch.loc["true", "spearman"] > 0.9 and epoch.loc["true", "spearman_low"] > 0.6
    assert epoch.loc["lying", "spearman_high"] < -0.6 and epoch.loc["lying", "apart"] < -0.5
    assert epoch.loc["true", "regret"] == pytest.approx(0.0, abs=0.03) and epoch.loc["lying", "regret"] > 0.5
    assert abs(epoch.loc["idle", "spearman"]) < epoch.loc["true", "spearman"]
    # An epoch is 16 steps here; after 4 no group has learned more than another.
    assert found.loc[("true", 16), "spearman"] == found.loc[("true", 0), "spearman"]
    assert abs(found.loc[("true", 4), "apart"]) < 0.05
    matrix = agreement(signals)
    assert matrix.loc["true", "lying"] == pytest.approx(-1.0) and matrix.loc["true", "true"] == pytest.approx(1.0)
    costs = pd.DataFrame({"signal": ["true", "lying"], "forward": [1.0, 50.0], "backward": [0, 0], "seconds": [0.1, 2]})
    figure, later = (figures.truth_and_cost(found.reset_index(), costs, steps) for steps in (0, 4))
    assert "true" in figures.sentence(figure)
    marks = [{one.name: (one.marker.color, one.marker.symbol) for one in drawn.data} for drawn in (figure, later)]
    assert marks[0] == marks[1] and len(set(marks[0].values())) == 3


def test_signals_of_one_cost_stand_side_by_side():
    signals, groups, answers = made({"true": 1.0, "same": 1.0})
    costs = pd.DataFrame({"signal": ["true", "same"], "forward": [1.0, 1.0], "backward": [0, 0], "seconds": [0.1, 2]})
    figure = figures.truth_and_cost(board(signals, groups, answers), costs, 0)
    assert len({float(one.x[0]) for one in figure.data}) == 2


def test_intervals_hold_what_would_be_estimated_from_other_drafts_seeds_and_questions():
    """Of 25 classrooms drawn alike, in which groups' values and gains go together but for noise."""
    rng, worth, (n_groups, n_items) = np.random.default_rng(0), np.linspace(0, 1, 12), (12, 60)
    estimates, plain, moved = [], [], []
    for _ in range(25):
        table = _Table.__new__(_Table)
        table.of_question, table.of_item = np.repeat(list(TASKS), 32), np.repeat(list(TASKS), n_items // 2)
        table.values = worth[None, :, None] + rng.normal(0, 1.2, (1, n_groups, 64))
        chance = 0.3 + 0.4 * worth[:, None, None] + rng.normal(0, 0.05, (n_groups, 3, 1))
        table.gains = (rng.random((n_groups, 3, n_items)) < chance).astype(float)[None]
        estimates.append(table.numbers(*table.places())[0, 0, 0])
        again = np.stack([table.numbers(*table.places(rng))[0, 0, 0] for _ in range(60)])
        plain.append(percentiles(again))
        moved.append(percentiles(centred(again, estimates[-1], "spearman")))
    held = [sum(low <= np.mean(estimates) <= high for low, high in pairs) for pairs in (plain, moved)]
    # Of 120 drawn so, 113 held it as they are moved and 85 as they fall: resamples are too low.
    assert held[1] >= 20 and held[1] > held[0]
    inside = [sum(low <= one <= high for one, (low, high) in zip(estimates, pairs)) for pairs in (plain, moved)]
    assert inside[1] == 25 > inside[0], "an interval holds its own estimate"
    assert centred(np.array([0.0, 0.2]), 0.0, "regret").min() == 0.0


def test_groups_by_how_a_question_is_posed_have_equal_tokens_and_their_gains_are_told_apart(runs):
    run = write_run("posed", recipe_of(3, 8, ("ada",)))
    drafts = run.read("drafts")
    place = np.arange(len(drafts)) % 4
    drafts = drafts.assign(
        correct=place < 2, gold=np.where(place == 3, "", drafts["gold"]), n_tokens=np.where(place == 3, 9, 4)
    )
    groups = leaderboard.posed_groups(SimpleNamespace(recipe=run.recipe, read=lambda _: drafts))
    known = drafts.set_index("draft_id").loc[groups["draft_id"]]
    assert set(groups["student"]) == {"ada"} and set(groups["group"]) == set(POSED) and groups["draft_id"].is_unique
    kind = np.select([known["correct"], known["gold"] != ""], POSED[:2], POSED[2])
    assert kind.tolist() == groups["group"].tolist()
    totals = known.assign(group=kind).groupby(["task", "group"])["n_tokens"].sum().unstack()
    assert (totals.max(axis=1) - totals.min(axis=1) <= 9).all()
    # A task without ill-posed questions says nothing of them.
    solved = drafts.assign(gold="1")
    assert leaderboard.posed_groups(SimpleNamespace(recipe=run.recipe, read=lambda _: solved)).empty
    gains = {"": 0.0, POSED[0]: 0.6, POSED[1]: 0.4, POSED[2]: 0.1}
    rows = [
        {
            "student": "ada",
            "group": group,
            "seed": 1,
            "steps": steps if group else 0,
            "item": n,
            "correct": n < 10 * gain,
        }
        for (group, gain), steps, n in itertools.product(gains.items(), (8, 32), range(10))
    ]
    rows = [row | {"steps": 2} if row["group"] == POSED[2] and row["steps"] == 8 else row for row in rows]
    told = leaderboard.posed(pd.DataFrame(rows)).set_index(["steps", "what"])["value"]
    assert set(told.index.get_level_values(0)) == {32}, "8 steps were not asked of all"
    assert told[32, "right, gain"] == pytest.approx(0.6)
    assert told[32, "right minus well posed, wrong"] == pytest.approx(0.2)
    assert told[32, "well posed, wrong minus ill posed"] == pytest.approx(0.3)


def test_all_students_are_their_mean():
    ones, others = made({"true": 1.0, "lying": -1.0}), made({"true": -1.0, "lying": 1.0}, "t")
    found = board(*(pd.concat(pair, ignore_index=True) for pair in zip(ones, others, strict=True)))
    wide = found[found["steps"] == 0].pivot(index="signal", columns="student", values="spearman")
    assert wide["all students"].to_numpy() == pytest.approx(wide[["s", "t"]].mean(axis=1).to_numpy())


def test_groups_are_the_same_for_all_signals_and_an_unscored_draft_is_never_the_best():
    signals, _, _ = made({"true": 1.0, "same": 1.0})
    best_of_one = signals["draft_id"] == "sums0tally"
    signals.loc[best_of_one, "value"] = np.nan
    groups = groups_of(signals, ["true", "same"], 1)
    named = {name: own for joined, own in groups.groupby("group") for name in joined.split("; ")}
    assert set(named) == {*TECHNIQUES, "random"} | {
        f"{end} {of}" for end in ("best", "worst") for of in ("true", "same")
    }
    # Two signals of one mind share their groups; each group holds one draft of every question.
    assert named["best true"] is named["best same"] and named["worst true"] is named["diary"]
    assert all(own["question_id"].is_unique and len(own) == len(TASKS) * N_QUESTIONS for own in named.values())
    assert "sums0tally" not in set(named["best true"]["draft_id"]) and "sums0tally" in set(named["tally"]["draft_id"])
    pd.testing.assert_frame_equal(groups_of(signals, ["true", "same"], 1), groups)


def test_techniques_that_each_task_calls_by_other_names_go_together():
    signals, groups, _ = made({"true": 1.0})
    others = {"diary": "aloud", "meter": "bare", "story": "columns", "tally": "drawn"}
    names = signals["technique"].where(signals["task"] == TASKS[0], signals["technique"].map(others))
    again = groups_of(signals.assign(technique=names), ["true"], 1)
    before, after = (
        {name: set(own["draft_id"]) for joined, own in of.groupby("group") for name in joined.split("; ")}
        for of in (groups, again)
    )
    assert {name: before.pop(name) for name in TECHNIQUES} == {
        name: after.pop("/".join(sorted((name, others[name])))) for name in TECHNIQUES
    }
    assert before == after


def test_drafts_that_form_no_group_are_refused():
    signals, _, _ = made({"true": 1.0})
    lost = np.where(signals["question_id"].str[-1].astype(int) % 2, "tally", "story")
    with pytest.raises(RunError, match="No question has a usable draft of every technique for s; draft more questions"):
        groups_of(signals[signals["technique"] != lost], ["true"], 1)


def test_whether_a_draft_is_right_is_unknown_where_its_task_has_no_rule(runs):
    run = write_run("unruled", recipe_of(3, 8, ("ada",)))
    drafts = run.read("drafts")
    for gold, known in (("", False), (drafts["answer"], True)):
        store(run, drafts=drafts.assign(gold=gold, correct=known))
        signals, _ = leaderboard.signals_of(run, [])
        assert set(signals["signal"]) == {"length", "right"}
        assert signals.query("signal == 'right'")["value"].notna().eq(known).all()
        assert signals.query("signal == 'length'")["value"].notna().all()


def test_probes_that_leak_are_counted_and_left_out(runs):
    run = write_run("leaky", recipe_of(3, 8, ("ada",)))
    probes, drafts = run.read("probes"), run.read("drafts")
    items = run.read("preference_set").set_index("item_id")["target"]
    stated = probes["draft_id"].map(drafts.set_index("draft_id")["answer"])
    same = stated == probes["item_id"].map(items)
    # Whoever is shown the answer gets it right, and nobody else does.
    store(run, probes=probes.assign(correct=same, parsed=True))
    found = leaks(run).iloc[0]
    assert found["same_answer"] == pytest.approx(same.mean()) and 0 < same.mean() < 1 and found["copies"] == 0
    assert found["right_if_same"] == 1 and found["right_else"] == 0 and found["without"] == 0
    assert found["owed"] == pytest.approx(found["score"]) == pytest.approx(same.mean())


def test_a_draft_that_copies_a_preference_question_is_seen(runs):
    run = write_run("copied", recipe_of(3, 8, ("ada",)))
    items, drafts = run.read("preference_set"), run.read("drafts")
    first = drafts["question_id"] == drafts["question_id"][0]
    store(run, drafts=drafts.assign(question=drafts["question"].mask(first, items["question"][2])))
    assert leaks(run).iloc[0]["copies"] == pytest.approx(1 / 3)
