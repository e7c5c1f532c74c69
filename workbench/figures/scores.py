"""Figures of drafting and probing: what was drafted, how it scored and how decided the pairs are.

Figures of local data influence: what drafts do to a student, and how far siblings are apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.style import (
    CHOSEN,
    CONTROL,
    LIGHT,
    MARKS,
    OUTLINE,
    FigureError,
    dots_and_means,
    error_bars,
    finish,
    named,
    need,
    panels,
    share_cells,
)
from workbench.loop.pairs import DECIDED
from workbench.verdict.in_words import percent
from workbench.verdict.intervals import auc, clustered_mean, wilson

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


MILLI = 1000
UNIT = "thousandths of a nat a token"


def influences(found: pd.DataFrame, drafts: pd.DataFrame, student: str, models: str = POCKET) -> go.Figure:
    """Draw one student's local data influence by task and technique (or style): every draft, and means with intervals.

    Args:
        found: The frame "influences".
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


def signal_agreement(table: pd.DataFrame, agreement: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw each draft's one-shot accuracy against its influence, a panel a student, a mark a technique.

    Args:
        table: As signal_agreement.both returns it.
        agreement: As signal_agreement.rank_agreement returns it.
        models: How the figure names them.
    """
    students = list(need(table, "drafts with both signals", "run: workbench study signals RUN")["student"].unique())
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
        found: As signal_agreement.predictions returns it.
        models: How the figure names them.
    """
    need(found, "trained groups", "run: workbench study signals RUN")
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
