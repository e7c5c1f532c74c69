"""What sections of a recipe are made of, and the sections for tasks, adapters and engines, and for where it runs."""

import re
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Text = Annotated[str, Field(min_length=1)]
# More than any machine counts to here, and less than what SQLite, Parquet and seeds can hold.
Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**12)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=0, lt=1)]
Shots = Annotated[list[CountOrZero], Field(min_length=1)]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
AnswerType = Literal["tagged", "exact", "option", "number", "boolean", "regex", "open"]


def require_distinct(key: str, values: list) -> None:
    """Refuse values that repeat."""
    if len(set(values)) < len(values):
        raise ValueError(f"{key} must all differ, got {values}; remove the repeats")


def require_known(key: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse names that are none of those known."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{key} names {unknown[0]!r}, which is none of {', '.join(known)}; correct it or add it there")


class Section(BaseModel):
    """Part of a recipe: nothing converted silently, nothing unknown, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _find(value: str, info: ValidationInfo) -> str:
    """Return a place as the reader of the recipe's file finds it; the name of a split is none."""
    find = (info.context or {}).get("place")
    is_split = info.field_name == "test" and "." not in value
    return find(value) if find and value and not is_split else value


# A file, a folder or a hub id: from the project, beside the recipe, or from where one stands.
Place = Annotated[str, AfterValidator(_find)]
NamedPlace = Annotated[Place, Field(min_length=1)]
T = TypeVar("T")
# Left out of fingerprints where not set, so that those of recipes older than the setting stay what they were.
IfSet = Annotated[T, Field(exclude_if=lambda value: not value)]


class Lora(Section):
    """Low-rank adapters instead of all weights; rank 0 trains all weights.

    targets names the linear layers to adapt, as q_proj; none named means all of them but the output layer. merge puts
    the finished adapter into the weights, so that what is saved is an ordinary model; otherwise the adapter alone is
    saved and needs the model it was trained on. load_in_4bit holds the frozen weights in four bits while the adapter is
    trained (QLoRA); that needs a GPU and bitsandbytes.
    """

    rank: CountOrZero = 0
    alpha: Positive = 32.0
    dropout: Ratio = 0.0
    targets: list[Text] = []
    merge: bool = True
    load_in_4bit: IfSet[bool] = False

    @model_validator(mode="after")
    def _has_rank(self):
        require_distinct("targets", self.targets)
        if not self.rank and (given := sorted(self.model_fields_set - {"rank"})):
            raise ValueError(f"{given[0]} is set, but rank 0 trains all weights; set rank, for example to 16")
        return self


# Left out where all weights are trained, so that keys and fingerprints of such trainings stay what they were.
OptionalLora = Annotated[Lora, Field(exclude_if=lambda lora: not lora.rank)]


ROWS_AT_ONCE = {"micro_batch_size": 0}  # what may be changed while a run is under way


class Tuning(Section):
    """What DPO and SFT have in common, and by what means they train; save_steps 0 keeps no checkpoints.

    backend: unsloth trains the same rows in the same order in a process of its own. micro_batch_size: rows that are
    computed at once, a part of batch_size; 0 for all of them. The optimiser's batch stays, so lower it where memory
    runs out. bf16: matrix products in bfloat16 beside float32 weights (with lora, the frozen weights are in
    models.dtype). gradient_checkpointing: less memory for more time.
    """

    backend: Annotated[Literal["trl", "unsloth"], Field(exclude_if=lambda value: value == "trl")] = "trl"
    micro_batch_size: IfSet[CountOrZero] = 0
    bf16: IfSet[bool] = False
    gradient_checkpointing: IfSet[bool] = False
    lora: OptionalLora = Lora()
    learning_rate: Positive
    n_epochs: Count
    batch_size: Count
    max_length: Count
    save_steps: CountOrZero = 0


class Benchmarks(Section):
    """Standard benchmarks for the students, by their names in lm-evaluation-harness; n_items of each, 0 for all.

    folder holds YAML files of the harness for benchmarks of one's own, which need no download.
    """

    tasks: list[Text] = []
    folder: Place = ""
    n_items: CountOrZero = 0

    @model_validator(mode="after")
    def _are_named(self):
        require_distinct("tasks", self.tasks)
        if not self.tasks and (given := sorted(self.model_fields_set - {"tasks"})):
            raise ValueError(f"{given[0]} is set, but no benchmark is named; add tasks")
        return self


TURN = "\x1e"  # in a prompt, between the turns of a chat


class Prompts(Section):
    """How models are asked, and in what form they answer; `asked` names the defaults of all else.

    pocket: as the pocket models were raised. chat and base: what SmolLM2-135M-Instruct follows, in its chat template
    and as plain text.

    answer: the form asked for; tag is <ans>42</ans>, said "The answer is 42.", boxed \\boxed{42}, line a last line of
    its own, whole no form at all, as open tasks always have it. turns: demonstrations are earlier turns
    of the chat, where a model has a chat template. cue: what each question ends with. opening:
    said before everything else. techniques: name and text of each, for every task, in place of the task's own.
    questions: whether a teacher is told to write new ones (several a call), or goes on with a list of them as plain
    text, one a call. stop: strings that end an answer. top_p: the nucleus of all sampling that has no own.
    """

    asked: Literal["pocket", "chat", "base"] = "pocket"
    answer: Literal["tag", "said", "boxed", "line", "whole"] = "tag"
    turns: bool = False
    cue: str = "Answer: Let's think step by step."
    opening: str = ""
    techniques: dict[Name, Text] = {}
    questions: Literal["told", "continued"] = "told"
    stop: list[Text] = []
    top_p: TopP = 1.0

    @model_validator(mode="before")
    @classmethod
    def _as_asked(cls, value: Any) -> Any:
        return DEFAULTS.get(value.get("asked"), {}) | value if isinstance(value, dict) else value


DEFAULTS: dict[str | None, dict] = {
    "chat": {"answer": "said", "turns": True, "cue": "", "questions": "continued", "top_p": 0.9},
    "base": {"answer": "said", "cue": "Answer:", "questions": "continued", "stop": ["\n\nQuestion:"], "top_p": 0.9},
}


class TaskSource(Section):
    """Where one task's items come from and how its answers are read; without path and generator, its task file.

    path is a file (CSV, TSV, JSON, JSONL, Parquet; in the project, beside the recipe or from where one stands), a
    folder or a hub id that `datasets` loads; config and split are those of `datasets`. test is another file, or another
    split, to take the test items from; "" takes them from the same rows. question and answer name columns; gold_pattern
    finds the answer in its column (its group, the last match), reply_pattern, for the answer type regex, in what a
    model wrote. Questions that stand there twice are refused or dropped. label takes the rows alone whose column
    `label` is this, so that one file holds several tasks.

    answer_type open: the whole reply is the answer, which nothing can check, so models.judge compares it with the
    file's. Rows may then be instructions: see `as_questions`.

    generator, instead of a path, names one of the library reasoning-gym (make gym), whose verifier then compares the
    answers; level is from 0, its easiest, and seed names the draw of the items.
    """

    path: Place = ""
    generator: IfSet[str] = ""
    level: IfSet[CountOrZero] = 0
    seed: IfSet[CountOrZero] = 0
    config: str = ""
    split: Text = "train"
    test: Place = ""
    question: Text = "question"
    answer: Text = "answer"
    label: IfSet[str] = ""
    answer_type: AnswerType
    gold_pattern: str = ""
    reply_pattern: str = ""
    duplicates: Literal["refuse", "drop"] = "refuse"
    description: str = ""
    licence: str = ""

    @model_validator(mode="after")
    def _patterns_fit(self):
        if (self.answer_type == "regex") != bool(self.reply_pattern):
            raise ValueError(
                f"reply_pattern is for the answer_type regex and needed there, got {self.reply_pattern!r} for "
                f"{self.answer_type}; add it or take it out"
            )
        for key in ("gold_pattern", "reply_pattern"):
            try:
                re.compile(getattr(self, key))
            except re.error as error:
                raise ValueError(f"{key} is no regular expression ({error}); correct {getattr(self, key)!r}") from None
        # By value: a run's own recipe sets every field, most of them to what they are anyway.
        fields = type(self).model_fields.items()
        given = {name for name, one in fields if not one.is_required() and getattr(self, name) != one.default}
        given -= {"path", "reply_pattern"}
        of_items = given - {"generator", "level", "seed", "description", "licence"}
        if self.generator and self.answer_type == "open":
            raise ValueError("answer_type open is set beside a generator, whose verifier checks answers; take another")
        if self.generator and (wrong := sorted(of_items) or ["path"] * bool(self.path)):
            raise ValueError(f"{wrong[0]} is set beside the generator {self.generator!r}; take one of them out")
        if not self.generator and (wrong := sorted(given & {"level", "seed"})):
            raise ValueError(f"{wrong[0]} is set without a generator, which alone has one; add generator")
        if not (self.path or self.generator) and given:
            raise ValueError(f"{min(given)} is set without a path, but a task file says this itself; add the path")
        return self


class Tasks(Section):
    """Which tasks, the folder that holds their files, and of those that come from elsewhere (or whose answers are read
    in another way than as tagged text) where and how, by name."""

    folder: NamedPlace = "data/pocket/tasks"
    names: Annotated[list[Name], Field(min_length=1)]
    # Left out where empty, so that fingerprints of recipes without it stay what they were.
    sources: Annotated[dict[Name, TaskSource], Field(exclude_if=lambda sources: not sources)] = {}

    @model_validator(mode="after")
    def _distinct(self):
        require_distinct("names", self.names)
        require_known("sources", self.sources, self.names)
        return self


class Influence(Section):
    """How local data influence is measured, and on what.

    The first n_warm_up questions of a task, with their responses, warm the student up (with adapters, if its folder
    holds one, these alone) for n_steps of AdamW; the others are scored. The reference set is the preference set, with
    answers that are written, in n_tries, by the student or the teacher (those that are right) or are the bare target.
    estimator judge has the student answer the reference questions after each step and takes a judge's score in place of
    the loss: that of models.judge, and without one whether the answer is right.
    sign says whether pairs are formed by the influence with the step at zero gradient subtracted, or by the raw one.
    """

    estimator: Literal["exact", "judge"] = "exact"
    sign: Literal["corrected", "raw"] = "corrected"
    reference: Literal["student", "teacher", "target"] = "student"
    n_tries: Count = 8
    n_warm_up: Count = 16
    n_steps: Count = 10
    batch_size: Count = 8
    learning_rate: Positive = 3.0e-4


# Engines: which computes for whom, and what each can do.
ROLES = ("teacher", "student", "judge")
# What an engine's own settings are; one that belongs to another engine would silently do nothing.
OWN_SETTINGS = {
    "transformers": (),
    "vllm": ("tensor_parallel_size", "gpu_memory_utilization", "max_model_len"),
    "openai": (
        *("base_url", "model_name", "endpoint", "max_concurrency", "timeout_s", "max_retries"),
        *("budget_tokens", "price_in", "price_out", "reasoning", "insecure"),
    ),
}
RENAMED = {
    "served": "model_name",
    "n_parallel": "max_concurrency",
    "n_attempts": "max_retries, which does not count the first try",
    "budget_money": "budget_tokens, a cap on tokens",
}
LIMITS = {"budget_tokens": 0}  # what may be changed while a run is under way


class EngineChoice(Section):
    """An engine by its name alone, or with its settings.

    vllm: number of GPUs for one model, part of their memory, longest text in tokens (0: what the model allows).
    openai: the server (empty: OPENAI_BASE_URL; its key is always OPENAI_API_KEY), the model's name there (empty: as
    under models), completions (prompts are rendered here) or chat (there), requests at once, seconds for each and how
    often it is tried again, a cap on the tokens spent, 0 for none, and for `workbench plan` prices of a million tokens.
    reasoning: the model takes max_completion_tokens, with its reasoning counted among them, and no temperature.
    insecure: key and prompts may go to another machine over plain http.
    """

    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    tensor_parallel_size: Count = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_model_len: CountOrZero = 0
    base_url: str = ""
    model_name: str = ""
    endpoint: Literal["completions", "chat"] = "completions"
    max_concurrency: Count = 16
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    max_retries: CountOrZero = 5
    budget_tokens: CountOrZero = 0
    price_in: PositiveOrZero = 0.0
    price_out: PositiveOrZero = 0.0
    reasoning: IfSet[bool] = False
    insecure: IfSet[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"engine": value}
        for old, new in RENAMED.items():
            # Recipes of older runs name all settings, those that nobody set too.
            if isinstance(value, dict) and (given := (value := dict(value)).pop(old, None)):
                raise ValueError(f"{old} (value {given!r}) is now {new}; rename it")
        return value

    @model_validator(mode="after")
    def _settings_fit(self):
        for engine, names in OWN_SETTINGS.items():
            for name in names:
                if engine != self.engine and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for the engine {engine}, but this is {self.engine}; take one out")
        address = urlsplit(self.base_url)
        if self.base_url and (address.scheme not in ("http", "https") or not address.hostname):
            raise ValueError(f"base_url must begin with http:// or https://, got {self.base_url!r}; correct it")
        if address.username or address.password or address.query:
            raise ValueError("base_url holds a name, a password or a query; keys come from OPENAI_API_KEY, take it out")
        return self

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the engine can do beyond writing completions.

        weights: what it computes is at hand, to be aligned or trained. folders: it takes a model that the run itself
        has trained.
        """
        if self.engine == "openai":
            return ("weights",) if self.endpoint == "completions" else ()
        return ("weights", "folders")


class Engines(Section):
    """Which engine computes for the teacher, for the students (responders included) and for the judge."""

    teacher: EngineChoice = EngineChoice()
    student: EngineChoice = EngineChoice()
    judge: Annotated[EngineChoice, Field(exclude_if=lambda choice: choice == EngineChoice())] = EngineChoice()

    def require_for(self, refs: set[str], aligned_arms: list[str]) -> None:
        """Refuse engines that cannot do what a recipe asks of them.

        Args:
            refs: The models of students and responders.
            aligned_arms: The arms for which the teacher's weights are needed.
        """
        if "weights" not in self.student.capabilities:
            raise ValueError(
                "engines.student is a chat server, whose model cannot be trained; take endpoint: completions with the "
                "model's folder under models, or another engine"
            )
        if "weights" not in self.teacher.capabilities and aligned_arms:
            raise ValueError(
                f"engines.teacher is a chat server, whose model cannot be aligned, as {aligned_arms[0]!r} needs; "
                "take endpoint: completions with the model's folder under models, or arms of drafts only"
            )
        if self.student.model_name and len(refs) > 1:
            raise ValueError(
                f"engines.student.model_name names one model ({self.student.model_name!r}) for several students or "
                "responders; take it out and let the server know each by its name under models"
            )

    def without_limits(self) -> "Engines":
        """Return the same engines without caps on spending, which change no result."""
        return self.model_copy(update={role: getattr(self, role).model_copy(update=LIMITS) for role in ROLES})


class PerJob(Section):
    """What one job of a cluster takes of its machine; gpus may be a part of one."""

    cpus: Count = 1
    gpus: PositiveOrZero = 0.0


class Compute(Section):
    """Where it runs; workers 0 means one per core.

    launcher: accelerate trains one model after the other, each on all GPUs (or processes) that launcher_config, a file
    as `accelerate config` writes it, names; "" means every GPU. Batches stay those of the recipe.

    cluster: Ray carries the jobs: on this machine (local), in the cluster that it is in or RAY_ADDRESS names (auto), or
    in that at an address (ray://host:10001); see docs/scale.md.
    """

    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    batch_size: Count = 256
    device: Literal["auto", "cpu", "cuda"] = "auto"
    launcher: Annotated[Literal["none", "accelerate"], Field(exclude_if=lambda value: value == "none")] = "none"
    launcher_config: IfSet[Place] = ""
    cluster: Annotated[
        str, Field(pattern=r"^(none|local|auto|ray://[^\s@/]+:\d+)$", exclude_if=lambda value: value == "none")
    ] = "none"
    per_job: Annotated[PerJob, Field(exclude_if=lambda value: value == PerJob())] = PerJob()

    @model_validator(mode="after")
    def _is_launched(self):
        if self.launcher_config and self.launcher == "none":
            raise ValueError("launcher_config is for the launcher accelerate, but there is none; set launcher")
        if self.cluster == "none" and self.per_job != PerJob():
            raise ValueError("per_job is for a cluster, but there is none; set cluster to local, auto or ray://...")
        if self.cluster != "none" and (self.workers or self.launcher != "none"):
            raise ValueError(
                f"with cluster {self.cluster} Ray says how many jobs run at once; take out workers and launcher, and "
                "set per_job"
            )
        return self

    @property
    def trained_at_once(self) -> int:
        """How many models are trained at the same time; 0 means one per core."""
        return 1 if self.launcher == "accelerate" else self.workers
