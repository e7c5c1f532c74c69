"""Where a model is trained: in this process, in one of its own (Unsloth), or in several that accelerate launches."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from workbench.models import loading, trl
from workbench.models.backend_process import unsloth_folder
from workbench.runs import cluster, progress
from workbench.runs.cache import read_json, temporary_folder
from workbench.runs.errors import ModelError, RunError
from workbench.runs.recipe import ALIGNED_ARMS, DISTILLED, Alignment, Recipe, Training, parse_yaml, project_root

INSTALL = {"unsloth": "make unsloth", "bitsandbytes": "make bitsandbytes"}
N_LINES = 4  # of what a process wrote last, told when it dies without a word


def tune_dpo(recipe: Recipe, pairs: pd.DataFrame, work: Path, seed: int) -> dict:
    """Align the teacher as trl.tune_dpo does, where the recipe says."""
    if not _apart(recipe, recipe.alignment):
        return trl.tune_dpo(recipe, pairs, work, seed)
    return _in_processes(recipe, recipe.alignment, pairs[["prompt", "chosen", "rejected"]], work, seed)


def tune_sft(recipe: Recipe, student: str, rows: pd.DataFrame, n_batches: int, work: Path, seed: int) -> dict:
    """Train a student as trl.tune_sft does, where the recipe says."""
    if not _apart(recipe, recipe.training):
        return trl.tune_sft(recipe, student, rows, n_batches, work, seed)
    more = {"student": student, "n_batches": n_batches}
    return _in_processes(recipe, recipe.training, rows[["prompt", "completion"]], work, seed, **more)


tune_distilled = trl.tune_distilled  # in this process: the recipe allows no other


def check(recipe: Recipe) -> None:
    """Find out before any work whether what the recipe trains with is here; a ModelError names the way on."""
    for section in ("alignment", "training"):
        settings = getattr(recipe, section)
        if settings.backend == "unsloth" and not unsloth_version():
            raise ModelError(f"{section}.backend unsloth is not installed; run: {INSTALL['unsloth']}, or take trl.")
        in_4bit = settings.lora.load_in_4bit
        if in_4bit and (recipe.compute.device == "cpu" or not torch.cuda.is_available()):
            raise ModelError(
                f"{section}.lora.load_in_4bit needs a GPU, and there is none to use here; take it out to train the "
                "adapter beside whole weights."
            )
        if in_4bit and importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError(
                f"{section}.lora.load_in_4bit needs bitsandbytes, which is not installed; run: "
                f"{INSTALL['bitsandbytes']}, or take it out."
            )
    _launcher_config(recipe)
    if DISTILLED in recipe.evaluation.arms:
        for ref in recipe.models.students.values():
            loading.require_same_tokens(recipe.models.teacher, ref)
    aligned = [recipe.models.teacher] if any(arm in ALIGNED_ARMS for arm in recipe.evaluation.arms) else []
    for ref in dict.fromkeys([*aligned, *recipe.models.students.values()]):
        # What else would stop the end of a training: an end token that is not named, a template that fails.
        trl.encode(loading.load_tokenizer(ref), ["Is it so?"], [" Yes."])


def unsloth_version() -> str:
    """Return the version of Unsloth that is installed, beside the packages here or among them; "" if none is."""
    found = importlib.metadata.distributions(name="unsloth", path=[str(unsloth_folder()), *sys.path])
    return next((one.version for one in found), "")


def backends_in_words() -> dict[str, str]:
    """Return for each training backend and launcher a sentence: is it here, and how does it come here?"""
    here = {name: importlib.metadata.version(name) for name in ("trl", "accelerate")}
    gpu, version, bits = torch.cuda.is_available(), unsloth_version(), importlib.util.find_spec("bitsandbytes")
    unsloth = f"unsloth {version} is installed" + ("" if gpu else "; without a GPU it trains on the CPU")
    return {
        "trl": f"trl {here['trl']} is installed",
        "unsloth": unsloth if version else f"not installed; to install: {INSTALL['unsloth']}",
        "QLoRA": ("bitsandbytes is installed" if bits else f"no bitsandbytes; to install: {INSTALL['bitsandbytes']}")
        + ("" if gpu else "; needs a GPU, there is none"),
        "accelerate": f"accelerate {here['accelerate']} launches trainings on several GPUs",
    }


def _apart(recipe: Recipe, settings: Alignment | Training) -> bool:
    return settings.backend == "unsloth" or recipe.compute.launcher == "accelerate"


def _launcher_config(recipe: Recipe) -> list[str]:
    """Return the arguments of accelerate that name its configuration."""
    if not (named := recipe.compute.launcher_config):
        return []
    path = project_root() / Path(named).expanduser()
    try:
        config = parse_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "num_processes" not in config:
            raise ValueError("it does not say num_processes")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ModelError(
            f"compute.launcher_config {path} cannot be used ({reason}); name a file that `accelerate config` wrote."
        ) from None
    # Two runs on one machine must not meet at one port; across machines the file says which.
    port = ["--main_process_port", "0"] if config.get("num_machines", 1) == 1 and config["num_processes"] > 1 else []
    return ["--config_file", str(path), *port]


def _in_processes(
    recipe: Recipe, settings: Alignment | Training, rows: pd.DataFrame, work: Path, seed: int, **more
) -> dict:
    stage = "training" if isinstance(settings, Training) else "alignment"
    if cluster.apart():
        raise ModelError(
            f"{stage}.backend {settings.backend} trains only on machines that see the run's folder; put WORKBENCH_RUNS "
            "and the models on a disk that all machines share, or take another backend."
        )
    job = {
        "stage": stage,
        "backend": settings.backend,
        "recipe": recipe.model_dump(mode="json"),
        "work": str(Path(work).resolve()),
        "seed": seed,
        "signs": str(progress.folder() or ""),
        "threads": torch.get_num_threads(),
        "parent": progress.this_process(),
        **more,
    }
    with temporary_folder() as folder:
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        rows.to_parquet(folder / "rows.parquet")
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": str(job["threads"]),
            # What Unsloth would put into the current folder.
            "UNSLOTH_COMPILE_LOCATION": str(folder / "compiled"),
        }
        ended = subprocess.run(
            [*_command(recipe), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=project_root(),
            env=os.environ | environment,
            # An interrupt is for this process, which then ends the launcher; its processes see that and end too.
            start_new_session=True,
        )
        return _outcome(folder, ended.returncode, ended.stdout.strip().splitlines()[-N_LINES:], stage)


def _command(recipe: Recipe) -> list[str]:
    launcher = ["-m", "accelerate.commands.launch", *_launcher_config(recipe)]
    launched = launcher if recipe.compute.launcher == "accelerate" else []
    return [sys.executable, *launched, "-m", "workbench.models.backend_process"]


def _outcome(folder: Path, status: int, last: list[str], stage: str) -> dict:
    if status == 0 and (outcome := read_json(folder / "outcome.json")):
        return outcome
    error = read_json(folder / "error.json")
    if kind := error.get("kind"):
        raise (RunError if kind == "RunError" else ModelError)(error["said"])
    reason = error.get("said") or " | ".join(last)
    raise ModelError(
        f"The process of the {stage} ended with status {status} ({reason}); what was trained up to its last "
        "checkpoint is kept, so mend that and run again."
    )
