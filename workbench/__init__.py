"""A workbench in which a teacher model learns what its student wants to be taught.

The notebooks hold the order, the library the steps. `work.step(name, function, *arguments)` computes a step once, and
again only when something that goes into it is another. In the order of the loop:

    work = wb.start("demo")                       open a run, or begin it from a recipe
    load_tasks, teacher_of, students_of           who teaches whom, and what
    01  wb.loop.draft_questions, draft_rationales, work_exemplars
    02  wb.loop.choose_preference_set, wb.signals.probe_drafts; wb.methods.ALL says how answers become a score
    03  wb.loop.build_pairs, wb.inspect, wb.loop.apply_reviews, align_teachers, write_examples
    04  wb.loop.equal_tokens, train_students
    05  wb.verdict.answer_tests, decide
    07  wb.signals.measure_influence: what one optimiser step on a draft does, instead of 02

Everything is imported at first use, so that importing the package takes no time.
"""

import os

from workbench.runs import lazily

# Nothing we start tells anybody that it was started; a setting of the user's own stands.
for _variable in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "UNSLOTH_DISABLE_STATISTICS"):
    os.environ.setdefault(_variable, "1")
# Threads of torch that wait for each other at full speed take ten times as long where others compute too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "runs.run": "open_run runs_table",
        "tasks.task": "load_tasks seed_pairs",
        "models.loading": "load render",
        "models.transformers_engine": "TransformersEngine",
        "models.engine": "Decoding Request",
        "models.start": "teacher_of students_of",
        "report.plan": "world_of",
        "report.summary": "drafts_of model_names planted",
        "report.card": "result_card",
        "report.lineage": "lineage",
        "verdict.in_words": "mean_of share_of",
        "notebook.display": "Progress is_headless progress say show source",
        "notebook.session": "finish offer_again setup start",
        "notebook.inspector": "inspect",
    },
    {
        "doctor": "cli.doctor",
        "figures": "figures",
        "in_words": "verdict.in_words",
        "judge": "signals.judge",
        "loop": "loop",
        "methods": "methods",
        "power": "verdict.power",
        "prompts": "loop.prompts",
        "signals": "signals",
        "verdict": "verdict",
    },
)
