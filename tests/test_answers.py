"""Replies as real models write them, and what each of them answers."""

import json

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
    ("P = 1/2", "0.5"),
    ("**Result:** 3/4", "0.75"),
    ("We are done.\n\n1/2", "0.5"),
    ("3/4 - 1/4 = 1/2", "0.5"),
    ("5 - 3 pens are left", "3"),
    ("- 5 pens\n- 3 pens", "3"),
    ("The answer is 5. No wait, the answer is 7.", "7"),
    ("<think>The answer is 5. Wait</think>The answer is 7", "7"),
    ("<think>The answer is 5. Wait", ""),
    ("The answer is 7 because 2 + 6 = 8", "7"),
    ("7\n\nExplanation: 3 and 4", "7"),
    ("So there are 8 pieces of fruit (5 + 3).", "8"),
    ("The area is 12 cm^2, or 12 cm\u00b2.", "12"),
    ("It is 5 m/s^2", "5"),
    ("`2\\frac{1}{2}`", "2.5"),
    ("$-\\frac12$", "-0.5"),
    ("2\u00bd hours", "2.5"),
    ("$1.5 \\times 10^{3}$", "1500"),
    ("The answer is 10\u207b\u00b2", "0.01"),
    ("The answer is 2**3", "8"),
    ("3 million", "3000000"),
    ("The answer is minus 3", "-3"),
    ("The answer is twelve.", "12"),
    ("The answer is 0,75 euros", "0.75"),
    ("The answer is 1.234,50 euros", "1234.5"),
    ("12,34,567 rupees", "1234567"),
    ("\u7b54\u6848\u662f42\u3002", "42"),
    ("\u5171\u670942\u4eba", "42"),
    ("La respuesta correcta es 42. Son 3 pasos.", "42"),
    ("Final answer - 7", "7"),
    ("7 is the right answer, not 8", "7"),
    ("The answer is not 8 but 7", "7"),
    ("The answer is 7.\n\n### Question: What is 5 + 6?\nThe answer is 11.", "7"),
    ("The answer is 7.\n\nUser: 5 + 6?\nAssistant: The answer is 11.", "7"),
    ("The answer is 7.<|im_start|>user\nThe answer is 11.", "7"),
    ("Question: 3 + 4?\nAnswer: 7", "7"),
    ("9" * 5000, ""),
    ("The answer is 1e999999", ""),
    ("The answer is 9^99^99", str(9**99)),
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
    ("B\n\nExplanation: Option A is wrong.", "B"),
    ("(B) is correct. (A) is wrong.", "B"),
    ("B) Paris\n\n(A) is wrong and (C) too.", "B"),
    ("(A) Oslo\n(B) Paris\n\nB", "B"),
    ("The correct choice is **C**.", "C"),
    ("Therefore, C is correct.", "C"),
    ("I choose C", "C"),
    ("It must be C.", "C"),
    ("Final answer B", "B"),
    ('{"answer": "B"}', "B"),
    ("(b)", "B"),
    ("The answer is most likely B", "B"),
    ("The answer is not A but B", "B"),
    ("\u7b54\u6848\uff1aB", "B"),
    ("\uff22", "B"),
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
    ("The statement is not true.", "false"),
    ("That isn't true.", "false"),
    ("It's not false", "true"),
    ("The answer is not yes", "false"),
    ("No it is not", "false"),
    ("No\n\nExplanation: it is true.", "false"),
]
EXACT = [
    ("<ans>New York</ans>", "New York"),
    ("<ans> **New York**. </ans>", "New York"),
    ("\\boxed{\\text{New York}}", "New York"),
    ("The answer is **New York**, which lies in the east.", "New York, which lies in the east"),
    ("**Final answer:** New York\n\nLet me know if you have more questions!", "New York"),
    ('The answer is "New York".', "New York"),
    ("#### New York", "New York"),
    ("It is east.\n\nNew York", "New York"),
    ("The answer is St. Louis. It lies in the west.", "St. Louis"),
    ("The answer is Yahoo! Inc.", "Yahoo! Inc"),
    ('{"answer": "New York"}', "New York"),
    ("\\boxed{> ) }}", "> ) }"),
    ("{\\boxed{New York}}", "New York"),
    ("\\boxed{\n42\n}", "42"),
    ("<ans>.</ans>", "."),
    ("", ""),
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


def test_the_replies_of_people_are_graded_as_people_would(test_data):
    lines = (test_data / "cases" / "answers.jsonl").read_text(encoding="utf-8").split("\n")
    cases = [json.loads(line) for line in lines if line]
    wrong = [
        case
        for case in cases
        if (answers := Answers(case["answer_type"])).same(answers.read(case["reply"]), case["gold"]) != case["right"]
    ]
    assert len(cases) > 200 and not wrong


@given(st.text())
def test_tagged_answers_are_read_and_compared_as_they_always_were(reply):
    tagged = Answers()
    assert tagged.read(f"{reply}<ans>{reply}</ans>") == answers_module.parse_answer(f"{reply}<ans>{reply}</ans>")
    assert tagged.same(reply, "a") == answers_module.grade(reply, "a")


def test_a_tag_in_a_thought_or_in_the_next_question_is_no_answer():
    assert Answers().read("<think><ans>1</ans></think><ans>2</ans>\n\nQuestion: 3?\n<ans>3</ans>") == "2"
    assert Answers().read("<think><ans>1</ans>") == ""


UNREAD = {
    "number": [
        "2024-05-01",
        "10:30",
        "\\sqrt{2}",
        "1990\u20131995",
        "12 or 13",
        "3x",
        "5 - 3",
        ">5",
        "2\u03c0",
        "1/0",
        "many",
        "x",
    ],
    "option": ["A or B", "A, B", "both", "A mammal", "AB", "1"],
    "boolean": ["perhaps", "yes or no", "no doubt", "1"],
    "exact": ["", " "],
    "tagged": ["", " "],
}


@pytest.mark.parametrize(("kind", "target"), [(kind, target) for kind, targets in UNREAD.items() for target in targets])
def test_a_target_is_read_whole_or_not_at_all(kind, target):
    assert Answers(kind).read_gold(target) == ""


WHOLE = {
    "number": {
        "0,75": "0.75", "10^6": "1000000", "1.5 x 10^3": "1500", "3 million": "3000000", "2\\frac{1}{2}": "2.5",
        "12,34,567": "1234567", "1.234.567": "1234567", "\\frac12": "0.5", "x = 1/2": "0.5", "$1,080.50": "1080.5",
        "12 cm^2": "12", "\\boxed{5}": "5", "R$ 50,00": "50", "-$40": "-40", "60 km/h": "60", "5 + 3 = 8": "8",
    },
    "option": {"(A)": "A", "b. 12/25/1937": "B", "Option C": "C", "\uff21": "A", "A": "A"},
    "boolean": {"Yes": "true", "FALSE": "false", "no.": "false", "Yes, he is": "true"},
    "exact": {
        "$12": "$12", "don\u2019t": "don't", "1990\u20131995": "1990-1995", "\u22123": "-3", "__init__": "init",
        '"quoted"': "quoted", "\\frac{1}{2}": "1/2", "$x$": "x", "cafe\u0301": "caf\u00e9", "\u200fx\u200f": "x",
        "Dr. Who": "dr. who", "Not guilty": "not guilty", "only child": "only child", "2**3": "2**3",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "target", "form"), [(kind, *pair) for kind, pairs in WHOLE.items() for pair in pairs.items()]
)
def test_a_target_given_to_the_letter_is_right_in_every_form(kind, target, form):
    answers = Answers(kind)
    assert answers.read_gold(target) == form and answers.lost_in(target) == ""


def test_what_cannot_be_told_from_the_sentence_around_it_is_said():
    exact, tagged = Answers("exact"), Answers()
    assert [exact.lost_in(target) for target in ("I went. He stayed.", "one\ntwo")] == ["label", "mark"]
    assert exact.lost_in("</ans>") == tagged.lost_in("</ans>") == "tag" and tagged.lost_in("I went. He stayed.") == ""


AROUND = st.sampled_from(
    ["{}", "We add 3 and 4.\n{}", "Option A? No.\n\n{}\n\nQuestion: What is 1 + 1?\nThe answer is 2."]
)
TARGETS = {
    "number": st.one_of(
        st.integers(-(10**12), 10**12).map(str),
        st.integers(0, 10**9).map("{:,} dollars".format),
        st.decimals(-1000, 1000, places=3).map(str),
        st.fractions(max_denominator=99).map(str),
        st.floats(1e-9, 1e9).map(str),
        st.tuples(st.integers(1, 99), st.integers(1, 9)).map("{0[0]} x 10^{0[1]}".format),
    ),
    "option": st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ").map("({})".format),
    "boolean": st.sampled_from(["yes", "No", "True", "false", "FALSE"]),
    "exact": st.text(st.characters(exclude_characters=".!?=\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1),
}


@given(st.data(), st.sampled_from(list(TARGETS)), AROUND)
def test_every_target_that_is_accepted_is_read_back_wherever_it_stands(data, kind, around):
    target, answers = data.draw(TARGETS[kind]), Answers(kind)
    accepted = bool(answers.read_gold(target)) and not answers.lost_in(target)
    assert accepted or kind == "exact"
    for form in answers_module.FORMATS.values() if accepted else ():
        assert answers.same(answers.read(around.format(form.format(target))), target), form


@given(st.lists(st.from_regex(r"[A-Za-z$0-9(][A-Za-z0-9'$%#&*_^+/,-]{0,9}", fullmatch=True), min_size=1, max_size=5))
def test_words_and_signs_are_accepted_as_exact_targets(words):
    assert Answers("exact").lost_in(" ".join(words)) == ""


@given(st.text())
def test_the_form_of_a_form_is_itself(text):
    form = answers_module.normalise_answer(text)
    assert answers_module.normalise_answer(form) == form
    assert answers_module.normalise_answer(answers_module.cleaned(text)) == form


@given(
    st.text(alphabet="0123456789.,/- $\\{}()=eE\n<ans>*#boxedQ:", max_size=60),
    st.sampled_from(["number", "option", "boolean", "exact"]),
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
