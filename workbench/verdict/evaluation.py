"""Evaluation: every arm's student answers the same test items, and the verdict says what that shows.

The test set is opened here and nowhere else; each look is counted in the ledger. The decision rule is the recipe's,
fixed beforehand. Ours throughout; ARTE reports neither seeds nor intervals.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd

from workbench.loop import prompts
from workbench.loop.alignment import models_of
from workbench.loop.writing import AskJob, complete_job
from workbench.models.engine import Completion
from workbench.models.start import Model, run_engine_jobs
from workbench.runs import schemas
from workbench.runs.cache import record_test_access, write_json
from workbench.runs.identity import content_of, fingerprint, looks_at
from workbench.runs.recipe import Recipe
from workbench.runs.run import VERDICT, Frames, Run
from workbench.signals.difficulty import Judge
from workbench.tasks.overlap import overlap_report, overlap_warnings
from workbench.tasks.task import Task, load_tasks, load_test_items, name_of_test_set
from workbench.verdict.in_words import NO_COMPARISON, opened_in_words, percent, spoken
from workbench.verdict.verdict import BASE_SEED, verdict, verdict_of
from workbench.verdict.win_rates import judged

VERSION = 7


@dataclass(frozen=True)
class SealedTests:
    """The items that a recipe's students are tested on, unopened."""

    recipe: Recipe = field(repr=False)

    @property
    def sets(self) -> dict[str, list]:
        """The file's SHA-256 and the number of items of each task."""
        n, tasks = self.recipe.evaluation.n_items, load_tasks(self.recipe)
        return {name: [load_test_items(self.recipe, task)[1], n] for name, task in tasks.items()}

    @property
    def key(self) -> str:
        """What tells these test sets from others."""
        return fingerprint(self.sets | {"guard": self.recipe.guard.model_dump()})

    def items(self, tasks: dict[str, Task]) -> dict[str, pd.DataFrame]:
        """Return the items of each task."""
        return {name: load_test_items(self.recipe, task)[0] for name, task in tasks.items()}

    def open(self, tasks: dict[str, Task], trained: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], int]:
        """Return the items of each task, and how often they have been opened, this time included; 0 of no test items.

        Args:
            trained: The curve of the students who are to answer them: for these, under one rule, it is one look.
        """
        if self.recipe.evaluation.items == "validation":
            return self.items(tasks), 0
        looked_for = fingerprint([self.key, self.recipe.evaluation.model_dump(), content_of(trained)])
        # By file: the same items in another number, or beside other tasks, are no new test set.
        source, sets = self.recipe.evaluation.bbh_dir or self.recipe.tasks.folder, self.sets
        opened = [record_test_access(sets[name][0], f"{name} of {source}", looked_for) for name in tasks]
        return self.items(tasks), max(opened)


@looks_at("seeds", "evaluation.arms")
def answer_tests(
    students: dict[str, Model],
    trained: Frames,
    tasks: dict[str, Task],
    tests: SealedTests,
    exemplars: pd.DataFrame,
    shots: list[int],
    max_new_tokens: int,
    judge: Judge | None = None,
) -> pd.DataFrame:
    """Let every trained student and every untrained one answer the test items, greedily.

    Args:
        students: By name, as they were; the arm base.
        tests: Opened here, and the look is counted.
        exemplars: Worked questions for the prompts with demonstrations.
        judge: Compares the answers with their references; None where they are checked.
    """
    models = models_of(trained, "students")
    items, _ = tests.open(tasks, trained["curve"])
    jobs, plan = [], []
    for student, arm, seed, model in everyone(students, models):
        asked = []
        for n_shots in shots:
            for name, task in tasks.items():
                shown = exemplars[exemplars["task"] == name][["question", "rationale"]].head(n_shots)
                shown = list(shown.itertuples(index=False, name=None))
                for item in items[name].itertuples():
                    asked.append(("", prompts.few_shot_prompt(task.description, shown, item.question, task.prompts)))
                    plan.append((student, arm, seed, n_shots, task, item))
        jobs.append(AskJob(model, f"{student}, {arm}, seed {seed}", asked, max_new_tokens))
    written = run_engine_jobs(complete_job, jobs, jobs[0].model, "answering test items")
    completions = list(itertools.chain.from_iterable(written))
    rows = [_graded(*pair) for pair in zip(plan, completions, strict=True)]
    frame = schemas.build(_judged(rows, plan, judge) if judge else rows, "predictions")
    frame.attrs["counts"] = {"answers": len(frame), "answers not readable": (~frame["parsed"]).sum()}
    frame.attrs["counts"] |= {"answers not judged": frame["judged"].isna().sum()} if judge else {}
    frame.attrs["tokens"] = sum(completion.n_tokens for completion in completions)
    return frame


def everyone(students: dict[str, Model], models: dict) -> Iterator[tuple[str, str, int, Model]]:
    """Yield (student, arm, seed, model) of everyone who is evaluated: of each student first the untrained one."""
    for student, model in students.items():
        if "base" in model.recipe.evaluation.arms:
            yield student, "base", BASE_SEED, model.among_trained
        arms = model.recipe.trained_arms(student)
        own = {(arm, seed): folder for (name, arm, seed), folder in models.items() if name == student}
        for arm, seed in sorted(own, key=lambda key: (arms.index(key[0]), model.recipe.seeds.index(key[1]))):
            yield student, arm, seed, model.trained(own[arm, seed])


def _graded(row: tuple, completion: Completion) -> dict:
    *named, task, item = row
    text, answer = completion.text, task.answers.read(completion.text)
    known = dict(zip(("student", "arm", "seed", "shots"), named, strict=True))
    known |= {"task": task.name, "item_id": item.item_id}
    read = {"answer": answer, "style": task.style(text), "parsed": bool(answer), "finished": completion.finished}
    if task.is_open:
        return known | read
    read["in_form"] = prompts.in_form(text, task.prompts)
    return known | read | {"correct": task.answers.same(answer, item.target)}


def _judged(rows: list[dict], plan: list[tuple], judge: Judge) -> list[dict]:
    """Return answers with what the judge says of each beside the reference, in both orders."""
    asked = [
        {"task": row["task"], "question": item.question, "gold": "", "a": row["answer"], "b": item.target}
        for row, (*_, item) in zip(rows, plan, strict=True)
    ]
    told = judged(pd.DataFrame(asked), judge)
    return [row | {"judged": value} for row, value in zip(rows, told.astype(float), strict=True)]


def decide(run: Run) -> dict:
    """Return the verdict on a run's predictions by the recipe's rule, and write it to verdict.json."""
    if run.is_shipped:
        return verdict_of(run)
    recipe, tasks = run.recipe, load_tasks(run.recipe)
    predictions, curve = run.read("predictions"), run.read("students", "curve")
    # Another rule for the same answers is another look.
    tests = SealedTests(recipe)
    _, opened = tests.open(tasks, curve)
    test_set = {
        "name": name_of_test_set(recipe, tasks),
        "sha256": fingerprint(tests.sets),
        "times_opened": opened,
        "note": opened_in_words(opened),
    }
    overlap = overlap_report(recipe, tasks, run.read("questions"), run.read("examples"))
    training = curve[curve["metric"] == "tokens"].rename(columns={"value": "tokens", "step": "steps"})
    alike = same_rows(run.read("rows")) if run.has("rows") else []
    named = f"{recipe.models.teacher} -> {', '.join(recipe.models.students)}"
    result = verdict(
        predictions,
        recipe.evaluation.model_dump(),
        recipe=recipe.name,
        run=run.name,
        models="pocket" if recipe.profile == "pocket" else named,
        student=next(iter(recipe.models.students)),
        training=training[["student", "arm", "seed", "tokens", "steps"]],
        test_set=test_set,
        warnings=[*alike, *overlap_warnings(overlap)],
    )
    result["overlap"] = overlap
    if not recipe.is_open:
        _beside_the_most_frequent(result, tasks, tests)
    write_json(run.path / VERDICT, result)
    return verdict_of(run)


def _beside_the_most_frequent(result: dict, tasks: dict[str, Task], tests: SealedTests) -> None:
    """Add what always giving each task's most frequent answer has right, and a warning of arms that are no better."""
    sets = tests.items(tasks)
    n_right = sum(task.majority(sets[name]["target"]) * len(sets[name]) for name, task in tasks.items())
    result["majority"] = round(n_right / sum(map(len, sets.values())), 6)
    low = [spoken(arm) for arm, row in result["arms"].items() if row["accuracy"] <= result["majority"]]
    if low:
        alone = f"The most frequent answer of each task alone is right in {percent(result['majority'])}"
        result["warnings"].append(f"{alone}; no better than that: {', '.join(low)}.")


def same_rows(rows: pd.DataFrame) -> list[str]:
    """Return a sentence for every student two of whose arms were trained on the very same texts: they cannot differ."""
    said = []
    for student, own in rows.groupby("student", sort=False):
        texts = own.sort_values(["seed", "prompt", "completion"]).groupby("arm", sort=False)
        arms: dict[str, list[str]] = {}
        for arm, part in texts:
            arms.setdefault(content_of(part[["seed", "prompt", "completion"]]), []).append(arm)
        groups = [spoken(" and ".join(group)) for group in arms.values() if len(group) > 1]
        said += [f"{NO_COMPARISON} {group} of {student} were trained on the same examples." for group in groups]
    return said
