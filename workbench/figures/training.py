"""Figures of alignment and training: how the teacher moved and how its students learned."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.style import arm_style, error_bars, escape, finish, named, need, panels
from workbench.verdict.in_words import percent
from workbench.verdict.intervals import wilson

POCKET = "pocket models"
MARGIN_METRICS = ("rewards/margins", "reward_margin")
ACCURACY_METRICS = ("rewards/accuracies", "reward_accuracy")
LOSS_METRICS = ("loss", "train_loss")


def _metric(curve: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    return curve[curve["metric"].isin(names)]


def _draw_runs(fig: go.Figure, rows: pd.DataFrame, row: int, column: int, legend: bool) -> None:
    """Draw the mean over runs of every arm by step, with a band from the lowest to the highest run."""
    for arm, own in rows.groupby("arm"):
        colour, _, dash = arm_style(arm)
        by = own.groupby("step")["value"].agg(["mean", "min", "max"])
        if own.groupby(["student", "seed"]).ngroups > 1:
            edge = np.r_[by["max"], by["min"][::-1]]
            fig.add_scatter(
                x=np.r_[by.index, by.index[::-1]],
                y=edge,
                fill="toself",
                fillcolor=colour,
                opacity=0.15,
                mode="lines",
                line_width=0,
                hoverinfo="skip",
                showlegend=False,
                legendgroup=arm,
                row=row,
                col=column,
            )
        fig.add_scatter(
            x=by.index,
            y=by["mean"],
            mode="lines",
            line={"color": colour, "dash": dash, "width": 2.5},
            name=named(arm),
            legendgroup=arm,
            showlegend=legend,
            row=row,
            col=column,
        )


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last value of every run."""
    return rows.sort_values("step").groupby(["arm", "student", "seed"], as_index=False).last()


def _spread_of(values: pd.Series, form: str) -> str:
    if len(values) == 1:
        return f"{values.iloc[0]:{form}} (one run, no interval)"
    return f"{values.mean():{form}} (from {values.min():{form}} to {values.max():{form}} over {len(values)} runs)"


def reward_margins(curve: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw DPO's reward margin and reward accuracy by step, for the teachers aligned to real and to random pairs."""
    own = curve[curve["stage"] == "alignment"]
    margins = need(_metric(own, MARGIN_METRICS), "reward margins", "run the alignment stage")
    accuracies = _metric(own, ACCURACY_METRICS)
    fig = make_subplots(1, 2, subplot_titles=["reward margin", "reward accuracy"], horizontal_spacing=0.12)
    _draw_runs(fig, margins, 1, 1, legend=True)
    _draw_runs(fig, accuracies, 1, 2, legend=False)
    fig.add_hline(y=0, line={"color": "#8C8C8C", "width": 1}, row=1, col=1)
    fig.add_hline(y=0.5, line={"color": "#8C8C8C", "width": 1, "dash": "dot"}, row=1, col=2)
    fig.update_xaxes(title_text="optimiser step")
    fig.update_yaxes(title_text="nats", col=1)
    fig.update_yaxes(title_text="share of pairs", range=[0, 1.03], col=2)
    last = _last(margins)
    parts = [f"{named(arm)} {_spread_of(rows['value'], '.2f')}" for arm, rows in last.groupby("arm")]
    runs = len(last)
    return finish(
        fig,
        "Does the teacher learn the student's preference?",
        f"{runs} runs; line: mean, band: lowest to highest run; {models}",
        "Reward margin: beta times the log-probability ratio to the frozen teacher, summed over tokens, of chosen "
        "minus rejected. Accuracy: share of pairs with a positive margin, one half by chance. On training pairs: a "
        "control with flipped pairs can learn them too, by heart.",
        f"Reward margin at the last step, in nats: {'; '.join(parts)}.",
        last,
        height=360,
    )


def training_curves(curve: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw the students' training loss by step, arm and student."""
    rows = need(_metric(curve[curve["stage"] == "training"], LOSS_METRICS), "training losses", "run the training stage")
    students = sorted(rows["student"].unique())
    fig = make_subplots(1, len(students), subplot_titles=panels(students), shared_yaxes=True, horizontal_spacing=0.05)
    for column, student in enumerate(students, 1):
        _draw_runs(fig, rows[rows["student"] == student], 1, column, legend=column == 1)
    fig.update_xaxes(title_text="optimiser step")
    fig.update_yaxes(title_text="loss (nats a token)", rangemode="tozero", col=1)
    last = _last(rows)
    parts = [f"{named(arm)} {_spread_of(own['value'], '.2f')}" for arm, own in last.groupby("arm")]
    return finish(
        fig,
        "How did the students learn?",
        f"{len(last)} runs, {rows['seed'].nunique()} seeds; line: mean, band: lowest to highest run; {models}",
        "Loss on the arm's own training rows: a lower loss says that these rows are easier to learn, not that the "
        "student answers better.",
        f"Training loss at the last step, in nats a token: {'; '.join(parts)}.",
        last,
        height=360,
    )


def style_shift(examples: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw which styles the teacher writes before and after alignment and how much of it is right, by student.

    Before is the arm "untailored"; after are the arms "tailored" and, as the control, "random_pairs".
    """
    arms = [arm for arm in ("untailored", "random_pairs", "tailored") if arm in set(examples["arm"])]
    need(examples[examples["arm"].isin(arms)], "examples", "run the alignment stage")
    table = pd.concat([_style_shares(own, arms).assign(student=s) for s, own in examples.groupby("student")])
    students, styles = sorted(table["student"].unique()), sorted(set(table["what"]) - {"right answer"})
    names = [heading for s in students for heading in (f"{named(s)}: style written", "right answers")]
    fig = make_subplots(
        len(students),
        2,
        subplot_titles=names,
        column_widths=[0.62, 0.38],
        horizontal_spacing=0.16,
        shared_xaxes=True,
        vertical_spacing=0.22 / len(students),
    )
    for row, student in enumerate(students, 1):
        for shift, arm in enumerate(arms):
            own = table[(table["student"] == student) & (table["arm"] == arm)]
            _draw_shares(fig, own, arm, styles, 0.22 * (shift - (len(arms) - 1) / 2), row, legend=row == 1)
        fig.update_yaxes(
            tickvals=list(range(len(styles))), ticktext=panels(styles), range=[len(styles) - 0.5, -0.5], row=row, col=1
        )
        fig.update_yaxes(tickvals=[0], ticktext=["all"], range=[0.6, -0.6], row=row, col=2)
    fig.update_xaxes(range=[-0.02, 1.02], tickformat=".0%")
    fig.update_xaxes(title_text="share of examples", row=len(students))
    parts = [_shift_in_words(table[table["student"] == student], student, arms) for student in students]
    return finish(
        fig,
        "What does alignment change in the teacher's writing?",
        f"{len(examples)} examples; Wilson 95 % intervals, examples taken as independent; {models}",
        "Left: share of each recognised style. Right: share of all checkable examples that end in the right answer. "
        "Untailored is the teacher before alignment, random pairs the teacher aligned to half-flipped pairs.",
        f"From before to after: {'; '.join(parts)}.",
        table[["student", "arm", "what", "share", "low", "high", "n"]],
        height=150 + (70 + 52 * len(styles)) * len(students),
    )


def _style_shares(examples: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Return the share of every style and of right answers in every arm, with Wilson intervals."""
    written = examples.assign(style=examples["style"].where(examples["style"] != "", "unrecognised"))
    rows = []
    for arm in arms:
        own = written[written["arm"] == arm]
        checked = own[own["gold"] != ""]
        counts = {style: (int((own["style"] == style).sum()), len(own)) for style in sorted(written["style"].unique())}
        counts["right answer"] = (int(checked["correct"].sum()), len(checked))
        for what, (count, n) in counts.items():
            if n:
                low, high = wilson(count / n, n)
                rows.append({"arm": arm, "what": what, "share": count / n, "low": low, "high": high, "n": n})
    return pd.DataFrame(rows)


def _draw_shares(
    fig: go.Figure, own: pd.DataFrame, arm: str, styles: list[str], shift: float, row: int, legend: bool
) -> None:
    colour, symbol, _ = arm_style(arm)
    for column in (1, 2):
        part = own[own["what"].isin(styles) if column == 1 else own["what"] == "right answer"]
        y = (
            part["what"]
            .map({style: index for index, style in enumerate([*styles])} if column == 1 else {"right answer": 0})
            .astype(float)
        )
        fig.add_scatter(
            x=part["share"],
            y=y + shift,
            mode="markers",
            error_x=error_bars(part, "share", colour),
            name=named(arm),
            marker={"color": colour, "symbol": symbol, "size": 9},
            legendgroup=arm,
            showlegend=legend and column == 1,
            row=row,
            col=column,
        )


def _shift_in_words(own: pd.DataFrame, student: str, arms: list[str]) -> str:
    wide = own.pivot(index="what", columns="arm", values="share")
    if not {"untailored", "tailored"} <= set(arms):
        return f"{escape(student)} has only {', '.join(map(named, arms))}"
    moved = (wide["tailored"] - wide["untailored"]).drop("right answer", errors="ignore")
    style = moved.abs().idxmax()
    ends = own[(own["what"] == style) & (own["arm"] == "tailored")].iloc[0]
    words = (
        f"for {named(student)} {named(style)} {percent(wide.loc[style, 'untailored'])} to {percent(ends['share'])} "
        f"({percent(ends['low'])} to {percent(ends['high'])})"
    )
    if "right answer" in wide.index:
        right = wide.loc["right answer"]
        words += f", right answers {percent(right['untailored'])} to {percent(right['tailored'])}"
    return words
