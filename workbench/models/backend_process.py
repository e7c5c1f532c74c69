"""One training in a process of its own: started by `accelerate launch`, or so that Unsloth changes no other process.

Run as `python -m workbench.models.backend_process FOLDER`. The folder holds job.json and rows.parquet; into it comes
outcome.json, what the training returned, or error.json, what stopped it.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from workbench.runs.errors import RunError


def unsloth_folder() -> Path:
    """Return where `make unsloth` puts Unsloth and what it needs: apart, so that only this process can import them."""
    return Path(sys.prefix) / "unsloth"


def main(folder: Path) -> None:
    """Do the job that lies in the folder; only the first of several processes writes the outcome."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    threading.Thread(target=_end_with_parents, args=(job["parent"], os.getppid()), daemon=True).start()
    if job["backend"] == "unsloth":
        sys.path.append(str(unsloth_folder()))
        # It goes through vLLM's compiled parts when it finds them, of which not all run on every processor.
        sys.modules["vllm"] = None
        # Before transformers and TRL, which it changes.
        import unsloth  # noqa: F401
    from workbench.runs.cache import atomic_write

    try:
        outcome = _train(folder, job)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        # The first to fail knows why; the others only miss it.
        kind = type(error).__name__ if isinstance(error, ValueError | RunError) else ""
        if not (folder / "error.json").exists():
            atomic_write(folder / "error.json", json.dumps({"kind": kind, "said": str(error)}).encode())
        raise
    if os.environ.get("RANK", "0") == "0":
        atomic_write(folder / "outcome.json", json.dumps(outcome).encode())


def _end_with_parents(workbench: dict, launcher: int) -> None:
    """A killed run must not leave a training that goes on writing beside the run that resumes it."""
    from workbench.runs import progress

    while os.getppid() == launcher and progress.is_there(workbench) is not False:
        time.sleep(1)
    os._exit(1)


def _train(folder: Path, job: dict) -> dict:
    import pandas as pd
    import torch

    from workbench.models.trl import tune_dpo, tune_sft
    from workbench.runs import progress
    from workbench.runs.recipe import Recipe

    torch.set_num_threads(job["threads"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    recipe, rows = Recipe.model_validate(job["recipe"]), pd.read_parquet(folder / "rows.parquet")
    work, seed = Path(job["work"]), job["seed"]

    def train(_):
        if job["stage"] == "alignment":
            return tune_dpo(recipe, rows, work, seed)
        return tune_sft(recipe, job["student"], rows, job["n_batches"], work, seed)

    by = {"trained by": f"unsloth {sys.modules['unsloth'].__version__}"} if job["backend"] == "unsloth" else {}
    return by | progress.call(Path(job["signs"]) if job["signs"] else None, train, job["work"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
