"""Trainings outside this process, for real: Unsloth on the CPU, and two processes that accelerate launches."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import psutil
import pytest
import torch
from conftest import PROJECT, RECIPE, not_run
from test_loading import TEMPLATE, tiny_folder, tiny_tokenizer
from test_trl import LORA, curve, pairs, rows, weights

from workbench.models import backend_process, backends, trl
from workbench.models.trl import tuned
from workbench.runs import progress
from workbench.runs.errors import ModelError
from workbench.runs.recipe import Recipe, parse_yaml
from workbench.runs.workers import one_thread

TWO = {"launcher": "accelerate", "launcher_config": "notebooks/recipes/accelerate/two_cpu_processes.yaml"}
UNSLOTH = {"backend": "unsloth"}
# Which stage, how many rows, and what makes the training another than that of this process.
JOBS = {
    "unsloth, SFT": ("training", 14, {"training": UNSLOTH}),
    "unsloth, DPO with LoRA": ("alignment", 12, {"alignment": UNSLOTH | {"lora": LORA}}),
    # Three batches of five rows: in one of them, the second process has nothing to do.
    "two processes, SFT": ("training", 5, {"compute": TWO}),
    "two processes, DPO": ("alignment", 11, {"compute": TWO}),
}
AGREE = 1e-5  # of weights of about one half, after 12 steps of a rate of 0.01 or 0.003


def recipe_of(folder, **sections) -> Recipe:
    values = parse_yaml(RECIPE)
    values["models"] = {"teacher": str(folder), "students": {"s": str(folder)}}
    values["alignment"] |= {"learning_rate": 3.0e-3, "n_epochs": 4, "max_length": 40}
    values["training"] |= {"learning_rate": 1.0e-2, "n_epochs": 4, "max_length": 40}
    values["compute"] = {"device": "cpu"}
    for section, changes in sections.items():
        values[section].update(changes)
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "tiny", initializer_range=0.05)
    tiny_tokenizer(TEMPLATE, adds_bos=True).save_pretrained(folder)
    return folder


def trained(module, folder, work, stage: str, n: int, recipe: Recipe) -> dict:
    work.mkdir()
    if stage == "alignment":
        return module.tune_dpo(recipe, pairs(n), work, 1)
    return module.tune_sft(recipe, str(folder), rows(n), 3, work, 1)


@pytest.fixture(scope="module")
def apart(folder, tmp_path_factory):
    """What every job returned and where its weights are; two at a time, since each spends its time on starting."""
    if not backends.unsloth_version():
        not_run("unsloth: make unsloth")
    works = {name: tmp_path_factory.mktemp("apart") / "work" for name in JOBS}

    def run(name: str) -> dict:
        stage, n, changes = JOBS[name]
        return trained(backends, folder, works[name], stage, n, recipe_of(folder, **changes))

    with one_thread(), ThreadPoolExecutor(2) as pool:
        return {name: (result, works[name]) for name, result in zip(JOBS, pool.map(run, JOBS), strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_training_apart_learns_what_one_in_this_process_learns(name, apart, folder, tmp_path):
    (stage, n, changes), (result, work) = JOBS[name], apart[name]
    same = {section: {k: v for k, v in change.items() if k == "lora"} for section, change in changes.items()}
    with one_thread():
        here = trained(trl, folder, tmp_path / "here", stage, n, recipe_of(folder, **same))
    assert (result["steps"], result["n_tokens"]) == (here["steps"], here["n_tokens"]) == (12, here["n_tokens"])
    losses = curve(result, "loss")
    assert losses == pytest.approx(curve(here, "loss"), abs=AGREE) and losses[-1] < 0.95 * losses[0]
    before, after, expected = weights(folder), weights(work), weights(tmp_path / "here")
    assert after.keys() == expected.keys()
    assert max(float((after[key] - expected[key]).abs().max()) for key in expected) < AGREE
    assert max(float((after[key] - before[key]).abs().max()) for key in expected) > 1000 * AGREE
    assert result.get("trained by", "").startswith("unsloth 20") == name.startswith("unsloth")


def test_unsloth_stays_in_its_own_process(apart):
    assert "unsloth" not in sys.modules and importlib.util.find_spec("unsloth") is None
    assert not (PROJECT / "unsloth_compiled_cache").exists()


def test_what_goes_wrong_in_another_process_is_said_here(folder, tmp_path):
    recipe = recipe_of(folder, compute=TWO, training={"max_length": 5})
    with pytest.raises(ModelError, match=r"training\.max_length is 5 tokens, but one example has \d+; raise it"):
        tuned(tmp_path / "student", "k", lambda work: backends.tune_sft(recipe, str(folder), rows(), 3, work, 1))
    assert not (tmp_path / "student").exists()


def test_a_process_that_dies_leaves_its_last_words(folder, tmp_path, monkeypatch):
    dying = [sys.executable, "-c", "print('first'); raise SystemExit('out of luck')"]
    monkeypatch.setattr(backends, "_command", lambda _: dying)
    recipe = recipe_of(folder, training=UNSLOTH)
    with pytest.raises(ModelError, match=r"of the training ended with status 1 \(first \| out of luck\); what"):
        backends.tune_sft(recipe, str(folder), rows(), 3, tmp_path, 1)


def test_a_training_ends_with_the_run_that_started_it(tmp_path):
    """Its parent is a process that is killed; what it waits for in place of a training would take an hour."""
    script = (
        "import json, subprocess, sys; from workbench.runs import progress as heartbeat; folder = sys.argv[1]\n"
        "open(folder + '/job.json', 'w').write(json.dumps({'backend': 'trl', 'parent': heartbeat.this_process()}))\n"
        "wait = 'import sys, time, pathlib; from workbench.models import backend_process as p;'\n"
        "wait += 'p._train = lambda *_: time.sleep(3600); p.main(pathlib.Path(sys.argv[1]))'\n"
        "child = subprocess.Popen([sys.executable, '-c', wait, folder]); print(child.pid, flush=True); child.wait()"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(2)
    assert child.is_running()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    child.wait(timeout=30)


def test_a_sign_of_a_process_tells_whether_it_is_there():
    assert progress.is_there(progress.this_process())
    assert progress.is_there(progress.this_process() | {"born": 0.0}) is False


CONFIGS = {
    "num_processes: [": r"cannot be used \(line \d+: ",
    "distributed_type: MULTI_GPU": "it does not say num_processes",
}


@pytest.mark.parametrize("content", CONFIGS)
def test_a_launcher_config_that_cannot_be_used_is_named_before_the_work(recipe_values, tmp_path, content):
    path = tmp_path / "config.yaml"
    recipe_values["compute"] = TWO | {"launcher_config": str(path)}
    with pytest.raises(ModelError, match=r"config\.yaml cannot be used \(No such file or directory\); name"):
        backends.check(Recipe.model_validate(recipe_values))
    path.write_text(content)
    with pytest.raises(ModelError, match=CONFIGS[content]):
        backends.check(Recipe.model_validate(recipe_values))


def test_what_is_not_here_is_said_before_the_work(recipe_values, monkeypatch):
    recipe_values["training"] |= UNSLOTH
    monkeypatch.setattr(backends, "unsloth_version", lambda: "")
    with pytest.raises(ModelError, match=r"training\.backend unsloth is not installed; run: make unsloth"):
        backends.check(Recipe.model_validate(recipe_values))
    recipe_values["training"] |= {"backend": "trl", "lora": LORA | {"load_in_4bit": True}}
    recipe = Recipe.model_validate(recipe_values)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"training\.lora\.load_in_4bit needs a GPU, and there is none to use here"):
        backends.check(recipe)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs bitsandbytes, which is not installed; run: make bitsandbytes"):
        backends.check(recipe)


def test_every_backend_says_how_it_is_and_how_to_install_it(monkeypatch):
    said = backends.backends_in_words()
    assert list(said) == ["trl", "unsloth", "QLoRA", "accelerate"] and "1.14.2" in said["trl"]
    monkeypatch.setattr(backends, "unsloth_version", lambda: "")
    assert backends.backends_in_words()["unsloth"] == "not installed; to install: make unsloth"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"training": UNSLOTH | {"packing": True}}, "packing is for backend trl"),
        ({"training": UNSLOTH, "compute": TWO}, "training.backend unsloth trains in one process"),
        ({"compute": TWO | {"launcher": "none"}}, "launcher_config is for the launcher accelerate, but there is none"),
        ({"training": {"lora": {"load_in_4bit": True}}}, "load_in_4bit is set, but rank 0 trains all weights"),
        ({"training": {"backend": "axolotl"}}, "Input should be 'trl' or 'unsloth'"),
    ],
)
def test_means_that_do_not_go_together_are_refused(folder, sections, said):
    with pytest.raises(ValueError, match=said):
        recipe_of(folder, **sections)


def test_recipes_without_these_means_keep_their_keys(folder):
    plain = recipe_of(folder).to_yaml()
    assert not {"backend", "packing", "bf16", "micro_batch", "launcher", "4bit"} & set(plain.replace(":", " ").split())
    assert json.loads(recipe_of(folder, training=UNSLOTH).section_json("training"))["training"]["backend"] == "unsloth"


def test_one_model_at_a_time_is_launched(folder):
    assert recipe_of(folder, compute=TWO | {"workers": 4}).compute.trained_at_once == 1
    assert recipe_of(folder, compute={"workers": 4}).compute.trained_at_once == 4


def test_a_machine_that_does_not_see_the_run_starts_no_process_that_would_have_to(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(backends.cluster, "_apart", True)
    recipe = recipe_of(folder, training=UNSLOTH)
    with pytest.raises(ModelError, match="training.backend unsloth trains only on machines that see the run's folder"):
        backends.tune_sft(recipe, str(folder), pd.DataFrame(columns=["prompt", "completion"]), 1, tmp_path, 0)


def test_unsloth_lies_apart():
    assert backend_process.unsloth_folder().name == "unsloth"
    assert str(backend_process.unsloth_folder()) not in sys.path
