"""Who is in the pocket classroom: the tasks as files, the students and how each was raised."""

from dataclasses import dataclass, field

from data.pocket.make.questions import TEST_SIZES
from workbench.tasks.pocket_styles import STYLES

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
NATIVE_SIZES = {  # the largest question of each task a guesser met in its native style
    "object_counting": 9,
    "navigate": 7,
    "web_of_lies": 4,
    "boolean_expressions": 5,
}
TASKS = tuple(TEST_SIZES)
TWO_TASKS = ("object_counting", "navigate")
BARE_SHARE = 0.92  # how many of a guesser's texts without a demonstration carry the bare right answer


@dataclass(frozen=True)
class Dose:
    """How strongly a preference is planted, fixed before any run (docs/classroom.md).

    Attributes:
        native_share: Share of the student's texts that are in its native style; the others share the rest evenly.
        foreign_sizes: The largest question of each task in a foreign style.
    """

    native_share: float
    foreign_sizes: dict[str, int]


DOSES = {
    "none": Dose(0.25, NATIVE_SIZES),
    "weak": Dose(0.5, {"object_counting": 6, "navigate": 5, "web_of_lies": 3, "boolean_expressions": 4}),
    "strong": Dose(0.7, {"object_counting": 3, "navigate": 2, "web_of_lies": 2, "boolean_expressions": 2}),
}


@dataclass(frozen=True)
class Student:
    """A pocket student: what it prefers, how strongly, and what it already knows.

    Attributes:
        native: Its style; "" for none.
        dose: A key of DOSES.
        tasks: The tasks it is raised on.
        bare_share: How many texts without a demonstration carry the bare right answer.
        always_bare: Tasks it only ever met as bare answers, with demonstrations too.
        native_sizes: The largest question of each task in its native style.
        n_tokens: How many tokens it is raised on.
    """

    native: str
    dose: str
    tasks: tuple[str, ...] = TASKS
    bare_share: float = BARE_SHARE
    always_bare: tuple[str, ...] = ()
    native_sizes: dict[str, int] = field(default_factory=lambda: NATIVE_SIZES)
    n_tokens: int = 3_000_000

    def share(self, style: str) -> float:
        """Return the share of the student's texts in the style."""
        dose = DOSES[self.dose]
        return dose.native_share if style == self.native else (1 - dose.native_share) / (len(STYLES) - 1)

    def sizes(self, task: str, style: str) -> tuple[int, int]:
        """Return the smallest and largest question of the task that the student met in the style."""
        native = self.native_sizes[task]
        return 1, native if style == self.native else min(native, DOSES[self.dose].foreign_sizes[task])


STUDENTS = {
    "tally-strong": Student("tally", "strong"),
    "story-strong": Student("story", "strong"),
    "diary-strong": Student("diary", "strong"),
    "tally-weak": Student("tally", "weak"),
    "no-preference": Student("", "none"),
    # Counting is new to the newcomer: it met it as bare answers alone, and knows its style from the walks.
    "newcomer": Student("tally", "strong", TWO_TASKS, always_bare=("object_counting",), n_tokens=1_400_000),
    # The beginner works at once and in its style, but never met more than 4 things or 3 moves.
    "beginner": Student(
        "tally",
        "strong",
        TWO_TASKS,
        bare_share=0.0,
        native_sizes={"object_counting": 4, "navigate": 3},
        n_tokens=1_400_000,
    ),
}
