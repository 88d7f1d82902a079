"""Packed codes come back as they were, take exactly the bytes that they should, and mean the same forever (goldens)."""

import pytest
import torch

from impart.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 31, 1000, 4099])
def test_round_trip(bits, count):
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(count, bits) == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_same_as_writing_the_bits_out(bits):
    codes = torch.randint(0, 2**bits, (1001,), generator=torch.Generator().manual_seed(bits))
    stream = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    expected = stream.to_bytes(packed_bytes(len(codes), bits), "little")
    assert bytes(pack(codes, bits).tolist()) == expected


def test_golden_three_bits():
    # 5, 3, 7 -> bits 101 011 111 from the lowest -> 111 011 101 = 0x1dd
    assert pack(torch.tensor([5, 3, 7]), 3).tolist() == [0xDD, 0x01]


def test_shape_is_flattened_row_by_row():
    codes = torch.arange(12).view(3, 4) % 4
    assert torch.equal(pack(codes, 2), pack(codes.reshape(-1), 2))


def test_a_code_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit into 2 bits"):
        pack(torch.tensor([0, 4]), 2)


def test_a_stream_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="9 codes of 3 bits are 4 bytes, not 3"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, 9)


@pytest.mark.cuda
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_same_bytes_on_the_gpu(bits):
    codes = torch.randint(0, 2**bits, (100_003,), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert torch.equal(pack(codes.cuda(), bits).cpu(), packed)
    assert torch.equal(unpack(packed.cuda(), bits, len(codes)).cpu(), codes)
