"""Figures of drafting and probing: what was drafted, how it scored, what it did, and how decided the pairs are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.figures import style
from workbench.figures.style import POCKET, bars, dots_and_means, finish, marks, marks_by, named, need, spell_each
from workbench.loop.pairs import DECIDED
from workbench.runs.errors import DataError
from workbench.verdict.in_words import RIGHT, STATES, UNCHECKED, WRONG, in_order, percent, spell, states
from workbench.verdict.intervals import auc, mean_within_tasks, wilson

BY_QUESTION = "95 % intervals, t over questions"
MAX_DOTS = 4_000  # a browser draws more of them slowly, and nobody can tell them apart
MILLI = 1000
UNIT = "thousandths of a nat a token"


def drafts_by_technique(drafts: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw how many rationales each technique gave and which share ends in the right answer, by task.

    Drafts without a solver's answer (gold "") count as drafts but not in the share.
    """
    need(drafts, "drafts", "run the drafting stage")
    groups = [drafts["task"], drafts["technique"]]
    table = pd.get_dummies(states(drafts)).reindex(columns=STATES, fill_value=0).groupby(groups).sum().reset_index()
    checked = table[RIGHT] + table[WRONG]
    table["share right"] = table[RIGHT] / checked.where(checked > 0)
    ends = [wilson(share, n) if n else (np.nan, np.nan) for share, n in zip(table["share right"], checked, strict=True)]
    table[["low", "high"]] = ends
    share = ["" if np.isnan(right) else f"{percent(right)} right" for right in table["share right"]]
    # One lies over the other, so that the last one's label stands outside.
    upto = {UNCHECKED: table[list(STATES)].sum(axis=1), WRONG: checked, RIGHT: table[RIGHT]}
    rows = [table.assign(kind=kind, n=n, text=share if kind == UNCHECKED else "") for kind, n in upto.items()]
    fills = {UNCHECKED: (style.LIGHT, "."), WRONG: (style.REJECTED, ""), RIGHT: (style.CHOSEN, "/")}
    labels = {"n": "rationales (count)", "technique": ""}
    shown = {"panel": "task", "text": "text", "barmode": "overlay", "opacity": 1, "labels": labels}
    fig = bars(pd.concat(rows), "n", "technique", "kind", fills, **shown)
    fig.update_xaxes(range=[0, 1.6 * upto[UNCHECKED].max()])
    fig.update_traces(textposition="outside", cliponaxis=False, hoverinfo="skip", hovertemplate=None)
    return finish(
        fig,
        "What did the teacher draft, and how much of it is right?",
        f"{len(drafts)} rationales for {drafts['question_id'].nunique()} questions",
        "Rationales by technique and task: they end in the answer that the task's solver gives, in another, or cannot "
        "be checked. Shares are of those that can be checked. The interval in the sentence is "
        "95 %, within task, t over questions, since rationales of one question share its difficulty.",
        _right_in_words(drafts),
        table,
        models,
        height=180 + 52 * drafts["technique"].nunique(),
    )


def _right_in_words(drafts: pd.DataFrame) -> str:
    checked, n = drafts[drafts["gold"] != ""], (drafts["gold"] == "").sum()
    if checked.empty:
        return f"The teacher wrote {len(drafts)} rationales, none of which can be checked."
    by = checked.groupby(["technique", "task"])["correct"].mean().groupby("technique").mean()
    share = spell(*mean_within_tasks(checked["correct"], checked["task"], checked["question_id"]))
    return (
        f"Of {len(checked)} rationales that can be checked{f' ({n} cannot)' if n else ''}, {share} end in the right "
        f"answer, from {percent(by.min())} ({named(by.idxmin())}) to {percent(by.max())} ({named(by.idxmax())})."
    )


def scored(signals: pd.DataFrame, drafts: pd.DataFrame) -> pd.DataFrame:
    """Return the rationale signals with the task, technique and question of their drafts.

    The column rank is the score's rank among the student's scores of the same task, as a share: tasks differ in
    difficulty, and a pair is always formed within a task.
    """
    rationales = signals[signals["item_kind"] == "rationale"]
    columns = ["draft_id", "task", "technique", "question_id"]
    joined = rationales.merge(drafts[columns], on="draft_id", how="inner", validate="many_to_one")
    ranks = joined.groupby(["student", "task"])["value"].rank(pct=True)
    return need(joined.assign(rank=ranks), "scores of these drafts", "run the probing stage")


def _means(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return mean (tasks weighing the same), low, high, n and questions of value by group, clustered by question."""
    found = [
        (
            *key,
            *mean_within_tasks(own["value"], own["task"], own["question_id"]),
            len(own),
            own["question_id"].nunique(),
        )
        for key, own in in_order(rows, *by).groupby(by, sort=False)
    ]
    return pd.DataFrame(found, columns=[*by, "mean", "low", "high", "n", "questions"])


def preference_scores(signals: pd.DataFrame, drafts: pd.DataFrame, student: str, models: str = POCKET) -> go.Figure:
    """Draw one student's preference score by technique and task: every draft, and the means with intervals."""
    rows = scored(signals[signals["student"] == student], drafts)
    table = _means(rows, ["task", "technique"])
    shown = rows.sample(MAX_DOTS, random_state=0) if len(rows) > MAX_DOTS else rows
    some = f" ({len(shown)} of them drawn as dots, picked at random)" if len(shown) < len(rows) else ""
    fig = dots_and_means(shown, table, "task", "preference score").update_xaxes(range=[-0.03, 1.03])
    overall = _means(rows, ["technique"]).sort_values("mean")
    worst, best = (
        f"{named(one.technique)} drafts, {spell(one.mean, one.low, one.high, '')}"
        for one in overall.iloc[[0, -1]].itertuples()
    )
    return finish(
        fig,
        f"Which demonstrations work for {named(student)}?",
        f"{len(rows)} drafts{some} of {rows['question_id'].nunique()} questions, {int(rows['n'].median())} preference "
        f"questions each; {BY_QUESTION}",
        "Preference score: share of the preference set answered right with the draft as the one demonstration. "
        "Intervals are over questions, for this preference set; they leave out the choice of its items.",
        f"Student {named(student)} answers best after {best}, and worst after {worst}; 95 % intervals.",
        table,
        models,
        height=190 + 62 * len(overall),
    )


def technique_heatmap(signals: pd.DataFrame, drafts: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw the mean preference score of every student under every technique."""
    table = _means(scored(signals, drafts), ["student", "technique"])
    half = (table["high"] - table["low"]) / 2
    text = table["mean"].map("{:.2f}".format) + half.map(lambda h: "" if np.isnan(h) else f" ± {max(h, 0.01):.2f}")
    cells = table.assign(text=text, student=table["student"].map(named), technique=table["technique"].map(named))
    places = {"index": cells["student"].unique(), "columns": in_order(cells, "technique")["technique"].unique()}
    grid = cells.pivot(index="student", columns="technique", values="mean").reindex(**places)
    texts = cells.pivot(index="student", columns="technique", values="text").reindex(**places).fillna("")
    best = cells.loc[cells.groupby("student", sort=False)["mean"].idxmax()]
    fig = px.imshow(grid, color_continuous_scale=style.SCALE, aspect="auto")
    fig.update_traces(text=texts, texttemplate="%{text}", textfont_color=style.INK, xgap=3, ygap=3)
    fig.update_traces(hovertemplate="%{y}, %{x}: %{text}<extra></extra>").update_coloraxes(showscale=False)
    return finish(
        fig.update_xaxes(title_text="technique of the demonstration").update_yaxes(title_text="student"),
        "Do students want to be taught differently?",
        f"mean preference score; {table['n'].sum()} scores; 95 % intervals (±), t over questions",
        "One cell is the mean preference score of a technique's drafts: the share of the preference set that the "
        "student answers right with the draft as its demonstration.",
        "Each student's best technique, with 95 % intervals: "
        f"{'; '.join(f'{one.student} {one.technique} ({one.text})' for one in best.itertuples())}.",
        table,
        models,
        height=200 + 54 * len(grid),
    )


def probe_roc(
    signals: pd.DataFrame, drafts: pd.DataFrame, native: Mapping[str, str], models: str = POCKET
) -> go.Figure:
    """Draw how well the one-shot probe tells drafts of a student's native technique from the others.

    `native` says which technique was planted in a student; students without one are left out.
    """
    scores = scored(signals, drafts)
    known = [student for student in native if student in set(scores["student"])]
    if not known:
        raise DataError("No student with a native technique has scores; pass native={student: technique}.")
    found, curves = [], []
    for student in known:
        own = scores[scores["student"] == student]
        positive = (own["technique"] == native[student]).to_numpy()
        area = auc(own["rank"], positive, own["question_id"])
        above = own["rank"].to_numpy() >= np.r_[np.inf, np.unique(own["rank"])[::-1]][:, None]
        curve = {"false": above[:, ~positive].mean(axis=1), "hit": above[:, positive].mean(axis=1)}
        curves.append(pd.DataFrame(curve).assign(curve=f"{student}: {spell(*area, '')}"))
        found.append((student, native[student], *area, len(own)))
    table = pd.DataFrame(found, columns=["student", "native", "auc", "low", "high", "n"])
    styles = {"chance": (style.CONTROL, "circle", "dot")} | marks_by(pd.concat(curves)["curve"])
    rows = pd.concat([pd.DataFrame({"false": [0, 1], "hit": [0, 1], "curve": "chance"}), *curves])
    labels = {name: f"share of {what} drafts above the cut" for name, what in (("false", "foreign"), ("hit", "native"))}
    fig = marks(rows, "false", "hit", "curve", styles, lines=True, labels=labels).update_traces(mode="lines")
    return finish(
        fig.update_traces(line_width=1, selector={"name": "chance"}),
        "Does the probe find the planted style?",
        f"one curve a student, AUC in the legend; {len(scores)} scores; 95 % intervals clustered by question",
        "A draft is native when its technique is the one the student was raised on; the probe does not know which that "
        "is. Scores are ranked within their task. The area is the chance that a native draft ranks above a foreign "
        "one, ties counting half.",
        f"Area under the curve, 0.5 being chance, with 95 % intervals: {spell_each(table, 'student', 'auc', '')}.",
        table,
        models,
        height=470,
    )


def pair_decidedness(pairs: pd.DataFrame, models: str = POCKET) -> go.Figure:
    """Draw how probable it is that the chosen side of each pair is the better one, by student and kind."""
    own = need(pairs, "pairs", "run the alignment stage").query("not flipped")
    if own["p_chosen"].isna().any():
        lost = own.loc[own["p_chosen"].isna(), "pair_id"].iloc[0]
        raise DataError(f"Pair {lost!r} has no p_chosen: its sides were not probed; pass pairs built from probes.")
    columns = ["pair_id", "student", "kind", "task", "score_gap", "p_chosen"]
    table = own[columns].assign(decided=own["p_chosen"] >= DECIDED)
    table = in_order(table, "student", "kind")
    said = table["decided"].map({True: "decided", False: "not decided"})
    rows = table.assign(panel=table["student"] + ", " + table["kind"] + " pairs", said=said)
    fills = {"decided": (style.CHOSEN, ""), "not decided": (style.LIGHT, "/")}
    labels = {"p_chosen": "probability that chosen is better"}
    fig = bars(rows, "p_chosen", None, "said", fills, panel="panel", across=table["kind"].nunique(), labels=labels)
    # The last bin holds certainty too.
    bins = {"start": min(0.5, np.floor(20 * table["p_chosen"].min()) / 20), "end": 1.0001, "size": 0.05}
    fig.update_traces(xbins=bins, bingroup=None)
    fig.add_vline(x=DECIDED, line={"color": style.CONTROL, "dash": "dash", "width": 1.5})
    fig.update_xaxes(range=[bins["start"] - 0.01, 1.01])
    fig.update_yaxes(matches=None, showticklabels=True).update_yaxes(title_text="pairs (count)", col=1)
    parts = [
        f"for {named(student)} {percent(own.mean())} of {len(own)} {named(kind)} pairs "
        f"({' to '.join(map(percent, wilson(own.mean(), len(own))))})"
        for (student, kind), own in table.groupby(["student", "kind"], sort=False)["decided"]
    ]
    return finish(
        fig.update_layout(bargap=0.05),
        "How decided is each pair?",
        f"{len(table)} pairs; decided: a probability of {DECIDED:g} or more (dashed)",
        "The probability comes from the preference questions answered right under one side alone: how many there are, "
        "and which way they lean. It promises too much, because the sides were picked for these "
        "very answers: of the best and the worst of four drafts that do not differ, about half would reach "
        f"{DECIDED:g}. Flipped pairs are left out. Intervals in the sentence: Wilson, 95 %.",
        f"Decided: {', '.join(parts)}.",
        table,
        models,
        height=160 + 190 * table["student"].nunique(),
    )


def influences(found: pd.DataFrame, drafts: pd.DataFrame, student: str, models: str = POCKET) -> go.Figure:
    """Draw one student's local data influence by task and technique (or style): every draft, and means with intervals.

    `found` is the frame "influences"; the drafts give each its task, technique and question.
    """
    own = found[(found["student"] == student) & (found["item_kind"] == "rationale")]
    rows = scored(own.assign(value=MILLI * own["value"]), drafts)
    table = _means(rows, ["task", "technique"])
    unit = "thousandths of a judge's point a question" if (own["how"] == "judge").any() else UNIT
    fig = dots_and_means(rows, table, "task", f"influence ({unit})").update_xaxes(matches=None)
    fig.add_vline(x=0, line={"color": style.CONTROL, "width": 1.5})
    fig.add_vline(
        x=-MILLI * float(own["zero_step"].iloc[0]), line={"color": style.CONTROL, "dash": "dot", "width": 1.5}
    )
    helpful, raw = (spell(share, *wilson(share, len(own))) for share in ((own[["value", "raw"]] > 0).mean()))
    return finish(
        fig,
        f"Which drafts move {named(student)}?",
        f"{len(rows)} drafts, {int(rows['n'].iloc[0])} reference answers; {BY_QUESTION}",
        "Influence: reference loss before one optimiser step on a draft minus after it, beyond what a step at zero "
        "gradient does. Right of the solid line a draft helps; right of the dotted one it would also count as helpful "
        "without that correction. Drafts are grouped by technique or, where none was asked for, by style.",
        f"Of {len(own)} drafts {helpful} help {named(student)}; with the step at zero gradient left in, {raw} count "
        "as helpful; 95 % intervals.",
        table,
        models,
        height=190 + 62 * table["technique"].nunique(),
    )
