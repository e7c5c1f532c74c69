"""Figures of the studies: which signal tells the truth, does the gain follow it, what is an example worth?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures import style
from workbench.figures.style import POCKET, arm_styles, escape, finish, marks, marks_by, named, need, spell_each

LEFT = 1.25  # so many times left of the first size the base is marked


def truth_and_cost(board: pd.DataFrame, costs: pd.DataFrame, steps: int, models: str = POCKET) -> go.Figure:
    """Draw how far each signal tells the gain against what it costs (leaderboard.board, leaderboard.signals_of).

    Steps is the length that is drawn, 0 for one epoch; all students together where there are several.
    """
    rows = need(board, "signals", "run: workbench study signals RUN")
    whom = "all students" if "all students" in set(rows["student"]) else rows["student"].iloc[0]
    rows = rows[(rows["student"] == whom) & (rows["steps"] == steps)]
    rows = rows.merge(costs, on="signal", how="left").fillna({"forward": 0.5, "backward": 0, "seconds": 0})
    rows = rows.rename(columns={"spearman_low": "low", "spearman_high": "high"}).sort_values("spearman")
    rows["beside"] = rows["forward"] * 1.08 ** rows.groupby("forward").cumcount()
    labels = {"beside": "passes forward for one draft (log scale; equal ones side by side, controls at 1/2)"}
    labels |= {"spearman": "rank correlation with measured gain"}
    by = marks_by(board["signal"])  # the same marks at every length
    fig = marks(rows, "beside", "spearman", "signal", by, interval="spearman", log_x=True, labels=labels)
    said = spell_each(rows.dropna(subset="spearman").iloc[::-1], "signal", "spearman", "")
    return finish(
        fig.add_hline(y=0, **style.LEVEL),
        "Which signal tells what training gains, and at what cost?",
        f"{rows['n_groups'].iloc[0]} common groups of drafts, {f'{steps} steps' if steps else 'one epoch'}, "
        f"{named(whom)}; 95 % intervals over seeds, draft questions and held-out questions",
        "Each mark is a way to ask a student about a draft. Up: what it says of a group of drafts goes with what "
        "training on the group gains. Left: cheap. Length and right are controls: nobody is asked.",
        f"From the best to the worst: {said}.",
        rows[["signal", "spearman", "low", "high", "apart", "regret", "forward", "backward", "seconds"]].round(4),
        models,
        height=480,
    )


def estimates(
    table: pd.DataFrame, unit: str, nothing: float | None, title: str, subtitle: str, caption: str, sentence: str
) -> go.Figure:
    """Draw values with their intervals, a row each: what a study found, where no other figure draws it.

    The columns are label, value, low, high; the unit is that of the axis; a line stands where `nothing` was found, such
    as 0 for a difference, unless it is None. The texts are those of `style.finish`; the subtitle names the models.
    """
    need(table, "estimates", "ask for some")
    rows = table.assign(label=[escape(label, 90) for label in table["label"]], kind="")
    shown = {"interval": "value", "orientation": "h", "labels": {"value": unit, "label": ""}}
    fig = marks(rows, "value", "label", "kind", marks_by(rows["kind"]), **shown)
    fig.update_traces(showlegend=False).update_yaxes(autorange="reversed")
    if nothing is not None:
        fig.add_vline(x=nothing, **style.LEVEL)
    return finish(fig, title, subtitle, caption, sentence, table.round(4), "", height=170 + 36 * len(table))


def score_and_gain(rounds: pd.DataFrame, said: list[str], models: str = POCKET) -> go.Figure:
    """Draw probe score and held-out gain by round of alignment, a row a student (goodhart.by_round, findings)."""
    need(rounds, "rounds", "run: workbench study goodhart RUN")
    styles = {"probe score": (style.CHOSEN, "circle", "solid"), "held-out gain": (style.TAILORED, "diamond", "dash")}
    tidy = []
    for name, what in zip(("score", "gain"), styles):
        values = (100 * rounds[[name, f"{name}_low", f"{name}_high"]]).set_axis(["value", "low", "high"], axis=1)
        tidy.append(values.assign(round=rounds["round"], what=what, panel=rounds["student"] + ": " + what))
    order = [f"{named(student)}: {what}" for student in rounds["student"].unique() for what in styles]
    shown = {"interval": "value", "lines": True, "panel": "panel", "across": 2, "category_orders": {"panel": order}}
    shown |= {"facet_col_spacing": 0.1, "labels": {"round": "round of alignment", "value": "probe score (%)"}}
    fig = marks(pd.concat(tidy), "round", "value", "what", styles, **shown)
    fig.update_yaxes(matches=None, showticklabels=True).update_yaxes(title_text="gain (points)", col=2)
    fig.add_hline(y=0, **style.LEVEL, col=2).update_xaxes(dtick=1).update_layout(showlegend=False)
    return finish(
        fig,
        "Does the gain follow the probe score from round to round?",
        f"95 % intervals over {rounds['n_seeds'].min()} seeds and the questions",
        "Round 0 is what the unaligned teacher writes; each round aligns the teacher of the round before to the probes "
        "of its own drafts. Left: preference questions answered right with an example of the round as the only "
        "demonstration. Right: accuracy after training on the round minus before, on validation questions outside "
        "the preference set, at equal tokens. When the left rises and the right falls, the score no longer stands for "
        "the gain. The intervals of two rounds are not for comparing by eye: the questions are the same.",
        " ".join(escape(one, 400) for one in said),
        rounds.round(4),
        models,
        height=150 + 230 * rounds["student"].nunique(),
    )


def learning_curve(
    points: pd.DataFrame, found: pd.DataFrame | None = None, said: str = "", models: str = POCKET
) -> go.Figure:
    """Draw one student's accuracy against examples a task and, where it was found, how far a tailored example reaches.

    The frames are those of learning_curves.points and learning_curves.worth; what the latter says is `said`.
    """
    student = named(need(points, "learning curves", "run: workbench study learning_curves RUN")["student"].iloc[0])
    sizes = sorted(set(points["n"]) - {0})
    styles = arm_styles(points["arm"])
    rows = points.assign(n=points["n"].replace(0, sizes[0] / LEFT)).sort_values("n", kind="stable")
    labels = {"n": "training examples a task (log scale)", "accuracy": "right answers"}
    fig = marks(rows, "n", "accuracy", "arm", styles, interval="accuracy", lines=True, log_x=True, labels=labels)
    for level in points.loc[points["arm"] == "base", "accuracy"]:
        fig.add_hline(y=level, **style.LEVEL | {"line_dash": "dashdot"})
    lines = ""
    if found is not None:
        lines = (
            " A level line leads from a tailored mark to where the untailored curve is as high: the larger number of "
            "examples divided by the smaller says how many of one kind one of the other is worth."
        )
        drawn = found[np.isfinite(found["needed"]) & (found["needed"] >= sizes[0])]
        nothing = [None] * len(drawn)
        x, y = (drawn["n"], drawn["needed"], nothing), (drawn["accuracy"], drawn["accuracy"], nothing)
        broken = {"x": np.column_stack(x).ravel(), "y": np.column_stack(y).ravel()}
        fig.add_scatter(**broken, **style.LEVEL, mode="lines", name="as good")
    fig.update_xaxes(tickvals=sizes, ticktext=list(map(str, sizes))).update_yaxes(tickformat=".0%")
    last = points[points["n"].isin([0, sizes[-1]])]
    return finish(
        fig,
        f"How fast does {student} learn from whom?",
        f"{points['n_items'].max()} validation questions, {points['n_seeds'].max()} seeds (base: one); 95 % intervals "
        "over seeds and questions",
        "Every mark is the same student, trained anew on so many examples of each task; base is the student untrained. "
        "No question is of the preference set or of the test set. Arms share their questions, so they differ more "
        f"surely than these intervals look.{lines}",
        f"With {sizes[-1]} examples a task: {spell_each(last, 'arm', 'accuracy')}. {escape(said, 1_000)}".strip(),
        points.drop(columns="student").round(4),
        models,
        height=440,
    )
