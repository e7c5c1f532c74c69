"""A game for a class: which of four examples does this student answer best with?"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from traitlets import Dict, HasTraits, Int

from workbench import figures
from workbench.notebook.display import is_headless, show
from workbench.runs.seeding import stream

LETTERS = "ABCD"
NEARLY = 0.051  # a guess within one question of twenty of the best one counts
STYLE = (
    "<style>.wbg{font-size:1.15em;line-height:1.45}.wbg .card{white-space:pre-wrap;overflow-wrap:anywhere}"
    ".wbg td,.wbg th{padding:.2em .8em;text-align:left}"
    ".wbg .bar{background:#005a9c;color:#fff;margin:.15em 0;padding:.1em .5em;white-space:nowrap;min-width:4em;"
    "animation:wbgrow 1.5s ease-out}@keyframes wbgrow{from{width:0}}"
    "@media (prefers-reduced-motion:reduce){.wbg .bar{animation:none}}</style>"
)


@dataclass(frozen=True)
class Round:
    """One question explained in four ways, and how many of n questions the student got right after each.

    Attributes:
        examples: (style, explanation, preference score in [0, 1]) in the order they are shown.
    """

    student: str
    task: str
    question: str
    examples: tuple[tuple[str, str, float], ...]
    n: int

    def accepted(self) -> str:
        """Return the letters of the examples that count as right guesses, the best first."""
        scores = sorted(zip(LETTERS, (score for *_, score in self.examples)), key=lambda pair: -pair[1])
        return "".join(letter for letter, score in scores if score > scores[0][1] - NEARLY)

    def results(self) -> list[dict]:
        """Return a row for each example: its letter, style, text, and how many answers were right after it."""
        return [
            {
                "example": letter,
                "style": style,
                "explanation": text,
                "right after it": f"{round(score * self.n)} of {self.n}",
            }
            for letter, (style, text, score) in zip(LETTERS, self.examples)
        ]


def rounds_of(signals: pd.DataFrame, drafts: pd.DataFrame, per_student: int = 2) -> list[Round]:
    """Return rounds from a run: for each student the questions on which one explanation is furthest ahead.

    Only questions with four right explanations take part, one of a task: the way of explaining should decide. That
    they were picked by their scores makes the leads look larger than they are; the game says so.
    """
    scored = signals.merge(drafts[drafts["correct"]], on="draft_id", validate="many_to_one")
    chosen = []
    for student, of_student in scored.groupby("student", sort=False):
        found = []
        for (task, question), own in of_student.groupby(["task", "question"], sort=True):
            if own["technique"].nunique() == len(LETTERS):
                best, second, *_ = sorted(own["value"], reverse=True)
                found.append((second - best, task, question, own))
        tasks: dict[str, Round] = {}
        for _, task, question, own in sorted(found, key=lambda entry: entry[:3]):
            tasks.setdefault(task, _round(student, task, question, own))
        chosen += list(tasks.values())[:per_student]
    return chosen


def _round(student: str, task: str, question: str, own) -> Round:
    rows = own.sort_values("technique")
    # In a fixed order the place would soon give the style away.
    order = stream(0, "guessing", student, question).permutation(len(rows))
    texts = [_neutral(text, style) for text, style in rows[["rationale", "technique"]].itertuples(index=False)]
    examples = list(zip(rows["technique"], texts, rows["value"], strict=True))
    return Round(student, task, question, tuple(examples[i] for i in order), int(rows["n"].iloc[0]))


def _neutral(rationale: str, style: str) -> str:
    """Return a rationale without the name of its style before it and without tags around the answer."""
    rationale = re.sub(rf"^\s*{re.escape(style)}:\s*", "", rationale, flags=re.IGNORECASE)
    return re.sub(r"<ans>(.*?)</ans>", r"So: \1", rationale)


class GuessGame(HasTraits):
    """Guess, round by round, after which example a student answers best; the state is all there is to it.

    Args:
        rounds: What is guessed.

    Example:
        game = GuessGame(rounds_of(signals, drafts))
        game.guess("B")
        game.score()
    """

    position = Int(0, help="the round that is on the table")
    guesses = Dict(help="round -> letter guessed")
    hands = Dict(help="(round, letter) -> hands that went up for it")

    def __init__(self, rounds: Sequence[Round]):
        super().__init__()
        self.rounds = tuple(rounds)

    def __repr__(self) -> str:
        return f"GuessGame: {self.score()}"

    def guess(self, letter: str) -> bool:
        """Take the guess for the present round and say whether it is right; a second guess changes nothing."""
        if len(letter) != 1 or letter not in LETTERS:
            raise ValueError(f"A guess is one of {', '.join(LETTERS)}, got {letter!r}; give one of these.")
        self.guesses = {self.position: letter, **self.guesses}
        return self.guesses[self.position] in self.rounds[self.position].accepted()

    def next(self) -> None:
        """Go on to the next round, from the last one to the first."""
        self.position = (self.position + 1) % len(self.rounds)

    def score(self) -> str:
        """Return how many guesses were right, and how many pure chance would give."""
        n_right = sum(letter in self.rounds[i].accepted() for i, letter in self.guesses.items())
        by_chance = sum(len(self.rounds[i].accepted()) for i in self.guesses) / len(LETTERS)
        return f"{n_right} of {len(self.guesses)} guesses right; by chance about {by_chance:.1f}"

    def answer(self) -> str:
        """Return in words how the present round came out."""
        now = self.rounds[self.position]
        best, *others = now.accepted()
        also = f" (so close that {' and '.join(others)} counts too)" if others else ""
        row = now.results()[LETTERS.index(best)]
        return f"{now.student} did best after {best}, {row['style']}: {row['right after it']} right{also}."

    def table(self) -> list[dict]:
        """Return all rounds as rows, with the answers."""
        return [
            {"round": place, "student": now.student, "question": now.question, **row}
            for place, now in enumerate(self.rounds, 1)
            for row in now.results()
        ]

    def show(self) -> None:
        """Display the game where somebody is watching, and all rounds with their answers elsewhere."""
        if is_headless():
            show(self.table(), "All rounds with their answers; in Lab or in the app this is a game")
            return
        from IPython.display import display

        display(self.view())

    def view(self):
        """Return the game as widgets tied to the state."""
        from ipywidgets import HTML, BoundedIntText, Button, GridBox, HBox, Layout, VBox

        heading, question, said, score = (HTML() for _ in range(4))
        cards, picks, votes = {letter: HTML() for letter in LETTERS}, {}, {}
        for letter in LETTERS:
            votes[letter] = BoundedIntText(0, 0, 999, tooltip=f"Hands up for {letter}", layout=Layout(width="5em"))
            count = lambda up, letter=letter: self.hands.update({(self.position, letter): up["new"]})  # noqa: E731
            votes[letter].observe(count, "value")
            tip = f"Guess that example {letter} helps most"
            picks[letter] = Button(description=f"Example {letter}", tooltip=tip, layout=Layout(width="8em"))
            picks[letter].on_click(lambda _, letter=letter: self.guess(letter))
        onward = Button(description="Next round", tooltip="Go to the next round")
        onward.on_click(lambda _: self.next())

        def redraw(_=None) -> None:
            now, guessed = self.rounds[self.position], self.guesses.get(self.position)
            place = f"Round {self.position + 1} of {len(self.rounds)}"
            heading.value = (
                f'{STYLE}<div class="wbg" aria-live="polite"><strong>{place}.</strong> After which example does '
                f"<strong>{html.escape(now.student)}</strong> answer best?</div>"
            )
            question.value = _card(now.question)
            for letter, (_, text, _) in zip(LETTERS, now.examples):
                cards[letter].value, picks[letter].disabled = _card(text), guessed is not None
                votes[letter].value = self.hands.get((self.position, letter), 0)
            said.value = self._outcome(now, guessed) if guessed else ""
            score.value = f'<div class="wbg" role="status">{html.escape(self.score())}</div>' if self.guesses else ""

        self.observe(redraw, ["position", "guesses"])
        redraw()
        layout = Layout(grid_template_columns="9em 1fr 6em", grid_gap="0.6em", align_items="center")
        both = [widget for letter in LETTERS for widget in (picks[letter], cards[letter], votes[letter])]
        return VBox([heading, question, GridBox(both, layout=layout), said, HBox([onward, score])])

    def _outcome(self, now: Round, guessed: str) -> str:
        head = "Right." if guessed in now.accepted() else f"Not {guessed}."
        hands = [self.hands.get((self.position, letter), 0) for letter in LETTERS]
        rows = pd.DataFrame(now.results()).drop(columns="explanation")
        table = figures.table(rows.assign(hands=hands) if any(hands) else rows)
        bars = "".join(
            f'<div class="bar" style="width:{60 * score:.0f}%">{letter} {score:.0%}</div>'
            for letter, (*_, score) in zip(LETTERS, now.examples)
        )
        answer = html.escape(self.answer())
        return f'<div class="wbg" role="status"><strong>{head}</strong> {answer}{bars}{table}</div>'


def _card(text: str) -> str:
    """Return a text, perhaps a model's, as it stands."""
    return f'<div class="wbg"><div class="card">{html.escape(text)}</div></div>'
