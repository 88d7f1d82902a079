"""Greedy completions of prompts, by vLLM or by transformers: the only file that knows vLLM.

    with Engine("path/of/checkpoint", EngineSettings(dtype="fp16")) as engine:
        completions = engine.generate(prompts, max_tokens=1024, stop=("Instruction:",))

Both backends get the same token ids, end at the same end-of-sequence tokens and cut at stop strings alike.
"""

import gc
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.engine.completion import Completion
from eval.engine.memory import (
    cache_bytes,
    free_memory,
    gpu_memory,
    ram_available,
    refuse_for_hf,
    refuse_for_vllm,
    weight_bytes,
)
from eval.run.prompts import one_line, tokenizer_of
from impart.errors import InputError

if TYPE_CHECKING:
    from eval.engine.hf import HfModel

log = logging.getLogger(__name__)

LONGEST = 8192  # default cap on prompt + answer: every benchmark fits, and a 128k model's cache need not
VLLM_DTYPES = {"auto": "auto", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class EngineSettings:
    """How a model is run. Only `backend`, `dtype` and `max_model_len` are meant to change what it answers."""

    backend: str = "auto"  # auto | vllm | hf
    dtype: str = "auto"  # auto (the checkpoint's own) | fp16 | bf16 | fp32
    max_model_len: int | None = None  # tokens of prompt + answer; None: the model's positions, at most LONGEST
    tensor_parallel: int | None = None  # GPUs; None: as many as there are and the heads can be split over
    gpu_memory: float = 0.9  # share of each GPU that vLLM may take
    batch_size: int = 64  # prompts at a time of the hf backend
    seed: int = 0


class Engine:
    """A model that completes prompts greedily, loaded when the first prompts come. A context manager.

    `model` is a folder with config and tokenizer; the weights lie there too, unless `weights` gives the whole folder,
    which it may first have to make: it is asked when everything has been checked that can be without them.
    """

    def __init__(self, model: str | Path, settings: EngineSettings, weights: Callable[[], Path] | None = None):
        self.settings, self.weights = settings, weights or (lambda: Path(model))
        self.backend = chosen_backend(settings.backend)
        self.config, self.tokenizer = _config_of(model), tokenizer_of(model)
        self.max_model_len = longest_sequence(self.config, settings.max_model_len)
        self._loaded: VllmModel | HfModel | None = None

    def generate(self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = ()) -> list[Completion]:
        """The completions in the order of the prompts."""
        done = dict(self.stream(prompts, max_tokens=max_tokens, stop=stop))
        return [done[position] for position in range(len(prompts))]

    def stream(
        self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = (), names: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """(position, completion) as they finish, so that an interrupted run keeps what it has. `names` are for messages."""
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        for position, row in enumerate(ids):
            if len(row) >= self.max_model_len:
                name = names[position] if names else position
                raise InputError(
                    f"the prompt of item {name} has {len(row)} tokens, but prompt and answer together may "
                    f"have {self.max_model_len}; raise --max_model_len (the model has "
                    f"{positions_of(self.config)} positions), or leave the item out with --subset"
                )
        if self._loaded is None:  # only now, because everything that can be wrong with the prompts has been checked
            self._loaded = self._load()
        return self._loaded.stream(ids, max_tokens=max_tokens, stop=tuple(stop))

    def _load(self) -> "VllmModel | HfModel":
        import torch  # seconds of import, not needed by --rescore

        dtype, longest = self.settings.dtype, self.max_model_len
        if self.backend == "vllm":
            ranks = tensor_parallel(self.config, self.settings.tensor_parallel, torch.cuda.device_count())
            return VllmModel(str(self.weights()), self.config, longest, ranks, self.settings)
        from eval.engine.hf import HfModel  # imports the model classes of transformers

        folder = str(self.weights())
        refuse_for_hf(weight_bytes(folder, dtype), cache_bytes(self.config, longest, dtype), free_memory(), longest)
        return HfModel(folder, self.tokenizer, dtype=dtype, max_model_len=longest, batch_size=self.settings.batch_size)

    def close(self) -> None:
        """Frees the model's memory; the engine is of no use afterwards."""
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = None
        gc.collect()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class VllmModel:
    """The vLLM backend: batching, paging and splitting over GPUs are vLLM's."""

    def __init__(self, path: str, config, max_model_len: int, ranks: int, settings: EngineSettings):
        import torch

        gpus = torch.cuda.device_count()
        weights, cache = weight_bytes(path, settings.dtype), cache_bytes(config, max_model_len, settings.dtype)
        if gpus:
            refuse_for_vllm(weights, cache, gpu_memory(), ranks, settings.gpu_memory, max_model_len)
        else:
            refuse_for_hf(weights, cache, ram_available(), max_model_len)
        set_environment(gpus, cache)
        from vllm import LLM  # the environment has to be set before

        # The eager mode of a CPU starts 30 s sooner and is no slower on what a CPU can run.
        self.max_model_len = max_model_len
        self.llm = _started(
            lambda: LLM(
                model=path,
                dtype=VLLM_DTYPES[settings.dtype],
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
        engine = self.llm.llm_engine  # stepped here and not by `generate`, which would return only when all are done
        while engine.has_unfinished_requests():
            for output in engine.step():
                answer = output.outputs[0]
                yield (
                    positions[output.request_id],
                    Completion(answer.text, len(answer.token_ids), answer.finish_reason),
                )

    def close(self) -> None:
        """Ends vLLM's processes, so that another engine can start in this one."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        cleanup_dist_env_and_memory()


def chosen_backend(wanted: str) -> str:
    """vllm or hf; what `auto` took, and why, is said in the log."""
    if wanted == "hf":
        return wanted
    missing = vllm_problem()
    if wanted == "vllm":
        if missing:
            raise InputError(f"--backend vllm: {missing}; take --backend hf, or install vllm for this machine")
        return wanted
    log.info("backend: %s", f"hf ({missing})" if missing else "vllm")
    return "hf" if missing else "vllm"


def vllm_problem() -> str | None:
    """Why vLLM cannot run here; None when it can."""
    if importlib.util.find_spec("vllm") is None:
        return "the package vllm is not installed"
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(
        level.upper()
    )  # for what it says before its own log is set up, with its first engine
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        return f"the package vllm cannot be imported ({error})"
    if not current_platform.device_type:
        return "this build of vllm finds no device that it can use"
    return None


def set_environment(gpus: int, sequence_bytes: int) -> None:
    """What vLLM reads from the environment and the user has not set. `sequence_bytes`: the cache of one sequence."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if not gpus:
        # One process starts in half the time of three; the default cache is half of the memory, filled at the start.
        wanted |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(4 * sequence_bytes / 2**30))),
        }  # GiB
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def chosen_dtype(backend: str, own: str) -> str:
    """What DTYPE `auto` stands for: the checkpoint's own, but fp32 where a CPU would only emulate 16 bit, slowly."""
    import torch

    return own if backend == "vllm" or torch.cuda.is_available() else "fp32"


def tensor_parallel(config: Any, wanted: int | None, gpus: int) -> int:
    """How many GPUs share the model; the attention heads have to divide evenly over them."""
    heads, most = config.get_text_config().num_attention_heads, max(1, gpus)
    if wanted is None:
        ranks = max(count for count in range(1, most + 1) if heads % count == 0)
        if ranks < most:
            log.info("using %d of %d GPUs: %d attention heads do not divide evenly over more", ranks, most, heads)
        return ranks
    if wanted > most:
        raise InputError(
            f"--tensor_parallel {wanted}: there are {gpus} GPUs"
            if gpus
            else f"--tensor_parallel {wanted}: there is no GPU; leave the flag out"
        )
    if heads % wanted:
        raise InputError(f"--tensor_parallel {wanted} does not divide the model's {heads} attention heads")
    return wanted


def positions_of(config: Any) -> int:
    """The longest sequence that the model was made for."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or LONGEST


def longest_sequence(config: Any, wanted: int | None) -> int:
    """Tokens that prompt and answer may have together."""
    positions = positions_of(config)
    if wanted is not None and wanted > positions:
        raise InputError(f"--max_model_len {wanted}: the model has only {positions} positions")
    return wanted or min(positions, LONGEST)


def _config_of(folder: str | Path) -> Any:
    from transformers import AutoConfig  # seconds of import, not needed by --rescore

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # as with the tokenizer
        raise InputError(f"model {str(folder)!r}: its config cannot be loaded ({one_line(error)})") from error


def _started(start):
    """A vLLM engine; what it says about memory becomes one line that names the flags."""
    try:
        return start()
    except (ValueError, RuntimeError, MemoryError) as error:
        if "memory" in str(error).lower() and "engine core" not in str(error).lower():
            reason = str(error).strip().split("\n", 1)[0]
            raise InputError(
                f"vLLM could not start: {reason}; --max_model_len, --tensor_parallel and --gpu_memory "
                "change what it needs and gets"
            ) from error
        raise
