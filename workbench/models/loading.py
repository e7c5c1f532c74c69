"""Model folders: finding them, fingerprinting them, loading them, and turning a user's text into a model prompt."""

import gc
import json
import re
import signal
import sys
import threading
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch.utils.benchmark import Timer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from workbench.runs import cluster
from workbench.runs.cache import read_json
from workbench.runs.errors import NO_MEMORY, ModelError, in_words
from workbench.runs.identity import unlike
from workbench.runs.recipe import project_root
from workbench.runs.recipe_parts import TURN
from workbench.runs.run import MANIFEST, file_sha256, fingerprint
from workbench.runs.schemas import Trained

if TYPE_CHECKING:
    from peft import PeftModel


# Everything in a model folder that can change what the model writes. Trainer states, logs and cards are left out.
FINGERPRINTED = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
    "*.safetensors",
    "*.safetensors.index.json",
)
DONE = "tuned.json"  # what is recorded of a model trained here
# Nothing pickled, no code from a folder, nothing fetched behind the back of `resolve`.
SAFELY = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
_TURNS = re.compile(f"{TURN}(.*?){TURN}", re.DOTALL)
OPENED = "\n<input>"  # the end of a prompt that is to be gone on with
MANY_MODULES = 50  # more than a model brings along
TEMPLATE_S = 5.0  # one takes about a millisecond
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_n_imported = 0  # modules, when they were last left out of garbage collection
_alive = weakref.WeakSet()  # models that were loaded


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model ready to run: in eval mode, with the fingerprint of its folder and what people call it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    name: str

    def __repr__(self) -> str:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"LoadedModel({self.name}, {dtype} on {self.model.device}, fingerprint {self.fingerprint})"


def resolve(ref: str | Path) -> Path:
    """Return the folder of a model: a path (relative ones from the project root) or the local snapshot of a hub id.

    Raises:
        ModelError: If it is neither, or a model trained here that is not what was written.
    """
    if cluster.inside():
        folder = cluster.folder_here(str(ref))
        require_whole(folder)
        return folder
    path = Path(ref).expanduser()
    folder = path if path.is_absolute() else project_root() / path
    if folder.is_dir():
        require_whole(folder)
        return folder
    if folder.suffix == ".gguf":
        raise ModelError(
            f"Model {folder} is a GGUF file; make a folder of it, and name that: python -m data.smol.make {folder} "
            "FOLDER"
        )
    if not is_hub_id(str(ref)):
        raise ModelError(
            f"Model folder {folder} does not exist; run `make pocket` to build the pocket models, `make smol` to build "
            "those of SmolLM2, or correct the path."
        )
    try:
        return Path(snapshot_download(str(ref), allow_patterns=list(FINGERPRINTED)))
    # The hub raises many unrelated types (offline, unknown, gated, proxy); each means that the model is not here.
    except Exception as error:
        raise ModelError(
            f"Model {ref} is no folder under {project_root()} and could not be fetched by that id "
            f"({_first_line(error)}); correct the name, or download it first and give its folder."
        ) from error


def _sums_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a model's folder that another machine needs."""
    recorded = [folder / name for name in (*read_json(folder / DONE, Trained).get("files", {}), DONE)]
    paths = {path for path in (*recorded, *_fingerprinted(folder)) if path.is_file()}
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(paths)}


cluster.find, cluster.sums_of = resolve, _sums_of


def _fingerprinted(folder: Path) -> list[Path]:
    return sorted({path for pattern in FINGERPRINTED for path in folder.glob(pattern) if path.is_file()})


def fingerprint_model(folder: str | Path) -> str:
    """Return a hash of everything in a model folder that can change what the model writes, its adapter's base included.

    Left out: names and places of folders, model cards and trainer states, because they change no output.
    """
    folder = resolve(folder)
    _refuse_weights_outside(folder)
    parts = {path.relative_to(folder).as_posix(): file_sha256(path) for path in _fingerprinted(folder)}
    base = _adapter_base(folder)
    return fingerprint([parts, fingerprint_model(base) if base else ""])


def load(
    ref: str | Path,
    dtype: str = "float32",
    device: str = "auto",
    merged: bool = True,
    in_4bit: bool = False,
    kind: type = AutoModelForCausalLM,
) -> LoadedModel:
    """Load a model and its tokenizer from safetensors; nothing pickled and no code from the folder is ever run.

    Args:
        ref: A model folder, or a hub id such as "organisation/model".
        dtype: "float32", "bfloat16" or "auto" (see `precision`), whatever the weights are stored in.
        device: "cpu", "cuda", or "auto" for cuda where there is one.
        merged: Put a LoRA adapter into the weights of its base; False leaves it beside them, to be trained on.
        in_4bit: Hold the weights of linear layers in four bits (bitsandbytes, NF4), for QLoRA on a GPU.
        kind: Of transformers' classes that load a model of any architecture.

    Raises:
        ModelError: If the folder is missing, holds no safetensors, or cannot be loaded completely.
    """
    # A bar for each of many small models would bury the run's own progress lines.
    transformers_logging.disable_progress_bar()
    _leave_imports_uncollected()
    folder = resolve(ref)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = load_tokenizer(folder)
        model = _load_in_4bit(folder, device) if in_4bit else _load_weights(folder, dtype, merged, kind).to(device)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if in_words(error) == NO_MEMORY:
            raise  # the folder is whole
        raise ModelError(
            f"Model folder {folder} cannot be loaded ({_first_line(error)}); restore its files or build it again."
        ) from error
    _alive.add(model)
    return LoadedModel(model.eval(), tokenizer, fingerprint_model(folder), str(ref))


def _leave_imports_uncollected() -> None:
    """Have Python's garbage collection pass over what was imported, and stays: half a million objects.

    It is asked for whenever a model is put down, here and by accelerate, and took 0.8 s each time. What is passed over
    is never freed, so no model may be there.
    """
    global _n_imported
    if len(sys.modules) > _n_imported + MANY_MODULES and not _alive:
        gc.collect()
        gc.freeze()
        _n_imported = len(sys.modules)


@cache
def precision(dtype: str) -> str:
    """Return "float32" or "bfloat16"; "auto" is the faster one here, by a product of a size that generating asks for.

    CPUs without instructions for bfloat16 take several times as long in it, others half as long.
    """
    if dtype != "auto" or torch.cuda.is_available():
        return "bfloat16" if dtype == "auto" else dtype
    sizes, seconds = ((32, 512), (1024, 512)), {}
    for name, kind in DTYPES.items():
        x, w = (torch.ones(size, dtype=kind) for size in sizes)
        # On one thread: several wait for each other where others compute too.
        seconds[name] = Timer("linear(x, w)", globals={"linear": torch.nn.functional.linear, "x": x, "w": w}).timeit(9)
    return min(seconds, key=lambda name: seconds[name].median)


def load_adapted(ref: str | Path, adapter: Path, dtype: str, device: str = "auto") -> PreTrainedModel:
    """Load a model and put the LoRA adapter of a folder into its weights, whatever base the adapter names."""
    return _adapted(load(ref, dtype, device).model, adapter).merge_and_unload()


def _load_in_4bit(folder: Path, device: str) -> PreTrainedModel:
    from transformers import BitsAndBytesConfig

    require_safetensors(folder)
    if device != "cuda" or _adapter_base(folder):
        raise ModelError(f"Model {folder} is held in four bits on a GPU only, and not if it is an adapter; merge it.")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    place = {"": torch.cuda.current_device()}
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config, device_map=place, **SAFELY
    )


def load_tokenizer(ref: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or hub id without its weights."""
    folder = resolve(ref)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if tokenizer.eos_token_id is None and (end := _declared_end(folder)) is not None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The tokenizer in {folder} cannot be loaded ({_first_line(error)}); restore it.") from error
    _require_template_ends(tokenizer, folder)
    return tokenizer


def _require_template_ends(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse a chat template, which is a stranger's program, that needs very long for one turn."""
    if threading.current_thread() is not threading.main_thread():
        return  # only there signals arrive

    def stop(*_) -> None:
        raise ModelError(f"The chat template in {folder} does not come to an end within {TEMPLATE_S:g} s; mend it.")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, TEMPLATE_S)  # of this process's own time
    try:
        render(tokenizer, "a")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _declared_end(folder: Path) -> int | None:
    """Return the end token that the model's own files name, for tokenizers that name none."""
    for name in ("generation_config.json", "config.json"):
        end = read_json(folder / name).get("eos_token_id")
        if end is not None:
            return end[0] if isinstance(end, list) else end
    return None


def require_same_tokens(teacher: str, student: str) -> None:
    """Raise a ModelError unless both write the same tokens by the same numbers: distillation compares them."""
    ours, theirs = (load_tokenizer(ref).get_vocab() for ref in (student, teacher))
    if unlike := sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)):
        raise ModelError(
            f"The arm distilled compares teacher and student token by token, but {teacher} and {student} have other "
            f"tokens ({len(unlike)} of {len(ours)}, such as {unlike[0]!r}); take models of one family, or that arm out."
        )


def render(tokenizer: PreTrainedTokenizerBase | None, user_text: str) -> str:
    """Return the prompt a model sees for a user's text: in its chat template when it has one, else the text itself.

    TURN stands between turns, the user's first and last.

    A prompt is later tokenised with the tokenizer's own special tokens, as TRL does, so a leading token that the
    tokenizer adds by itself is not written here a second time. Text that ends in the tag OPENED is to be gone on
    with, not answered: small chat models follow such a text by itself, and none in a turn of theirs.
    """
    if tokenizer is None or not tokenizer.chat_template or user_text.endswith(OPENED):
        return _TURNS.sub(r" \1\n\n", user_text)
    said = enumerate(user_text.split(TURN))
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in said]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except ModelError:
        raise  # it took too long
    except Exception as error:  # a template is a program, and can end in any way
        raise ModelError(
            f"The chat template of {tokenizer.name_or_path} fails ({_first_line(error)}); mend or remove it."
        ) from error
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        return text.removeprefix(bos)
    return text


def render_shared(tokenizer: PreTrainedTokenizerBase | None, prefix: str, rest: str) -> tuple[str, str]:
    """Render prefix + rest as one user's text; return the prompt and how it begins, up to the end of the prefix.

    The beginning is "" when the chat template rewrites the rest, so that nothing can be shared.
    """
    prompt = render(tokenizer, prefix + rest)
    return prompt, prompt[: max(0, prompt.rfind(rest))] if prefix and rest else ""


def _load_weights(folder: Path, dtype: str, merged: bool = True, kind: type = AutoModelForCausalLM) -> PreTrainedModel:
    require_safetensors(folder)
    if base := _adapter_base(folder):
        wrapped = _adapted(_load_weights(base, dtype, kind=kind), folder)
        # peft froze the base, which may be trained again.
        return wrapped.merge_and_unload().requires_grad_(True) if merged else wrapped.get_base_model()
    model, report = kind.from_pretrained(folder, dtype=DTYPES[precision(dtype)], output_loading_info=True, **SAFELY)
    # transformers fills missing weights with random numbers and only warns.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"Model folder {folder} lacks {len(missing)} of its weights (first: {missing[0]}); build the model again, "
            "or name one that was trained for what it is to do."
        )
    if kind is AutoModelForCausalLM:
        make_savable(model)
    return model


def make_savable(model: PreTrainedModel) -> None:
    """Drop settings of generation that transformers reads and refuses to write, as a temperature without sampling.

    What a model is asked never goes by them. Without this a whole training would run and then not be saved.
    """
    settings = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:
        ends = {name: getattr(settings, name) for name in ("bos_token_id", "eos_token_id")}
        model.generation_config = GenerationConfig(**ends)


def _adapted(model: PreTrainedModel, folder: Path) -> "PeftModel":
    """Return the model with the LoRA adapter in a folder beside its weights.

    Raises:
        ModelError: If the adapter is of another kind or was made for another model.
    """
    from peft import PeftConfig, PeftModel

    config, odd = PeftConfig.from_pretrained(str(folder)), ""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ModelError(f"Adapter {folder} is of the kind {kind}; only LORA is read, so merge it first.")
    try:
        wrapped = PeftModel(model, config)
        report = wrapped.load_adapter(str(folder), "default")
        # peft only warns of weights that find no place, and leaves the random ones there.
        if lost := [*report.unexpected_keys, *(key for key in report.missing_keys if "lora_" in key)]:
            odd = f"{len(lost)} of its weights fit nowhere or are missing, first {lost[0]}"
    except (ValueError, RuntimeError, KeyError) as error:
        odd = _first_line(error)
    if odd:
        raise ModelError(
            f"Adapter {folder} does not fit its base {config.base_model_name_or_path} ({odd}); name the model that it "
            "was trained on as base_model_name_or_path in its adapter_config.json."
        )
    return wrapped


def require_safetensors(folder: Path) -> None:
    """Refuse a model folder whose weights are missing, pickled, or elsewhere."""
    _refuse_weights_outside(folder)
    if any(folder.glob("*.safetensors")):
        return
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    if pickled:
        raise ModelError(
            f"Model folder {folder} holds its weights as a pickle ({pickled[0]}), which can run code when read; "
            "only safetensors are loaded, so save it again with save_pretrained where you trust it."
        )
    raise ModelError(
        f"Model folder {folder} holds no weights; a file ending in .safetensors is needed, so build or copy it again."
    )


def require_whole(folder: Path) -> None:
    """Refuse a model trained here of which a file is missing or not what was written; of others nothing is known."""
    for name, sha256 in read_json(folder / DONE, Trained).get("files", {}).items():
        if fault := unlike(path := folder / name, sha256):
            raise ModelError(
                f"{path} is {fault}, by the checksums in {DONE}; "
                f"delete {folder.parent / MANIFEST} and run the same command again, which trains this model anew."
            )


def _refuse_weights_outside(folder: Path) -> None:
    """Refuse an index that names weights which no fingerprint of the folder would hold."""
    for path in folder.glob("*.index.json"):
        named = read_json(path).get("weight_map")
        odd = [n for n in named.values() if Path(str(n)).name != n] if isinstance(named, dict) else [named]
        if odd:
            raise ModelError(
                f"{path} names weights that are no files of this folder ({odd[0]!r}); save the model again with "
                "save_pretrained."
            )


def _adapter_base(folder: Path) -> Path | None:
    config = folder / "adapter_config.json"
    if not config.is_file():
        return None
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        base = None
    if not base or not isinstance(base, str):
        raise ModelError(f"Adapter {folder} names no base; give base_model_name_or_path in adapter_config.json.")
    try:
        return resolve(base)
    except ModelError as error:
        raise ModelError(f"The base of adapter {folder} is not here: {error}") from error


def is_hub_id(ref: str) -> bool:
    """Say whether a model's name can be that of a hub: owner and name, and no folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", ref)) and not (project_root() / ref.partition("/")[0]).is_dir()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")[:200]
