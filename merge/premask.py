"""What DARE or ImPart leave of one matrix's delta, computed on the fly: the values that a stored delta would have."""

from dataclasses import dataclass

import torch
from torch import Tensor

from impart.encodings import Encoded, decode
from impart.svd import delta_svd
from sparsify.allocation import check_feasible
from sparsify.methods import dare, impart, impart_rank

Triplets = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class PreMask:
    """`kind` is dare or impart, `cr` the compression ratio 1 / (1 - sparsity); beta and C are ImPart's."""

    kind: str
    cr: float
    beta: float | None
    C: float | None
    seed: int

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """InputError where beta leaves too little of the matrix for the compression ratio."""
        if self.kind == "impart":
            check_feasible(name, *shape, self.cr, self.beta)

    def rank(self, shape: tuple[int, int]) -> int:
        """The number of leading triplets that ImPart looks at."""
        return impart_rank(*shape, self.beta)

    def thinned(self, name: str, dW: Tensor) -> Tensor:
        """dW (m, n) -> what is left of it, dense (m, n) fp32: bit for bit what sparsify.py stores and reconstructs."""
        if self.kind == "dare":
            return _decoded(name, dare(dW, name=name, cr=self.cr, seed=self.seed))
        return self.thinned_triplets(name, delta_svd(dW, self.rank(dW.shape)))

    def thinned_triplets(self, name: str, triplets: Triplets) -> Tensor:
        """The same from U (m, r), s (r,), V (n, r), for ImPart."""
        U, s, V = triplets
        rank = self.rank((len(U), len(V)))
        encoded = impart(
            U[:, :rank], s[:rank], V[:, :rank], name=name, cr=self.cr, beta=self.beta, C=self.C, seed=self.seed
        )
        return _decoded(name, encoded)


def _decoded(name: str, encoded: Encoded) -> Tensor:
    entry = {"encoding": encoded.encoding, "shape": encoded.shape, **encoded.facts}
    return decode(name, entry, encoded.tensors).to(torch.float32)
