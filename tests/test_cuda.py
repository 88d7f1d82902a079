"""On a GPU: the same results as on a CPU, step by step, and the fast paths against the plain ones."""

import pytest
import torch
from safetensors.torch import load_file
from sweeps import shares_that_differ

import delta
from impart.artifact import open_delta
from sparsify import sparsify

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("rows, columns", [(37, 150), (5, 128), (300, 257), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_kernel_gives_the_codes_of_the_loop(rows, columns, dtype):
    most = 0 if dtype == torch.float64 else 1e-2  # in fp32 a rounding may flip, and takes others with it
    assert max(shares_that_differ(rows, columns, "cuda", dtype)) <= most


def files(folder):
    return {file.name: load_file(file) for file in sorted(folder.glob("*.safetensors"))}


def test_every_step_agrees_with_the_cpu(pair, tmp_path):
    base, tuned = map(str, pair)
    for device in ("cpu", "cuda"):
        named = ["--base_model", base, "--finetuned_model", tuned, "--device", device]
        delta.main(["--svd", *named, "--save_path", str(tmp_path / f"svd-{device}")])
        keys = ["compression_ratio=4", "preprune_ratio=0.3", "C=1", f"base_model={base}", f"ftm_dir={tuned}"]
        sparsify.main([*keys, f"save_dir={tmp_path / f'sparse-{device}'}", "--device", device])
    for kind, tolerance in (("svd", 2e-3), ("sparse", 2e-2)):
        ours, theirs = (open_delta(tmp_path / f"{kind}-{device}") for device in ("cuda", "cpu"))
        for name in theirs.names():
            expected = theirs.reconstruct(name)
            for device in ("cpu", "cuda"):
                found = ours.reconstruct(name, device=device).cpu()
                assert torch.linalg.norm(found - expected) < tolerance * torch.linalg.norm(expected)
            assert ours.rank(name) == theirs.rank(name)
    again = tmp_path / "again"
    sparsify.main([*keys, f"save_dir={again}", "--device", "cuda"])
    first, second = files(tmp_path / "sparse-cuda"), files(again)
    assert first.keys() == second.keys()
    for file, tensors in first.items():
        assert all(torch.equal(tensor, second[file][name]) for name, tensor in tensors.items())
