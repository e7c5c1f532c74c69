"""ARTE's probing: the preference set is chosen, and every student is probed with every draft.

Source: ARTE, arXiv:2406.19227, sections 3.2 and 3.3.
"""

import time

import pandas as pd

from workbench.loop.preference_set import choose_preference_set, responders_of
from workbench.models.loading import fingerprint_model, resolve
from workbench.models.start import engine_fingerprint, sharing
from workbench.runs.run import Run, fingerprint
from workbench.signals.one_shot import VERSION, probe_drafts, score
from workbench.tasks.task import load_tasks


@sharing()
def probe(run: Run) -> dict[str, pd.DataFrame]:
    """Choose the preference set and probe every student with every draft, or reuse what the run has.

    Returns:
        preference_set, probes and signals, as their schemas describe them.
    """
    recipe, stage = run.recipe, run.stage("probing")
    drafting = stage.require("drafting")
    tasks = load_tasks(recipe)
    students = {name: fingerprint_model(resolve(ref)) for name, ref in recipe.models.students.items()}
    responders = {ref: fingerprint_model(resolve(ref)) for ref in responders_of(recipe)}
    parents = {"drafting": drafting.manifest["fingerprint"], **students}
    sections = recipe.section_json("preference_set", "tasks", "models.dtype", "evaluation.max_new_tokens")
    inputs = {"version": VERSION, "recipe": sections, "seed": recipe.seeds[0], "responders": responders, **parents}
    mark = stage.fingerprint(inputs | engine_fingerprint(recipe, "student"))
    names = ("preference_set", "probes", "signals")
    if stage.finished(mark):
        return {name: stage.read(name) for name in names}
    start = time.monotonic()
    chosen = choose_preference_set(recipe, tasks, drafting.read("exemplars"))
    drafts = drafting.read("drafts")
    probes = probe_drafts(recipe, tasks, drafts, chosen)
    signals = score(probes, drafts, students, fingerprint(chosen[chosen["chosen"]]["item_id"].tolist()))
    made = {"preference_set": chosen, "probes": probes, "signals": signals}
    frames = {name: stage.write(name, frame) for name, frame in made.items()}
    counts = {"probes": len(probes), "probes without an answer": (~probes["parsed"]).sum()}
    stage.finish(mark, counts, time.monotonic() - start, probes["n_tokens"].sum(), parents)
    return frames
