"""What the suite does on a GPU: agreement with the CPU, seconds beside the plain way, and the share of the limit.

Prints one Markdown table a section, each as soon as it is measured. Everything is measured at the shapes of a 13B model
(hidden 5120, intermediate 13824, 40 layers of four attention and three mlp matrices); `pair` runs the scripts on
synthetic models of that width and two depths, and `whole` on all 40 layers, which takes 52 GB for the pair and 41 GB
for its SVD. A limit is what the counted operations or bytes would take at the rates of the section `rates`.

    bash benchmarks/gpu.sh                                           (the CUDA tests, then all sections but `whole`)
    python benchmarks/gpu.py svd quantization
    python benchmarks/gpu.py whole --folder /dev/shm --out /tmp
"""

import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as `python benchmarks/gpu.py`: import from the repository root, not from benchmarks/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import delta as delta_script
from benchmarks.synthetic import delta, llama_pair
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.config import Parser
from impart.device import use_device
from impart.device_masks import draw_mask
from impart.encodings import sparse_svd
from impart.errors import InputError, run
from impart.masks import MASKS, keep_thresholds, scattered
from impart.reconstruct import rebuilt_weight
from impart.svd import delta_svd
from quantize import block_kernel, sparse_llama
from quantize.sparse_gptq import inverse_of, quantize_groups, quantize_vectors
from sparsify import sparsify, sparsify_quant
from sparsify.allocation import preprune_ratio, sparsity_ratios, uv_sparsity

SHAPES = {(5120, 5120): 4, (13824, 5120): 2, (5120, 13824): 1}  # of one layer of a 13B model, and how many of each
LAYERS, RANK, BETA, C, CR = 40, 2048, 0.6, 1.0, 32  # RANK: what beta 0.6 leaves of a square matrix
GPU = torch.device("cuda", 0)
Row = tuple[Any, ...]


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)} (default: all but whole)")
    parser.add_argument("--layers", type=int, default=2, help="depth of the first pair, 2 or more (default: 2)")
    parser.add_argument("--folder", help="where the models are made (default: the system's folder for temporary files)")
    parser.add_argument("--out", help="where the deltas are written (default: as --folder)")
    flags = parser.parse_args(arguments)
    unknown = [name for name in flags.sections if name not in SECTIONS]
    if unknown:
        raise InputError(f"section {unknown[0]!r} is not one of {', '.join(SECTIONS)}")
    if not torch.cuda.is_available():
        raise InputError("this benchmark needs a CUDA GPU; the others of this folder run on a CPU")
    use_device("cuda", 0)
    print(f"{torch.cuda.get_device_name(GPU)}, torch {torch.__version__}\n", flush=True)
    rates = measured_rates()
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder, tempfile.TemporaryDirectory(dir=flags.out) as out:
        for name in flags.sections or [name for name in SECTIONS if name != "whole"]:
            started = time.perf_counter()
            for table in SECTIONS[name](rates, flags.layers, Path(folder), Path(out)):
                print(table, flush=True)
            torch.cuda.empty_cache()
            print(f"<!-- {name}: {time.perf_counter() - started:.0f} s -->\n", flush=True)


def markdown(title: str, header: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(map(str, line))} |" for line in lines), ""])


def seconds(work: Callable[[], Any], repeats: int = 3, warm: bool = True) -> float:
    """The median of some runs, after one that is not counted."""
    if warm:
        work()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return sorted(found)[len(found) // 2]


def ms(value: float) -> str:
    return f"{1000 * value:.2f} ms" if value < 0.1 else f"{value:.3f} s"


# ---------------------------------------------------------------------------------------------------------------------


def measured_rates() -> dict[str, float]:
    """Bytes per second of a copy (read and written), operations per second of products by dtype."""
    source, n = torch.empty(1 << 30, dtype=torch.uint8, device=GPU), 8192
    found = {"bytes": 2 * len(source) / seconds(lambda: source.clone(), 5)}
    for dtype in (torch.float64, torch.float32, torch.float16):
        A = torch.randn(n, n, device=GPU, dtype=dtype)
        found[str(dtype).removeprefix("torch.")] = 2 * n**3 / seconds(partial(torch.mm, A, A), 3)
    return found


def rates_section(rates: dict[str, float], *_: Any):
    rows = [(f"product in {key}", f"{value / 1e12:.1f} TFLOP/s") for key, value in rates.items() if key != "bytes"]
    yield markdown("Rates of this GPU", ("", "measured"), [("copy", f"{rates['bytes'] / 1e12:.2f} TB/s"), *rows])


def agreement(*_: Any):
    """The same inputs on both devices, at sizes that the CPU does quickly."""
    rows: list[Row] = []
    t = keep_thresholds(np.linspace(0.02, 0.99, 1024))
    for kind, make in MASKS.items():
        same = np.array_equal(draw_mask(kind, 0, "w", "U", t, 5120, GPU).cpu().numpy(), make(0, "w", "U", t, 5120))
        rows.append((f"masks, {kind}, 1024 x 5120", "equal" if same else "DIFFERENT"))
    dW = delta(2048, 1024)
    ours, theirs = [part.cpu() for part in delta_svd(dW.to(GPU))], delta_svd(dW)
    leading = theirs[1] > theirs[1][0] / 100
    error = ((ours[1] - theirs[1]) / theirs[1]).abs()[leading].max()
    rows.append(("SVD 2048 x 1024, largest difference of s_k > s_1 / 100", f"{float(error):.0e} of s_k"))
    alpha, b = uv_sparsity(2048, 1024, CR), preprune_ratio(2048, 1024, BETA)
    p, q = (sparsity_ratios(s.double().numpy(), alpha, b, C) for s in (ours[1], theirs[1]))
    r = min(len(p), len(q))
    apart = f"{np.abs(p[:r] - q[:r]).max():.0e}"
    rows.append((f"allocation of both, {len(p)} and {len(q)} vectors, largest difference of p_k", apart))
    U, sigma, V = (part[..., : len(q)] for part in theirs)
    encoded = sparse_svd.write(U, sigma, V, q, seed=0, name="w", mask="bernoulli", rescale=True)
    there, here = encoded.to(GPU).dense("w").cpu(), encoded.dense("w")
    apart = f"{float((there - here).abs().max() / here.std()):.0e} of the standard deviation"
    rows.append(("decoding, largest difference", apart))
    for grid, differ, count in code_differences():
        rows.append((f"codes of sparse GPTQ, {grid}, kernel against the loop", f"{differ} of {count:,} differ"))
    yield markdown("Agreement", ("", "GPU against CPU, or fast against plain"), rows)


def problem(rows: int, columns: int, tokens: int = 8192) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W, mask (rows, columns), the Hessian of correlated inputs, bits by row: 8-3-2 as the paper's plan."""
    generator = torch.Generator(GPU).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=GPU)
    X = draw(tokens, columns) @ draw(columns, columns) * draw(columns).exp() / columns**0.5
    mask = torch.rand(rows, columns, generator=generator, device=GPU) < 0.2
    bits = torch.full((rows,), 2, device=GPU)
    bits[: rows // 8], bits[: rows // 64] = 3, 8
    return draw(rows, columns) * mask, mask, 2 * X.T @ X / tokens, bits


def sweeps(rows: int, columns: int) -> dict[str, Callable[[], Tensor]]:
    """The three kinds of sweep, each giving its codes."""
    W, mask, H, bits = problem(rows, columns)
    U, mask_U, H_U, _ = problem(columns, rows)
    of_V, of_U = inverse_of(H), inverse_of(H_U)
    return {
        f"V^T {rows} x {columns}, compact": lambda: quantize_vectors(W, mask, of_V, bits, along_rows=True).codes,
        f"U {columns} x {rows}, compact": lambda: quantize_vectors(U, mask_U, of_U, bits, along_rows=False).codes,
        f"V^T {rows} x {columns}, paper": lambda: quantize_groups(W, mask, of_V, bits, 128).codes,
    }


def by_loop(work: Callable[[], Any]) -> Any:
    """The work with the loop of small calls in place of the kernel."""
    usable = block_kernel.usable
    block_kernel.usable = lambda X: False
    try:
        return work()
    finally:
        block_kernel.usable = usable


def code_differences():
    for name, sweep in sweeps(512, 1024).items():
        ours, theirs = sweep(), by_loop(sweep)
        yield name, int((ours != theirs).sum()), ours.numel()


def svd_section(rates: dict[str, float], *_: Any):
    rows: list[Row] = []
    layer = 0.0
    for (m, n), count in {(4096, 4096): 0, **SHAPES}.items():
        dW, k = delta(m, n, device=GPU), min(m, n)
        ours = seconds(partial(delta_svd, dW), 3)
        layer += count * ours
        limit = svd_limit(max(m, n), k, rates)
        theirs = []
        for driver in ("gesvd", "gesvdj", "gesvda"):
            plain = partial(torch.linalg.svd, dW, full_matrices=False, driver=driver)
            theirs.append(f"{seconds(plain, 1, warm=False) / ours:.1f}x" if m >= n else "")
        rows.append((f"{m} x {n}", ms(ours), f"{limit / ours:.0%}", *theirs))
        print("<!--", rows[-1], "-->", flush=True)
    rows.append(("280 matrices of 13B, one after another", f"{LAYERS * layer:.0f} s", "", "", "", ""))
    yield markdown("SVD", ("matrix", "here", "of the limit", "slower: gesvd", "gesvdj", "gesvda"), rows)
    dW = delta(5120, 5120, device=GPU)
    delta_svd(dW)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        delta_svd(dW)
        torch.cuda.synchronize()
    yield profile_table("Where the time of one 5120 x 5120 SVD goes", seen)


def svd_limit(m: int, n: int, rates: dict[str, float]) -> float:
    """Seconds that the steps of one SVD, m >= n, would take at the rates: the Gram matrix and A V as products.

    Half of the tridiagonal form's 4/3 n^3 operations read the triangle that is left once for every column; the rest of
    them, divide and conquer (8/3 n^3) and the back-transformation (2 n^3) are products.
    """
    triangle_bytes = 8 * n**3 / 6
    products = 2 * m * n * n + (2 / 3 + 8 / 3 + 2) * n**3
    return products / rates["float64"] + triangle_bytes / rates["bytes"] + 2 * m * n * n / rates["float32"]


def profile_table(title: str, seen: profile, most: int = 8) -> str:
    events = [event for event in seen.key_averages() if event.self_device_time_total]
    kernels = sorted(events, key=lambda event: -event.self_device_time_total)
    whole = sum(event.self_device_time_total for event in kernels)
    rows = [
        (f"`{event.key[:70]}`", event.count, ms(took / 1e6), f"{took / whole:.0%}")
        for event in kernels[:most]
        for took in (event.self_device_time_total,)
    ]
    return markdown(title, ("kernel", "calls", "time", "share"), rows)


def quantization_section(rates: dict[str, float], *_: Any):
    rows: list[Row] = []
    for name, sweep in sweeps(RANK, 5120).items():
        ours, theirs = seconds(sweep, 3), seconds(partial(by_loop, sweep), 1)
        codes, plain = sweep(), by_loop(sweep)
        differ = float((codes != plain).float().mean())
        limit = codes.shape[0] * codes.shape[1] ** 2 / rates["float32"]
        rows.append((name, ms(ours), ms(theirs), f"{theirs / ours:.1f}x", f"{limit / ours:.0%}", f"{differ:.0e}"))
    header = ("sweep", "kernel", "loop of small calls", "faster", "of the limit", "codes that differ")
    yield markdown("Sparse GPTQ", header, rows)


def masks_section(rates: dict[str, float], *_: Any):
    rows: list[Row] = []
    t, rows_of = keep_thresholds(np.linspace(0.3, 0.98, RANK)), 5120
    x = torch.randn(RANK, rows_of, device=GPU)
    for kind, make in MASKS.items():
        host = seconds(lambda make=make: torch.from_numpy(make(0, "w", "U", t, rows_of)).to(GPU), 3)
        here = seconds(partial(draw_mask, kind, 0, "w", "U", t, rows_of, GPU), 5)
        limit = RANK * rows_of / rates["bytes"]
        rows.append((f"{kind} mask", ms(here), ms(host), f"{host / here:.0f}x", f"{limit / here:.1%}"))
    mask = draw_mask("bernoulli", 0, "w", "U", t, rows_of, GPU)
    values = x[mask]
    moved = 5 * mask.numel() + 4 * len(values)  # a mask of bytes, the dense matrix, the values
    for name, work in (("gather", lambda: x[mask]), ("scatter", lambda: scattered(values, mask))):
        here = seconds(work, 5)
        rows.append((name, ms(here), "", "", f"{moved / rates['bytes'] / here:.0%}"))
    header = (f"{RANK} x {rows_of}", "on the GPU", "by NumPy, and moved", "faster", "of the limit")
    yield markdown("Masks", header, rows)


# ---------------------------------------------------------------------------------------------------------------------


def pair_section(rates: dict[str, float], layers: int, folder: Path, out: Path):
    """Every step as a user runs it, at two depths; 40 layers by their difference."""
    shallow, deep = (step_times(folder, out, depth) for depth in (layers, 2 * layers))
    rows = []
    for name, (first, peak) in shallow.items():
        second, peak_deep = deep[name]
        all_layers = first + (LAYERS - layers) * (second - first) / layers
        times = (f"{first:.1f} s", f"{second:.1f} s", f"{all_layers:.0f} s")
        rows.append((name, *times, f"{peak:.2f}", f"{peak_deep:.2f}"))
    depths = (f"{layers} layers", f"{2 * layers} layers")
    header = ("step", *depths, "40 layers, computed", f"peak GB on the GPU, {depths[0]}", depths[1])
    yield markdown("Steps on a pair of 13B's width, files read and written", header, rows)


def whole_section(rates: dict[str, float], layers: int, folder: Path, out: Path):
    """All 40 layers, truly run."""
    times = step_times(folder, out, LAYERS)
    rows = [(name, f"{took:.1f} s", f"{peak:.2f}") for name, (took, peak) in times.items()]
    yield markdown("All 40 layers of 13B, files read and written", ("step", "time", "peak GB on the GPU"), rows)


def step_times(folder: Path, out: Path, layers: int) -> dict[str, tuple[float, float]]:
    """Seconds and peak memory on the GPU of every step on a pair of this depth."""
    made = time.perf_counter()
    base, tuned, text = llama_pair(folder, layers, GPU)
    print(f"<!-- pair of {layers} layers made in {time.perf_counter() - made:.0f} s -->", flush=True)
    svd, sparse, sparse_qt, codes = (str(out / name) for name in ("svd", "sparse", "sparse_qt", "quantized"))
    found = {}

    def step(name: str, work: Callable[[], Any]) -> None:
        gc.collect()  # models of the step before, whose modules refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        with redirect_stdout(sys.stderr):  # what the scripts print of their results is no part of the tables
            work()
        torch.cuda.synchronize()
        found[name] = time.perf_counter() - started, torch.cuda.max_memory_allocated() / 1e9
        print(f"<!-- {layers} layers, {name}: {found[name][0]:.1f} s -->", flush=True)

    named = ("--base_model", str(base), "--finetuned_model", str(tuned))
    step("`delta.py --svd`", partial(delta_script.main, ["--svd", *named, "--save_path", svd]))
    shutil.rmtree(svd)
    wanted = [f"base_model={base}", f"ftm_dir={tuned}", f"preprune_ratio={BETA}", f"C={C}"]
    budget = [f"compression_ratio={CR}", f"save_dir={sparse}"]
    step("`sparsify.py`, ImPart from the two models", partial(sparsify.main, wanted + budget))
    budget = [f"compression_ratio_qt={CR}", "grid=paper", "accounting=paper", f"save_dir={sparse_qt}"]
    step("`sparsify_quant.py`, ImPart-Qt from the two models", partial(sparsify_quant.main, wanted + budget))
    places = ["--saved_delta_path", sparse_qt, "--save_compressed_delta_dir", codes]
    step("`sparse_llama.py`, 128 x 2048 tokens", partial(sparse_llama.main, [str(tuned), str(text), *places]))
    opened = open_delta(sparse)
    step("verifying the sparse delta", opened.verify)
    step("decoding it", lambda: [opened.reconstruct(name, device=GPU) for name in opened.names()])
    checkpoint = open_checkpoint(base)
    held = {name: checkpoint.tensor(name).to(GPU) for name in opened.names()}
    served = {name: weight.clone() for name, weight in held.items()}

    def swap() -> None:
        for name, weight in served.items():
            weight.copy_(held[name].float().add_(opened.reconstruct(name, device=GPU)))

    step("swapping it into a model that the GPU holds", swap)
    name = opened.names()[0]
    rebuilt = rebuilt_weight(checkpoint, name, opened.reconstruct(name, device=GPU), served[name].dtype)
    if not torch.equal(served[name], rebuilt):
        raise RuntimeError("the swapped weight is not the rebuilt one")
    for path in (base, tuned, Path(sparse), Path(sparse_qt), Path(codes)):
        shutil.rmtree(path, ignore_errors=True)
    return found


SECTIONS: dict[str, Callable[..., Any]] = {
    "rates": rates_section,
    "agreement": agreement,
    "svd": svd_section,
    "quantization": quantization_section,
    "masks": masks_section,
    "pair": pair_section,
    "whole": whole_section,
}


if __name__ == "__main__":
    run(main)
