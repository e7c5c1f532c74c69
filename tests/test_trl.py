import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_loading import TEMPLATE, tiny_folder, tiny_tokenizer

from workbench.models import loading, trl
from workbench.models.backends import check
from workbench.models.engine import Decoding, Request
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.trl import DONE, completion_tokens, deal, tune_distilled, tune_dpo, tune_sft, tuned
from workbench.runs import progress
from workbench.runs.errors import ModelError, RunError
from workbench.runs.recipe import Recipe

BETA = 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model that is mild enough to learn, with a chat template and a tokenizer that adds its first token."""
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "tiny", initializer_range=0.05)
    tiny_tokenizer(TEMPLATE, adds_bos=True).save_pretrained(folder)
    return folder


@pytest.fixture
def of(recipe_values, folder):
    def build(**changes) -> Recipe:
        recipe_values["models"] = {"teacher": str(folder), "students": {"s": str(folder)}}
        recipe_values["alignment"] |= {"beta": BETA, "learning_rate": 3.0e-3, "n_epochs": 4, "max_length": 40}
        recipe_values["training"] |= {"learning_rate": 1.0e-2, "n_epochs": 4, "max_length": 40}
        recipe_values["compute"] = {"device": "cpu"}
        for section, values in changes.items():
            recipe_values[section].update(values)
        return Recipe.model_validate(recipe_values)

    return build


def pairs(n: int = 12) -> pd.DataFrame:
    """Chosen texts end in w1, rejected ones in w2."""
    rng = np.random.default_rng(0)
    words = [" ".join(f"w{k}" for k in rng.integers(3, 20, 2 + i % 5)) for i in range(n)]
    both = {"chosen": [f" {w} w1" for w in words], "rejected": [f" {w[:2]} {w} w2" for w in words]}
    return pd.DataFrame({"prompt": [f"w20 {w}" for w in words], **both})


def rows(n: int = 14) -> pd.DataFrame:
    frame = pairs(n)
    return pd.DataFrame({"prompt": frame["prompt"], "completion": frame["chosen"]})


def curve(result: dict, metric: str) -> list[float]:
    return [point["value"] for point in result["curve"] if point["metric"] == metric]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(one, other) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@torch.inference_mode()
def log_probability(folder, prompt: str, completion: str) -> float:
    """Sum the log-probabilities of the completion's tokens, its end included, after the rendered prompt."""
    loaded = loading.load(folder, device="cpu")
    ids = loaded.tokenizer(loading.render(loaded.tokenizer, prompt))["input_ids"]
    end = [*loaded.tokenizer(completion, add_special_tokens=False)["input_ids"], loaded.tokenizer.eos_token_id]
    logits = loaded.model(torch.tensor([ids + end])).logits[0, len(ids) - 1 : -1]
    return float(torch.log_softmax(logits, -1)[range(len(end)), end].sum())


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.data())
def test_rows_are_dealt_each_once_into_batches_of_about_equal_tokens(lengths, data):
    n = data.draw(st.integers(1, len(lengths)))
    batches = deal(lengths, n, np.random.default_rng(0))
    assert len(batches) == n and all(batches)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in batch) for batch in batches]
    assert max(totals) - min(totals) <= max(lengths)


def test_dealing_hangs_on_the_generator_alone():
    lengths = [3] * 20
    dealt = [deal(lengths, 4, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert dealt[0] == dealt[1] != dealt[2]


def test_more_batches_than_rows_are_refused():
    with pytest.raises(ModelError, match=r"2 rows cannot fill 3 batches; lower training\.batch_size"):
        deal([5, 5], 3, np.random.default_rng(0))


def test_dpo_raises_the_margin_from_zero(of, folder, tmp_path):
    result = tune_dpo(of(), pairs(), tmp_path, seed=1)
    margins, losses = curve(result, "rewards/margins"), curve(result, "loss")
    # Before the first step the policy is the reference.
    assert margins[0] == pytest.approx(0, abs=1e-5) and losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert margins[-1] > 0.5 and losses[-1] < 0.5
    assert result["steps"] == 12 and max(point["step"] for point in result["curve"]) == 12
    # The margin by our own sums: implicit reward of chosen minus rejected, against the untouched teacher.
    gains = [
        BETA
        * (
            (log_probability(tmp_path, pair.prompt, pair.chosen) - log_probability(folder, pair.prompt, pair.chosen))
            - (
                log_probability(tmp_path, pair.prompt, pair.rejected)
                - log_probability(folder, pair.prompt, pair.rejected)
            )
        )
        for pair in pairs().itertuples()
    ]
    assert np.mean(gains) == pytest.approx(margins[-1], rel=0.35) and min(gains) > 0


def test_dpo_sees_the_prompt_that_generation_sees_and_the_whole_completion(of, folder, tmp_path, seen):
    tune_dpo(of(), pairs(), tmp_path, seed=1)
    engine = TransformersEngine(str(folder), device="cpu")
    tokenizer = engine.tokenizer
    for pair, row in zip(pairs().itertuples(), seen[0].train_dataset, strict=True):
        request = Request(loading.render(tokenizer, pair.prompt))
        assert row["prompt_ids"] == engine._rows({"": request}, Decoding(8))[""].ids
        for side in ("chosen", "rejected"):
            expected = tokenizer(getattr(pair, side), add_special_tokens=False)["input_ids"]
            assert row[f"{side}_ids"] == [*expected, tokenizer.eos_token_id]
        assert row["ref_chosen_logps"] == pytest.approx(log_probability(folder, pair.prompt, pair.chosen), rel=1e-4)
    assert seen[0].args.beta == BETA and seen[0].args.max_length == 40
    assert seen[0].ref_model is None, "a second model is held"


def test_sft_counts_the_loss_on_the_completion_alone(of, folder, tmp_path, seen):
    result = tune_sft(of(), str(folder), rows(), 3, tmp_path, seed=1)
    engine = TransformersEngine(str(folder), device="cpu")
    counted = []
    for row, given_row in zip(seen[0].train_dataset, rows().itertuples(), strict=True):
        request = Request(loading.render(engine.tokenizer, given_row.prompt))
        prompt = engine._rows({"": request}, Decoding(8))[""].ids
        n = row["labels"].count(-100)
        assert row["input_ids"][:n] == prompt and row["labels"][n:] == row["input_ids"][n:]
        assert row["labels"][-1] == engine.tokenizer.eos_token_id
        counted.append(len(row["labels"]) - n)
    assert counted == completion_tokens(engine.tokenizer, rows()["completion"].tolist())
    assert result["n_tokens"] == 4 * sum(counted)
    # What the collator makes of a batch counts the same tokens, and pads without counting.
    for batch in seen[0].batches:
        made = seen[0].data_collator([seen[0].train_dataset[i] for i in batch])
        assert int((made["labels"] != -100).sum()) == sum(counted[i] for i in batch)


def test_a_distilled_student_comes_nearer_to_its_teacher_and_writes_no_more_than_it_may(of, folder, tmp_path):
    other = tiny_folder(tmp_path / "other", seed=1, initializer_range=0.4)
    asked, recipe = rows().assign(n_tokens=50), of(training={"n_epochs": 12}, tailoring={"max_new_tokens": 8})
    result = tune_distilled(recipe, str(other), asked, 3, tmp_path / "student", seed=1)
    apart = curve(result, "loss")
    assert result["steps"] == len(apart) == 36 and np.mean(apart[-6:]) < 0.5 * np.mean(apart[:6])
    # Four prompts a step, at most eight tokens each.
    assert 36 * 4 <= result["n_tokens"] <= 36 * 4 * 8
    few = tune_distilled(recipe, str(other), asked.assign(n_tokens=3), 3, tmp_path / "few", seed=1)
    assert 3 * 14 * 12 <= few["n_tokens"] < 3 * 14 * 12 + 4 * 8 and few["steps"] < 36
    # The teacher is what makes the difference, not the training.
    alike = tune_distilled(of(training={"n_epochs": 1}), str(folder), asked, 3, tmp_path / "alike", seed=1)
    assert curve(alike, "loss")[0] == pytest.approx(0, abs=1e-6) and max(curve(alike, "loss")) < 1e-3


def test_a_teacher_with_other_tokens_distils_nobody(of, folder, tmp_path):
    other = tiny_folder(tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"] = {
        "u" + word[1:] if word == "w7" else word: n for word, n in words["model"]["vocab"].items()
    }
    (other / "tokenizer.json").write_text(json.dumps(words))
    recipe = of(evaluation={"arms": ["base", "untailored", "tailored", "distilled"]})
    check(recipe)
    recipe.models.students["s"] = str(other)
    with pytest.raises(ModelError, match=r"have other tokens \(2 of \d+, such as 'u7'\); take models of one family"):
        check(recipe)


def test_sft_learns_in_the_steps_asked_for_from_the_batches_dealt(of, folder, tmp_path, monkeypatch):
    from transformers import Trainer

    trained: list[int] = []
    step = Trainer.training_step

    def counted(self, model, inputs, *args, **kwargs):
        trained.append(int((inputs["labels"] != -100).sum()))
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", counted)
    result = tune_sft(of(), str(folder), rows(), 3, tmp_path, seed=1)
    losses = curve(result, "loss")
    assert result["steps"] == len(trained) == 12 and losses[-1] < 0.7 * losses[0]
    likelier = [
        log_probability(tmp_path, row.prompt, row.completion) - log_probability(folder, row.prompt, row.completion)
        for row in rows(4).itertuples()
    ]
    assert min(likelier) > 1
    longest = max(completion_tokens(tiny_tokenizer(), rows()["completion"].tolist()))
    assert sum(trained) == result["n_tokens"] and max(trained) - min(trained) <= longest


@pytest.mark.parametrize("section", ["alignment", "training"])
def test_a_text_that_would_lose_its_end_is_refused(of, folder, tmp_path, seen, section):
    tokenizer = loading.load_tokenizer(folder)
    texts = pd.concat([pairs()["chosen"], pairs()["rejected"]]) if section == "alignment" else rows()["completion"]
    asked = pd.concat([pairs()["prompt"]] * 2) if section == "alignment" else rows()["prompt"]
    whole = [loading.render(tokenizer, prompt) + text for prompt, text in zip(asked, texts, strict=True)]
    longest = max(len(ids) + 1 for ids in tokenizer(whole)["input_ids"])

    def tune(max_length: int) -> None:
        recipe = of(**{section: {"max_length": max_length}})
        if section == "alignment":
            tune_dpo(recipe, pairs(), tmp_path, 1)
        else:
            tune_sft(recipe, str(folder), rows(), 3, tmp_path, 1)

    said = rf"{section}\.max_length is {longest - 1} tokens, but one example has {longest}; raise it"
    with pytest.raises(ModelError, match=said):
        tune(longest - 1)
    assert not seen and not any(tmp_path.iterdir())
    tune(longest)
    assert len(seen) == 1


def zero_the_middle(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 512] = bytes(512)
    path.write_bytes(data)


class Killed(BaseException):
    pass


def die_after(monkeypatch, n_checkpoints: int):
    """Make training stop dead once so many checkpoints are written; return what takes that back."""
    from transformers.trainer_callback import CallbackHandler

    save, left = CallbackHandler.on_save, [n_checkpoints]

    def dying(self, *args, **kwargs):
        control = save(self, *args, **kwargs)
        left[0] -= 1
        if not left[0]:
            raise Killed
        return control

    monkeypatch.setattr(CallbackHandler, "on_save", dying)
    return lambda: monkeypatch.setattr(CallbackHandler, "on_save", save)


@pytest.mark.parametrize(("stage", "damaged"), [("dpo", False), ("sft", False), ("sft", True), ("distilled", False)])
def test_killed_and_resumed_gives_the_weights_of_an_unbroken_training(
    of, folder, tmp_path, monkeypatch, stage, damaged
):
    recipe = of(alignment={"save_steps": 3}, training={"save_steps": 3})

    def train(work):
        if stage == "dpo":
            return tune_dpo(recipe, pairs(), work, seed=1)
        if stage == "distilled":
            return tune_distilled(recipe, str(other), rows().assign(n_tokens=100), 3, work, seed=1)
        return tune_sft(recipe, str(folder), rows(), 3, work, seed=1)

    other = tiny_folder(tmp_path / "other", seed=1, initializer_range=0.05) if stage == "distilled" else folder
    whole = tuned(tmp_path / "whole", "k", train)
    revive = die_after(monkeypatch, 2)
    with pytest.raises(Killed):
        tuned(tmp_path / "broken", "k", train)
    assert not (tmp_path / "broken").exists()
    checkpoints = tmp_path / "broken.k.unfinished" / "checkpoints"
    assert (checkpoints / "checkpoint-6").is_dir()
    # Killed while writing the next one: parts of it are there, cut short.
    (checkpoints / "checkpoint-9").mkdir()
    (checkpoints / "checkpoint-9" / "optimizer.pt").write_bytes(b"")
    (checkpoints / "checkpoint-12").mkdir()
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
        (checkpoints / "checkpoint-12" / name).write_bytes(b"{")
    revive()
    if damaged:
        zero_the_middle(checkpoints / "checkpoint-6" / "model.safetensors")
    from transformers import Trainer

    steps, step = [], Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda self, *a, **k: steps.append(1) or step(self, *a, **k))
    resumed = tuned(tmp_path / "broken", "k", train)
    assert len(steps) == (9 if damaged else 6), "it did not go on from the last whole checkpoint"
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    assert loading.fingerprint_model(tmp_path / "whole") == loading.fingerprint_model(tmp_path / "broken")
    assert (resumed.steps, resumed.n_tokens, resumed.curve) == (whole.steps, whole.n_tokens, whole.curve)
    assert not checkpoints.exists() and not (tmp_path / "broken" / "checkpoints").exists()


def test_damaged_weights_are_not_loaded_not_copied_and_trained_again(runs, tmp_path):
    def train(work):
        trained.append(work)
        (work / "model.safetensors").write_bytes(bytes(range(256)) * 8)
        return {"curve": [], "n_tokens": 1, "steps": 1}

    trained, here, other = [], runs / "a" / "students" / "m", runs / "b" / "students" / "m"
    tuned(here, "k", train)
    assert tuned(other, "k", train).folder == other and len(trained) == 1, "it was copied"
    for path in (here, other):
        zero_the_middle(path / "model.safetensors")
        with pytest.raises(ModelError) as error:
            loading.resolve(path)
        assert "model.safetensors is not what was written" in str(error.value) and "trains this model anew" in str(
            error.value
        )
    with pytest.warns(UserWarning, match="not what was written.*It is not used here"):
        tuned(other, "k", train)
    assert len(trained) == 2 and loading.resolve(other) == other
    with pytest.warns(UserWarning, match="It is not used here"):
        tuned(here, "k", train)
    assert len(trained) == 2 and loading.resolve(here) == here, "it was copied from where it is whole"
    (here / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="model.safetensors is missing"):
        loading.fingerprint_model(here)


def test_a_model_trained_by_an_earlier_workbench_is_taken_as_it_is(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "tuned.json").write_text('{"key": "k", "curve": [], "n_tokens": 1, "steps": 2}')
    assert tuned(tmp_path / "m", "k", None).steps == 2 and loading.resolve(tmp_path / "m") == tmp_path / "m"


def test_killed_without_checkpoints_begins_again_and_ends_the_same(of, folder, tmp_path, monkeypatch):
    def train(work):
        return tune_sft(of(), str(folder), rows(), 3, work, seed=1)

    def killed(work):
        train(work)
        raise Killed

    tuned(tmp_path / "whole", "k", train)
    with pytest.raises(Killed):
        tuned(tmp_path / "broken", "k", killed)
    tuned(tmp_path / "broken", "k", train)
    assert same_weights(tmp_path / "whole", tmp_path / "broken")


def test_a_trained_folder_is_reused_for_its_key_alone(tmp_path):
    calls = []

    def train(work):
        calls.append(work)
        (work / "weights").write_text(str(len(calls)))
        return {"curve": [{"step": 1, "metric": "loss", "value": 0.5}], "n_tokens": 7, "steps": 1}

    first = tuned(tmp_path / "student", "a", train)
    assert tuned(tmp_path / "student", "a", train) == first and len(calls) == 1
    assert (first.n_tokens, first.steps, first.curve[0]["value"]) == (7, 1, 0.5)
    tuned(tmp_path / "student", "b", train)
    assert (tmp_path / "student" / "weights").read_text() == "2" and len(calls) == 2
    assert json.loads((tmp_path / "student" / DONE).read_text())["key"] == "b"


def test_what_another_run_has_trained_for_the_same_key_is_taken_over(runs):
    def train(work):
        (work / "weights").write_text("made")
        return {"curve": [], "n_tokens": 3, "steps": 1}

    def refuse(work):
        raise AssertionError("trained although another run has it")

    first = tuned(runs / "one" / "training" / "students" / "pupil", "k", train)
    second = tuned(runs / "two" / "training" / "students" / "pupil", "k", refuse)
    assert (second.folder / "weights").read_text() == "made" and second.n_tokens == first.n_tokens
    with pytest.raises(AssertionError, match="although"):
        tuned(runs / "two" / "training" / "students" / "another", "k", refuse)
    with pytest.raises(AssertionError, match="although"):
        tuned(runs / "three" / "training" / "students" / "pupil", "other key", refuse)


@pytest.mark.parametrize("full", ["rename", "weights"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch, full):
    from safetensors import SafetensorError

    def train(work):
        if full == "weights":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        (work / "weights").write_text("1")
        return {"curve": [], "n_tokens": 1, "steps": 1}

    def no_space(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        if full == "rename":
            patched.setattr("workbench.models.trl.os.replace", no_space)
        with pytest.raises(RunError, match="No space left on device.*nothing earlier is lost; free some space and run"):
            tuned(tmp_path / "student", "a", train)
    assert not (tmp_path / "student").exists()


LORA = {"rank": 4, "alpha": 8.0}


def adapted(of, folder, work, section: str, **lora) -> dict:
    rate = 3.0e-2 if section == "training" else 1.0e-2
    recipe = of(**{section: {"learning_rate": rate, "lora": LORA | lora}})
    if section == "alignment":
        return tune_dpo(recipe, pairs(), work, seed=1)
    return tune_sft(recipe, str(folder), rows(), 3, work, seed=1)


@pytest.mark.parametrize("section", ["alignment", "training"])
def test_an_adapter_learns_and_is_merged_or_loaded_to_the_same_model(of, folder, tmp_path, section):
    result = adapted(of, folder, tmp_path / "merged", section)
    adapted(of, folder, tmp_path / "apart", section, merge=False)
    losses = curve(result, "loss")
    assert losses[-1] < 0.9 * losses[0]
    merged, apart = (loading.load(tmp_path / name, device="cpu") for name in ("merged", "apart"))
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert not (tmp_path / "apart" / "model.safetensors").exists()
    written = json.loads((tmp_path / "apart" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(folder)
    plain = loading.load(folder, device="cpu").model
    assert merged.model.state_dict().keys() == apart.model.state_dict().keys() == plain.state_dict().keys()
    ids = torch.tensor([[1, 8, 9, 20]])
    with torch.inference_mode():
        assert torch.allclose(merged.model(ids).logits, apart.model(ids).logits, atol=1e-4)
        assert not torch.allclose(merged.model(ids).logits, plain(ids).logits, atol=1e-2)
    before, after = weights(folder), weights(tmp_path / "merged")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("_proj" in name for name in moved), "only the linear layers are to move"
    engines = [TransformersEngine(str(tmp_path / name), device="cpu") for name in ("merged", "apart")]
    asked = [[Request(loading.render(engine.tokenizer, "w20 w3 w4"))] for engine in engines]
    assert engines[0].generate(asked[0], Decoding(8)) == engines[1].generate(asked[1], Decoding(8))


def test_dpo_with_an_adapter_holds_no_second_model_and_starts_at_the_teacher(of, folder, tmp_path, seen):
    adapted(of, folder, tmp_path, "alignment", targets=["q_proj", "v_proj"], dropout=0.1, merge=False)
    trainer = seen[0]
    assert trainer.ref_model is None and list(trainer.model.peft_config) == ["default"]
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained)
    for pair, row in zip(pairs().itertuples(), trainer.train_dataset, strict=True):
        assert row["ref_chosen_logps"] == pytest.approx(log_probability(folder, pair.prompt, pair.chosen), rel=1e-4)


def test_an_adapter_in_training_is_killed_and_resumed(of, folder, tmp_path, monkeypatch):
    def train(work):
        recipe = of(training={"learning_rate": 3.0e-2, "lora": LORA, "save_steps": 3})
        return tune_sft(recipe, str(folder), rows(), 3, work, seed=1)

    whole = tuned(tmp_path / "whole", "k", train)
    revive = die_after(monkeypatch, 2)
    with pytest.raises(Killed):
        tuned(tmp_path / "broken", "k", train)
    revive()
    resumed = tuned(tmp_path / "broken", "k", train)
    assert same_weights(tmp_path / "whole", tmp_path / "broken") and resumed.curve == whole.curve


def test_layers_that_are_not_there_are_named_before_training(of, folder, tmp_path, seen):
    said = r"training\.lora\.targets names 'query', which is no linear layer of the model; it has down_proj, gate_proj"
    with pytest.raises(ModelError, match=said):
        adapted(of, folder, tmp_path, "training", targets=["q_proj", "query"])
    assert not seen and not any(tmp_path.iterdir())


def test_a_model_that_is_an_adapter_can_be_trained_on(of, folder, tmp_path):
    first = tmp_path / "first"
    adapted(of, folder, first, "training", merge=False)
    tune_sft(of(training={"lora": LORA | {"merge": False}}), str(first), rows(), 3, tmp_path / "second", seed=1)
    tune_sft(of(training={"lora": {}}), str(first), rows(), 3, tmp_path / "full", seed=1)
    before = log_probability(first, "w20 w3", " w3 w1")
    assert log_probability(tmp_path / "second", "w20 w3", " w3 w1") > before
    assert log_probability(tmp_path / "full", "w20 w3", " w3 w1") > before
    assert (tmp_path / "full" / "model.safetensors").exists()


def test_recipes_without_an_adapter_keep_their_keys(of):
    plain = of()
    assert "lora" not in plain.section_json("alignment", "training") and "lora" not in plain.to_yaml()
    assert of(training={"lora": {"rank": 0}}).section_json("training") == plain.section_json("training")
    changed = of(training={"lora": LORA}).section_json("training")
    assert '"lora":{"alpha":8.0,"dropout":0.0,"merge":true,"rank":4,"targets":[]}' in changed


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"alpha": 8.0}, "alpha is set, but rank 0 trains all weights; set rank"),
        ({"rank": -1}, "greater than or equal to 0"),
        ({"rank": 4, "targets": ["q_proj", "q_proj"]}, "targets must all differ"),
        ({"rank": 4, "dropout": 1.0}, "less than 1"),
        ({"rank": 4, "merge": "yes"}, "valid boolean"),
    ],
)
def test_impossible_adapters_are_refused(of, lora, said):
    with pytest.raises(ValueError, match=said):
        of(training={"lora": lora})


def test_training_leaves_signs_of_life_with_its_curve(of, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    progress.begin(tmp_path / "alignment")
    result = tune_dpo(of(alignment={"n_epochs": 1}), pairs(), tmp_path / "ada-tailored.0123.unfinished", 1)
    (sign,) = progress.read(tmp_path / "alignment")
    progress.end()
    assert sign["steps"] == [result["steps"]] * 2 and list(sign["curve"]) == ["ada-tailored"]
    kept = [[p["step"], p["metric"], p["value"]] for p in result["curve"] if p["metric"] in progress.METRICS]
    assert sorted(sign["curve"]["ada-tailored"]) == sorted(kept)


@pytest.mark.parametrize("section", ["alignment", "training"])
def test_a_training_of_one_step_moves_the_weights(of, folder, tmp_path, section):
    """A warm-up begins at rate 0: rounded up to one step, it once was the whole training."""
    recipe = of(**{section: {"n_epochs": 1, "batch_size": 100}})
    result = (
        tune_dpo(recipe, pairs(), tmp_path, 1)
        if section == "alignment"
        else tune_sft(recipe, str(folder), rows(), 1, tmp_path, 1)
    )
    assert result["steps"] == 1 and curve(result, "moved")[0] > 0.5 and not same_weights(folder, tmp_path)


def test_a_training_that_moves_nothing_is_refused(of, folder, tmp_path):
    recipe = of(training={"learning_rate": 1.0e-12}, models={"dtype": "bfloat16"})
    with pytest.raises(ModelError, match=r"moved none of the weights.*bfloat16.*training\.learning_rate 1e-12; raise"):
        tune_sft(recipe, str(folder), rows(), 3, tmp_path, 1)
    assert not (tmp_path / "model.safetensors").exists()


def test_models_used_in_bfloat16_are_trained_in_float32(of, folder, tmp_path, seen):
    recipe = of(models={"dtype": "bfloat16"})
    loaded = list(trl._load(recipe, str(folder), recipe.training).model.parameters())
    tune_sft(recipe, str(folder), rows(), 3, tmp_path, 1)
    assert seen[0].args.bf16 and {p.dtype for p in loaded} == {torch.float32}
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.bfloat16}


@pytest.mark.parametrize("odd", [{"temperature": 0.9, "top_p": 0.6}, {"early_stopping": True}, {"pad_token_id": -1}])
def test_settings_of_generation_that_transformers_will_not_write_stop_no_training(of, folder, tmp_path, odd):
    source = shutil.copytree(folder, tmp_path / "odd")
    path = source / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    result = tune_sft(of(), str(source), rows(), 3, tmp_path / "trained", 1)
    saved = loading.load(tmp_path / "trained", device="cpu").model.generation_config
    assert result["steps"] and saved.eos_token_id in (2, [2])


def test_an_end_token_is_taken_from_the_model_or_missed_before_the_work(of, folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "endless")
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    recipe = of(models={"teacher": str(source), "students": {"s": str(source)}})
    assert completion_tokens(loading.load_tokenizer(source), ["w1"]) == [2]
    check(recipe)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps(values | {"eos_token_id": None}))
    with pytest.raises(ModelError, match="names no end token.*eos_token in its tokenizer_config.json"):
        check(recipe)


def test_a_template_that_fails_is_said_before_the_work(of, folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "strict")
    (source / "chat_template.jinja").write_text("{{ raise_exception('no user turns') }}")
    with pytest.raises(ModelError, match=r"chat template of .*strict fails \(no user turns\); mend or remove it"):
        check(of(models={"students": {"s": str(source)}}))
