"""One recipe says everything a run needs; a wrong one is refused whole, with every error and its fix."""

import importlib
import io
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import accumulate
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from workbench.runs.recipe_parts import (
    ROWS_AT_ONCE,
    Benchmarks,
    Compute,
    Count,
    CountOrZero,
    EngineChoice,
    Engines,
    IfSet,
    Name,
    NamedPlace,
    Place,
    Positive,
    PositiveOrZero,
    Prompts,
    Ratio,
    Scheduler,
    Section,
    Shots,
    Tasks,
    Text,
    Tuning,
    require_distinct,
    require_known,
)

ALIGNED_ARMS = ("tailored", "random_pairs", "question_only", "rationale_only", "decided_pairs", "fewer_pairs")
DRAFT_ARMS = ("random_rationale", "most_preferred", "task_consistent")
DISTILLED = "distilled"  # the untailored questions, answered by the student itself, each token judged by the teacher
ARMS = ("base", "untailored", DISTILLED, *ALIGNED_ARMS, *DRAFT_ARMS)
ONE_SHOT = "one_shot"
# What a student can be asked of a draft.
SIGNALS = (
    *(ONE_SHOT, "self_consistency", "surprisal", "rank_surprisal", "learning_cost"),
    *("answer_likelihood", "answer_likelihood_alone", "gradient_norm", "measured_gain"),
)
BEST_BY = "best_by_"  # and one of these: of each question the draft that it likes best
TAILORED_FOR = "tailored_for_"  # and the name of another student: what was tailored for that one
MOST_CHARACTERS, MOST_VALUES, DEEPEST = 200_000, 20_000, 30
Level = Literal["exact", "normalised", "options", "reordered", "renamed", "ngram", "near"]


def takes_drafts(arm: str) -> bool:
    """Return whether an arm trains on drafts as they are, so that no teacher is aligned for it."""
    return arm in DRAFT_ARMS or arm.startswith(BEST_BY)


class Models(Section):
    """Folders (in the project or beside the recipe) or hub ids; licences, of teacher and students, are for the cards.

    judge answers what the examples ask, to be compared with them (see judge); "" for none. It is never trained, and
    no pair, example or verdict depends on it. dtype auto takes the faster one of this machine, as it measures.
    """

    teacher: NamedPlace
    students: Annotated[dict[Name, NamedPlace], Field(min_length=1)]
    judge: IfSet[Place] = ""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    licences: dict[Name, Text] = {}

    @model_validator(mode="after")
    def _licences_name_models(self):
        require_known("licences", self.licences, ["teacher", *self.students])
        return self


class Guarding(Section):
    """How the sets are kept apart; false_positive_rate: the share of independent items that may be taken for copies.

    What teachers write is dropped when it copies any set. Fixed test items that copy a seed or validation item, and
    written questions that copy a test item, are removed and reported, or the run is refused.
    """

    levels: Annotated[list[Level], Field(min_length=1)] = list(get_args(Level))
    false_positive_rate: Annotated[float, Field(gt=0, lt=1)] = 0.02
    test_overlap: Literal["remove", "refuse"] = "remove"

    @model_validator(mode="after")
    def _distinct(self):
        require_distinct("levels", self.levels)
        return self


class Drafting(Section):
    """What the unaligned teacher proposes; n_questions is per task."""

    n_questions: Count
    questions_per_call: Count = 5
    n_seed_questions: Count = 3
    question_temperature: PositiveOrZero = 1.0
    rationale_temperature: PositiveOrZero = 1.0
    max_new_tokens: Count


class PreferenceSet(Section):
    """The questions on which the student is probed; empty responders means the students themselves.

    balanced: no answer is right for more of them than its share of the validation questions, rounded up. Without it the
    questions that tell students apart best can nearly all have one answer, which a student may copy from a draft.
    """

    n_validation: Count = 100
    n_items: Count = 40
    selection: Literal["irt", "random"] = "irt"
    responders: list[NamedPlace] = []
    shots: Shots = [0, 1, 2, 3]
    balanced: IfSet[bool] = False

    @model_validator(mode="after")
    def _subset(self):
        if self.n_items > self.n_validation:
            most = self.n_validation
            raise ValueError(f"n_items must be at most n_validation ({most}), got {self.n_items}; lower it")
        require_distinct("shots", self.shots)
        return self


class Pairs(Section):
    """How scores become preference pairs; n_question_pairs is per task, quantile the share at each end.

    min_probability drops pairs whose chosen side is less probably the better one; 0 keeps all.
    """

    n_question_pairs: CountOrZero = 50
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    min_gap: PositiveOrZero = 0.0
    min_probability: Ratio = 0.0


class Alignment(Tuning):
    """DPO of the teacher, on the pairs of these tasks (none named: all).

    sft_weight: of the mean loss on the chosen side's tokens, added to that of DPO; 0 for none.
    """

    beta: Positive
    sft_weight: IfSet[PositiveOrZero] = 0.0
    warmup_ratio: Ratio = 0.1
    scheduler: Scheduler = "cosine"
    tasks: list[Name] = []

    @model_validator(mode="after")
    def _sums_up(self):
        if self.sft_weight and self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size must be 0 with sft_weight, got {self.micro_batch_size}: that loss is a mean "
                "over the tokens computed at once; lower batch_size instead"
            )
        return self


class Tailoring(Section):
    """What each teacher writes for training; n_examples is per task and seed."""

    n_examples: Count
    max_new_tokens: Count
    question_temperature: PositiveOrZero = 1.0
    rationale_temperature: PositiveOrZero = 0.0


class Training(Tuning):
    """SFT of the student. packing: all rows in one long row, without padding."""

    warmup_ratio: Ratio = 0.03
    scheduler: Scheduler = "linear"
    packing: IfSet[bool] = False

    @model_validator(mode="after")
    def _is_packed(self):
        if self.packing and self.backend == "unsloth":
            raise ValueError("packing is for backend trl: Unsloth does not always keep packed rows apart; change one")
        return self


class Primary(Section):
    """The one comparison the verdict decides on: a minus b, at this many shots."""

    a: Name = "tailored"
    b: Name = "untailored"
    shots: CountOrZero = 0


class Evaluation(Section):
    """Arms, items (n_items per task) and the decision rule, fixed before the test set is opened.

    items: the test items, or validation items outside the preference set, on which settings may be chosen.
    """

    KNOWN_ARMS: ClassVar[tuple[str, ...]] = (*ARMS, BEST_BY + "SIGNAL", TAILORED_FOR + "STUDENT")

    arms: Annotated[list[Name], Field(min_length=2)] = ["base", "untailored", "random_pairs", "tailored"]
    shots: Shots = [0, 3]
    n_items: Count
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    primary: Primary = Primary()
    bbh_dir: Place = ""
    # Left out where it is not set, as prompts below.
    items: Annotated[Literal["test", "validation"], Field(exclude_if=lambda items: items == "test")] = "test"
    max_new_tokens: Count

    @model_validator(mode="after")
    def _primary_is_evaluated(self):
        require_distinct("arms", self.arms)
        plain = [arm for arm in self.arms if not arm.startswith((TAILORED_FOR, BEST_BY))]
        require_known("arms", plain, self.KNOWN_ARMS)
        require_distinct("shots", self.shots)
        require_known("primary", (self.primary.a, self.primary.b), self.arms)
        if self.primary.a == self.primary.b:
            raise ValueError(f"primary must compare two different arms, got {self.primary.a!r} twice; change one")
        if self.primary.shots not in self.shots:
            raise ValueError(f"primary.shots must be one of shots {self.shots}, got {self.primary.shots}; add it there")
        return self


class Recipe(Section):
    """Everything a run needs; see the sections for what each value means. Methods add sections of their own."""

    TEACHES_OPEN: ClassVar[bool] = False  # whether the method needs no answer that is checked

    name: Name
    method: Annotated[Name, Field(default_factory=lambda: _methods().FIRST)]
    profile: Literal["pocket", "real"]
    seeds: Annotated[list[CountOrZero], Field(min_length=2)]
    models: Models
    tasks: Tasks
    # Left out where nothing is set, so that fingerprints of older recipes stay what they were.
    prompts: Annotated[Prompts, Field(exclude_if=lambda prompts: prompts == Prompts())] = Prompts()
    guard: Guarding = Guarding()
    drafting: Drafting
    preference_set: PreferenceSet = PreferenceSet()
    pairs: Pairs = Pairs()
    alignment: Alignment
    tailoring: Tailoring
    training: Training
    evaluation: Evaluation
    compute: Compute = Compute()
    engines: Engines = Engines()
    benchmarks: Annotated[Benchmarks, Field(exclude_if=lambda value: not value.tasks)] = Benchmarks()

    @model_validator(mode="after")
    def _engines_can(self):
        if self.engines.judge != EngineChoice() and not self.models.judge:
            raise ValueError("engines.judge is set, but models.judge names no model; add it there or take that out")
        aligned = [arm for arm in self.evaluation.arms if arm != "base" and not takes_drafts(arm)]
        self.engines.require_for({*self.models.students.values(), *self.preference_set.responders}, aligned)
        if self.compute.cluster != "none" and self.models.dtype == "auto":
            raise ValueError("models.dtype auto is measured by each machine; with a cluster take float32 or bfloat16")
        for section in ("alignment", "training"):
            if self.compute.launcher != "none" and getattr(self, section).backend == "unsloth":
                raise ValueError(f"{section}.backend unsloth trains in one process; take trl or no compute.launcher")
        return self

    @model_validator(mode="after")
    def _consistent(self):
        require_distinct("seeds", self.seeds)
        shown = self.drafting.n_seed_questions
        for key, shots in (("preference_set", self.preference_set.shots), ("evaluation", self.evaluation.shots)):
            if max(shots) > shown:
                raise ValueError(
                    f"{key}.shots asks for {max(shots)} shots, but only the drafting.n_seed_questions ({shown}) seed "
                    "questions are there to be shown; lower it or raise that"
                )
        require_known("alignment.tasks", self.alignment.tasks, self.tasks.names)
        if self.prompts.questions == "continued" and self.drafting.questions_per_call != 1:
            raise ValueError(
                "drafting.questions_per_call must be 1 where prompts.questions is continued, got "
                f"{self.drafting.questions_per_call}; set it to 1, or prompts.questions to told"
            )
        return self

    @model_validator(mode="after")
    def _judges_what_is_open(self):
        if not self.is_open:
            return self
        checked = [name for name in self.tasks.names if not self._is_open(name)]
        if not self.TEACHES_OPEN:
            raise ValueError(f"tasks.sources has open answers, but method {self.method} checks answers; take another")
        if checked:
            raise ValueError(
                f"tasks.names has {checked[0]!r}, whose answers are checked, beside open tasks, whose answers are "
                "judged, and one verdict cannot count both; take one kind"
            )
        if not self.models.judge:
            raise ValueError("models.judge names no model, but open answers can only be judged; name one there")
        return self

    @model_validator(mode="after")
    def _arms_have_what_they_take(self):
        for arm in (arm for arm in self.evaluation.arms if arm.startswith(BEST_BY)):
            if not hasattr(self, "signal"):
                raise ValueError(f"evaluation.arms names {arm!r}, but method {self.method} asks one signal; remove it")
            require_known(f"evaluation.arms: {arm!r}", [arm.removeprefix(BEST_BY)], SIGNALS)
        if DISTILLED in self.evaluation.arms:
            if "untailored" not in self.evaluation.arms:
                raise ValueError(f"evaluation.arms has {DISTILLED!r} without 'untailored', which it needs; add that")
            if self.training.backend != "trl" or self.compute.launcher != "none":
                raise ValueError(
                    f"evaluation.arms has {DISTILLED!r}, which needs training.backend trl and no compute.launcher; set "
                    "them so or take it out"
                )
        for arm in (arm for arm in self.evaluation.arms if arm.startswith(TAILORED_FOR)):
            require_known(f"evaluation.arms: {arm!r}", [arm.removeprefix(TAILORED_FOR)], self.models.students)
            if "tailored" not in self.evaluation.arms:
                raise ValueError(f"evaluation.arms has {arm!r} without 'tailored', whose examples it takes; add that")
        return self

    def arms_of(self, student: str) -> list[str]:
        """Return the arms of one student: what is tailored for itself is its arm tailored already."""
        return [arm for arm in self.evaluation.arms if arm != TAILORED_FOR + student]

    def trained_arms(self, student: str) -> list[str]:
        """Return the arms in which the student is trained."""
        return [arm for arm in self.arms_of(student) if arm != "base"]

    @property
    def n_seeds_wanted(self) -> int:
        """How many seed questions a task must have."""
        return self.drafting.n_seed_questions

    def n_seeds_of(self, task: str) -> int:
        """Return how many of a task's examples are its seed questions, where they are not split already."""
        return self.drafting.n_seed_questions

    @property
    def is_open(self) -> bool:
        """Whether answers are open, so that a judge alone can say what they are worth."""
        return any(map(self._is_open, self.tasks.names))

    def _is_open(self, task: str) -> bool:
        return task in self.tasks.sources and self.tasks.sources[task].answer_type == "open"

    def section_json(self, *names: str) -> str:
        """Return the named sections (or values, as "models.teacher") as canonical JSON, for fingerprints."""
        values = self.without_limits().model_dump()
        return canonical_json({name: reduce(getitem, name.split("."), values) for name in names})

    def without_limits(self) -> "Recipe":
        """Return the same recipe without what changes no result and may be set anew under way.

        These are the caps on spending, and how many rows a training computes at once.
        """
        trainings = {name: getattr(self, name).model_copy(update=ROWS_AT_ONCE) for name in ("alignment", "training")}
        return self.model_copy(update={"engines": self.engines.without_limits(), **trainings})

    def to_yaml(self) -> str:
        """Return the whole recipe, defaults included, as YAML."""
        return format_yaml(self.model_dump())


def _yaml() -> YAML:
    # Only the pure reader knows YAML 1.2, in which 5e-7 is a number and `no` is text.
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    return yaml


def parse_yaml(text: str) -> Any:
    """Return the plain values that YAML 1.2 text holds.

    Raises:
        ValueError: If it is no YAML, gives a key twice or asks for anything but plain values, naming the line.
    """
    try:
        _require_bounded(text)
        return _yaml().load(text)
    except MarkedYAMLError as error:
        # After "with value" a duplicate key's whole section would follow.
        problem = str(error.problem).partition(" with value")[0]
        raise ValueError(f"line {(error.problem_mark or error.context_mark).line + 1}: {problem}") from None
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _require_bounded(text: str) -> None:
    """Refuse text that is long, nested deep, or, its aliases written out, holds more than any recipe does."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, of at most {MOST_CHARACTERS:,}")
    # Before the parser, whose time grows with the square of open brackets.
    if max(accumulate((letter in "[{") - (letter in "]}") for letter in text), default=0) > 10 * DEEPEST:
        raise ValueError(f"it has more than {10 * DEEPEST} open brackets")
    held, under = {}, [("", 0)]
    for event in _yaml().parse(text):
        kind, anchor = type(event).__name__, getattr(event, "anchor", None)
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            under.append((anchor, 0))
            continue
        if kind in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, n = under.pop()
        else:
            n = held.get(anchor, 1) if kind == "AliasEvent" else 0
        held |= {anchor: n + 1} if anchor and kind != "AliasEvent" else {}
        under[-1] = (under[-1][0], under[-1][1] + n + 1)
        if len(under) > DEEPEST or under[-1][1] > MOST_VALUES:
            raise ValueError(
                f"line {event.start_mark.line + 1}: nested deeper than {DEEPEST} levels, or aliases for more "
                f"than {MOST_VALUES:,} values"
            )


def format_yaml(values: Mapping) -> str:
    """Return plain values as YAML, in their order."""
    text = io.StringIO()
    _yaml().dump(values, text)
    return text.getvalue()


def _methods():
    """Return the room of methods, which stands above this one: they are looked up by name, as plugins are."""
    return importlib.import_module("workbench.methods")


def recipe_class(method: str | None) -> type[Recipe]:
    """Return the class of a method's recipes, with its own sections; None stands for the first method.

    Raises:
        ValueError: If there is no such method, naming those there are.
    """
    methods = _methods()
    name = methods.FIRST if method is None else method
    if name not in methods.ALL:
        raise ValueError(f"method must be one of {', '.join(methods.ALL)}, got {name!r}; correct it or bring --method")
    return methods.ALL[name].recipe


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def flatten(values: Mapping, under: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every value of a nested mapping."""
    for key, value in values.items():
        dotted = f"{under}.{key}" if under else str(key)
        if isinstance(value, Mapping) and value:
            yield from flatten(value, dotted)
        else:
            yield dotted, value


def project_root() -> Path:
    """Return the folder in which the library lies with its notebooks, recipes and pocket models.

    Raises:
        FileNotFoundError: If it was installed without them.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "notebooks" / "recipes").is_dir():
        raise FileNotFoundError(f"The library in {root} has no notebooks/recipes beside it; install it from a clone.")
    return root


def home() -> Path:
    """Return where runs are kept: the project, if the current folder lies in it; else the nearest folder from there
    upwards that has data/runs, or the current folder itself."""
    here = Path.cwd()
    if here.is_relative_to(project_root()):
        return project_root()
    return next((folder for folder in (here, *here.parents) if (folder / "data" / "runs").is_dir()), here)
