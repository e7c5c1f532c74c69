"""Figures of the verdict: accuracies, differences with their intervals, task by task, and the decision itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures import style
from workbench.figures.style import POCKET, arm_styles, bars, finish, marks, named, spell_each
from workbench.runs.errors import DataError
from workbench.verdict.in_words import counted_in, in_order, level, percent, shots_in_words, spell
from workbench.verdict.intervals import BETTER, SAME, UNDECIDED, WORSE, sign_flip_null, sign_flip_p_value, wilson
from workbench.verdict.verdict import paired, whole_sums

# The marker alone tells decisions apart.
DECISIONS = {
    BETTER: (style.TAILORED, "diamond", "solid"),
    WORSE: (style.REJECTED, "x", "solid"),
    SAME: (style.CONTROL, "square", "solid"),
    UNDECIDED: (style.CONTROL, "circle-open", "solid"),
}
SHORT = {SAME: "no difference > margin"}
COLUMNS = (
    "student task a b shots accuracy_a accuracy_b difference low high p_value p_holm decision p_adjusted "
    "decision_adjusted n_items n_seeds"
).split()
BINS = 61
NEARER, AS_FAR = "nearer to zero", "as far from zero as the difference seen"


def block_of(verdict: Mapping, student: str = "") -> Mapping:
    """Return the block of one student of a verdict; "" means the recipe's first."""
    if student in ("", verdict["student"]):
        return verdict
    if student not in verdict.get("students", {}):
        known = ", ".join(verdict.get("students", {})) or verdict["student"]
        raise DataError(f"The verdict has no student {student!r}; it has {known}.")
    return verdict["students"][student]


def _models(verdict: Mapping) -> str:
    return POCKET if verdict.get("models") == "pocket" else verdict.get("models", "")


def arm_accuracies(verdict: Mapping, student: str = "") -> go.Figure:
    """Draw the accuracy of every arm with its interval, one row an arm and number of shots."""
    block = block_of(verdict, student)
    shots = block["primary"]["shots"]
    by_shots = {(arm, int(n)): row for arm, own in block["arms"].items() for n, row in own["by_shots"].items()}
    table = pd.DataFrame([{"arm": arm, "shots": n} | row for (arm, n), row in by_shots.items()])
    table = in_order(table, "arm")
    called = table["arm"] + ", " + table["shots"].astype(str) + " shots"
    rows = table.assign(row=called, text=table["accuracy"].map(percent))
    shown = {"interval": "accuracy", "text": "text", "labels": {"accuracy": counted_in(block), "row": ""}}
    fig = marks(rows, "accuracy", "row", "arm", arm_styles(block["arms"]), **shown)
    fig.update_traces(textposition="top center", cliponaxis=False)
    fig.update_xaxes(range=[-0.01, 1.01], tickformat=".0%").update_layout(showlegend=False)
    main = table[table["shots"] == shots]
    beside = f"With {shots} shots: {spell_each(main, 'arm', 'accuracy')}."
    if formed := {arm: row["in_form"] for arm, row in block["arms"].items() if "in_form" in row}:
        beside += f" In the form asked for: {', '.join(f'{named(arm)} {percent(s)}' for arm, s in formed.items())}."
    if "majority" in verdict:
        fig.add_vline(x=verdict["majority"], **style.LEVEL)
        beside += f" Dotted: always giving each task's most frequent answer, {percent(verdict['majority'])}."
    return finish(
        fig,
        f"How often does {named(block['student'])} answer right?"
        if "judged" not in block
        else f"How often is {named(block['student'])} judged better than the reference?",
        f"{main['n_items'].max()} items, {main['n_seeds'].max()} seeds (base: one); "
        f"{level(block['primary']['alpha'])} intervals over seeds and items",
        f"{'Share' if 'judged' in block else 'Accuracy'} of every arm on the same test items, every item weighing the "
        "same. Arms share their items, so their difference is surer than these intervals look: see the comparisons.",
        beside,
        table,
        _models(verdict),
        height=150 + 46 * len(table),
    )


def _differences(rows: list[Mapping], labels: list[str], verdict: Mapping, block: Mapping, *words: str) -> go.Figure:
    """Draw differences in points with their intervals, the zero line, the margin band and the decisions in words.

    Args:
        verdict: Says which models were used.
        block: A student's block of it, for margin and level.
        words: Title, what the subtitle begins with, caption, sentence.
    """
    table, margin = pd.DataFrame(rows), 100 * block["primary"]["margin"]
    # Tasks have one decision, the corrected one.
    held = table.get("decision_adjusted", table["decision"])
    drawn = (table[["difference", "low", "high"]] * 100).assign(row=labels, decision=held)
    shown = {"interval": "difference", "category_orders": {"row": list(map(named, labels))}}
    shown["labels"] = {"difference": f"difference in {counted_in(block)} (points)", "row": ""}
    fig = marks(drawn, "difference", "row", "decision", DECISIONS, **shown).update_traces(marker_size=12)
    fig.add_vrect(x0=-margin, x1=margin, fillcolor=style.LIGHT, opacity=0.5, line_width=0, layer="below")
    fig.add_vline(x=0, line={"color": style.INK, "width": 1})
    for label, row, alone, now in zip(labels, rows, table["decision"], held):
        said = f"{spell(row['difference'], row['low'], row['high'], 'points').split()[0]} {SHORT.get(now, now)}"
        said += f"<br>(alone: {SHORT.get(alone, alone)})" if alone != now else ""
        place = {"x": 1.01, "xref": "paper", "xanchor": "left", "align": "left", "showarrow": False}
        fig.add_annotation(y=named(label), text=said, **place)
    reach = max(1.3 * margin, 1.08 * float(drawn[["low", "high"]].abs().to_numpy().max()))
    fig.update_xaxes(range=[-reach, reach]).update_yaxes(showgrid=False).update_layout(showlegend=False)
    title, first, caption, sentence = words
    main = block["comparisons"][0]
    facts = f"{first}{main['n_items']} items, {main['n_seeds']} seeds; {level(block['primary']['alpha'])} intervals "
    facts += f"over seeds and items; band: ±{margin:g} points"
    numbers = table[[column for column in COLUMNS if column in table]]
    fig = finish(fig, title, facts, caption, sentence, numbers, _models(verdict), height=170 + 44 * len(table))
    return fig.update_layout(margin_r=fig.layout.margin.r + 192)


def _said(row: Mapping) -> str:
    return f"{row['decision']}, {spell(row['difference'], row['low'], row['high'], 'points')}"


def comparisons(verdict: Mapping, student: str = "") -> go.Figure:
    """Draw every comparison of a verdict, the primary one first."""
    block = block_of(verdict, student)
    rows = block["comparisons"]
    a, b = named(rows[0]["a"]), named(rows[0]["b"])
    labels = [f"{row['a']} − {row['b']}, {row['shots']} shots" for row in rows]
    fig = _differences(
        rows,
        labels,
        verdict,
        block,
        f"Is {a} teaching better for {named(block['student'])}?",
        "",
        f"Differences in {counted_in(block)} on the same items. The first row (bold) is the primary comparison, fixed "
        "before the test set was opened. The others count as better or worse only when their p-value, adjusted for "
        "their number by Holm's method, is small enough; the intervals are not adjusted. Within the band a difference "
        "does not matter.",
        f"{a.capitalize()} against {b}: {_said(rows[0])}.",
    )
    first, *others = map(named, labels)
    return fig.update_yaxes(tickvals=[first, *others], ticktext=[f"<b>{first}</b>", *others])


def per_task(verdict: Mapping, student: str = "") -> go.Figure:
    """Draw the primary comparison task by task."""
    block = block_of(verdict, student)
    rows = block["per_task"]
    a, b = named(rows[0]["a"]), named(rows[0]["b"])
    parts = "; ".join(f"{named(row['task'])} {_said(row)}" for row in rows)
    return _differences(
        rows,
        [f"{row['task']} ({row['n_items']})" for row in rows],
        verdict,
        block,
        f"On which tasks does {a} differ from {b}?",
        f"student {named(block['student'])}, items in brackets; ",
        "The primary comparison within each task. A task counts as better or worse only when its p-value, adjusted for "
        "the number of tasks by Holm's method, is small enough; the intervals are not adjusted.",
        f"{a.capitalize()} against {b} by task: {parts}.",
    )


def by_student(verdict: Mapping) -> go.Figure:
    """Draw the primary comparison of every student of a verdict."""
    blocks = verdict.get("students") or {verdict["student"]: verdict}
    rows = [{"student": name} | block["comparisons"][0] for name, block in blocks.items()]
    a, b = named(rows[0]["a"]), named(rows[0]["b"])
    parts = "; ".join(f"{named(row['student'])} {_said(row)}" for row in rows)
    return _differences(
        rows,
        list(blocks),
        verdict,
        verdict,
        f"Whom does {a} teaching help?",
        "",
        f"{a.capitalize()} minus {b}, {shots_in_words(rows[0]['shots'])}. Every student stands at its own level; "
        "nothing is corrected for the number of students.",
        f"{a.capitalize()} against {b} by student: {parts}.",
    )


def sign_flips(predictions: pd.DataFrame, verdict: Mapping, student: str = "", models: str = POCKET) -> go.Figure:
    """Draw the differences that all sign patterns of the primary comparison would give, and the one that was seen."""
    block = block_of(verdict, student)
    primary = block["primary"]
    a, b = named(primary["a"]), named(primary["b"])
    own = predictions[predictions["student"] == block["student"]]
    answers = paired(own, primary["a"], primary["b"], primary["shots"])
    sums, unit = whole_sums(answers.to_numpy())
    unit *= 100 / answers.size
    seen, p = unit * sums.sum(), sign_flip_p_value(sums)
    # A flip changes the sum by an even number, so every other sum cannot be.
    null = sign_flip_null(sums)[::2]
    possible = unit * (2 * np.arange(len(null)) - (len(null) - 1))
    reach = max(4.5 * np.sqrt(null @ possible**2), 1.15 * abs(seen), unit)
    # Bars of as many possible sums each, from the smallest that is shown.
    near = np.abs(possible) <= reach
    per_bar = -(-near.sum() // BINS)
    middles = possible[near][0] + unit * (per_bar * (2 * (np.arange(near.sum()) // per_bar) + 1) - 1)
    sides = np.where(np.abs(possible[near]) >= abs(seen) - 1e-9, AS_FAR, NEARER)
    rows = pd.DataFrame({"difference": middles, "side": sides, "share": 100 * null[near]})
    table = rows.groupby(["difference", "side"], as_index=False)["share"].sum()
    labels = {"difference": f"difference in {counted_in(block)} (points)", "share": "sign patterns (%)"}
    fig = bars(
        table, "difference", "share", "side", {NEARER: (style.LIGHT, ""), AS_FAR: (style.CHOSEN, "/")}, labels=labels
    )
    fig.update_layout(bargap=0).update_xaxes(range=[-reach, reach])
    note = {"annotation_text": f"seen {seen:+.1f}", "annotation_position": "top left"}
    fig.add_vline(x=seen, line={"color": style.CONTROL, "dash": "dash", "width": 2}, **note)
    return finish(
        fig,
        f"Could luck alone put {a} {'ahead' if seen >= 0 else 'behind'} like this?",
        f"{(sums != 0).sum()} of {len(sums)} items differ between {a} and {b}, {primary['shots']} shots, "
        f"{len(answers)} seeds; all sign patterns, counted exactly",
        "If the two arms were alike, every item's difference could as well have had the other sign. The bars are the "
        "differences that all choices of signs would give, all items with their own sizes. The seeds are taken as they "
        "are: whether other seeds would agree is what the interval adds.",
        f"If {a} and {b} were alike, {f'{100 * p:.1f} %' if p >= 0.001 else 'less than 0.1 %'} of all sign patterns "
        f"would lie as far from zero as the {seen:+.1f} points seen for {named(block['student'])} (that share is the "
        f"p-value). With the luck of seeds too: {_said(block['comparisons'][0])}.",
        table,
        models,
    )


def decision_shares(counts: Mapping[str, int], facts: str, models: str = POCKET) -> go.Figure:
    """Draw how often each decision came out in simulated runs; the facts are their truth in words."""
    n = sum(counts.values())
    rows = [(said, count / n, *wilson(count / n, n)) for said, count in counts.items()]
    table = pd.DataFrame(rows, columns=["decision", "share", "low", "high"])
    shown = table.assign(above=table["high"] - table["share"], below=table["share"] - table["low"])
    fills = {said: (colour, "/" if said == UNDECIDED else "") for said, (colour, *_) in DECISIONS.items()}
    labels = {"share": "simulated runs", "decision": ""}
    more = {"error_x": "above", "error_x_minus": "below", "range_x": [0, 1], "labels": labels}
    fig = bars(shown, "share", "decision", "decision", fills, **more).update_traces(error_x_color=style.INK)
    fig.update_xaxes(tickformat=".0%").update_layout(showlegend=False)
    return finish(
        fig,
        "How often does each decision come out?",
        f"{facts}; {n} simulated runs, 95 % intervals (Wilson); spread as seen",
        "Every simulated run has the true difference named above. What varies from run to run are its items, its seeds "
        "and chance, as much as they were seen to vary here.",
        f"{facts}: {spell_each(table, 'decision', 'share')}.",
        table,
        models,
        height=330,
    )
