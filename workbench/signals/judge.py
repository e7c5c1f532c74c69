"""A judge: another model answers what the examples ask. Does it come to the teacher's answers?

Most tasks have no rule that could check a question somebody just made up; then this tells whether aligning the teacher
cost right answers. The judge reads the question and never the answer that is judged, so nothing in that can sway it.
What its word is worth is measured: it answers validation questions too, whose answers are known. Ours; ARTE has no
judge.
"""

from typing import NamedTuple

import pandas as pd

from workbench.loop import prompts
from workbench.loop.writing import AskJob, complete_job
from workbench.models.start import Model, run_engine_jobs
from workbench.runs.errors import RunError
from workbench.runs.run import Run
from workbench.tasks.task import Task, load_tasks

VERSION = 2
STEP = "judged"
NOBODY = "This recipe names no judge; with models: {judge: ...} another model would answer these questions here."


class Judged(NamedTuple):
    """What a judge says."""

    # The kept examples, with `said` (the judge's answer, "" where none could be read) and `agrees` (missing there).
    examples: pd.DataFrame
    # Columns task, item_id, target, said, right: the judge on questions whose answers are known.
    validation: pd.DataFrame


def judge(run: Run) -> Judged | None:
    """Let the judge answer every question of the examples once, greedily, or return what it answered before.

    What it refused to answer is asked again the next time.

    Returns:
        None if the recipe names no judge.

    Raises:
        RunError: If the judge's engine fails; what was answered is kept, so the same call goes on.
        RunError: If the run's alignment is not finished, or kept no example.
    """
    recipe, tasks = run.recipe, load_tasks(run.recipe)
    if not recipe.models.judge:
        return None
    examples = run.read("examples").query("kept").reset_index(drop=True)
    if examples.empty:
        raise RunError(f"Run {run.name} kept no example, so there is nothing to judge; see why they were dropped.")
    frames = [task.validation.head(recipe.preference_set.n_validation).assign(task=n) for n, task in tasks.items()]
    validation = pd.concat(frames, ignore_index=True)[["task", "item_id", "question", "target"]]
    model, longest = Model(recipe, "judge", recipe.models.judge), recipe.evaluation.max_new_tokens
    run.step(STEP, ask_judge, model, tasks, examples, validation, longest)
    judged = stored(run)
    if run.counts(STEP)["questions refused"]:
        run.again(STEP)
    return judged


def stored(run: Run) -> Judged | None:
    """Return what the judge said of the run's examples as they are now, without looking for the judge; else None."""
    return Judged(*run.result(STEP).values()) if run.recipe.models.judge and run.stands(STEP) else None


def ask_judge(
    model: Model, tasks: dict[str, Task], examples: pd.DataFrame, validation: pd.DataFrame, max_new_tokens: int
) -> dict[str, pd.DataFrame]:
    """Return examples and validation questions as `Judged` describes them; equal questions are asked once."""
    frames, n_refused = {"judged": examples, "known": validation}, 0
    asked: dict[str, dict[str, str]] = {name: {} for name in tasks}
    for frame in (validation, examples):
        for task, prompt in zip(frame["task"], prompts.naive_prompts(tasks, frame), strict=True):
            asked[task][prompt] = ""
    prompts_of = {name: [("", prompt) for prompt in of] for name, of in asked.items()}
    jobs = [AskJob(model, f"the judge, {name}", of, max_new_tokens) for name, of in prompts_of.items()]
    told = run_engine_jobs(complete_job, jobs, model, "asking the judge")
    for (name, of), written in zip(asked.items(), told, strict=True):
        of |= {prompt: tasks[name].answers.read(one.text) for prompt, one in zip(of, written, strict=True)}
        n_refused += sum(not one.text for one in written)
    for name, frame in frames.items():
        named = zip(frame["task"], prompts.naive_prompts(tasks, frame), strict=True)
        frames[name] = frame.assign(said=[asked[task][prompt] for task, prompt in named])
    judged, known = frames.values()
    same = [tasks[row.task].answers.alike(row.answer, row.said) for row in judged.itertuples()]
    judged["agrees"] = pd.array(same, dtype="boolean")
    judged.loc[judged["said"] == "", "agrees"] = pd.NA
    known["right"] = [tasks[row.task].answers.same(row.said, row.target) for row in known.itertuples()]
    judged.attrs["counts"] = {"questions judged": sum(map(len, asked.values())), "questions refused": n_refused}
    return frames
