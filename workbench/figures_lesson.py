"""Figures of a lesson: a teacher changing its way of explaining, and whom its examples help."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures_base import MARKS, finish, named, need, panels, percent, share_cells

POCKET = "pocket models"


def style_path(shares: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw in which style each student's teacher explains, after every few steps of its alignment.

    Args:
        shares: As lesson.style_shares returns them.
        models: Which models this was made with.
    """
    students, styles = list(need(shares, "shares", "watch the teachers first")["student"].unique()), []
    fig = make_subplots(
        1,
        len(students),
        subplot_titles=[f"for {name}" for name in panels(students)],
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    for column, student in enumerate(students, 1):
        own, styles = shares[shares["student"] == student], list(shares["style"].unique())
        for index, style in enumerate(styles):
            colour, symbol, dash = MARKS[index % len(MARKS)]
            path = own[own["style"] == style].sort_values("step")
            fig.add_scatter(
                x=path["step"],
                y=path["share"],
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 3},
                marker={"symbol": symbol, "size": 9},
                name=named(style),
                legendgroup=style,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    fig.update_xaxes(title_text="steps of alignment")
    fig.update_yaxes(range=[-0.03, 1.05], tickformat=".0%")
    fig.update_yaxes(title_text="share of explanations", col=1)
    n = int(shares["n"].max())
    words = "; ".join(_path_in_words(shares[shares["student"] == student], student) for student in students)
    return finish(
        fig,
        "How does one teacher change for three students?",
        f"the same {n} questions explained after every few steps; one run of alignment each; {models}",
        "All three begin as the same teacher. What differs is whose preference pairs it is aligned to. Intervals in "
        "the sentence: Wilson, 95 %, questions taken as independent.",
        f"From the first to the last look, {words}.",
        shares,
        height=400,
    )


def _path_in_words(own: pd.DataFrame, student: str) -> str:
    last = own[own["step"] == own["step"].max()].sort_values("share")
    end = last.iloc[-1]
    start = own[(own["step"] == own["step"].min()) & (own["style"] == end["style"])].iloc[0]
    return (
        f"for {named(student)} {named(end['style'])} {percent(start['share'])} to {percent(end['share'])} "
        f"({percent(end['low'])} to {percent(end['high'])})"
    )


def own_examples(
    learned: pd.DataFrame, gaps: Mapping[str, tuple[float, float, float]], models: str = POCKET
) -> go.Figure:
    """Draw how often each student answers right after one example of each teacher.

    Args:
        learned: As lesson.learn_by_example returns it.
        gaps: As lesson.own_or_foreign returns them.
        models: Which models this was made with.
    """
    students, teachers = list(learned["student"].unique()), list(learned["teacher"].unique())
    table = learned.groupby(["student", "teacher"], sort=False)["right"].agg(["mean", "size"]).reset_index()
    grid = table.pivot(index="student", columns="teacher", values="mean").loc[students, teachers]
    own = [
        [("<b>{}</b>" if name == student else "{}").format(percent(grid.at[student, name])) for name in teachers]
        for student in students
    ]
    fig = go.Figure(
        share_cells(
            grid,
            columns=[
                f"teacher for<br>{named(name)}" if name in students else f"{named(name)}<br>teacher"
                for name in teachers
            ],
            texts=own,
            colorbar={"title": {"text": "right"}, "thickness": 14, "tickformat": ".0%"},
        )
    )
    fig.update_yaxes(autorange="reversed", title_text="student")
    fig.update_xaxes(title_text="teacher who wrote the example")
    said = "; ".join(f"{named(who)} {mean:+.0f} ({low:+.0f} to {high:+.0f})" for who, (mean, low, high) in gaps.items())
    n_examples, n_questions = learned["example"].nunique(), learned["question"].nunique()
    return finish(
        fig,
        "Who learns from whose example?",
        f"{n_examples} examples from each teacher, {n_questions} questions after each; in bold the student's own "
        f"teacher; {models}",
        "Share of questions answered right with one example in the prompt. All teachers explain the same questions. "
        "This is learning from an example, not training: that takes longer and is in the verdict of the run.",
        f"Own teacher's examples minus the other students' teachers', in points, with 95 % intervals over the "
        f"{n_examples} examples: {said}.",
        table.rename(columns={"mean": "right", "size": "n"}),
        height=200 + 64 * len(students),
    )
