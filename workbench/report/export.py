"""What a run made, as folders that others can load or push to a hub: tailored sets, aligned teachers, students.

Sets are written in one form, `messages`, which TRL, Unsloth and LLaMA-Factory all read.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from workbench.models.trl import DONE, model_folder
from workbench.report.cards import data_card, model_card
from workbench.report.facts import Facts
from workbench.runs.cache import read_json, write_json
from workbench.runs.errors import RunError
from workbench.runs.identity import file_sha256
from workbench.runs.run import Run

LIST = "export.json"
TAILORED = "tailored"
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
# How LLaMA-Factory is told of a file of messages, in its dataset_info.json.
LLAMA_FACTORY = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


def export(work: Run, to: Path | None = None, students: bool = False) -> list[Path]:
    """Write the tailored sets, the aligned teachers and, when asked, the tailored students, each with its card.

    Args:
        to: Folder; the run's own `export` unless given. An earlier export there is replaced, anything else is kept.
        students: Whether students go out too, one folder a seed.

    Returns:
        The folders, each ready to be pushed to a hub.

    Raises:
        RunError: If the run is not finished, or the folder holds what no export wrote.
    """
    work.read("predictions")
    if TAILORED not in work.recipe.evaluation.arms:
        raise RunError(f"Run {work.name} has no arm {TAILORED!r} in evaluation.arms, so there is nothing to export.")
    to = Path(to or work.path / "export").absolute()
    _refuse_foreign(to)
    making = to.with_name(f".{to.name}.{os.getpid()}.unfinished")
    try:
        names = work.recipe.models.students
        made = [path for name in names for path in _of_student(work, name, making, students)]
        files = sorted(path for path in making.rglob("*") if path.is_file())
        sums = {path.relative_to(making).as_posix(): file_sha256(path) for path in files}
        write_json(making / LIST, {"run": work.name, "files": sums})
        if to.exists():
            shutil.rmtree(to)
        making.rename(to)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return [to / path.relative_to(making) for path in made]


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier export: it would be lost."""
    known = {LIST, *read_json(folder / LIST).get("files", {})}
    strange = [path for path in folder.rglob("*") if not path.is_dir() and str(path.relative_to(folder)) not in known]
    if folder.is_file() or strange:
        first = f" ({strange[0].relative_to(folder)})" if strange else ""
        raise RunError(f"{folder} holds what no export wrote{first}; give a new folder with --to.")


def _of_student(work: Run, student: str, to: Path, students: bool) -> Iterator[Path]:
    facts = Facts(work, student)
    yield _write_set(facts, to / TAILORED / student)
    source = work.path / "teachers" / model_folder(student, TAILORED)
    yield _write_model(facts, "teacher", source, to / "teacher" / student)
    for seed in work.recipe.seeds if students else ():
        source = work.path / "students" / model_folder(student, TAILORED, seed)
        yield _write_model(facts, "student", source, to / "student" / student / f"seed-{seed}", seed)


def _write_set(facts: Facts, to: Path) -> Path:
    to.mkdir(parents=True)
    for arm in facts.arms:
        rows = _with_messages(facts.rows[facts.rows["arm"] == arm])
        rows.to_parquet(to / f"{arm}.parquet", index=False)
        rows.to_json(to / f"{arm}.jsonl", orient="records", lines=True, force_ascii=False)
    described = {f"{facts.student}_{arm}": {"file_name": f"{arm}.jsonl", **LLAMA_FACTORY} for arm in facts.arms}
    (to / "dataset_info.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    data_card(facts, {arm: f"{arm}.parquet" for arm in facts.arms}).save(to / "README.md")
    return to


def _with_messages(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with what the user asks and the assistant answers in place of prompt and completion."""
    # A chat template puts its own blanks around an answer; the model's would double them.
    messages = [
        [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion.strip()}]
        for row in rows.itertuples()
    ]
    rows = rows.drop(columns=["arm", "prompt", "completion"])
    rows.insert(0, "messages", pd.Series(messages, rows.index))
    return rows


def _write_model(facts: Facts, kind: str, source: Path, to: Path, seed: int | None = None) -> Path:
    if not any(source.glob("*.safetensors")):
        raise RunError(
            f"{source} holds no weights; compute them again with: workbench run {facts.work.path / 'recipe.yaml'} "
            f"--name {facts.work.name} --from {'alignment' if kind == 'teacher' else 'training'}"
        )
    to.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix in MODEL_FILES and path.name != DONE:
            shutil.copyfile(path, to / path.name)
    weights = {path.name: file_sha256(path) for path in sorted(to.glob("*.safetensors"))}
    model_card(facts, kind, weights, seed).save(to / "README.md")
    return to
