"""Whether two models are a pair is asked before any step that takes one."""

import shutil

import pytest
from checkpoints import llama_shapes, random_weights, write_checkpoint

import delta
from impart.checkpoint import open_checkpoint
from impart.errors import InputError
from impart.relation import check_pair
from quantize import sparse_llama
from sparsify import sparsify


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A model of the pair's shapes that was trained from other weights."""
    return write_checkpoint(tmp_path_factory.mktemp("other") / "model", random_weights(llama_shapes(), seed=9))


def steps(base, tuned, out):
    """Every step that takes a pair, from the two models."""
    yield delta, ["--svd", "--base_model", base, "--finetuned_model", tuned, "--save_path", out]
    keys = ["compression_ratio=4", "preprune_ratio=0.3", "C=1", f"base_model={base}", f"ftm_dir={tuned}"]
    yield sparsify, [*keys, f"save_dir={out}"]
    yield sparse_llama, [tuned, "c4", "method=bitdelta", f"baseModel={base}", "--save_compressed_delta_dir", out]


def test_a_stranger_is_refused_and_taken_by_force(pair, stranger, tmp_path, called, caplog):
    for number, (script, arguments) in enumerate(steps(str(pair[0]), str(stranger), str(tmp_path / "out"))):
        ended = called(script.main, *arguments)
        assert ended.code == 2 and "does not seem to be fine-tuned from" in ended.err and "--force" in ended.err
        assert not (tmp_path / "out").exists()
        if number < 2:
            assert called(script.main, *arguments, "--force").code == 0
            assert "Going on, because of --force" in caplog.text
            shutil.rmtree(tmp_path / "out")


def test_a_large_delta_is_suspected_and_taken(pair, tmp_path, caplog):
    base = open_checkpoint(pair[0])
    far = {name: base.tensor(name) * 1.6 for name in base.names()}
    check_pair(base, open_checkpoint(write_checkpoint(tmp_path / "far", far)), force=False)
    assert "differs" in caplog.text and "0.60 times" in caplog.text and "is it its base?" in caplog.text


def test_a_base_given_twice_is_refused(pair, tmp_path, called):
    for script, arguments in steps(str(pair[0]), str(pair[0]), str(tmp_path / "out")):
        ended = called(script.main, *arguments)
        assert ended.code == 2 and "is given as base and as fine-tuned model" in ended.err


def test_other_rotary_embeddings_are_another_base(pair, tmp_path):
    base, tuned = open_checkpoint(pair[0]), open_checkpoint(pair[1])
    tuned.config["rope_theta"] = 1e6
    with pytest.raises(InputError, match="rope_theta=1e.06"):
        check_pair(base, tuned, force=False)


def test_swapped_models_are_suspected_by_the_chat_template(pair, tmp_path, caplog):
    chat = shutil.copytree(pair[1], tmp_path / "chat")
    check_pair(open_checkpoint(pair[0]), open_checkpoint(chat), force=False)
    (chat / "chat_template.jinja").write_text("{{ messages }}")
    check_pair(open_checkpoint(pair[0]), open_checkpoint(chat), force=False)
    assert "swapped" not in caplog.text
    check_pair(open_checkpoint(chat), open_checkpoint(pair[0]), force=False)
    assert "swapped?" in caplog.text
