import numpy as np
import pandas as pd
import pytest

from workbench.runs.recipe import Recipe
from workbench.runs.seeding import stream
from workbench.verdict.ablations import ALL, OTHERS, cohort, contrasts, hardest

SHARES = {  # student -> arm -> how often it is right
    "s": {"untailored": 0.3, "tailored": 0.7, "most_preferred": 0.3, "tailored_for_t": 0.3, "tailored_for_u": 0.5},
    "t": {"untailored": 0.3, "tailored": 0.6, "most_preferred": 0.3, "tailored_for_s": 0.3, "tailored_for_u": 0.3},
}
SEEDS, ITEMS = range(4), range(150)


@pytest.fixture
def settings(recipe_values):
    recipe_values["models"]["students"] = {name: "data/pocket/x" for name in "stu"}
    recipe_values["evaluation"]["arms"] = ["untailored", "tailored", "most_preferred"]
    recipe_values["evaluation"]["shots"] = [0]
    return Recipe.model_validate(recipe_values).evaluation


@pytest.fixture(scope="module")
def predictions():
    rows = []
    for student, arms in SHARES.items():
        for arm, share in arms.items():
            right = stream(0, student, arm).random((len(SEEDS), len(ITEMS))) < share
            rows += [
                {"student": student, "arm": arm, "seed": s, "shots": 0, "task": "sums", "item_id": f"i{i}"}
                | {"answer": "1", "parsed": True, "correct": bool(right[s, i])}
                for s in SEEDS
                for i in ITEMS
            ]
    return pd.DataFrame(rows)


def test_contrasts_are_differences_of_accuracies(predictions, settings):
    table = contrasts(predictions, settings).set_index(["student", "a", "b"])
    means = predictions.groupby(["student", "arm"])["correct"].mean()
    for student in SHARES:
        row = table.loc[(student, "tailored", "untailored")]
        assert row["difference"] == pytest.approx(means[student, "tailored"] - means[student, "untailored"])
        others = means[student][[arm for arm in SHARES[student] if arm.startswith("tailored_for_")]].mean()
        assert table.loc[(student, "tailored", OTHERS)]["difference"] == pytest.approx(
            means[student, "tailored"] - others
        )
    whole = table.loc[(ALL, "tailored", "untailored")]
    both = table.loc[[("s", "tailored", "untailored"), ("t", "tailored", "untailored")], "difference"]
    assert whole["difference"] == pytest.approx(both.mean()) and whole["n_items"] == 2 * len(ITEMS)
    assert whole["decision"] == "better" and whole["low"] > 0


def test_the_papers_direction_stands_beside_ours_and_absent_arms_are_left_out(predictions, settings):
    table = contrasts(predictions, settings)
    assert set(zip(table["a"], table["b"], strict=True)) == {
        ("tailored", "untailored"),
        ("tailored", "most_preferred"),
        ("tailored", OTHERS),
    }
    assert table[table["b"] == "most_preferred"]["paper"].eq(0.0441).all()
    assert (table["p_holm"] >= table["p_value"]).all()


def test_the_cohort_has_each_student_with_each_teacher(predictions, settings):
    table = cohort(predictions, settings)
    assert len(table) == 6 and np.all((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"]))
    cells = table.set_index(["student", "tailored_for"])["accuracy"]
    assert cells["s", "s"] > cells["s", "t"] and cells["t", "t"] > cells["t", "s"]
    usual = predictions[~predictions["arm"].str.startswith("tailored_for_")]
    assert cohort(usual, settings).empty


def test_a_contrast_over_all_students_takes_those_that_have_both_arms(predictions, settings):
    lone = predictions[~((predictions["student"] == "s") & predictions["arm"].str.startswith("tailored_for_"))]
    table = contrasts(lone, settings).set_index(["student", "b"])
    assert ("s", OTHERS) not in table.index
    assert table.loc[("all students", OTHERS), "difference"] == pytest.approx(table.loc[("t", OTHERS), "difference"])


def test_where_no_contrast_is_known_the_first_arm_stands_against_every_other(predictions, settings):
    names = {"tailored": "full", "untailored": "base", "most_preferred": "without"}
    own = predictions[(predictions["student"] == "s") & predictions["arm"].isin(list(names))]
    own = own.assign(arm=own["arm"].map(names))
    asked = settings.model_copy(update={"primary": settings.primary.model_copy(update={"a": "full", "b": "base"})})
    table = contrasts(own, asked)
    assert set(zip(table["a"], table["b"], strict=True)) == {("full", "base"), ("full", "without")}
    means = own.groupby("arm")["correct"].mean()
    assert list(table["difference"]) == pytest.approx([means["full"] - means[arm] for arm in table["b"]])


def test_the_hardest_items_are_those_the_untrained_student_gets_wrong():
    keys = {"seed": 0, "shots": 0, "task": "sums"}
    rows = [keys | {"student": "s", "arm": "base", "item_id": f"i{n}", "correct": n > 2} for n in range(6)]
    rows += [row | {"arm": "full", "seed": seed, "correct": True} for row in rows for seed in (1, 2)]
    rows += [row | {"student": "t", "correct": not row["correct"]} for row in rows if row["arm"] == "base"]
    found = hardest(pd.DataFrame(rows), 0)
    assert set(found["item_id"]) == {"i0", "i1", "i2"} and set(found["arm"]) == {"full"} and len(found) == 6
    assert hardest(found, 0).empty
