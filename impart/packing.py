"""What stored codes mean: unsigned integers of 1 to 8 bits, packed without gaps into bytes.

Code number i occupies the bits i*b .. i*b + b - 1 of the stream, and bit j of the stream is bit j % 8 of byte j // 8,
so eight codes fill b bytes exactly and a code may straddle two of them (3 bit). All arithmetic is on bytes: the result
is the same on every device and every byte order.
"""

import torch
from torch import Tensor

LANES = 8  # eight codes of b bits are b whole bytes


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits occupy."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (any shape, integers below 2**bits) -> bytes (packed_bytes(count, bits),)."""
    _check_bits(bits)
    codes = codes.reshape(-1)
    count = codes.numel()
    if count and not 0 <= int(codes.min()) <= int(codes.max()) < 2**bits:
        raise ValueError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit into {bits} bits")
    lanes = torch.zeros(-(-count // LANES) * LANES, dtype=torch.uint8, device=codes.device)
    lanes[:count] = codes.to(torch.uint8)
    lanes = lanes.view(-1, LANES)
    packed = torch.zeros(lanes.shape[0], bits, dtype=torch.uint8, device=codes.device)
    for lane in range(LANES):
        byte, shift = divmod(lane * bits, 8)
        packed[:, byte] |= lanes[:, lane] << shift  # what does not fit is cut off ...
        if shift + bits > 8:
            packed[:, byte + 1] |= lanes[:, lane] >> (8 - shift)  # ... and goes to the next byte
    return packed.view(-1)[: packed_bytes(count, bits)].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Bytes (packed_bytes(count, bits),) -> codes (count,), uint8. The inverse of `pack`."""
    _check_bits(bits)
    if packed.numel() != packed_bytes(count, bits):
        raise ValueError(f"{count} codes of {bits} bits are {packed_bytes(count, bits)} bytes, not {packed.numel()}")
    if bits == 8:
        return packed.clone()
    chunks = -(-count // LANES)
    whole = torch.zeros(chunks * bits, dtype=torch.uint8, device=packed.device)
    whole[: packed.numel()] = packed
    whole = whole.view(chunks, bits)
    lanes = torch.empty(chunks, LANES, dtype=torch.uint8, device=packed.device)
    for lane in range(LANES):
        byte, shift = divmod(lane * bits, 8)
        code = whole[:, byte] >> shift
        if shift + bits > 8:
            code |= whole[:, byte + 1] << (8 - shift)
        lanes[:, lane] = code & (2**bits - 1)
    return lanes.view(-1)[:count]


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, not {bits}")
