"""A game for a class: which of four examples does this student answer best with?"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from traitlets import Dict, HasTraits, Int

from workbench.notebook.display import is_headless, show
from workbench.runs.seeding import stream

LETTERS = "ABCD"
NAMES = ("Ana", "Ben", "Chi", "Dov", "Eva", "Finn")
NEARLY = 0.051  # a guess within one question of twenty of the best one counts
STYLE = (
    "<style>.wbg{font-size:1.3em;line-height:1.45}.wbg blockquote{margin:.3em 0;font-weight:600}"
    ".wbg .card{white-space:pre-wrap;overflow-wrap:anywhere;padding:.6em 1em}"
    ".wbg .card{border:3px solid var(--jp-border-color1,#bdbdbd);border-radius:8px}.wbg p{margin:.5em 0 .2em}"
    ".wbg .card.best{border:3px solid #009e73}.wbg .card.guessed{border:3px dashed #d55e00}"
    ".wbg .bar{height:.7em;border:1px solid currentColor}.wbg .bar div{height:100%;background:#0072b2}"
    "@media(prefers-reduced-motion:no-preference){.wbg .bar div{animation:wbg 1.5s}}"
    "@keyframes wbg{from{width:0}}</style>"
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
    examples = list(rows[["technique", "rationale", "value"]].itertuples(index=False, name=None))
    return Round(student, task, question, tuple(examples[i] for i in order), int(rows["n"].iloc[0]))


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

    def called(self, student: str) -> str:
        """Return the name by which the game speaks of a student, so that it does not tell what the student likes."""
        place = list(dict.fromkeys(now.student for now in self.rounds)).index(student)
        return NAMES[place] if place < len(NAMES) else f"Student {place + 1}"

    def answer(self) -> str:
        """Return in words how the present round came out, and after the last one who the students are."""
        now = self.rounds[self.position]
        best, *others = now.accepted()
        also = f" (so close that {' and '.join(others)} counts too)" if others else ""
        row = now.results()[LETTERS.index(best)]
        said = f"{self.called(now.student)} did best after {best}, {row['style']}: {row['right after it']} right{also}."
        if len(self.guesses) == len(self.rounds):
            who = dict.fromkeys(now.student for now in self.rounds)
            said += f" In the run, {', '.join(f'{self.called(name)} is {name}' for name in who)}."
        return said

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
        """Return the game as widgets tied to the state: a card for each example, on which hands can be counted."""
        from ipywidgets import HTML, BoundedIntText, Button, GridBox, HBox, Layout, VBox

        heading, said, score = (HTML() for _ in range(3))
        cards, picks, hands = ({} for _ in range(3))
        for letter in LETTERS:
            tip = f"Guess that example {letter} helps most"
            cards[letter] = HTML()
            picks[letter] = Button(description=f"Example {letter}", tooltip=tip, layout=Layout(width="8em"))
            picks[letter].on_click(lambda _, letter=letter: self.guess(letter))
            hands[letter] = BoundedIntText(0, 0, 99, description=f"hands for {letter}", layout=Layout(width="11em"))
        onward = Button(description="Next round", tooltip="Go to the next round")
        onward.on_click(lambda _: self.next())

        def redraw(change=None) -> None:
            now, guessed = self.rounds[self.position], self.guesses.get(self.position)
            place, name = f"Round {self.position + 1} of {len(self.rounds)}", html.escape(self.called(now.student))
            heading.value = (
                f'{STYLE}<div class="wbg" aria-live="polite"><strong>{place}.</strong> After which example does '
                f"<strong>{name}</strong> answer best?<blockquote>{html.escape(now.question)}</blockquote></div>"
            )
            for letter, example in zip(LETTERS, now.examples):
                cards[letter].value, picks[letter].disabled = _card(now, letter, guessed, *example), guessed is not None
                if change is not None and change["name"] == "position":
                    hands[letter].value = 0
            head = "Right." if guessed and guessed in now.accepted() else f"Not {guessed}."
            answer = f"<strong>{head}</strong> {html.escape(self.answer())}" if guessed else ""
            said.value = f'<div class="wbg" role="status">{answer}</div>' if guessed else ""
            score.value = f'<div class="wbg" role="status">{html.escape(self.score())}</div>' if self.guesses else ""

        self.observe(redraw, ["position", "guesses"])
        redraw()
        both = [VBox([cards[letter], HBox([picks[letter], hands[letter]])]) for letter in LETTERS]
        layout = Layout(grid_template_columns="repeat(auto-fit, minmax(20em, 1fr))", grid_gap="0.8em")
        return VBox([heading, GridBox(both, layout=layout), said, HBox([onward, score])])


def plain(style: str, text: str) -> str:
    """Return an explanation without what gives its style away at first sight: its name in front, and tags.

    Example:
        >>> plain("tally", " Tally: two plums 2, a pear 3. <ans>3</ans>")
        'two plums 2, a pear 3. 3'
    """
    return re.sub(r"</?\w+>", "", re.sub(rf"^\s*{re.escape(style)}\s*:", "", text, flags=re.IGNORECASE)).strip()


def _card(now: Round, letter: str, guessed: str | None, style: str, text: str, score: float) -> str:
    """Return an example, perhaps a model's text; once guessed, with its style and how many were right after it."""
    kind, told = "", ""
    if guessed:
        kind = " best" if letter in now.accepted() else " guessed" if letter == guessed else ""
        mark = "✓ " if kind == " best" else "✗ " if kind else ""
        bar = f'<div class="bar"><div style="width:{100 * score:.0f}%"></div></div>'
        told = f"<p><strong>{mark}{html.escape(style)}</strong>, {round(score * now.n)} of {now.n} right</p>{bar}"
    shown = f"<b>{letter}</b> {html.escape(plain(style, text))}{told}"
    return f'<div class="wbg"><div class="card{kind}">{shown}</div></div>'
