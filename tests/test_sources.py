"""Items of one's own: files and data sets by a column mapping, split, graded, and refused in one sentence."""

import json
from datetime import date, datetime
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench.runs.errors import DataError
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_parts import TaskSource
from workbench.tasks.answers import Answers
from workbench.tasks.sources import items_of
from workbench.tasks.task import SETS, load_task, load_tasks, load_test_items, name_of_test_set, task_file

ROWS = [{"Q": f"What is {n} plus one?", "A": str(n + 1), "note": "x"} for n in range(20)]
NUMBER = {"question": "Q", "answer": "A", "answer_type": "number"}


@pytest.fixture
def of(recipe_values, tmp_path):
    """Build a recipe with one task, `mine`, from a source."""

    def build(path="mine.csv", **source) -> Recipe:
        recipe_values["tasks"] = {"names": ["mine"], "sources": {"mine": {"path": str(tmp_path / path)} | source}}
        recipe_values["preference_set"] = {"n_validation": 6, "n_items": 2}
        return Recipe.model_validate(recipe_values)

    return build


def write(path, rows: list[dict]) -> None:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        path.write_text(json.dumps(rows))


def questions(task) -> set[str]:
    return set().union(*(set(getattr(task, part)["question"]) for part in SETS))


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_task(of, tmp_path, ending):
    write(tmp_path / f"mine.{ending}", ROWS)
    recipe = of(f"mine.{ending}", **NUMBER, description="Add one.")
    task = load_tasks(recipe)["mine"]
    assert [len(getattr(task, part)) for part in SETS] == [3, 6, 11] and len(questions(task)) == 20
    assert task.description == "Add one." and task.answers == Answers("number") and task_file(recipe, "mine") is None
    write(tmp_path / "again.csv", ROWS)
    again = load_tasks(of("again.csv", **NUMBER))["mine"]
    assert again.sha256 == task.sha256 and again.seeds.equals(task.seeds) and again.test.equals(task.test)
    items, sha256 = load_test_items(recipe, task)
    assert len(items) == 4 and sha256 == task.sha256 and name_of_test_set(recipe, {"mine": task}) == "items of mine"


def test_a_folder_is_read_by_datasets_with_its_splits(of, tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.parquet", ROWS)
    write(tmp_path / "set" / "test.parquet", [{"Q": f"What is {n} plus ten?", "A": str(n + 10)} for n in range(5)])
    task = load_tasks(of("set", **NUMBER, test="test"))["mine"]
    assert [len(getattr(task, part)) for part in SETS] == [3, 6, 5]
    assert task.test["question"].str.endswith("plus ten?").all()
    with pytest.raises(DataError, match=r"split dev cannot be read \(.*dev"):
        load_tasks(of("set", **NUMBER, test="dev"))


def test_cells_stay_as_they_were_written(of, tmp_path):
    write(tmp_path / "mine.csv", [{"Q": f"Code {n}?", "A": a} for n, a in enumerate(["007", "NA", "None"] * 5)])
    task = load_tasks(of(question="Q", answer="A", answer_type="exact"))["mine"]
    assert set(task.test["target"]) | set(task.validation["target"]) == {"007", "NA", "None"}
    write(tmp_path / "mine.jsonl", [{"Q": f"Is {n} even?", "A": n % 2 == 0} for n in range(15)])
    task = load_tasks(of("mine.jsonl", question="Q", answer="A", answer_type="boolean"))["mine"]
    assert set(task.test["target"]) == {"True", "False"} and task.answers.same("true", "True")
    write(tmp_path / "mine.parquet", [{"Q": f"Half of {n}?", "A": n / 2} for n in range(15)])
    task = load_tasks(of("mine.parquet", **NUMBER))["mine"]
    assert {"1", "0.5"} <= {row.target for part in SETS for row in getattr(task, part).itertuples()}


CASES = {
    "bom.json": [("x?", "1")],
    "bom.jsonl": [("x?", "1"), ("y?", "2")],
    "u2028.jsonl": [("line\u2028sep?", "1"), ("b?", "2")],
    "f32.parquet": [("x?", "0.1"), ("y?", "2")],
    "semi.csv": [("x?", "1,5"), ("y?", "2")],
    "nat.parquet": "column 'a' of row 1 must hold text, a number or a truth value, got datetime",
    "strna.parquet": "column 'a' of row 2 must hold text, a number or a truth value, got nothing",
    "unquoted_commas.csv": "row 1, ['Hal has 71 pens', ' how many has Sue with 3 more than Hal?', '74'], has 3 cells "
    "where the header has 2; put a text that holds ',' into double quotes.",
}


def read(path, **source) -> list[tuple[str, str]]:
    named = {"path": str(path), "question": "q", "answer": "a", "answer_type": "exact"} | source
    examples, _ = items_of(TaskSource(**named), "mine")
    return [(row["input"], row["target"]) for row in examples]


@pytest.mark.parametrize("name", CASES)
def test_files_of_people_are_read_as_written_or_refused_by_the_row(test_data, name):
    path, right = test_data / "cases" / name, CASES[name]
    columns = {"question": "Question", "answer": "Answer"} if name.startswith("unquoted") else {}
    if isinstance(right, list):
        assert read(path, **columns) == right
    else:
        with pytest.raises(DataError) as raised:
            read(path, **columns)
        assert str(raised.value).startswith(f"Task mine, {path}: {right}")


@pytest.mark.parametrize(("name", "kind"), [("euro.csv", "number"), ("money.csv", "exact")])
def test_answers_of_people_are_right_when_given_to_the_letter(test_data, name, kind):
    rows = read(test_data / "cases" / name, question="Question", answer="Answer", answer_type=kind)
    answers = Answers(kind)
    assert len(rows) == 60 and all(answers.same(answers.read(form.format(a)), a) for _, a in rows for form in FORMS)
    if kind == "number":
        assert answers.same("0.09", rows[0][1]) and not answers.same("0", rows[0][1])


WRITTEN = [("x?", "1.50"), ("y, z?", "007")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("up.CSV", 'q,a\n x?,1.50\n"y, z?",007\n'),
        ("end.csv", 'q,a,\nx?,1.50,\n"y, z?",007,\n'),
        ("blank.csv", 'q, a\n\nx?,1.50\r\n"y, z?",007\n\n'),
        ("tab.csv", "q\ta\nx?\t1.50\ny, z?\t007\n"),
        ("semi.csv", "\ufeffq;a\nx?;1.50\ny, z?;007\n"),
        ("lines.json", '{"q": "x?", "a": 1.50}\r\n\n{"q": "y, z?", "a": "007"}\n'),
        ("list.JSONL", '[{"q": "x?", "a": 1.50},\n {"q": "y, z?", "a": "007"}]'),
        ("named.json", '{"canary": "x", "examples": [{"q": "x?", "a": 1.50}, {"q": "y, z?", "a": "007"}]}'),
        ("columns.json", '{"q": ["x?", "y, z?"], "a": [1.50, "007"]}'),
    ],
)
def test_forms_of_a_file_that_programs_write(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert [(question.strip(), answer) for question, answer in read(tmp_path / name)] == WRITTEN


def test_cells_of_types_stay_what_they_are_or_are_refused(tmp_path):
    (tmp_path / "one.json").write_text('{"q": "x?\x85y", "a": 9007199254740993}', encoding="utf-8")
    assert read(tmp_path / "one.json") == [("x?\x85y", "9007199254740993")]
    for values, right in (
        ([2**60 + 1, None], None),
        ([2**60 + 1, -1], [str(2**60 + 1), "-1"]),
        ([True, False], ["True", "False"]),
        ([Decimal("1.50"), Decimal("2.00")], ["1.50", "2.00"]),
        ([date(2024, 1, 5), date(2024, 1, 6)], ["2024-01-05", "2024-01-06"]),
        ([1.0, 0.1 + 0.2], ["1", "0.30000000000000004"]),
    ):
        pq.write_table(pa.table({"q": ["x?", "y?"], "a": values}), tmp_path / "typed.parquet")
        if right:
            assert [answer for _, answer in read(tmp_path / "typed.parquet")] == right
        else:
            with pytest.raises(DataError, match="column 'a' of row 2 must hold text, .* got nothing"):
                read(tmp_path / "typed.parquet")
    for value, kind in ((b"one", "bytes"), (datetime(2024, 1, 5), "datetime"), ([1], "list")):
        pq.write_table(pa.table({"q": ["x?"], "a": [value], "other": [[1, 2]]}), tmp_path / "typed.parquet")
        with pytest.raises(DataError, match=f"column 'a' of row 1 must hold text, .* got {kind} "):
            read(tmp_path / "typed.parquet")


def test_the_answer_is_found_in_its_column_by_a_pattern(of, tmp_path):
    rows = [{"Q": f"{n} + 1?", "A": f"Well, {n} + 1.\n#### {n}\nOr rather\n#### {n + 1:,}"} for n in range(995, 1010)]
    write(tmp_path / "mine.jsonl", rows)
    task = load_tasks(of("mine.jsonl", **NUMBER, gold_pattern=r"#### (.+)"))["mine"]
    assert {"1,000", "996"} <= {row.target for part in SETS for row in getattr(task, part).itertuples()}
    assert task.answers.same("1000", "1,000")
    with pytest.raises(DataError, match=r"gold_pattern '=(.*)' finds nothing in the answer 'Well.*of row 1; correct"):
        load_tasks(of("mine.jsonl", **NUMBER, gold_pattern="=(.*)"))


def test_questions_that_stand_there_twice(of, tmp_path):
    write(tmp_path / "mine.csv", [*ROWS, ROWS[3]])
    with pytest.raises(DataError, match=r"question of row 21, 'What is 3 plus one\?', stands there twice; remove one"):
        load_tasks(of(**NUMBER))
    assert len(questions(load_tasks(of(**NUMBER, duplicates="drop"))["mine"])) == 20
    write(tmp_path / "mine.csv", [*ROWS, ROWS[3] | {"A": "5"}])
    with pytest.raises(DataError, match=r"of row 21, .* stands there with two answers, '4' and '5'; keep the right"):
        load_tasks(of(**NUMBER, duplicates="drop"))
    write(tmp_path / "mine.csv", ROWS)
    write(tmp_path / "test.csv", [ROWS[0], {"Q": "What is 50 plus one?", "A": "51"}])
    with pytest.raises(DataError, match=r"test\.csv: the question of row 1, .* stands there twice"):
        load_tasks(of(**NUMBER, test=str(tmp_path / "test.csv")))


@pytest.mark.parametrize(
    ("content", "source", "said"),
    [
        (None, NUMBER, r"mine\.csv cannot be read \(there is no file .*mine\.csv\); give a file in UTF-8"),
        ("", NUMBER, r"mine\.csv has no rows"),
        ("Q,A\n", NUMBER, r"mine\.csv has no rows"),
        (
            "Q,A\na,1\n",
            NUMBER | {"question": "prompt"},
            "no column 'prompt'; it has Q, A, so name one of these as question",
        ),
        ("Q,A\na,1\n", {"answer_type": "number", "question": "Q"}, "no column 'answer'; it has Q, A, .* as answer in"),
        ("Q,A\na,1\nb,\n", NUMBER, "column 'A' of row 2 must hold text, a number or a truth value, got nothing"),
        (
            "Q,A\na,1\nb,many\n",
            NUMBER,
            r"answer 'many' of row 2 \(1 of 2\) cannot be read as number; .*exact would fit",
        ),
        (
            "Q,A\na,yes\nb,No\n",
            NUMBER,
            r"'yes' of row 1 \(2 of 2\) cannot .* tasks\.sources\.mine\.answer_type, for which boolean or exact would",
        ),
        ("Q,A\na,(A)\nb,B\n", NUMBER | {"answer_type": "boolean"}, "option or exact would fit"),
        ("Q,A\na,1\nb,2\n", NUMBER, "holds 2 examples, but the recipe asks for 3 seeds, 6 validation"),
        ("Q,A\na,1,2,3\nb,2\n", NUMBER, "row 1, .'a', '1', '2', '3'., has 4 cells where the header has 2; put a"),
        ('Q,A\n"a,1\n', NUMBER, "line 2: unexpected end of data; double the quotes"),
        ('Q,A\n"a" b,1\n', NUMBER, "line 2: ',' expected after '\"'; double the quotes"),
        (b"Q,A\n\xe9,1\n", NUMBER, r"mine\.csv cannot be read \(.*utf-8"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_sentence(of, tmp_path, content, source, said):
    if content is not None:
        (tmp_path / "mine.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said) as raised:
        load_tasks(of(**source))
    assert "\n" not in str(raised.value) and "mine" in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.jsonl", '{"Q": "a", "A": "1"}\n{"Q": ', r"mine\.jsonl cannot be read \(line 2: Expecting value\)"),
        ("mine.json", '[{"Q": "a",\n"A": }]', r"mine\.json cannot be read \(Expecting value: line 2 column 6"),
        (
            "mine.jsonl",
            '{"Q": "a", "A": ["1", "2"]}\n',
            r"column 'A' of row 1 must .* got list \"\['1', '2'\]\"",
        ),
        ("mine.parquet", "PAR1", r"mine\.parquet cannot be read"),
        ("mine.txt", "a", r"mine\.txt, split train cannot be read \(no reader for \.txt\); give a file"),
    ],
)
def test_other_files_that_cannot_be_used(of, tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said) as raised:
        load_tasks(of(name, **NUMBER))
    assert "\n" not in str(raised.value)


def test_a_data_set_that_cannot_be_fetched_is_one_sentence(recipe_values, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    recipe_values["tasks"] = {"names": ["mine"], "sources": {"mine": {"path": "some/questions"} | NUMBER}}
    with pytest.raises(DataError, match=r"Task mine, some/questions, split train cannot be read") as raised:
        load_tasks(Recipe.model_validate(recipe_values))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("answers", "kind", "said"),
    [
        (["1", "2024-05-01"], "number", "answer '2024-05-01' of row 2 .1 of 2. cannot be read as number.*exact would"),
        (["0,5", "1,75", "1.5"], "number", "of row 1, '0,5', and of row 3, '1.5', take ',' and '.' for the decimal"),
        (["0,5", "1,234"], "number", "of row 1, '0,5', and of row 2, '1,234', take ',' and '.' for the decimal sign"),
        (["A", "A or B"], "option", "answer 'A or B' of row 2 .* cannot be read as option"),
        (
            ["x", "I went. He stayed."],
            "exact",
            "'I went. He stayed.' of row 2 would not .*answer_type so that",
        ),
        (["x", "</ans>"], "tagged", "the answer '</ans>' of row 2 would not count as right in the reply"),
    ],
)
def test_an_answer_that_could_never_be_right_is_named_by_its_row(of, tmp_path, answers, kind, said):
    write(tmp_path / "mine.jsonl", [{"q": f"Question {n}?", "a": answer} for n, answer in enumerate(answers)])
    with pytest.raises(DataError, match=said) as raised:
        load_tasks(of("mine.jsonl", question="q", answer="a", answer_type=kind))
    assert "\n" not in str(raised.value)


def test_targets_are_checked_in_the_form_that_is_asked_for(recipe_values, tmp_path):
    rows = [{"input": f"Question {n}?", "target": "I went. He stayed." if n == 3 else str(n)} for n in range(20)]
    (tmp_path / "told.json").write_text(json.dumps({"examples": rows}))
    recipe_values["preference_set"] = {"n_validation": 6, "n_items": 2}
    recipe_values["tasks"] = {"folder": str(tmp_path), "names": ["told"]}
    assert load_tasks(Recipe.model_validate(recipe_values))["told"].answers == Answers()
    recipe_values["prompts"] = {"answer": "said"}
    with pytest.raises(
        DataError, match="Task told: the answer 'I went. He stayed.' of row .* set prompts.answer so that"
    ):
        load_tasks(Recipe.model_validate(recipe_values))


def test_a_task_file_keeps_its_items_and_takes_a_kind_of_answer(recipe_values, tmp_path):
    rows = [{"input": f"Is {n} even?", "target": "Yes" if n % 2 == 0 else "No"} for n in range(20)]
    (tmp_path / "even.json").write_text(json.dumps({"examples": rows}))
    recipe_values["preference_set"] = {"n_validation": 6, "n_items": 2}
    recipe_values["tasks"] = {"folder": str(tmp_path), "names": ["even"]}
    plain = load_tasks(Recipe.model_validate(recipe_values))["even"]
    recipe_values["tasks"]["sources"] = {"even": {"answer_type": "boolean"}}
    typed = load_tasks(Recipe.model_validate(recipe_values))["even"]
    assert plain.answers == Answers() and typed.answers == Answers("boolean") and typed.test.equals(plain.test)
    recipe_values["tasks"]["sources"] = {"even": {"answer_type": "number"}}
    with pytest.raises(DataError, match=r"cannot be read as number; .*boolean or exact would fit"):
        load_tasks(Recipe.model_validate(recipe_values))


def test_what_is_written_elsewhere_does_not_change_old_fingerprints(recipe, recipe_values):
    plain = recipe.section_json("tasks")
    assert plain == '{"tasks":{"folder":"data/pocket/tasks","names":["object_counting"]}}'
    recipe_values["tasks"]["sources"] = {"object_counting": {"answer_type": "number"}}
    assert Recipe.model_validate(recipe_values).section_json("tasks") != plain


KINDS = {
    **dict.fromkeys(["boolean_expressions", "causal_judgement", "navigate", "sports_understanding"], "boolean"),
    **dict.fromkeys(["web_of_lies"], "boolean"),
    **dict.fromkeys(["multistep_arithmetic_two", "object_counting"], "number"),
    # A gold answer of ruin_names is no letter.
    **dict.fromkeys(["dyck_languages", "formal_fallacies", "word_sorting", "ruin_names"], "exact"),
}
FORMS = ("<ans>{}</ans>", "So the answer is {}", "**Answer:** {}", "\\boxed{{{}}}", "#### {}")


def right(task, form: str = "<ans>{}</ans>") -> float:
    targets = [target for part in SETS for target in getattr(task, part)["target"]]
    return sum(task.answers.same(task.answers.read(form.format(t)), t) for t in targets) / len(targets)


def bbh_names(test_data) -> list[str]:
    return sorted(path.stem for path in (test_data / "bbh").glob("*.json"))


def test_all_tasks_of_bbh_load_split_and_grade_their_own_answers(recipe_values, test_data):
    names = bbh_names(test_data)
    assert len(names) == 27
    recipe_values["tasks"] = {"folder": str(test_data / "bbh"), "names": names}
    recipe_values["preference_set"] = {"n_validation": 40, "n_items": 20}
    plain = load_tasks(Recipe.model_validate(recipe_values))
    recipe_values["tasks"]["sources"] = {name: {"answer_type": KINDS.get(name, "option")} for name in names}
    typed = load_tasks(Recipe.model_validate(recipe_values))
    for name in names:
        sizes = [len(getattr(plain[name], part)) for part in SETS]
        assert sizes[:2] == [3, 40] and sizes[2] >= 30 and len(questions(plain[name])) == sum(sizes)
        assert right(plain[name]) == right(typed[name]) == 1, name
        stated = {form: right(typed[name], form) for form in FORMS}
        assert all(share == 1 for share in stated.values()), (name, stated)


def test_gsm8k_loads_splits_and_grades_its_own_answers(recipe_values, test_data):
    folder = test_data / "gsm8k"
    source = {"path": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl"), "answer_type": "number"}
    recipe_values["tasks"] = {"names": ["gsm8k"], "sources": {"gsm8k": source | {"gold_pattern": "#### (.+)"}}}
    task = load_tasks(Recipe.model_validate(recipe_values))["gsm8k"]
    assert [len(getattr(task, part)) for part in SETS] == [3, 100, 300]
    assert all(right(task, form) == 1 for form in FORMS)
    for file in ("train", "test"):
        rows = [json.loads(line) for line in (folder / f"{file}.jsonl").read_text().splitlines()]
        golds = [row["answer"].rsplit("#### ", 1)[1] for row in rows]
        assert all(task.answers.same(task.answers.read(row["answer"]), gold) for row, gold in zip(rows, golds))


def test_pocket_tasks_are_read_as_before(recipe):
    from conftest import PROJECT

    task = load_task(PROJECT / "data" / "pocket" / "tasks" / "navigate.json", recipe)
    assert task.answers == Answers() and task.answers.kind == "tagged"
