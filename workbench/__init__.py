"""A workbench in which a teacher model learns what its student wants to be taught.

The loop, in the order of the notebooks; each function takes a run, reuses what is finished and returns frames:

    work = wb.start("demo")        open a run, or begin it from a recipe
    wb.draft(work)                 01  the teacher drafts questions and rationales
    wb.probe(work)                 02  the student is probed with every draft
    wb.inspect(work).show()        03  look at the pairs, and overrule them
    wb.align(work)                 03  scores become pairs, the teacher is aligned and writes tailored examples
    wb.train(work)                 04  students are trained, one for every arm and seed
    wb.evaluate(work)              05  the verdict

Everything is imported at first use, so that importing the package takes no time.
"""

import importlib
import os

# Nothing we start tells anybody that it was started; a setting of the user's own stands.
for _variable in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "UNSLOTH_DISABLE_STATISTICS"):
    os.environ.setdefault(_variable, "1")

__version__ = "0.1.0"

_WHERE = {
    "runs.recipe_file": "load_recipe",
    "runs.run": "open_run runs_table",
    "tasks.task": "load_tasks",
    "models.loading": "render",
    "models.transformers_engine": "TransformersEngine",
    "models.engine": "Decoding Request",
    "loop.drafting": "draft",
    "methods.base": "probe",
    "loop.tailoring": "align",
    "loop.budgets": "train",
    "verdict.evaluation": "evaluate verdict_of",
    "notebook.display": "Progress progress say show watch",
    "notebook.session": "finish setup start",
    "verdict.in_words": "mean_of share_of",
    "report.summary": "model_names planted",
    "notebook.inspector": "inspect",
    "report.lineage": "lineage",
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names.split()}
_MODULES = {"figures": "figures", "prompts": "loop.prompts"}

__all__ = sorted([*_MODULE_OF, *_MODULES])


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"workbench.{_MODULES[name]}")
    if name not in _MODULE_OF:
        raise AttributeError(f"workbench has no {name!r}; it has {', '.join(__all__)}.")
    value = getattr(importlib.import_module(f"workbench.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
