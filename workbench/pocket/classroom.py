"""Who is in the pocket classroom: the tasks as files, the students and how each was raised."""

from dataclasses import dataclass

from workbench.pocket.problems import TEST_SIZES
from workbench.pocket.rationales import STYLES

DESCRIPTIONS = {
    "object_counting": "Count the things of the kind that is asked for.",
    "navigate": "Follow the moves and say whether they lead back to the start.",
    "web_of_lies": "Find out whether the last person tells the truth.",
    "boolean_expressions": "Work out the value of the boolean expression.",
}
TECHNIQUES = {
    "tally": "You are a careful clerk. After every step note in digits where you stand.",
    "meter": "You are a careful clerk. Before every step note in digits where you stand.",
    "story": "Tell it like a story. After every step say in words where you are.",
    "diary": "Tell it like a story. Before every step say in words where you are.",
}
RAISED_SIZES = {  # the largest question of each task a student was raised on
    "object_counting": 6,
    "navigate": 5,
    "web_of_lies": 3,
    "boolean_expressions": 4,
}


@dataclass(frozen=True)
class Dose:
    """How strongly a preference is planted, fixed before any run.

    Attributes:
        native_share: Share of the student's texts that are in its native style; the others share the rest evenly.
        foreign_scale: Largest question in a foreign style, as a part of the largest in the native one.
    """

    native_share: float
    foreign_scale: float


DOSES = {"none": Dose(0.25, 1.0), "weak": Dose(0.4, 1.0), "strong": Dose(0.7, 0.5)}


@dataclass(frozen=True)
class Student:
    """A pocket student: its native style ("" for none) and the dose."""

    native: str
    dose: str

    def share(self, style: str) -> float:
        """Return the share of the student's texts in the style."""
        dose = DOSES[self.dose]
        return dose.native_share if style == self.native else (1 - dose.native_share) / (len(STYLES) - 1)

    def sizes(self, task: str, style: str) -> tuple[int, int]:
        """Return the smallest and largest question of the task that the student met in the style."""
        scale = 1.0 if style == self.native else DOSES[self.dose].foreign_scale
        return 1, max(1, round(RAISED_SIZES[task] * scale))


STUDENTS = {
    "tally-strong": Student("tally", "strong"),
    "story-strong": Student("story", "strong"),
    "diary-strong": Student("diary", "strong"),
    "tally-weak": Student("tally", "weak"),
    "no-preference": Student("", "none"),
}
TASKS = tuple(TEST_SIZES)
