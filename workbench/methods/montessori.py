"""Probing by local data influence: the student is warmed up on some drafts, and every other one is a step it may take.

Source: Montessori-Instruct, arXiv:2410.14208, section 3 and official code: warm-up set, probing set, one AdamW step.
Ours: whose answers the reference set holds (see reference), a draft question's value is the mean over its responses,
and, where an arm asks for it, the student's training loss on every draft.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from workbench.loop import prompts
from workbench.loop.pairs import TRAINING_LOSS
from workbench.loop.preference_set import choose_preference_set, responders_of
from workbench.models import loading
from workbench.models.loading import fingerprint_model, resolve
from workbench.models.packed_losses import Texts
from workbench.models.start import engine_fingerprint, model_fingerprint, sharing
from workbench.runs import schemas
from workbench.runs.recipe import BY_TRAINING_LOSS, Recipe
from workbench.runs.run import Run
from workbench.runs.seeding import stream, stream_seed
from workbench.signals.influence import InfluenceSettings, measure
from workbench.signals.reference import build_reference, guard_of_tests
from workbench.signals.warm_up import WarmUp, texts_of, warm_up
from workbench.tasks.task import Task, all_test_items, as_written, load_tasks

VERSION = 1


@sharing()
def probe(run: Run) -> dict[str, pd.DataFrame]:
    """Warm every student up and measure the influence of every draft outside the warm-up set, or reuse what there is.

    Returns:
        preference_set, reference, influences, losses (empty unless an arm needs them), signals (what pairs are formed
        by) and probes (none), as their schemas describe them.

    Raises:
        InfluenceError: If there is no reference set, it overlaps a test set, or a loss is not finite.
        WarmingError: If a warmed state is damaged or does not fit, or a text is too long.
    """
    recipe, stage = run.recipe, run.stage("probing")
    drafting, tasks = stage.require("drafting"), load_tasks(recipe)
    students = {name: fingerprint_model(resolve(ref)) for name, ref in recipe.models.students.items()}
    parents = {"drafting": drafting.manifest["fingerprint"], **students}
    sections = recipe.section_json("preference_set", "tasks", "models.dtype", "evaluation.max_new_tokens", "guard")
    inputs = {"version": VERSION, "recipe": sections, "influence": recipe.influence.model_dump(), **parents}
    inputs |= {"seed": recipe.seeds[0], "teacher": model_fingerprint(recipe, "teacher", recipe.models.teacher)}
    inputs |= {"responders": {ref: fingerprint_model(resolve(ref)) for ref in responders_of(recipe)}}
    inputs |= {"tests": {name: all_test_items(recipe, task)[1] for name, task in tasks.items()}}
    inputs |= {"losses": BY_TRAINING_LOSS in recipe.evaluation.arms}
    mark = stage.fingerprint(inputs | engine_fingerprint(recipe, "student"))
    if stage.finished(mark):
        return {name: stage.read(name) for name in stage.manifest["files"]}
    start = time.monotonic()
    chosen = choose_preference_set(recipe, tasks, drafting.read("exemplars"))
    reference, counts = build_reference(recipe, tasks, chosen[chosen["chosen"]])
    made = measure_drafts(recipe, tasks, drafting.read("drafts"), drafting.read("questions"), reference, stage.path)
    made |= {"preference_set": chosen, "reference": reference, "probes": schemas.build([], "probes")}
    frames = {name: stage.write(name, frame) for name, frame in made.items()}
    own = made["influences"].query("item_kind == 'rationale'")
    counts |= {
        "drafts scored": len(own),
        "of them helpful": (own["value"] > 0).sum(),
        "reference texts": len(reference),
    }
    stage.finish(mark, counts, time.monotonic() - start, own["tokens"].sum(), parents)
    return frames


def measure_drafts(
    recipe: Recipe,
    tasks: dict[str, Task],
    drafts: pd.DataFrame,
    questions: pd.DataFrame,
    reference: pd.DataFrame,
    folder: Path,
) -> dict[str, pd.DataFrame]:
    """Return influences, losses and signals of all students on the drafts outside the warm-up set.

    Args:
        recipe: Its section influence says how.
        tasks: Their test sets are what the reference set may not touch.
        drafts: All of the run.
        questions: The same.
        reference: The frame "reference".
        folder: Where the warmed states are kept.
    """
    settings = recipe.influence
    warm = warm_up_questions(questions, settings.n_warm_up)
    rows = texts_to_learn(as_written(recipe, tasks), drafts)
    warming, probing = (rows[rows["question_id"].isin(warm) == inside] for inside in (True, False))
    how = WarmUp(settings.n_steps, settings.batch_size, settings.learning_rate)
    measured = _settings(recipe)
    influences, losses = [], []
    for student, ref in recipe.models.students.items():
        seed, path = stream_seed(recipe.seeds[0], "warm-up", student), folder / "warmed" / student
        warm_up(ref, warming, how, seed, path, recipe.compute.device)
        own, guard = reference[reference["student"] == student], guard_of_tests(recipe, tasks)
        more = (guard, measured, student, recipe.compute.device, recipe.compute.workers)
        influences.append(with_questions(measure(ref, path, probing, own, *more), drafts))
        if BY_TRAINING_LOSS in recipe.evaluation.arms:
            losses.append(with_questions(training_losses(recipe, student, probing), drafts))
    frames = {"influences": pd.concat(influences, ignore_index=True)}
    frames["losses"] = pd.concat(losses, ignore_index=True) if losses else schemas.build([], "losses")
    signals = frames["influences"][list(schemas.SCHEMAS["signals"].columns)]
    if settings.sign == "raw":
        signals = signals.assign(value=frames["influences"]["raw"])
    return frames | {"signals": signals}


def measure_examples(run: Run, n: int = 48) -> pd.DataFrame:
    """Return the influence of what each arm's teacher wrote, on the student as it was warmed up for its drafts.

    Args:
        run: With finished alignment.
        n: Examples of each student, arm and task, drawn from all seeds; the same ones whatever other arms there are.

    Returns:
        Columns student, arm, task, question_id, value and raw, in nats per reference token.
    """
    recipe, alignment = run.recipe, run.stage("training").require("alignment")
    tasks, probing = load_tasks(recipe), alignment.require("probing")
    examples, reference = alignment.read("examples").query("kept"), probing.read("reference")
    measured, guard, found = _settings(recipe), guard_of_tests(recipe, tasks), []
    for student, ref in recipe.models.students.items():
        own = examples[examples["student"].isin([student, ""])]
        parts = [
            part.iloc[stream(recipe.seeds[0], "examples measured", student, arm, task).permutation(len(part))[:n]]
            for (arm, task), part in own.groupby(["arm", "task"])
        ]
        drawn = pd.concat(parts).rename(columns={"example_id": "draft_id"})
        given = (texts_to_learn(as_written(recipe, tasks), drawn), reference[reference["student"] == student])
        more = (guard, measured, student, recipe.compute.device, recipe.compute.workers)
        values = measure(ref, probing.path / "warmed" / student, *given, *more)
        known = drawn[["draft_id", "arm", "task", "question_id"]].merge(values, on="draft_id")
        found.append(known[["student", "arm", "task", "question_id", "value", "raw"]])
    return pd.concat(found, ignore_index=True)


def _settings(recipe: Recipe) -> InfluenceSettings:
    names = ("way", "batch_means", "n_calibrate", "doubt")
    return InfluenceSettings(**{name: getattr(recipe.influence, name) for name in names})


def warm_up_questions(questions: pd.DataFrame, n: int) -> set[str]:
    """Return the ids of the first n kept questions of each task, with their siblings: the warm-up set."""
    kept = questions[questions["kept"]]
    first = kept.groupby("task", sort=False).head(n)
    return set(kept.merge(first[["task", "call"]].drop_duplicates(), on=["task", "call"])["question_id"])


def texts_to_learn(tasks: dict[str, Task], drafts: pd.DataFrame) -> pd.DataFrame:
    """Return drafts as SFT sees them: draft_id, question_id, item_kind, group (siblings), prompt and completion."""
    asked = [prompts.naive_prompt(tasks[one.task].description, one.question) for one in drafts.itertuples()]
    kept = drafts[["draft_id", "question_id"]].assign(item_kind="rationale", group=drafts["question_id"])
    return kept.assign(prompt=asked, completion=drafts["rationale"])


def training_losses(recipe: Recipe, student: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the student's loss on each text before any training, in nats per completion token, as signals.

    Its sign says nothing; a higher loss means that there is more to learn.
    """
    loaded = loading.load(recipe.models.students[student], "float32", recipe.compute.device, merged=False)
    texts = texts_of(loaded.tokenizer, rows)
    n_tokens = np.array([len(text.completion) for text in texts])
    with torch.inference_mode():
        values = Texts(loaded.model, texts).losses().numpy() / n_tokens
    named = {"signal": TRAINING_LOSS, "student": student, "student_fp": loaded.fingerprint, "set_fp": ""}
    found = rows[["draft_id", "item_kind"]].assign(**named, value=values, stderr=0.0, n=n_tokens)
    return found.assign(tokens=[len(text) for text in texts])[list(schemas.SCHEMAS["losses"].columns)]


def with_questions(found: pd.DataFrame, drafts: pd.DataFrame) -> pd.DataFrame:
    """Return signals of drafts, and after them those of questions: means over the responses to each.

    The standard error of a mean is that of fully correlated responses, since all share the reference set.
    """
    known = found.merge(drafts[["draft_id", "question_id"]], on="draft_id")
    how = dict.fromkeys(found.columns, "first") | {"value": "mean", "stderr": "mean", "tokens": "sum"}
    how |= {name: "mean" for name in ("raw", "zero_step") if name in found}
    how.pop("draft_id")
    of_questions = known.groupby("question_id", sort=False).agg(how).reset_index(names="draft_id")
    return pd.concat([found, of_questions.assign(item_kind="question")[found.columns]], ignore_index=True)
