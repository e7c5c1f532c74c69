import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.guard import Guard, normalise

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
