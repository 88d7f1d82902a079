"""ImPart: every singular vector has its own sparsity, from its singular value (Eq. 2-7, Algorithms 1 and 3).

The ablations of Table 3 are settings: preprune_ratio: 0, allocation: uniform, rescale: false.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from impart.bit_plan import Plan, checked_plan
from impart.config import option
from impart.encodings import empty, sparse_svd
from impart.encodings.encoded import Encoded, Triplets
from impart.errors import InputError
from impart.method import Matrix, Method
from sparsify.accounting import Accounting
from sparsify.allocation import (
    beta_of,
    budget_bits,
    check_feasible,
    check_max_rank,
    check_quantized,
    kept_rank,
    preprune_ratio,
    quantized_ratios,
    redrawn,
    sparsity_ratios,
    uniform_ratios,
    uv_sparsity,
)
from sparsify.faces import QuantizedMethod, SparseMethod, bit_plan_option, with_sizes
from sparsify.information import information_of, read_information, said
from sparsify.shares import MASKED_KAPPA, SHARES, least_error_shares_of


def _beta():
    return option(
        help="beta: share of singular vectors that is dropped first, for a square matrix; 0 switches it off. The paper "
        "takes it from 0.6, 0.7, 0.8",
        aliases=("beta",),
        low=0.0,
    )


def _exponent():
    return option(
        help="exponent of the importance s_k / s_1; the paper takes it from 0.5, 1 "
        "(C: only_lowrank is the LowRank baseline)",
        low=0.0,
        words=("only_lowrank",),
    )


def _mask():
    return option(
        "bernoulli",
        help="independent draws per entry, or exact counts per column",
        choices=("bernoulli", "exact_count"),
    )


@dataclass(frozen=True, kw_only=True)
class ImPart(SparseMethod):
    """Budget: m n / CR values of U and V together, or as many bytes (accounting: bytes)."""

    name: ClassVar = "impart"
    label: ClassVar = "ImPart"

    accounting: str = option(
        "paper",
        choices=("paper", "bytes"),
        help="paper: the kept values alone are 1 / CR; bytes: so is every stored byte of the linear layers",
    )
    preprune_ratio: float = _beta()
    C: float = _exponent()
    max_rank: int | None = option(
        None,
        help="most singular vectors that are kept of a matrix, so that serve/lora.py can make an adapter of the delta; "
        "default: as many as beta leaves",
        low=1,
    )
    allocation: str = option(
        "importance",
        help="sparsity of each singular vector by its value (Eq. 7), or one for all",
        choices=("importance", "uniform"),
    )
    mask: str = _mask()
    rescale: bool = option(True, help="multiply kept entries by 1 / (1 - p)")
    information: str | None = option(
        None,
        help="file of quantize/information.py, by which the budget of the whole model goes to the matrices whose "
        "errors cost most; default: each matrix has the ratio",
    )

    def resolved(self) -> Self:
        check_beta(self.preprune_ratio)
        if self.accounting == "bytes" and self.allocation != "importance":
            raise InputError("accounting: bytes needs allocation: importance")
        if self.information is not None:
            read_information(self.information)
        return self

    def settings(self) -> dict[str, Any]:
        return said(super().settings())

    @property
    def needs_all(self) -> bool:
        return self.information is not None

    def fitted(self, matrices: Sequence[Matrix]) -> Method:
        # departs from the paper: there each matrix has the ratio
        if self.information is None:
            return self
        information = information_of(self.information, [matrix.name for matrix in matrices])
        return ImPartOfModel(method=self, by_name=self.shares(matrices, information.__getitem__))

    def shares(self, matrices: Sequence[Matrix], weight: Callable[[str], float]) -> dict[str, float]:
        """Shares of their even parts that give the matrices the least sum of expected errors times `weight`."""
        return least_error_shares_of(matrices, self.expected_errors, weight)

    def expected_errors(self, matrix: Matrix) -> np.ndarray | None:
        """Expected errors (steps,) of a matrix at SHARES of its even part; None for a delta of zeros."""
        triplets = matrix.triplets(min(matrix.shape))
        if triplets is None:
            return None
        s = all_values(triplets)
        return np.array([self.expected_error(matrix.name, matrix.shape, s, share) for share in SHARES])

    def expected_error(self, name: str, shape: tuple[int, int], s: np.ndarray, share: float) -> float:
        """Of an (m, n) matrix with values s (N,) that gets `share` of its even part; infinite where it cannot.

        Sum of s_k^2 (1 / (1 - p_k)^2 - 1) over the triplets that are masked, and MASKED_KAPPA s_k^2 of the others.
        """
        one, (m, n) = self.at(share), shape
        try:
            one.check(name, m, n)
        except InputError:
            return math.inf
        p = one.sparsity(s, m, n)
        kept, dropped = s[: len(p)], s[len(p) :]
        return float((kept**2 * ((1 - p) ** -2.0 - 1)).sum() + MASKED_KAPPA * (dropped**2).sum())

    def at(self, share: float) -> "ImPart":
        """The method for a matrix that gets `share` of its even part."""
        return replace(self, compression_ratio=max(1.0, self.compression_ratio / share), information=None)

    def sparsity(self, s: np.ndarray, m: int, n: int) -> np.ndarray:
        """p (r,) of an (m, n) matrix with values s (N,)."""
        alpha, b = uv_sparsity(m, n, self.compression_ratio), preprune_ratio(m, n, self.beta(m, n))
        if self.allocation == "uniform":
            return uniform_ratios(s, alpha, b)
        return sparsity_ratios(s, alpha, b, self.C)

    def check(self, name: str, m: int, n: int) -> None:
        check_some_left(name, m, n, self.preprune_ratio)
        check_feasible(name, m, n, self.compression_ratio, self.preprune_ratio)
        check_max_rank(name, m, n, self.compression_ratio, self.max_rank)
        if self.accounting == "bytes":
            check_one_triplet(name, m, n, self.compression_ratio, Accounting(plan=None))
        if self.information is not None:
            information_of(self.information, [name])

    def beta(self, m: int, n: int) -> float:
        """The beta that leaves an (m, n) matrix at most max_rank singular vectors, and no more than preprune_ratio."""
        # departs from the paper: it has no bound on the rank
        return self.preprune_ratio if self.max_rank is None else max(self.preprune_ratio, beta_of(m, n, self.max_rank))

    def rank(self, name: str, m: int, n: int) -> int:
        return pruned_rank(m, n, self.beta(m, n))

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        m, n = matrix.shape
        triplets = matrix.triplets(self.rank(matrix.name, m, n))
        if triplets is None:
            return empty.write((m, n))
        if self.accounting == "bytes":
            return impart_to_size(
                triplets,
                matrix.name,
                self.compression_ratio,
                self.beta(m, n),
                self.C,
                Accounting(plan=None),
                seed=seed,
                mask=self.mask,
                rescale=self.rescale,
            )
        p = self.sparsity(all_values(triplets), m, n)
        if len(p) == 0:  # departs from the paper: it does not treat a p that leaves no column
            return empty.write((m, n))
        return masked(triplets, p, matrix.name, seed=seed, mask=self.mask, rescale=self.rescale)


@dataclass(frozen=True, kw_only=True)
class ImPartOfModel(Method):
    """ImPart with the budget of one model divided: `by_name` has the share of its even part for each matrix."""

    name: ClassVar = ImPart.name
    label: ClassVar = ImPart.label

    method: ImPart
    by_name: Mapping[str, float]

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        return self.method.at(self.by_name[matrix.name]).encode(matrix, seed)


@dataclass(frozen=True, kw_only=True)
class ImPartQt(QuantizedMethod):
    """ImPart-Qt's allocation: Algorithm 3 under the bit plan."""

    name: ClassVar = "impart"
    label: ClassVar = "ImPart-Qt"

    preprune_ratio: float = _beta()
    C: float = _exponent()
    mask: str = _mask()
    bit_plan: list[list[int | str]] = bit_plan_option()

    def resolved(self) -> Self:
        check_beta(self.preprune_ratio)
        return replace(super().resolved(), bit_plan=checked_plan(self.bit_plan))

    @property
    def plan(self) -> Plan:
        return self.bit_plan

    def check(self, name: str, m: int, n: int) -> None:
        cr, beta = self.compression_ratio_qt, self.preprune_ratio
        check_some_left(name, m, n, beta)
        check_one_triplet(name, m, n, cr, self.sized)
        check_quantized(name, m, n, cr, beta, self.sized.cost(name, m, n, cr))
        self.sized.bits(pruned_rank(m, n, beta), name)

    def rank(self, name: str, m: int, n: int) -> int:
        return pruned_rank(m, n, self.preprune_ratio)

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        triplets = matrix.triplets(self.rank(matrix.name, *matrix.shape))
        if triplets is None:
            return empty.write(matrix.shape)
        return impart_to_size(
            triplets,
            matrix.name,
            self.compression_ratio_qt,
            self.preprune_ratio,
            self.C,
            self.sized,
            seed=seed,
            mask=self.mask,
            rescale=True,
        )


def check_beta(beta: float) -> None:
    """InputError when pre-pruning leaves nothing."""
    if beta >= 1:
        raise InputError(f"preprune_ratio={beta:g} drops every singular vector; take less than 1")


def check_some_left(name: str, m: int, n: int, beta: float) -> None:
    """InputError for a matrix so small that beta leaves no singular vector of it."""
    if pruned_rank(m, n, beta) == 0:
        largest = math.floor((1 - (m + n) / (2 * m * n)) * 10**4) / 10**4  # K = N (1 - b) = (1 - beta) 2 m n / (m + n)
        raise InputError(
            f"{name} ({m} x {n}): preprune_ratio beta={beta:g} leaves none of its {min(m, n)} singular vectors; "
            f"take beta <= {largest:g}, or leave this type out with weight_types"
        )


def check_one_triplet(name: str, m: int, n: int, cr: float, accounting: Accounting) -> None:
    """InputError for a budget that the leading triplet, whose p is 0, does not fit into."""
    budget = budget_bits(m, n, cr)
    if accounting.cost(name, m, n, cr)(np.zeros(1)) > budget:
        raise InputError(
            f"{name} ({m} x {n}): compression ratio {cr:g} leaves {budget / 8:.0f} bytes, less than one "
            f"singular triplet needs (accounting: {accounting.count}); take a lower ratio or fewer bits"
        )


def pruned_rank(m: int, n: int, beta: float) -> int:
    """Number K of leading triplets that pre-pruning with the paper's beta leaves of an (m, n) matrix."""
    return kept_rank(min(m, n), preprune_ratio(m, n, beta))


def all_values(triplets: Triplets) -> np.ndarray:
    """s (N,) float64, N = min(m, n): the given leading values, and zeros for the rest, which no rule here looks at."""
    U, s, V = triplets
    values = np.zeros(min(len(U), len(V)))
    values[: len(s)] = s.double().cpu().numpy()
    return values


def masked(triplets: Triplets, p: np.ndarray, name: str, *, seed: int, mask: str, rescale: bool) -> Encoded:
    """The first len(p) triplets under drop probabilities p (r,)."""
    U, s, V = (part[..., : len(p)] for part in triplets)
    return sparse_svd.write(U, s, V, p, seed=seed, name=name, mask=mask, rescale=rescale)


def impart_to_size(
    triplets: Triplets,
    name: str,
    cr: float,
    beta: float,
    C: float,
    accounting: Accounting,
    *,
    seed: int,
    mask: str,
    rescale: bool,
) -> Encoded:
    """The kept entries of U (m, r) and V (n, r), r >= K: at their bits 1 / cr of dW in 16 bit (Algorithm 3)."""
    m, n = len(triplets[0]), len(triplets[2])
    check_one_triplet(name, m, n, cr, accounting)
    budget, cost = budget_bits(m, n, cr), accounting.cost(name, m, n, cr)
    p = quantized_ratios(all_values(triplets), preprune_ratio(m, n, beta), C, cost, budget)

    def drawn(q: np.ndarray) -> tuple[int, int]:
        return accounting.drawn_bytes(name, m, n, q, seed=seed, mask=mask, cr=cr, device=triplets[0].device)

    if accounting.count == "bytes":  # the masks that are drawn, not only their mean, have to fit
        p = redrawn(p, cost, lambda q: 8 * drawn(q)[1], budget)
    encoded = masked(triplets, p, name, seed=seed, mask=mask, rescale=rescale)
    return encoded if accounting.plan is None else with_sizes(encoded, *drawn(p))
