"""Whether a model fits, before it is loaded: weights and the cache of one sequence against free memory, in bytes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from impart.checkpoint import open_checkpoint
from impart.dtypes import parse_dtype
from impart.errors import InputError
from impart.overlay import Overlay

GIB = 2**30
# In a process of its own: asking CUDA in this one would keep a context on every GPU and make vLLM spawn its workers.
ASK_CUDA = "import torch; print([list(torch.cuda.mem_get_info(i)) for i in range(torch.cuda.device_count())])"


def weight_bytes(model: Path | Overlay, dtype: str) -> int:
    """Bytes that the weights take once loaded as `dtype` (auto: as they are stored), and their decoding, if any."""
    if isinstance(model, Overlay):
        return model.weight_bytes(dtype) + model.decode_bytes()
    checkpoint = open_checkpoint(model)
    specs = [checkpoint.spec(name) for name in checkpoint.names()]
    return sum(
        spec.nbytes if dtype == "auto" else spec.nbytes // spec.dtype.itemsize * parse_dtype(dtype).itemsize
        for spec in specs
    )


def cache_bytes(config: Any, tokens: int, dtype: str) -> int:
    """Bytes of the keys and values of one sequence: 2 * layers * kv heads * head size * tokens.

    0 for a model without attention, whose state does not grow with the sequence.
    """
    text = config.get_text_config()
    queries = attention_heads(config)
    if queries is None:
        return 0
    heads = _largest(getattr(text, "num_key_value_heads", None)) or queries
    head = getattr(text, "head_dim", None) or text.hidden_size // queries
    return 2 * text.num_hidden_layers * heads * head * tokens * (2 if dtype == "auto" else parse_dtype(dtype).itemsize)


def attention_heads(config: Any) -> int | None:
    """The heads of an attention layer, of the largest where they differ; None for a model without attention."""
    text = config.get_text_config()
    return _largest(getattr(text, "num_attention_heads", None)) or _largest(getattr(text, "num_query_heads", None))


def _largest(heads: int | Sequence[int] | None) -> int | None:
    """Heads as configs have them: one number, one of each layer, or none; 0 is none, too."""
    return (heads if isinstance(heads, int) else max(heads or [0])) or None


def gpu_memory() -> list[tuple[int, int]]:
    """(free, total) bytes of each visible GPU; empty without one."""
    answer = subprocess.run([sys.executable, "-c", ASK_CUDA], capture_output=True, text=True, check=True)
    return [tuple(pair) for pair in json.loads(answer.stdout.splitlines()[-1])]


def ram_available() -> int:
    """Bytes that new programs can take without swapping; where the system does not tell, all of the memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_for_vllm(
    weights: int, cache: int, gpus: Sequence[tuple[int, int]], ranks: int, share: float, tokens: int
) -> None:
    """InputError when `ranks` GPUs cannot hold weights and cache within `share` of each, or that much is not free."""
    for number, (free, total) in enumerate(gpus[:ranks]):
        allowed, needed = share * total, (weights + cache) / ranks
        what = (
            f"the weights ({weights / GIB:.1f} GiB) and the cache of one sequence of {tokens} tokens "
            f"({cache / GIB:.1f} GiB) over {ranks} GPU(s) need {needed / GIB:.1f} GiB of each"
        )
        if needed > allowed:
            raise InputError(
                f"{what}, but --gpu_memory {share:g} allows {allowed / GIB:.1f} of {total / GIB:.1f} GiB "
                f"on GPU {number}; raise --tensor_parallel or --gpu_memory, or lower --max_model_len"
            )
        if allowed > free:
            raise InputError(
                f"--gpu_memory {share:g} asks for {allowed / GIB:.1f} GiB of GPU {number}, but "
                f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free ({needed / GIB:.1f} GiB are needed "
                f"at least); free the GPU or lower --gpu_memory to {int(100 * free / total) / 100:g}"
            )


def free_memory() -> int:
    """Bytes free on all GPUs together, or in the machine without one."""
    import torch

    gpus = [torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())]
    return sum(gpus) if gpus else ram_available()


def refuse_for_hf(weights: int, cache: int, free: int, tokens: int) -> None:
    """InputError when the weights and the cache of a single sequence do not fit into `free` bytes."""
    if weights + cache > free:
        raise InputError(
            f"the weights need {weights / GIB:.1f} GiB and one sequence of {tokens} tokens "
            f"{cache / GIB:.1f} GiB, but {free / GIB:.1f} GiB of memory are free; take a 16-bit DTYPE or "
            "a shorter --max_model_len, or a larger machine"
        )
