"""Time and peak memory of merge/merge.py against merging whole models in memory, for three models and their base.

    python benchmarks/merge_memory.py
    python benchmarks/merge_memory.py --megabytes 1000 --method ta_0.5

Makes random Llama checkpoints in bf16 (--megabytes each, in a temporary folder), merges them both ways in processes of
their own, and compares the merged weights. The plain way is that of the authors' code: all models loaded, every task
vector flattened and concatenated. Its TIES threshold is taken per tensor here, as merge.py's is, so that the results
can be compared.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

if not __package__:  # run as `python benchmarks/merge_memory.py`: import from the repository root, not from benchmarks/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from safetensors.torch import load_file, save_file

from benchmarks.side_by_side import cpu_name
from impart.checkpoint import open_checkpoint
from impart.checkpoint_writer import CheckpointWriter
from impart.config import Parser
from impart.errors import InputError, run
from impart.report import peak_memory_mib, table
from impart.weight_files import TensorSpec
from merge.merge import main as merge_main
from merge.method import parse_method
from merge.methods.ta import TaskArithmetic
from merge.methods.ties_merging import Ties

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, INTERMEDIATE, VOCABULARY = 1024, 2816, 32000


def main(arguments: Sequence[str]) -> None:
    flags = parser().parse_args(arguments)
    if flags.worker:
        return worker(flags)
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        work = Path(folder)
        for name in ("base", "math", "code", "chat"):
            write_model(work, name, flags.megabytes)
        measured = {way: measure(way, flags, work) for way in ("imports", "plain", "streamed")}
        same = agreement(work / "plain.safetensors", work / "streamed")
    print(f"{cpu_name()}; 3 models of {flags.megabytes} MB and their base, {flags.method}, {flags.threads} thread(s)")
    print(
        table(
            [[way, f"{seconds:.1f}", f"{peak:.0f}"] for way, (seconds, peak) in measured.items()],
            ("", "seconds", "peak MiB"),
        )
    )
    plain, streamed = measured["plain"][1], measured["streamed"][1]
    print(f"{plain / streamed:.1f} times less memory; merged weights equal in {same:.4%} of the entries")
    if same < 0.9999:
        sys.exit("the two ways do not agree")


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=300, help="size of each model (default: %(default)s)")
    parser.add_argument(
        "--method", default="ties_0.8_1.0", help="ta_<lambda> or ties_<trim>_<lambda> (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 0 for all cores (default: %(default)s)")
    parser.add_argument("--folder", help="where the temporary models are made (default: the system's)")
    parser.add_argument("--worker", choices=("imports", "plain", "streamed"), help="what this process does by itself")
    parser.add_argument("--work", type=Path, help="folder of the models that --worker takes")
    return parser


def write_model(work: Path, name: str, megabytes: int) -> None:
    """A random Llama of about this size; the fine-tuned ones are a small step away from the base."""
    per_layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (HIDDEN, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    layer_bytes = 2 * sum(m * n for m, n in per_layer.values())
    layers = max(1, round((megabytes * 10**6 - 4 * VOCABULARY * HIDDEN) / layer_bytes))
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    shapes |= {
        f"model.layers.{layer}.{kind}.weight": shape for layer in range(layers) for kind, shape in per_layer.items()
    }
    config = work / f"{name}_files" / "config.json"
    config.parent.mkdir()
    config.write_text(
        json.dumps(
            {"model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": layers, "vocab_size": VOCABULARY}
        )
    )
    base = open_checkpoint(work / "base") if name != "base" else None
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    writer = CheckpointWriter(work / name, [TensorSpec(key, shape, torch.bfloat16) for key, shape in shapes.items()])
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        weight = 0.02 * noise if base is None else base.tensor(key).float() + 0.001 * noise
        writer.add(key, weight.to(torch.bfloat16))
    writer.finish([config])


def measure(way: str, flags: Namespace, work: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one way in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--worker",
        way,
        "--work",
        str(work),
        "--method",
        flags.method,
        "--threads",
        str(flags.threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr[-2000:]}")
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def worker(flags: Namespace) -> None:
    torch.set_num_threads(flags.threads)
    started = time.perf_counter()
    models = [flags.work / name for name in ("math", "code", "chat")]
    if flags.worker == "plain":
        merge_whole_models(flags.work / "base", models, flags.method, flags.work / "plain.safetensors")
    elif flags.worker == "streamed":
        named = [text for path in models for text in ("--model", f"{path.name}={path}")]
        merge_main(
            [
                "--merge_method",
                flags.method,
                "--ptm_pth",
                str(flags.work / "base"),
                "--save_pth",
                str(flags.work / "streamed"),
                "--threads",
                str(flags.threads),
                *named,
            ]
        )
    print(json.dumps([time.perf_counter() - started, peak_memory_mib()]))


def merge_whole_models(base_path: Path, paths: list[Path], method_text: str, out: Path) -> None:
    """All models in memory, one stack of flattened task vectors, masks of the same size."""
    method = parse_method(method_text)
    base, models = load_file(base_path / "model.safetensors"), [load_file(path / "model.safetensors") for path in paths]
    names = list(base)
    origin = torch.cat([base[name].flatten().float() for name in names])
    deltas = torch.stack([torch.cat([model[name].flatten().float() for name in names]) - origin for model in models])
    if isinstance(method, TaskArithmetic):
        merged = method.lam * deltas.sum(dim=0)
    elif isinstance(method, Ties):
        start = 0
        for name in names:
            part = deltas[:, start : start + base[name].numel()]
            kth = part.abs().kthvalue(int(method.trim * part.shape[1]) + 1, dim=1, keepdim=True).values
            part.mul_(part.abs() >= kth)
            start += part.shape[1]
        sign = deltas.sum(dim=0).sign()
        agreeing = torch.where(sign > 0, deltas > 0, deltas < 0) & (sign != 0)
        merged = method.lam * (deltas * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
    else:
        raise InputError(f"--method {method_text}: the plain way is written for task arithmetic and TIES")
    result, start = {}, 0
    for name in names:
        stop = start + base[name].numel()
        result[name] = (origin[start:stop] + merged[start:stop]).view(base[name].shape).to(base[name].dtype)
        start = stop
    save_file(result, out)


def agreement(plain: Path, streamed: Path) -> float:
    """Share of equal entries; single roundings may differ, as the plain way sums in float32."""
    expected, found, equal, total = load_file(plain), open_checkpoint(streamed), 0, 0
    for name, weight in expected.items():
        equal += int((weight == found.tensor(name)).sum())
        total += weight.numel()
    return equal / total


if __name__ == "__main__":
    run(main)
