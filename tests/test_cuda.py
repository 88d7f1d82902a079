"""On a GPU: the same results as on a CPU, step by step, and the fast paths against the plain ones."""

import pytest
import torch
from safetensors.torch import load_file
from test_quantize_sparse_gptq import problem

import delta
from impart.artifact import open_delta
from quantize import block_kernel
from quantize.sparse_gptq import inverse_of, quantize_groups, quantize_vectors
from sparsify import sparsify

pytestmark = pytest.mark.cuda


@pytest.fixture
def by_loop(monkeypatch):
    """Runs work with the loop of small calls in place of the kernel."""

    def run(work):
        with monkeypatch.context() as patch:
            patch.setattr(block_kernel, "usable", lambda X: False)
            return work()

    return run


@pytest.mark.parametrize("rows, columns", [(37, 150), (5, 128), (300, 257), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_kernel_gives_the_codes_of_the_loop(by_loop, rows, columns, dtype):
    W, mask, H = (x.cuda() for x in problem(rows, columns))
    W, inverse = W.to(dtype), inverse_of(H.to(dtype))
    bits = torch.arange(rows, device="cuda") % 3 + 2
    for sweep in (
        lambda: quantize_vectors(W, mask, inverse, bits, along_rows=True),
        lambda: quantize_vectors(W, mask, inverse, torch.arange(columns, device="cuda") % 3 + 2, along_rows=False),
        lambda: quantize_groups(W, mask, inverse, bits, 64),
        lambda: quantize_groups(W, mask, inverse, 3),
    ):
        ours, theirs = sweep(), by_loop(sweep)
        differ = (ours.codes != theirs.codes).double().mean()
        assert differ == 0 if dtype == torch.float64 else differ < 1e-2  # a rounding that flips takes others with it


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
