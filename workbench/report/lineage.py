"""Where a thing came from and what became of it: a training row back to its probes, a draft on to its rows."""

import pandas as pd

from workbench.loop.arms import aligned_arms
from workbench.loop.reviews import PAST
from workbench.runs.errors import RunError
from workbench.runs.recipe import DRAFT_ARMS
from workbench.runs.run import Run

SHOWN = 3  # of many alike, such as the pairs behind one teacher
KINDS = {
    "row_id": ("rows", "training row"),
    "example_id": ("examples", "example"),
    "pair_id": ("pairs", "pair"),
    "draft_id": ("drafts", "draft"),
    "question_id": ("questions", "draft question"),
}


def lineage(work: Run, wanted: str) -> str:
    """Return as text where a row, example, pair, draft or question came from and where it went.

    Args:
        work: The run.
        wanted: A row_id, example_id, pair_id, draft_id or question_id, or the beginning of one.

    Raises:
        RunError: If the run has nothing of that id, or several things.

    Example:
        print(wb.lineage(work, "3fa9c1"))
    """
    found = [
        (kind, row)
        for kind, (step, _) in KINDS.items()
        if work.has(step)
        for row in _starting_with(work.read(step), kind, wanted)
    ]
    if not found:
        kinds = ", ".join(words for _, words in KINDS.values())
        raise RunError(
            f"Run {work.name} has nothing of the id {wanted!r}; give the id of a {kinds}, as its tables show it."
        )
    ids = {(kind, row[kind]) for kind, row in found}
    if len(ids) > 1:
        some = ", ".join(sorted(one for _, one in ids)[:3])
        raise RunError(f"{wanted!r} begins {len(ids)} ids of run {work.name} ({some}, ...); give more of it.")
    kind, row = found[0]
    lines = {"row_id": _row, "example_id": _example, "pair_id": _pair, "draft_id": _draft, "question_id": _question}
    return "\n".join([f"run {work.name}, recipe {work.recipe.name}", *lines[kind](work, row, 0)])


def _starting_with(frame: pd.DataFrame, column: str, beginning: str) -> list[dict]:
    ids = frame[column].astype(str)
    return frame[(ids == beginning) | (ids.str.startswith(beginning) & (len(beginning) >= 4))].to_dict("records")


def _line(depth: int, text: str) -> str:
    return "   " * depth + ("<- " if depth else "") + text


def _onward(depth: int, text: str) -> str:
    return "   " * depth + "-> " + text


def _text(text: str, n: int = 90) -> str:
    line = " ".join(str(text).split())
    return repr(line if len(line) <= n else line[: n - 3] + "...")


def _more(n: int, what: str, depth: int) -> list[str]:
    return [_line(depth, f"and {n - SHOWN} more {what}")] if n > SHOWN else []


def _row(work: Run, row: dict, depth: int) -> list[str]:
    """Say what a training row is, and follow it back through its example."""
    of = f"student {row['student']}, arm {row['arm']}, seed {row['seed']}, {row['task']}"

    examples = work.read("examples")
    example = examples[examples["example_id"] == row["example_id"]].to_dict("records")[0]
    return [_line(depth, f"training row {row['row_id']}: {of}"), *_example(work, example, depth + 1, of=row["student"])]


def _example(work: Run, example: dict, depth: int, of: str = "") -> list[str]:
    """Say what an example is and who wrote it, down to the pairs that formed the writer."""
    kept = "" if example["kept"] else f", dropped: {example['drop_reason']}"
    right = f", {'right' if example['correct'] else 'wrong'} answer" if example["gold"] else ""
    lines = [
        _line(depth, f"example {example['example_id']}: arm {example['arm']}, seed {example['seed']}{right}{kept}"),
        _line(depth, f"   question {_text(example['question'])}").replace("<-", "  "),
        _line(depth, f"   rationale {_text(example['rationale'])}").replace("<-", "  "),
    ]
    if not depth:
        rows = work.read("rows") if work.has("rows") else None
        if rows is not None:
            own = rows[rows["example_id"] == example["example_id"]]
            lines += [
                _onward(1, f"training row {r.row_id} of student {r.student}") for r in own.head(SHOWN).itertuples()
            ] or [_onward(1, "no training row: not needed to fill the arm's budget of tokens, or dropped")]
    return [*lines, *_teacher(work, example, depth + 1, of)]


def _teacher(work: Run, example: dict, depth: int, of: str) -> list[str]:
    arm, student = example["arm"], example["student"] or of
    original = work.recipe.models.teacher
    if not example["student"]:
        return [_line(depth, f"teacher {original}, as it was, asked with the plain prompt")]
    if arm in DRAFT_ARMS:
        return [_line(depth, f"teacher {original}, as it was: a rationale of draft question {example['question_id']}")]
    if not work.has("teachers"):
        return [_line(depth, f"written for {student} in the arm {arm}, which aligns no teacher")]
    pairs = work.read("teachers", "pairs_used")
    own = pairs[(pairs["student"] == student) & (pairs["arm"] == arm)]
    here = own[own["task"] == example["task"]]
    lines = [
        _line(depth, f"teacher {original}, aligned by DPO to {len(own)} pairs of {student} ({arm})"),
        _line(depth + 1, f"{len(here)} of these pairs are of {example['task']}, {int(here['flipped'].sum())} flipped"),
    ]
    for pair in here.sort_values("score_gap", ascending=False).head(SHOWN).to_dict("records"):
        lines += _pair(work, pair, depth + 1, brief=True)
    return [*lines, *_more(len(here), "pairs", depth + 1)]


def _pair(work: Run, pair: dict, depth: int, brief: bool = False) -> list[str]:
    """Say what a pair is; its two sides are drafts, or questions with all their drafts."""
    flipped = _review(work, pair["pair_id"]) + (", flipped" if pair["flipped"] else "")
    lines = [
        _line(depth, f"pair {pair['pair_id']}: {pair['kind']}s, student {pair['student']}, {pair['task']}{flipped}")
    ]
    for side in ("chosen", "rejected"):
        one = pair[f"{side}_id"]
        kind = "question" if pair["kind"] == "question" else f"draft ({_technique(work, one)})"
        lines.append(_line(depth + 1, f"{side} {kind} {one}, score {pair[f'score_{side}']:.3f}"))
        if not brief:
            lines.append("   " * (depth + 2) + _text(pair[side]))
        # The score of a question is in its rationales' probes; that of an influence is one of its own.
        if pair["kind"] == "rationale" or not work.has("probes"):
            lines += _probes(work, one, pair["student"], depth + 2)
    if not brief:
        used = work.read("teachers", "pairs_used") if work.has("teachers") else pd.DataFrame({"pair_id": []})
        for own in used[used["pair_id"] == pair["pair_id"]].itertuples():
            said = "turned round" if own.flipped else "as it is"
            lines.append(_onward(1, f"teacher of arm {own.arm}, {said}"))
    return lines


def _review(work: Run, pair_id: str) -> str:
    if not work.has("reviewed"):
        return ""
    used = work.read("reviewed", "reviews").set_index("pair_id")["review"]
    return f", {PAST[used[pair_id]]} by review" if pair_id in used.index else ""


def _technique(work: Run, draft_id: str) -> str:
    drafts = work.read("drafts")
    return str(drafts.loc[drafts["draft_id"] == draft_id, "technique"].iloc[0])


def _probes(work: Run, draft_id: str, student: str, depth: int) -> list[str]:
    """Say how a student did with a draft as its demonstration."""
    if not work.has("signals"):
        return []
    signals, probes = work.read("signals"), work.read("probes") if work.has("probes") else None
    lines = []
    for signal in signals[signals["draft_id"] == draft_id].to_dict("records"):
        who = f"student {signal['student']} ({signal['student_fp'][:8]})"
        if student not in ("", signal["student"]):
            continue
        if probes is None:
            said = f"{signal['signal']} {signal['value']:+.4f} ± {signal['stderr']:.4f}"
            lines.append(_line(depth, f"{who}: {said}"))
        else:
            own = probes[(probes["draft_id"] == draft_id) & (probes["student"] == signal["student"])]
            unread = int((~own["parsed"]).sum())
            lines.append(
                _line(
                    depth,
                    f"{who}: {int(own['correct'].sum())} of {signal['n']} preference questions right, score "
                    f"{signal['value']:.3f} ± {signal['stderr']:.3f}"
                    + (f", {unread} answers not readable" if unread else ""),
                )
            )
    return lines


def _draft(work: Run, draft: dict, depth: int) -> list[str]:
    """Say what a draft is, what its probes gave, and which pairs and arms it went into."""
    right = f", {'right' if draft['correct'] else 'wrong'} answer {draft['answer']!r}" if draft["gold"] else ""
    lines = [
        _line(depth, f"draft {draft['draft_id']}: {draft['task']}, technique {draft['technique']}{right}"),
        f"      question {_text(draft['question'])}",
        f"      rationale {_text(draft['rationale'])}",
        _line(1, f"teacher {work.recipe.models.teacher}{_teacher_key(work)}"),
        *[line.replace("<-", "->", 1) for line in _probes(work, draft["draft_id"], "", 1)],
    ]
    return lines + _pairs_with(work, draft["draft_id"])


def _question(work: Run, question: dict, depth: int) -> list[str]:
    """Say what a draft question is, its rationales, and which pairs it went into."""
    kept = "kept" if question["kept"] else f"dropped: {question['drop_reason']}"
    lines = [
        _line(depth, f"draft question {question['question_id']}: {question['task']}, {kept}"),
        f"      {_text(question['question'])}",
        _line(1, f"teacher {work.recipe.models.teacher}{_teacher_key(work)}, call {question['call']}"),
    ]
    drafts = work.read("drafts")
    for draft in drafts[drafts["question_id"] == question["question_id"]].to_dict("records"):
        lines.append(_onward(1, f"draft {draft['draft_id']}, technique {draft['technique']}"))
    return lines + _pairs_with(work, question["question_id"])


def _teacher_key(work: Run) -> str:
    """Return what tells the teacher from others, in brackets; "" where questions came about without one."""
    teacher = work.manifest("questions").get("inputs", {}).get("teacher")
    return f" ({teacher['key'][:8]})" if isinstance(teacher, dict) and "key" in teacher else ""


def _pairs_with(work: Run, wanted: str) -> list[str]:
    """Say which pairs have the draft or question on a side, and how many rows each arm made of such pairs has."""
    if not work.has("pairs"):
        return [_onward(1, "no pairs yet")]
    pairs = work.read("pairs")
    own = pairs[(pairs["chosen_id"] == wanted) | (pairs["rejected_id"] == wanted)]
    if own.empty:
        return [_onward(1, "no pair: neither best nor worst of its group for any student, or its group tied")]
    rows = work.read("rows") if work.has("rows") else None
    lines = []
    for pair in own.to_dict("records"):
        side = "chosen" if pair["chosen_id"] == wanted else "rejected"
        other = pair["rejected_id"] if side == "chosen" else pair["chosen_id"]
        lines.append(_onward(1, f"pair {pair['pair_id']} of student {pair['student']}: {side}, against {other}"))
        for arm in aligned_arms(work.recipe):
            if rows is not None:
                n = int(((rows["arm"] == arm) & (rows["student"] == pair["student"])).sum())
                lines.append(_onward(2, f"teacher of arm {arm} -> {n} training rows of student {pair['student']}"))
    return lines
