"""What notebooks 02 to 04 show of how a student was asked, in the words of the recipe's method."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from workbench import figures
from workbench.loop import prompts
from workbench.methods.base import by_influence
from workbench.report.summary import drafts_of
from workbench.runs.run import Run
from workbench.tasks.task import as_written, load_tasks
from workbench.verdict.in_words import share_of

MILLI = 1000  # influence is shown in thousandths of a nat per token
Frames = Mapping[str, pd.DataFrame]


def scores_of(work: Run, probed: Frames) -> pd.DataFrame:
    """Return the signals; influences in thousandths of a nat per token."""
    signals = probed["signals"]
    return signals.assign(value=signals["value"] * MILLI) if by_influence(work) else signals


def example(work: Run, probed: Frames, student: str) -> pd.Series:
    """Return the first draft that the student was asked about."""
    signals = probed["signals"]
    known = set(signals.loc[signals["student"] == student, "draft_id"])
    drafts = drafts_of(work)
    return drafts[drafts["draft_id"].isin(known)].iloc[0]


def one_probe(work: Run, probed: Frames, draft: pd.Series, student: str) -> tuple[str, str, str]:
    """Return what the student saw of one draft, a caption for it, and what came out, in words."""
    tasks = load_tasks(work.recipe)
    if by_influence(work):
        task = as_written(work.recipe, tasks)[draft["task"]]
        text = f"{prompts.naive_prompt(task.description, draft['question'])}{draft['rationale']}"
        one = probed["influences"].query("student == @student and draft_id == @draft['draft_id']").iloc[0]
        said = (
            f"One step on it changes the loss on {one['n']} reference answers by {MILLI * one['raw']:+.1f} thousandths "
            f"of a nat a token, of which {MILLI * one['zero_step']:+.1f} would have come without any gradient: its "
            f"influence is {MILLI * one['value']:+.1f} (standard error {MILLI * one['stderr']:.1f}), so it "
            f"{'helps' if one['value'] > 0 else 'harms'}."
        )
        return text, f"One step of student {student}, on the response alone", said
    items, probes = probed["preference_set"], probed["probes"]
    item = items[items["chosen"] & (items["task"] == draft["task"])].iloc[0]
    asked = (draft["question"], draft["rationale"], item["question"])
    shared, rest = prompts.one_shot_prompt(tasks[draft["task"]].description, *asked)
    own = probes[(probes["draft_id"] == draft["draft_id"]) & (probes["student"] == student)]
    answer = own.loc[own["item_id"] == item["item_id"], "answer"].iloc[0]
    said = f"It answered {answer or 'nothing that can be read'!r}; right is {item['target']!r}."
    return shared + rest, f"One probe of student {student}", said


def all_probes_in_words(work: Run, probed: Frames, draft: pd.Series) -> list[str]:
    """Return in sentences what all probes came to, and those of one draft."""
    if by_influence(work):
        own = probed["influences"].query("item_kind == 'rationale'")
        by = {name: share_of(part["value"] > 0) for name, part in own.groupby("student")}
        raw = {name: share_of(part["raw"] > 0) for name, part in own.groupby("student")}
        return [
            "Helpful drafts: " + "; ".join(f"{name} {share}" for name, share in by.items()) + ".",
            "With the step at zero gradient: " + "; ".join(f"{name} {share}" for name, share in raw.items()) + ".",
        ]
    probes = probed["probes"]
    own = probes[(probes["draft_id"] == draft["draft_id"]) & (probes["student"] == probes["student"].iloc[0])]
    return [
        f"{share_of(probes['parsed'], probes['item_id'])} of all probes gave an answer that can be read.",
        f"With this draft, {share_of(own['correct'])} of the questions were answered right.",
    ]


def score_figures(work: Run, probed: Frames, models: str) -> list[go.Figure]:
    """Return a figure of scores for each student and, of preference scores, one of all students."""
    signals, drafts = scores_of(work, probed), drafts_of(work)
    if by_influence(work):
        return [figures.influences(probed["influences"], drafts, name, models) for name in work.recipe.models.students]
    own = [figures.preference_scores(signals, drafts, name, models) for name in work.recipe.models.students]
    return [*own, figures.technique_heatmap(signals, drafts, models)]


def pairs_in_words(work: Run, pairs: pd.DataFrame, counts: Mapping[str, int]) -> str:
    """Return how many groups form pairs."""
    if by_influence(work):
        n, alike = (counts[f"question groups {what}"] for what in ("of siblings", "of one sign"))
        return f"{n - alike} of {n} groups of siblings hold both signs; they form {len(pairs)} pairs."
    made = int((pairs["kind"] == "rationale").sum())
    n = counts["rationale groups"] or 1
    return f"{made} of {n} groups of rationales form a pair; {len(pairs) - made} pairs of questions."


def decided_figure(work: Run, pairs: pd.DataFrame, models: str) -> go.Figure:
    """Return the figure of how far the two sides of pairs are apart."""
    if by_influence(work):
        return figures.sibling_gaps(pairs, models)
    return figures.pair_decidedness(pairs, models)


def helpful(work: Run) -> list[dict]:
    """Return, for each student and arm, the share of its examples that help; intervals over questions."""
    from workbench.methods.montessori import measure_examples

    return [
        {
            "student": student,
            "arm": arm,
            "helpful": share_of(own["value"] > 0, own["question_id"]),
            "mean influence": f"{MILLI * own['value'].mean():+.1f} thousandths of a nat",
        }
        for (student, arm), own in measure_examples(work).groupby(["student", "arm"])
    ]


def behind_in_words(work: Run, student: str) -> str:
    """Return how much of what the student was asked stands behind its pairs."""
    pairs = work.read("pairs").query("student == @student")
    used = {*pairs["chosen_id"], *pairs["rejected_id"]}
    if by_influence(work):
        found = work.read("influences").query("student == @student")
        n_used = int(found["draft_id"].isin(used).sum())
        n_steps = int((found["item_kind"] == "rationale").sum())
        return f"{len(pairs)} pairs of {student} rest on {n_used} drafts, of {n_steps} it took a step on."
    probes = work.read("probes").query("student == @student")
    n_used = int(probes["draft_id"].isin(used).sum())
    return f"{len(pairs)} pairs of {student} rest on {n_used} probes directly, of {len(probes)} it answered."


def metrics(work: Run, probed: Frames) -> dict[str, float]:
    """Return what notebook 02 leaves in metrics.json."""
    if by_influence(work):
        own = probed["influences"].query("item_kind == 'rationale'")
        return {"n_scored": len(own), "share_helpful": float((own["value"] > 0).mean())}
    probes = probed["probes"]
    return {"n_probes": len(probes), "share_right": probes["correct"].mean(), "share_read": probes["parsed"].mean()}
