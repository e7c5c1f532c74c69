"""Figures of the verdict: accuracies, differences with their intervals, and the tasks one by one.

Figures that explain the decision: what sign flips alone would give, and how often each answer comes out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.style import (
    CHOSEN,
    CONTROL,
    LIGHT,
    OUTLINE,
    REJECTED,
    TAILORED,
    FigureError,
    arm_style,
    error_bars,
    escape,
    finish,
    named,
)
from workbench.verdict.in_words import percent
from workbench.verdict.intervals import sign_flip_null, sign_flip_p_value, wilson
from workbench.verdict.verdict import paired

# Marker and colour of a decision; shape alone tells them apart.
DECISIONS = {
    "better": ("diamond", TAILORED),
    "worse": ("x", REJECTED),
    "no difference larger than the margin": ("square", CONTROL),
    "undecided": ("circle-open", CONTROL),
}
SHORT = {"no difference larger than the margin": "no difference > margin"}


def block_of(verdict: Mapping, student: str = "") -> Mapping:
    """Return the block of one student of a verdict; "" means the recipe's first."""
    if student in ("", verdict["student"]):
        return verdict
    if student not in verdict.get("students", {}):
        known = ", ".join(verdict.get("students", {})) or verdict["student"]
        raise FigureError(f"The verdict has no student {student!r}; it has {known}.")
    return verdict["students"][student]


def _models(verdict: Mapping) -> str:
    return "pocket models" if verdict.get("models") == "pocket" else escape(verdict.get("models", ""), 80)


def arm_accuracies(verdict: Mapping, student: str = "") -> go.Figure:
    """Draw the accuracy of every arm with its interval, one row an arm and number of shots."""
    block = block_of(verdict, student)
    rows = [
        {"arm": arm, "shots": int(shots)} | values
        for arm, own in block["arms"].items()
        for shots, values in own.get("by_shots", {str(block["primary"]["shots"]): own}).items()
    ]
    table = pd.DataFrame(rows)[["arm", "shots", "accuracy", "low", "high", "n_items", "n_seeds"]]
    fig = go.Figure()
    for arm, own in table.groupby("arm", sort=False):
        colour, symbol, _ = arm_style(arm)
        fig.add_scatter(
            x=own["accuracy"],
            y=[f"{named(arm)}, {shots} shots" for shots in own["shots"]],
            mode="markers+text",
            text=[percent(value) for value in own["accuracy"]],
            textposition="top center",
            marker={"color": colour, "symbol": symbol, "size": 12, "line": {"width": 2, "color": colour}},
            error_x=error_bars(own, "accuracy", colour),
            showlegend=False,
        )
    fig.update_xaxes(title_text="right answers", range=[-0.01, 1.01], tickformat=".0%")
    fig.update_yaxes(autorange="reversed")
    main = table[table["shots"] == block["primary"]["shots"]]
    parts = [f"{named(r.arm)} {percent(r.accuracy)} ({percent(r.low)} to {percent(r.high)})" for r in main.itertuples()]
    level = f"{100 * (1 - block['primary']['alpha']):g} %"
    return finish(
        fig,
        f"How often does {named(block['student'])} answer right?",
        f"{main['n_items'].max()} items, {main['n_seeds'].max()} seeds (base: one); "
        f"{level} intervals over seeds and items; {_models(verdict)}",
        "Accuracy of every arm on the same test items, every item weighing the same. Arms share their items, so their "
        "difference is surer than these intervals look: see the comparisons.",
        f"With {block['primary']['shots']} shots: {'; '.join(parts)}.",
        table,
        height=150 + 46 * len(table),
    )


def _intervals(table: pd.DataFrame, labels: list[str], margin: float) -> go.Figure:
    """Draw differences in points with their intervals, the zero line, the margin band and the decisions in words."""
    fig = go.Figure()
    fig.add_vrect(x0=-100 * margin, x1=100 * margin, fillcolor=LIGHT, opacity=0.5, line_width=0, layer="below")
    fig.add_vline(x=0, line={"color": "#1F1F1F", "width": 1})
    points = table[["difference", "low", "high"]] * 100
    for decision, (symbol, colour) in DECISIONS.items():
        chosen = (table["decision"] == decision).to_numpy()
        own = points[chosen]
        if len(own):
            fig.add_scatter(
                x=own["difference"],
                y=[index for index, yes in enumerate(chosen) if yes],
                mode="markers",
                name=decision,
                error_x=error_bars(own, "difference", colour),
                marker={"color": colour, "symbol": symbol, "size": 12, "line": {"width": 2, "color": colour}},
            )
    reach = max(100 * margin * 1.3, float(points.abs().to_numpy().max()) * 1.08)
    for index, row in enumerate(table.itertuples()):
        words = f"{100 * row.difference:+.1f} {SHORT.get(row.decision, row.decision)}{getattr(row, 'alone', '')}"
        fig.add_annotation(x=1.01, xref="paper", y=index, text=words, showarrow=False, xanchor="left")
    fig.update_xaxes(title_text="difference in right answers (points)", range=[-reach, reach], zeroline=False)
    fig.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=labels, range=[len(labels) - 0.5, -0.5], showgrid=False
    )
    return fig


def _finish_intervals(fig: go.Figure, *words: object, n_rows: int) -> go.Figure:
    fig = finish(fig, *words, height=170 + 44 * n_rows)
    return fig.update_layout(margin_r=190, showlegend=False)


def _said(row: Mapping) -> str:
    return f"{row['decision']}, {_points(row['difference'])} points ({_points(row['low'])} to {_points(row['high'])})"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _facts(verdict: Mapping, block: Mapping) -> str:
    primary, first = block["primary"], block["comparisons"][0]
    level = f"{100 * (1 - primary['alpha']):g} %"
    return (
        f"{first['n_items']} items, {first['n_seeds']} seeds; {level} intervals over seeds and items; "
        f"band: ±{100 * primary['margin']:g} points; {_models(verdict)}"
    )


def comparisons(verdict: Mapping, student: str = "") -> go.Figure:
    """Draw every comparison of a verdict, the primary one first."""
    block = block_of(verdict, student)
    table = pd.DataFrame(block["comparisons"])
    # Verdicts written before there was a correction do not have it.
    held = table.get("decision_adjusted", table["decision"])
    alone = [f" (alone: {was})" if was != now else "" for was, now in zip(table["decision"], held, strict=True)]
    labels = [f"{named(r.a)} − {named(r.b)}, {r.shots} shots" for r in table.itertuples()]
    labels[0] = f"<b>{labels[0]}</b>"
    main = table.iloc[0]
    columns = ["a", "b", "shots", "difference", "low", "high", "p_value", "decision", "p_adjusted", "decision_adjusted"]
    columns += ["n_items", "n_seeds"]
    return _finish_intervals(
        _intervals(table.assign(decision=held, alone=alone), labels, block["primary"]["margin"]),
        f"Is {named(main.a)} teaching better for {named(block['student'])}?",
        _facts(verdict, block),
        "Differences in accuracy on the same items. The first row (bold) is the primary comparison, fixed before the "
        "test set was opened. The others count as better or worse only when their p-value, adjusted for their number "
        "by Holm's method, is small enough; the intervals are not adjusted. Within the band a difference does not "
        "matter.",
        f"{named(main.a).capitalize()} against {named(main.b)}: {_said(main)}.",
        table[table.columns.intersection(columns, sort=False)],
        n_rows=len(table),
    )


def per_task(verdict: Mapping, student: str = "") -> go.Figure:
    """Draw the primary comparison task by task."""
    block = block_of(verdict, student)
    table = pd.DataFrame(block["per_task"])
    columns = [
        "task",
        "accuracy_a",
        "accuracy_b",
        "difference",
        "low",
        "high",
        "p_value",
        "p_holm",
        "decision",
        "n_items",
    ]
    main = table.iloc[0]
    parts = [f"{named(row['task'])} {_said(row)}" for row in block["per_task"]]
    return _finish_intervals(
        _intervals(table, [f"{named(r.task)} ({r.n_items})" for r in table.itertuples()], block["primary"]["margin"]),
        f"On which tasks does {named(main.a)} differ from {named(main.b)}?",
        f"student {named(block['student'])}, items in brackets; {_facts(verdict, block)}",
        "The primary comparison within each task. A task counts as better or worse only when its p-value, adjusted for "
        "the number of tasks by Holm's method, is small enough; the intervals are not adjusted.",
        f"{named(main.a).capitalize()} against {named(main.b)} by task: {'; '.join(parts)}.",
        table[columns],
        n_rows=len(table),
    )


def by_student(verdict: Mapping) -> go.Figure:
    """Draw the primary comparison of every student of a verdict."""
    blocks = verdict.get("students") or {verdict["student"]: verdict}
    rows = [{"student": name} | block["comparisons"][0] for name, block in blocks.items()]
    table = pd.DataFrame(rows)
    main = table.iloc[0]
    parts = [f"{named(row['student'])} {_said(row)}" for row in rows]
    columns = ["student", "a", "b", "shots", "difference", "low", "high", "p_value", "decision", "n_items", "n_seeds"]
    return _finish_intervals(
        _intervals(table, [named(name) for name in blocks], verdict["primary"]["margin"]),
        f"Whom does {named(main.a)} teaching help?",
        _facts(verdict, verdict),
        f"{named(main.a).capitalize()} minus {named(main.b)}, {main.shots} shots. Every student stands at its own "
        "level; nothing is corrected for the number of students.",
        f"{named(main.a).capitalize()} against {named(main.b)} by student: {'; '.join(parts)}.",
        table[columns],
        n_rows=len(table),
    )


BINS = 61
POCKET = "pocket models"


def sign_flips(predictions: pd.DataFrame, verdict: Mapping, student: str = "", models: str = POCKET) -> go.Figure:
    """Draw the differences that all sign patterns of the primary comparison would give, and the one that was seen."""
    block = block_of(verdict, student)
    primary = block["primary"]
    a, b = named(primary["a"]), named(primary["b"])
    own = predictions[predictions["student"] == block["student"]]
    table = paired(own, primary["a"], primary["b"], primary["shots"])
    sums = table.to_numpy().sum(axis=0)
    seen = 100 * sums.sum() / table.size
    # A flip changes the sum by an even number, so every other sum cannot be.
    null, unit = sign_flip_null(sums)[::2], 100 / table.size
    points = unit * (2 * np.arange(len(null)) - (len(null) - 1))
    reach = max(4.5 * np.sqrt(null @ points**2), 1.15 * abs(seen), unit)
    near = np.flatnonzero(np.abs(points) <= reach)
    width = 2 * unit * -(-len(near) // BINS)
    edges = np.arange(points[near[0]] - unit, points[near[-1]] + unit + width / 2, width)
    middles = (edges[:-1] + edges[1:]) / 2
    extreme = np.abs(points) >= abs(seen) - 1e-9
    shares = {far: 100 * np.histogram(points[part], edges, weights=null[part])[0] for far, part in _parts(extreme)}
    fig = go.Figure()
    for far, label, colour, pattern in (
        (False, "nearer to zero", LIGHT, ""),
        (True, "as far from zero as the difference seen", CHOSEN, "/"),
    ):
        fig.add_bar(
            x=middles,
            y=shares[far],
            width=width,
            name=label,
            marker={"color": colour, "pattern": {"shape": pattern}, "line": OUTLINE},
        )
    fig.add_vline(x=seen, line={"color": CONTROL, "dash": "dash", "width": 2}, annotation_text=f"seen {seen:+.1f}")
    fig.update_layout(barmode="stack", bargap=0)
    fig.update_xaxes(title_text="difference in right answers (points)", range=[-reach, reach])
    fig.update_yaxes(title_text="sign patterns (%)")
    p = sign_flip_p_value(sums)
    share = f"{100 * p:.1f} %" if p >= 0.001 else "less than 0.1 %"
    return finish(
        fig,
        f"Could luck alone put {a} {'ahead' if seen >= 0 else 'behind'} like this?",
        f"{(sums != 0).sum()} of {len(sums)} items differ between {a} and {b}, {primary['shots']} shots, "
        f"{len(table)} seeds; all sign patterns, counted exactly; {models}",
        "If the two arms were alike, every item's difference could as well have had the other sign. The bars are the "
        "differences that all choices of signs would give, all items with their own sizes. The seeds are taken as they "
        "are: whether other seeds would agree is what the interval adds.",
        f"If {a} and {b} were alike, {share} of all sign patterns would lie as far from zero as the {seen:+.1f} points "
        f"seen for {named(block['student'])} (that share is the p-value).",
        pd.DataFrame({"difference": middles, "nearer": shares[False], "as_far": shares[True]}),
    )


def _parts(extreme: np.ndarray) -> list[tuple[bool, np.ndarray]]:
    return [(False, ~extreme), (True, extreme)]


def decision_shares(counts: Mapping[str, int], facts: str, models: str = POCKET) -> go.Figure:
    """Draw how often each decision came out in simulated runs.

    Args:
        counts: Decision -> number of runs.
        facts: The simulated truth in words.
    """
    n = sum(counts.values())
    rows = [
        {"decision": said, "share": count / n} | dict(zip(("low", "high"), wilson(count / n, n), strict=True))
        for said, count in counts.items()
    ]
    table = pd.DataFrame(rows)
    fig = go.Figure()
    for row in table.itertuples():
        colour = DECISIONS[row.decision][1]
        fig.add_bar(
            x=[100 * row.share],
            y=[row.decision],
            orientation="h",
            marker={"color": colour, "pattern": {"shape": "/" if row.decision == "undecided" else ""}},
            error_x=error_bars(100 * table.loc[[row.Index], ["share", "low", "high"]], "share", "#1F1F1F"),
            showlegend=False,
        )
    fig.update_xaxes(title_text="simulated runs (%)", range=[0, 100])
    fig.update_yaxes(autorange="reversed")
    said = "; ".join(
        f"{row.decision} {100 * row.share:.0f} % ({100 * row.low:.0f} to {100 * row.high:.0f} %)"
        for row in table.itertuples()
    )
    return finish(
        fig,
        "How often does each decision come out?",
        f"{facts}; {n} simulated runs, 95 % intervals (Wilson); spread as seen with {models}",
        "Every simulated run has the true difference named above. What varies from run to run are its items, its seeds "
        "and chance, as much as they were seen to vary here.",
        f"{facts}: {said}.",
        table,
        height=330,
    )
