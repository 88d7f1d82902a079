"""Which method to take, by how far a fine-tuned model is from its base: as measured, README, "Beyond the paper"."""

from impart.artifact import Delta
from impart.checkpoint import Checkpoint
from impart.errors import InputError

LARGE_RHO = 0.1  # measured: 0.01 (the small pair) below it, 0.14 to 0.28 (the tiny pair) above it
COMPACT = "dare with grid: compact, quantized, or lowrank_sparse, quantized"
INFORMATION = "lowrank_sparse with budget: information, quantized"
BY_RATIO = {  # true ratios -> what to take, where rho is below LARGE_RHO, and where it is not
    "up to 32": (COMPACT, INFORMATION),
    "64 and more": (
        "dare in 2 bit with grid: compact, quantized, or bitdelta",
        f"{INFORMATION}, or bitdelta",
    ),
}


def rho(delta: Delta, base: Checkpoint) -> float:
    """Mean over the matrices of norm(dW) / norm(W); InputError unless the delta is an SVD, which has all of dW."""
    if delta.manifest["kind"] != "svd":
        raise InputError(
            f"{str(delta.path)!r} is a {delta.manifest['kind']} delta, of which norm(dW) is not known any more; leave "
            "--base_model out, or name the SVD delta"
        )
    delta.check_base(base)
    norms = {name: float(base.tensor(name).float().norm()) for name in delta.names()}
    return sum(_norm(delta, name) / norms[name] for name in norms) / len(norms)


def recommended(rho: float) -> dict[str, str]:
    """True ratios -> the method to take there."""
    return {ratio: methods[rho >= LARGE_RHO] for ratio, methods in BY_RATIO.items()}


def _norm(delta: Delta, name: str) -> float:
    """norm(dW) of one matrix, from its singular values."""
    stored = delta.stored(name).tensors
    return float(stored["s"].norm()) if "s" in stored else 0.0
