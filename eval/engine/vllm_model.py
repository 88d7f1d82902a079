"""The vLLM backend: the only file of the project that knows vLLM."""

import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.engine.completion import Completion
from eval.engine.memory import (
    attention_heads,
    cache_bytes,
    gpu_memory,
    ram_available,
    refuse_for_hf,
    refuse_for_vllm,
    weight_bytes,
)
from eval.engine.settings import EngineSettings
from impart.dtypes import long_name
from impart.errors import InputError, reason_of
from impart.overlay import Overlay
from impart.pretrained import trusted
from impart.weight_files import stale_index

log = logging.getLogger(__name__)


class VllmModel:
    """The vLLM backend: batching, paging and splitting over GPUs are vLLM's."""

    def __init__(self, model: Path | Overlay, config, max_model_len: int, ranks: int, settings: EngineSettings):
        import torch

        if isinstance(model, Path) and (leftover := stale_index(model)) is not None:
            raise InputError(f"{leftover} is a leftover beside a single file, but vLLM reads by it; move it away")
        gpus = torch.cuda.device_count()
        weights, cache = weight_bytes(model, settings.dtype), cache_bytes(config, max_model_len, settings.dtype)
        if gpus:
            refuse_for_vllm(weights, cache, gpu_memory(), ranks, settings.gpu_memory, max_model_len)
        else:
            refuse_for_hf(weights, cache, ram_available(), max_model_len)
        set_environment(gpus, cache)
        from vllm import LLM  # the environment has to be set before

        # The eager mode of a CPU starts 30 s sooner and is no slower on what a CPU can run.
        self.max_model_len = max_model_len
        self.llm: Any = _started(
            lambda: LLM(
                **(delta_arguments(model) if isinstance(model, Overlay) else {"model": str(model)}),
                trust_remote_code=trusted(),
                dtype=long_name(settings.dtype),
                max_model_len=max_model_len,
                tensor_parallel_size=ranks,
                gpu_memory_utilization=settings.gpu_memory,
                seed=settings.seed,
                enforce_eager=not gpus,
                disable_log_stats=True,
            )
        )

    def stream(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: tuple[str, ...]
    ) -> Iterator[tuple[int, Completion]]:
        """(position, completion) in the order in which vLLM finishes them."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=min(max_tokens, self.max_model_len - len(ids)),
                stop=list(stop),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for ids in prompts
        ]
        names = self.llm.enqueue([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
        # What enqueue returns is the request's id and, from some version on, "-" and random letters.
        positions = {name.partition("-")[0]: position for position, name in enumerate(names)}
        # `generate` would return only when all prompts are done; stepping the engine yields each when it finishes.
        engine = self.llm.llm_engine
        while engine.has_unfinished_requests():
            for output in engine.step():
                answer = output.outputs[0]
                yield (
                    positions[output.request_id],
                    Completion(answer.text, len(answer.token_ids), answer.finish_reason),
                )

    def swap(self, overlay: Overlay) -> None:
        """Decodes another delta into the running engine, and forgets what was computed with the old one."""
        refusals = [text for text in self.llm.collective_rpc("swap_delta", args=(str(overlay.delta.path),)) if text]
        if refusals:
            raise InputError(refusals[0])
        self.llm.reset_prefix_cache()

    def close(self) -> None:
        """Ends vLLM's processes, so that another engine can start in this process."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        cleanup_dist_env_and_memory()


def delta_arguments(overlay: Overlay) -> dict[str, Any]:
    """What an engine is started with to load base + delta, by the plugin of serve/vllm_plugin.py."""
    return {
        "model": str(overlay.folder),
        "load_format": "impart",
        "model_loader_extra_config": {"base": overlay.base.source},
        "worker_extension_cls": "serve.vllm_plugin.DeltaWorker",
    }


def vllm_problem() -> str | None:
    """Why vLLM cannot run here; None when it can."""
    if importlib.util.find_spec("vllm") is None:
        return "the package vllm is not installed"
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # vLLM configures its own log with its first engine; this is for what it says before.
    logging.getLogger("vllm").setLevel(level.upper())
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        return f"the package vllm cannot be imported ({error})"
    if not current_platform.device_type:
        return "this build of vllm finds no device that it can use"
    return None


def set_environment(gpus: int, sequence_bytes: int) -> None:
    """Sets what vLLM reads from the environment, unless the user has. `sequence_bytes`: the cache of one sequence."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if not gpus:
        # One process starts in half the time of three; the default cache is half of the memory, filled at the start.
        wanted |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(4 * sequence_bytes / 2**30))),  # GiB
        }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def tensor_parallel(config: Any, wanted: int | None, gpus: int) -> int:
    """How many GPUs share the model; the attention heads have to divide evenly over them."""
    heads, most = attention_heads(config), max(1, gpus)
    if wanted is None:
        ranks = max(count for count in range(1, most + 1) if count == 1 or heads and heads % count == 0)
        if ranks < most:
            log.info(
                "using %d of %d GPUs: %s attention heads do not divide evenly over more", ranks, most, heads or "no"
            )
        return ranks
    if wanted > most:
        raise InputError(
            f"--tensor_parallel {wanted}: there are {gpus} GPUs"
            if gpus
            else f"--tensor_parallel {wanted}: there is no GPU; leave the flag out"
        )
    if heads and heads % wanted:
        raise InputError(f"--tensor_parallel {wanted} does not divide the model's {heads} attention heads")
    return wanted


def _started(start: Callable[[], Any]) -> Any:
    """`start()`, a vLLM engine; its complaints about memory become an InputError that names the flags."""
    try:
        return start()
    except (ValueError, RuntimeError, MemoryError) as error:
        if "memory" in str(error).lower() and "engine core" not in str(error).lower():
            raise InputError(
                f"vLLM could not start: {reason_of(error)}; --max_model_len, --tensor_parallel and --gpu_memory "
                "change what it needs and gets"
            ) from error
        raise
