import numpy as np
import pytest

from workbench.tasks.contamination import TfidfIndex, renamed, reordered, sort_options, words

QUESTION = "Who won?\nOptions:\n(A) Ann\n(B) Bob"


def test_words_are_words_brackets_and_operators():
    assert words("Don't say: ( 2 + -3 ) = X.") == ["don", "t", "say", "(", "2", "+", "-", "3", ")", "=", "x"]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("Who won?\nOptions:\n(A) Bob\n(B) Ann", True),
        ("Who won?\nOptions:\n- Bob\n- Ann", True),
        ("Who won?\nOptions:\n(A) Bob\n(B) Eve", False),
        ("Who lost?\nOptions:\n(A) Ann\n(B) Bob", False),
    ],
)
def test_options_in_another_order_are_the_same_options(other, same):
    assert (sort_options(other) == sort_options(QUESTION)) == same


def test_a_text_without_options_stays_as_it_is():
    assert sort_options("b\na") == "b\na"


def test_the_forms_in_which_disguised_copies_are_equal():
    assert reordered("Turn left. Take 2 steps.") == reordered("Take 2 steps. Turn left.")
    assert renamed("two pears and 12 plums") == renamed("3 pears and five plums") == "0 pears and 0 plums"
    assert renamed("a pear") != renamed("a plum")
    assert renamed("Ann met Bob. Ann has 2.") == renamed("Eve met Joe. Eve has 3.")
    assert renamed("Ann met Bob. Ann has 2.") != renamed("Eve met Joe. Joe has 3.")


ITEMS = ["I have a red pear", "I have a blue plum", "I have a green fig"]


def test_words_of_the_task_say_nothing_and_unknown_words_are_not_held_against_a_question():
    index = TfidfIndex(ITEMS)
    assert index.near("I own one red pear", 1) == pytest.approx([1.0, 0.0, 0.0])
    # Telling words of the item: red, pear. Of the question: red, plum. Common: red.
    assert index.near("I have a red plum", 1) == pytest.approx([0.5, 0.5, 0.0])
    assert not index.near("I have a", 1).any() and not index.near("", 1).any() and not index.ngram("", 1).any()


def test_the_weight_of_common_n_grams():
    index = TfidfIndex(["a b", "a c"])
    common, rare = np.log(3 / 2.5), np.log(3 / 1.5)
    # n-grams: a (in both), b, a b (in the first only).
    assert index.ngram("a b", 1) == pytest.approx([1.0, common / (common + 4 * rare)])
    assert index.ngram("a", 1) == pytest.approx([common / (common + 2 * rare)] * 2)
    # As one of the items: what only it has is unknown to the other.
    assert index.ngram("a b", 2)[1] == pytest.approx(common / (common + 2 * rare))
