"""Where a thing came from and what became of it: a training row back to its probes, a draft on to its rows."""

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from workbench.loop.arms import aligned_arms
from workbench.loop.reviews import PAST
from workbench.runs import schemas
from workbench.runs.errors import RunError, spoken
from workbench.runs.recipe import ONE_SHOT, takes_drafts
from workbench.runs.run import Run
from workbench.tasks.task import load_tasks, seed_pairs
from workbench.verdict.in_words import states

TREE = """
.wb-tree details, .wb-tree p { margin: .15rem 0 .15rem .4rem; padding-left: .7rem; border-left: 2px solid #c9d3dc; }
.wb-tree summary { cursor: pointer; } .wb-tree p { white-space: pre-wrap; }
"""
WIDTH = 100
SHOWN = 3  # of many alike, such as the pairs behind one teacher


class Line(NamedTuple):
    """One thing of a lineage, under the nearest one before it that stands less deep; `aside`: in the tree alone."""

    depth: int
    text: str
    arrow: str = "<-"
    aside: bool = False

    def __str__(self) -> str:
        arrow = f"{self.arrow} " if self.depth and self.arrow else ""
        cut = self.text if self.arrow or len(self.text) <= WIDTH else self.text[: WIDTH - 3] + "..."
        return "   " * self.depth + arrow + cut


class Lineage(str):
    """A lineage as text; a notebook shows it as a tree to unfold, with what the text has no room for."""

    def __new__(cls, lines: Sequence[Line]):
        made = super().__new__(cls, "\n".join(str(line) for line in lines if not line.aside))
        made.lines = list(lines)
        return made

    __repr__ = str.__str__

    def _repr_html_(self) -> str:
        return f'<div class="wb-tree"><style>{TREE}</style>{_tree(self.lines)}</div>'


def _tree(lines: Sequence[Line]) -> str:
    """Return lines as nested details, those near the root open; all text is escaped."""
    parts = []
    while lines:
        head, *rest = lines
        n = next((n for n, line in enumerate(rest) if line.depth <= head.depth), len(rest))
        # Ids are cut to what trace still resolves.
        text = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{8}\b", r"<code>\1</code>", html.escape(head.text))
        opened = " open" * (head.depth < 2)
        unfolds = f"<details{opened}><summary>{text}</summary>{_tree(rest[:n])}</details>"
        parts.append(unfolds if n else f"<p>{text}</p>")
        lines = rest[n:]
    return "".join(parts)


def lineage(work: Run, wanted: str) -> Lineage:
    """Return where a row, example, pair, draft or question came from and where it went.

    Args:
        wanted: A row_id, example_id, pair_id, draft_id or question_id, or the beginning of one.

    Raises:
        RunError: If the run has nothing of that id, or several things.

    Example:
        print(wb.lineage(work, "3fa9c1"))
    """
    found = {}
    for column, (step, _, _) in KINDS.items():
        if work.has(step):
            ids = (frame := work.read(step))[column].astype(str)
            rows = frame[ids.str.startswith(wanted) if len(wanted) >= 4 else ids == wanted]
            found |= {(column, row[column]): row for row in rows.to_dict("records")}
    if not found:
        kinds = ", ".join(words for _, words, _ in KINDS.values())
        raise RunError(f"Run {work.name} has nothing of the id {wanted!r}; give that of a {kinds}, as tables show it.")
    if len(found) > 1:
        some = ", ".join(sorted(one for _, one in found)[:3])
        raise RunError(f"{wanted!r} begins {len(found)} ids of run {work.name} ({some}, ...); give more of it.")
    (((column, _), row),) = found.items()
    return Lineage([Line(0, f"run {work.name}, recipe {work.recipe.name}"), *KINDS[column][2](work, row, 0)])


def state_of(row: dict) -> str:
    """Return whether the answer of a draft or example is right, wrong or cannot be checked."""
    return states(pd.DataFrame([row])).iloc[0]


def _onward(depth: int, text: str) -> Line:
    return Line(depth, text, "->")


def _beneath(depth: int, row: dict, *names: str, aside: bool = False) -> list[Line]:
    """Return these texts of a row, each on a line of its own, under a line of that depth."""
    return [Line(depth + 1, f"{name} {' '.join(row[name].split())!r}", "", aside) for name in names]


def _row(work: Run, row: dict, depth: int) -> list[Line]:
    """Say what a training row is, and follow it back through its example."""
    of = f"student {row['student']}, arm {spoken(row['arm'])}, seed {row['seed']}, {spoken(row['task'])}"
    examples = work.read("examples")
    (example,) = examples[examples["example_id"] == row["example_id"]].to_dict("records")
    return [Line(depth, f"training row {row['row_id']}: {of}"), *_example(work, example, depth + 1, row["student"])]


def _example(work: Run, example: dict, depth: int, of: str = "") -> list[Line]:
    """Say what an example is and who wrote it, down to the pairs that formed the writer."""
    kept = "" if example["kept"] else f", dropped: {example['drop_reason']}"
    right = f", answer {state_of(example)}"
    said = f"example {example['example_id']}: arm {spoken(example['arm'])}, seed {example['seed']}{right}{kept}"
    lines = [Line(depth, said), *_beneath(depth, example, "question", "rationale")]
    if not depth and work.has("rows"):
        rows = work.read("rows")
        own = rows[rows["example_id"] == example["example_id"]].head(SHOWN)
        lines += [_onward(1, f"training row {row.row_id} of student {row.student}") for row in own.itertuples()]
        if own.empty:
            lines.append(_onward(1, "no training row: not needed to fill the arm's budget of tokens, or dropped"))
    return [*lines, *_teacher(work, example, depth + 1, of)]


def _teacher(work: Run, example: dict, depth: int, of: str) -> list[Line]:
    arm, student = example["arm"], example["student"] or of
    original, task = work.recipe.models.teacher, example["task"]
    if not example["student"]:
        writer = Line(depth, f"teacher {original}, as it was, asked with the plain prompt")
        return [writer, *_seeds(work, example, depth + 1)]
    if takes_drafts(arm):
        return [Line(depth, f"teacher {original}, as it was: a rationale of draft question {example['question_id']}")]
    if not work.has("teachers"):
        return [Line(depth, f"written for {student} in the arm {spoken(arm)}, which aligns no teacher")]
    pairs = work.read("teachers", "pairs_used")
    own = pairs[(pairs["student"] == student) & (pairs["arm"] == arm)]
    here = own[own["task"] == task].sort_values("score_gap", ascending=False)
    lines = [
        Line(depth, f"teacher {original}, aligned by DPO to {len(own)} pairs of {student} ({spoken(arm)})"),
        Line(depth + 1, f"{len(here)} of these pairs are of {spoken(task)}, {int(here['flipped'].sum())} flipped"),
    ]
    for pair in here.head(SHOWN).to_dict("records"):
        lines += _pair(work, pair, depth + 1, brief=True)
    more = len(here) - SHOWN
    return lines + [Line(depth + 1, f"and {more} more pairs")] * (more > 0) + _seeds(work, example, depth + 1)


def _seeds(work: Run, row: dict, depth: int) -> list[Line]:
    """Say which seed questions the prompt for new questions of a task shows."""
    task, n = load_tasks(work.recipe)[row["task"]], work.recipe.drafting.n_seed_questions
    texts = [Line(depth + 1, " ".join(question.split()), "", aside=True) for question, _ in seed_pairs(task, n)]
    return [Line(depth, f"shown {len(texts)} seed questions that people wrote", "", aside=True), *texts]


def _pair(work: Run, pair: dict, depth: int, brief: bool = False) -> list[Line]:
    """Say what a pair is; its two sides are drafts, or questions with all their drafts."""
    reviews = work.read("reviewed", "reviews") if work.has("reviewed") else schemas.build([], "reviews")
    said = [f", {PAST[one]} by review" for one in reviews["review"][reviews["pair_id"] == pair["pair_id"]]]
    said += [", flipped"] * bool(pair["flipped"])
    what = f"pair {pair['pair_id']}: {pair['kind']}s, student {pair['student']}, {spoken(pair['task'])}"
    lines, drafts = [Line(depth, what + "".join(said))], work.read("drafts").set_index("draft_id")
    for side in ("chosen", "rejected"):
        one = pair[f"{side}_id"]
        kind = "question" if pair["kind"] == "question" else f"draft ({spoken(drafts.at[one, 'technique'])})"
        lines.append(Line(depth + 1, f"{side} {kind} {one}, score {pair[f'score_{side}']:.3f}"))
        lines += _beneath(depth + 1, pair, side, aside=brief)
        # The score of a question is in its rationales' probes; that of an influence is one of its own.
        if pair["kind"] == "rationale" or not work.has("probes"):
            lines += _probes(work, one, pair["student"], depth + 2)
    if not brief and work.has("teachers"):
        used = work.read("teachers", "pairs_used")
        for own in used[used["pair_id"] == pair["pair_id"]].itertuples():
            turned = "turned round" if own.flipped else "as it is"
            lines.append(_onward(1, f"teacher of arm {spoken(own.arm)}, {turned}"))
    return lines


def _probes(work: Run, draft_id: str, student: str, depth: int, arrow: str = "<-") -> list[Line]:
    """Say how a student, or each if it is "", did with a draft as its demonstration."""
    if not work.has("signals"):
        return []
    signals, lines = work.read("signals"), []
    probes = work.read("probes") if work.has("probes") else None
    for signal in signals[signals["draft_id"] == draft_id].to_dict("records"):
        if student not in ("", signal["student"]):
            continue
        said = f"{signal['signal']} {signal['value']:+.4f} ± {signal['stderr']:.4f}"
        own = schemas.build([], "probes")
        if probes is not None:
            own = probes[(probes["draft_id"] == draft_id) & (probes["student"] == signal["student"])]
        if len(own) and signal["signal"] == ONE_SHOT:
            unread = int((~own["parsed"]).sum())
            said = f"{int(own['correct'].sum())} of {signal['n']} preference questions right, score "
            said += f"{signal['value']:.3f} ± {signal['stderr']:.3f}"
            said += f", {unread} answers not readable" if unread else ""
        lines.append(Line(depth, f"student {signal['student']} ({signal['student_fp'][:8]}): {said}", arrow))
        if len(own):
            asked = work.read("preference_set").set_index("item_id")
            for one in own.itertuples():
                item, mark = asked.loc[one.item_id], "right" if one.correct else "wrong"
                said = f"{mark}: {one.answer or '(not readable)'!r}, asked {' '.join(item['question'].split())!r}"
                lines.append(Line(depth + 1, said, "", aside=True))
    return lines


def _draft(work: Run, draft: dict, depth: int) -> list[Line]:
    """Say what a draft is, what its probes gave, and which pairs and arms it went into."""
    right = f", answer {draft['answer']!r} {state_of(draft)}"
    of = spoken(f"{draft['task']}, technique {draft['technique']}")
    return [
        Line(depth, f"draft {draft['draft_id']}: {of}{right}"),
        *_beneath(depth, draft, "question", "rationale"),
        Line(1, _asked(work)),
        *_probes(work, draft["draft_id"], "", 1, "->"),
        *_pairs_with(work, draft["draft_id"]),
    ]


def _question(work: Run, question: dict, depth: int) -> list[Line]:
    """Say what a draft question is, its rationales, and which pairs it went into."""
    kept = "kept" if question["kept"] else f"dropped: {question['drop_reason']}"
    drafts = work.read("drafts")
    own = drafts[drafts["question_id"] == question["question_id"]]
    return [
        Line(depth, f"draft question {question['question_id']}: {spoken(question['task'])}, {kept}"),
        *_beneath(depth, question, "question"),
        Line(1, f"{_asked(work)}, call {question['call']}"),
        *(_onward(1, f"draft {draft.draft_id}, technique {spoken(draft.technique)}") for draft in own.itertuples()),
        *_pairs_with(work, question["question_id"]),
    ]


def _asked(work: Run) -> str:
    """Return the teacher, with what tells it from others; without where questions came about without one."""
    teacher = work.manifest("questions").get("inputs", {}).get("teacher")
    known = f" ({teacher['key'][:8]})" if isinstance(teacher, dict) and "key" in teacher else ""
    return f"teacher {work.recipe.models.teacher}{known}"


def _pairs_with(work: Run, wanted: str) -> list[Line]:
    """Say which pairs have the draft or question on a side, and how many rows each arm made of such pairs has."""
    if not work.has("pairs"):
        return [_onward(1, "no pairs yet")]
    pairs = work.read("pairs")
    own = pairs[(pairs["chosen_id"] == wanted) | (pairs["rejected_id"] == wanted)]
    if own.empty:
        return [_onward(1, "no pair: neither best nor worst of its group for any student, or its group tied")]
    rows, lines = work.read("rows") if work.has("rows") else None, []
    for pair in own.itertuples():
        side, other = ("chosen", pair.rejected_id) if pair.chosen_id == wanted else ("rejected", pair.chosen_id)
        lines.append(_onward(1, f"pair {pair.pair_id} of student {pair.student}: {side}, against {other}"))
        for arm in aligned_arms(work.recipe) if rows is not None else []:
            n = ((rows["arm"] == arm) & (rows["student"] == pair.student)).sum()
            lines.append(_onward(2, f"teacher of arm {spoken(arm)} -> {n} training rows of student {pair.student}"))
    return lines


# Column -> step, what a row of it is, who says where it came from.
KINDS = {
    "row_id": ("rows", "training row", _row),
    "example_id": ("examples", "example", _example),
    "pair_id": ("pairs", "pair", _pair),
    "draft_id": ("drafts", "draft", _draft),
    "question_id": ("questions", "draft question", _question),
}
