"""Rows of a file or data set, each cell as it was written, or as None where it is missing.

Nothing is guessed: 007 stays 007, NA a word, 0.1 is 0.1 in any precision, and a row with more cells than the header is
refused, while pandas takes its first cell for a name and shifts the others, and `datasets` makes numbers of texts.
"""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from workbench.runs.errors import DataError
from workbench.runs.recipe import project_root

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read_table(path: str, where: str = "", config: str = "", split: str = "train") -> pd.DataFrame:
    """Return the rows of a file: texts, whole numbers, truth values; other types as they are, to be refused.

    Args:
        path: A file that ends in one of ENDINGS, in any case; else a folder or hub id that `datasets` loads.
        where: What to call it in an error; its path if "".

    Raises:
        DataError: If it cannot be read, naming the row where one is the cause.
    """
    where, file = where or path, project_root() / Path(path).expanduser()
    try:
        return _rows_of(file, path, config, split)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    # Readers of files and the hub raise many unrelated types; each means that the rows are not to be had.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{where} cannot be read ({reason[:200]}); give a file in UTF-8 ({', '.join(ENDINGS)}), a folder or a hub "
            "id that `datasets` loads, with its config and split."
        ) from None


def _rows_of(file: Path, path: str, config: str, split: str) -> pd.DataFrame:
    ending = file.suffix.lower()
    if ending in ENDINGS and not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    if ending == ".parquet":
        import pyarrow.parquet

        return _of_arrow(pyarrow.parquet.read_table(file))
    if ending in ENDINGS:
        text = file.read_bytes().decode("utf-8-sig")
        return _of_json(text) if ending.startswith(".json") else _of_lines(text, ending)
    if file.is_file():
        raise ValueError(f"no reader for {ending or 'a file without an ending'}")
    import datasets

    datasets.disable_progress_bars()
    data = datasets.load_dataset(str(file) if file.is_dir() else path, config or None, split=split)
    return _of_arrow(data.with_format("arrow")[:])


def _of_arrow(table: "pa.Table") -> pd.DataFrame:
    import pyarrow as pa

    plain = ("int", "uint", "float", "double", "decimal", "date", "dictionary")
    columns = zip(table.column_names, table.columns, strict=True)
    as_text = {name: one.cast(pa.string()) if str(one.type).startswith(plain) else one for name, one in columns}
    return pd.DataFrame({name: one.to_pylist() for name, one in as_text.items()}, dtype=object)


def _of_lines(text: str, ending: str) -> pd.DataFrame:
    """Return rows of cells between commas, tabs or semicolons, whichever the header has."""
    first = text.partition("\n")[0]
    sign = "\t" if ending == ".tsv" else max(",;\t", key=first.count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
    try:
        header, *rows = [row for row in reader if row] or [[]]
    except csv.Error as error:
        raise DataError(f"line {reader.line_num}: {error}; double the quotes inside a quoted text.") from None
    names = [name.strip() for name in header]
    for at, row in enumerate(rows, 1):
        if any(cell.strip() for cell in row[len(names) :]):
            raise DataError(
                f"row {at}, {str(row)[:80]}, has {len(row)} cells where the header has {len(names)}; put a text that "
                f"holds {sign!r} into double quotes."
            )
    return pd.DataFrame([[*row, *[None] * len(names)][: len(names)] for row in rows], columns=names, dtype=object)


def _of_json(text: str) -> pd.DataFrame:
    """Return rows from JSON, or from JSON Lines, which end at line feeds alone, whatever the ending says."""

    def read(part: str):
        # A number with a point is kept as the text that it is; what JSON does not know, as NaN, is missing.
        return json.loads(part, parse_float=str, parse_constant=lambda _: None)

    try:
        rows = read(text)
    except json.JSONDecodeError as error:
        rows = []
        for at, line in enumerate(text.split("\n"), 1):
            try:
                rows += [read(line)] if line.strip() else []
            except json.JSONDecodeError as fault:
                raise ValueError(f"line {at}: {fault.msg}" if rows else error) from None
    lists = [value for value in rows.values() if isinstance(value, list)] if isinstance(rows, dict) else []
    if len(lists) == 1 and lists[0] and all(isinstance(row, dict) for row in lists[0]):
        rows = lists[0]  # one list of rows under a name, as BIG-Bench Hard's files have it
    is_row = isinstance(rows, dict) and not all(isinstance(value, list | dict) for value in rows.values())
    return pd.DataFrame([rows] if is_row else rows, dtype=object)
