"""The benchmarks of merging run end to end at a small size, and compare what they say they compare."""

import re

import pytest
import torch

from benchmarks import merge_against_mergekit, merge_ties_threshold
from merge.methods import ties


def test_ties_threshold(called):
    ended = called(merge_ties_threshold.main, "--size", "100", "--models", "4", "--trims", "0.3,0.9", "--rounds", "2")
    assert ended.code == 0, ended.err
    rows = {line.split("  ")[0]: line.split() for line in ended.out.splitlines()}
    for what in ("threshold, trim 0.3", "threshold, trim 0.9", "all of TIES, trim 0.9"):
        assert re.fullmatch(r"\d+\.\dx", rows[what][-1])


def test_the_plain_way_is_ties():
    deltas = merge_ties_threshold.make_deltas(50, 3, torch.device("cpu"))
    for trim in (0.0, 0.5, 0.8):
        expected = ties(torch.zeros(50, 50), deltas, trim, 1.0)
        assert torch.allclose(
            merge_ties_threshold.plain_ties(torch.stack(deltas), trim), expected, rtol=1e-6, atol=1e-9
        )
        assert torch.equal(merge_ties_threshold.streamed_ties(deltas, trim), expected)
    assert not torch.allclose(expected, ties(torch.zeros(50, 50), deltas, 0.5, 1.0), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties_0.8_1.0", "ta_0.5"])
def test_memory(script, method):
    ended = script("benchmarks/merge_memory.py", "--megabytes", "140", "--method", method)
    assert ended.code == 0, ended.err
    imports, plain, streamed = (
        float(re.search(rf"^{way} .* (\d+)$", ended.out, re.MULTILINE).group(1))
        for way in ("imports", "plain", "streamed")
    )
    assert 50 < imports < streamed < plain and plain - imports > 4 * 140 * 2**20 / 1e6
    assert float(re.search(r"equal in ([\d.]+)%", ended.out).group(1)) > 99.99


def test_mergekit_is_asked_for_what_the_method_string_says(called, tmp_path):
    config = merge_against_mergekit.mergekit_config("ties_0.8_0.6", tmp_path / "base", [tmp_path / "a", tmp_path / "b"])
    assert config["merge_method"] == "ties" and config["parameters"] == {"normalize": True, "lambda": 0.6}
    assert [model["parameters"]["density"] for model in config["models"]] == pytest.approx([0.2, 0.2])
    config = merge_against_mergekit.mergekit_config("ta_0.5", tmp_path / "base", [tmp_path / "a"])
    assert config["merge_method"] == "task_arithmetic" and config["parameters"] == {"normalize": False, "lambda": 0.5}
    ended = called(merge_against_mergekit.main, "--mergekit", tmp_path / "nowhere")
    assert ended.code == 2 and "--help says how to install mergekit" in ended.err


@pytest.mark.parametrize("file", ["merge_memory.py", "merge_ties_threshold.py", "merge_against_mergekit.py"])
def test_they_run_as_scripts_from_anywhere(script, tmp_path, file):
    ended = script(f"benchmarks/{file}", "--help", cwd=tmp_path)
    assert ended.code == 0 and f"python benchmarks/{file}" in ended.out
