"""Figures of alignment and training: how the teacher moved and how its students learned."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.style import LEVEL, POCKET, arm_styles, escape, finish, marks, named, need
from workbench.verdict.in_words import ARMS, UNRECOGNISED, in_order, percent, spell
from workbench.verdict.intervals import mean_within_tasks, wilson

MARGIN, ACCURACY = "reward margin", "reward accuracy"
PANELS = {"rewards/margins": MARGIN, "rewards/accuracies": ACCURACY}
BAND = "line: mean, band: lowest to highest run"
RIGHT, UNCHECKED = "right answers", "cannot be checked"


def _runs(rows: pd.DataFrame, panel: str, what: str, gap: float = 0.05) -> go.Figure:
    """Draw the mean over runs of every arm by step, with a band from the lowest to the highest run."""
    by = rows.groupby([panel, "arm", "step"], sort=False)["value"].agg(["mean", "min", "max"]).reset_index()
    by = by.sort_values("step", kind="stable")
    order = {panel: [named(one) for one in rows[panel].unique()]}
    shown = {"styles": arm_styles(by["arm"]), "panel": panel, "lines": True}
    shown |= {"facet_col_spacing": gap, "category_orders": order, "labels": {"step": "optimiser step", "value": what}}
    edges = pd.concat([by.assign(value=by["max"]), by.assign(value=by["min"])[::-1]])
    bands = marks(edges, "step", "value", "arm", **shown)
    bands.update_traces(mode="lines", fill="toself", line_width=0, opacity=0.3, hoverinfo="skip", showlegend=False)
    lines = marks(by.assign(value=by["mean"]), "step", "value", "arm", **shown).update_traces(mode="lines")
    return bands.add_traces(lines.data)


def _last(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the last value of every run, and each arm's in words."""
    rows, run = in_order(rows.sort_values("step", kind="stable"), "arm"), ["arm", "student", "seed"]
    last = rows.groupby(run, as_index=False, sort=False).last()
    parts = []
    for arm, values in last.groupby("arm", sort=False)["value"]:
        ends = f"from {values.min():.2f} to {values.max():.2f} over {len(values)} runs"
        parts.append(f"{named(arm)} {values.mean():.2f} ({ends if len(values) > 1 else 'one run, no interval'})")
    return last, "; ".join(parts)


def reward_margins(curve: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw DPO's reward margin and reward accuracy by step, for the teachers aligned to real and to random pairs."""
    rows = curve[curve["stage"] == "alignment"].assign(panel=lambda own: own["metric"].map(PANELS))
    margins = need(rows[rows["panel"] == MARGIN], "reward margins", "run the alignment stage")
    fig = _runs(pd.concat([margins, rows[rows["panel"] == ACCURACY]]), "panel", "nats", gap=0.12)
    fig.update_yaxes(matches=None, showticklabels=True)
    fig.update_yaxes(title_text="share of pairs", range=[0, 1.03], col=2)
    fig.add_hline(y=0, **LEVEL, col=1).add_hline(y=0.5, **LEVEL, col=2)
    last, said = _last(margins)
    return finish(
        fig,
        "Does the teacher learn the student's preference?",
        f"{len(last)} runs; {BAND}",
        "Reward margin: beta times the log-probability ratio to the frozen teacher, summed over tokens, of chosen "
        "minus rejected. Accuracy: share of pairs with a positive margin, one half by chance. On training pairs: a "
        "control with flipped pairs can learn them too, by heart.",
        f"Reward margin at the last step, in nats: {said}.",
        last.drop(columns="panel"),
        models,
    )


def training_curves(curve: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw the students' training loss by step, arm and student."""
    rows = curve[(curve["stage"] == "training") & (curve["metric"] == "loss")]
    last, said = _last(need(rows, "training losses", "run the training stage"))
    return finish(
        _runs(rows, "student", "loss (nats a token)").update_yaxes(rangemode="tozero"),
        "How did the students learn?",
        f"{len(last)} runs, {rows['seed'].nunique()} seeds; {BAND}",
        "Loss on the arm's own training rows: a lower loss says that these rows are easier to learn, not that the "
        "student answers better.",
        f"Training loss at the last step, in nats a token: {said}.",
        last,
        models,
    )


def by_round(rows: pd.DataFrame, title: str, what: str, says: str, models: str = POCKET) -> go.Figure:
    """Draw a value of every run by round: a panel a value of the column panel, a line an arm.

    Args:
        rows: Columns panel, student, arm, seed, round, value.
        title: The question that the figure answers.
        what: What the value is, with its unit.
        says: How it was made, for the caption.
        models: Which models, as the subtitle names them.
    """
    rows = need(rows.rename(columns={"round": "step"}), "values by round", "run the rounds")
    groups = in_order(rows, "panel", "arm").groupby(["panel", "arm", "step"], sort=False)
    table = groups["value"].agg(["mean", "min", "max"]).reset_index()
    last, said = _last(rows.assign(arm=rows["arm"] + " " + rows["panel"].astype(str)))
    fig = _runs(rows, "panel", what).update_xaxes(title_text="round", dtick=1)
    facts = f"{rows['seed'].nunique()} seeds; {BAND}"
    return finish(fig, title, facts, says, f"At the last round: {said}.", table, models)


def style_shift(examples: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw which styles the teacher writes before and after alignment and how much of it is right, by student.

    Before is the arm "untailored"; after are the arms "tailored" and, as the control, "random_pairs".
    """
    own = need(examples[examples["arm"].isin(ARMS)], "examples", "run the alignment stage")
    own = in_order(own.assign(style=own["style"].replace("", UNRECOGNISED)), "student", "arm")
    table = pd.concat([_style_shares(rows, student) for student, rows in own.groupby("student", sort=False)])
    styles = in_order(own, "style")["style"].unique()
    last = [RIGHT, *({UNCHECKED} & set(table["what"]))]
    labels, order = {"share": "share of examples", "what": ""}, {"what": [*map(named, styles), *last]}
    shown = {"interval": "share", "panel": "student", "across": 2, "orientation": "h", "labels": labels}
    shown["category_orders"] = order
    fig = marks(table, "share", "what", "arm", arm_styles(own["arm"]), **shown)
    fig.update_layout(scattermode="group", scattergap=0.5).update_xaxes(range=[-0.02, 1.02], tickformat=".0%")
    fig.add_hline(y=len(styles) - 0.5, line={"color": LEVEL["line_color"], "width": 1})
    shifts = (_shift_in_words(rows, who) for who, rows in table.groupby("student", sort=False))
    n_rows = -(-table["student"].nunique() // 2)
    return finish(
        fig,
        "How does alignment change the teacher?",
        f"{len(examples)} examples; 95 % intervals: Wilson, for right answers within task and t over questions",
        "Share of each recognised style, and below the line of the examples that can be checked the share that ends in "
        "the right answer, and of all the share that cannot be checked. Untailored is the teacher before alignment, "
        "random pairs the teacher aligned to half-flipped pairs.",
        f"From before to after: {'; '.join(shifts)}.",
        table[["student", "arm", "what", "share", "low", "high", "n"]],
        models,
        height=150 + (60 + 52 * (len(styles) + len(last))) * n_rows,
    )


def _style_shares(examples: pd.DataFrame, student: str) -> pd.DataFrame:
    """Return the share of every style, of right answers and of those that cannot be checked, in every arm."""
    rows, styles = [], in_order(examples, "style")["style"].unique()
    for arm, own in examples.groupby("arm", sort=False):
        shares = {style: (own["style"] == style).mean() for style in styles}
        if (unknown := own["gold"] == "").any():
            shares[UNCHECKED] = unknown.mean()
        found = [(what, share, *wilson(share, len(own)), len(own)) for what, share in shares.items()]
        if len(checked := own[~unknown]):
            # Of the shipped sample the questions are not known: each example has one of its own.
            given = checked["correct"], checked["task"], checked.get("question_id", checked.index.to_series())
            found.append((RIGHT, *mean_within_tasks(*given), len(checked)))
        rows += [(arm, *row) for row in found]
    return pd.DataFrame(rows, columns=["arm", "what", "share", "low", "high", "n"]).assign(student=student)


def _shift_in_words(own: pd.DataFrame, student: str) -> str:
    wide = own.pivot(index="what", columns="arm", values="share")
    if not {"untailored", "tailored"} <= set(wide):
        return f"{escape(student)} has only {', '.join(map(named, wide))}"
    style = (wide["tailored"] - wide["untailored"]).drop([RIGHT, UNCHECKED], errors="ignore").idxmax()
    end = own[(own["what"] == style) & (own["arm"] == "tailored")].iloc[0]
    words = f"for {named(student)} {named(style)} {percent(wide.at[style, 'untailored'])} to "
    words += spell(end["share"], end["low"], end["high"])
    if RIGHT in wide.index:
        words += f", {RIGHT} {percent(wide.at[RIGHT, 'untailored'])} to {percent(wide.at[RIGHT, 'tailored'])}"
    return words
