"""The gates of the pocket classroom, decided on tables made by hand."""

import pandas as pd
import pytest

from data.pocket.make.classroom import STUDENTS
from data.pocket.make.measure import MIXED, alike, cases_of, gates, seen
from workbench.runs.recipe_file import load_recipe
from workbench.tasks.pocket_styles import STYLES

TASKS = ("object_counting", "navigate")


def row(student, when, style="", accuracy=0.3, shown=-1, seed=5, bare=0.0, task="navigate"):
    return dict(
        student=student, when=when, style=style, accuracy=accuracy, shown=shown, seed=seed, bare=bare, task=task
    )


def table(student: str, base=0.3, bare=1.0, native=0.6, one_shot=0.8, alike_by=(0.0, 0.0, 0.0, 0.0)) -> pd.DataFrame:
    own = STUDENTS[student].native
    rows = [row(student, "before", accuracy=base, bare=bare, task=task) for task in TASKS]
    for style, apart in zip(STYLES, alike_by, strict=True):
        for task in TASKS:
            score = one_shot if style == own else 0.5
            rows += [row(student, "one shot", style, score + 0.01 * k, shown=k, task=task) for k in range(4)]
            trained = native if style == own or not own else base
            wobbles = zip((5, 6, 7), (-0.01, 0.0, 0.01), strict=True)
            rows += [row(student, "trained", style, trained + apart + w, seed=s, task=task) for s, w in wobbles]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("gate", "spoil"),
    [
        ("bare", {"bare": 0.89}),
        ("room: base", {"base": 0.56, "native": 0.7}),
        ("room: gain", {"native": 0.39}),
        ("seen", {"one_shot": 0.5}),
    ],
)
def test_a_gate_fails_alone_when_what_it_is_about_is_missing(gate, spoil):
    passed = gates(table("tally-strong")).set_index("gate")["passed"]
    assert passed.all() and list(passed.index) == ["bare", "room: base", "room: gain", "seen"]
    spoiled = gates(table("tally-strong", **spoil)).set_index("gate")["passed"]
    assert not spoiled[gate] and spoiled.drop(gate).all()


def test_students_without_preference_must_gain_alike():
    assert gates(table("no-preference"))["passed"].all()
    far = gates(table("no-preference", alike_by=(0.2, 0.0, 0.0, 0.0))).set_index("gate")["passed"]
    assert not far["alike: tally"]
    # Seeds that move by 0.02 from one to the next: t(2) at 1 - 0.05 / 8 is 8.86.
    apart = table("no-preference", alike_by=(0.04, 0.0, 0.0, 0.0))
    moved = apart["seed"].map({5: -0.02, 6: 0.0, 7: 0.02}).where(apart["style"] == "tally", 0.0)
    difference, half = alike(apart.assign(accuracy=apart["accuracy"] + moved))["tally"]
    assert difference == pytest.approx(0.03) and half == pytest.approx(8.86 * 0.015 / 3**0.5, rel=1e-3)


def test_the_preference_is_seen_within_tasks():
    hidden = table("tally-strong", one_shot=0.5)
    assert seen(hidden, STUDENTS["tally-strong"])["auc"].tolist() == [0.5, 0.5]
    assert seen(table("tally-strong"), STUDENTS["tally-strong"])["auc"].tolist() == [1.0, 1.0]


def test_learners_have_no_gates_and_every_student_its_cases():
    assert gates(table("newcomer")).empty
    recipe = load_recipe("arte")
    assert sum(case.when == "trained" for case in cases_of(recipe, "no-preference", curves=False)) == 15
    assert sum(case.when == "trained" for case in cases_of(recipe, "tally-weak", curves=False)) == 5
    longer = cases_of(recipe, "newcomer", curves=True)
    assert {case.style for case in longer} == {"tally", MIXED} and max(case.n for case in longer) == 1200
