"""Measure probing four ways in one run: one generate call per (draft, question), plain batches, shared prefixes, and
shared prefixes in one process a core, as the workbench probes. The first three use --threads threads of one process.

Run by hand:  python tests/benchmarks/probe_throughput.py --model FOLDER --drafts 25 --questions 40
With --dtype auto also as the workbench probes in float32, with and without sharing: what another precision is worth.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.engine import Completion, Decoding, Request
from workbench.models.loading import load, render_shared
from workbench.models.transformers_engine import TransformersEngine
from workbench.runs.workers import run_jobs
from workbench.tasks.answers import parse_answer


def main() -> None:
    """Print throughputs, their ratios to one call each, agreement of the answers, and every disagreement."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or _random_model(Path(folder))
        loaded = load(model, args.dtype, args.device)
        pairs = json.loads(Path(args.prompts).read_text(encoding="utf-8")) if args.prompts else None
        pairs = pairs or _synthetic_pairs(loaded.tokenizer, args.drafts, args.questions)
        requests = []
        for prefix, rest in pairs:
            prompt, shared = render_shared(loaded.tokenizer, prefix, rest)
            requests.append(Request(prompt, prefix=shared))
        decoding = Decoding(max_new_tokens=args.max_new_tokens)
        plain = TransformersEngine(loaded, batch_size=args.batch_size, share_prefixes=False)
        sharing = TransformersEngine(loaded, batch_size=args.batch_size)
        ways = {
            "one call each": lambda some: _one_call_each(loaded, some, decoding),
            "plain batches": lambda some: plain.generate(some, decoding),
            "shared prefixes": lambda some: sharing.generate(some, decoding),
            "one process a core": lambda some: _one_process_a_core(
                str(model), some, decoding, args.batch_size, args.dtype
            ),
        }
        if args.dtype != "float32":
            ways["float32, unshared"] = lambda some: _one_process_a_core(
                str(model), some, decoding, args.batch_size, "float32", False
            )
            ways["float32"] = lambda some: _one_process_a_core(str(model), some, decoding, args.batch_size, "float32")
        ways = {name: way for name, way in ways.items() if name not in args.without}
        print(f"{loaded}, {len(requests)} probes, {args.threads} thread(s), batches of {args.batch_size}", flush=True)
        measured = {name: ([], 0.0) for name in ways}
        for way in ways.values():
            way(requests[:2])
        # In turn, block by block, so that whatever else this machine does slows all ways alike.
        block = 4096
        for start in range(0, len(requests), block):
            for name, way in ways.items():
                begin = time.perf_counter()
                completions = way(requests[start : start + block])
                done, seconds = measured[name]
                measured[name] = done + completions, seconds + time.perf_counter() - begin
        for name in ways:
            _report(name, args.reference or next(iter(ways)), measured, requests)


def _report(name: str, to: str, measured: dict[str, tuple[list[Completion], float]], requests: list[Request]) -> None:
    reference, reference_s = measured[to]
    completions, seconds = measured[name]
    n_tokens = sum(completion.n_tokens for completion in completions) / len(completions)
    answers = [
        (parse_answer(old.text), parse_answer(new.text)) for old, new in zip(reference, completions, strict=True)
    ]
    n_same = sum(old.text == new.text for old, new in zip(reference, completions, strict=True))
    differing = [at for at, (old, new) in enumerate(answers) if old != new]
    print(
        f"{name:16s} {seconds:7.1f} s  {len(requests) / seconds:7.1f} probes/s  {n_tokens:5.1f} tokens each"
        f"  {reference_s / seconds:5.2f} x  same answers {1 - len(differing) / len(answers):.2%}"
        f" ({sum(bool(old) for old, _ in answers)} parsed), same texts {n_same / len(answers):.2%}",
        flush=True,
    )
    for at in differing:
        old, new = answers[at]
        print(f"  probe {at}: {old!r} became {new!r}; prompt ends {requests[at].prompt[-60:]!r}")


def _one_process_a_core(
    model: str, requests: list[Request], decoding: Decoding, batch_size: int, dtype: str, share: bool = True
) -> list[Completion]:
    """Deal the requests to the workbench's own processes; those with one prefix stay together."""
    n_parts = os.cpu_count() or 1
    size = -(-len(requests) // n_parts)
    jobs = [
        (model, requests[at : at + size], decoding, batch_size, dtype, share) for at in range(0, len(requests), size)
    ]
    return [completion for part in run_jobs(_generate, jobs, 0, "probing") for completion in part]


def _generate(job: tuple) -> list[Completion]:
    model, requests, decoding, batch_size, dtype, share = job
    engine = TransformersEngine(model, dtype, batch_size=batch_size, share_prefixes=share)
    return engine.generate(requests, decoding)


@torch.inference_mode()
def _one_call_each(loaded, requests: list[Request], decoding: Decoding) -> list[Completion]:
    completions = []
    for request in requests:
        inputs = loaded.tokenizer(request.prompt, return_tensors="pt", return_token_type_ids=False)
        inputs = inputs.to(loaded.model.device)
        output = loaded.model.generate(**inputs, max_new_tokens=decoding.max_new_tokens, do_sample=False)
        tokens = output[0, inputs["input_ids"].shape[1] :]
        text = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
        completions.append(Completion(text, len(tokens), len(tokens) < decoding.max_new_tokens))
    return completions


def _random_model(folder: Path) -> Path:
    """Save an untrained model in the shape of a pocket student; its texts mean nothing, its speed does."""
    torch.manual_seed(0)
    vocabulary = {word: at for at, word in enumerate(["<pad>", "<bos>", "<eos>", *(f"w{n}" for n in range(997))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    shape = dict(hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4)
    config = LlamaConfig(
        **shape, vocab_size=1000, initializer_range=0.2, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _synthetic_pairs(tokenizer, n_drafts: int, n_questions: int) -> list[tuple[str, str]]:
    """Return (demonstration, question) texts of about 90 and 40 tokens, of words that the tokenizer knows."""
    rng = random.Random(0)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalnum())
    questions = [" ".join(rng.choices(words, k=rng.randint(30, 50))) for _ in range(n_questions)]
    demonstrations = [" ".join(rng.choices(words, k=rng.randint(70, 110))) + "\n" for _ in range(n_drafts)]
    return [(demonstration, question) for demonstration in demonstrations for question in questions]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="model folder; default: an untrained model of pocket size")
    parser.add_argument("--prompts", default="", help="JSON list of [shared beginning, rest]; default: random words")
    parser.add_argument("--drafts", type=int, default=25, help="demonstrations, without --prompts")
    parser.add_argument("--questions", type=int, default=40, help="questions per demonstration, without --prompts")
    parser.add_argument("--max-new-tokens", type=int, default=35)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the workbench runs 1 per process")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "auto"])
    parser.add_argument("--without", nargs="*", default=[], help="ways to leave out")
    parser.add_argument("--reference", default="", help="the way that ratios and answers are compared with")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "auto"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
