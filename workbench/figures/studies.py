"""Figures of the look back and of the lesson: does the probe tell the truth, and what did a teacher learn?"""

from collections.abc import Mapping

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
    share_cells,
)
from workbench.verdict.in_words import percent


def probe_validity(table: pd.DataFrame, agreement: pd.DataFrame, left: str, models: str = POCKET) -> go.Figure:
    """Draw gain against mean preference score, a panel a student and a line a task.

    Args:
        table: As validity.train_on_groups returns it.
        agreement: As validity.predictive_validity returns it.
        left: What of the correlation is left when other explanations are held fixed, as validity.left_over says it.
        models: Which models this was made with.
    """
    need(table, "groups", "run: workbench study validity RUN")
    means = table.groupby(["student", "task", "group"], as_index=False)[["score", "gain"]].mean()
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
        f"Rank correlation of score and gain, within student and task, with 95 % intervals: {said}. {left}".strip(),
        means,
        height=140 + 190 * len(students),
    )


def estimates(
    table: pd.DataFrame, unit: str, nothing: float | None, title: str, subtitle: str, caption: str, sentence: str
) -> go.Figure:
    """Draw values with their intervals, a row each: what a study found, where no other figure draws it.

    Args:
        table: Columns label, value, low, high.
        unit: What is on the axis.
        nothing: Where a line says that nothing was found, such as 0 for a difference; None for no line.
        title: The question; this and the other texts as for figures.style.finish.
        subtitle: How many of what, and which models.
        caption: How to read it.
        sentence: What it says.
    """
    need(table, "estimates", "ask for some")
    fig = go.Figure()
    fig.add_scatter(
        x=table["value"],
        y=[escape(label, 90) for label in table["label"]],
        error_x=error_bars(table, "value", CHOSEN),
        mode="markers",
        marker={"color": CHOSEN, "size": 10},
        showlegend=False,
    )
    if nothing is not None:
        fig.add_vline(x=nothing, line={"color": CONTROL, "width": 1, "dash": "dot"})
    fig.update_xaxes(title_text=unit)
    fig.update_yaxes(autorange="reversed")
    return finish(fig, title, subtitle, caption, sentence, table.round(4), height=170 + 36 * len(table))


def score_and_gain(rounds: pd.DataFrame, said: list[str], models: str = POCKET) -> go.Figure:
    """Draw probe score and held-out gain by round of alignment, a row a student.

    Args:
        rounds: As goodhart.by_round returns it.
        said: Sentences on where the two part, as goodhart.findings returns them.
        models: Which models this was made with.
    """
    students = list(need(rounds, "rounds", "run: workbench study goodhart RUN")["student"].unique())
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
