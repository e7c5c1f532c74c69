"""What a recipe comes to: counts as the paper has them, sizes of models, and speeds that were tried out."""

import pytest

from workbench.models.engine import Completion
from workbench.models.loading import load_tokenizer, render
from workbench.models.start import choice_of
from workbench.report import cost_estimate
from workbench.report.cost_estimate import RATES, Throughput, estimate
from workbench.runs.recipe import Recipe, format_yaml
from workbench.runs.recipe_file import load_recipe
from workbench.runs.workers import n_processes


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("arte-demo", {"compute.batch_size": "8"})


def test_it_counts_what_the_paper_counts(recipe_values, tmp_path):
    """The paper's numbers for one task: 1,000 drafts, 40 probes each, 300 pairs, 250 examples."""
    recipe_values |= {
        "profile": "real",
        "models": {"teacher": "hub/Teacher-70B", "students": {"small": "hub/student-2b"}, "dtype": "bfloat16"},
        "drafting": {"n_questions": 250, "max_new_tokens": 512},
        "pairs": {"n_question_pairs": 50},
        "tailoring": {"n_examples": 250, "max_new_tokens": 512},
    }
    path = tmp_path / "paper.yaml"
    path.write_text(format_yaml(recipe_values))
    rows = estimate(load_recipe(str(path))).set_index("work")
    assert rows.loc["rationales", "generations"] == 1000
    assert rows.loc["one-shot probes", "generations"] == 40_000
    tokens = cost_estimate.QUESTION_TOKENS["real"]
    assert rows.filter(like="DPO", axis=0)["trained"].iloc[0] == 300 * 2 * (2 * tokens + 256) * 2
    probes, rates = rows.loc["one-shot probes"], RATES["real"]
    wanted = 2_000 * (probes["new"] / rates.new + probes["read"] / rates.read)
    assert probes["seconds"] == pytest.approx(wanted)


def test_signals_beside_the_probes_and_distillation_are_counted():
    recipe = load_recipe("arte-signals")
    rows = estimate(recipe).set_index("work")
    n_drafts, n_tasks = 160, 2
    for student in recipe.models.students:
        once = rows.loc[f"surprisal of drafts, {student}"]
        twice = rows.loc[f"answer_likelihood of drafts, {student}"]
        assert once["read"] > n_tasks * n_drafts and twice["read"] == 2 * once["read"] and once["trained"] == 0
        assert rows.loc[f"gradient_norm of drafts, {student}", "trained"] == once["read"]
        # Three epochs of 40 questions a task, five seeds.
        assert rows.loc[f"answers of student {student} in distillation", "generations"] == n_tasks * 40 * 3 * 5
    assert not [work for work in rows.index if "self_consistency" in work], "it is read off the probes"
    assert "distillation" not in " ".join(estimate(load_recipe("arte-demo"))["work"])
    slow = estimate(load_recipe("arte-signals", {"signal": "measured_gain"})).set_index("work")
    assert slow.loc["measured_gain, answers after training", "generations"].sum() == n_tasks * n_drafts * 24 * 2


def test_parameters_are_counted_in_the_folder_when_it_is_there(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "model.safetensors")
    assert cost_estimate.parameters_of(str(tmp_path)) == 22
    assert cost_estimate.parameters_of("org/Some-7B-Instruct") == 7e9


def test_training_an_adapter_needs_less_memory():
    full = cost_estimate.memory(load_recipe("arte-demo"))
    adapted = cost_estimate.memory(load_recipe("arte-demo", {"alignment.lora.rank": 4, "training.lora.rank": 4}))
    for whole, small in zip(full, adapted, strict=True):
        assert small["generate"] == whole["generate"] < small["train"] < whole["train"] / 2


def test_the_models_at_hand_are_tried_out(recipe):
    found = cost_estimate.measure(recipe)
    assert set(found) == {recipe.models.teacher, *recipe.models.students.values()}
    for of in found.values():
        # A prompt is read many tokens at a time, a completion written one at a time.
        assert 0 < of.new < of.read
        assert 40 < of.prompt < 120
        assert 1 <= of.completion <= max(recipe.drafting.max_new_tokens, recipe.evaluation.max_new_tokens)


def test_what_was_measured_is_what_the_estimate_rests_on(recipe):
    student = next(iter(recipe.models.students.values()))
    measured = {student: Throughput(new=100.0, read=1_000.0, completion=7.0)}
    row = estimate(recipe, measured).query("work == 'one-shot probes'").iloc[0]
    assert row["new"] == 7 * row["generations"]
    assert row["seconds"] == pytest.approx(row["new"] / 100 + row["read"] / 1_000)
    trained = estimate(recipe, measured).query("stage == 'training'")
    assert trained["seconds"].sum() == pytest.approx(3 * trained["trained"].sum() / 1_000)
    # Prompts are as long as they were seen to be, not as they usually are.
    of_prompt = {student: measured[student]._replace(prompt=20.0)}
    asked = estimate(recipe, of_prompt).query("work == 'one-shot probes'").iloc[0]
    assert asked["read"] == (20 + 10 + 7) * asked["generations"]  # its prompt, the demonstration's question and answer
    # A completion is never longer than the recipe lets it be.
    long = {student: measured[student]._replace(completion=1e6)}
    longest = recipe.evaluation.max_new_tokens
    assert estimate(recipe, long).query("work == 'one-shot probes'").iloc[0]["new"] == longest * row["generations"]


def test_each_model_is_tried_out_on_the_engine_of_its_role(recipe, monkeypatch):
    """A model that is not here is left out, a server not asked; vLLM's speed is that of all cores already."""
    started, closed = [], []

    class Instant:
        def __init__(self, ref):
            self.tokenizer = load_tokenizer(ref)

        def render(self, text):
            return render(self.tokenizer, text)

        def generate(self, requests, decoding):
            return [Completion("8", decoding.max_new_tokens, True) for _ in requests]

        def close(self):
            closed.append(self)

    def start(recipe, role, ref, compared):
        started.append((role, ref, choice_of(recipe, role, compared).engine))
        return Instant(ref)

    here = n_processes(recipe.compute.workers)
    monkeypatch.setattr(cost_estimate, "run_jobs", lambda fn, jobs, workers, _: [fn(*one.given) for one in jobs])
    monkeypatch.setattr(cost_estimate, "start_engine", start)
    monkeypatch.setattr(
        cost_estimate, "_timed", lambda work, *arguments: (float(arguments[1].max_new_tokens), work(*arguments))
    )
    values = recipe.model_dump()
    values["models"]["judge"] = "data/pocket/no-preference"
    values["models"]["students"] = {"away": "organisation/model-7b"}
    values["preference_set"]["responders"] = ["data/pocket/tally-strong"]
    server = {"engine": "openai", "base_url": "http://localhost:1/v1", "endpoint": "chat"}
    values["engines"] = {"teacher": "vllm", "judge": server}
    of = Recipe.model_validate(values)
    found = cost_estimate.measure(of)
    assert set(found) == {"data/pocket/no-preference", "data/pocket/tally-strong", recipe.models.teacher}
    judge = ("judge", "data/pocket/no-preference", "transformers")
    responder = ("student", "data/pocket/tally-strong", "transformers")
    teacher = ("teacher", recipe.models.teacher, "vllm")
    assert started == [judge] * here + [responder] * here + [teacher] and len(closed) == len(started)
    assert found[recipe.models.teacher].completion == recipe.drafting.max_new_tokens
    # 8 requests, a token a second each, in every process that a run would have beside one another.
    assert found[recipe.models.teacher].new == pytest.approx(8)
    assert found["data/pocket/no-preference"].new == pytest.approx(8 * here)


def test_what_policies_are_asked_in_rounds_is_counted():
    table = cost_estimate.estimate(load_recipe("ts-align")).set_index("work")
    # Two tasks, two trained arms, five seeds; two rounds of 60 prompts, eight samples each, and three times 2 of 40.
    assert table.loc["answers of those taught", "generations"] == 2 * 2 * 5 * (2 * 60 * 8 + 3 * 2 * 40)
    assert "questions of all rounds" not in table.index
