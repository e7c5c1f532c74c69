"""Measure memory and time of storing, joining, pairing and drawing 100,000 drafts with 40 probes each.

Run by hand, on Linux:  python -m tests.benchmarks.bounded_memory
Everything happens in one process, as in a notebook's kernel; no model is asked, the answers are drawn.
"""

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from workbench import figures
from workbench.loop import prompts
from workbench.loop.pairs import build_pairs
from workbench.methods.arte import ARTE
from workbench.models.start import students_of
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run, open_run
from workbench.runs.schemas import text_id
from workbench.signals import one_shot, scores
from workbench.tasks.task import Task

TECHNIQUES = ("tally", "meter", "story", "diary")
TASKS = ("adding", "sorting", "walking", "weighing")
LIMIT_GB = 4.0
WORDS = np.array("one two three apples pears steps left right then so add take away the box holds and we get".split())


def main() -> None:
    """Print for each step its CPU and wall seconds and the highest memory the process held during it."""
    args = _arguments()
    with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
        os.environ["WORKBENCH_RUNS"] = folder
        recipe = _recipe(args.questions // len(TASKS), args.items)
        work, tasks = open_run("large", recipe), {name: _task(name, args.items) for name in TASKS}
        steps = {
            "write drafts": lambda: _write_drafts(work, tasks, args.questions // len(TASKS)),
            "plan probes, join answers": lambda: _write_probes(work, tasks),
            "score": lambda: _write_signals(work),
            "pair": lambda: _write_pairs(work, tasks),
            **{f"draw {name}": lambda draw=draw: _draw(work, draw) for name, draw in FIGURES.items()},
        }
        print(f"{4 * args.questions:,} drafts, {4 * args.questions * args.items:,} probes", flush=True)
        print(f"{'at rest':<28}{_peak_gb():36.2f} GB", flush=True)
        highest = 0.0
        for name, step in steps.items():
            _forget_peak()
            began, worked = time.monotonic(), time.process_time()
            said = step()
            seconds, worked, peak = time.monotonic() - began, time.process_time() - worked, _peak_gb()
            highest = max(highest, peak)
            print(f"{name:<28}{worked:9.1f} s of CPU{seconds:9.1f} s{peak:7.2f} GB   {said}", flush=True)
    print(f"highest {highest:.2f} GB: {'within' if highest <= LIMIT_GB else 'MORE THAN'} {LIMIT_GB:g} GB")


def _recipe(n_questions: int, n_items: int) -> Recipe:
    tuning = {"learning_rate": 1.0e-4, "n_epochs": 1, "batch_size": 8, "max_length": 512}
    return Recipe.model_validate(
        {
            "name": "large",
            "profile": "pocket",
            "seeds": [0, 1],
            "models": {"teacher": "data/pocket/teacher", "students": {"ada": "data/pocket/tally-strong"}},
            "tasks": {"folder": "data/pocket/tasks", "names": list(TASKS)},
            "drafting": {"n_questions": n_questions, "questions_per_call": 1, "max_new_tokens": 120},
            "preference_set": {"n_validation": n_items, "n_items": n_items},
            "alignment": {"beta": 0.1, **tuning},
            "tailoring": {"n_examples": 4, "max_new_tokens": 120},
            "training": tuning,
            "evaluation": {"n_items": 4, "max_new_tokens": 120},
            "compute": {"workers": 1},
        }
    )


def _task(name: str, n_items: int) -> Task:
    questions = [f"{name}: {text}" for text in _texts(np.random.default_rng(len(name)), n_items, 40)]
    ids = [text_id(question) for question in questions]
    items = pd.DataFrame({"item_id": ids, "question": questions, "target": "3"})
    techniques = dict.fromkeys(TECHNIQUES, "Do it.")
    return Task(name, "Work it out.", techniques, items.head(3), items, items, "0")


def _texts(rng: np.random.Generator, n: int, n_words: int) -> list[str]:
    return [" ".join(row) for row in rng.choice(WORDS, (n, n_words))]


def _write_drafts(work: Run, tasks: dict[str, Task], n_questions: int) -> str:
    """Store drafts about as long as those of the pocket teacher, and the whole validation set as preference set."""
    rng, questions, drafts = np.random.default_rng(0), [], []
    for name in tasks:
        texts = [f"{text} {n}" for n, text in enumerate(_texts(rng, n_questions, 40))]
        ids = [text_id(f"{name}/{text}") for text in texts]
        own = pd.DataFrame({"task": name, "question_id": ids, "question": texts, "drafted_target": "3"})
        own["reply"] = [prompts.question_reply(text, "3") for text in texts]
        questions.append(
            own.assign(
                prompt_id="p", prompt=f"More {name}.", call=np.arange(n_questions), index=0, kept=True, drop_reason=""
            )
        )
        for technique in TECHNIQUES:
            rationales = [f"{text} <ans>3</ans>" for text in _texts(rng, n_questions, 80)]
            one = own[["task", "question_id", "question"]].assign(technique=technique, rationale=rationales)
            one.insert(0, "draft_id", [text_id(f"{name}/{technique}/{one_id}") for one_id in ids])
            one["answer"], one["gold"], one["n_tokens"] = "3", "3", rng.integers(60, 120, n_questions)
            drafts.append(one.assign(correct=rng.random(n_questions) < 0.7))
    drafts = pd.concat(drafts, ignore_index=True)
    columns = "draft_id task question_id question technique rationale answer gold correct n_tokens".split()
    _store(work, questions=pd.concat(questions, ignore_index=True), drafts=drafts[columns])
    return f"{len(drafts):,} drafts"


def _write_probes(work: Run, tasks: dict[str, Task]) -> str:
    """Plan and join as the stage does, with drawn answers in place of a student's."""
    drafts = work.read("drafts")
    chosen = pd.concat([task.validation.assign(task=name) for name, task in tasks.items()], ignore_index=True)
    chosen = chosen.assign(discrimination=1.0, difficulty=0.0, chosen=True)
    rng = np.random.default_rng(1)
    one_shot.generate_answers = lambda job: [("3" if right else "", 40) for right in rng.random(len(job.asked)) < 0.6]
    columns = "task item_id question target discrimination difficulty chosen".split()
    _store(work, preference_set=chosen[columns])
    probes = work.step("probes", one_shot.probe_drafts, students_of(work.recipe), tasks, drafts, chosen, 120)
    size = (work.path / "probes" / "probes.parquet").stat().st_size
    return f"{len(probes):,} probes, {size / 1e6:.0f} MB of Parquet"


def _write_signals(work: Run) -> str:
    probes, drafts = work.read("probes"), work.read("drafts")
    signals = work.step("signals", scores.share_right, probes, drafts, students_of(work.recipe))
    return f"{len(signals):,} scores"


def _write_pairs(work: Run, tasks: dict[str, Task]) -> str:
    frames = [work.read(name) for name in ("questions", "drafts", "signals", "probes")]
    pairs = work.step("pairs", build_pairs, ARTE.pair_rules, tasks, *frames, work.recipe.pairs, 0)
    return f"{len(pairs):,} pairs"


def _store(work: Run, **frames: pd.DataFrame) -> None:
    for name, frame in frames.items():
        work.step(name, _as_it_is, frame)


def _as_it_is(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


FIGURES = {
    "drafts by technique": lambda drafts, signals, pairs: figures.drafts_by_technique(drafts),
    "preference scores": lambda drafts, signals, pairs: figures.preference_scores(signals, drafts, "ada"),
    "technique heatmap": lambda drafts, signals, pairs: figures.technique_heatmap(signals, drafts),
    "probe ROC": lambda drafts, signals, pairs: figures.probe_roc(signals, drafts, {"ada": "tally"}),
    "pair decidedness": lambda drafts, signals, pairs: figures.pair_decidedness(pairs),
}


def _draw(work: Run, draw) -> str:
    """Draw a figure and turn it into all that a notebook stores of it."""
    drafts, signals = work.read("drafts"), work.read("signals")
    fig = draw(drafts, signals, work.read("pairs"))
    shown = fig.to_json() + figures.to_html(fig) + figures.table(fig)
    return f"{len(shown) / 1e6:.1f} MB in the notebook"


def _forget_peak() -> None:
    # Linux: what is said of the highest memory so far begins anew.
    Path("/proc/self/clear_refs").write_text("5")


def _peak_gb() -> float:
    said = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", said)[1]) * 1024 / 1e9


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=25_000, help="draft questions; each has four rationales")
    parser.add_argument("--items", type=int, default=40, help="preference questions, so probes of each draft")
    parser.add_argument("--folder", default="", help="where the run is written, to be removed at the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
