"""The histogram threshold against sorting, and what happens to equal magnitudes."""

import pytest
import torch

from merge.thresholds import threshold_of_blocks, trim_threshold, trimmed_count


def sorted_threshold(delta, trim):
    magnitudes = delta.abs().flatten().sort().values
    rank = trimmed_count(delta.numel(), trim)
    return float("inf") if rank == delta.numel() else float(magnitudes[rank]) if rank else 0.0


def bfloat16_difference(count, seed):
    generator = torch.Generator().manual_seed(seed)
    base = (torch.randn(count, generator=generator) * 0.02).to(torch.bfloat16)
    tuned = (base.float() + torch.randn(count, generator=generator) * 1e-3).to(torch.bfloat16)
    return tuned.float() - base.float()


DELTAS = {
    "normal": torch.randn(12345, generator=torch.Generator().manual_seed(0)),
    "bfloat16 difference": bfloat16_difference(1 << 20, 1),
    "many equal": torch.randint(-3, 4, (4097,), generator=torch.Generator().manual_seed(2)).float(),
    "one magnitude": torch.tensor([0.5, -0.5] * 50),
    "wide range": torch.logspace(-44, 38, 4000) * torch.tensor([1.0, -1.0]).repeat(2000),
    "subnormal": torch.arange(-500, 500).to(torch.int32).abs().view(torch.float32),
    "all zero": torch.zeros(64),
    "one entry": torch.tensor([3.0]),
    "matrix": torch.randn(37, 53, generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("trim", [0.0, 0.01, 0.2, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("name", DELTAS)
def test_equals_the_sorted_value(name, trim):
    assert trim_threshold(DELTAS[name], trim) == sorted_threshold(DELTAS[name], trim)


def test_equals_kthvalue_on_every_rank():
    delta = bfloat16_difference(257, 4)
    for rank in range(1, 257):
        assert (
            trim_threshold(delta, rank / 257) == float(delta.abs().kthvalue(rank + 1).values)
            or trimmed_count(257, rank / 257) != rank
        )


def test_distinct_magnitudes_lose_exactly_the_share():
    delta = torch.arange(1, 1001).float()[torch.randperm(1000, generator=torch.Generator().manual_seed(5))]
    for trim in (0.0, 0.1, 0.29, 0.57, 0.8, 1.0):
        kept = int((delta >= trim_threshold(delta, trim)).sum())
        assert kept == 1000 - round(1000 * trim)


def test_equal_magnitudes_at_the_threshold_all_stay():
    delta = torch.tensor([1.0, -2.0, 2.0, -2.0, 3.0])
    assert trim_threshold(delta, 0.4) == 2.0  # two should go, but the second smallest ties with those that stay


@pytest.mark.parametrize("trim", [0.001, 0.2, 0.5, 0.8, 0.9999])
@pytest.mark.parametrize(
    "sample",
    [
        lambda delta: delta[::7],
        lambda delta: delta[:1],
        lambda delta: torch.zeros(3),
        lambda delta: torch.full((3,), 3e38),
    ],
    ids=["good", "one", "below", "above"],
)
def test_a_good_or_bad_guess_decides_the_passes_and_never_the_result(trim, sample):
    delta, passes = bfloat16_difference(100_000, 7), []

    def blocks():
        passes.append(1)
        return iter(delta.split(30_000))

    assert threshold_of_blocks(blocks, delta.numel(), trim, sample(delta)) == sorted_threshold(delta, trim)
    assert len(passes) in (1, 3)
    if trim >= 0.2 and sample(delta)[0] in (0, 3e38):  # (at 0.001 the threshold itself is 0)
        assert len(passes) == 3


def test_a_large_tensor_takes_the_guess_and_is_exact():
    delta = bfloat16_difference(1 << 22, 8).view(2048, 2048)
    for trim in (0.2, 0.8):
        assert trim_threshold(delta, trim) == sorted_threshold(delta, trim)


def test_blocks_give_the_threshold_of_the_whole():
    delta = bfloat16_difference(10000, 6)
    assert threshold_of_blocks(lambda: iter(delta.split(333)), delta.numel(), 0.7) == trim_threshold(delta, 0.7)


def test_the_ratio_is_the_decimal_as_written():
    assert trimmed_count(100, 0.29) == 29  # in binary arithmetic 0.29 * 100 is below 29
    assert trimmed_count(5120, 0.8) == 4096


@pytest.mark.parametrize("trim", [-0.1, 1.1, float("nan")])
def test_a_ratio_outside_of_0_and_1_is_refused(trim):
    with pytest.raises(ValueError, match="between 0 and 1"):
        trim_threshold(torch.ones(4), trim)


def test_sixteen_bit_deltas_are_refused_rather_than_read_as_something_else():
    with pytest.raises(ValueError, match="float32"):
        trim_threshold(torch.ones(4, dtype=torch.bfloat16), 0.5)
