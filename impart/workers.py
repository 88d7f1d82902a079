"""Several items at a time: the next matrix is read and the last one written while a GPU works on a third."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_MATRICES = 3  # at a time on one GPU; a fourth gains nothing and takes another working set
READERS = 8  # at most, of files: more do not read faster


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """work(item) of every item, in order, `workers` at a time in threads; 1: one after the other, in this thread.

    Items are taken as their turn comes, at most one more than there are workers beyond the result that is waited for.
    The first error ends it, after what is under way.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def readers() -> int:
    """How many threads look through files: as many as `--threads` allows."""
    return min(READERS, torch.get_num_threads())


_own = threading.local()


def on_own_stream(work: Callable[[Item], Result], device: torch.device) -> Callable[[Item], Result]:
    """`work` on a CUDA stream of the calling thread, so that threads do not wait for each other's kernels.

    What it returns must not lie on the GPU: another thread could read it before it is there.
    """
    if device.type != "cuda":
        return work
    torch.linalg.eigvalsh(torch.ones(1, 1, device=device))  # torch loads its solvers once, which threads may not do

    def streamed(item: Item) -> Result:
        if not hasattr(_own, "stream"):
            _own.stream = torch.cuda.Stream(device)
        with torch.cuda.stream(_own.stream):
            return work(item)

    return streamed
