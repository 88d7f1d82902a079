"""What a sparsification method leaves of one matrix's delta, computed on the fly: the values of a stored delta."""

from dataclasses import dataclass

import torch
from torch import Tensor

from impart.encodings.encoded import Triplets
from impart.method import DenseMatrix, FactoredMatrix, Matrix
from sparsify.faces import SparseMethod


@dataclass(frozen=True)
class PreMask:
    """A method with its settings, and the seed of its masks."""

    method: SparseMethod
    seed: int

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """InputError where the method cannot meet its budget on the matrix."""
        m, n = shape
        self.method.check(name, m, n)

    def of_delta(self, name: str, dW: Tensor) -> Tensor:
        """dW (m, n) -> what is left of it, dense (m, n) fp32: bit for bit what sparsify.py stores and reconstructs."""
        return self._decoded(DenseMatrix(name, dW))

    def of_triplets(self, name: str, triplets: Triplets) -> Tensor:
        """The same of U diag(s) V^T, from U (m, r), s (r,), V (n, r)."""
        return self._decoded(FactoredMatrix(name, triplets))

    def _decoded(self, matrix: Matrix) -> Tensor:
        return self.method.encode(matrix, self.seed).dense(matrix.name).to(torch.float32)
