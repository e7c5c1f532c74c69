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
from workbench.models.start import Model, engine_fingerprint, model_fingerprint, run_engine_jobs
from workbench.runs.cache import read_json, write_json
from workbench.runs.errors import RunError
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run, fingerprint
from workbench.tasks.answers import Answers
from workbench.tasks.task import Task, load_tasks

VERSION = 2
FILE = "judgements.json"
NOBODY = (
    "This recipe names no judge; with models: {judge: ...} another model would answer the examples' questions here."
)


class Judged(NamedTuple):
    """What a judge says.

    Attributes:
        examples: The kept examples, with `said` (the judge's answer, "" where none could be read) and `agrees` (missing
            there).
        validation: Columns task, item_id, target, said, right: the judge on questions whose answers are known.
    """

    examples: pd.DataFrame
    validation: pd.DataFrame


class _Asked(NamedTuple):
    """What the judge is asked: the examples and the validation questions with their prompts, and readers by task."""

    examples: pd.DataFrame
    validation: pd.DataFrame
    tasks: dict[str, Task]

    def prompts(self) -> dict[str, dict[str, Answers]]:
        """Return for each task the prompts, each once, and how its answer is read."""
        found: dict[str, dict[str, Answers]] = {name: {} for name in self.tasks}
        for frame in (self.validation, self.examples):
            for task, prompt in zip(frame["task"], frame["prompt"], strict=True):
                found[task].setdefault(prompt, self.tasks[task].answers)
        return found


def judge(run: Run) -> Judged | None:
    """Let the judge answer every question of the examples once, greedily, or return what it answered before.

    What it refused to answer is asked again the next time.

    Returns:
        None if the recipe names no judge.

    Raises:
        RunError: If the judge's engine fails; what was answered is kept, so the same call goes on.
        RunError: If the run's alignment is not finished, or kept no example.
    """
    if not run.recipe.models.judge:
        return None
    asked, path = _asked(run), run.path / FILE
    mark = [model_fingerprint(run.recipe, "judge", run.recipe.models.judge), engine_fingerprint(run.recipe, "judge")]
    key, found = _key(run.recipe, asked, mark), read_json(path)
    if key in found:
        return _compare(asked, found[key]["said"])
    said, refused = _answers(run.recipe, asked)
    if not refused:
        of = _key(run.recipe, asked)
        # Another model at the same place was another judge.
        kept = {other: one for other, one in found.items() if one["of"] != of}
        write_json(path, kept | {key: {"of": of, "said": said}})
    return _compare(asked, said)


def stored(run: Run) -> Judged | None:
    """Return what the judge said of the run's examples as they are now, without looking for the judge; else None."""
    if not run.recipe.models.judge or not (found := read_json(run.path / FILE)):
        return None
    asked = _asked(run)
    of = _key(run.recipe, asked)
    said = next((one["said"] for one in found.values() if one["of"] == of), None)
    return _compare(asked, said) if said else None


def _asked(run: Run) -> _Asked:
    recipe, tasks = run.recipe, load_tasks(run.recipe)
    examples = run.read("examples")
    examples = examples[examples["kept"]].reset_index(drop=True)
    if examples.empty:
        raise RunError(f"Run {run.name} kept no example, so there is nothing to judge; see why they were dropped.")
    frames = [task.validation.head(recipe.preference_set.n_validation).assign(task=n) for n, task in tasks.items()]
    validation = pd.concat(frames, ignore_index=True)[["task", "item_id", "question", "target"]]
    for frame in (examples, validation):
        named = [(tasks[row.task], row.question) for row in frame.itertuples()]
        frame["prompt"] = [prompts.naive_prompt(task.description, one, task.prompts) for task, one in named]
    return _Asked(examples, validation, tasks)


def _key(recipe: Recipe, asked: _Asked, mark: list | None = None) -> str:
    """Return the key of all that can change what the judge answers; without its mark, of what the recipe says."""
    given = recipe.section_json("models.judge", "models.dtype", "evaluation.max_new_tokens")
    choice = recipe.engines.judge
    engine = [choice.engine, choice.base_url, choice.model_name, choice.endpoint, mark]
    return fingerprint([VERSION, given, engine, {name: list(texts) for name, texts in asked.prompts().items()}])


def _answers(recipe: Recipe, asked: _Asked) -> tuple[dict[str, str], bool]:
    """Return the judge's answers by prompt, and whether some came back empty, as those that it refuses do."""
    by_task = asked.prompts()
    model, longest = Model(recipe, "judge", recipe.models.judge), recipe.evaluation.max_new_tokens
    jobs = [
        AskJob(model, f"the judge, {name}", [("", one) for one in texts], longest) for name, texts in by_task.items()
    ]
    said, refused = {}, False
    for texts, written in zip(
        by_task.values(), run_engine_jobs(complete_job, jobs, model, "asking the judge"), strict=True
    ):
        for (prompt, answers), completion in zip(texts.items(), written, strict=True):
            said[prompt] = answers.read(completion.text)
            refused |= not completion.text
    return said, refused


def _compare(asked: _Asked, said: dict[str, str]) -> Judged:
    examples, validation = (
        frame.assign(said=[said[prompt] for prompt in frame["prompt"]]).drop(columns="prompt")
        for frame in (asked.examples, asked.validation)
    )
    same = [asked.tasks[row.task].answers.alike(row.answer, row.said) for row in examples.itertuples()]
    examples["agrees"] = pd.array(same, dtype="boolean")
    examples.loc[examples["said"] == "", "agrees"] = pd.NA
    validation["right"] = [asked.tasks[r.task].answers.same(r.said, r.target) for r in validation.itertuples()]
    return Judged(examples, validation)
