"""From one delta to the next: a dense checkpoint for each, the load format `impart`, and a swap in a running engine.

    python benchmarks/swap.py                       # six deltas of the tiny pair, vLLM
    python benchmarks/swap.py --backend hf --count 3

Every way is a fresh Python that answers one prompt with each delta in turn. "from the start" is the first answer of the
first delta, imports included; "another delta" is the mean from the last answer of one delta to the first of the next;
"written" are the bytes of the checkpoints that the way needs. Every way must give the same answers.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run as `python benchmarks/swap.py`: import from the repository root, not from benchmarks/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import cpu_name
from impart.config import Parser
from impart.errors import InputError, run
from impart.report import table

ROOT = Path(__file__).resolve().parents[1]
WAYS = {"dense": "a dense checkpoint", "impart": "load format impart", "swap": "swap in a running engine"}
PROMPT = "Write a function double that returns its argument times 2.\n"


def engines(way: str, deltas: Sequence[str], folder: Path, backend: str) -> Iterator:
    """An engine for each delta in turn, closed or swapped before the next."""
    from eval.engine.engine import Engine
    from eval.engine.settings import EngineSettings
    from impart.overlay import open_overlay
    from impart.reconstruct import write_model

    settings, running = EngineSettings(backend=backend, dtype="fp32"), None
    for number, path in enumerate(deltas):
        overlay = open_overlay(path)
        if running is not None and way == "swap":
            running.swap(overlay)
        else:
            if running is not None:
                running.close()
            checkpoint = folder / str(number)
            if way == "dense":
                write_model(overlay.delta, overlay.base, checkpoint)
            running = Engine(checkpoint if way == "dense" else overlay, settings)
        yield running
    if running is not None:
        running.close()


def measured(way: str, deltas: Sequence[str], folder: Path, backend: str, since: float) -> dict:
    """Seconds until each delta's answer, the answers, and the bytes that were written below `folder`."""
    seconds, answers = [], []
    for engine in engines(way, deltas, folder, backend):
        answers.append(engine.generate([PROMPT], max_tokens=24)[0].text)
        now = time.time()
        seconds.append(now - since)
        since = now
    written = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return {"seconds": seconds, "answers": answers, "written": written}


def in_fresh_python(way: str, deltas: Sequence[str], backend: str) -> dict:
    """`measured` in a process of its own; what it logs is not shown."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        flags = ("--way", way, "--backend", backend, "--out", str(out), "--since", str(time.time()))
        done = subprocess.run([sys.executable, __file__, *deltas, *flags], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{WAYS[way]}: {done.stderr.strip().splitlines()[-1]}")
        return json.loads(out.read_text())


def make_deltas(folder: Path, count: int) -> list[str]:
    """Deltas of the tiny pair's code model, by two methods at falling sizes."""
    made = []
    for number in range(count):
        row, ratio = ("impart", "lowrank")[number % 2], 4 + 2 * (number // 2)
        path = folder / f"{row}_cr{ratio}"
        configs = [word for name in (f"rows/{row}", "tiny/code/pair") for word in ("--config", f"configs/{name}.yaml")]
        command = [sys.executable, "sparsify/sparsify.py", *configs, f"compression_ratio={ratio}", f"save_dir={path}"]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        made.append(str(path))
    return made


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("deltas", nargs="*", help="deltas over one base (default: some of the tiny pair, made here)")
    parser.add_argument("--count", type=int, default=6, help="how many are made (default: 6)")
    parser.add_argument("--backend", choices=("vllm", "hf"), default="vllm")
    parser.add_argument("--way", choices=WAYS, help="measure one way, in this process")
    parser.add_argument("--out", type=Path, help="file for what --way measures")
    parser.add_argument("--since", type=float, help="when the process of --way was started")
    given = parser.parse_args(arguments)
    if given.way:
        found = measured(given.way, given.deltas, given.out.parent, given.backend, given.since)
        given.out.write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        deltas = given.deltas or make_deltas(Path(folder), given.count)
        ways = {way: in_fresh_python(way, deltas, given.backend) for way in WAYS}
    if any(found["answers"] != ways["dense"]["answers"] for found in ways.values()):
        raise InputError("the three ways give different answers")
    print(f"{cpu_name()}; {given.backend}; {len(deltas)} deltas")
    rows = [
        (
            WAYS[way],
            f"{found['seconds'][0]:.1f}",
            f"{sum(found['seconds'][1:]) / max(len(deltas) - 1, 1):.2f}",
            f"{sum(found['seconds']):.1f}",
            f"{found['written']:,}",
        )
        for way, found in ways.items()
    ]
    print(table(rows, ("seconds", "from the start", "another delta", "all", "bytes written")))


if __name__ == "__main__":
    run(main)
