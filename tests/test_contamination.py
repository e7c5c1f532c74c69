import json
import random

import numpy as np
import pytest
from conftest import PROJECT
from disguises import DISGUISES, planted
from hypothesis import given
from hypothesis import strategies as st

from data.pocket.make.classroom import TASKS
from data.pocket.make.questions import TEST_SIZES, write
from workbench.runs.seeding import stream
from workbench.tasks.contamination import LEVELS, OFF, Guard, copies, normalise

SETS = {"seeds": ["How many pears?"], "test": ["( True and False ) is", "How many plums?"]}


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("How many pears?", "same as a seeds item"),
        ("How many plums?", "same as a test item"),
        ("how  many\nPLUMS", "same as a test item but for case, punctuation or blanks"),
        ("How many pears ?", "same as a seeds item but for case, punctuation or blanks"),
        ("True and ( False ) is", "same as a test item but for case, punctuation or blanks"),
        ("How many peaches?", ""),
        ("How many", ""),
        ("", ""),
    ],
)
def test_overlap_says_with_what(question, reason):
    assert Guard(SETS).overlap(question) == reason


def test_the_first_set_named_is_the_one_reported():
    guard = Guard({"seeds": ["a b"], "test": ["a b", "A-B"]})
    assert guard.overlap("a b") == "same as a seeds item"
    assert guard.overlap("A-B") == "same as a test item"
    assert guard.overlap("A, B!") == "same as a seeds item but for case, punctuation or blanks"


def test_no_sets_hold_nothing():
    assert Guard({}).overlap("anything") == "" == Guard({"test": []}).overlap("")


@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(min_size=1).filter(str.strip))
def test_an_item_always_overlaps_with_itself(text):
    guard = Guard({"test": [text]})
    assert guard.overlap(text) == "same as a test item"
    assert guard.overlap(f"  {text}\n")


def test_text_without_letters_is_not_all_one():
    assert normalise("?!") != normalise("!?") and not Guard({"test": ["++"]}).overlap("--")


@pytest.mark.parametrize(("one", "other"), [("3 pears", "4 pears"), ("Å", "A"), ("x-1", "x-2"), ("一", "二")])
def test_letters_and_digits_of_any_script_tell_apart(one, other):
    assert normalise(one) != normalise(other)


# The calibrated levels, on the pocket tasks. What cannot be told there is stated as well: a walk with other numbers, or
# in another order, is another walk; who lies under other names is another web; expressions are all alike.
CAUGHT = {
    "boolean_expressions": {"case": 1.0, "blanks": 1.0},
    "navigate": {"case": 1.0, "blanks": 1.0, "punctuation": 1.0, "options": 1.0, "paraphrase": 0.4},
    "object_counting": {
        **{"case": 1.0, "blanks": 1.0, "punctuation": 1.0, "order": 0.95, "numbers": 0.95},
        **{"names": 0.35, "paraphrase": 0.95},
    },
    "web_of_lies": {"case": 1.0, "blanks": 1.0, "punctuation": 1.0, "order": 0.95, "paraphrase": 0.95},
}
NOT_CAUGHT = {
    "boolean_expressions": ["paraphrase"],
    "navigate": ["order", "numbers"],
    "object_counting": [],
    "web_of_lies": ["names"],
}


@pytest.fixture(scope="module")
def sets():
    """The test questions of the pocket tasks."""
    files = {task: PROJECT / "data" / "pocket" / "tasks" / f"{task}.json" for task in TASKS}
    return {task: [item["input"] for item in json.loads(path.read_text())["test"]] for task, path in files.items()}


@pytest.fixture(scope="module")
def guards(sets):
    return {task: Guard({"test": questions}) for task, questions in sets.items()}


@pytest.mark.parametrize("task", TASKS)
def test_leaks_in_disguise_are_found(task, sets, guards):
    recall = {}
    for disguise in DISGUISES:
        leaks = planted(sets[task][::4], disguise)
        if len(leaks) >= 10:
            recall[disguise] = np.mean([bool(guards[task].overlap(leak)) for leak in leaks])
    assert {disguise for disguise, share in recall.items() if share >= CAUGHT[task].get(disguise, 1.1)} == set(
        CAUGHT[task]
    ), recall
    assert {disguise for disguise in recall if recall[disguise] < 0.15} == set(NOT_CAUGHT[task]), recall


def test_honest_items_are_seldom_accused(guards):
    """Of new items that the generator writes, apart from those that are the same by definition."""
    n_accused = n_asked = 0
    for task in TASKS:
        rng = stream(7, "honest", task)
        plain = Guard({"test": guards[task].questions}, levels=("exact", "normalised", "options"))
        new = [write(task, rng, TEST_SIZES[task]) for _ in range(250)]
        new = [question for question in new if not plain.overlap(question)]
        n_asked += len(new)
        n_accused += sum(bool(guards[task].overlap(question)) for question in new)
    assert n_asked > 900 and n_accused / n_asked <= 0.02


def test_a_level_that_cannot_tell_copies_from_siblings_is_off(guards):
    off = {task: {level for level, at in guard.thresholds.items() if at == OFF} for task, guard in guards.items()}
    assert "renamed" in off["navigate"] and "renamed" not in off["object_counting"]
    assert "renamed" in off["web_of_lies"] and off["web_of_lies"] == {"renamed"}
    used = {
        task: {one.level for text in guard.questions for one in guard.matches(text)} for task, guard in guards.items()
    }
    assert all(used[task] and not used[task] & off[task] for task in TASKS)


def test_more_false_positives_allowed_find_no_less(sets):
    strict, lenient = (Guard({"test": sets["navigate"]}, false_positive_rate=share).thresholds for share in (0.02, 0.1))
    assert all(lenient[level] <= strict[level] for level in LEVELS) and lenient != strict


def test_with_too_few_items_to_tell_the_calibrated_levels_are_off(sets):
    few = Guard({"test": sets["object_counting"][:90]})
    assert {level for level, at in few.thresholds.items() if at == OFF} == set(LEVELS[3:])
    assert few.overlap(sets["object_counting"][0].upper())


def test_leaks_between_the_sets_are_found(sets):
    """Half a validation set is copied from the test set, which makes the words of the copies no rare ones there."""
    test, rng = sets["object_counting"], stream(8, "honest")
    honest = [write("object_counting", rng, TEST_SIZES["object_counting"]) for _ in range(60)]
    leaked = [*planted(test[:30], "paraphrase"), *planted(test[30:90], "numbers")[:30]]
    seen = {"seeds": Guard({"": honest[:3]}), "validation": Guard({"": honest[3:] + leaked})}
    found = copies(Guard({"test": test}), seen)
    assert len({one.item for one in found.values()} & set(leaked)) >= 0.95 * len(leaked)
    assert len({one.item for one in found.values()} & set(honest)) <= 2 and set(found) <= set(test)
    assert {one.name for one in found.values() if one.item in leaked} == {"validation"}


def test_sets_from_other_hands_are_no_copies_for_being_alike(sets):
    """Short walks resemble each other more than those of a test set do; that alone makes them no copies."""
    rng = stream(9, "short")
    short = list(dict.fromkeys(write("navigate", rng, (2, 4)) for _ in range(150)))
    test, seen = Guard({"test": sets["navigate"][:150]}), Guard({"validation": short})
    accused = {one.item for one in copies(test, {"validation": seen}).values() if one.level in LEVELS[3:]}
    # Two in a hundred may be accused: of 150, six or fewer in 97 of 100 draws.
    assert len(accused) <= 6 < sum(one.level in LEVELS[3:] for one in filter(None, map(test.find, short)))


def test_every_copy_of_an_item_is_found():
    guard = Guard({"test": ["One pear?", "one PEAR", "Two figs?"]})
    assert set(copies(guard, {"validation": Guard({"": ["one pear"]})})) == {"One pear?", "one PEAR"}


def test_the_order_of_the_items_does_not_matter(sets, guards):
    mixed = random.Random(0).sample(sets["navigate"], len(sets["navigate"]))
    assert Guard({"test": mixed}).thresholds == guards["navigate"].thresholds


def test_what_is_copied_is_named():
    found = Guard(SETS).find("HOW many plums")
    assert (found.level, found.name, found.item) == ("normalised", "test", "How many plums?")


def test_levels_left_out_are_not_used():
    assert not Guard(SETS, levels=["exact"]).overlap("how many pears")
    assert Guard(SETS, levels=["normalised"]).overlap("How many pears?")


def test_where_brackets_are_the_question_they_count():
    items = ["( [ ] )", "[ ( ) ]", "( ( ) )", "[ [ ] ]"]
    guard = Guard({"test": [f"Close these: {item}" for item in items]})
    assert not guard.overlap("Close these: ( ( [") and guard.overlap("close  these: ( ( ) )")
