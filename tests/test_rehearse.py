"""A rehearsal on models built here, and what is advised on texts made up."""

from dataclasses import replace

import pandas as pd
import pytest
from small_classroom import recipe_of

from workbench.cli.rehearse import KINDS, ONE, QUESTIONS, RATIONALES, ZERO, _shown, advice, in_words, ties
from workbench.tasks.task import load_tasks


def texts(usable=1.0, right=(0.5, 0.8), cut=0.0, tied=False, worked=None) -> pd.DataFrame:
    rows = []
    for kind, share in zip(KINDS, (None, worked, *right), strict=True):
        for n in range(20):
            good = None if share is None else float(n < 20 * share)
            if kind == ONE and tied:
                good = float(n % 2)
            rows.append((kind, "text", n < 20 * usable, good, n < 20 * cut, 9, f"q{n // 10}", f"t{n // 2 % 5}"))
    columns = ["kind", "text", "usable", "right", "cut off", "tokens", "question", "technique"]
    return pd.DataFrame(rows, columns=columns).astype({"right": "Float64"})


@pytest.fixture
def task(small_models):
    return next(iter(load_tasks(recipe_of(small_models)).values()))


def test_a_rehearsal_shows_texts_and_shares_and_says_what_the_whole_takes(small_models, runs):
    said = "\n".join(in_words(recipe_of(small_models)))
    for kind in (QUESTIONS, RATIONALES, ZERO, ONE):
        assert f", {kind}:\n  | " in said
    assert "usable" in said and "cut off" in said and "Most frequent answer: " in said
    assert "The whole, in minutes on this machine now: drafting" in said and " examples and saved, in " in said
    assert said.splitlines()[-1].startswith(("Worth starting.", "Not worth starting as it is. "))
    assert not any(runs.glob("*/recipe.yaml")), "a rehearsal is no run"


def test_nothing_is_held_against_what_is_well(task):
    assert advice(task, texts()) == [] and ties(texts()) < 1 == ties(texts(tied=True))


@pytest.mark.parametrize(
    "made, said",
    [
        ({"usable": 0.0}, ["no usable question", "no rationale ends", "keeps to no form"]),
        ({"right": (0.95, 0.95)}, ["right already"]),
        ({"right": (0.1, 0.1)}, ["no better than its most frequent answer"]),
        ({"tied": True, "right": (0.8, 0.8)}, ["score alike"]),
        ({"worked": 0.25}, ["rationales are right in 25%, so what is taught would mostly be wrong"]),
        ({"worked": 0.5}, []),
        ({"cut": 0.8}, ["cut off; raise drafting.max_new_tokens"]),
    ],
)
def test_what_speaks_against_a_run_is_said_with_a_way_on(task, made, said):
    found = advice(task, texts(**made))
    assert len(found) == len(said) and all(one in two for one, two in zip(said, found, strict=True))


def test_answers_that_are_all_one_are_no_task(task):
    assert 0 < task.majority(task.validation["target"]) < 0.9
    alike = replace(task, validation=task.validation.assign(target=task.validation["target"].iloc[0]))
    (only,) = advice(alike, texts())
    assert "100% of the answers are one and the same" in only


def test_what_a_terminal_would_obey_is_only_shown():
    assert _shown("a\x1b[2Jb\x07\nc") == "  | a\\x1b[2Jb\\x07\n  | c" and _shown(" ") == "  | (nothing)"
