"""Items of one's own, by a column mapping: rows of a CSV, JSON, JSONL or Parquet file, or what `datasets` loads."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from workbench.runs.errors import DataError
from workbench.runs.recipe import canonical_json
from workbench.runs.recipe_parts import AnswerType, TaskSource
from workbench.tasks.answers import FORMATS, Answers
from workbench.tasks.tables import ENDINGS, read_table


def items_of(source: TaskSource, name: str) -> tuple[list[dict], list[dict]]:
    """Return (examples, test items) of a task's source as rows of input and target; no test items if it names none.

    Raises:
        DataError: If it cannot be read, is empty, lacks a column, repeats a question, or holds an answer that is not of
            the kind declared.
    """
    named = [(source.path, source.split)]
    if source.test:
        in_file = source.test.lower().endswith(ENDINGS)
        named.append((source.test, "") if in_file else (source.path, source.test))
    answers = Answers(source.answer_type, source.reply_pattern)
    parts, seen = [], {}
    for path, split in named:
        where = f"Task {name}, {path}" + ("" if path.lower().endswith(ENDINGS) else f", split {split}")
        table = read_table(path, where, source.config, split)
        if source.answer_type == "open" and "instruction" in table and source.question not in table:
            table = as_questions(table)
        rows = list(_rows(_labelled(table, source.label, where), source, where))
        check_golds([row["target"] for row in rows], answers, where, f"tasks.sources.{name}.answer_type")
        parts.append(_distinct(rows, seen, source.duplicates, where))
    return parts[0], parts[1] if len(parts) > 1 else []


def as_questions(table: pd.DataFrame) -> pd.DataFrame:
    """Return instructions as columns question, answer (the reference) and label, each "" where there is none.

    Args:
        table: Column instruction and, if they are there, input, output and label; or the instances of Self-Instruct,
            of which the first counts.
    """
    rows = []
    for row in table.to_dict("records"):
        first = row["instances"][0] if isinstance(row.get("instances"), list) and row["instances"] else row
        given = (row["instruction"], first.get("input"), first.get("output"), row.get("label"))
        asked, more, answer, label = (text.strip() if isinstance(text, str) else "" for text in given)
        rows.append({"question": "\n".join(filter(None, (asked, more))), "answer": answer, "label": label})
    return pd.DataFrame(rows, columns=["question", "answer", "label"])


def _labelled(table: pd.DataFrame, label: str, where: str) -> pd.DataFrame:
    """Return the rows with this label; all of them where none is asked for."""
    there = sorted(map(str, table["label"].dropna().unique())) if "label" in table else []
    if label and label not in there:
        raise DataError(
            f"{where} has no row with the label {label!r} in a column 'label'; it has {', '.join(there) or 'none'}, so "
            "take one of these in tasks.sources, or label the rows."
        )
    return table[table["label"] == label] if label else table


def sha256_of(rows: list[dict]) -> str:
    """Return the SHA-256 of items by their content, in hex: the same items in another file are no new test set."""
    return hashlib.sha256(canonical_json(rows).encode("utf-8")).hexdigest()


def check_golds(targets: list[str], answers: Answers, where: str, key: str) -> None:
    """Refuse answers that their own reader cannot read, or would not take for right when given to the letter.

    Raises:
        DataError: If there are any, naming the first and the kinds that could read them all.
    """
    rows, signs = {}, {}
    for at, target in enumerate(targets, 1):
        rows.setdefault(target, at)
    if unread := [at for at, target in enumerate(targets, 1) if not answers.read_gold(target)]:
        typed: tuple[AnswerType, ...] = ("option", "number", "boolean")
        fitting = [kind for kind in typed if all(map(Answers(kind).read_gold, rows))] + ["exact"]
        raise DataError(
            f"{where}: the answer {_short(targets[unread[0] - 1])} of row {unread[0]} ({len(unread)} of "
            f"{len(targets)}) cannot be read as {answers.kind}; correct the rows, or set {key}, for which "
            f"{' or '.join(fitting)} would fit."
        )
    for target, at in rows.items():
        if sign := answers.decimal_sign(target):
            signs.setdefault(sign, at)
        if form := answers.lost_in(target):
            raise DataError(
                f"{where}: the answer {_short(target)} of row {at} would not count as right in the reply "
                f"{_short(FORMATS[form].format(target))}; correct the row, or set {key} so that the "
                "text of the <ans> tag is read and nothing else."
            )
    if len(signs) > 1:
        (one, first), (other, second) = signs.items()
        raise DataError(
            f"{where}: the answers of row {first}, {_short(targets[first - 1])}, and of row {second}, "
            f"{_short(targets[second - 1])}, take {one!r} and {other!r} for the decimal sign; write all one way."
        )


def _rows(table: pd.DataFrame, source: TaskSource, where: str) -> Iterator[dict]:
    if table.empty:
        raise DataError(f"{where} has no rows; give one with a question and its answer in each row.")
    for key in ("question", "answer"):
        if getattr(source, key) not in table.columns:
            raise DataError(
                f"{where} has no column {getattr(source, key)!r}; it has {', '.join(map(str, table.columns))}, so name "
                f"one of these as {key} in tasks.sources."
            )
    for at, (question, answer) in enumerate(zip(table[source.question], table[source.answer], strict=True), 1):
        text, target = _as_text(question, source.question, where, at), _as_text(answer, source.answer, where, at)
        if source.gold_pattern:
            found = list(re.finditer(source.gold_pattern, target))
            if not found:
                raise DataError(
                    f"{where}: gold_pattern {source.gold_pattern!r} finds nothing in the answer {_short(target)} of "
                    f"row {at}; correct the pattern or the row."
                )
            target = (found[-1][1] if found[-1].re.groups else found[-1][0]).strip()
        yield {"input": text, "target": target}


def _as_text(value: Any, column: str, where: str, at: int) -> str:
    missing = value is None or value != value or not str(value).strip()
    if missing or not isinstance(value, str | int):
        raise DataError(
            f"{where}: column {column!r} of row {at} must hold text, a number or a truth value, got "
            f"{'nothing' if missing else f'{type(value).__name__} {_short(str(value))}'}; correct or remove the row."
        )
    return str(value)


def _distinct(rows: list[dict], seen: dict[str, str], duplicates: str, where: str) -> list[dict]:
    """Return the rows without those whose question has been seen; refuse them unless they may be dropped.

    The same question with two answers is never dropped: nobody could say which of them is right.
    """
    kept = []
    for at, row in enumerate(rows, 1):
        question, before = _short(row["input"]), seen.get(row["input"])
        if before is None:
            seen[row["input"]] = row["target"]
            kept.append(row)
        elif before != row["target"]:
            raise DataError(
                f"{where}: the question of row {at}, {question}, stands there with two answers, {_short(before)} and "
                f"{_short(row['target'])}; keep the right one."
            )
        elif duplicates == "refuse":
            raise DataError(
                f"{where}: the question of row {at}, {question}, stands there twice; remove one, or set duplicates to "
                "drop."
            )
    return kept


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
