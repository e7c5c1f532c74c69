"""Unsloth: the model as it loads and adapts it; used by a process that imported it before anything else."""

from workbench.models import loading
from workbench.runs.errors import ModelError
from workbench.runs.recipe import Alignment, Training


def load(ref: str, dtype: str, device: str, settings: Alignment | Training) -> loading.LoadedModel:
    """Load a model folder through Unsloth, with the tokenizer as everything else here reads it.

    Raises:
        ModelError: If the folder is an adapter, or cannot be used.
    """
    from unsloth import FastLanguageModel

    folder = loading.resolve(ref)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"Model {ref} is an adapter, which Unsloth would not merge; merge it first, or take trl.")
    loading.require_safetensors(folder)
    model, _ = FastLanguageModel.from_pretrained(
        str(folder),
        max_seq_length=settings.max_length,
        dtype=loading.DTYPES[dtype],
        load_in_4bit=settings.lora.load_in_4bit,
        full_finetuning=not settings.lora.rank,
        # Its own would offload to the CPU what fits here.
        use_gradient_checkpointing=settings.gradient_checkpointing,
        local_files_only=True,
        trust_remote_code=False,
    )
    return loading.LoadedModel(model, loading.load_tokenizer(ref), loading.fingerprint_model(ref), ref)


def adapt(model, adapter, settings: Alignment | Training, seed: int):
    """Return the model with Unsloth's form of the adapter that PEFT's configuration describes."""
    from unsloth import FastLanguageModel

    return FastLanguageModel.get_peft_model(
        model,
        r=adapter.r,
        target_modules=sorted(adapter.target_modules),
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        use_gradient_checkpointing=settings.gradient_checkpointing,
        random_state=seed,
    )
