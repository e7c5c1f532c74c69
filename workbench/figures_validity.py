"""Figure of the probe's test: what a group of drafts scored against what training on it gained."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures_base import CONTROL, OTHER_ARMS, finish, named, need, panels
from workbench.figures_probing import POCKET

MARKS = (("#0072B2", "circle", "solid"), ("#D55E00", "diamond", "dash"), *OTHER_ARMS)


def probe_validity(table: pd.DataFrame, agreement: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw gain against mean preference score, a panel a student and a line a task.

    Args:
        table: As validity.validate returns it.
        agreement: As validity.agreement returns it.
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
    partial = agreement["partial"].dropna()
    held = f" With length and correctness held fixed {partial.iloc[-1]:+.2f} is left." if len(partial) else ""
    return finish(
        fig,
        "Does what works as a demonstration help in training?",
        f"groups: best to worst rationale of each draft question; {n_seeds} training seeds; {models}",
        "Gain: accuracy after training on the group minus before, on validation questions outside the preference set. "
        "A line that rises says that the probe told the truth for that student and task.",
        f"Rank correlation of score and gain, within student and task, with 95 % intervals: {said}.{held}",
        means,
        height=140 + 190 * len(students),
    )
