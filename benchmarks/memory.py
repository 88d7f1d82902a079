"""Peak memory of the three steps of the main job against the way that holds two models and all factors in memory.

Makes a pair of synthetic bf16 models (about 320 MB each) and the same pair at double depth, runs every step in a
process of its own - `delta.py --svd`, `sparsify.py` straight from the two models to a dense checkpoint, `delta.py
--merge` - and the same steps in the authors' way (benchmarks/two_models_way.py). Tells every process' largest resident
memory, and what of it is not there in a process that only imports the same.

    python benchmarks/memory.py
    python benchmarks/memory.py --layers 10 --hidden 1024 --folder /tmp
    python benchmarks/memory.py --pair BASE FINETUNED      # models that are there, each in one file, and seconds
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as `python benchmarks/memory.py`: import from the repository root, not from benchmarks/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.side_by_side import cpu_name
from benchmarks.synthetic import base_weight, tuned_weight
from impart.checkpoint_writer import CheckpointWriter
from impart.config import Parser
from impart.errors import InputError, run
from impart.files import free_space
from impart.report import table
from impart.weight_files import TensorSpec

ROOT = Path(__file__).resolve().parents[1]
IMPART = ("compression_ratio=32", "preprune_ratio=0.6", "C=1")
DELTA, SPARSIFY = "delta.py", "sparsify/sparsify.py"
TWO_MODELS = "benchmarks/two_models_way.py"
TOKENS_PER_HIDDEN, MLP_PER_HIDDEN = 16, 2.75  # 16384 tokens and mlp matrices of 2816 rows at hidden 1024
DISK_PER_MODEL = 16  # bytes of all models and results, over those of one model of the given depth

# A process' peak starts from that of the process that made it: this small one makes the measured one.
PEAK_OF = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=sys.stderr); "
    "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss; "
    "print(peak / (1 << (20 if sys.platform == 'darwin' else 10))); sys.exit(code)"
)


@dataclass(frozen=True)
class Peak:
    """Largest resident memory of one process in MiB, its seconds, and the memory of one that only imports the same."""

    total: float
    seconds: float
    imports: float

    @property
    def net(self) -> float:
        return self.total - self.imports


@dataclass(frozen=True)
class Steps:
    """The three steps over a pair, each in a process of its own; what they write below `folder` is removed."""

    base: Path
    tuned: Path
    folder: Path
    threads: int

    def streamed(self) -> dict[str, Peak]:
        """As a user runs them."""
        svd, sparse, model = (str(self.folder / name) for name in ("svd", "sparse", "model"))
        flags = ("--device", "cpu", "--threads", str(self.threads))
        pair = ("--base_model", str(self.base), "--finetuned_model", str(self.tuned))
        keys = (f"base_model={self.base}", f"ftm_dir={self.tuned}", f"save_dir={sparse}", *IMPART, "save_model=true")
        of_delta, of_sparsify = peak_of(DELTA, "--help")[0], peak_of(SPARSIFY, "--help")[0]
        peaks = {
            "svd": Peak(*peak_of(DELTA, "--svd", *pair, "--save_path", svd, *flags), of_delta),
            "sparsify": Peak(*peak_of(SPARSIFY, *flags, *keys), of_sparsify),
            "merge": Peak(
                *peak_of(DELTA, "--merge", *pair[:2], "--delta_path", svd, "--save_path", model, *flags), of_delta
            ),
        }
        for result in (svd, sparse, f"{sparse}_model", model):
            shutil.rmtree(result)
        return peaks

    def two_models(self) -> dict[str, Peak]:
        """In the authors' way."""
        factors, model = str(self.folder / "factors.pt"), str(self.folder / "plain.safetensors")
        sparse = str(self.folder / "plain_sparse")
        given = ("--finetuned", str(self.tuned), "--threads", str(self.threads))
        imports = peak_of(TWO_MODELS, "--help")[0]
        peaks = {
            "svd": Peak(*peak_of(TWO_MODELS, "svd", *given, "--base", str(self.base), "--out", factors), imports),
            "sparsify": Peak(*peak_of(TWO_MODELS, "sparsify", *given, "--factors", factors, "--out", sparse), imports),
            "merge": Peak(*peak_of(TWO_MODELS, "merge", *given, "--factors", factors, "--out", model), imports),
        }
        shutil.rmtree(sparse)
        for file in (factors, model):
            Path(file).unlink()
        return peaks


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--layers", type=int, default=10, help="depth of the first pair (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the models (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 0 for all cores (default: %(default)s)")
    parser.add_argument("--folder", help="where the temporary models are made (default: the system's)")
    parser.add_argument("--pair", type=Path, nargs=2, metavar=("BASE", "FINETUNED"), help="in place of made models")
    flags = parser.parse_args(arguments)
    if flags.layers < 1 or flags.hidden < 16:
        raise InputError(f"--layers {flags.layers} must be at least 1 and --hidden {flags.hidden} at least 16")
    size = size_of(flags.pair) if flags.pair else sum(spec.nbytes for spec in parameters(flags.layers, flags.hidden))
    made = "" if flags.pair else f", {flags.layers} layers, hidden {flags.hidden}"
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        free_space(Path(folder), DISK_PER_MODEL * size, "the benchmark")
        print(f"{cpu_name()}; two models of {size / 2**20:.0f} MiB{made}; peak memory in MiB, and without imports")
        if flags.pair:
            print(of_pair(Steps(*flags.pair, Path(folder), flags.threads)))
        else:
            print(of_made_pairs(Path(folder), flags.layers, flags.hidden, flags.threads))


def size_of(pair: Sequence[Path]) -> int:
    """Bytes of the first model; InputError unless both are in one file each."""
    for model in pair:
        if not (model / "model.safetensors").is_file():
            raise InputError(f"--pair {model} has no model.safetensors; the way of two models reads one file")
    return (pair[0] / "model.safetensors").stat().st_size


def of_pair(steps: Steps) -> str:
    """Peaks and seconds, here and in the way of two models."""
    here, plain = steps.streamed(), steps.two_models()
    rows = [
        (
            step,
            *cells(plain[step]),
            f"{plain[step].seconds:.0f}",
            *cells(one),
            f"{one.seconds:.0f}",
            less(plain, here, step),
        )
        for step, one in here.items()
    ]
    return table(rows, ("step", "two models", "net", "seconds", "here", "net", "seconds", "less"))


def of_made_pairs(folder: Path, layers: int, hidden: int, threads: int) -> str:
    """Peaks here, in the way of two models, and here at double depth."""
    steps = Steps(folder / "models/base", folder / "models/tuned", folder, threads)
    write_pair(folder / "models", layers, hidden)
    here, plain = steps.streamed(), steps.two_models()
    shutil.rmtree(folder / "models")
    write_pair(folder / "models", 2 * layers, hidden)
    deeper = steps.streamed()
    rows = [
        (
            step,
            *cells(plain[step]),
            *cells(here[step]),
            less(plain, here, step),
            *cells(deeper[step]),
            f"{deeper[step].net - here[step].net:+.0f}",
        )
        for step in here
    ]
    return table(rows, ("step", "two models", "net", "here", "net", "less", f"{2 * layers} layers", "net", "grows"))


def cells(peak: Peak) -> tuple[str, str]:
    return f"{peak.total:.0f}", f"{peak.net:.0f}"


def less(plain: Mapping[str, Peak], here: Mapping[str, Peak], step: str) -> str:
    return f"{plain[step].net / here[step].net:.1f}x"


def peak_of(script: str, *arguments: str) -> tuple[float, float]:
    """Largest resident memory in MiB of `python script arguments`, run to its end, and its seconds."""
    started = time.monotonic()
    command = [sys.executable, "-S", "-c", PEAK_OF, sys.executable, str(ROOT / script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if ended.returncode:
        raise InputError(f"{script} {' '.join(arguments)} failed: {ended.stderr.strip()[-1000:]}")
    return float(ended.stdout), time.monotonic() - started


def write_pair(folder: Path, layers: int, hidden: int) -> None:
    """`base` and `tuned` below `folder`: a Llama's parameters, of which the matrices of the layers differ."""
    config = folder / "config.json"
    folder.mkdir()
    config.write_text(json.dumps({"model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers}))
    specs, generator = parameters(layers, hidden), torch.Generator().manual_seed(0)
    writers = [CheckpointWriter(folder / name, specs) for name in ("base", "tuned")]
    for spec in specs:
        matrix = len(spec.shape) == 2
        base = base_weight(*spec.shape, generator) if matrix else torch.ones(spec.shape, dtype=spec.dtype)
        tuned = tuned_weight(base, generator) if matrix and ".layers." in spec.name else base
        for writer, tensor in zip(writers, (base, tuned), strict=True):
            writer.add(spec.name, tensor)
    for writer in writers:
        writer.finish([config])


def parameters(layers: int, hidden: int) -> list[TensorSpec]:
    tokens, intermediate = TOKENS_PER_HIDDEN * hidden, int(MLP_PER_HIDDEN * hidden)
    shapes = {"model.embed_tokens": (tokens, hidden), "model.norm": (hidden,), "lm_head": (tokens, hidden)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.self_attn.{kind}_proj": (hidden, hidden) for kind in "qkvo"}
        shapes |= {f"model.layers.{layer}.mlp.{kind}_proj": (intermediate, hidden) for kind in ("gate", "up")}
        shapes |= {f"model.layers.{layer}.mlp.down_proj": (hidden, intermediate)}
        shapes |= {f"model.layers.{layer}.{kind}_layernorm": (hidden,) for kind in ("input", "post_attention")}
    return [TensorSpec(f"{name}.weight", shape, torch.bfloat16) for name, shape in shapes.items()]


if __name__ == "__main__":
    run(main)
