"""One process or many: `accelerate launch` and `torchrun` give every process its rank, and the work is split by shard."""

import datetime
import os

import torch.distributed as dist


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


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
