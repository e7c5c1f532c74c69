"""The learning curves of a student: accuracy by the number of examples, for base, untailored and tailored."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.scores import POCKET
from workbench.figures.style import CONTROL, arm_style, error_bars, escape, finish, named, need
from workbench.verdict.in_words import percent

LEFT = 1.25  # so many times left of the first size the base is marked


def learning_curve(
    points: pd.DataFrame, found: pd.DataFrame | None = None, said: str = "", models: str = POCKET
) -> go.Figure:
    """Draw accuracy against examples a task and, where it was found, how far a tailored example reaches.

    Args:
        points: Of one student, as learning_curves.points returns it.
        found: As learning_curves.worth returns it; level lines then lead from each tailored size to the untailored
            curve.
        said: What that says, in a sentence.
        models: Which models this was made with.
    """
    student = named(need(points, "learning curves", "run: workbench study learning_curves RUN")["student"].iloc[0])
    sizes = sorted(set(points["n"]) - {0})
    fig = go.Figure()
    for arm, own in points.groupby("arm", sort=False):
        colour, symbol, dash = arm_style(arm)
        own = own.sort_values("n").assign(x=own["n"])
        if arm == "base":
            fig.add_hline(y=own["accuracy"].iloc[0], line={"color": colour, "width": 1, "dash": dash})
            own = own.assign(x=sizes[0] / LEFT)
        fig.add_scatter(
            x=own["x"],
            y=own["accuracy"],
            error_y=error_bars(own, "accuracy", colour),
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            marker={"symbol": symbol, "size": 10},
            name=named(arm),
        )
    lines = ""
    if found is not None:
        lines = (
            " A level line leads from a tailored mark to where the untailored curve is as high: the larger number of "
            "examples divided by the smaller says how many of one kind one of the other is worth."
        )
        _add_reach(fig, found[np.isfinite(found["needed"]) & (found["needed"] >= sizes[0])])
    ticks = {"tickvals": sizes, "ticktext": [str(n) for n in sizes]}
    fig.update_xaxes(title_text="training examples a task (log scale)", type="log", **ticks)
    fig.update_yaxes(title_text="right answers", tickformat=".0%")
    last = points[points["n"].isin([0, sizes[-1]])]
    parts = [f"{named(r.arm)} {percent(r.accuracy)} ({percent(r.low)} to {percent(r.high)})" for r in last.itertuples()]
    return finish(
        fig,
        f"How fast does {student} learn from whom?",
        f"{points['n_items'].max()} validation questions, {points['n_seeds'].max()} seeds (base: one); 95 % intervals "
        f"over seeds and questions; {models}",
        "Every mark is the same student, trained anew on so many examples of each task; base is the student untrained. "
        "No question is of the preference set or of the test set. Arms share their questions, so they differ more "
        f"surely than these intervals look.{lines}",
        f"With {sizes[-1]} examples a task: {'; '.join(parts)}. {escape(said, 1_000)}".strip(),
        points.drop(columns="student").round(4),
        height=440,
    )


def _add_reach(fig: go.Figure, found: pd.DataFrame) -> None:
    gap = [None] * len(found)
    fig.add_scatter(
        x=np.column_stack([found["n"], found["needed"], gap]).ravel(),
        y=np.column_stack([found["accuracy"], found["accuracy"], gap]).ravel(),
        mode="lines",
        line={"color": CONTROL, "width": 1, "dash": "dot"},
        name="as good",
    )
