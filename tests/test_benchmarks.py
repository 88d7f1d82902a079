"""Every benchmark runs end to end at a small size, prints its table and compares the right things."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import mask_speed, memory, side_by_side, svd_speed, swap, synthetic


def rows_of(out: str) -> dict[str, list[str]]:
    """The lines of a printed table by their first cell; cells are two blanks apart."""
    return {cells[0]: cells[1:] for line in out.splitlines() if len(cells := re.split(r"\s{2,}", line.strip())) > 1}


def test_svd_speed(called):
    ended = called(svd_speed.main, "--sizes", "64,96x48,32x80", "--rounds", "2", "--device", "cpu")
    assert ended.code == 0, ended.err
    rows = rows_of(ended.out)
    for size in ("64 x 64", "96 x 48", "32 x 80"):
        for way in ("torch.svd", "all", "leading 40%", "leading 20%"):
            seconds, speedup, of_values, of_first, excess = rows[f"{size}, {way}"]
            assert float(seconds) >= 0 and re.fullmatch(r"\d+\.\dx", speedup)
            assert float(of_values) < 5e-3 and float(of_first) < 5e-4 and abs(float(excess)) < 1e-5
        assert rows[f"{size}, torch.svd"][1] == "1.0x"
    assert ended.out.startswith(side_by_side.cpu_name())


def test_errors_of_a_wrong_decomposition_are_seen():
    dW = synthetic.delta(60, 40)
    U, s, V = torch.svd(dW)
    sigma = svd_speed.reference_values(dW)
    assert max(svd_speed.errors(dW, (U, s, V), sigma)) < 1e-5
    of_values, of_first, excess = svd_speed.errors(dW, (U, s * 1.01, V), sigma)
    assert of_values == pytest.approx(0.01, rel=1e-3) and of_first == pytest.approx(0.01, rel=1e-3)
    assert excess == pytest.approx(0.01, rel=1e-3)
    leading = (U[:, :9], s[:9], V[:, :9])
    assert abs(svd_speed.errors(dW, leading, sigma)[2]) < 1e-6
    wrong = (U[:, 1:10], s[1:10], V[:, 1:10])
    assert svd_speed.errors(dW, wrong, sigma)[2] > 0.1


def test_mask_speed(called):
    ended = called(mask_speed.main, "--sizes", "400x60,333x7", "--rounds", "2")
    assert ended.code == 0, ended.err
    rows = rows_of(ended.out)
    for m, r in ((400, 60), (333, 7)):
        for way in ("loop over columns", "the loop, stored by columns", "bernoulli_mask", "exact_count_mask"):
            milliseconds, speedup, kept, asked = rows[f"{m} x {r}, {way}"]
            assert float(milliseconds) >= 0 and re.fullmatch(r"\d+\.\dx", speedup)
            # int() of the loops rounds dropped entries down, by less than one per column.
            assert abs(float(kept) - float(asked)) < 1 / m + 5 * (float(asked) / (m * r)) ** 0.5
        assert rows[f"{m} x {r}, loop over columns"][1] == "1.0x"
        assert len({rows[f"{m} x {r}, {way}"][2] for way in ("loop over columns", "the loop, stored by columns")}) == 1


def test_the_loops_drop_what_the_release_drops():
    ratios = [0.0, 0.25, 0.999, 1.0]
    by_rows, by_columns = mask_speed.loop_of_the_release(50, ratios), mask_speed.loop_by_columns(50, ratios)
    assert by_rows.shape == (50, 4) and by_columns.shape == (4, 50)
    for mask in (by_rows.T, by_columns):
        assert [50 - int(line.sum()) for line in mask] == [0, 12, 49, 50]


@pytest.mark.slow
def test_memory(script):
    ended = script("benchmarks/memory.py", "--layers", "1", "--hidden", "128")
    assert ended.code == 0, ended.err
    rows = rows_of(ended.out)
    for step in ("svd", "sparsify", "merge"):
        plain, plain_net, here, here_net, less, deeper, deeper_net, grows = rows[step]
        assert min(map(float, (plain, here, deeper))) > 50  # MiB: an interpreter with torch
        assert re.fullmatch(r"-?\d+\.\dx", less)
        assert abs(float(deeper_net) - float(here_net) - float(grows)) <= 1


@pytest.mark.slow
def test_memory_of_a_pair_that_is_there(script):
    tiny = Path(memory.ROOT) / "assets" / "tiny"
    ended = script("benchmarks/memory.py", "--pair", tiny / "base", tiny / "chat")
    assert ended.code == 0, ended.err
    rows = rows_of(ended.out)
    for step in ("svd", "sparsify", "merge"):
        plain, _, plain_seconds, here, _, seconds, less = rows[step]
        assert min(map(float, (plain, here))) > 50 and min(map(float, (plain_seconds, seconds))) > 0
        assert re.fullmatch(r"-?\d+\.\dx", less)


def test_memory_of_a_pair_in_shards_is_one_error(tmp_path, called):
    ended = called(memory.main, "--pair", tmp_path, tmp_path)
    assert ended.code == 2 and "has no model.safetensors" in ended.err


def test_the_pair_of_the_memory_benchmark_is_a_pair(tmp_path):
    from impart.architecture import linear_names
    from impart.checkpoint import open_checkpoint

    memory.write_pair(tmp_path / "models", layers=2, hidden=32)
    base, tuned = open_checkpoint(tmp_path / "models" / "base"), open_checkpoint(tmp_path / "models" / "tuned")
    assert base.names() == tuned.names() and len(linear_names(base)) == 14
    differ = {name for name in base.names() if not torch.equal(base.tensor(name), tuned.tensor(name))}
    assert differ == set(linear_names(base))


def test_synthetic_deltas_have_a_power_law_over_a_bulk():
    s = torch.linalg.svdvals(synthetic.delta(512, 256)).double().numpy()
    assert 0.25 < s[3] / s[0] < 0.6 and 0.02 < s[128] / s[0] < 0.1  # 4^-0.7 = 0.38; the bulk is 5 % and less
    generator = torch.Generator().manual_seed(1)
    base = synthetic.base_weight(200, 300, generator)
    tuned = synthetic.tuned_weight(base, generator, relative_size=0.1)
    assert tuned.dtype == base.dtype == torch.bfloat16
    assert float(torch.linalg.norm(tuned.float() - base.float()) / torch.linalg.norm(base.float())) == pytest.approx(
        0.1, rel=0.02
    )


def test_lossless_is_measured_on_the_given_pair_and_a_sparse_update(called, pair):
    from benchmarks import lossless

    ended = called(lossless.main, "--pair", *pair, "--changed", "0.1")
    assert ended.code == 0, ended.err
    rows = [re.split(r"  +", line.strip()) for line in ended.out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["base -> tuned", "base, 10% changed"]
    changed, *ratios, gaps = rows[1][1:7]
    assert changed.startswith("10.") or changed.startswith("9.")
    assert float(ratios[-1]) > 1.5 * float(ratios[0]) and gaps == "14 of 14"
    assert called(lossless.main, "--changed", "1").code == 2 and called(lossless.main, "--level", "0").code == 2


def test_ways_are_timed_in_turn_and_compared_within_a_round():
    order = []
    timings = side_by_side.timed(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, torch.device("cpu")
    )
    assert order == ["a", "b"] * 3 and len(timings["b"].seconds) == 3
    assert side_by_side.Timing([1.0, 4.0, 2.0], [2.0, 4.0, 8.0]).speedup == 2.0
    assert side_by_side.Timing([1.0, 4.0, 2.0], [2.0, 4.0, 8.0]).median == 2.0
    assert timings["a"].speedup == 1.0


@pytest.mark.parametrize(
    "benchmark, arguments, message",
    [
        (svd_speed, ("--sizes", "10x20x30"), "neither N nor MxN"),
        (svd_speed, ("--sizes", "0"), "neither N nor MxN"),
        (svd_speed, ("--sizes", "big"), "neither N nor MxN"),
        (mask_speed, ("--sizes", "5120"), "not of the form MxR"),
        (mask_speed, ("--sizes", "5120xall"), "not of the form MxR"),
        (memory, ("--layers", "0"), "--layers 0 must be"),
    ],
)
def test_sizes_that_mean_nothing_are_input_errors(called, benchmark, arguments, message):
    ended = called(benchmark.main, *arguments)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1


@pytest.mark.parametrize("file", ["svd_speed.py", "mask_speed.py", "memory.py"])
def test_benchmarks_run_as_scripts_from_anywhere(script, tmp_path, file):
    ended = script(f"benchmarks/{file}", "--help", cwd=tmp_path)
    assert ended.code == 0 and f"python benchmarks/{file}" in ended.out


def test_swap(called):
    ended = called(swap.main, "--backend", "hf", "--count", "2")
    assert ended.code == 0, ended.err
    rows = rows_of(ended.out)
    written = {way: int(rows[way][-1].replace(",", "")) for way in swap.WAYS.values()}
    assert written["a dense checkpoint"] > 2 * 2_900_000
    assert written["load format impart"] == written["swap in a running engine"] == 0
    assert all(float(cell) >= 0 for way in swap.WAYS.values() for cell in rows[way][:-1])
