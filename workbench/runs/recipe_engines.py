"""The parts of a recipe that say where it runs, which engine computes for whom, and what each engine can do."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from workbench.runs.recipe_parts import Count, CountOrZero, IfSet, Place, PositiveOrZero, Section

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
