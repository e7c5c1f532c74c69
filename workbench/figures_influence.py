"""Figures of local data influence: what drafts do to a student, and how far siblings are apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures_base import (
    CHOSEN,
    CONTROL,
    MARKS,
    dots_and_means,
    error_bars,
    finish,
    named,
    need,
    panels,
    percent,
)
from workbench.inference import clustered_mean, wilson

POCKET = "pocket models"
MILLI = 1000
UNIT = "thousandths of a nat a token"


def influences(found: pd.DataFrame, drafts: pd.DataFrame, student: str, models: str = POCKET) -> go.Figure:
    """Draw one student's local data influence by task and technique (or style): every draft, and means with intervals.

    Args:
        found: The frame "influences" of records.
        drafts: Give each draft its task, technique and question.
        student: Whose.
        models: How the figure names them.
    """
    own = found[(found["student"] == student) & (found["item_kind"] == "rationale")]
    rows = own.merge(drafts[["draft_id", "task", "technique", "question_id"]], on="draft_id")
    rows = need(rows.assign(value=MILLI * rows["value"]), "influences of these drafts", "run the probing stage")
    tasks, ways = sorted(rows["task"].unique()), sorted(rows["technique"].unique())
    table = pd.DataFrame([_mean_row(rows, task, way) for task in tasks for way in ways]).dropna(subset="mean")
    place = {way: at for at, way in enumerate(ways)}
    zero = -MILLI * float(own["zero_step"].iloc[0])
    fig = make_subplots(1, len(tasks), subplot_titles=panels(tasks), shared_yaxes=True, horizontal_spacing=0.05)
    rng = np.random.default_rng(0)
    for column, task in enumerate(tasks, 1):
        dots, means = rows[rows["task"] == task], table[table["task"] == task]
        dots_and_means(fig, column, dots, means, place, rng, opacity=0.4)
        fig.add_vline(x=0, line={"color": CONTROL, "width": 1.5}, row=1, col=column)
        fig.add_vline(x=zero, line={"color": CONTROL, "dash": "dot", "width": 1.5}, row=1, col=column)
    fig.update_xaxes(title_text=f"influence ({UNIT})")
    fig.update_yaxes(tickvals=list(place.values()), ticktext=[named(way) for way in ways])
    return finish(
        fig,
        f"Which drafts move {named(student)}?",
        f"{len(rows)} drafts, {int(rows['n'].iloc[0])} reference answers; 95 % intervals, t over questions; {models}",
        "Influence: reference loss before one optimiser step on a draft minus after it, beyond what a step at zero "
        "gradient does. Right of the solid line a draft helps; right of the dotted one it would also count as helpful "
        "without that correction. Drafts are grouped by technique or, where none was asked for, by style.",
        _helpful_in_words(own, student),
        table,
        height=190 + 62 * len(ways),
    )


def _mean_row(rows: pd.DataFrame, task: str, way: str) -> dict:
    own = rows[(rows["task"] == task) & (rows["technique"] == way)]
    if own.empty:
        return {"task": task, "technique": way, "mean": np.nan, "low": np.nan, "high": np.nan, "n": 0}
    mean, low, high = clustered_mean(own["value"], own["question_id"])
    return {"task": task, "technique": way, "mean": mean, "low": low, "high": high, "n": len(own)}


def _helpful_in_words(own: pd.DataFrame, student: str) -> str:
    parts = []
    for name in ("value", "raw"):
        share = float((own[name] > 0).mean())
        low, high = wilson(share, len(own))
        parts.append(f"{percent(share)} (95 % interval {percent(low)} to {percent(high)})")
    return (
        f"Of {len(own)} drafts {parts[0]} help {named(student)}; with the step at zero gradient left in, {parts[1]} "
        "count as helpful."
    )


def sibling_gaps(pairs: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw how far chosen and rejected are apart in influence, by student."""
    own = need(pairs[~pairs["flipped"]], "pairs", "run the alignment stage")
    students = sorted(own["student"].unique())
    fig = make_subplots(len(students), 1, subplot_titles=panels(students), shared_xaxes=True)
    for row, student in enumerate(students, 1):
        gaps = MILLI * own.loc[own["student"] == student, "score_gap"]
        fig.add_histogram(x=gaps, marker_color=CHOSEN, showlegend=False, name="pairs", row=row, col=1)
    fig.update_xaxes(title_text=f"influence of chosen minus rejected ({UNIT})", row=len(students))
    fig.update_yaxes(title_text="pairs (count)")
    said = "; ".join(
        f"{named(student)} {MILLI * part['score_gap'].median():.1f}" for student, part in own.groupby("student")
    )
    return finish(
        fig,
        "How far are the siblings of a pair apart?",
        f"{len(own)} pairs; {models}",
        "The paper takes every helpful sibling with every harmful one, however close both are to zero; pairs.min_gap "
        "in the recipe asks for a distance. Flipped pairs are left out.",
        f"Median gap in {UNIT}: {said}.",
        own[["pair_id", "student", "kind", "task", "score_gap"]],
        height=170 + 150 * len(students),
    )


def two_signals(table: pd.DataFrame, agreement: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw each draft's one-shot accuracy against its influence, a panel a student, a mark a technique.

    Args:
        table: As two_signals.both returns it.
        agreement: As two_signals.rank_agreement returns it.
        models: How the figure names them.
    """
    students = list(need(table, "drafts with both signals", "run: workbench signals RUN")["student"].unique())
    ways = sorted(table["technique"].unique())
    fig = make_subplots(len(students), 1, subplot_titles=panels(students), shared_xaxes=True, vertical_spacing=0.08)
    for row, student in enumerate(students, 1):
        for at, way in enumerate(ways):
            own = table[(table["student"] == student) & (table["technique"] == way)]
            colour, symbol, _ = MARKS[at % len(MARKS)]
            fig.add_scatter(
                x=own["one_shot"],
                y=MILLI * own["influence"],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.6},
                name=named(way),
                legendgroup=way,
                showlegend=row == 1,
                row=row,
                col=1,
            )
        fig.add_hline(y=0, line={"color": CONTROL, "width": 1, "dash": "dot"}, row=row, col=1)
    fig.update_xaxes(title_text="one-shot accuracy, share of 1", row=len(students))
    fig.update_yaxes(title_text=f"influence ({UNIT})")
    said = "; ".join(
        f"{named(one.student)} {one.across:+.2f} ({one.across_low:+.2f} to {one.across_high:+.2f}) over all drafts of "
        f"a task and {one.within:+.2f} ({one.within_low:+.2f} to {one.within_high:+.2f}) within a question"
        for one in agreement.itertuples()
    )
    return finish(
        fig,
        "Do the two signals agree?",
        f"{len(table)} drafts; 95 % bootstrap intervals over questions; {models}",
        "One mark is one draft: how often the student answers right after it as its only demonstration, and what one "
        "optimiser step on it does to the loss on the reference answers. Both use the same questions.",
        f"Rank correlation, with 95 % intervals: {said}.",
        table[["student", "task", "technique", "one_shot", "influence"]],
        height=150 + 280 * len(students),
    )


def gains_by_signal(found: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw how much more the best-scored group gained than the worst-scored one, by signal and student.

    Args:
        found: As two_signals.predictions returns it.
        models: How the figure names them.
    """
    need(found, "trained groups", "run: workbench signals RUN")
    fig = go.Figure()
    for at, (signal, own) in enumerate(found.groupby("signal", sort=False)):
        colour, symbol, _ = MARKS[at % len(MARKS)]
        points = own.assign(mean=100 * own["best_minus_worst"], low=100 * own["low"], high=100 * own["high"])
        fig.add_scatter(
            x=points["mean"],
            y=[named(student) for student in points["student"]],
            mode="markers",
            error_x=error_bars(points, "mean", colour),
            marker={"color": colour, "symbol": symbol, "size": 11},
            name=named(signal),
        )
    fig.update_layout(scattermode="group", scattergap=0.6)
    fig.add_vline(x=0, line={"color": CONTROL, "width": 1, "dash": "dot"})
    fig.update_xaxes(title_text="gain of the best-scored group minus the worst-scored, points")
    said = "; ".join(
        f"{one.signal}, {named(one.student)}: {100 * one.best_minus_worst:+.1f} ({100 * one.low:+.1f} to "
        f"{100 * one.high:+.1f}), rank correlation {one.correlation:+.2f} ({one.correlation_low:+.2f} to "
        f"{one.correlation_high:+.2f})"
        for one in found.itertuples()
    )
    return finish(
        fig,
        "Which signal predicts what training gains?",
        f"held-out questions; 95 % intervals, t over training seeds; {models}",
        "One student was trained on the best rationale of each question, one on the second best, and so on, by either "
        "signal. Right of zero the signal told the truth: what it scored high taught more. The rank correlation is "
        "that of score and gain over all groups.",
        f"{said}.",
        found,
        height=230 + 60 * found["student"].nunique(),
    )
