"""The result card: was the preference found, did the teacher learn it, does the student answer better?

A rung is one word, one number with its interval and one sentence. The same card stands in notebook 05, on the terminal,
in the report and in the cards of data sets and models.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workbench.figures.verdict import block_of
from workbench.loop.pairs import DECIDED
from workbench.methods import ALL
from workbench.methods.base import Evidence
from workbench.report.summary import AFTER, BEFORE, CONTROL, summarise
from workbench.runs.errors import DataError
from workbench.runs.run import Run
from workbench.studies import pair_reliability
from workbench.verdict.in_words import (
    NO_COMPARISON,
    counted_in,
    decision_in_words,
    percent,
    shots_in_words,
    spell,
    spoken,
    what_would_settle,
)
from workbench.verdict.intervals import (
    BETTER,
    SAME,
    UNDECIDED,
    WORSE,
    auc,
    clustered_mean,
    difference_within_tasks,
    wilson,
)
from workbench.verdict.verdict import verdict_of

YES, LITTLE, NO, UNKNOWN = "yes", "a little", "not seen", "unknown"
FOUND, LEARNED = "Did we find what the student prefers?", "Did the teacher learn it?"
ANSWERS = "Does the student answer better?"
NO_DIFFERENCE = "no difference"  # larger than the margin, which the rung of the verdict says
N_COMPARED, N_SPLITS = 5, 20
WIDTH, INDENT = 100, " " * 5


def templates(**settings) -> Environment:
    """Return what renders the templates of this room, where a name that is not given is an error."""
    tidy = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(Path(__file__).parent), **tidy, **settings)


PAGES = templates(autoescape=True)
PAGES.filters["spoken"] = spoken


class Rung(NamedTuple):
    """One question of the card: what it asks, the answer in a word, its number ("" if there is none), a sentence."""

    asks: str
    word: str
    number: str
    says: str


class StudentCard(NamedTuple):
    """The card of one student.

    Attributes:
        student: Its name.
        rungs: Three, the verdict last.
        compared: At most five comparisons, the primary one first: what, difference with its interval, decision.
        settle: What would settle an undecided verdict; "" where it is settled.
    """

    student: str
    rungs: list[Rung]
    compared: list[tuple[str, str, str]]
    settle: str


class ResultCard(list[StudentCard]):
    """The cards of all students of a run: printed as for a terminal, shown by a notebook as HTML."""

    def __str__(self) -> str:
        return self.text(WIDTH)

    def text(self, width: int) -> str:
        """Return the cards as text of so many columns; where numbers have no room at the side they stand below."""
        lines = []
        for card in self:
            said = [f"{rung.says} {card.settle}" if rung is card.rungs[-1] else rung.says for rung in card.rungs]
            heads = [(f"  {n}  {rung.asks}", rung.word.upper(), rung.number) for n, rung in enumerate(card.rungs, 1)]
            lines += [card.student, ""]
            for head, sentence in zip(_beside(heads, width), said):
                lines += [*head, *textwrap.wrap(sentence, width, initial_indent=INDENT, subsequent_indent=INDENT)]
            rows = [(INDENT + what, number, decision) for what, number, decision in card.compared]
            lines += ["", *(line for row in _beside(rows, width) for line in row), ""]
        return "\n".join(lines).rstrip()

    def __repr__(self) -> str:
        return "; ".join(f"{card.student}: {', '.join(rung.word for rung in card.rungs)}" for card in self)

    def _repr_html_(self) -> str:
        return PAGES.get_template("card.html.j2").render(cards=self)


def _beside(rows: list[tuple[str, str, str]], width: int) -> list[list[str]]:
    """Return rows as lines, in columns that fit all of them; where these are too wide, the first one alone."""
    wide = [max((len(row[at]) for row in rows), default=0) + 2 for at in range(2)]
    lines = [f"{first:<{wide[0]}}{second:<{wide[1]}}{third}".rstrip() for first, second, third in rows]
    if max(map(len, lines), default=0) <= width:
        return [[line] for line in lines]
    below = (f"{second:<{wide[1]}}{third}" for _, second, third in rows)
    wraps = {"initial_indent": INDENT + "  ", "subsequent_indent": INDENT + "  "}
    return [[row[0], *textwrap.wrap(more, width, **wraps)] for row, more in zip(rows, below)]


def result_card(run: Run) -> ResultCard:
    """Return the card of a finished run.

    Where a preference was planted, it is found when the interval of the probe's AUC lies above 0.5, and learned when
    the native share of what the aligned teacher writes lies above those of the unaligned teacher and of the control,
    interval against interval (a little, if it is less than half). Elsewhere new questions must confirm the pairs. A
    method that aligns no teacher brings evidence of its own; without any, the verdict stands alone.

    Raises:
        RunError: If the run has no verdict yet.
    """
    verdict, evidence, cards = verdict_of(run), ALL[run.recipe.method].evidence, ResultCard()
    asked = not evidence and run.has("signals")
    rows = {row["student"]: row for row in summarise(run).to_dict("records")} if asked else {}
    for student in run.recipe.models.students:
        block = block_of(verdict, student)
        rungs = [_rung_of(one) for one in evidence(run, student)] if evidence else []
        rungs += [rung(run, rows[student]) for rung in (_found, _learned) if rows]
        main, rest = block["comparisons"][0], block["comparisons"][1:]
        first = sorted(rest, key=lambda row: row["shots"] != main["shots"])[: N_COMPARED - 1]
        compared = [comparison_in_words(row, main["shots"]) for row in (main, *first)]
        settle = what_would_settle(main["more_needed"]) if main["decision"] == UNDECIDED else ""
        void = [said for said in verdict["warnings"] if said.startswith(NO_COMPARISON) and f" of {student} " in said]
        answers = _answers(block, bool(evidence))
        answers = answers._replace(says=" ".join([*void, answers.says]))
        cards.append(StudentCard(student, [*rungs, answers], compared, settle))
    return cards


def _rung_of(one: Evidence) -> Rung:
    if len(one.values) and (one.positive is None or one.positive.nunique() == 2):
        given = (one.values, one.clusters) if one.positive is None else (one.values, one.positive, one.clusters)
        estimate = (clustered_mean if one.positive is None else auc)(*given)
        return Rung(
            one.asks, YES if estimate[1] > one.chance else NO, f"{spell(*estimate, one.unit)}{one.of}", one.says
        )
    return Rung(one.asks, UNKNOWN, "", f"There are no two kinds to tell apart. {one.says}")


def _found(run: Run, row: Mapping) -> Rung:
    if not pd.isna(row.get("auc", float("nan"))):
        number = spell(row["auc"], row["auc_low"], row["auc_high"], "")
        says = f"The chance that a {row['native']} draft scores above another of its task; a coin has 0.5."
        return Rung(FOUND, YES if row["auc_low"] > 0.5 else NO, f"AUC {number}", says)
    pairs = run.read("pairs").query("student == @row['student']")
    says = "There is no answer key. "
    if pairs["p_chosen"].notna().any():
        decided = (pairs["p_chosen"] >= DECIDED).mean()
        says += f"Of {len(pairs)} pairs {percent(decided)} are confident (probability {DECIDED:g} or more)."
    confirmed = _confirmed(run, row["student"])
    if confirmed is None:
        return Rung(FOUND, UNKNOWN, f"{len(pairs)} pairs", says)
    number = f"{spell(*confirmed)} of pairs are confirmed by new questions"
    return Rung(FOUND, YES if confirmed[1] > 0.5 else NO, number, says)


def _confirmed(run: Run, student: str) -> tuple[float, float, float] | None:
    """Return the share of rationale pairs, formed by half of the questions, that the other half confirms."""
    if not run.has("probes"):
        return None
    given = run.read("probes").query("student == @student"), run.read("drafts"), run.read("preference_set")
    try:
        table = pair_reliability.split_half_reliability(*given, n_splits=N_SPLITS)
    except DataError:  # too few questions to halve
        return None
    own = table[(table["kind"] == "rationale") & (table["rule"] == pair_reliability.PAPER)]
    row = own[own["questions"] == pair_reliability.ALL].iloc[0]
    return (row["agreement"], row["low"], row["high"]) if row["pairs"] else None


def _learned(run: Run, row: Mapping) -> Rung:
    written = run.read("examples").query("kept and gold != '' and student in [@row['student'], '']")
    known = written[written["arm"].isin([BEFORE, AFTER])]
    given = known["correct"], known["arm"] == AFTER, known["task"], known["question_id"]
    cost = spell(*difference_within_tasks(*given), "points")
    says = f"Right answers {cost} against before, of those that can be checked." if known["arm"].nunique() == 2 else ""
    shares = {arm: (row.get(f"native_{arm}"), row.get(f"n_{arm}")) for arm in (BEFORE, CONTROL, AFTER)}
    if any(share is None or pd.isna(share) for share, _ in shares.values()):
        return Rung(LEARNED, UNKNOWN, "", f"There is no answer key; notebook 03 shows how its texts changed. {says}")
    low = wilson(*shares[AFTER])[0]
    moved_by = low > max(wilson(*shares[arm])[1] for arm in (BEFORE, CONTROL))
    word = (YES if shares[AFTER][0] >= 0.5 else LITTLE) if moved_by else NO
    before, control = (percent(shares[arm][0]) for arm in (BEFORE, CONTROL))
    number = f"{spell(shares[AFTER][0], *wilson(*shares[AFTER]))} {row['native']}"
    return Rung(LEARNED, word, number, f"{before} before, {control} in the control. {says}".strip())


def _answers(block: Mapping, wins: bool) -> Rung:
    """Return the verdict as a rung, with the win rate where that is asked for and there."""
    row, margin = block["comparisons"][0], 100 * block["primary"]["margin"]
    right = " against ".join(f"{100 * block['arms'][row[side]]['accuracy']:.0f}" for side in "ab")
    says = f"{spoken(row['a']).capitalize()} minus {spoken(row['b'])}: {right} % "
    says += f"{counted_in(block).replace('answers', '').strip()}; "
    says += f"{row['n_items']} items, {row['n_seeds']} seeds, {shots_in_words(row['shots'])}."
    if row["decision"] in (BETTER, WORSE) and 100 * abs(row["difference"]) < margin:
        says += f" Less than the {margin:g} points that count."
    if row["decision"] == SAME:
        says += f" None larger than {margin:g} points."
    if wins and "win_rate" in row:
        says += f" Win rate {spell(row['win_rate'], row['win_low'], row['win_high'])}."
    word = row["decision"].replace(SAME, NO_DIFFERENCE)
    return Rung(ANSWERS, word, spell(row["difference"], row["low"], row["high"], "points"), says)


def comparison_in_words(row: Mapping, shots: int) -> tuple[str, str, str]:
    """Return a comparison in words: what, difference with its interval, decision; shots where they are others."""
    what = f"{spoken(row['a'])} - {spoken(row['b'])}" + f", {row['shots']} shots" * (row["shots"] != shots)
    decision = decision_in_words(row).replace(SAME, NO_DIFFERENCE)
    return what, spell(row["difference"], row["low"], row["high"], "points"), decision
