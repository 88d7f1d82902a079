"""The lossless encoding: every bit comes back, whatever the dtype, and no stranger's stream takes more than it says."""

from dataclasses import replace

import pytest
import torch
import zstandard

from impart.encodings import lossless
from impart.errors import InputError

NAME = "model.layers.0.self_attn.q_proj.weight"
DTYPES = (
    torch.float8_e4m3fn, torch.int8, torch.bfloat16, torch.float16, torch.int16, torch.float32, torch.int32,
    torch.float64, torch.int64,
)  # fmt: skip
WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def random_bits(shape, dtype, seed=0):
    """Any bits at all: NaN of every payload, Inf, -0, subnormals."""
    generator = torch.Generator().manual_seed(seed)
    m, n = shape
    return torch.randint(0, 256, (m, n * dtype.itemsize), generator=generator, dtype=torch.uint8).view(dtype)


def changed(base, share, seed=1):
    """`base` with about that share of its entries replaced by other bits."""
    other = random_bits(base.shape, base.dtype, seed)
    chosen = torch.rand(base.shape, generator=torch.Generator().manual_seed(seed)) < share
    whole = WHOLE[base.dtype.itemsize]
    return torch.where(chosen, other.view(whole), base.view(whole)).view(base.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.6, 1.0])
def test_every_bit_comes_back(dtype, share):
    base = random_bits((96, 60), dtype)
    tuned = changed(base, share)
    encoded = lossless.write(base, tuned, level=1)
    assert torch.equal(bits(encoded.restored(NAME, base)), bits(tuned))
    assert ("gaps" in encoded.tensors) == (share in (0.02, 0.05)) and (not encoded.tensors) == (share == 0)
    assert encoded.facts == {"kept": [int((bits(base) != bits(tuned)).view(96, 60, -1).any(-1).sum())],
                             "bits": 8 * dtype.itemsize}  # fmt: skip


def test_the_largest_steps_wrap_around():
    ends = torch.tensor([[-32768, 32767, 0, -1]], dtype=torch.int16)
    for tuned in (ends.flip(1), ends.roll(1), torch.zeros_like(ends)):
        a, b = ends.view(torch.bfloat16), tuned.view(torch.bfloat16)
        assert torch.equal(bits(lossless.write(a, b, 1).restored(NAME, a)), bits(b))


@pytest.mark.parametrize("share, excess", [(0.05, 1.15), (0.9, 1.45)])
def test_one_step_of_a_few_or_of_all_weights_takes_little(share, excess):
    """Not much more than the entropy of which entry changes by which sign; Huffman codes have no parts of bits."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(512, 512, generator=generator).bfloat16()
    moved = torch.rand(base.shape, generator=generator) < share
    sign = torch.randint(0, 2, base.shape, generator=generator, dtype=torch.int16) * 2 - 1
    tuned = (base.view(torch.int16) + moved * sign).view(torch.bfloat16)
    entropy = base.numel() * (-share * torch.tensor(share / 2).log2() - (1 - share) * torch.tensor(1 - share).log2())
    assert lossless.write(base, tuned, level=1).nbytes < excess * float(entropy) / 8


def test_the_base_is_taken_in_the_fine_tuned_models_dtype():
    base = torch.randn(16, 12, dtype=torch.float32)
    tuned = base.bfloat16()
    encoded = lossless.write(base, tuned, level=1)
    assert encoded.tensors == {} and torch.equal(encoded.restored(NAME, base.bfloat16()), tuned)
    with pytest.raises(InputError, match="16 bits an entry, not those of torch.float32"):
        encoded.restored(NAME, base)


def test_a_delta_takes_the_base():
    base = torch.zeros(4, 4)
    with pytest.raises(InputError, match="give the base"):
        lossless.write(base, base + 1, level=1).dense(NAME)


def test_streams_that_do_not_fit_are_refused():
    base = random_bits((64, 64), torch.bfloat16)
    encoded = lossless.write(base, changed(base, 0.05), level=1)
    huge = zstandard.ZstdCompressor().compress(bytes(10**7))
    for suffix in ("steps", "gaps"):
        stream = encoded.tensors[suffix]
        for damaged in (stream[:-9], stream[:3], torch.zeros_like(stream), stream[:0],
                        torch.frombuffer(bytearray(huge), dtype=torch.uint8)):  # fmt: skip
            with pytest.raises(InputError, match="cannot be decoded"):
                replace(encoded, tensors={**encoded.tensors, suffix: damaged}).restored(NAME, base)
    far = lossless.write(torch.zeros(200, 64), torch.eye(200, 64), level=1)
    with pytest.raises(InputError, match="cannot be decoded"):
        replace(far, shape=(4, 4)).restored(NAME, torch.zeros(4, 4))
    with pytest.raises(InputError, match="cannot be decoded"):
        replace(encoded, tensors={"gaps": encoded.tensors["gaps"]}).restored(NAME, base)
