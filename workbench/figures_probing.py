"""Figures of drafting and probing: what was drafted, how it scored and how decided the pairs are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.decidedness import DECIDED
from workbench.figures_base import (
    CHOSEN,
    CONTROL,
    LIGHT,
    MARKS,
    OUTLINE,
    FigureError,
    dots_and_means,
    finish,
    named,
    need,
    panels,
    percent,
    share_cells,
)
from workbench.inference import auc, clustered_mean, wilson

POCKET = "pocket models"
BY_QUESTION = "95 % intervals, t over questions"
MAX_DOTS = 4_000  # a browser draws more of them slowly, and nobody can tell them apart


def drafts_by_technique(drafts: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw how many rationales each technique gave and which share ends in the right answer, by task.

    Drafts without a solver's answer (gold "") count as drafts but not in the share.
    """
    need(drafts, "drafts", "run the drafting stage")
    tasks, techniques = sorted(drafts["task"].unique()), sorted(drafts["technique"].unique())
    rows = [_share_right(drafts, task, technique) for task in tasks for technique in techniques]
    table = pd.DataFrame(rows)
    fig = make_subplots(1, len(tasks), subplot_titles=panels(tasks), shared_yaxes=True, horizontal_spacing=0.06)
    for column, task in enumerate(tasks, 1):
        own, labels = table[table["task"] == task], [named(t) for t in techniques]
        shares = [f"{percent(r.right)} right" if r.checked else "not checked" for r in own.itertuples()]
        first = column == 1
        fig.add_bar(
            y=labels,
            x=own["drafts"],
            orientation="h",
            name="drafts",
            marker={"color": LIGHT, "line": OUTLINE},
            text=shares,
            textposition="outside",
            cliponaxis=False,
            showlegend=first,
            legendgroup="n",
            row=1,
            col=column,
        )
        fig.add_bar(
            y=labels,
            x=own["n_right"],
            orientation="h",
            name="of these, right",
            marker_color=CHOSEN,
            marker_pattern_shape="/",
            showlegend=first,
            legendgroup="r",
            row=1,
            col=column,
        )
    fig.update_layout(barmode="overlay")
    fig.update_xaxes(title_text="rationales (count)", range=[0, 1.45 * max(1, table["drafts"].max())])
    fig.update_yaxes(autorange="reversed")
    n_questions = drafts["question_id"].nunique()
    return finish(
        fig,
        "What did the teacher draft, and how much of it is right?",
        f"{len(drafts)} rationales for {n_questions} questions; {models}",
        "Rationales by technique and task; the dark part ends in the answer the task's solver gives. The interval in "
        "the sentence is 95 %, t over questions, since rationales of one question share its difficulty.",
        _right_in_words(drafts),
        table,
        height=180 + 52 * len(techniques),
    )


def _right_in_words(drafts: pd.DataFrame) -> str:
    """Return how many rationales are right, overall and by technique."""
    checked = drafts[drafts["gold"] != ""]
    if checked.empty:
        return f"The teacher wrote {len(drafts)} rationales, none of which can be checked."
    mean, low, high = clustered_mean(checked["correct"], checked["question_id"])
    by = checked.groupby("technique")["correct"].mean()
    return (
        f"Of {len(checked)} rationales that can be checked, {percent(mean)} end in the right answer "
        f"({_range(low, high)}), "
        f"from {percent(by.min())} ({named(by.idxmin())}) to {percent(by.max())} ({named(by.idxmax())})."
    )


def _share_right(drafts: pd.DataFrame, task: str, technique: str) -> dict:
    own = drafts[(drafts["task"] == task) & (drafts["technique"] == technique)]
    checked = own[own["gold"] != ""]
    n_right = int(checked["correct"].sum())
    right = n_right / len(checked) if len(checked) else float("nan")
    low, high = wilson(right, len(checked)) if len(checked) else (float("nan"), float("nan"))
    return {
        "task": task,
        "technique": technique,
        "drafts": len(own),
        "checked": len(checked),
        "n_right": n_right,
        "right": right,
        "low": low,
        "high": high,
    }


def scored(signals: pd.DataFrame, drafts: pd.DataFrame) -> pd.DataFrame:
    """Return the rationale signals with the task, technique and question of their drafts.

    The column rank is the score's rank among the student's scores of the same task, as a share: tasks differ in
    difficulty, and a pair is always formed within a task.
    """
    rationales = signals[signals["item_kind"] == "rationale"]
    columns = ["draft_id", "task", "technique", "question_id"]
    joined = rationales.merge(drafts[columns], on="draft_id", how="inner", validate="many_to_one")
    ranks = joined.groupby(["student", "task"])["value"].rank(pct=True)
    return need(joined.assign(rank=ranks), "preference scores of these drafts", "run the probing stage")


def _means(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return mean, low, high, n and questions of value by group, clustered by question."""
    found = []
    for key, own in rows.groupby(by, sort=True):
        mean, low, high = clustered_mean(own["value"], own["question_id"])
        counts = {"n": len(own), "questions": own["question_id"].nunique()}
        found.append(dict(zip(by, key, strict=True)) | {"mean": mean, "low": low, "high": high} | counts)
    return pd.DataFrame(found)


def preference_scores(signals: pd.DataFrame, drafts: pd.DataFrame, student: str, models: str = POCKET) -> go.Figure:
    """Draw one student's preference score by technique and task: every draft, and the means with intervals."""
    rows = scored(signals[signals["student"] == student], drafts)
    tasks, techniques = sorted(rows["task"].unique()), sorted(rows["technique"].unique())
    table = _means(rows, ["task", "technique"])
    place = {technique: index for index, technique in enumerate(techniques)}
    fig = make_subplots(1, len(tasks), subplot_titles=panels(tasks), shared_yaxes=True, horizontal_spacing=0.05)
    generator = np.random.default_rng(0)
    shown = rows.sample(MAX_DOTS, random_state=0) if len(rows) > MAX_DOTS else rows
    some = f" ({len(shown)} of them drawn as dots, picked at random)" if len(shown) < len(rows) else ""
    for column, task in enumerate(tasks, 1):
        own, dots = table[table["task"] == task], shown[shown["task"] == task]
        dots_and_means(fig, column, dots, own, place, generator, opacity=0.3)
    fig.update_xaxes(title_text="preference score", range=[-0.03, 1.03])
    fig.update_yaxes(
        tickvals=list(place.values()), ticktext=[named(t) for t in techniques], range=[len(techniques) - 0.5, -0.5]
    )
    overall = _means(rows, ["technique"]).sort_values("mean")
    best, worst, items = overall.iloc[-1], overall.iloc[0], int(rows["n"].median())
    said = (
        f"Student {named(student)} answers best after {named(best.technique)} drafts ({best['mean']:.2f}, "
        f"{_range(best.low, best.high, '.2f')}) and worst after {named(worst.technique)} drafts ({worst['mean']:.2f}, "
        f"{_range(worst.low, worst.high, '.2f')})."
    )
    return finish(
        fig,
        f"Which demonstrations work for {named(student)}?",
        f"{len(rows)} drafts{some} of {rows['question_id'].nunique()} questions, {items} preference questions each; "
        f"{BY_QUESTION}; {models}",
        "Preference score: share of the preference set answered right with the draft as the one demonstration. "
        "Intervals are over questions, for this preference set; they leave out the choice of its items.",
        said,
        table,
        height=190 + 62 * len(techniques),
    )


def _range(low: float, high: float, form: str = ".0%") -> str:
    if np.isnan(low):
        return "one question, no interval"
    show = (lambda share: percent(share)) if form == ".0%" else (lambda share: format(share, form))
    return f"95 % interval {show(low)} to {show(high)}"


def technique_heatmap(signals: pd.DataFrame, drafts: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw the mean preference score of every student under every technique."""
    table = _means(scored(signals, drafts), ["student", "technique"])
    grid = table.pivot(index="student", columns="technique", values="mean")
    half = ((table["high"] - table["low"]) / 2).to_numpy()
    cells = table.assign(text=[_cell(mean, h) for mean, h in zip(table["mean"], half, strict=True)])
    texts = cells.pivot(index="student", columns="technique", values="text").fillna("")
    fig = go.Figure(
        share_cells(
            grid,
            columns=panels(grid.columns),
            texts=texts.to_numpy(),
            colorbar={"title": {"text": "score"}, "thickness": 14},
        )
    )
    fig.update_yaxes(autorange="reversed", title_text="student")
    fig.update_xaxes(title_text="technique of the demonstration")
    parts = []
    for student, own in table.groupby("student"):
        ranked = own.sort_values("mean", ascending=False)
        best = ranked.iloc[0]
        parts.append(f"{named(student)} {named(best.technique)} ({_cell(best['mean'], (best.high - best.low) / 2)})")
    return finish(
        fig,
        "Do students want to be taught differently?",
        f"mean preference score; {table['n'].sum()} scores; 95 % intervals (±), t over questions; {models}",
        "One cell is the mean preference score of a technique's drafts: the share of the preference set that the "
        "student answers right with the draft as its demonstration.",
        f"Each student's best technique, with 95 % intervals: {'; '.join(parts)}.",
        table,
        height=200 + 54 * len(grid),
    )


def _cell(mean: float, half: float) -> str:
    return f"{mean:.2f}" if np.isnan(half) else f"{mean:.2f} ± {half:.2f}"


def probe_roc(
    signals: pd.DataFrame, drafts: pd.DataFrame, native: Mapping[str, str], models: str = POCKET
) -> go.Figure:
    """Draw how well the one-shot probe tells drafts of a student's native technique from the others.

    Args:
        native: Student -> the technique planted in it; students without one are left out.
    """
    rows = scored(signals, drafts)
    known = [student for student in native if student in set(rows["student"])]
    if not known:
        raise FigureError("No student with a native technique has scores; pass native={student: technique}.")
    fig = go.Figure()
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": CONTROL, "dash": "dot", "width": 1}, name="chance")
    found = []
    for index, student in enumerate(known):
        own = rows[rows["student"] == student]
        positive = (own["technique"] == native[student]).to_numpy()
        area, low, high = auc(own["rank"], positive, own["question_id"])
        cuts = np.r_[np.inf, np.unique(own["rank"])[::-1]]
        hit = [float((own["rank"].to_numpy()[positive] >= cut).mean()) for cut in cuts]
        false = [float((own["rank"].to_numpy()[~positive] >= cut).mean()) for cut in cuts]
        colour, _, dash = MARKS[index % len(MARKS)]
        line = {"color": colour, "dash": dash, "width": 2.5}
        fig.add_scatter(
            x=false, y=hit, mode="lines", line=line, name=f"{named(student)}: {area:.2f} ({low:.2f} to {high:.2f})"
        )
        found.append(
            {"student": student, "native": native[student], "auc": area, "low": low, "high": high, "n": len(own)}
        )
    fig.update_xaxes(title_text="share of foreign drafts above the cut", range=[-0.01, 1.01])
    fig.update_yaxes(title_text="share of native drafts above the cut", range=[-0.01, 1.01])
    said = "; ".join(f"{named(r['student'])} {r['auc']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in found)
    return finish(
        fig,
        "Does the probe find the planted style?",
        f"one curve a student, AUC in the legend; {len(rows)} scores; 95 % intervals clustered by question; {models}",
        "A draft is native when its technique is the one the student was raised on; the probe does not know which that "
        "is. Scores are ranked within their task. The area is the chance that a native draft ranks above a foreign "
        "one, ties counting half.",
        f"Area under the curve, 0.5 being chance, with 95 % intervals: {said}.",
        pd.DataFrame(found),
        height=470,
    )


def pair_decidedness(pairs: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw how probable it is that the chosen side of each pair is the better one, by student and kind."""
    table = decidedness(need(pairs, "pairs", "run the alignment stage"))
    students, kinds = sorted(table["student"].unique()), sorted(table["kind"].unique())
    names = [f"{named(s)}, {named(k)} pairs" for s in students for k in kinds]
    fig = make_subplots(
        len(students), len(kinds), subplot_titles=names, shared_xaxes=True, vertical_spacing=0.3 / len(students)
    )
    # The last bin holds certainty too.
    bins = {"start": min(0.5, np.floor(20 * table["p_chosen"].min()) / 20), "end": 1.0001, "size": 0.05}
    parts = []
    for row, student in enumerate(students, 1):
        for column, kind in enumerate(kinds, 1):
            own = table[(table["student"] == student) & (table["kind"] == kind)]
            for label, part, colour, pattern in (
                ("decided", own[own["decided"]], CHOSEN, ""),
                ("not decided", own[~own["decided"]], LIGHT, "/"),
            ):
                fig.add_histogram(
                    x=part["p_chosen"],
                    xbins=bins,
                    marker={"color": colour, "pattern": {"shape": pattern}, "line": OUTLINE},
                    name=label,
                    legendgroup=label,
                    showlegend=row == column == 1,
                    row=row,
                    col=column,
                )
            fig.add_vline(x=DECIDED, line={"color": CONTROL, "dash": "dash", "width": 1.5}, row=row, col=column)
            if len(own):
                low, high = wilson(own["decided"].mean(), len(own))
                share = f"{percent(own['decided'].mean())} of {len(own)} {named(kind)} pairs"
                parts.append(f"for {named(student)} {share} ({percent(low)} to {percent(high)})")
    fig.update_layout(barmode="stack", bargap=0.05)
    fig.update_xaxes(range=[bins["start"] - 0.01, 1.01])
    fig.update_xaxes(title_text="probability that chosen is better", row=len(students))
    fig.update_yaxes(title_text="pairs (count)", col=1)
    return finish(
        fig,
        "How decided is each pair?",
        f"{len(table)} pairs; decided: a probability of {DECIDED:g} or more (dashed); {models}",
        "The probability comes from the preference questions answered right under one side alone: how many there are, "
        "and which way they lean. It promises too much, because the sides were picked for these "
        "very answers: of the best and the worst of four drafts that do not differ, about half would reach "
        f"{DECIDED:g}. Flipped pairs are left out. Intervals in the sentence: Wilson, 95 %.",
        f"Decided: {', '.join(parts)}.",
        table,
        height=160 + 190 * len(students),
    )


def decidedness(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return each unflipped pair's gap, the probability that its chosen side is better, and whether that decides it."""
    own = pairs[~pairs["flipped"]]
    if own["p_chosen"].isna().any():
        lost = own.loc[own["p_chosen"].isna(), "pair_id"].iloc[0]
        raise FigureError(f"Pair {lost!r} has no p_chosen: its sides were not probed; pass pairs built from probes.")
    columns = ["pair_id", "student", "kind", "task", "score_gap", "p_chosen"]
    return own[columns].assign(decided=own["p_chosen"] >= DECIDED)
