"""What a step says beforehand, and that saying it writes nothing."""

import re
from pathlib import Path

import pytest

import delta
from impart.costs import CPU, GPU, Work
from merge import merge
from quantize import sparse_llama
from sparsify import sparsify, sparsify_quant

TEXT = "assets/tiny/data/code_validation.jsonl"
CALIBRATION = ("text_field=prompt", "nsamples=2", "seqlen=32")


@pytest.fixture
def commands(tiny_pair, tiny_deltas, tmp_path):
    """Each step on the tiny pair, as its script and its arguments, which end with where it writes."""
    base, tuned = "assets/tiny/base", "assets/tiny/code"
    held, sparse = tiny_deltas("lowrank", "code"), tmp_path / "sparse"
    quant = ["method=impart", "preprune_ratio=0.6", "C=1", "compression_ratio_qt=16", f"save_dir={sparse}"]
    sparsify_quant.main([*tiny_pair, *quant, "--threads", "1"])
    one_step = (tuned, TEXT, "method=bitdelta", f"baseModel={base}", *CALIBRATION)
    models = ("--ptm_pth", base, "--code_pth", tuned, "--math_pth", "assets/tiny/math", "mask=dare", "sparsity=0.5")
    return {
        "svd": (delta.main, "--svd", "--base_model", base, "--finetuned_model", tuned, "--save_path", "{}"),
        "sparsify": (sparsify.main, *tiny_pair, "method=dare", "compression_ratio=8", "save_dir={}"),
        "sparsify_quant": (sparsify_quant.main, *tiny_pair, *quant[:-1], "save_dir={}"),
        "quantize": (sparse_llama.main, tuned, TEXT, *CALIBRATION, "--saved_delta_path", sparse, *QUANTIZED),
        "one step": (sparse_llama.main, *one_step, *QUANTIZED),
        "rebuild": (delta.main, "--merge", "--delta_path", held, "--save_path", "{}"),
        "merge": (merge.main, "--merge_method", "ta_0.5", *models, "--save_pth", "{}"),
    }


QUANTIZED = ("--save_compressed_delta_dir", "{}")
STEPS = ("svd", "sparsify", "sparsify_quant", "quantize", "one step", "rebuild", "merge")


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize("step", STEPS)
def test_a_dry_run_tells_what_the_run_then_writes(called, commands, tmp_path, step):
    main, *arguments = commands[step]
    out = tmp_path / "out"
    words = [str(word).format(out) for word in arguments]
    there = sorted(tmp_path.rglob("*"))
    told = called(main, *words, "--dry_run", "--threads", 1)
    assert told.code == 0 and sorted(tmp_path.rglob("*")) == there, told.err
    found = re.search(r"(\d+) matrices; about .*, up to ([0-9.]+) GB of disk \([0-9.]+ GB are free\)", told.out)
    assert found and int(found[1]) == 21, told.out
    assert called(main, *words, "--threads", 1).code == 0
    assert size(out) <= 1.01 * float(found[2]) * 1e9 + 0.005e9


def test_a_dry_run_finds_what_the_run_would_find(called, tmp_path):
    words = (
        "base_model=assets/tiny/base",
        "ftm_dir=assets/tiny/nothing",
        "method=dare",
        f"save_dir={tmp_path / 'out'}",
    )
    assert called(sparsify.main, *words, "compression_ratio=8", "--dry_run").code == 2


def test_costs_add_up():
    """13B: 280 matrices, as benchmarks/gpu.md has them measured."""
    shapes = 40 * (4 * [(5120, 5120)] + 2 * [(13824, 5120)] + [(5120, 13824)])
    svd = Work(shapes, written=41_000_000_000, svds=1)
    assert 60 < svd.seconds(GPU) < 200 and svd.seconds(CPU) > 100 * svd.seconds(GPU)
    assert 1e9 < svd.memory() < 8e9
    assert Work(shapes, 0, masked=True).seconds(GPU) < svd.seconds(GPU)
