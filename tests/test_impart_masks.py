"""Masks: the same bits as an independent SplitMix64 in Python's integers, and the distribution that they promise."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from impart import device_masks
from impart.device_masks import draw_mask, torch_mask
from impart.masks import LEVELS, MASKS, bernoulli_mask, exact_count_mask, keep_thresholds, scattered

ROOT = Path(__file__).resolve().parents[1]
WORD = (1 << 64) - 1
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def outputs(key):
    """SplitMix64 as its authors publish it: a state that grows by the golden gamma, and its mix."""
    state = key
    while True:
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        yield z ^ (z >> 31)


def key_of(seed, name, factor):
    return int.from_bytes(hashlib.sha256(f"{seed}\n{name}\n{factor}".encode()).digest()[:8], "little")


def draws(key, start, count):
    return list(itertools.islice(outputs(key), start, start + count))


def expected_draws(key, bits, column, rows):
    """By the description alone: a column's words in order, and of each word the lowest bits first."""
    lanes = 64 // bits
    words = -(-rows // lanes)
    own = draws(key, column * words, words)
    return [own[row // lanes] >> bits * (row % lanes) & (1 << bits) - 1 for row in range(rows)]


def expected_bernoulli(seed, name, factor, thresholds, rows):
    key = key_of(seed, name, factor)
    return np.array([[draw < t for draw in expected_draws(key, 16, k, rows)] for k, t in enumerate(thresholds)])


def expected_exact(seed, name, factor, thresholds, rows):
    key, mask = key_of(seed, name, factor), []
    for k, t in enumerate(thresholds):
        order = sorted((draw, row) for row, draw in enumerate(expected_draws(key, 32, k, rows)))
        kept = {row for _, row in order[: rows - rows * (65536 - t) // 65536]}
        mask.append([row in kept for row in range(rows)])
    return np.array(mask)


def test_the_reference_is_splitmix64():
    # The first outputs for seed 1234567 in the authors' own C, as many test suites quote them.
    assert draws(1234567, 0, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 64, 101])
@pytest.mark.parametrize("seed, name, factor", [(0, "a", "U"), (7, "model.layers.3.mlp.up_proj.weight", "V")])
def test_bits_equal_the_reference(rows, seed, name, factor):
    t = [1, 255, 256, 257, 512, 20000, 32768, 65280, 65281, 65535, 65536]
    assert np.array_equal(
        bernoulli_mask(seed, name, factor, np.array(t), rows), expected_bernoulli(seed, name, factor, t, rows)
    )
    assert np.array_equal(
        exact_count_mask(seed, name, factor, np.array(t), rows), expected_exact(seed, name, factor, t, rows)
    )


@pytest.mark.parametrize(
    "kind, golden",
    [
        (
            "bernoulli",
            (
                "00000010000010001001000100010000",
                "01110101101110110100000111101100",
                "11111111111111111111111111111111",
            ),
        ),
        (
            "exact_count",
            (
                "00000000000101001010000000000000",
                "00011000001011101111101000111010",
                "11111111111111111111111111111111",
            ),
        ),
    ],
)
def test_golden_bits(kind, golden):
    """Frozen, from the reference above: an artifact of today has to be read by every later version."""
    mask = MASKS[kind](42, "model.layers.0.self_attn.q_proj.weight", "U", np.array([8192, 32768, 65280]), 32)
    assert tuple("".join(str(int(bit)) for bit in line) for line in mask) == golden


def test_bits_do_not_depend_on_blocks_threads_or_process():
    t = np.full(3000, 30000)
    whole = bernoulli_mask(5, "n", "U", t, 1003)  # several blocks of the cache
    assert np.array_equal(whole[:17], expected_bernoulli(5, "n", "U", [30000] * 17, 1003)[:17])
    program = (
        "import numpy as np, hashlib; from impart.masks import bernoulli_mask; "
        "print(hashlib.sha256(bernoulli_mask(5, 'n', 'U', np.full(3000, 30000), 1003).tobytes()).hexdigest())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert said == hashlib.sha256(whole.tobytes()).hexdigest()


@pytest.mark.parametrize("rows", [5, 64, 1000])
def test_columns_can_be_drawn_from_any_first_one(rows):
    t = np.random.default_rng(0).integers(1, LEVELS + 1, 300)
    whole = bernoulli_mask(1, "n", "dW", t, rows)
    for first, stop in ((0, 1), (1, 2), (37, 290), (299, 300), (150, 150)):
        assert np.array_equal(bernoulli_mask(1, "n", "dW", t[first:stop], rows, first), whole[first:stop])


def test_a_column_does_not_depend_on_the_thresholds_of_others():
    t = np.array([1000, 30000, 65535])
    other = np.array([65536, 30000, 1])
    for mask in MASKS.values():
        assert np.array_equal(mask(0, "n", "U", t, 500)[1], mask(0, "n", "U", other, 500)[1])


def test_masks_grow_with_the_threshold():
    t = np.array([1, 300, 20000, 40000, 65535, 65536])
    for low, high in itertools.pairwise(t):
        for mask in MASKS.values():
            below, above = (mask(3, "n", "V", np.array([value]), 4000)[0] for value in (low, high))
            assert not np.any(below & ~above)


@pytest.mark.parametrize("t", [1, 100, 256, 512, 6553, 32768, 59000, 65280, 65535])
def test_the_share_that_is_kept_is_the_threshold_over_65536(t):
    rows, columns = 4096, 512
    count = rows * columns
    kept = int(bernoulli_mask(11, "m", "U", np.full(columns, t), rows).sum())
    probability = t / LEVELS
    assert abs(kept - count * probability) < 5 * np.sqrt(count * probability * (1 - probability))


def test_thresholds_at_the_ends():
    assert bernoulli_mask(0, "n", "U", np.array([LEVELS]), 5000).all()
    assert exact_count_mask(0, "n", "U", np.array([LEVELS]), 5000).all()
    assert exact_count_mask(0, "n", "U", np.array([1]), 5000).sum() == 1  # int(5000 * 65535 / 65536) = 4999 dropped
    assert bernoulli_mask(0, "n", "U", np.array([3]), 1).shape == (1, 1)
    assert bernoulli_mask(0, "n", "U", np.empty(0, dtype=np.int64), 12).shape == (0, 12)
    assert exact_count_mask(0, "n", "U", np.empty(0, dtype=np.int64), 12).shape == (0, 12)


def chi_square(counts):
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_counts_per_row_and_column_fluctuate_as_independent_draws_do():
    rows = columns = 1024
    mask = bernoulli_mask(2, "m", "V", np.full(columns, 16384), rows)  # keep probability 1/4
    for axis in (0, 1):
        counts = mask.sum(axis=axis)
        statistic = float(((counts - rows / 4) ** 2 / (rows * 3 / 16)).sum())  # chi-square with 1024 degrees of freedom
        assert abs(statistic - 1024) < 5 * np.sqrt(2 * 1024)


def test_neighbours_are_independent_in_every_direction():
    mask = bernoulli_mask(4, "m", "U", np.full(1024, 32768), 1024).astype(float) * 2 - 1
    for down, right in ((0, 1), (1, 0), (1, 1), (0, 8), (8, 0), (0, 64), (0, 512), (512, 0)):
        a, b = mask[down:, right:], mask[: 1024 - down, : 1024 - right]
        assert abs(float((a * b).mean())) < 5 / np.sqrt(a.size)


@pytest.mark.parametrize("kind", MASKS)
def test_seeds_names_and_factors_give_independent_masks(kind):
    t, addresses = (
        np.full(256, 32768),
        [
            (0, "a", "U"),
            (1, "a", "U"),
            (0, "b", "U"),
            (0, "a", "V"),
            (10, "", "U"),
            (1, "0", "U"),
            (0, "a", "U low bits"),
        ],
    )
    signs = [MASKS[kind](*address, t, 512).astype(float) * 2 - 1 for address in addresses]
    for a, b in itertools.combinations(signs, 2):
        assert abs(float((a * b).mean())) < 5 / np.sqrt(256 * 512)


def test_seed_name_and_factor_cannot_run_into_each_other():
    t = np.full(4, 32768)
    assert not np.array_equal(bernoulli_mask(1, "1", "U", t, 64), bernoulli_mask(11, "", "U", t, 64))


def test_the_kept_share_grows_in_steps_of_one_level():
    counts = [
        int(bernoulli_mask(0, "m", "U", np.full(512, t), 8192).sum()) for t in (25600, 25664, 25728, 25792, 25856)
    ]
    steps = np.diff(counts)
    expected = 512 * 8192 * 64 / LEVELS
    assert np.all(np.abs(steps - expected) < 5 * np.sqrt(expected))


@pytest.mark.parametrize("device", DEVICES)
def test_of_equal_draws_at_the_boundary_the_first_row_is_kept(device):
    rows, key = 60000, key_of(0, "n", "U")
    for column in range(64):  # two of 60000 32-bit draws are equal in every second column
        order = sorted((draw, row) for row, draw in enumerate(expected_draws(key, 32, column, rows)))
        ties = [rank for rank in range(1, rows) if order[rank - 1][0] == order[rank][0]]
        if ties:
            break
    count = ties[0]  # the first of the two is kept, the second is not
    t = next(t for t in range(1, LEVELS + 1) if rows - rows * (LEVELS - t) // LEVELS == count)
    for mask in (
        exact_count_mask(0, "n", "U", np.array([t]), rows, column)[0],
        torch_mask("exact_count", 0, "n", "U", np.array([t]), rows, device, column)[0].cpu().numpy(),
    ):
        assert mask.sum() == count
        assert mask[order[count - 1][1]] and not mask[order[count][1]]
    assert order[count - 1][1] < order[count][1]


@pytest.mark.parametrize("rows", [10, 333, 1024])
def test_exact_counts_are_those_of_the_release(rows):
    p = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 0.999])
    t = keep_thresholds(p)
    dropped = rows - exact_count_mask(0, "n", "U", t, rows).sum(axis=1)
    assert list(dropped) == [rows * (LEVELS - int(level)) // LEVELS for level in t]
    on_grid = np.array([0.0, 0.25, 0.5, 0.75])  # where p is a multiple of 1/65536 this is int(m p) itself
    dropped = rows - exact_count_mask(0, "n", "U", keep_thresholds(on_grid), rows).sum(axis=1)
    assert list(dropped) == [int(rows * value) for value in on_grid]


def test_exact_count_masks_choose_every_row_equally_often():
    mask = exact_count_mask(9, "m", "U", np.full(4000, 16384), 64)
    assert chi_square(mask.sum(axis=0)) < 63 + 5 * np.sqrt(2 * 63)


def test_thresholds_round_to_the_nearest_level_and_never_drop_all():
    p = np.array([0.0, 1.0, 1 - 1e-9, 0.5, 1 - 1.4 / LEVELS, 1 - 1.6 / LEVELS, 0.25 / LEVELS])
    assert list(keep_thresholds(p)) == [LEVELS, 1, 1, 32768, 1, 2, LEVELS]
    assert keep_thresholds(np.empty(0)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scattered_is_the_inverse_of_choosing_what_the_mask_keeps(dtype):
    mask = draw_mask("bernoulli", 0, "n", "U", keep_thresholds(np.linspace(0, 0.95, 20)), 50, "cpu")
    x = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    dense = scattered(x[mask], mask)
    assert dense.dtype == torch.float32
    assert torch.equal(dense, x.float() * mask)


def test_values_that_do_not_fit_the_mask_are_refused():
    mask = torch.tensor([[True, False], [True, True]])
    with pytest.raises((RuntimeError, IndexError)):
        scattered(torch.ones(2), mask)
    with pytest.raises((RuntimeError, IndexError)):
        scattered(torch.ones(4), mask)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("rows", [1, 3, 8, 1003])
@pytest.mark.parametrize("first", [0, 17])
def test_torch_draws_the_bits_of_numpy(monkeypatch, device, kind, rows, first):
    monkeypatch.setattr(device_masks, "BLOCK_WORDS", 5000)  # several blocks
    t = np.concatenate([[1, 2, 255, 32767, 32768, 32769, 65535, LEVELS], np.arange(100, 30000, 999)])
    for name in ("a", "model.layers.3.mlp.up_proj.weight"):
        found = torch_mask(kind, 7, name, "V", t, rows, device, first)
        assert found.device.type == device
        assert np.array_equal(found.cpu().numpy(), MASKS[kind](7, name, "V", t, rows, first))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_of_no_column_is_empty_on_every_device(device, kind):
    assert draw_mask(kind, 0, "n", "U", np.empty(0, dtype=np.int64), 12, device).shape == (0, 12)
