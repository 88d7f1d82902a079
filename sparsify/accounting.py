"""What a matrix costs under the two ways of counting: values alone, as the paper counts, or every stored byte."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from impart.bit_plan import REST, Plan, cut_plan, plan_bits
from impart.device_masks import draw_mask
from impart.encodings import quantized_entries
from impart.encodings.codes import codes_bytes, expected_code_bits
from impart.encodings.encoded import encoding_of
from impart.encodings.headers import header_bytes
from impart.masks import keep_thresholds
from impart.packing import packed_bytes
from sparsify.allocation import Cost


@dataclass(frozen=True)
class Accounting:
    """How the size of a compressed matrix is counted, and in what form it will be stored."""

    plan: Plan | None  # bits of each triplet; None: every value in 16 bit
    count: str = "bytes"  # "paper": values alone; "bytes": every stored byte of the matrix
    grid: str = "compact"
    groupsize: int = 128
    count_3bit_as_4: bool = False  # as the release does
    masked: bool = True  # whether each triplet has a keep threshold

    @property
    def encoding(self) -> str:
        if self.plan is None:
            return "sparse_svd"
        return "quantized_vectors" if self.grid == "compact" else "quantized_groups"

    def bits(self, rank: int, name: str) -> np.ndarray:
        """Bits (rank,) of the codes of each triplet; InputError when the plan does not cover them."""
        return np.full(rank, 16) if self.plan is None else plan_bits(cut_plan(self.plan, rank, name)).numpy()

    def cost(self, name: str, m: int, n: int, cr: float) -> Cost:
        """p (r,) -> expected bits of the stored matrix. The plan's last entry takes the rest, whatever its number."""
        endless = None if self.plan is None else [*self.plan[:-1], [self.plan[-1][0], REST]]
        bits = replace(self, plan=endless).bits(min(m, n), name)
        if self.count == "paper":
            counted = np.where(bits == 3, 4, bits) if self.count_3bit_as_4 else bits
            return lambda p: expected_code_bits(p, m, n, counted)
        header = self._header(name, m, n, cr)
        return lambda p: expected_code_bits(p, m, n, bits) + 8 * (header + self._overhead(m, n, len(p), endless))

    def drawn_bytes(
        self, name: str, m: int, n: int, p: np.ndarray, *, seed: int, mask: str, cr: float, device: torch.device
    ) -> tuple[int, int]:
        """Bytes of the codes, and of all that is stored of the matrix, with the masks of this seed.

        `device` is where the masks are drawn.
        """
        t = keep_thresholds(p)
        kept_U, kept_V = (
            draw_mask(mask, seed, name, letter, t, rows, device).sum(1).cpu().numpy()
            for letter, rows in (("U", m), ("V", n))
        )
        return self.kept_bytes(name, m, n, (kept_U, kept_V), cr)

    def kept_bytes(self, name: str, m: int, n: int, kept: tuple[np.ndarray, np.ndarray], cr: float) -> tuple[int, int]:
        """The same, given how many entries each column of U and of V keeps."""
        codes = 2 * sum(int(part.sum()) for part in kept) if self.plan is None else codes_bytes(kept, self.plan)
        header = self._header(name, m, n, cr)
        return codes, codes + header + self._overhead(m, n, len(kept[0]), self.plan)

    def entries_bytes(self, name: str, m: int, n: int, bits: int, kept: int, cr: float) -> tuple[int, int]:
        """The same for a matrix of which `kept` entries themselves are quantized."""
        header = header_bytes(name, "quantized_entries", int(2 * m * n / cr), without=("groups",))
        codes = packed_bytes(kept, bits)
        return codes, codes + header + quantized_entries.overhead_bytes(self.grid, m, n, bits, self.groupsize)

    def entries_keep_ratio(self, name: str, m: int, n: int, bits: int, cr: float) -> float:
        """The share of dW's entries that fits, quantized to `bits`; at most 1, and not positive when none does."""
        overhead = self.entries_bytes(name, m, n, bits, 0, cr)[1] if self.count == "bytes" else 0
        return min(1.0, (16.0 * m * n / cr - 8 * overhead) / (bits * m * n))

    def _header(self, name: str, m: int, n: int, cr: float) -> int:
        return header_bytes(name, self.encoding, int(2 * m * n / cr), () if self.masked else ("keep",))

    def _overhead(self, m: int, n: int, rank: int, plan: Plan | None) -> int:
        return encoding_of(self.encoding).overhead_bytes(m, n, rank, plan or (), self.groupsize, self.masked)
