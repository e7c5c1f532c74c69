import math

import pytest
from conftest import PROJECT

from workbench.models.engine import Completion
from workbench.models.loading import load
from workbench.report import cost_estimate, plan, throughput
from workbench.report.cost_estimate import Throughput, estimate
from workbench.runs.recipe import Recipe
from workbench.runs.recipe_file import load_recipe
from workbench.runs.recipe_parts import Lora


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("arte-demo", {"compute.batch_size": "8"})


def test_the_models_at_hand_are_tried_out_and_left_as_they_were(recipe):
    student = next(iter(recipe.models.students.values()))
    before = (PROJECT / student / "model.safetensors").read_bytes()
    found = throughput.measure_throughput(recipe)
    assert set(found) == {recipe.models.teacher, *recipe.models.students.values()}
    for of in found.values():
        # A prompt is read many tokens at a time, a completion written one at a time.
        assert 0 < of.new < of.read and of.trained > 0
        assert 1 <= of.completion <= max(recipe.drafting.max_new_tokens, recipe.evaluation.max_new_tokens)
    assert (PROJECT / student / "model.safetensors").read_bytes() == before


def test_trying_out_training_changes_no_weight(recipe):
    loaded = load(next(iter(recipe.models.students.values())), device="cpu")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    assert throughput._trained(loaded, ["1 + 1 = 2", "a longer text than that"], Lora()) > 0
    assert all((value == before[name]).all() for name, value in loaded.model.state_dict().items())


def test_a_model_that_is_not_at_hand_is_left_out(recipe):
    away = recipe.models.model_copy(update={"teacher": "organisation/model-7b"})
    assert "organisation/model-7b" not in throughput.measure_throughput(recipe.model_copy(update={"models": away}))


def test_what_was_measured_is_what_the_estimate_rests_on(recipe):
    student = next(iter(recipe.models.students.values()))
    measured = {student: Throughput(new=100.0, read=1_000.0, trained=50.0, completion=7.0)}
    row = estimate(recipe, measured).query("work == 'one-shot probes'").iloc[0]
    assert row["new"] == 7 * row["generations"]
    processes = cost_estimate.CostModel(recipe).processes
    assert row["seconds"] == pytest.approx((row["new"] / 100 + row["read"] / 1_000) / processes)
    trained = estimate(recipe, measured).query("stage == 'training'")
    assert trained["seconds"].sum() == pytest.approx(trained["trained"].sum() / 50 / processes)
    # A completion is never longer than the recipe lets it be.
    long = {student: measured[student]._replace(completion=1e6)}
    longest = recipe.evaluation.max_new_tokens
    assert estimate(recipe, long).query("work == 'one-shot probes'").iloc[0]["new"] == longest * row["generations"]


def test_each_model_is_tried_out_on_the_engine_of_its_role_and_as_it_will_be_trained(recipe, monkeypatch):
    started, trained = [], []

    class Instant:
        def generate(self, requests, decoding):
            return [Completion("8", decoding.max_new_tokens, True) for _ in requests]

    def start(recipe, role, ref):
        started.append((role, ref))
        return Instant()

    monkeypatch.setattr(throughput, "start_engine", start)
    monkeypatch.setattr(throughput, "_trained", lambda loaded, texts, lora: trained.append(lora.rank) or 1.0)
    values = recipe.model_dump()
    values["models"]["judge"] = "data/pocket/no-preference"
    values["engines"] = {"teacher": "vllm", "judge": {"engine": "vllm"}}
    values["alignment"]["lora"] = {"rank": 4}
    found = throughput.measure_throughput(Recipe.model_validate(values))
    assert started == [("judge", "data/pocket/no-preference"), ("teacher", recipe.models.teacher)]
    # A judge is never trained.
    assert trained == [0, 4] and found["data/pocket/no-preference"].trained == math.inf
    assert "no-preference" in plan.in_words(Recipe.model_validate(values), measured=found)
    assert found[recipe.models.teacher].completion == recipe.drafting.max_new_tokens


def test_an_adapter_is_tried_out_too(recipe):
    loaded = load(recipe.models.teacher, device="cpu")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    assert throughput._trained(loaded, ["1 + 1 = 2", "a longer text than that"], Lora(rank=4)) > 0
    after = loaded.model.state_dict()
    assert all(
        (after[name.replace(".weight", ".base_layer.weight") if name not in after else name] == value).all()
        for name, value in before.items()
    )
