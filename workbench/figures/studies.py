"""Figures of the look back: does the probe tell the truth, and does the gain follow it?"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.scores import POCKET
from workbench.figures.style import (
    CHOSEN,
    CONTROL,
    MARKS,
    TAILORED,
    error_bars,
    escape,
    finish,
    named,
    need,
    panels,
)


def probe_validity(table: pd.DataFrame, agreement: pd.DataFrame, left: str, models: str = POCKET) -> go.Figure:
    """Draw gain against mean preference score, a panel a student and a line a task.

    Args:
        table: As validity.validate returns it.
        agreement: As validity.agreement returns it.
        left: What of the correlation is left when other explanations are held fixed, as validity.left_over says it.
        models: Which models this was made with.
    """
    means = need(table, "groups", "run: workbench validity RUN").groupby(["student", "task", "group"], as_index=False)
    means = means[["score", "gain"]].mean()
    students, tasks = list(table["student"].unique()), list(table["task"].unique())
    fig = make_subplots(len(students), 1, subplot_titles=panels(students), shared_xaxes=True, vertical_spacing=0.06)
    for row, student in enumerate(students, 1):
        for index, task in enumerate(tasks):
            own = means[(means["student"] == student) & (means["task"] == task)].sort_values("score")
            colour, symbol, dash = MARKS[index % len(MARKS)]
            fig.add_scatter(
                x=own["score"],
                y=100 * own["gain"],
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                marker={"symbol": symbol, "size": 9},
                name=named(task),
                legendgroup=task,
                showlegend=row == 1,
                row=row,
                col=1,
            )
        fig.add_hline(y=0, line={"color": CONTROL, "width": 1, "dash": "dot"}, row=row, col=1)
    fig.update_xaxes(title_text="mean preference score of the group, share of 1", row=len(students))
    fig.update_yaxes(title_text="gain, points")
    n_seeds = table["seed"].nunique()
    said = "; ".join(
        f"{named(row.student)} {row.correlation:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        for row in agreement.itertuples()
    )
    return finish(
        fig,
        "Does what works as a demonstration help in training?",
        f"groups: best to worst rationale of each draft question; {n_seeds} training seeds; {models}",
        "Gain: accuracy after training on the group minus before, on validation questions outside the preference set. "
        "A line that rises says that the probe told the truth for that student and task.",
        f"Rank correlation of score and gain, within student and task, with 95 % intervals: {said}. {left}",
        means,
        height=140 + 190 * len(students),
    )


def score_and_gain(rounds: pd.DataFrame, said: list[str], models: str = POCKET) -> go.Figure:
    """Draw probe score and held-out gain by round of alignment, a row a student.

    Args:
        rounds: As goodhart.by_round returns it.
        said: Sentences on where the two part, as goodhart.findings returns them.
        models: Which models this was made with.
    """
    students = list(need(rounds, "rounds", "run: workbench goodhart RUN")["student"].unique())
    measures = (
        ("score", "probe score (%)", CHOSEN, "circle", "solid"),
        ("gain", "gain (points)", TAILORED, "diamond", "dash"),
    )
    titles = [f"{named(student)}: {what}" for student in students for what in ("probe score", "held-out gain")]
    fig = make_subplots(len(students), 2, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.1)
    for row, student in enumerate(students, 1):
        for column, (what, title, colour, symbol, dash) in enumerate(measures, 1):
            own = 100 * rounds.loc[rounds["student"] == student, [what, f"{what}_low", f"{what}_high"]]
            own.columns = [what, "low", "high"]
            fig.add_scatter(
                x=rounds.loc[own.index, "round"],
                y=own[what],
                error_y=error_bars(own, what, colour),
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                marker={"symbol": symbol, "size": 10},
                showlegend=False,
                row=row,
                col=column,
            )
            fig.update_yaxes(title_text=title, row=row, col=column)
        fig.add_hline(y=0, line={"color": CONTROL, "width": 1, "dash": "dot"}, row=row, col=2)
    fig.update_xaxes(dtick=1)
    fig.update_xaxes(title_text="round of alignment", row=len(students))
    return finish(
        fig,
        "Does the gain follow the probe score from round to round?",
        f"95 % intervals over {rounds['n_seeds'].min()} seeds and the questions; {models}",
        "Round 0 is what the unaligned teacher writes; each round aligns the teacher of the round before to the probes "
        "of its own drafts. Left: preference questions answered right with an example of the round as the only "
        "demonstration. Right: accuracy after training on the round minus before, on validation questions outside "
        "the preference set, at equal tokens. When the left rises and the right falls, the score no longer stands for "
        "the gain. The intervals of two rounds are not for comparing by eye: the questions are the same.",
        " ".join(escape(one, 400) for one in said),
        rounds.round(4),
        height=150 + 230 * len(students),
    )
