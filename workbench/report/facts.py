"""What a finished run says of one student, for its cards: verdict, frames, manifests, licences of what went in."""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd

from workbench.loop.reviews import used_in
from workbench.runs.cache import StoreError, read_json, runs_folder
from workbench.runs.recipe import project_root
from workbench.runs.run import NOTEBOOKS, Run
from workbench.signals.judge import Judged, stored
from workbench.tasks.task import task_file

NOT_STATED = "not stated"
OURS, OUR_LICENCE = "data/pocket", "apache-2.0"


class Facts:
    """What a finished run says of one student, read when first asked for.

    Raises:
        StoreError: If the run is not finished, naming the stage and the command that finishes it.
    """

    def __init__(self, work: Run, student: str):
        self.work, self.student, self.recipe = work, student, work.recipe
        self.verdict = read_json(work.path / "verdict.json")
        if not self.verdict:
            raise StoreError(
                f"Run {work.name} has no verdict, which its card needs; write it with: "
                f"workbench run {work.path / 'recipe.yaml'} --name {work.name} --from evaluation"
            )
        self.block = self.verdict.get("students", {}).get(student, self.verdict)

    @cached_property
    def examples(self) -> pd.DataFrame:
        """What was written for this student, and what was written for every student."""
        examples = self.work.read("examples")
        return examples[examples["student"].isin([self.student, ""])]

    @cached_property
    def judged(self) -> Judged | None:
        """What the judge said of the examples for this student and for every student; None if it was not asked."""
        if not (judged := stored(self.work)):
            return None
        return judged._replace(examples=judged.examples[judged.examples["student"].isin([self.student, ""])])

    @cached_property
    def reviews(self) -> pd.DataFrame:
        """The reviews of this student's pairs that the alignment used."""
        used = used_in(self.work)
        return used[used["student"] == self.student]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """What this student was trained on, with the examples behind it; `correct` is empty where nothing can tell."""
        rows, examples = self.work.read("rows"), self.work.read("examples")
        columns = ["example_id", "question", "answer", "gold", "correct", "style"]
        own = rows[rows["student"] == self.student].merge(examples[columns], on="example_id", validate="m:1")
        own["correct"] = own["correct"].astype("boolean").where(own["gold"] != "")
        return own.drop(columns="student")

    @property
    def arms(self) -> list[str]:
        """The arms with training rows, the tailored one first."""
        return sorted(self.rows["arm"].unique(), key=lambda arm: arm != "tailored")

    @cached_property
    def manifests(self) -> dict[str, dict]:
        return {name: self.work.stage(name).manifest for name in NOTEBOOKS}

    @property
    def looks(self) -> int:
        """How often the test set has been opened by now: the most of its files, since the ledger counts by file."""
        ledger = read_json(runs_folder() / "looks.json")
        files = [sha for name, sha in self.manifests["drafting"]["parents"].items() if name.startswith("test ")]
        return max((len(ledger[sha]["looks"]) for sha in files if sha in ledger), default=0)

    @cached_property
    def licences(self) -> dict[str, str]:
        """Licence of the teacher, of the student and of every task's items, as far as anybody said."""
        models, stated = self.recipe.models, self.recipe.models.licences
        found = {
            "teacher": stated.get("teacher") or _our_licence(models.teacher),
            f"student {self.student}": stated.get(self.student) or _our_licence(models.students[self.student]),
        }
        for task in self.recipe.tasks.names:
            if file := task_file(self.recipe, task):
                said = read_json(file).get("licence") or _our_licence(self.recipe.tasks.folder)
            else:
                said = self.recipe.tasks.sources[task].licence or NOT_STATED
            found[f"task {task}"] = str(said)
        return found


def _our_licence(ref: str) -> str:
    return OUR_LICENCE if Path(ref).is_relative_to(OURS) else NOT_STATED


def shown_ref(ref: str) -> str:
    """Return a model's name or path, of an absolute path its last part alone: places on this machine tell nobody."""
    path = Path(ref).expanduser()
    return path.name if path.is_absolute() else ref


def without_places(value: object) -> object:
    """Return nested values with every absolute path in them cut to its last part."""
    if isinstance(value, Mapping):
        return {key: without_places(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_places(one) for one in value]
    return shown_ref(value) if isinstance(value, str) and value else value


def is_hub_id(ref: str) -> bool:
    """Say whether a model's name is that of a hub, not of a folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", ref)) and not (project_root() / ref).is_dir()
