"""Whatever comes from outside, changed at random, given to what reads it: an answer or one clear error, in time.

`python tests/fuzz.py 1000000` gives that many inputs in all, the three slowest readers fewer, and writes down under
way how many each got. tests/test_fuzz.py gives a few to each at every commit.
"""

import io
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from conftest import PROJECT, RECIPE
from faults import numbers
from reliability_table import record, table

from workbench.loop.prompts import parse_questions
from workbench.notebook.session import parse_overrides
from workbench.runs import schemas
from workbench.runs.cache import read_json
from workbench.runs.errors import DataError, RecipeError, RunError
from workbench.runs.identity import seal
from workbench.runs.recipe import format_yaml, parse_yaml
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import open_run
from workbench.tasks.answers import FORMATS, Answers
from workbench.tasks.tables import read_table
from workbench.tasks.task import load_task

LONGEST_S = 2.0  # for one input, which takes milliseconds
# Inputs in turn for each reader; these take some ten or a hundred times longer.
A_ROUND, SLOW = 100, {"recipes": 10, "task files": 40, "stored frames": 4}
KINDS = ("tagged", "exact", "option", "number", "boolean", "regex")
WORDS = ["<ans>", "</ans>", "\\boxed{", "}", "####", "The answer is ", "Answer:", "(B)", "no", "not", "1,000.5", "-3/4"]
WORDS += [
    "\\frac{1}{2}",
    "$",
    "%",
    "½",
    "²",
    "e9999",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\u202e",
    "\ud83d\ude00",
    '"',
    "'",
    "{",
]
WORDS += [
    "[",
    "]",
    ",",
    ":",
    "null",
    "true",
    "NaN",
    "1e400",
    "<input>",
    "</input>",
    "<target>",
    "</target>",
    "&a ",
    "*a",
]
WORDS += [
    "<score_a>",
    "</score_a>",
    "<score_b>",
    "</score_b>",
    "10",
    "0",
    "**",
    "```",
    "<think>",
    "</think>",
    "Question:",
]
VALUES = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    float("inf"),
    "",
    "x",
    [],
    [1],
    {},
    {"a": 1},
    "data/pocket/tasks",
    "../x",
    "é",
]
TARGETS_ = ["42", "-3/4", "(B)", "True", "Paris, Texas", "1,234.50", "no"]


def changed_text(rng: random.Random, text: str) -> str:
    """Return a text with some places cut, doubled, moved or replaced."""
    for _ in range(rng.randint(1, 6)):
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        b = min(b, a + 40)
        parts = (
            "",
            text[a:b] * rng.choice((2, 2, 50)),
            rng.choice(WORDS),
            chr(rng.choice((0, 10, 127, 0x3000, 0x10FFFF))),
        )
        text = (text[:a] + rng.choice(parts) + text[rng.choice((a, b)) :])[:20_000]
    return text


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with some of them flipped, cut or doubled."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(made) or 1)
        how = rng.randrange(3)
        if how == 0 and made:
            made[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del made[at : at + rng.choice((1, 4, 200))]
        else:
            made[at:at] = made[at : at + rng.choice((1, 8, 60))]
    return bytes(made)


def changed_values(rng: random.Random, values):
    """Return plain values with one of them, somewhere inside, replaced, taken out or put elsewhere."""
    if isinstance(values, dict) and values and rng.random() < 0.8:
        name = rng.choice(list(values))
        if rng.random() < 0.1:
            return {one: values[one] for one in values if one != name}
        if rng.random() < 0.05:
            return values | {rng.choice((f"{name}x", "", "a b", "é")): values[name]}
        return values | {name: changed_values(rng, values[name])}
    if isinstance(values, list) and values and rng.random() < 0.7:
        at = rng.randrange(len(values))
        return [*values[:at], changed_values(rng, values[at]), *values[at + rng.choice((0, 1)) :]]
    return rng.choice(VALUES)


class Readers:
    """What reads texts from outside, by name; each takes a source of randomness and looks at one input."""

    def __init__(self, folder: Path):
        # What takes seconds to import is no reader's time.
        from workbench.models.openai_engine import OpenAIEngine
        from workbench.signals.judging import read_scores

        self.folder, self.scores_in, self.completion_in = folder, read_scores, OpenAIEngine._read
        self.recipe = load_recipe("arte-demo")
        self.task = (PROJECT / "data" / "pocket" / "tasks" / "object_counting.json").read_text()[:6_000]
        raw = json.loads((PROJECT / "data" / "pocket" / "tasks" / "object_counting.json").read_text())
        self.small_task = raw | {name: raw[name][:4] for name in ("seeds", "validation", "test")}
        table = io.BytesIO()
        rows = pd.DataFrame({"question": ["How many?", 'a "b", c'], "answer": ["4", "é"], "n": [1, 2]})
        rows.to_parquet(table)
        self.parquet = table.getvalue()
        self.tables = {".csv": rows.to_csv(index=False), ".tsv": rows.to_csv(sep="\t", index=False)}
        self.tables |= {".json": rows.to_json(orient="records"), ".jsonl": rows.to_json(orient="records", lines=True)}
        self.raw_recipe = parse_yaml((PROJECT / "notebooks" / "recipes" / "arte-demo.yaml").read_text())
        manifest = {"key": "k", "inputs": {}, "parents": {"a": ["b"]}, "single": True, "counts": {"rows": 1}}
        self.manifest = manifest | {
            "contents": {"a": "b"},
            "files": {"a": "b"},
            "versions": {},
            "seconds": 1.0,
            "tokens": 2,
        }
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("WORKBENCH_RUNS", str(folder))
            self.run = open_run("frames", self.recipe)
            self.run.step("numbers", numbers, 3)
        self.frame = (self.run.path / "numbers" / "numbers.parquet").read_bytes()

    def all(self) -> dict[str, Callable[[random.Random], None]]:
        """Return the readers by name."""
        return {name[5:].replace("_", " "): getattr(self, name) for name in dir(self) if name.startswith("read_")}

    def read_answers(self, rng: random.Random) -> None:
        reply = changed_text(rng, rng.choice(list(FORMATS.values())).format(rng.choice(TARGETS_)))
        answers = Answers(kind := rng.choice(KINDS), r"(\d+)\D*$" if kind == "regex" else "")
        answer = answers.read(reply)
        gold = answers.read_gold(changed_text(rng, rng.choice(TARGETS_)))
        assert isinstance(answer, str) and answers.same(answer, gold) in (True, False)
        assert not answer or answers.same(answer, answer), "an answer is the same as itself"

    def read_questions(self, rng: random.Random) -> None:
        reply = "<input>Is it so?</input><target>yes</target>\n<input>And so?</input>\n<target>no</target>"
        for question, target in parse_questions(changed_text(rng, reply)):
            assert question == question.strip() != "" and isinstance(target, str)

    def read_scores_of_a_judge(self, rng: random.Random) -> None:
        scores = self.scores_in(changed_text(rng, "A is better.\n<score_a>7</score_a><score_b>10</score_b>"))
        assert scores is None or all(isinstance(one, int) and 1 <= one <= 10 for one in scores)

    def read_answers_of_a_server(self, rng: random.Random) -> None:
        message = {"role": "assistant", "content": "4", "refusal": None}
        body = {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
        for _ in range(rng.randint(1, 3)):
            body = changed_values(rng, body)
        try:
            finished, n_tokens = self.completion_in(None, body, 3, 4)
        except ValueError as error:
            assert str(error)
        else:
            assert isinstance(finished.completion.text, str) and n_tokens >= 0

    def read_task_files(self, rng: random.Random) -> None:
        path = self.folder / "task.json"
        if rng.random() < 0.5:
            path.write_text(json.dumps(changed_values(rng, self.small_task)))
        else:
            path.write_bytes(changed_text(rng, self.task).encode("utf-8", "surrogatepass"))
        refused(lambda: load_task(path, self.recipe), DataError)

    def read_tables(self, rng: random.Random) -> None:
        ending = rng.choice([*self.tables, ".parquet"])
        path = self.folder / f"table{ending}"
        path.write_bytes(
            changed_bytes(rng, self.parquet)
            if ending == ".parquet"
            else changed_text(rng, self.tables[ending]).encode("utf-8", "surrogatepass")
        )
        refused(lambda: read_table(str(path)), DataError)

    def read_recipes(self, rng: random.Random) -> None:
        path, values = self.folder / "recipe.yaml", self.raw_recipe
        for _ in range(rng.randint(1, 3)):
            values = changed_values(rng, values)
        text = format_yaml(values) if isinstance(values, dict) else str(values)
        path.write_bytes((changed_text(rng, RECIPE) if rng.random() < 0.3 else text).encode("utf-8", "surrogatepass"))
        recipe = refused(lambda: load_recipe(str(path)), RecipeError, lines=True)
        if recipe is not None:
            path.write_text(recipe.to_yaml())
            assert load_recipe(str(path)) == recipe, "what is accepted is stored, and must read back"

    def read_overrides(self, rng: random.Random) -> None:
        refused(lambda: parse_overrides(changed_text(rng, "alignment.beta=0.05; seeds=[0, 1]")), RecipeError)

    def read_manifests(self, rng: random.Random) -> None:
        path, values = self.folder / "manifest.json", changed_values(rng, self.manifest)
        text = seal(values) if isinstance(values, dict) and rng.random() < 0.7 else json.dumps(values)
        path.write_bytes((text if rng.random() < 0.7 else changed_text(rng, text)).encode("utf-8", "surrogatepass"))
        made = refused(lambda: read_json(path, schemas.Manifest), RunError)
        if made:
            assert isinstance(made["key"], str) and all(isinstance(one, str) for one in made["files"].values())

    def read_stored_frames(self, rng: random.Random) -> None:
        data = changed_bytes(rng, self.frame)
        (self.run.path / "numbers" / "numbers.parquet").write_bytes(data)
        found = refused(lambda: self.run.read("numbers"), RunError)
        assert found is None or data == self.frame, "damage was believed"


def refused(read: Callable, kind: type[Exception], lines: bool = False):
    """Return what was read, or None where it was refused in words; another error is a find."""
    try:
        return read()
    except kind as error:
        assert str(error) and (lines or "\n" not in str(error)) and str(error).isprintable() is not None
        return None


def feed(read: Callable[[random.Random], None], seed: int, n: int = 1) -> None:
    """Give a reader n inputs; what it cannot stand is raised with the seed that makes it again.

    Raises:
        AssertionError: If something was believed, no clear error came, or it took too long.
    """
    for at in range(seed, seed + n):
        began = time.process_time()
        try:
            read(random.Random(at))
        except Exception as error:
            raise AssertionError(f"{read.__name__}, seed {at}: {type(error).__name__}: {error}") from error
        took = time.process_time() - began
        assert took < LONGEST_S, f"{read.__name__}, seed {at}: took {took:.1f} s"


if __name__ == "__main__":
    wanted, at = int(sys.argv[1]), int((sys.argv[2:] or ["0"])[0])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as name:
        readers, counts, found = Readers(Path(name)).all(), {}, []
        with suppress(KeyboardInterrupt):  # what was done until then is written down all the same
            while sum(counts.values()) < wanted:
                for reader, read in readers.items():
                    for _ in range(min(SLOW.get(reader, A_ROUND), wanted - sum(counts.values()))):
                        counts[reader] = counts.get(reader, 0) + 1
                        try:
                            feed(read, at + counts[reader])
                        except AssertionError as error:
                            found.append(str(error)[:400])
                            print(found[-1], flush=True)
                record("inputs changed at random", counts | {"finds": len(found)})
        print(table())
