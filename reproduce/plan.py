"""Plans and runs a table: reads its lines from stdin, runs what is missing, and prints the table.

The scripts of this folder pipe their lines in here, one thing to have a line (reproduce/things.py lists the kinds):

    printf 'sparse impart tiny/code 16\nsparse dare tiny/code 16\n' | python reproduce/plan.py --name mine --dry-run

What is there is not made again; what other settings made is refused; a killed plan continues with the same command.
Every step is a process of its own, on the GPU of its slot, or behind the launcher of LAUNCH (srun --gpus=1 -n1).
"""

import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python reproduce/plan.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.config import Parser
from impart.errors import InputError, run
from impart.files import write_atomically
from impart.pair import Pair, load_pair
from impart.report import start_logging
from reproduce import costs
from reproduce.provenance import check_made_by
from reproduce.running import Machine, StepFailed, held, run_steps
from reproduce.steps import Wanted, in_order, pasteable
from reproduce.things import Plan

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    flags = parse(arguments)
    start_logging()
    lines = [words for line in sys.stdin.read().splitlines() if (words := shlex.split(line, comments=True))]
    if not lines:
        raise InputError("there are no lines on stdin; a script of reproduce/ pipes them in here")
    pairs = {name: load_pair(name) for name in flags.pairs}
    machine = this_machine(flags, list(pairs.values()))
    if flags.dry_run:
        show(flags, planned(flags, lines, machine), machine)
        return
    with held(flags.runs, flags.pairs) as locks:
        plan = planned(flags, lines, machine)
        check_made_by(flags.runs, plan.made_by, write=False)
        steps = in_order(plan.steps())
        refuse_missing(costs.problems(steps, plan_pairs(plan), machine.jobs, flags.runs))
        check_made_by(flags.runs, plan.made_by, write=True)
        write_cells(flags, plan)
        try:
            run_steps(steps, flags.runs, machine, locks)
        except StepFailed as failed:
            print(f"{failed}\nstopped; the same command continues", file=sys.stderr)
            sys.exit(1)
    os.execv(flags.python, tables_command(flags))


def parse(arguments: Sequence[str]) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--name", required=True, help="of the script; its cells and table are called so")
    parser.add_argument("--pairs", type=str.split, required=True, help="pairs that the lines may name")
    parser.add_argument("--seeds", type=str.split, default=["0", "1", "2"], help="seeds of the masks (default 0 1 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of deltas and results (default runs)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the printed table")
    parser.add_argument(
        "--jobs", type=int, help="steps at a time (default: one per GPU, else 1, or the cores for small models)"
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="which items are asked")
    parser.add_argument("--held_out", help="file or folder of held-out items, for --split validation")
    parser.add_argument("--first", action="store_true", help="only the first benchmark of every pair")
    parser.add_argument("--keep", action="store_true", help="keep merged models after their evaluation")
    parser.add_argument("--dry-run", action="store_true", help="print commands, cost and problems; touch nothing")
    parser.add_argument("--table", type=int, help="the paper's table that is printed")
    parser.add_argument("--title", help="title of a table of one's own")
    parser.add_argument("--best", action="store_true", help="a grid search: say which setting is best")
    parser.add_argument("--figure", action="store_true", help="also draw the table as <name>.png and .svg")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the steps (default: this one)")
    flags = parser.parse_args(arguments)
    try:
        flags.seeds = tuple(int(seed) for seed in flags.seeds)
    except ValueError as error:
        raise InputError(f"--seeds {' '.join(flags.seeds)}: whole numbers from 0 on are wanted") from error
    if not flags.seeds or min(flags.seeds) < 0:
        raise InputError("--seeds: at least one whole number from 0 on is wanted")
    if flags.jobs is not None and flags.jobs < 1:
        raise InputError(f"--jobs {flags.jobs} must be at least 1")
    return flags


def this_machine(flags: Namespace, pairs: Sequence[Pair]) -> Machine:
    """How many steps at a time, with how many threads each: models that one thread serves best share the cores."""
    small, gpus = all(pair.is_small for pair in pairs), gpu_count()
    jobs = flags.jobs or gpus or (len(os.sched_getaffinity(0)) if small else 1)
    launch = tuple(shlex.split(os.environ.get("LAUNCH", "")))
    return Machine(jobs, gpus, 1 if small else 0, launch, flags.python, warm=small and not gpus and not launch)


def gpu_count() -> int:
    """GPUs of this machine, without starting CUDA."""
    import torch

    return torch.cuda.device_count()


def planned(flags: Namespace, lines: Sequence[Sequence[str]], machine: Machine) -> Plan:
    """Every line's cells and steps."""
    wanted = Wanted(
        runs=flags.runs,
        seeds=flags.seeds,
        split=flags.split,
        held_out=flags.held_out,
        only_first=flags.first,
        threads=machine.threads,
        keep=flags.keep,
        groups=machine.jobs,
    )
    plan = Plan(wanted)
    for words in lines:
        plan.add(words)
    strangers = [pair for pair in plan.pairs() if pair not in flags.pairs]
    if strangers:
        raise InputError(f"a line names {strangers[0]}, which is not among --pairs {' '.join(flags.pairs)}")
    return plan


def plan_pairs(plan: Plan) -> dict[str, Pair]:
    """The pairs of a plan, by name."""
    return {name: load_pair(name) for name in plan.pairs()}


def show(flags: Namespace, plan: Plan, machine: Machine) -> None:
    """--dry-run: commands to paste, in their order, then what they cost; the problems, one a line, are the error."""
    check_made_by(flags.runs, plan.made_by, write=False)
    steps, pairs = in_order(plan.steps()), plan_pairs(plan)
    for step in steps:
        print("\n".join(pasteable(step, machine.prefix)))
    print(shlex.join(tables_command(flags)))
    print(costs.summary(steps, pairs, machine.jobs, machine.gpus), flush=True)
    refuse_missing(costs.problems(steps, pairs, machine.jobs, flags.runs))


def refuse_missing(problems: Sequence[str]) -> None:
    """InputError for whatever the plan needs and is not there; one line each where there are several."""
    if len(problems) > 1:
        for problem in problems:
            print(f"missing: {problem}", file=sys.stderr)
        raise InputError(f"{len(problems)} things are missing, listed above; the first is {problems[0]}")
    if problems:
        raise InputError(problems[0])


def write_cells(flags: Namespace, plan: Plan) -> None:
    """The table's cells, for eval/tables.py."""
    flags.out.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{cell.line()}\n" for cell in plan.cells)
    write_atomically(cells_file(flags), text.encode())


def cells_file(flags: Namespace) -> Path:
    return flags.out / f"{flags.name}.cells.tsv"


def tables_command(flags: Namespace) -> list[str]:
    """What prints the table."""
    if flags.best:
        form: tuple[str, ...] = ("--best",)
    else:
        form = ("--table", str(flags.table)) if flags.table else ("--title", flags.title or flags.name)
    figures = [word for end in ("png", "svg") for word in ("--figure", str(flags.out / f"{flags.name}.{end}"))]
    cells = ("--cells", str(cells_file(flags)), "--out", str(flags.out))
    return [flags.python, "eval/tables.py", *cells, *form, *(figures if flags.figure else [])]


if __name__ == "__main__":
    run(main)
