"""PrinMix: the bits of every singular triplet by its error, and U fitted again to the quantized V (Xiong et al. 2025,
arXiv 2506.11087, first called ADAMIX).

Bits: minimise sum_k s_k^2 e_b(k) under the byte budget, where e_b(k) is the relative squared error of u_k v_k^T at b
bits and e_0 = 1. The paper solves a 0/1 integer program; its relaxation is a sort of all steps from one number of bits
to the next by their gain per byte, which differs from the optimum by less than one step.
U: with A = diag(s) V_q^T, the U of the least error tr((dW - U A) H (dW - U A)^T) is dW H A^T (A H A^T)^-1, which is
then quantized. Without calibration text H is the identity, as it is here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from impart.bit_plan import BITS
from impart.config import option
from impart.encodings import empty, quantized_vectors
from impart.encodings.encoded import Encoded, Triplets
from impart.encodings.headers import header_bytes
from impart.errors import InputError
from impart.method import Matrix
from quantize.one_step import OneStepMethod
from quantize.vectors import on_grid, stored_triplets

ROUNDING = 1e-6  # of A A^T's mean diagonal, added to it: columns of V_q may be equal
UNMASKED = ("keep",)  # the tensor that triplets without a mask lack


@dataclass(frozen=True, kw_only=True)
class PrinMix(OneStepMethod):
    """Singular triplets in 0, 2, 3, 4 or 8 bit, so that all stored bytes are at most 1 / CR_qt of 16 bit."""

    name: ClassVar = "prinmix"
    label: ClassVar = "PrinMix"

    compression_ratio_qt: float = option(16.0, low=1.0, help="16-bit size of the linear layers over their stored bytes")
    refit: bool = option(True, help="fit U again to the quantized V before it is quantized")

    @property
    def seeded(self) -> bool:
        return False

    def check(self, name: str, m: int, n: int) -> None:
        if self.budget(name, m, n) < triplet_bytes(m, n, min(BITS)):
            raise InputError(
                f"{name} ({m} x {n}): compression_ratio_qt={self.compression_ratio_qt:g} leaves "
                f"{max(0, self.budget(name, m, n)):.0f} bytes, less than one triplet of {min(BITS)} bits; take a lower "
                "ratio"
            )

    def budget(self, name: str, m: int, n: int) -> float:
        """Bytes for the triplets of an (m, n) matrix."""
        size = 2 * m * n / self.compression_ratio_qt
        return (
            size - header_bytes(name, "quantized_vectors", int(size), UNMASKED) - 2 * len(BITS)
        )  # sections end on bytes

    def rank(self, name: str, m: int, n: int) -> int:
        """As many triplets as the budget holds at the fewest bits."""
        return min(m, n, int(self.budget(name, m, n) / triplet_bytes(m, n, min(BITS))))

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        return int(2 * sum(m * n for m, n in shapes.values()) / self.compression_ratio_qt)

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        (m, n), dW = matrix.shape, matrix.dense()
        triplets = matrix.triplets(self.rank(matrix.name, m, n))
        if triplets is None:
            return empty.write((m, n))
        U, s, V = triplets
        trials = {bits: (on_grid(U.T, bits), on_grid(V.T, bits)) for bits in BITS}
        errors = {bits: rank_one_errors((U.T, V.T), (u.values(), v.values())) for bits, (u, v) in trials.items()}
        costs = {bits: triplet_bytes(m, n, bits) for bits in BITS}
        bits = allocated_bits(s.double().cpu().numpy(), errors, costs, self.budget(matrix.name, m, n))
        order = np.argsort(-bits, kind="stable")[: np.count_nonzero(bits)]
        chosen = (U[:, order], s[order], V[:, order])
        return write_triplets(dW, chosen, bits[order], self.refit)


def rank_one_errors(exact: tuple[Tensor, Tensor], rounded: tuple[Tensor, Tensor]) -> np.ndarray:
    """norm(u v^T - u_q v_q^T)^2 / norm(u v^T)^2 of each triplet: vectors as rows (r, m), (r, n) -> (r,)."""

    def product(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
        return (left[0] * right[0]).sum(1).double() * (left[1] * right[1]).sum(1).double()

    whole = product(exact, exact).clamp(min=torch.finfo(torch.float32).tiny)
    return ((whole - 2 * product(exact, rounded) + product(rounded, rounded)) / whole).cpu().numpy()


def triplet_bytes(m: int, n: int, bits: int) -> float:
    """What one triplet of an (m, n) matrix takes besides the header."""
    return (m + n) * bits / 8 + quantized_vectors.overhead_bytes(m, n, 1, (), 0, masked=False)


def allocated_bits(
    s: np.ndarray, errors: Mapping[int, np.ndarray], costs: Mapping[int, float], budget: float
) -> np.ndarray:
    """Bits (N,) of triplets with singular values s (N,): steps by gain per byte, as long as they fit the budget.

    `errors`: bits -> relative squared errors (N,); `costs`: bits -> bytes of one triplet. A step leads from one corner
    of a triplet's convex hull of (bytes, error) to the next, so that its steps come in the order of their bits.
    """
    steps = []
    for k, value in enumerate(s):
        corners = hull([(0.0, 1.0, 0), *((costs[b], float(errors[b][k]), b) for b in sorted(costs))])
        for (bytes_before, before, _), (bytes_after, after, b) in zip(corners, corners[1:], strict=False):
            cost = bytes_after - bytes_before
            steps.append((-(value**2) * (before - after) / cost, k, b, cost))
    bits, closed = np.zeros(len(s), dtype=np.int64), set()
    for _, k, b, cost in sorted(steps):
        if k in closed or cost > budget:
            closed.add(k)  # later steps of this triplet start from here
            continue
        bits[k], budget = b, budget - cost
    return bits


def hull(points: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """The corners of the lower convex hull of (bytes, error, bits), bytes ascending, as far as the error falls."""
    corners: list[tuple[float, float, int]] = []
    for point in points:
        if corners and point[1] >= corners[-1][1]:
            continue
        while len(corners) > 1 and _slope(corners[-2], point) <= _slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append(point)
    return corners


def _slope(left: tuple[float, float, int], right: tuple[float, float, int]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def refitted(dW: Tensor, A: Tensor, H: Tensor | None = None) -> Tensor:
    """U (m, r) = dW H A^T (A H A^T)^-1 for dW (m, n), A (r, n), H (n, n); None: the identity."""
    A64, dW64 = A.double(), dW.double()
    HAt = A64.T if H is None else H.double() @ A64.T
    G = A64 @ HAt
    G.diagonal().add_(ROUNDING * G.diagonal().mean())
    return torch.linalg.solve(G, HAt.T @ dW64.T).T.float()


def write_triplets(dW: Tensor, triplets: Triplets, bits: np.ndarray, refit: bool) -> Encoded:
    """U (m, r), s (r,), V (n, r) in codes; bits (r,) descending."""
    U, s, V = triplets
    per_triplet = torch.from_numpy(bits).to(dW.device)
    v = on_grid(V.T, per_triplet)
    if refit:
        U = refitted(dW, v.values()) / s  # A without s: G stays well conditioned, whatever the spectrum
    u = on_grid(U.T, per_triplet)
    return stored_triplets(u, s, v, per_triplet)
