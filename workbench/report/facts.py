"""What a finished run says of one student, for its cards: verdict, frames, manifests, licences of what went in."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd

from workbench.runs.cache import LOOKS, read_json, runs_folder
from workbench.runs.errors import RunError, spoken
from workbench.runs.recipe import BEST_BY, SIGNALS, TAILORED_FOR
from workbench.runs.run import Run
from workbench.runs.schemas import Ledger
from workbench.signals.judge import Judged, stored
from workbench.tasks.task import all_test_items, load_tasks, task_file
from workbench.verdict.in_words import percent, share_of, spell

NOT_STATED = "not stated"
OURS, OUR_LICENCE = "data/pocket", "apache-2.0"
UNALIGNED = "the teacher as it was"
WRITERS = {
    "untailored": UNALIGNED,
    "distilled": f"the student itself, to the questions of {UNALIGNED}, which weighs each of its words",
    "random_pairs": "a teacher aligned to the same pairs, half of them turned round",
    "tailored": "the teacher aligned to the student",
    "question_only": "a teacher aligned to the pairs of questions alone",
    "rationale_only": "a teacher aligned to the pairs of rationales alone",
    "decided_pairs": "a teacher aligned to the pairs that the probes leave little doubt about",
    "fewer_pairs": "a teacher aligned to as many pairs as are decided, drawn at random",
    "by_training_loss": "a teacher aligned to pairs by the student's training loss instead of influence",
    "random_rationale": f"{UNALIGNED}: a random draft of each question",
    "most_preferred": f"{UNALIGNED}: the draft of each question that the student preferred",
    "task_consistent": f"{UNALIGNED}: drafts of the technique that the student preferred in the task",
} | {f"{BEST_BY}{name}": f"{UNALIGNED}: the draft of each question that is best by {name}" for name in SIGNALS}
# Names in a manifest's counts of what was lost or could not be used.
LOST = re.compile(r"dropped|without|not readable|tied|below|equal texts")


class Facts:
    """What a finished run says of one student, read when first asked for.

    Raises:
        RunError: If the run is not finished, naming the stage and the command that finishes it.
    """

    def __init__(self, work: Run, student: str):
        self.work, self.student, self.recipe = work, student, work.recipe
        self.verdict = work.verdict
        if not self.verdict:
            raise RunError(
                f"Run {work.name} has no verdict, which its card needs; write it with: "
                f"workbench run {work.path / 'recipe.yaml'} --name {work.name} --to evaluation"
            )
        self.block = self.verdict.get("students", {}).get(student, self.verdict)

    @cached_property
    def examples(self) -> pd.DataFrame:
        """What was written for this student, and what was written for every student."""
        return self._own(self.work.read("examples"))

    @cached_property
    def judged(self) -> Judged | None:
        """What the judge said of the examples for this student and for every student; None if it was not asked."""
        judged = stored(self.work)
        return judged and judged._replace(examples=self._own(judged.examples))

    def _own(self, examples: pd.DataFrame) -> pd.DataFrame:
        return examples[examples["student"].isin([self.student, ""])]

    @cached_property
    def reviews(self) -> pd.DataFrame:
        """The reviews of this student's pairs that the alignment used."""
        used = self.work.read("reviewed", "reviews")
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
        """What is recorded of each step, in the order in which they were written."""
        made = {name: self.work.manifest(name) for name in self.work.steps()}
        return dict(sorted(made.items(), key=lambda one: one[1]["written"]))

    @property
    def date(self) -> str:
        """The day on which the last step was written."""
        return max((made["written"][:10] for made in self.manifests.values()), default=NOT_STATED)

    @property
    def timings(self) -> dict[str, dict]:
        """Step -> seconds and tokens; "all" sums them."""
        keys = ("seconds", "tokens")
        timings = {name: {key: made[key] for key in keys} for name, made in self.manifests.items()}
        return timings | {"all": {key: sum(one[key] for one in timings.values()) for key in keys}}

    @property
    def looks(self) -> int:
        """How often the test set has been opened by now: the most of its files, since the ledger counts by file."""
        ledger = read_json(runs_folder() / LOOKS, Ledger)
        files = [all_test_items(self.recipe, task)[1] for task in load_tasks(self.recipe).values()]
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

    def splits(self) -> list[list]:
        """Return of each arm trained on: its name, who wrote it, rows, rows of each seed, completion tokens."""
        lines = []
        for arm in self.arms:
            own = self.rows[self.rows["arm"] == arm]
            other = arm.removeprefix(TAILORED_FOR)
            writer = WRITERS[arm] if other == arm else f"the teacher aligned to student {other}"
            by_seed = ", ".join(f"{n} (seed {seed})" for seed, n in own.groupby("seed").size().items())
            lines.append([arm, writer, len(own), by_seed, int(own["n_tokens"].sum())])
        return lines

    def written(self) -> list[list]:
        """Return of each arm: its name, who wrote it, how many texts, how many kept, why others not, share right."""
        lines = []
        by_arm = dict(list(self.examples.groupby("arm")))
        for arm, own in ((arm, by_arm[arm]) for arm in WRITERS if arm in by_arm):
            dropped = own.loc[~own["kept"], "drop_reason"].value_counts()
            reasons = "; ".join(f"{n} {why}" for why, n in dropped.items()) or "none"
            checked = own[own["kept"] & (own["gold"] != "")]
            right = share_of(checked["correct"], checked["question_id"]) if len(checked) else "no rule"
            right += f"; {n} cannot be checked" if (n := int(own["kept"].sum()) - len(checked)) else ""
            lines.append([spoken(arm), WRITERS[arm], len(own), int(own["kept"].sum()), reasons, right])
        return lines

    def troubles(self) -> list[str]:
        """Return what did not work beside the comparisons, a sentence each: harm by training, losses, warnings."""
        block = self.block
        worse = [row for row in block["per_task"] if row["decision"] == "worse"]
        said = [spoken(f"On {row['task']}, {row['a']} is worse than {row['b']}.") for row in worse]
        base = block["arms"].get("base")
        for arm, row in block["arms"].items():
            if base and row["accuracy"] < base["accuracy"]:
                now = spell(row["accuracy"], row["low"], row["high"])
                said.append(
                    f"Trained on {spoken(arm)}, the student is right less often than untrained: {now} against "
                    f"{percent(base['accuracy'])}."
                )
        kept = self.examples[self.examples["kept"] & (self.examples["gold"] != "")]
        right = kept.groupby(["arm", "task"])["correct"].mean().groupby("arm").mean()
        if right.get("tailored", 1.0) < right.get("untailored", 0.0):
            said.append(
                f"The aligned teacher is right less often than before: {percent(right['tailored'])} of its "
                f"examples, {percent(right['untailored'])} of the unaligned teacher's."
            )
        for stage, manifest in self.manifests.items():
            lost = [f"{n:,} {what}" for what, n in merged(manifest["counts"]).items() if LOST.search(what)]
            said += [f"Counted in {stage}, all students together: {'; '.join(lost)}."] if lost else []
        return said + list(dict.fromkeys([*self.verdict["warnings"], *block["warnings"]]))


def merged(counts: Mapping[str, int]) -> Counter:
    """Return what was counted, without zeros and with copies of known questions together, however they were found."""
    sums: Counter = Counter()
    for what, n in counts.items():
        sums[re.sub(r"same as .*", "copies of test, validation or seed questions", what)] += n
    return +sums


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
