"""What a GPU is needed for, on a randomly initialised Llama of a billion parameters: pytest -m gpu -s

Deselected elsewhere (addopts in pyproject.toml). Each test prints tokens per second and peak memory.
"""

import gc
import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RECIPE, not_run
from test_loading import TEMPLATE, WORDS, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.models import loading
from workbench.models.engine import Decoding, Request
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.trl import tune_dpo, tune_sft
from workbench.runs.errors import ModelError
from workbench.runs.recipe import Recipe, parse_yaml
from workbench.signals.influence import measure
from workbench.signals.warm_up import WarmUp, warm_up
from workbench.tasks.contamination import Guard

pytestmark = pytest.mark.gpu

SHAPE = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32)
SHAPE |= dict(num_key_value_heads=8, vocab_size=32_000, max_position_embeddings=2048)
DEVICE = "cuda"
LORA = {"rank": 16, "alpha": 32.0}
N_WORDS = 200  # of a prompt; a word is a token
GIB = 2**30


@pytest.fixture(scope="module")
def billion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "billion"
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    print(f"\n{sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion parameters")
    model.save_pretrained(folder)
    tiny_tokenizer(TEMPLATE, adds_bos=True).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_of(billion):
    def build(**changes) -> Recipe:
        values = parse_yaml(RECIPE)
        values["models"] = {"teacher": str(billion), "students": {"s": str(billion)}, "dtype": "bfloat16"}
        values["alignment"] |= {"learning_rate": 1.0e-3, "n_epochs": 2, "batch_size": 16, "max_length": 1024}
        values["training"] |= {"learning_rate": 2.0e-4, "n_epochs": 2, "batch_size": 32, "max_length": 1024}
        values["compute"] = {"device": DEVICE, "workers": 1}
        for section, change in changes.items():
            values[section].update(change)
        return Recipe.model_validate(values)

    return build


@contextmanager
def measured(what: str, n_tokens=None):
    """Print seconds, tokens a second and the peak of memory of what happens inside; yield them as they become known."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seen, began = {"tokens": n_tokens}, time.monotonic()
    yield seen
    torch.cuda.synchronize()
    seconds, seen["peak"] = time.monotonic() - began, torch.cuda.max_memory_allocated() / GIB
    tokens = seen["tokens"] or 0
    print(
        f"\n{what}: {seconds:.1f} s, {tokens:,} tokens, {tokens / seconds:,.0f} a second, peak {seen['peak']:.1f} GiB"
    )


def text(rng, n: int, words=tuple(WORDS[6:])) -> str:
    return " ".join(rng.choice(words, n))


def pairs(n: int) -> pd.DataFrame:
    """Chosen texts are of the first words, rejected ones of the last."""
    rng = np.random.default_rng(0)
    halves = {"chosen": WORDS[6:18], "rejected": WORDS[18:]}
    sides = {side: [f" {text(rng, 60, words)}" for _ in range(n)] for side, words in halves.items()}
    return pd.DataFrame({"prompt": [text(rng, N_WORDS) for _ in range(n)], **sides})


def rows(n: int) -> pd.DataFrame:
    """Texts of unlike lengths, so that padding is waste."""
    rng = np.random.default_rng(1)
    prompts = [text(rng, int(rng.integers(20, N_WORDS))) for _ in range(n)]
    return pd.DataFrame({"prompt": prompts, "completion": [f" {text(rng, 60)} w1" for _ in range(n)]})


def trained_tokens(frame: pd.DataFrame, n_epochs: int) -> int:
    return n_epochs * sum(len(" ".join(row).split()) + 4 for row in frame.itertuples(index=False))


def values(result: dict, metric: str) -> list[float]:
    return [point["value"] for point in result["curve"] if point["metric"] == metric]


def test_it_drafts_and_is_probed(billion):
    engine = TransformersEngine(str(billion), "bfloat16", DEVICE, batch_size=256)
    rng = np.random.default_rng(2)
    drafting = [Request(engine.render(text(rng, N_WORDS)), str(n)) for n in range(256)]
    with measured("drafting, 256 prompts of 200 tokens") as seen:
        drafts = engine.generate(drafting, Decoding(64, 1.0), seed=1)
        seen["tokens"] = sum(one.n_tokens for one in drafts)
    assert len(drafts) == 256 and seen["tokens"] > 256
    shown = [text(rng, N_WORDS) for _ in range(32)]
    rendered = [engine.render_shared(one, f" {text(rng, 30)}") for one in shown for _ in range(32)]
    probes = [Request(prompt, prefix=prefix) for prompt, prefix in rendered]
    with measured("probing, 32 demonstrations x 32 questions") as seen:
        answers = engine.generate(probes, Decoding(16))
        seen["tokens"] = sum(one.n_tokens for one in answers)
    assert len(answers) == len(probes)
    engine.close()


def test_it_is_aligned_by_dpo_with_an_adapter(recipe_of, tmp_path):
    recipe, frame = recipe_of(alignment={"lora": LORA}), pairs(128)
    with measured("DPO with LoRA, 128 pairs x 2", 2 * trained_tokens(frame, 2)):
        result = tune_dpo(recipe, frame, tmp_path, seed=1)
    print(f"loss {values(result, 'loss')[0]:.3f} to {values(result, 'loss')[-1]:.3f}")
    assert values(result, "loss")[0] == pytest.approx(np.log(2), abs=0.02)
    assert values(result, "rewards/margins")[-1] > 0.1
    loaded = loading.load(tmp_path, "bfloat16", DEVICE)
    assert loaded.model.dtype == torch.bfloat16 and not (tmp_path / "adapter_config.json").exists()


MEANS = {
    "plain": {"lora": LORA},
    "bf16 products": {"lora": LORA, "bf16": True},
    "checkpointed": {"lora": LORA, "gradient_checkpointing": True},
    "packed": {"lora": LORA, "packing": True},
    "all weights, bf16 products": {"bf16": True, "learning_rate": 2.0e-5},
}


def test_it_is_trained_in_bf16_by_every_means(recipe_of, billion, tmp_path):
    frame, peaks, losses = rows(256), {}, {}
    for name, means in MEANS.items():
        recipe, work = recipe_of(training=means), tmp_path / name
        work.mkdir()
        with measured(f"SFT, {name}, 256 texts x 2", trained_tokens(frame, 2)) as seen:
            result = tune_sft(recipe, str(billion), frame, 8, work, seed=1)
        peaks[name], losses[name] = seen["peak"], values(result, "loss")
        print(f"loss {losses[name][0]:.3f} to {losses[name][-1]:.3f}")
        assert losses[name][-1] < losses[name][0]
    assert peaks["checkpointed"] < 0.8 * peaks["plain"]
    for name in ("bf16 products", "checkpointed", "packed"):
        assert losses[name] == pytest.approx(losses["plain"], rel=0.05), name


def test_memory_that_runs_out_says_what_to_set_which_changes_no_loss(recipe_of, billion, tmp_path):
    means, frame = {"lora": LORA, "batch_size": 64, "n_epochs": 1}, rows(128)
    for name in ("free", "tight", "parts"):
        (tmp_path / name).mkdir()
    with measured("SFT, batches of 64", trained_tokens(frame, 1)) as seen:
        free = tune_sft(recipe_of(training=means), str(billion), frame, 2, tmp_path / "free", seed=1)
    torch.cuda.empty_cache()
    limit = 0.6 * seen["peak"] * GIB
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(ModelError, match=r"set training\.micro_batch_size to 32 in the recipe"):
            tune_sft(recipe_of(training=means), str(billion), frame, 2, tmp_path / "tight", seed=1)
        parts = recipe_of(training=means | {"micro_batch_size": 16})
        with measured(f"the same in {limit / GIB:.1f} GiB, 16 at once", trained_tokens(frame, 1)) as less:
            tight = tune_sft(parts, str(billion), frame, 2, tmp_path / "parts", seed=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert less["peak"] < limit / GIB
    assert tight["steps"] == free["steps"] and values(tight, "loss") == pytest.approx(values(free, "loss"), rel=0.02)


def test_it_is_aligned_and_trained_in_four_bits(recipe_of, billion, tmp_path):
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        not_run("bitsandbytes")
    qlora = {"lora": LORA | {"load_in_4bit": True}}
    recipe, asked, taught = recipe_of(alignment=qlora, training=qlora), pairs(64), rows(128)
    for kind in ("dpo", "sft"):
        (tmp_path / kind).mkdir()
    with measured("DPO with QLoRA, 64 pairs x 2", 2 * trained_tokens(asked, 2)):
        aligned = tune_dpo(recipe, asked, tmp_path / "dpo", seed=1)
    with measured("SFT with QLoRA, 128 texts x 2", trained_tokens(taught, 2)):
        trained = tune_sft(recipe, str(billion), taught, 4, tmp_path / "sft", seed=1)
    assert values(aligned, "rewards/margins")[-1] > 0 and values(trained, "loss")[-1] < values(trained, "loss")[0]
    assert loading.load(tmp_path / "sft", "bfloat16", DEVICE).model.dtype == torch.bfloat16


N_CANDIDATES, N_REFERENCE = 24, 256


def test_influence_on_a_billion_parameters(recipe_of, billion, tmp_path, runs):
    student = tmp_path / "student"
    student.mkdir()
    tune_sft(recipe_of(training={"lora": LORA | {"merge": False}}), str(billion), rows(32), 1, student, seed=1)
    taught, asked = rows(N_CANDIDATES), rows(N_REFERENCE).assign(question=lambda frame: frame["prompt"])
    warm_up(str(student), rows(32), WarmUp(4, 4, 1e-4), 1, tmp_path / "warmed", DEVICE)
    candidates = taught.assign(draft_id=[str(n) for n in range(len(taught))], item_kind="rationale")
    with measured(f"influence, exact, {N_CANDIDATES} x {N_REFERENCE}") as seen:
        frame = measure(str(student), tmp_path / "warmed", candidates, asked, Guard({}), device=DEVICE)
        seen["tokens"] = int(frame["tokens"].sum())
    assert len(frame) == N_CANDIDATES and np.isfinite(frame["value"]).all() and frame["value"].abs().max() > 0
