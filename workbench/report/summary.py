"""A run in one table: what the probe found, how the teacher moved and what that was worth, a row a student."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from workbench.figures.scores import influences, preference_scores, probe_roc, scored
from workbench.figures.studies import probe_validity
from workbench.figures.style import save_png
from workbench.figures.training import style_shift
from workbench.figures.verdict import block_of, by_student, comparisons
from workbench.runs.cache import read_json
from workbench.runs.recipe import project_root
from workbench.runs.run import Run
from workbench.tasks.task import load_tasks
from workbench.verdict import validity
from workbench.verdict.ablations import cohort, contrasts
from workbench.verdict.evaluation import verdict_of
from workbench.verdict.in_words import decision_in_words
from workbench.verdict.intervals import auc


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


USUAL_ARMS = {"base", "untailored", "random_pairs", "tailored"}
BEFORE, CONTROL, AFTER = "untailored", "random_pairs", "tailored"


def summarise(run: Run) -> pd.DataFrame:
    """Return one row a student, every number with its 95 % interval where it has one.

    Columns: student, dose (how strongly a preference was planted, "" if nothing is known); auc, auc_low, auc_high (how
    well the signal tells native drafts from others of their task); of an arm's examples native_* (share in the native
    style), n_* (how many), checkable_* (share whose question a rule can answer) and right_* (share of those answered
    right); base, untailored, random_pairs, tailored (accuracies); and difference, low, high, decision of tailored
    against untailored and, with the ending _random, against random pairs.
    """
    found, native = verdict_of(run), planted(run)
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
                checkable = of_arm["gold"] != ""
                row |= {f"checkable_{arm}": checkable.mean(), f"right_{arm}": of_arm["correct"][checkable].mean()}
        rows.append(row | _outcome(block_of(found, student)))
    return pd.DataFrame(rows)


def _outcome(block: Mapping) -> dict:
    """Return a student's accuracies and its two comparisons, at the shots of the primary one."""
    row = {arm: values["accuracy"] for arm, values in block["arms"].items()}
    for one in block["comparisons"]:
        if one["a"] == AFTER and one["shots"] == block["primary"]["shots"] and one["b"] in (BEFORE, CONTROL):
            ending = "_random" if one["b"] == CONTROL else ""
            row |= {f"{key}{ending}": one[key] for key in ("difference", "low", "high")}
            row[f"decision{ending}"] = decision_in_words(one)
    return row


def markdown(table: pd.DataFrame) -> str:
    """Return the table in Markdown: shares and accuracies in percent, differences in points."""
    heads = {
        "student": lambda r: r["student"],
        "dose": lambda r: r["dose"] or "unknown",
        "probe AUC": lambda r: _interval(r, "auc", "auc_low", "auc_high", "{:.2f}", 1),
        "native style before / random pairs / after, %": lambda r: _three(r, "native"),
        "well-formed questions, %": lambda r: _three(r, "checkable"),
        "right of these, %": lambda r: _three(r, "right"),
        "base": lambda r: _number(r, "base"),
        BEFORE: lambda r: _number(r, BEFORE),
        "random pairs": lambda r: _number(r, CONTROL),
        AFTER: lambda r: _number(r, AFTER),
        "tailored - untailored": lambda r: _difference(r, ""),
        "tailored - random pairs": lambda r: _difference(r, "_random"),
    }
    return _lines(heads, table)


def _lines(heads: Mapping[str, Callable[[Mapping], str]], table: pd.DataFrame) -> str:
    """Return a Markdown table: a row a row of the frame, a column a heading and what is said under it."""
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(say(row) for say in heads.values()) + " |" for row in table.to_dict("records")]
    return "\n".join(lines)


def _has(row: Mapping, key: str) -> bool:
    return key in row and not pd.isna(row[key])


def _number(row: Mapping, key: str, form: str = "{:.0f}", scale: float = 100) -> str:
    return form.format(scale * row[key]) if _has(row, key) else "-"


def _interval(row: Mapping, key: str, low: str, high: str, form: str, scale: float) -> str:
    if not _has(row, key):
        return "-"
    return f"{_number(row, key, form, scale)} ({_number(row, low, form, scale)} to {_number(row, high, form, scale)})"


def _three(row: Mapping, what: str) -> str:
    return " / ".join(_number(row, f"{what}_{arm}") for arm in (BEFORE, CONTROL, AFTER))


def _difference(row: Mapping, ending: str) -> str:
    keys = [f"{key}{ending}" for key in ("difference", "low", "high")]
    return f"{_interval(row, *keys, '{:+.1f}', 100)} {row.get(f'decision{ending}', '')}".strip()


def in_words(run: Run) -> str:
    """Return all tables of a run as Markdown: the summary and, where the run has such arms, ablations and cohort."""
    parts = [markdown(summarise(run))]
    predictions, settings = run.read("predictions"), run.recipe.evaluation
    if set(settings.arms) - USUAL_ARMS:
        parts.append(contrasts_markdown(contrasts(predictions, settings)))
    if len(of_others := cohort(predictions, settings)):
        parts.append(cohort_markdown(of_others))
    return "\n\n".join(parts)


def contrasts_markdown(table: pd.DataFrame) -> str:
    """Return the contrasts as a Markdown table, differences in points."""
    heads = {
        "student": lambda r: r["student"],
        "contrast": lambda r: f"{r['a']} - {r['b']}".replace("_", " "),
        "difference": lambda r: _interval(r, "difference", "low", "high", "{:+.1f}", 100),
        "decision": lambda r: r["decision"],
        "p (Holm)": lambda r: _number(r, "p_holm", "{:.3f}", 1),
        "paper": lambda r: f"{_number(r, 'paper', '{:+.1f}')} ({r['where']})" if _has(r, "paper") else "-",
    }
    return _lines(heads, table)


def cohort_markdown(table: pd.DataFrame) -> str:
    """Return the cohort as Markdown, accuracies in percent: a row a student, a column for whom it was tailored."""
    shown = [_interval(row, "accuracy", "low", "high", "{:.0f}", 100) for row in table.to_dict("records")]
    own = table["student"] == table["tailored_for"]
    cells = table.assign(shown=[f"**{one}**" if bold else one for one, bold in zip(shown, own, strict=True)])
    wide = cells.pivot(index="student", columns="tailored_for", values="shown").fillna("-")
    wide = wide.loc[table["student"].unique(), table["tailored_for"].unique()].reset_index()
    heads = {"student": lambda r: r["student"]}
    heads |= {f"for {name}": lambda r, name=name: r[name] for name in wide.columns[1:]}
    return _lines(heads, wide)


def keep(run: Run, folder: Path) -> list[Path]:
    """Write the table (CSV and Markdown), the verdict and the figures (PNG, by Chromium) of a run into a folder.

    The test of its probe goes with them if there was one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, found = summarise(run), verdict_of(run)
    table.to_csv(folder / "summary.csv", index=False, float_format="%.4f")
    (folder / "summary.md").write_text(in_words(run) + "\n", encoding="utf-8")
    (folder / "verdict.json").write_bytes((run.path / "verdict.json").read_bytes())
    models, native = model_names(run), planted(run)
    signals, drafts = run.read("signals"), drafts_of(run)
    examples = run.read("examples")
    figures = {"comparisons": comparisons(found)}
    if len(table) > 1:
        figures["by_student"] = by_student(found)
    if native:
        figures["probe_roc"] = probe_roc(signals, drafts, native, models)
    student = table["student"].iloc[0]
    if run.has("influences"):
        figures["influences"] = influences(run.read("influences"), drafts, student, models)
    else:
        figures["preference_scores"] = preference_scores(signals, drafts, student, models)
    shown = examples[examples["kept"] & examples["student"].isin([student, ""])]
    figures["style_shift"] = style_shift(shown.assign(student=student), models)
    if (groups := validity.stored(run)) is not None:
        found = validity.predictive_validity(groups)
        figures["probe_validity"] = probe_validity(groups, found, validity.left_over(found.iloc[-1]), models)
        found.to_csv(folder / "validity.csv", index=False, float_format="%.4f")
    drawn = [save_png(figure, folder / f"{name}.png") for name, figure in figures.items()]
    return [folder / name for name in ("summary.csv", "summary.md", "verdict.json")] + drawn
