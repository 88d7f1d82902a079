"""Synthetic weights whose difference looks like fine-tuning's: a power law over a flat bulk, rounded to 16 bit."""

import torch

BASE_SCALE = 0.02  # standard deviation of the base's entries
EXPONENT = 0.7  # of the power law that singular values follow
BULK = 0.05  # largest singular value of the flat part, over the power law's first


def base_weight(m: int, n: int, generator: torch.Generator, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """W_base (m, n)."""
    return (torch.randn(m, n, generator=generator) * BASE_SCALE).to(dtype)


def tuned_weight(base: torch.Tensor, generator: torch.Generator, relative_size: float = 0.1) -> torch.Tensor:
    """W_finetuned (m, n) in the base's dtype; norm(dW) is about `relative_size` of norm(W_base)."""
    m, n = base.shape
    N = min(m, n)
    s = torch.arange(1, N + 1).float() ** -EXPONENT
    # Gaussian factors are orthonormal enough once divided by the roots of their lengths.
    dW = (torch.randn(m, N, generator=generator) * s) @ torch.randn(N, n, generator=generator) / (m * n) ** 0.5
    dW += BULK / (m**0.5 + n**0.5) * torch.randn(m, n, generator=generator)
    dW *= relative_size * torch.linalg.norm(base.float()) / torch.linalg.norm(dW)
    return (base.float() + dW).to(base.dtype)


def delta(m: int, n: int, seed: int = 0) -> torch.Tensor:
    """dW (m, n) in fp32: what is left of a fine-tuning step between two 16-bit models, their rounding included."""
    generator = torch.Generator().manual_seed(seed)
    base = base_weight(m, n, generator)
    return tuned_weight(base, generator).float() - base.float()
