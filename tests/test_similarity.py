import numpy as np
import pytest

from workbench.tasks.contamination import TfidfIndex, renamed, renumbered, reordered, sort_options, words

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
    assert renumbered("two pears and 12 plums") == renumbered("3 pears and five plums") == "0 pears and 0 plums"
    assert renumbered("a pear") != renumbered("a plum")
    assert renamed("Ann met Bob. Ann has 2.") == renamed("Eve met Joe. Eve has 3.")
    assert renamed("Ann met Bob. Ann has 2.") != renamed("Eve met Joe. Joe has 3.")


ITEMS = ["I have a red pear", "I have a blue plum", "I have a green fig"]


def test_words_of_the_task_say_nothing_and_unknown_words_are_not_held_against_a_question():
    telling = TfidfIndex(ITEMS)
    assert telling.near("I own one red pear", 1) == pytest.approx([1.0, 0.0, 0.0])
    # Telling words of the item: red, pear. Of the question: red, plum. Common: red.
    assert telling.near("I have a red plum", 1) == pytest.approx([0.5, 0.5, 0.0])
    assert not telling.near("I have a", 1).any() and not telling.near("", 1).any() and not telling.ngram("", 1).any()


def test_the_weight_of_common_n_grams():
    telling = TfidfIndex(["a b", "a c"])
    common, rare = np.log(3 / 2.5), np.log(3 / 1.5)
    # n-grams: a (in both), b, a b (in the first only).
    assert telling.ngram("a b", 1) == pytest.approx([1.0, common / (common + 4 * rare)])
    assert telling.ngram("a", 1) == pytest.approx([common / (common + 2 * rare)] * 2)
    # As one of the items: what only it has is unknown to the other.
    assert telling.ngram("a b", 2)[1] == pytest.approx(common / (common + 2 * rare))
