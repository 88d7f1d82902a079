"""`method: lossless` from two checkpoints to all that reads a delta: the same bits, or one line that says why not."""

import pytest
import torch
from checkpoints import llama_shapes, random_weights, tuned_weights, write_checkpoint

import delta as delta_script
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.errors import InputError
from impart.overlay import open_overlay
from merge import merge
from quantize import sparse_llama
from serve import lora
from sparsify import sparsify

SHAPES = llama_shapes(hidden=24, intermediate=40, kv=12, vocabulary=30)
Q0, UP1 = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
NAN = -127  # a NaN of bf16 with a sign and a payload


@pytest.fixture(scope="module")
def odd_pair(tmp_path_factory):
    """A pair with NaN and -0 on either side, in a matrix that changed and in one that did not."""
    folder = tmp_path_factory.mktemp("odd")
    base = random_weights(SHAPES)
    base[Q0][0, :3] = torch.tensor([-0.0, float("inf"), 0.0])
    tuned = tuned_weights(base)
    tuned[Q0] = base[Q0].clone()
    tuned[UP1].view(torch.int16)[1, :2] = NAN
    tuned[UP1][2, :2] = -0.0
    tuned["model.norm.weight"].view(torch.int16)[3] = NAN
    return write_checkpoint(folder / "base", base), write_checkpoint(folder / "tuned", tuned, shards=2)


def compressed(called, base, tuned, path, *more):
    arguments = ("method=lossless", f"base_model={base}", f"ftm_dir={tuned}", f"save_dir={path}", "--threads", "1")
    return called(sparsify.main, *arguments, *more)


def assert_same_bits(ours, theirs):
    assert ours.names() == theirs.names()
    for name in ours.names():
        assert torch.equal(ours.tensor(name).view(torch.uint8), theirs.tensor(name).view(torch.uint8)), name


def test_a_rebuilt_checkpoint_has_every_bit_of_the_fine_tuned_one(called, odd_pair, tmp_path):
    base, tuned = odd_pair
    ended = compressed(called, base, tuned, tmp_path / "d", f"log_dir={tmp_path}")
    assert ended.code == 0, ended.err
    assert "lossless\n" in ended.out and "at compression ratio" not in ended.out
    assert called(delta_script.main, "--merge", "--delta_path", tmp_path / "d", "--save_path", tmp_path / "m").code == 0
    assert_same_bits(open_checkpoint(tmp_path / "m"), open_checkpoint(tuned))
    assert "lossless (level=1)" in called(delta_script.main, "--info", tmp_path / "d").out
    overlay = {name: tensor for name, tensor in open_overlay(tmp_path / "d").tensors()}
    assert torch.equal(overlay[UP1].view(torch.int16), open_checkpoint(tuned).tensor(UP1).view(torch.int16))


def test_a_delta_comes_from_the_weights_and_the_base(called, pair, tmp_path):
    assert compressed(called, *pair, tmp_path / "d").code == 0
    delta, base, tuned = open_delta(tmp_path / "d"), open_checkpoint(pair[0]), open_checkpoint(pair[1])
    expected = tuned.tensor(Q0).float() - base.tensor(Q0).float()
    assert torch.equal(delta.reconstruct(Q0, base=base), expected)
    with pytest.raises(InputError, match="give the base"):
        delta.reconstruct(Q0)


def test_a_merge_takes_it_as_the_checkpoint_that_it_stands_for(called, pair, tmp_path):
    assert compressed(called, *pair, tmp_path / "d").code == 0
    for name, model in (("of_delta", tmp_path / "d"), ("of_model", pair[1])):
        settings = (
            "--merge_method",
            "ta_0.7",
            "--ptm_pth",
            pair[0],
            "--math_pth",
            model,
            "--save_pth",
            tmp_path / name,
        )
        ended = called(merge.main, *settings, "--threads", "1")
        assert ended.code == 0, ended.err
    assert_same_bits(open_checkpoint(tmp_path / "of_delta"), open_checkpoint(tmp_path / "of_model"))


def test_two_dtypes_give_the_fine_tuned_models_bits(called, tmp_path):
    base = random_weights(SHAPES, dtype=torch.float32)
    tuned = {name: weight.half() for name, weight in tuned_weights(base).items()}
    folders = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "tuned", tuned)
    assert compressed(called, *folders, tmp_path / "d").code == 0
    assert called(delta_script.main, "--merge", "--delta_path", tmp_path / "d", "--save_path", tmp_path / "m").code == 0
    assert_same_bits(open_checkpoint(tmp_path / "m"), open_checkpoint(tmp_path / "tuned"))


def test_what_cannot_be_done_with_bits_is_said_at_once(called, pair, svd_delta, tmp_path):
    ended = called(sparsify.main, "method=lossless", f"svd_dir={svd_delta}", f"save_dir={tmp_path / 's'}")
    assert ended.code == 2 and "give base_model and ftm_dir instead of svd_dir" in ended.err
    assert compressed(called, *pair, tmp_path / "d").code == 0
    ended = called(sparse_llama.main, pair[1], "c4", "--saved_delta_path", tmp_path / "d",
                   "--save_compressed_delta_dir", tmp_path / "q")  # fmt: skip
    assert ended.code == 2 and "no delta to quantize" in ended.err
    ended = called(lora.main, tmp_path / "d", "--out", tmp_path / "l")
    assert ended.code == 2 and "no low-rank factors" in ended.err
    ended = called(sparsify.main, "method=lossless", f"svd_dir={tmp_path / 'd'}", f"save_dir={tmp_path / 's'}")
    assert ended.code == 2 and "an SVD delta is wanted" in ended.err
    assert compressed(called, *pair, tmp_path / "e", "level=23").code == 2


def test_an_unchanged_matrix_of_any_method_keeps_the_bases_bits(called, odd_pair, tmp_path):
    base, tuned = (random_weights(SHAPES) for _ in range(2))
    base[Q0][0, 0] = tuned[Q0][0, 0] = -0.0
    tuned[UP1] += 0.01
    folders = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "tuned", tuned)
    run = compressed(called, *folders, tmp_path / "d", "method=dare", "compression_ratio=1")
    assert run.code == 0, run.err
    assert called(delta_script.main, "--merge", "--delta_path", tmp_path / "d", "--save_path", tmp_path / "m").code == 0
    assert torch.equal(open_checkpoint(tmp_path / "m").tensor(Q0).view(torch.int16), tuned[Q0].view(torch.int16))
