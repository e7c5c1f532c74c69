"""A sweep: which settings it has, that it is chosen on validation items alone, and goes on where it was stopped."""

import pandas as pd
import pytest
from small_classroom import STAGES, compute, recipe_of

from workbench.cli import sweep as command
from workbench.cli.main import main
from workbench.cli.sweep import settings_of
from workbench.runs.cache import LOOKS, read_json
from workbench.runs.errors import DataError, RecipeError, RunError
from workbench.runs.recipe import Recipe
from workbench.runs.run import open_run
from workbench.studies import sweeps
from workbench.tasks.task import load_tasks, load_test_items
from workbench.verdict.evaluation import decide


def test_settings_are_all_combinations_and_brackets_hold_one_value():
    given = [("alignment.beta", "0.05,0.1"), ("seeds", "[1, 2]"), ("training.n_epochs", "1, 3")]
    found = settings_of(given)
    assert len(found) == 4 and found[1] == {"alignment.beta": "0.05", "seeds": "[1, 2]", "training.n_epochs": "3"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "2 to 100 settings, got 1; give values with commas"),
        ([("seeds", "[1, 2]")], "2 to 100 settings, got 1"),
        ([("a", ",".join(map(str, range(101))))], "2 to 100 settings, got 101"),
        ([("a", "1,1")], "a must be given different values, with commas between, got '1, 1'"),
        ([("a", "1,,2")], "a must be given different values"),
        ([("a", "1"), ("a", "2")], "A key stands twice"),
    ],
)
def test_what_is_no_sweep_is_refused(given, said):
    with pytest.raises(RecipeError, match=said):
        settings_of(given)


def with_items_left(recipe: Recipe) -> Recipe:
    preference_set = recipe.preference_set.model_copy(update={"n_validation": 6, "n_items": 6})
    evaluation = recipe.evaluation.model_copy(update={"shots": [0], "arms": ["base", "untailored", "tailored"]})
    return recipe.model_copy(update={"preference_set": preference_set, "evaluation": evaluation})


def test_what_is_chosen_by_are_validation_items_outside_the_preference_set(small_models):
    recipe = with_items_left(recipe_of(small_models))
    on = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"items": "validation"})})
    for task in load_tasks(on).values():
        items, sha256 = load_test_items(on, task)
        n = on.preference_set.n_validation
        assert 0 < len(items) and set(items["item_id"]) <= set(task.validation["item_id"][n:])
        assert sha256 != load_test_items(recipe, task)[1]
    all_of_them = on.preference_set.model_copy(update={"n_validation": len(task.validation)})
    with pytest.raises(DataError, match="all of them are for the preference set; lower preference_set.n_validation"):
        load_test_items(on.model_copy(update={"preference_set": all_of_them}), task)
    assert "items" not in recipe.evaluation.model_dump(), "fingerprints of older recipes stay what they were"
    assert Recipe.model_validate(on.model_dump()) == on


@pytest.fixture
def swept(small_models, runs, tmp_path, monkeypatch):
    """Sweep over two betas, with the steps of the loop in place of its notebooks; return what was run, in order."""
    recipe, ran = with_items_left(recipe_of(small_models)), []
    (tmp_path / "small.yaml").write_text(recipe.to_yaml())

    def loop(work):
        ran.append(work.name)
        if ran == ["betas-1", "betas-2"] and not ran.count("killed"):
            ran.append("killed")
            raise KeyboardInterrupt
        for stage in STAGES:
            compute(stage, work)
        decide(work)

    monkeypatch.setattr(command, "run_notebooks", loop)
    monkeypatch.setattr(command, "run_study", lambda work, name, parameters: work.path / "reports" / f"{name}.html")
    monkeypatch.setattr("workbench.cli.study.sentences", lambda page: [])
    arguments = ["sweep", str(tmp_path / "small.yaml"), "--name", "betas", "-p", "alignment.beta", "0.1,0.4"]
    assert main(arguments) != 0
    looked = read_json(runs / LOOKS)
    assert main(arguments) == 0
    return ran, looked


def test_a_sweep_goes_on_where_it_was_stopped_and_opens_the_test_set_once(swept, runs):
    ran, looked = swept
    assert ran == ["betas-1", "betas-2", "killed", "betas-1", "betas-2", "betas-chosen"] and not looked
    table = sweeps.results("betas")
    assert table["run"].tolist() == ["betas-1", "betas-2", "betas-chosen"]
    assert table["items"].tolist() == ["validation", "validation", "test"]
    tried, chosen = table.iloc[:2], table.iloc[2]
    assert tried["alignment.beta"].tolist() == [0.1, 0.4]
    assert chosen["alignment.beta"] == tried["alignment.beta"].iloc[tried["difference"].argmax()]
    assert (tried["p_adjusted"] >= tried["p_value"]).all() and chosen["p_adjusted"] == chosen["p_value"]
    assert all(len(seen["looks"]) == 1 for name, seen in read_json(runs / LOOKS).items() if name != "checksum")
    predictions = [open_run(name).read("predictions") for name in table["run"]]
    assert not set(predictions[0]["item_id"]) & set(predictions[2]["item_id"])
    with pytest.raises(RunError, match="There is no sweep 'other'; begin it: workbench sweep"):
        sweeps.results("other")


def test_better_of_many_settings_needs_a_corrected_p_value(monkeypatch):
    row = {"student": "a", "items": "validation", "n_items": 9, "alpha": 0.05, "low": 0.01, "high": 0.2}
    rows = [
        row | {"run": f"s-{n}", "difference": 0.1, "p_value": p, "decision": "better"}
        for n, p in ((1, 0.03), (2, 0.04))
    ]
    monkeypatch.setattr(sweeps, "runs_of", lambda name: rows)
    monkeypatch.setattr(sweeps, "settings_of", lambda works: pd.DataFrame({"run": ["s-1", "s-2"], "beta": [1, 2]}))
    monkeypatch.setattr(sweeps, "_compared", lambda row: pd.DataFrame([row]))
    assert sweeps.results("s")["decision"].tolist() == ["undecided", "undecided"]
    rows[0]["p_value"] = 0.02
    assert sweeps.results("s")["decision"].tolist() == ["better", "better"]
