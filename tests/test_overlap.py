import json

import pandas as pd
import pytest
from conftest import PROJECT

from workbench.loop.writing import Guards, Written
from workbench.runs.recipe import Recipe
from workbench.tasks.contamination import LEVELS
from workbench.tasks.overlap import overlap_report, overlap_warnings
from workbench.tasks.task import guard_of, load_tasks

NAME = "object_counting"


@pytest.fixture
def of(recipe_values, tmp_path):
    """Build a recipe for a pocket task whose validation set holds a test item with other numbers."""
    content = json.loads((PROJECT / "data" / "pocket" / "tasks" / f"{NAME}.json").read_text())
    content["test"][0] = {
        "input": "I have two beds, three lamps, and a cat. How many objects do I have?",
        "target": "6",
    }
    content["validation"][0] = {"input": content["test"][0]["input"].replace("three", "five"), "target": "8"}
    (tmp_path / f"{NAME}.json").write_text(json.dumps(content))

    def build(**guard) -> Recipe:
        return Recipe.model_validate(
            recipe_values | {"guard": guard, "tasks": {"folder": str(tmp_path), "names": [NAME]}}
        )

    return build


def frame(*reasons: str) -> pd.DataFrame:
    return pd.DataFrame({"task": NAME, "drop_reason": reasons})


def test_the_report_counts_by_task_set_and_level(of):
    recipe = of(levels=["exact", "normalised", "renamed"])
    copy = "same as a test item but for its names and numbers"
    questions = frame("", "written before", copy, copy, "same as a seeds item")
    report = overlap_report(recipe, load_tasks(recipe), questions, frame("", copy))
    assert report["false_positive_rate"] == recipe.guard.false_positive_rate
    assert report["off"] == {NAME: ["options", "reordered", "ngram", "near"]}
    rows = [tuple(row.values()) for row in report["found"]]
    assert rows == [
        (NAME, "test", 250, "validation", "renamed", 1, "left out of the evaluation"),
        (NAME, "drafted questions", 5, "seeds", "exact", 1, "dropped before use"),
        (NAME, "drafted questions", 5, "test", "renamed", 2, "dropped before use"),
        (NAME, "training examples", 2, "test", "renamed", 1, "dropped before use"),
    ]
    assert overlap_warnings(report) == [
        "1 of the 250 test items of object counting copy seed or validation items and were left out: "
        "1 validation (renamed)."
    ]


def test_nothing_found_is_an_empty_table_and_no_warning(of):
    recipe = of(levels=["exact"])
    report = overlap_report(recipe, load_tasks(recipe), frame("", "written before"), frame())
    assert report["found"] == [] == overlap_warnings(report) and report["off"][NAME] == list(LEVELS[1:])


def test_a_recipe_may_refuse_what_copies_a_test_item(of):
    def written(recipe, *questions):
        task = load_tasks(recipe)[NAME]
        guard = guard_of(recipe, task)
        copies = [Written(question, "", "", 0, 0, guard.overlap(question), "") for question in questions]
        Guards(recipe).refuse_copies(task, copies)

    seed = load_tasks(of())[NAME].seeds["question"][0]
    copy = "I have two beds, nine lamps, and a cat. How many objects do I have?"
    written(of(), seed, copy)
    written(of(test_overlap="refuse"), seed, "I have a plum. How many fruits do I have?")
    with pytest.raises(ValueError, match=r"1 of 2 questions written of object_counting copy a test item") as refused:
        written(of(test_overlap="refuse"), seed, copy)
    assert "two beds, nine lamps" in str(refused.value) and "guard.test_overlap=remove" in str(refused.value)
