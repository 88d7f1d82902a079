"""Quantizing one Llama-like layer against the plain way, and the inner loop of sparse GPTQ against a loop over columns.

    python benchmarks/quantization_speed.py
    python benchmarks/quantization_speed.py --hidden 1024 --sequences 8 --device cuda

`plain` is how the authors of ImPart publish it: for every matrix and bit group, V and then U, the layer runs over all
sequences again to gather one more Hessian, which is inverted again, and quantize/reference.py quantizes the columns one
by one. `here` is what quantize/sparse_llama.py does, its files included. Both use grid: paper and the same calibration
tokens; the last line is grid: compact. Errors are of the outputs, against the sparse delta, mean over the matrices. CPU
seconds of one thread, so that other work on the machine does not count.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run as `python benchmarks/quantization_speed.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging as transformers_logging

from benchmarks.side_by_side import machine
from impart.architecture import linear_names
from impart.artifact import Delta
from impart.artifact_writer import DeltaWriter
from impart.bit_plan import PAPER_PLAN, cut_plan, plan_spans
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.comparison import Comparison
from impart.compress import compress
from impart.config import Parser
from impart.device import use_device
from impart.encodings.masked import factor_masks
from impart.errors import InputError, run
from impart.report import Report, table
from impart.sources import ModelSource
from quantize.activations import Activations
from quantize.driver import Weights, quantize_layers
from quantize.matrix import Rule, relative_error
from quantize.reference import quantize_columns
from quantize.sparse_gptq import RETURNED_BLOCK, Inverse, inverse_of, quantize_groups
from quantize.streamed import StreamedDecoder
from sparsify.methods.impart import ImPartQt

BETA, C, CR = 0.6, 1.0, 16
HEAD = 64
STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--hidden", type=int, default=512, help="of the layer (default: %(default)s)")
    parser.add_argument(
        "--sequences", type=int, default=16, help="of 512 tokens, for calibration (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 0 for all cores (default: %(default)s)")
    flags = parser.parse_args(arguments)
    if flags.hidden < HEAD or flags.hidden % HEAD:
        raise InputError(f"--hidden {flags.hidden} must be a multiple of {HEAD}, the size of a head")
    if flags.sequences < 1:
        raise InputError(f"--sequences {flags.sequences} must be at least 1")
    device = use_device(flags.device, flags.threads, RETURNED_BLOCK)  # as sparse_llama.py does
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        rows = [inner_loop(device), *whole_layer(Path(folder), flags.hidden, flags.sequences, device)]
    print(f"{machine(device)}, torch {torch.__version__}")
    print(table(rows, ("", "plain", "here", "faster", "error plain", "error here")))


def inner_loop(device: torch.device, rows: int = 2048, columns: int = 1024) -> list[str]:
    """V^T of `rows` triplets, 2 bit, groups of 128, half of the entries kept, the same Hessian for both."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    H = (X.T @ X / len(X)).to(device)
    mask = (torch.rand(rows, columns, generator=generator) < 0.5).to(device)
    W = torch.randn(rows, columns, generator=generator).to(device) * mask
    inverse = inverse_of(H)
    ours, ours_seconds = timed(lambda: quantize_groups(W, mask, inverse, 2, 128).values(), 3)
    theirs, theirs_seconds = timed(lambda: plain(W, mask, inverse, 2, 128), 3)
    errors = [f"{relative_error(Q - W, W, H):.4f}" for Q in (theirs, ours)]
    return [
        f"inner loop, {rows} x {columns}, per column",
        f"{theirs_seconds / columns * 1e6:.0f} us",
        f"{ours_seconds / columns * 1e6:.0f} us",
        f"{theirs_seconds / ours_seconds:.1f}x",
        *errors,
    ]


def plain(W: Tensor, mask: Tensor, inverse: Inverse, bits: int, groupsize: int) -> Tensor:
    """Q (rows, n) by the loop over columns of quantize/reference.py, with an order and a factor that are there."""
    order = inverse.order
    Q, _ = quantize_columns(W[:, order], mask[:, order], inverse.factor, bits, groupsize)
    return Q[:, torch.argsort(order)]


def whole_layer(folder: Path, hidden: int, count: int, device: torch.device) -> list[list[str]]:
    """One layer: Hessians, factors, seven matrices; here also reading the sparse delta and writing the artifact."""
    base, tuned = models(folder, hidden)
    sparse = sparse_delta(base, tuned, folder / "sparse", device)
    sequences = torch.randint(0, 256, (count, 512), generator=torch.Generator().manual_seed(2))
    rule = Rule("paper", PAPER_PLAN, PAPER_PLAN, 0)
    weights = Weights(base, tuned, sparse, device)

    def here(grid: str) -> Delta:
        decoder = StreamedDecoder(tuned, "model.layers", device, torch.float32)
        writer = DeltaWriter(
            folder / grid,
            {
                "kind": "quantized",
                "base": sparse.manifest["base"],
                "method": "impart",
                "finetuned": sparse.manifest["finetuned"],
                "settings": {},
                "seed": 0,
            },
            dtypes={name: torch.float32 for name in sparse.names()},
            extras=[],
            dropped=[],
            needed_bytes=0,
            overwrite=True,
        )
        quantize_layers(decoder, weights, writer, sequences, replace(rule, grid=grid), true_sequential=True, batch=1)
        return writer.finish([], Report({}))

    ours, ours_seconds = timed(lambda: here("paper"), 2)
    compact, compact_seconds = timed(lambda: here("compact"), 2)
    theirs, theirs_seconds = timed(lambda: plain_layer(tuned, base, sparse, weights, sequences, rule, device), 1)
    made = [{name: delta.reconstruct(name, device=device) for name in delta.names()} for delta in (ours, compact)]
    errors = [f"{error:.4f}" for error in mean_errors(sparse, weights, tuned, sequences, device, (theirs, *made))]
    return [
        [
            f"a layer of hidden {hidden}, {count} x 512 tokens",
            f"{theirs_seconds:.1f} s",
            f"{ours_seconds:.1f} s",
            f"{theirs_seconds / ours_seconds:.1f}x",
            *errors[:2],
        ],
        [
            "the same with grid: compact",
            "",
            f"{compact_seconds:.1f} s",
            f"{theirs_seconds / compact_seconds:.1f}x",
            "",
            errors[2],
        ],
    ]


def models(folder: Path, hidden: int) -> tuple[Checkpoint, Checkpoint]:
    """A random one-layer Llama and a fine-tuned one whose delta has a falling spectrum."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=1,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD,
        max_position_embeddings=512,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for layer in model.model.layers:
            for module in (*layer.self_attn.children(), *layer.mlp.children()):
                if isinstance(module, torch.nn.Linear):
                    m, n = module.weight.shape
                    U, V = torch.linalg.qr(torch.randn(m, min(m, n)))[0], torch.linalg.qr(torch.randn(n, min(m, n)))[0]
                    module.weight += (U * (0.2 * torch.arange(1, min(m, n) + 1).float() ** -0.7)) @ V.T
    model.save_pretrained(folder / "tuned")
    return open_checkpoint(folder / "base"), open_checkpoint(folder / "tuned")


def sparse_delta(base: Checkpoint, tuned: Checkpoint, path: Path, device: torch.device) -> Delta:
    matrices = linear_names(tuned)
    source = ModelSource(Comparison(base, tuned, matrices, frozenset(), [], []), device)
    method = ImPartQt(compression_ratio_qt=CR, preprune_ratio=BETA, C=C, accounting="paper")
    made = compress(source, method, path, kind="sparse", seed=0, overwrite=True, report=Report({}))
    assert made is not None  # one process
    return made


def plain_layer(
    tuned: Checkpoint,
    base: Checkpoint,
    sparse: Delta,
    weights: Weights,
    sequences: Tensor,
    rule: Rule,
    device: torch.device,
) -> dict[str, Tensor]:
    """The layer run again for every matrix, factor and bit group; weight name -> quantized dW."""
    decoder = StreamedDecoder(tuned, "model.layers", device, torch.float32)
    inputs = [decoder.record(ids.unsqueeze(0)) for ids in sequences]
    encoded = {name: weights.sparse(name) for name in sparse.names()}
    decoder.load(
        0,
        {
            name: weights.with_delta(name, encoded[name]) if name in encoded else weights.plain(name)
            for name in decoder.parameter_names(0)
        },
    )
    found = {}
    for short in (name for stage in STAGES for name in stage):
        name = next(name for name in encoded if f".{short}." in name)
        U, s, V = encoded[name].factors(name)
        mask_U, mask_V = factor_masks(name, encoded[name])
        spans = list(plan_spans(cut_plan(rule.attn_plan, len(s), name)))
        Vq, Uq = torch.zeros_like(V), torch.zeros_like(U)
        for bits, a, b in spans:
            inverse = inverse_of(run_again(decoder, name, inputs, lambda x: x))
            Vq[:, a:b] = plain(V[:, a:b].T, mask_V[a:b], inverse, bits, rule.groupsize).T
        for bits, a, b in spans:
            inverse = inverse_of(run_again(decoder, name, inputs, lambda x, part=Vq[:, a:b] * s[a:b]: x @ part))
            Uq[:, a:b] = plain(U[:, a:b], mask_U[a:b].T, inverse, bits, rule.groupsize)
        found[name] = (Uq * s) @ Vq.T
        decoder.load(0, {name: base.tensor(name).to(device) + found[name]})
    return found


def run_again(decoder: StreamedDecoder, name: str, inputs: list, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """One pass of the whole layer over all sequences, gathering the Hessian of the transformed inputs of one matrix."""
    H, tokens = None, 0

    def gather(module: torch.nn.Module, arguments: tuple) -> None:
        nonlocal H, tokens
        x = transform(arguments[0].flatten(0, -2).float())
        H = 2 * x.T @ x if H is None else H + 2 * x.T @ x
        tokens += len(x)

    hook = decoder.port(0, name).module.register_forward_pre_hook(gather)
    for hidden, calls in inputs:
        decoder.run(0, hidden, calls[0])
    hook.remove()
    return H / tokens


def mean_errors(
    sparse: Delta,
    weights: Weights,
    tuned: Checkpoint,
    sequences: Tensor,
    device: torch.device,
    results: tuple[dict[str, Tensor], ...],
) -> list[float]:
    """Mean relative output error of each result against the sparse delta, on the inputs of the unquantized layer."""
    decoder = StreamedDecoder(tuned, "model.layers", device, torch.float32)
    encoded = {name: weights.sparse(name) for name in sparse.names()}
    decoder.load(
        0,
        {
            name: weights.with_delta(name, encoded[name]) if name in encoded else weights.plain(name)
            for name in decoder.parameter_names(0)
        },
    )
    hessians = Activations(decoder, sequences, 1).hessians(0, sparse.names())
    means = []
    for result in results:
        errors = [
            relative_error(
                result[name] - sparse.reconstruct(name, device=device),
                sparse.reconstruct(name, device=device),
                hessians[name].H,
            )
            for name in sparse.names()
        ]
        means.append(sum(errors) / len(errors))
    return means


def timed(work: Callable, repeats: int) -> tuple[object, float]:
    """The result and the fastest of `repeats` runs, in CPU seconds, or seconds where a GPU computes."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    best = float("inf")
    for _ in range(repeats):
        started = clock()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, clock() - started)
    return result, best


if __name__ == "__main__":
    run(main)
