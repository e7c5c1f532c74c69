import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_loading import tiny_folder, tiny_tokenizer

from workbench.models.loading import fingerprint_model, load
from workbench.runs.errors import ModelError
from workbench.signals.warm_up import KINDS, STATE, WarmUp, load_warmed, require_fit, save_warmed, trainable, warm_up

ROWS = pd.DataFrame({"prompt": ["w1 w2", "w3", "w4 w5 w6"], "completion": ["w7", "w8 w9", "w1"]})
SETTINGS = WarmUp(n_steps=4, batch_size=2, learning_rate=1e-2, weight_decay=0.1)


def adapter_folder(tmp_path):
    """Save a fresh LoRA adapter on a tiny student."""
    base = tiny_folder(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(load(base, device="cpu").model, config).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="module")
def warm(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("warmed") / "state"
    warm_up(str(student), ROWS, SETTINGS, 0, folder, "cpu")
    return folder


def test_the_state_is_that_of_torchs_adamw_on_the_batch_loss(student, tmp_path):
    settings = WarmUp(n_steps=3, batch_size=3, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1e9)
    curve = warm_up(str(student), ROWS, settings, 0, tmp_path / "state", "cpu").curve
    warmed = load_warmed(tmp_path / "state")
    loaded = load(student, device="cpu")
    adamw = torch.optim.AdamW(loaded.model.parameters(), weight_decay=0.1)
    texts = [(f"{p} {c} <eos>".split(), len(c.split()) + 1) for p, c in ROWS.to_numpy()]
    ids = torch.zeros(3, 6, dtype=torch.long)
    labels = torch.full((3, 6), -100)
    for row, (words, n_counted) in enumerate(texts):
        ids[row, : len(words)] = torch.tensor(loaded.tokenizer.convert_tokens_to_ids(words))
        labels[row, len(words) - n_counted : len(words)] = ids[row, len(words) - n_counted : len(words)]
    for step in (1, 2, 3):
        loss = loaded.model(ids, labels=labels).loss
        adamw.zero_grad()
        loss.backward()
        adamw.param_groups[0]["lr"] = 1e-2 * step / 3
        adamw.step()
        assert curve[step - 1]["value"] == pytest.approx(loss.item(), rel=1e-5)
    assert warmed.steps == 3 and warmed.adamw["learning_rate"] == 1e-2 and warmed.adamw["weight_decay"] == 0.1
    for name, parameter in loaded.model.named_parameters():
        found = [warmed.tensors[kind][name] for kind in KINDS]
        expected = [parameter.detach(), *(adamw.state[parameter][kind] for kind in KINDS[1:])]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_same_warm_up_is_found_and_another_is_not(student, warm, tmp_path):
    before = load_warmed(warm)
    (warm / "mark").touch()
    warm_up(str(student), ROWS, SETTINGS, 0, warm, "cpu")
    assert (warm / "mark").exists()
    warm_up(str(student), ROWS, SETTINGS, 0, tmp_path / "again", "cpu")
    assert load_warmed(tmp_path / "again").fingerprint == before.fingerprint
    warm_up(str(student), ROWS, SETTINGS, 1, tmp_path / "again", "cpu")
    assert load_warmed(tmp_path / "again").fingerprint != before.fingerprint


def test_nothing_is_a_pickle(warm):
    assert {path.name for path in warm.iterdir()} - {"mark"} == {STATE, "tuned.json"}
    assert not (warm / STATE).read_bytes().startswith((b"\x80", b"PK"))


def test_an_adapter_is_all_that_is_trained(tmp_path):
    adapter = adapter_folder(tmp_path)
    model = load(adapter, device="cpu", merged=False).model
    parameters = trainable(model)
    assert parameters and all("lora_" in name for name in parameters)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(parameters)
    warm_up(str(adapter), ROWS, SETTINGS, 0, tmp_path / "state", "cpu")
    warmed = load_warmed(tmp_path / "state")
    assert set(warmed.tensors["weights"]) == set(parameters)
    assert all((warmed.tensors["weights"][name] != parameters[name]).any() for name in parameters)


def test_a_state_that_does_not_fit_is_refused(student, warm, tmp_path):
    warmed, parameters = load_warmed(warm), trainable(load(student, device="cpu").model)
    source = fingerprint_model(student)
    require_fit(warmed, source, parameters)
    with pytest.raises(ModelError, match=r"was made from model \w+, not other; warm this one up\.$"):
        require_fit(warmed, "other", parameters)
    first = min(parameters)
    for kind in KINDS:
        for change in (
            lambda tensors: tensors.pop(first),
            lambda tensors: tensors.update({first: torch.zeros(1)}),
        ):
            tensors = {name: dict(found) for name, found in warmed.tensors.items()}
            change(tensors[kind])
            with pytest.raises(ModelError, match=rf"warmed state's {kind} do not fit the model's \d+ param"):
                require_fit(replace(warmed, tensors=tensors), source, parameters)


def test_a_missing_or_damaged_state_says_what_to_do(warm, tmp_path):
    with pytest.raises(ModelError, match=r"There is no warmed state .*; make it with warm_up\.$"):
        load_warmed(tmp_path)
    save_warmed(load_warmed(warm), tmp_path)
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"is damaged \(.*\); remove its folder, warm up again\.$"):
        load_warmed(tmp_path)


def test_what_cannot_be_warmed_up_is_refused(student, tmp_path):
    with pytest.raises(ModelError, match="warm-up set is empty"):
        warm_up(str(student), ROWS[:0], SETTINGS, 0, tmp_path / "state", "cpu")
    with pytest.raises(ModelError, match=r"The text that begins '' has a prompt of 0 tokens"):
        warm_up(str(student), ROWS.assign(prompt=""), SETTINGS, 0, tmp_path / "state", "cpu")
    wild = WarmUp(n_steps=3, batch_size=1, learning_rate=1e38)
    with pytest.raises(ModelError, match="Loss or gradient of step 2 is not finite"):
        warm_up(str(student), ROWS, wild, 0, tmp_path / "state", "cpu")
