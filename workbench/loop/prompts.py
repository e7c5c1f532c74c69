"""The texts put to teacher and student, and how their replies are read.

Prompts are plain concatenation: a model's text is only ever inserted, never interpreted. The wording is ours;
the parts follow ARTE, arXiv:2406.19227, appendix H (structure in the order description, examples, question, cue).
"""

import re
from collections.abc import Sequence

from workbench.tasks.answers import CUE

ANSWER_FORMAT = "Give the final answer as <ans>answer</ans>."
_QUESTION = re.compile(r"<input>(.*?)</input>\s*<target>(.*?)</target>", re.DOTALL)


def question_prompt(description: str, seeds: Sequence[tuple[str, str]], k: int) -> str:
    """Return the prompt that asks the teacher for `k` new questions after `seeds` of (question, target)."""
    shown = "\n".join(question_reply(question, target) for question, target in seeds)
    wanted = "one more question" if k == 1 else f"{k} more questions"
    return (
        f"Task: {description}\nHere are {len(seeds)} examples.\n{shown}\n"
        f"Write {wanted} of this task in the same form. Leave the context of the examples if you like, not the task."
    )


def question_reply(question: str, target: str) -> str:
    """Return one question in the form the teacher is asked to write it in."""
    return f"<input>{question}</input><target>{target}</target>"


def technique_prompt(description: str, technique: str, question: str) -> str:
    """Return the prompt that asks the teacher for a rationale by one reasoning technique; "" is the plain prompt."""
    plain = naive_prompt(description, question)
    return f"{technique}\n{plain}" if technique else plain


def naive_prompt(description: str, question: str) -> str:
    """Return the plain step-by-step prompt: for DPO, for tailored rationales, and for the student without examples."""
    return f"{_head(description)}{_asked(question)}"


def one_shot_prompt(description: str, question: str, rationale: str, asked: str) -> tuple[str, str]:
    """Return (what all questions share, what is asked) of the prompt with one draft as its demonstration."""
    return f"{_head(description)}{_shown(question, rationale)}", _asked(asked)


def few_shot_prompt(description: str, shots: Sequence[tuple[str, str]], asked: str) -> str:
    """Return the prompt with `shots` of (question, rationale) as demonstrations; none gives the naive prompt."""
    return _head(description) + "".join(_shown(question, rationale) for question, rationale in shots) + _asked(asked)


def _head(description: str) -> str:
    return f"Task: {description} {ANSWER_FORMAT}\n"


def _asked(question: str) -> str:
    return f"Question: {question}\n{CUE}"


def _shown(question: str, rationale: str) -> str:
    return f"{_asked(question)} {rationale.strip()}\n\n"


def parse_questions(reply: str) -> list[tuple[str, str]]:
    """Return every (question, target) in the teacher's reply; an empty list when it kept to no form."""
    found = [(question.strip(), target.strip()) for question, target in _QUESTION.findall(reply)]
    return [(question, target) for question, target in found if question]
