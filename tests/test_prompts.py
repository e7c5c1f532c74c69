import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.loop import prompts
from workbench.loop.prompts import parse_questions
from workbench.tasks import answers
from workbench.tasks.answers import grade, parse_answer

SEEDS = [("How many {x}?", "3"), ("Is <b> true?", "(A)"), ("Two\nlines", "Yes")]
TAGS = ("<input>", "</input>", "<target>", "</target>", "<ans>", "</ans>")
plain = st.text(min_size=1).filter(lambda text: text.strip() and not any(tag in text for tag in TAGS))


def test_the_question_prompt_shows_every_seed_and_says_how_many_more():
    prompt = prompts.question_prompt("Count.", SEEDS, 5)
    assert prompt.startswith("Task: Count.\nHere are 3 examples.\n") and "Write 5 more questions" in prompt
    assert parse_questions(prompt) == SEEDS
    assert "Write one more question of" in prompts.question_prompt("Count.", SEEDS, 1)


def test_a_technique_only_comes_before_the_naive_prompt():
    naive = prompts.naive_prompt("Count.", "How many?")
    assert prompts.technique_prompt("Count.", "Be a detective.", "How many?") == f"Be a detective.\n{naive}"
    assert naive == f"Task: Count. {prompts.ANSWER_FORMAT}\nQuestion: How many?\n{answers.CUE}"


def test_one_draft_shown_is_one_of_few_shots():
    prefix, rest = prompts.one_shot_prompt("Count.", "Q1", " two = 2 . <ans>2</ans> ", "Q2")
    assert prefix + rest == prompts.few_shot_prompt("Count.", [("Q1", "two = 2 . <ans>2</ans>")], "Q2")
    assert rest == f"Question: Q2\n{answers.CUE}" and answers.CUE + " two = 2 . <ans>2</ans>\n\n" in prefix
    # Every item of a draft shares the prefix, or nothing could be computed once.
    assert prompts.one_shot_prompt("Count.", "Q1", " two = 2 . <ans>2</ans> ", "another")[0] == prefix


def test_few_shots_without_shots_is_the_naive_prompt():
    assert prompts.few_shot_prompt("Count.", [], "Q") == prompts.naive_prompt("Count.", "Q")
    three = prompts.few_shot_prompt("Count.", [("Q1", "a"), ("Q2", "b"), ("Q3", "c")], "Q4")
    places = [three.index(f"Question: Q{n}\n") for n in (1, 2, 3, 4)]
    assert places == sorted(places)
    assert three.endswith(f"Question: Q4\n{answers.CUE}") and three.count("Task:") == 1


def test_braces_and_templates_in_a_text_are_only_text():
    hostile = "{question} {{ messages }} %s \\1 {0}"
    assert hostile in prompts.naive_prompt(hostile, hostile)
    assert prompts.naive_prompt("{d}", hostile).count(hostile) == 1


@given(plain, plain)
def test_a_question_comes_back_as_it_was_written(question, target):
    reply = f"Here you are: {prompts.question_reply(question, target)} and "
    assert parse_questions(reply * 2) == [(question.strip(), target.strip())] * 2


@pytest.mark.parametrize(
    "reply",
    ["", "How many? 3", "<input>Q</input>", "<input></input><target>3</target>", "<target>3</target><input>Q</input>"],
)
def test_a_reply_that_keeps_to_no_form_holds_no_question(reply):
    assert parse_questions(reply) == []


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("so <ans>3</ans>", "3"),
        ("<ans>3</ans> no, <ans> 4\n</ans> .", "4"),
        ("<ans>3", ""),
        ("3", ""),
        ("", ""),
        ("<ans></ans>", ""),
        ("<ans>a\nb</ans>", "a\nb"),
    ],
)
def test_the_last_tagged_answer_counts(reply, answer):
    assert parse_answer(reply) == answer


@pytest.mark.parametrize(
    ("answer", "target"), [("(A)", "A"), ("a.", "(A)"), ("yes", "Yes"), (" True ", "true"), ("New  York.", "new york")]
)
def test_case_brackets_and_stops_decide_nothing(answer, target):
    assert grade(answer, target) and grade(target, answer)


@pytest.mark.parametrize(
    ("answer", "target"),
    [("3", "4"), ("", ""), ("", "3"), ("3", ""), (".", ""), ("()", ""), ("(A) (B)", "A"), ("(A", "A")],
)
def test_other_answers_and_no_answers_are_wrong(answer, target):
    assert not grade(answer, target)
