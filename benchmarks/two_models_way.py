"""The main job as the authors' release does it, written plainly: whole models and all factors in memory at once.

benchmarks/memory.py compares the streamed way with this one. Checkpoints are single safetensors files here; factors are
a dictionary that torch.save pickles, the base's weights among them.

    python benchmarks/two_models_way.py svd      --base BASE --finetuned TUNED --out FACTORS.pt
    python benchmarks/two_models_way.py sparsify --factors FACTORS.pt --finetuned TUNED --out SPARSE
    python benchmarks/two_models_way.py merge    --factors FACTORS.pt --finetuned TUNED --out MODEL.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python benchmarks/two_models_way.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from safetensors.torch import load_file, save_file

from impart.device import use_device
from sparsify.allocation import preprune_ratio, sparsity_ratios, uv_sparsity

Weights = dict[str, torch.Tensor]
CR, BETA, C = 32, 0.6, 1.0  # as in benchmarks/memory.py


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("svd", "sparsify", "merge"))
    for flag in ("--base", "--finetuned", "--factors", "--out"):
        parser.add_argument(flag, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args(arguments)
    use_device("cpu", flags.threads)
    if flags.step == "svd":
        torch.save(all_factors(whole_model(flags.base), whole_model(flags.finetuned)), flags.out)
        return
    factors = torch.load(flags.factors, weights_only=True)
    if flags.step == "sparsify":
        sparsify_all(factors)
        flags.out.mkdir()
        torch.save(factors, flags.out / "factors.pt")
        flags.out /= "model.safetensors"
    save_file(merged(whole_model(flags.finetuned), factors), flags.out)


def whole_model(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def all_factors(base: Weights, tuned: Weights) -> Weights:
    """base, U, S and V of every matrix under self_attn or mlp, in the models' dtype."""
    factors = {}
    for name, weight in base.items():
        if "self_attn" in name or "mlp" in name:
            U, S, V = torch.svd((tuned[name] - weight).float())
            factors[f"{name}.base"] = weight
            factors |= {
                f"{name}.{letter}": factor.to(weight.dtype) for letter, factor in (("U", U), ("S", S), ("V", V))
            }
    return factors


def sparsify_all(factors: Weights) -> None:
    """Masked and rescaled factors, dense, in place of the full ones."""
    for name in matrices(factors):
        U, S, V = (factors[f"{name}.{letter}"] for letter in "USV")
        m, n = len(U), len(V)
        values = S.double().sort(descending=True).values.numpy()  # 16-bit rounding may have put two out of order
        p = sparsity_ratios(values, uv_sparsity(m, n, CR), preprune_ratio(m, n, BETA), C).tolist()
        r = len(p)
        factors[f"{name}.U"], factors[f"{name}.V"] = sparsified(U[:, :r], p), sparsified(V[:, :r], p)
        factors[f"{name}.S"] = S[:r]


def sparsified(factor: torch.Tensor, p: Sequence[float]) -> torch.Tensor:
    """A factor (m, r) with int(m p_k) entries of column k at zero and the others over 1 - p_k."""
    m, mask = len(factor), torch.ones_like(factor)
    for k, ratio in enumerate(p):
        mask[torch.randperm(m)[: int(m * ratio)], k] = 0
    return (factor * mask / (1 - torch.tensor(p))).to(factor.dtype)


def merged(model: Weights, factors: Weights) -> Weights:
    """The model with base + U diag(S) V^T in place of every matrix."""
    dense = {
        name: (
            factors[f"{name}.base"].float()
            + (factors[f"{name}.U"].float() * factors[f"{name}.S"].float()) @ factors[f"{name}.V"].float().T
        ).to(model[name].dtype)
        for name in matrices(factors)
    }
    return model | dense


def matrices(factors: Weights) -> list[str]:
    return [key.removesuffix(".base") for key in factors if key.endswith(".base")]


if __name__ == "__main__":
    main(sys.argv[1:])
