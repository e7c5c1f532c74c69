"""The texts put to teacher and student, and how their replies are read.

Prompts are plain concatenation: a model's text is only ever inserted, never interpreted. The wording is ours;
the parts follow ARTE, arXiv:2406.19227, appendix H (structure in the order description, examples, question, cue).
"""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from workbench.runs.recipe_parts import TURN, Prompts
from workbench.tasks.task import Task

ANSWER_FORMAT = "Give the final answer as <ans>answer</ans>."
# The form of an answer: how it is asked for before the question, an answer in it, and how it is found in a reply.
FORMS = {
    "tag": (ANSWER_FORMAT, "<ans>{}</ans>", r"<ans>.+?</ans>"),
    "said": ('End with "The answer is" and the answer.', "The answer is {}.", r"(?i)\banswer is\W"),
    "boxed": ("Put the final answer in \\boxed{}.", "\\boxed{{{}}}", r"\\boxed\s*\{.+?\}"),
    "whole": ("", "{}", r"\S"),
    "line": ("Write the final answer alone on the last line.", "\n{}", r"\n[^\n]{1,40}\s*\Z"),
}
OPENED, CLOSED = "<input>", "</target>"
_QUESTION = re.compile(r"<input>(.*?)</input>\s*<target>(.*?)</target>", re.DOTALL)
AS_RAISED = Prompts()


def question_prompt(description: str, seeds: Sequence[tuple[str, str]], k: int, asked: Prompts = AS_RAISED) -> str:
    """Return the prompt that asks the teacher for `k` new questions after `seeds` of (question, target).

    Where a list is gone on with, it ends in the tag that opens the next one. Of open questions no target is shown or
    asked for: it may be a page, and nobody needs it.
    """
    whole = asked.answer == "whole"
    shown = _in_one_turn("\n".join(question_reply(question, "" if whole else target) for question, target in seeds))
    if asked.questions == "continued":
        return f"{_opening(asked)}Task: {_in_one_turn(description)}\n{shown}\n{OPENED}"
    wanted = "one more question" if k == 1 else f"{k} more questions"
    return (
        f"{_opening(asked)}Task: {_in_one_turn(description)}\nHere are {len(seeds)} examples.\n{shown}\n"
        f"Write {wanted} of this task in the same form. Leave the context of the examples if you like, not the task."
    )


def question_reply(question: str, target: str) -> str:
    """Return one question in the form the teacher is asked to write it in."""
    return f"<input>{question}</input><target>{target}</target>"


def technique_prompt(description: str, technique: str, question: str, asked: Prompts = AS_RAISED) -> str:
    """Return the prompt that asks the teacher for a rationale by one reasoning technique; "" is the plain prompt."""
    plain = naive_prompt(description, question, asked)
    return f"{technique}\n{plain}" if technique else plain


def naive_prompt(description: str, question: str, asked: Prompts = AS_RAISED) -> str:
    """Return the plain step-by-step prompt: for DPO, for tailored rationales, and for the student without examples."""
    return f"{_head(description, asked)}{_asked(question, asked)}"


def naive_prompts(tasks: Mapping[str, Task], rows: pd.DataFrame) -> list[str]:
    """Return the plain prompt of every row's question, as its task asks it."""
    named = zip(rows["task"], rows["question"], strict=True)
    return [naive_prompt(tasks[task].description, question, tasks[task].prompts) for task, question in named]


def one_shot_prompt(
    description: str, shown: str, rationale: str, question: str, asked: Prompts = AS_RAISED
) -> tuple[str, str]:
    """Return (what all questions share, what is asked) of the prompt with one draft as its demonstration."""
    return f"{_head(description, asked)}{_shown(description, shown, rationale, asked)}", _asked(question, asked)


def few_shot_prompt(
    description: str, shots: Sequence[tuple[str, str]], question: str, asked: Prompts = AS_RAISED
) -> str:
    """Return the prompt with `shots` of (question, rationale) as demonstrations; none gives the naive prompt."""
    shown = "".join(_shown(description, *shot, asked) for shot in shots)
    return f"{_head(description, asked)}{shown}{_asked(question, asked)}"


def in_form(reply: str, asked: Prompts = AS_RAISED) -> bool:
    """Say whether a reply holds an answer in the form that was asked for."""
    return re.search(FORMS[asked.answer][2], reply.rstrip()) is not None


def answer_in_form(answer: str, asked: Prompts = AS_RAISED) -> str:
    """Return a bare answer in the form that is asked for."""
    return FORMS[asked.answer][1].format(answer)


def went_on(prompt: str, reply: str) -> str:
    """Return a reply with the tag that its prompt has opened, if it has."""
    return OPENED + reply if prompt.endswith(OPENED) else reply


def _opening(asked: Prompts) -> str:
    return f"{asked.opening}\n" if asked.opening else ""


def _head(description: str, asked: Prompts) -> str:
    return f"{_opening(asked)}Task: {' '.join(filter(None, (_in_one_turn(description), FORMS[asked.answer][0])))}\n"


def _asked(question: str, asked: Prompts) -> str:
    return f"Question: {_in_one_turn(question)}\n{asked.cue}" if asked.cue else f"Question: {_in_one_turn(question)}"


def _shown(description: str, question: str, rationale: str, asked: Prompts) -> str:
    before, rationale = _asked(question, asked), _in_one_turn(rationale.strip())
    if asked.turns:
        return f"{before}{TURN}{rationale}{TURN}{_head(description, asked)}"
    return f"{before} {rationale}\n\n"


def _in_one_turn(text: str) -> str:
    """Return a text, of a model perhaps, that cannot begin another turn."""
    return text.replace(TURN, " ")


def parse_questions(reply: str) -> list[tuple[str, str]]:
    """Return every (question, target) in the teacher's reply; an empty list when it kept to no form."""
    found = [(question.strip(), target.strip()) for question, target in _QUESTION.findall(reply)]
    return [(question, target) for question, target in found if question]
