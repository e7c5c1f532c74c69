import gc
import json
import re
import shutil
import sys
import weakref
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models import loading
from workbench.models.loading import fingerprint_model, load, load_tokenizer, render, render_shared, resolve
from workbench.runs.errors import ModelError

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<reply>", *(f"w{n}" for n in range(26))]
TEMPLATE = "{{ bos_token }}{% for turn in messages %} <user> {{ turn.content }}{% endfor %} <reply>"


def tiny_tokenizer(template: str | None = None, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=template,
    )


def tiny_folder(folder, seed: int = 0, **config):
    """Save a random model whose weights are so large that rounding decides no argmax."""
    torch.manual_seed(seed)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(vocab_size=len(WORDS), max_position_embeddings=96, initializer_range=0.4, pad_token_id=0)
    LlamaForCausalLM(LlamaConfig(**(shape | dict(bos_token_id=1, eos_token_id=2) | config))).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "student")


def test_a_saved_model_loads_whole(folder):
    loaded = load(folder, device="cpu")
    assert loaded.model.dtype == torch.float32 and not loaded.model.training
    assert loaded.fingerprint == fingerprint_model(folder)
    assert load(folder, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
    assert repr(loaded) == f"LoadedModel({folder}, float32 on cpu, fingerprint {loaded.fingerprint})"


def test_collecting_garbage_passes_over_imports_and_takes_models(folder, monkeypatch):
    gc.unfreeze()
    monkeypatch.setattr(loading, "_n_imported", 0)
    monkeypatch.setattr(loading, "_alive", weakref.WeakSet())
    first = load(folder)
    assert gc.get_freeze_count() > 100_000 > len(gc.get_objects())
    gc.unfreeze()
    monkeypatch.setattr(loading, "_n_imported", 0)
    load(folder)
    assert gc.get_freeze_count() == 0, f"{first} would never be freed"
    model = load(folder).model
    model.itself = [model]  # so that only a collection finds it
    gone = weakref.ref(model)
    del model
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_a_relative_folder_is_under_the_project(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.models.loading.project_root", lambda: tmp_path)
    assert resolve("student") == folder


def test_a_missing_folder_says_where_and_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere does not exist; run `make pocket`"):
        load(tmp_path / "nowhere")


def test_an_id_that_cannot_be_fetched_is_one_sentence(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network\nhere")

    (tmp_path / "data").mkdir()
    monkeypatch.setattr("workbench.models.loading.project_root", lambda: tmp_path)
    monkeypatch.setattr("workbench.models.loading.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"Model some/model is no folder under .* \(no network\); correct the name"):
        load("some/model")
    with pytest.raises(ModelError, match="make pocket"):
        load("data/model")


def test_pickled_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match=r"as a pickle \(pytorch_model.bin\).*only safetensors are loaded"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load(folder)


@pytest.mark.parametrize("damage", ["truncate", "no tokenizer", "no config", "half the weights"])
def test_a_damaged_folder_is_one_sentence(folder, damage):
    weights = folder / "model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif damage == "no config":
        (folder / "config.json").write_text("{")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="build|restore") as caught:
        load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_what_can_change_the_output(folder, tmp_path):
    before = fingerprint_model(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("A card.")
    (copy / "trainer_state.json").write_text("{}")
    assert fingerprint_model(copy) == before
    seen = {before}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (copy / name).write_text((copy / name).read_text() + "\n")
        seen.add(fingerprint_model(copy))
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    seen.add(fingerprint_model(copy))
    tiny_folder(copy, seed=1)
    seen.add(fingerprint_model(copy))
    assert len(seen) == 7


def test_every_file_that_is_read_of_a_model_counts_in_its_fingerprint(folder):
    """All names that transformers gives to files are there: one that it begins to read is noticed here."""
    known = {name: text for name, text in vars(transformers.utils).items() if name.endswith(("_NAME", "_FILE"))}
    decoys = {*known.values(), "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"}
    for name in decoys - {"adapter_config.json"}:
        if not (folder / name).exists() and re.fullmatch(r"\w+\.(json|jinja|txt)", name):
            (folder / name).write_text({".json": "{}", ".jinja": TEMPLATE, ".txt": ""}[Path(name).suffix])
    render(load(folder, device="cpu").tokenizer, "w1")  # imports read files too
    opened: set[str] = set()
    sys.addaudithook(lambda event, given: opened.add(str(given[0])) if event == "open" and watched else None)
    watched = [True]
    render(load(folder, device="cpu").tokenizer, "w1")
    watched.clear()
    inside = (Path(path) for path in opened if path.startswith(str(folder)))
    names = {path.relative_to(folder).as_posix() for path in inside if path.is_file()} - {loading.DONE}
    assert {"config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    # These are read by Rust, which tells nobody.
    for name in sorted(names | {"model.safetensors", "tokenizer.json"}):
        before, was = fingerprint_model(folder), (folder / name).read_bytes()
        (folder / name).write_bytes(was + b"\n")
        assert fingerprint_model(folder) != before, f"{name} is read and does not count"
        (folder / name).write_bytes(was)
        assert fingerprint_model(folder) == before


def test_an_adapter_is_its_own_model(folder, tmp_path):
    peft = pytest.importorskip("peft")
    base = load(folder, device="cpu")
    tuned = peft.get_peft_model(base.model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapter = tmp_path / "adapter"
    tuned.save_pretrained(adapter)
    base.tokenizer.save_pretrained(adapter)
    loaded = load(adapter, device="cpu")
    ids = torch.tensor([[1, 8, 9]])
    with torch.inference_mode():
        assert torch.allclose(loaded.model(ids).logits, tuned(ids).logits, atol=1e-5)
        assert not torch.allclose(loaded.model(ids).logits, load(folder, device="cpu").model(ids).logits)
    before = loaded.fingerprint
    tiny_folder(folder, seed=1)
    assert fingerprint_model(adapter) != before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("no base", "names no base; give base_model_name_or_path"),
        ("base gone", "The base of adapter .* is not here: Model folder .*nowhere does not exist"),
        ("another shape", "does not fit its base .*; name the model that it was trained on"),
        ("another family", r"does not fit its base .*q_proj"),
        ("half of it", "does not fit its base .*1 of its weights fit nowhere or are missing, first .*lora_A"),
        ("another kind", "is of the kind IA3; only LORA is read, so merge it first"),
        ("not JSON", "names no base"),
    ],
)
def test_a_wrong_adapter_is_one_sentence(folder, tmp_path, damage, said):
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file, save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    base, adapter = load(folder, device="cpu"), tmp_path / "adapter"
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    if damage == "another kind":
        config = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    peft.get_peft_model(base.model, config).save_pretrained(adapter)
    base.tokenizer.save_pretrained(adapter)
    said_by = adapter / "adapter_config.json"
    written = json.loads(said_by.read_text())
    if damage in ("no base", "base gone"):
        written["base_model_name_or_path"] = None if damage == "no base" else str(tmp_path / "nowhere")
        said_by.write_text(json.dumps(written))
    elif damage == "not JSON":
        said_by.write_text("{")
    elif damage == "another shape":
        tiny_folder(folder, hidden_size=48)
    elif damage == "another family":
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=len(WORDS))).save_pretrained(folder)
    elif damage == "half of it":
        weights = load_file(adapter / "adapter_model.safetensors")
        del weights[next(name for name in weights if "lora_A" in name)]
        save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=said) as caught:
        load(adapter, device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_rendering_uses_the_chat_template_where_there_is_one():
    assert render(tiny_tokenizer(), "w1 w2") == "w1 w2"
    assert render(tiny_tokenizer(TEMPLATE), "w1 w2") == "<bos> <user> w1 w2 <reply>"


def test_a_start_token_is_not_doubled():
    tokenizer = tiny_tokenizer(TEMPLATE, adds_bos=True)
    ids = tokenizer(render(tokenizer, "w1"))["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "<user>", "w1", "<reply>"]


def test_the_shared_beginning_ends_with_the_prefix():
    assert render_shared(tiny_tokenizer(), "w1 ", "w2") == ("w1 w2", "w1 ")
    assert render_shared(tiny_tokenizer(TEMPLATE), "w1 ", "w2") == ("<bos> <user> w1 w2 <reply>", "<bos> <user> w1 ")
    assert render_shared(tiny_tokenizer(TEMPLATE.replace("content", "content | upper")), "w1 ", "w2")[1] == ""
    assert render_shared(tiny_tokenizer(), "", "w2") == ("w2", "")


@pytest.mark.parametrize("named", ["sub/w.safetensors", "../w.safetensors", "/tmp/w.safetensors", 3])
def test_an_index_that_names_weights_elsewhere_is_refused(tmp_path, named):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": named}}))
    for read in (fingerprint_model, load):
        with pytest.raises(ModelError, match=r"index\.json names weights that are no files of this folder"):
            read(folder)


def test_an_index_of_files_beside_it_is_read(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    before = fingerprint_model(folder)
    names = {"weight_map": {"lm_head.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(names))
    assert fingerprint_model(folder) != before


LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


def test_a_chat_template_that_does_not_come_to_an_end_is_refused(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "m")
    monkeypatch.setattr(loading, "TEMPLATE_S", 0.2)
    (folder / "chat_template.jinja").write_text(LOOPS)
    with pytest.raises(ModelError, match="chat template in .* does not come to an end within 0.2 s"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(ModelError, match=r"chat template of .* fails \(no\); mend or remove it"):
        load_tokenizer(folder)
