"""base + delta -> fine-tuned: which tensors, in which dtype, rounded once."""

import os

import pytest
import torch
from checkpoints import llama_pair, llama_shapes, random_weights, tuned_weights, write_checkpoint

import delta
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.errors import InputError
from impart.reconstruct import planned_tensors, rebuilt_weight, reconstructed, write_model
from quantize.driver import Weights


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """An fp32 base, a bf16 fine-tuned model with one parameter more and one less, and the rank-3 delta of the two."""
    folder = tmp_path_factory.mktemp("opened")
    base = random_weights(llama_shapes(hidden=32, intermediate=48, layers=2, kv=16, vocabulary=50), dtype=torch.float32)
    tuned = {name: tensor.bfloat16() for name, tensor in tuned_weights(base).items() if name != "lm_head.weight"}
    tuned["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
    folders = write_checkpoint(folder / "base", base), write_checkpoint(folder / "tuned", tuned)
    delta.main(
        [
            "--svd",
            "--base_model",
            str(folders[0]),
            "--finetuned_model",
            str(folders[1]),
            "--dim",
            "3",
            "--save_path",
            str(folder / "delta"),
            "--threads",
            "1",
        ]
    )
    return open_delta(folder / "delta"), *map(open_checkpoint, folders)


def test_the_plan_is_the_fine_tuned_model(opened):
    artifact, base, tuned = opened
    with_it, without = planned_tensors(artifact, base, tuned), planned_tensors(artifact, base)
    assert {spec.name: spec for spec in with_it} == {spec.name: spec for spec in without}
    assert {spec.name for spec in without} == set(tuned.names())
    assert all(spec == tuned.spec(spec.name) for spec in without)


def test_weights_are_base_plus_delta_rounded_once(opened):
    artifact, base, tuned = opened
    found = dict(reconstructed(artifact, base))
    assert list(found) == [spec.name for spec in planned_tensors(artifact, base)]
    for name in artifact.names():
        expected = (base.tensor(name) + artifact.reconstruct(name)).bfloat16()
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name], expected)
        assert not torch.equal(found[name], tuned.tensor(name))  # rank 3 is not all
    others = set(found) - set(artifact.names())
    assert all(
        torch.equal(found[name], tuned.tensor(name)) and found[name].dtype == tuned.dtype(name) for name in others
    )


def test_with_the_fine_tuned_model_the_result_is_the_same(opened):
    artifact, base, tuned = opened
    ours, theirs = dict(reconstructed(artifact, base)), dict(reconstructed(artifact, base, tuned))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_one_tensor_is_read_at_a_time(opened):
    artifact, base, _ = opened
    read = []

    class Counting:
        def __getattr__(self, name):
            return getattr(base, name)

        def tensor(self, name, device="cpu"):
            read.append(name)
            return base.tensor(name)

    for done, (name, _) in enumerate(reconstructed(artifact, Counting()), 1):
        assert len(read) <= done and (not read or read[-1] == name or name in artifact.extras())


def test_the_wrong_models_are_refused_before_anything_is_written(opened, tmp_path):
    artifact, base, tuned = opened
    other = open_checkpoint(llama_pair(tmp_path / "other")[1])
    with pytest.raises(InputError, match="give that base"):
        write_model(artifact, other, tmp_path / "out")
    with pytest.raises(InputError, match="is a delta of fine-tuned"):
        write_model(artifact, base, tmp_path / "out", finetuned=other)
    assert os.listdir(tmp_path) == ["other"]
    write_model(artifact, base, tmp_path / "out")
    with pytest.raises(InputError, match="exists"):
        write_model(artifact, base, tmp_path / "out", finetuned=tuned)


def test_calibration_sees_the_weights_that_are_rebuilt(opened):
    """Both round base + dW in one function, so the quantized model is calibrated on the bits that it will have."""
    found, base, tuned = opened
    weights = Weights(base, tuned, found, torch.device("cpu"))
    rebuilt = dict(reconstructed(found, base))
    for name in found.names():
        seen = weights.with_delta(name, found.stored(name))
        assert seen.dtype == rebuilt[name].dtype == torch.bfloat16 and torch.equal(seen, rebuilt[name])
        assert torch.equal(seen, rebuilt_weight(base, name, found.reconstruct(name), torch.bfloat16))
