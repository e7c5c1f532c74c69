"""Text from models by vLLM, in this process: its GPU build, or its CPU build where there is no GPU.

It is started in the main process only: its own workers and those of the process pool get in each other's way.
"""

import os
from typing import TYPE_CHECKING

import torch

from workbench.models.engine import Completion, Decoding, Engine, TokenizedRequest, end_tokens
from workbench.models.loading import fingerprint_model, load_tokenizer, resolve
from workbench.runs.errors import ModelError
from workbench.runs.seeding import stream_seed

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


VLLM_VERSION = 1  # raised by hand when a change here can change a completion
PART_ROWS = 1024  # vLLM batches by itself; this is how many completions are stored at once
SETTINGS = {
    # One process: what is seeded here is what draws, and a notebook's kernel needs no second one.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Bound threads would stay bound for whatever this process trains afterwards.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class VllmEngine(Engine):
    """Completions by vLLM, prompts with a common beginning side by side for its prefix cache.

    Promise: greedy completions change with nothing but near-ties of the arithmetic. Sampled ones: without a GPU the
    engine is seeded for every part of the work, by what that part asks, so the same list of requests gives the same
    completions, resumed or not, and another list may give others; with a GPU every request has its own seed.

    Args:
        tensor_parallel_size: This and the next two are as a recipe's engines have them.
        threads: CPU threads while it computes; 0 for as many as the process has then.
    """

    name = "vllm"

    def __init__(
        self,
        ref: str,
        dtype: str = "float32",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int = 0,
        threads: int = 0,
    ) -> None:
        folder = resolve(ref)
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} holds an adapter, and the engine vllm takes whole models only; merge it into its base, or "
                "take the engine transformers instead."
            )
        self.model_name, self.dtype, self.threads = str(ref), dtype, threads
        self.fingerprint, self.tokenizer = fingerprint_model(folder), load_tokenizer(folder)
        self.on_gpu = torch.cuda.is_available()
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        set_threads = torch.set_num_threads
        try:
            from vllm import LLM

            self.llm = LLM(
                str(folder),
                dtype=dtype,
                tensor_parallel_size=tensor_parallel_size,
                gpu_memory_utilization=gpu_memory_utilization,
                max_model_len=max_model_len or None,
                enable_prefix_caching=True,
                # Compiling takes longer than a CPU gains by it.
                enforce_eager=not self.on_gpu,
                trust_remote_code=False,
                seed=0,
            )
        except ImportError as error:
            raise ModelError(
                f"The engine vllm is not installed ({error}); `workbench doctor` says how, or take transformers."
            ) from error
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(
                f"vLLM does not start with {ref} ({_last_line(error)}); lower engines' gpu_memory_utilization or "
                "max_model_len, or take the engine transformers."
            ) from error
        finally:
            # The CPU build replaces this by a function that does nothing, and training here would be slow for ever.
            torch.set_num_threads = set_threads
        self.limit = self.llm.llm_engine.model_config.max_model_len
        self.ends = end_tokens(self.tokenizer, None)

    def __repr__(self) -> str:
        return f"VllmEngine({self.model_name}, {self.dtype}, fingerprint {self.fingerprint})"

    def identity(self) -> list:
        """Return engine, code version, weights and dtype."""
        return [self.name, VLLM_VERSION, [self.fingerprint, self.dtype]]

    def close(self) -> None:
        """Stop vLLM and give back its memory."""
        self.llm.llm_engine.engine_core.shutdown()
        super().close()

    def _batches(self, rows: list[TokenizedRequest]) -> list[list[TokenizedRequest]]:
        ordered = sorted(rows, key=lambda row: (row.ids, row.key))
        return [ordered[start : start + PART_ROWS] for start in range(0, len(ordered), PART_ROWS)]

    def _complete(self, part: list[TokenizedRequest], decoding: Decoding, seed: int) -> list[Completion]:
        from vllm import SamplingParams

        own_seeds = decoding.temperature > 0 and self.on_gpu
        asked = [
            SamplingParams(
                max_tokens=decoding.max_new_tokens,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                stop=list(decoding.stop) or None,
                seed=stream_seed(seed, row.request.stream) if own_seeds else None,
            )
            for row in part
        ]
        # vLLM's CPU build draws from the generator of the process; a seed for each request fails there.
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(stream_seed(seed, "vllm", *(row.key for row in part)))
            outputs = self._ask([row.ids for row in part], asked)
        written = [output.outputs[0] for output in outputs]
        # Read from the tokens as every engine here does.
        texts = [self.tokenizer.decode(list(one.token_ids), skip_special_tokens=True) for one in written]
        return [
            Completion(text, len(one.token_ids), one.finish_reason == "stop")
            for text, one in zip(texts, written, strict=True)
        ]

    def _ask(self, prompts: list[list[int]], asked: "list[SamplingParams]") -> "list[RequestOutput]":
        from vllm.inputs import TokensPrompt

        tokens = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        # The pool leaves the main process one thread for jobs of its own kind, which would be one for all of vLLM.
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            return self.llm.generate(tokens, asked, use_tqdm=False)
        except RuntimeError as error:
            raise ModelError(
                f"vLLM cannot compute with {self.model_name} ({_last_line(error)}); take the engine transformers "
                "instead."
            ) from error
        finally:
            torch.set_num_threads(before)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
