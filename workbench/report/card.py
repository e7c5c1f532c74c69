"""What a run found, in three lines a student: was the preference found, did the teacher learn it, did it help?"""

from collections.abc import Mapping

import pandas as pd

from workbench.figures.verdict import block_of
from workbench.loop.pairs import DECIDED
from workbench.report.summary import AFTER, BEFORE, CONTROL, summarise
from workbench.runs.run import Run
from workbench.verdict.evaluation import verdict_of
from workbench.verdict.in_words import arm_name, decision_in_words, interval, points
from workbench.verdict.intervals import wilson

YES, LITTLE, NO, UNKNOWN = "yes", "a little", "not seen", "no answer key"


def rungs(run: Run) -> list[str]:
    """Return three lines a student, each a question, one word, and the numbers with their 95 % intervals.

    Where a preference was planted, it is found when the interval of the probe's AUC lies above 0.5, and learned when
    the native share of what the aligned teacher writes lies above those of the unaligned teacher and of the control,
    interval against interval (a little, if it is less than half). Elsewhere the first line tells how many pairs the
    probes leave little doubt about. Where a method forms no pairs and aligns no teacher, the last line stands alone.
    """
    found = verdict_of(run)
    if not run.has("pairs"):
        return [line for one in run.recipe.models.students for line in (one, f"  {_better(block_of(found, one))}")]
    pairs, lines = run.read("pairs"), []
    for row in summarise(run).to_dict("records"):
        own, block = pairs[pairs["student"] == row["student"]], block_of(found, row["student"])
        lines += [f"{row['student']}", *(f"  {line}" for line in (_found(row, own), _learned(row), _better(block)))]
    return lines


def _found(row: Mapping, pairs: pd.DataFrame) -> str:
    asks = "Found what the student prefers?"
    if pd.isna(row.get("auc", float("nan"))):
        decided = (pairs["p_chosen"] >= DECIDED).mean() if len(pairs) else 0.0
        return f"{asks} {UNKNOWN}: {100 * decided:.0f} % of {len(pairs)} pairs are decided."
    shown = f"AUC {row['auc']:.2f} ({row['auc_low']:.2f} to {row['auc_high']:.2f})"
    word = YES if row["auc_low"] > 0.5 else NO
    return f"{asks} {word}: {shown}, the chance that a {row['native']} draft scores above another."


def _learned(row: Mapping) -> str:
    asks = "Did the teacher learn it?"
    shares = {arm: (row.get(f"native_{arm}"), row.get(f"n_{arm}")) for arm in (BEFORE, CONTROL, AFTER)}
    if any(share is None or pd.isna(share) for share, _ in shares.values()):
        return f"{asks} {UNKNOWN}: notebook 03 shows how its texts changed."
    low = wilson(*shares[AFTER])[0]
    moved_by = low > max(wilson(*shares[arm])[1] for arm in (BEFORE, CONTROL))
    word = (YES if shares[AFTER][0] >= 0.5 else LITTLE) if moved_by else NO
    before, control, after = (f"{100 * shares[arm][0]:.0f} %" for arm in (BEFORE, CONTROL, AFTER))
    right = [f"{100 * row[f'right_{arm}']:.0f}" for arm in (BEFORE, AFTER)]
    moved = f"writes {row['native']} in {before} of examples before, {after} after, {control} in the control"
    return f"{asks} {word}: {moved}; {right[0]} % of its answers right before, {right[1]} % after."


def _better(block: Mapping) -> str:
    main = block["comparisons"][0]
    others = [c for c in block["comparisons"][1:] if c["shots"] == main["shots"] and c["b"] == "base"]
    said = [_against(row) for row in (main, *others)]
    return f"Does the student answer better? {decision_in_words(main)}: {'; '.join(said)}."


def _against(row: Mapping) -> str:
    compared = f"{arm_name(row['a'])} minus {arm_name(row['b'])}"
    return f"{compared} {points(row['difference'])} points ({interval(row, points)})"
