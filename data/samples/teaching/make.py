"""Make the lesson's sample again: `python -m data.samples.teaching.make RUN`, from a finished run of recipe arte."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from data.pocket.make.questions import TEST_SIZES, write
from workbench.figures.verdict import block_of
from workbench.loop.prompts import naive_prompt
from workbench.models.engine import Decoding, Request
from workbench.models.loading import render
from workbench.models.transformers_engine import TransformersEngine
from workbench.runs.cache import atomic_write, read_json
from workbench.runs.recipe import Recipe
from workbench.runs.run import Run, file_sha256, open_run
from workbench.runs.seeding import stream
from workbench.tasks.task import load_tasks

FOLDER = Path(__file__).parent
STUDENTS = ("tally-strong", "story-strong", "diary-strong")
TASK = "object_counting"  # of the pairs that the lesson aligns to
TEXTS_PER_GROUP = 2
JSON = ("questions.json", "replies.json", "verdict.json")
ASKED = {"meet": 3, "watch": 24, "examples": 6, "asked": 16}  # new questions for the live part, by purpose


def make(run: Run, folder: Path = FOLDER) -> list[Path]:
    """Write what a run found about the three students, small enough to ship; return the files."""
    signals, pairs, examples = (run.read(name) for name in ("signals", "pairs", "examples"))
    of_pairs = (pairs["kind"] == "rationale") & (pairs["task"] == TASK) & ~pairs["flipped"]
    frames = {
        "drafts": run.read("drafts"),
        "signals": signals[signals["student"].isin(STUDENTS) & (signals["item_kind"] == "rationale")],
        "pairs": pairs[of_pairs & pairs["student"].isin(STUDENTS)],
        "examples": _thinned(examples[examples["kept"] & examples["student"].isin([*STUDENTS, ""])]),
    }
    for name, frame in frames.items():
        frame.to_parquet(folder / f"{name}.parquet", index=False, compression="zstd", compression_level=19)
    atomic_write(folder / "verdict.json", json.dumps(_three(read_json(run.path / "verdict.json"))).encode("utf-8"))
    questions = {purpose: _new_questions(n, purpose) for purpose, n in ASKED.items()}
    atomic_write(folder / "questions.json", (json.dumps(questions, indent=1) + "\n").encode("utf-8"))
    said = {name: replies(run.recipe, name, questions["meet"]) for name in STUDENTS}
    atomic_write(folder / "replies.json", (json.dumps(said, indent=1) + "\n").encode("utf-8"))
    names = sorted([*(f"{name}.parquet" for name in frames), *JSON])
    about = {
        "run": run.name,
        "recipe": run.recipe.name,
        "made_by": f"python -m data.samples.teaching.make {run.name}",
        "commits": {path.parent.name: read_json(path)["git_commit"] for path in run.path.glob("*/manifest.json")},
        "files": {name: file_sha256(folder / name) for name in names},
    }
    atomic_write(folder / "about.json", (json.dumps(about, indent=1) + "\n").encode("utf-8"))
    return [folder / name for name in (*names, "about.json")]


def _new_questions(n: int, purpose: str) -> list[str]:
    """Return n different questions of the lesson's task, others for every purpose."""
    rng, found = stream(0, "lesson", purpose), {}
    while len(found) < n:
        found[write(TASK, rng, TEST_SIZES[TASK])] = None
    return list(found)


def replies(recipe: Recipe, student: str, questions: list[str]) -> list[str]:
    """Return what a student replies to questions as they stand, as the live part of the lesson asks them."""
    engine = TransformersEngine(recipe.models.students[student], recipe.models.dtype, "cpu", len(questions))
    task = load_tasks(recipe)[TASK]
    prompts = [render(engine.tokenizer, naive_prompt(task.description, question)) for question in questions]
    said = engine.generate([Request(prompt) for prompt in prompts], Decoding(recipe.tailoring.max_new_tokens))
    return [one.text.strip() for one in said]


def _thinned(examples: pd.DataFrame) -> pd.DataFrame:
    """Return what figures need of all examples, and the texts of the first few of each group."""
    columns = ["arm", "student", "seed", "task", "question", "rationale", "gold", "correct", "style"]
    thin = examples[columns].reset_index(drop=True)
    nth = thin.groupby(["arm", "student", "task"]).cumcount()
    thin.loc[nth >= TEXTS_PER_GROUP, ["question", "rationale"]] = ""
    return thin


def _three(verdict: Mapping) -> dict:
    """Return the part of a verdict that is about the three students."""
    blocks = {name: dict(block_of(verdict, name)) for name in STUDENTS}
    kept = {key: value for key, value in verdict.items() if key not in ("students", "per_task")}
    keys = ("student", "decision", "primary", "arms", "comparisons")
    return kept | {"students": {name: {key: block[key] for key in keys} for name, block in blocks.items()}}


if __name__ == "__main__":
    for path in make(open_run(sys.argv[1])):
        print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")
