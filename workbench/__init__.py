"""A workbench in which a teacher model learns what its student wants to be taught.

The notebooks hold the order, the library the steps. `work.step(name, function, *arguments)` computes a step once, and
again only when something that goes into it is another. In the order of the loop:

    work = wb.start("demo")                              open a run, or begin it from a recipe
    tasks, teacher, students                             load_tasks, teacher_of, students_of, seed_pairs
    01  draft_questions, draft_rationales,               the teacher drafts, asked by OnePrompt or FewShotPrompts
        work_exemplars                                   and kept apart from test items by Guards
    02  choose_preference_set, probe_drafts              the student is probed with every draft; methods.ALL says how
                                                         answers become a score
    03  build_pairs, inspect, reviews_of,                scores become pairs, which people may overrule
        apply_reviews, pairs_by_arm, align_teachers      the teacher is aligned, once for every arm
        write_examples                                   each teacher writes what students are trained on
    04  equal_tokens, train_students                     students are trained, one for every arm and seed
    05  SealedTests, answer_tests, decide                the verdict
    07  influence                                        what one optimiser step on a draft does, instead of 02

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
    "tasks.task": "load_tasks seed_pairs",
    "models.loading": "load render",
    "models.transformers_engine": "TransformersEngine",
    "models.engine": "Decoding Request",
    "models.start": "teacher_of students_of",
    "loop.writing": "Guards OnePrompt",
    "loop.drafting": "draft_questions draft_rationales work_exemplars",
    "loop.instructions": "FewShotPrompts",
    "loop.preference_set": "choose_preference_set responders_of",
    "signals.one_shot": "probe_drafts",
    "signals.reference": "build_reference",
    "signals.warm_up": "load_warmed texts_of",
    "loop.pairs": "build_pairs flip_half",
    "loop.reviews": "apply_reviews reviews_of",
    "loop.arms": "pairs_by_arm",
    "loop.alignment": "align_teachers",
    "loop.tailoring": "write_examples",
    "loop.budgets": "equal_rows equal_tokens train_students",
    "verdict.evaluation": "SealedTests answer_tests decide verdict_of",
    "verdict.verdict": "paired",
    "report.plan": "world_of",
    "notebook.display": "Progress is_headless progress say show source",
    "notebook.headless": "verdict_in_words",
    "notebook.session": "finish setup start",
    "verdict.in_words": "mean_of share_of",
    "report.summary": "drafts_of model_names planted",
    "notebook.inspector": "inspect",
    "report.lineage": "lineage",
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names.split()}
_MODULES = {
    "doctor": "cli.doctor",
    "figures": "figures",
    "in_words": "verdict.in_words",
    "influence": "signals.influence_of_drafts",
    "judge": "signals.judge",
    "methods": "methods",
    "power": "verdict.power",
    "prompts": "loop.prompts",
}

__all__ = [*_MODULE_OF, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"workbench.{_MODULES[name]}")
    if name not in _MODULE_OF:
        raise AttributeError(f"workbench has no {name!r}; it has {', '.join(sorted(__all__))}.")
    value = getattr(importlib.import_module(f"workbench.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
