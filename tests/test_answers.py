"""Replies as real models write them, and what each of them answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.tasks import answers as answers_module
from workbench.tasks.answers import Answers

NUMBERS = [
    ("<ans>72</ans>", "72"),
    ("48/2 = 24, and 48 + 24 = 72. <ans>72 clips</ans>", "72"),
    ("<ans>3</ans> Wait, I missed one. <ans>4</ans>", "4"),
    ("So she sold $48 + 24 = 72$ clips.\n\n$$\\boxed{72}$$", "72"),
    ("The total is \\boxed{\\text{72 clips}}.", "72"),
    ("Therefore, \\(\\boxed{1{,}250}\\) people.", "1250"),
    ("\\boxed{\\frac{3}{4}}", "0.75"),
    ("\\boxed{\\dfrac{10}{3}}", "10/3"),
    ("\\boxed{-\\frac{1}{2}}", "-0.5"),
    ("#### 72", "72"),
    ("Natalia sold 48+24 = <<48+24=72>>72 clips.\n#### 1,072", "1072"),
    ("**Answer:** 8", "8"),
    ("## Answer\n\nThe answer is **8 apples**, because 5 + 3 = 8.", "8"),
    ("**The answer is 1,234.50 dollars.**", "1234.5"),
    ("The final answer is $1,234. I hope this helps with your 2 questions!", "1234"),
    ("The answer is: 5 + 3 = 8 apples.", "8"),
    ("The answer is 8 (5 red ones and 3 green ones).", "8"),
    ("The answer is -12.", "-12"),
    ("The temperature is \u221212\u00b0C. So the answer is \u221212 degrees.", "-12"),
    ("x = -3", "-3"),
    ("She loses 5 - 8 = -3 points", "-3"),
    ("He owes -$40.", "-40"),
    ("He owes $-40.", "-40"),
    ("It takes 2 1/2 hours", "2.5"),
    ("The answer is 3/4 of a cup.", "0.75"),
    ("In total there are 25 apples.", "25"),
    ("Step 1: 3 + 4 = 7\nStep 2: 7 * 2 = 14\n\nShe has 14 marbles left.", "14"),
    ("The speed is 60 km/h.", "60"),
    ("That is 15% of the price.", "15"),
    ("The answer is 3.5e3 joules", "3500"),
    ("The answer is .5", "0.5"),
    ("Answer: 7\n\nQuestion: What is 5 plus 6?\nAnswer: Let's think step by step. 11. The answer is 11.", "7"),
    ("The answer is clear. We count 4 and then 5, so 9", "9"),
    ("Between 3-4 apples", "4"),
    ("I cannot answer this.", ""),
    ("", ""),
    ("<ans></ans>", ""),
    ("The answer is 1/0", ""),
]
OPTIONS = [
    ("<ans>(B)</ans>", "B"),
    ("<ans>b</ans>", "B"),
    ("<ans>B. 12/25/1937</ans>", "B"),
    ("**The correct answer is (B) 12/25/1937.**", "B"),
    ("The answer is B.", "B"),
    ("The answer is **B**", "B"),
    ("The answer is B because A and C come later.", "B"),
    ("The answer is option (c).", "C"),
    ("\\boxed{D}", "D"),
    ("\\boxed{\\text{(D)}}", "D"),
    ("Option A is too early. Option C is too late.\n\nSo it must be option B", "B"),
    ("(A) is the past and (C) the future, which leaves (B)", "B"),
    ("We go through them.\n\n**B) 12/25/1937**", "B"),
    ("We go through them.\n\nA", "A"),
    ("Answer: A", "A"),
    ("The answer is a day later, so none of them", ""),
    ("I am not sure", ""),
]
BOOLEANS = [
    ("<ans>Yes</ans>", "true"),
    ("<ans>no</ans>", "false"),
    ("Let's see: not ( True ) and False is\n\n**False**", "false"),
    ("So the answer is **Yes**.", "true"),
    ("The answer is no, since Ann lies.", "false"),
    ("\\boxed{\\text{True}}", "true"),
    ("No, there is no way that she tells the truth.", "false"),
    ("There is no doubt about it: yes.", "true"),
    ("So yes, there is no doubt.", "true"),
    ("It is true that he turned left. He is not back. No.", "false"),
    ("It is true that he turned left", ""),
    ("Nobody knows", ""),
]
EXACT = [
    ("<ans>New York</ans>", "New York"),
    ("<ans> **New York**. </ans>", "New York"),
    ("\\boxed{\\text{New York}}", "New York"),
    ("The answer is **New York**, which lies in the east.", "New York, which lies in the east"),
    ("**Final answer:** New York\n\nLet me know if you have more questions!", "New York"),
    ('The answer is "New York".', "New York"),
    ("#### New York", "New York"),
    ("It is New York", ""),
]


@pytest.mark.parametrize(
    ("kind", "reply", "answer"),
    [(kind, *case) for kind, cases in dict(number=NUMBERS, option=OPTIONS, boolean=BOOLEANS).items() for case in cases]
    + [("exact", *case) for case in EXACT],
)
def test_what_a_reply_answers(kind, reply, answer):
    assert Answers(kind).read(reply) == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("It was on 2024-05-01, no, on 2024-05-02, a Thursday", "2024-05-02"),
        ("Either 2024-05-01 or 2024-05-02. The answer is 2024-05-01.", "2024-05-01"),
        ("<ans>some day</ans> that is 2024-05-03", "2024-05-03"),
        ("I do not know", ""),
    ],
)
def test_what_a_pattern_finds(reply, answer):
    assert Answers("regex", r"\d{4}-\d{2}-\d{2}").read(reply) == answer
    assert Answers("regex", r"\b(\d{4})-\d{2}-\d{2}").read(reply) == answer[:4]


@pytest.mark.parametrize(
    ("kind", "answer", "target"),
    [
        ("number", "1250", "1,250"),
        ("number", "3.0", "3"),
        ("number", "0.75", "3/4"),
        ("number", "10/3", "10/3"),
        ("number", "-20", "\u221220"),
        ("option", "A", "(A)"),
        ("option", "B", "b. 12/25/1937"),
        ("boolean", "true", "Yes"),
        ("boolean", "false", "FALSE"),
        ("exact", "New  york.", "New York"),
        ("exact", "(A)", "A"),
        ("tagged", "a.", "(A)"),
    ],
)
def test_two_ways_to_write_one_answer(kind, answer, target):
    assert Answers(kind).same(answer, target)


@pytest.mark.parametrize(
    ("kind", "answer", "target"),
    [
        ("number", "3.3", "10/3"),
        ("number", "20", "-20"),
        ("number", "", "3"),
        ("number", "none", "none"),
        ("option", "A", "(B)"),
        ("boolean", "true", "No"),
        ("exact", "", ""),
        ("exact", "York", "New York"),
        ("tagged", "", ""),
    ],
)
def test_two_answers(kind, answer, target):
    assert not Answers(kind).same(answer, target)


@given(st.text())
def test_tagged_answers_are_read_and_compared_as_they_always_were(reply):
    tagged = Answers()
    assert tagged.read(reply) == answers_module.parse_answer(reply)
    assert tagged.same(reply, "a") == answers_module.grade(reply, "a")


@given(
    st.text(alphabet="0123456789.,/- $\\{}()=eE\n<ans>*#boxedQ:", max_size=60), st.sampled_from(["number", "option"])
)
def test_no_text_is_too_odd_to_be_read(reply, kind):
    answers = Answers(kind)
    found = answers.read(reply)
    assert not found or answers.same(found, found)


@given(
    st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "**{}**", "${}$", "{}.", "{} km", "<ans>{:,}</ans>"])
)
def test_a_whole_number_is_read_however_it_is_written(value, form):
    assert Answers("number").read("So the answer is " + form.format(value)) == str(value)


@pytest.mark.parametrize(
    "pattern, reply, target",
    [(r"\b[A-Z]{2}\d{2}\b", "It must be AB12.", "AB12"), (r"Answer: (\w+)", "Answer: Foo, I think", "Answer: foo")],
)
def test_what_a_pattern_found_is_not_asked_to_fit_the_pattern_again(pattern, reply, target):
    answers = Answers("regex", pattern)
    said = answers.read(reply)
    assert answers.same(said, target) and answers.alike(said, answers.read_gold(target))
    assert not answers.same("other", target) and not answers.same("", target) and not answers.alike("", "")
