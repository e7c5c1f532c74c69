"""The whole loop on the shapes that real models have: Llama, Gemma, Qwen and Mistral, base and chat."""

import json

import model_shapes
import pandas as pd
import pytest
import torch
from model_shapes import SHAPES, WINDOW, draw_text, ends_of
from small_classroom import STAGES, compute
from transformers import AutoModelForCausalLM
from trl import chat_template_utils as packaged

from workbench.loop import prompts
from workbench.loop.alignment import models_of
from workbench.models import loading
from workbench.models.engine import Decoding, Request
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.trl import encode, tune_dpo
from workbench.runs.run import open_run
from workbench.runs.seeding import stream


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Give the folder of a shape with its task, raised when it is first asked for."""
    made = {}

    def give(shape):
        if shape not in made:
            made[shape] = tmp_path_factory.mktemp(shape)
            model_shapes.write_task(made[shape])
            model_shapes.build(shape, made[shape])
        return made[shape]

    return give


def texts(n: int) -> list[tuple[str, str]]:
    rng = stream(7, "shapes", "asked")
    return [draw_text(rng) for _ in range(n)]


# Every family once; that base and chat models see the same tokens in every stage is asked of all shapes below.
LOOPED = ["llama-chat", "gemma-chat", "qwen-base", "mistral-base"]


@pytest.mark.parametrize("shape", LOOPED)
def test_the_whole_loop_runs(shape, folder_of, runs):
    folder = folder_of(shape)
    run = open_run("loop", model_shapes.recipe_of(folder))
    for stage in STAGES:
        compute(stage, run)
    n_rows = {step: len(run.read(step)) for step in run.steps()}
    assert len(n_rows) == 13 and all(n_rows.values()), n_rows
    assert run.read("questions")["kept"].sum() == 5 and n_rows["drafts"] == 10
    scores = run.read("signals").merge(run.read("drafts"), on="draft_id").groupby("technique")["value"].mean()
    assert scores["short"] > scores["long"], "the preference that is there by construction was not found"
    verdict = json.loads((run.path / "verdict.json").read_text())
    assert verdict["decision"] and verdict["test_set"]["name"] == "items of last_colour"
    student = models_of(run.result("students"), "students")["pupil", "tailored", 1]
    # Training must not take away an end token, or the student would write on behind its answer.
    ends = set(TransformersEngine(str(folder), device="cpu").ends)
    assert set(TransformersEngine(str(student), device="cpu").ends) == ends
    assert ends == set(ends_of(shape, loading.load_tokenizer(folder)))
    assert len(ends) == (2 if shape.endswith("chat") else 1)


TEMPLATES = {
    "llama": {name: getattr(packaged, f"{name}_chat_template") for name in ("llama3", "llama3_1", "llama3_2")},
    "gemma": {name: getattr(packaged, f"{name}_chat_template") for name in ("gemma", "gemma3", "gemma4")},
    "qwen": {name: getattr(packaged, f"{name}_chat_template") for name in ("qwen2_5", "qwen3", "qwen3_instruct_2507")},
    "mistral": {"mistral": model_shapes.MISTRAL_TEMPLATE},
}
RENDERED = [(f"{family}-base", "none") for family in TEMPLATES]
RENDERED += [(f"{family}-chat", name) for family, templates in TEMPLATES.items() for name in templates]


@pytest.mark.parametrize(("shape", "template"), RENDERED)
def test_generation_probing_alignment_and_training_see_the_same_tokens(shape, template, folder_of, tmp_path, seen):
    folder = folder_of(shape)
    engine = TransformersEngine(str(folder), device="cpu")
    tokenizer = engine.tokenizer
    if template != "none":
        tokenizer.chat_template = TEMPLATES[shape.split("-")[0]][template]
        tokenizer.save_pretrained(tmp_path)
        engine.model.save_pretrained(tmp_path)
        folder = tmp_path
    asked = [prompts.one_shot_prompt("Count.", "Q1?", " a : <ans>1</ans>", f"Is {n} it?") for n in range(3)]
    whole = [prefix + rest for prefix, rest in asked] + [prompt for prompt, _ in texts(6)]
    expected = [reference_ids(tokenizer, text) for text in whole]
    assert [row.ids for row in rows_of(engine, [loading.render(tokenizer, text) for text in whole])] == expected
    # Probing gives what its prompts share apart from the rest.
    shared = [loading.render_shared(tokenizer, prefix, rest) for prefix, rest in asked]
    probed = engine._rows({str(n): Request(*pair[:1], prefix=pair[1]) for n, pair in enumerate(shared)}, Decoding(8))
    assert [row.ids for row in probed.values()] == expected[:3]
    assert [start for start, _ in encode(tokenizer, whole, [" a"] * len(whole))] == expected
    pairs = pd.DataFrame({"prompt": whole, "chosen": " a : <ans>1</ans>", "rejected": "b : <ans>2</ans>"})
    tune_dpo(model_shapes.recipe_of(folder), pairs, tmp_path / "teacher", seed=1)
    assert [row["prompt_ids"] for row in seen[0].train_dataset] == expected
    # Qwen's texts have no begin token, the others' have one, whether tokenizer, template or both write it.
    assert all(ids.count(tokenizer.bos_token_id) == int(not shape.startswith("qwen")) for ids in expected)


def reference_ids(tokenizer, text: str) -> list[int]:
    """Return a prompt's ids as transformers itself makes them of a conversation, or of a text without template."""
    if not tokenizer.chat_template:
        return tokenizer(text)["input_ids"]
    turns = [{"role": "user", "content": text}]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])


def rows_of(engine: TransformersEngine, rendered: list[str]) -> list:
    return list(engine._rows({str(n): Request(text) for n, text in enumerate(rendered)}, Decoding(8)).values())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_engine_writes_what_the_model_alone_writes(shape, folder_of):
    """In batches of unlike lengths, with shared prefixes where the shape allows it and windows where it has them."""
    folder = folder_of(shape)
    engine = TransformersEngine(str(folder), device="cpu", batch_size=5)
    slides = shape.startswith(("gemma", "mistral"))
    assert engine.plain_cache != slides
    questions = ("red blue", "pink", "white white red", "blue", "a", "b c")
    asked = [prompts.one_shot_prompt("Count.", "red pink green", "so : <ans>green</ans>", one) for one in questions]
    asked += [("", prompt) for prompt, _ in texts(6)]
    requests = [Request(prompt, prefix=prefix) for prompt, prefix in (engine.render_shared(*one) for one in asked)]
    written = [one.text for one in engine.generate(requests, Decoding(16))]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = [torch.tensor([reference_ids(engine.tokenizer, prefix + rest)]) for prefix, rest in asked]
    with torch.inference_mode():
        for one, text in zip(ids, written, strict=True):
            out = model.generate(one, attention_mask=torch.ones_like(one), max_new_tokens=16, do_sample=False)
            assert engine.tokenizer.decode(out[0, one.shape[1] :], skip_special_tokens=True) == text
        if slides:
            assert min(one.shape[1] for one in ids) > WINDOW / 2 and max(one.shape[1] for one in ids) > WINDOW
            wide = AutoModelForCausalLM.from_pretrained(folder, sliding_window=4096).eval()
            differ = [not torch.allclose(wide(one).logits, model(one).logits, atol=1e-3) for one in ids]
            assert any(differ), "the window changes nothing, so nothing is tested"


def test_a_template_without_system_role_is_never_given_one(folder_of):
    """Gemma's and Mistral's templates refuse a system turn; nothing here writes one."""
    for shape in ("gemma-chat", "mistral-chat"):
        tokenizer = loading.load_tokenizer(folder_of(shape))
        if shape == "gemma-chat":
            tokenizer.chat_template = packaged.gemma_chat_template
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]
        with pytest.raises(Exception, match=r"[Ss]ystem role|Only user"):
            tokenizer.apply_chat_template(turns, tokenize=False)
        assert "Count." in loading.render(tokenizer, "Count.")
