"""One process or many: `accelerate launch` and `torchrun` give each its rank, and the work is split by shard."""

import datetime
import os

import torch.distributed as dist

from impart.errors import InputError


def rank() -> int:
    """This process's number, from 0."""
    return _launched()[0]


def world_size() -> int:
    """How many processes share the work."""
    return _launched()[1]


def refuse_several(what: str) -> None:
    """InputError when a launcher started more than one process for a step that one process does."""
    if world_size() > 1:
        raise InputError(f"{what} cannot be split over processes; run it without accelerate or torchrun")


def wait_for_all() -> None:
    """Returns when every process has come here; at once when there is only one."""
    if world_size() == 1:
        return
    if not dist.is_initialized():
        # Only barriers pass here, so gloo does on every machine; a shard of a large model may take hours.
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    dist.barrier()


def leave() -> None:
    """Ends the process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _launched() -> tuple[int, int]:
    """(rank, number of processes) as the launcher's variables say; InputError where they contradict each other."""
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        number, size = (int(text) for text in texts)
    except ValueError:
        number, size = -1, 0
    if not 0 <= number < size:
        raise InputError(
            f"RANK={texts[0]} and WORLD_SIZE={texts[1]} are no process of a launcher: RANK counts from 0 up to "
            "WORLD_SIZE - 1; unset both, or start the script by accelerate launch or torchrun"
        )
    return number, size
