"""A run in a table and pictures: what the probe found, how the teacher moved, and what goes with the samples."""

from pathlib import Path

import pandas as pd

from workbench.figures.scores import influences, preference_scores, probe_roc, scored
from workbench.figures.style import save_png
from workbench.figures.training import style_shift
from workbench.figures.verdict import by_student, comparisons
from workbench.runs.cache import read_json
from workbench.runs.recipe import ONE_SHOT, project_root
from workbench.runs.run import Run
from workbench.tasks.task import load_tasks
from workbench.verdict.ablations import cohort, contrasts
from workbench.verdict.intervals import auc
from workbench.verdict.verdict import verdict_of


def model_names(work: Run) -> str:
    """Return how figures name the models of a run."""
    if work.recipe.profile == "pocket":
        return "pocket models"
    return f"teacher {work.recipe.models.teacher}"


def planted(work: Run) -> dict[str, str]:
    """Return student -> the style it was raised on: the answer key, for figures alone.

    Students without one, and those whose style no technique of this run's drafts is in, are left out.
    """
    drafted = set(drafts_of(work)["technique"])
    cards = {
        name: read_json(project_root() / ref / "raised.json").get("raised", {})
        for name, ref in work.recipe.models.students.items()
    }
    return {name: card["native"] for name, card in cards.items() if card.get("native") in drafted}


def drafts_of(work: Run) -> pd.DataFrame:
    """Return the drafts; plain responses, which no technique was asked for, are grouped by the style they are in."""
    drafts, tasks = work.read("drafts"), load_tasks(work.recipe)
    if not drafts["technique"].str.match(r"plain(-\d+)?$").all():
        return drafts
    styles = [tasks[one.task].style(one.rationale) or "other" for one in drafts.itertuples()]
    return drafts.assign(technique=styles)


BEFORE, CONTROL, AFTER = "untailored", "random_pairs", "tailored"


def summarise(run: Run) -> pd.DataFrame:
    """Return what the probe found and how the teacher moved, a row a student.

    Columns: student, dose (how strongly a preference was planted, "" if nothing is known); auc, auc_low, auc_high (how
    well the signal tells native drafts from others of their task); of an arm's examples native_* (share in the native
    style), n_* (how many), checkable_* (share whose question a rule can answer) and right_* (share of those answered
    right, tasks weighing the same). What came of it is in the verdict.
    """
    native = planted(run)
    scores = scored(run.read("signals"), drafts_of(run))
    examples = run.read("examples")
    rows = []
    for student, ref in run.recipe.models.students.items():
        dose = read_json(project_root() / ref / "raised.json").get("raised", {}).get("dose", "")
        row = {"student": student, "dose": dose, "native": native.get(student, "")}
        own = scores[scores["student"] == student]
        is_native = own["technique"] == native.get(student, "")
        if is_native.any() and not is_native.all():
            area = auc(own["rank"], is_native, own["question_id"])
            row |= dict(zip(("auc", "auc_low", "auc_high"), area, strict=True))
        written = examples[examples["kept"] & examples["student"].isin([student, ""])]
        for arm in (BEFORE, CONTROL, AFTER):
            of_arm = written[written["arm"] == arm]
            if student in native and len(of_arm):
                row |= {f"native_{arm}": (of_arm["style"] == native[student]).mean(), f"n_{arm}": len(of_arm)}
            if len(of_arm):
                known = of_arm[of_arm["gold"] != ""]
                right = known.groupby("task")["correct"].mean().mean()  # tasks differ, and in how much can be checked
                row |= {f"checkable_{arm}": len(known) / len(of_arm), f"right_{arm}": right}
        rows.append(row)
    return pd.DataFrame(rows)


def keep(run: Run, folder: Path) -> list[Path]:
    """Write the tables (CSV), the verdict and the figures (PNG, by Chromium) of a run into a folder.

    Tables of ablations and of a cohort go with them where there are any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = verdict_of(run)
    if run.has("signals"):
        summarise(run).to_csv(folder / "summary.csv", index=False, float_format="%.4f")
    for name, of_arms in (("contrasts", contrasts), ("cohort", cohort)):
        if len(rows := of_arms(run.read("predictions"), run.recipe.evaluation)):
            rows.to_csv(folder / f"{name}.csv", index=False, float_format="%.4f")
    (folder / "verdict.json").write_bytes((run.path / "verdict.json").read_bytes())
    figures = {"comparisons": comparisons(found)}
    if len(run.recipe.models.students) > 1:
        figures["by_student"] = by_student(found)
    if run.has("signals"):
        figures |= _of_signals(run)
    drawn = [save_png(figure, folder / f"{name}.png") for name, figure in figures.items()]
    return sorted(folder.glob("*.csv")) + [folder / "verdict.json", *drawn]


def _of_signals(run: Run) -> dict:
    """Return the figures of a run's signals and of what its teacher wrote, of the first student where one is drawn."""
    models, native, student = model_names(run), planted(run), next(iter(run.recipe.models.students))
    signals, drafts, examples = run.read("signals"), drafts_of(run), run.read("examples")
    figures = {"probe_roc": probe_roc(signals, drafts, native, models)} if native else {}
    if run.has("influences"):
        figures["influences"] = influences(run.read("influences"), drafts, student, models)
    elif set(signals["signal"]) == {ONE_SHOT}:
        figures["preference_scores"] = preference_scores(signals, drafts, student, models)
    shown = examples[examples["kept"] & examples["student"].isin([student, ""])]
    return figures | {"style_shift": style_shift(shown.assign(student=student), models)}
