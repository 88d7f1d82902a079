"""Models that are saved without a head, whose names lack a prefix, and configs that do not say what they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import llama_shapes, random_weights, tuned_weights, write_checkpoint
from whole_runs import merge, tensors_of

import delta as delta_script
from impart.architecture import heads, names_like
from merge import merge as merge_script
from quantize import sparse_llama
from sparsify import sparsify, sparsify_quant

HEADED = ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.weight", "cls.predictions.bias"]
HEADLESS = ["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight"]


def test_names_follow_those_of_the_other_model():
    added = {HEADLESS[0]: HEADED[0], HEADLESS[1]: HEADED[1], "pooler.dense.bias": "bert.pooler.dense.bias"}
    assert names_like(added, HEADED) == added
    assert names_like([*HEADED, "score.weight"], HEADLESS) == {
        **dict(zip(HEADED, HEADLESS, strict=False)),
        HEADED[2]: HEADED[2],
        "score.weight": "score.weight",
    }
    # An SVD holds some matrices only, and experts as slices.
    assert names_like(["layers.0.mlp.experts.down_proj"], ["model.layers.0.mlp.experts.down_proj[1]"])
    assert names_like(HEADED, HEADED[1:]) == {} == names_like(HEADED, ["model.layers.0.mlp.up_proj.weight"])


def test_a_part_among_others_is_no_headless_model():
    names = ["language_model.model.layers.0.a.weight", "vision_tower.layers.0.b.weight"]
    assert names_like(names, ["model.layers.0.a.weight"]) == {} == names_like(["model.layers.0.a.weight"], names)


def test_heads_lie_outside_of_layers_and_embeddings():
    assert heads(HEADED) == {HEADED[2]} and heads(HEADLESS) == set()
    assert heads(llama_shapes()) == {"lm_head.weight"}
    assert heads(["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight", "lm_head.weight"]) == set()  # T5


def changed(model, folder: Path) -> Path:
    """The model, saved after a small step in every parameter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.002)
    model.save_pretrained(folder)
    return folder


def edited(folder: Path, *removed: str, **changes) -> Path:
    """The folder, with other settings in its config.json."""
    settings = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in settings.items() if key not in removed}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def vocabulary(folder: Path) -> Path:
    """The folder, with BERT's oldest form of a tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"t{number}" for number in range(5, 40))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A BERT whose config has no type, and two fine-tuned from it: one without a head, one that classifies."""
    folder = tmp_path_factory.mktemp("encoders")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)
    torch.manual_seed(0)
    base, classifier = transformers.BertForPreTraining(config), transformers.BertForSequenceClassification(config)
    base.save_pretrained(folder / "base")
    classifier.bert.load_state_dict(base.bert.state_dict())
    paths = folder / "base", changed(base.bert, folder / "plain"), changed(classifier, folder / "classifier")
    for path in paths:
        vocabulary(path)
    edited(paths[0], "model_type", "architectures")
    return paths


@pytest.mark.parametrize("which", [1, 2])
def test_an_encoder_comes_back_whatever_its_head(called, encoders, tmp_path, which):
    base, tuned = encoders[0], encoders[which]
    pair, svd = ("--base_model", base, "--finetuned_model", tuned), tmp_path / "svd"
    ended = called(delta_script.main, "--svd", "--dtype", "fp32", *pair, "--save_path", svd)
    assert ended.code == 0, ended.err
    merge(called, svd, tmp_path / "whole")
    cls = transformers.BertForSequenceClassification if which == 2 else transformers.BertModel
    found, loading = cls.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    for name, parameter in cls.from_pretrained(tuned).named_parameters():
        torch.testing.assert_close(found.get_parameter(name), parameter, rtol=1e-5, atol=1e-5)
    keys = (f"svd_dir={svd}", f"ftm_dir={tuned}", "method=dare", "compression_ratio=4", f"save_dir={tmp_path / 'd'}")
    assert called(sparsify.main, *keys, "weight_types=attention.self.query").code == 0  # the others from the model
    keys = (f"base_model={base}", f"ftm_dir={tuned}", "method=lossless", f"save_dir={tmp_path / 'exact'}")
    assert called(sparsify.main, *keys).code == 0
    again = merge(called, tmp_path / "exact", tmp_path / "same")
    stored = tensors_of(tuned)
    for name in again.names():
        assert torch.equal(again.tensor(name), stored[name if name in stored else name.removeprefix("bert.")]), name


def test_a_classifier_is_quantized(called, encoders, tmp_path):
    (tmp_path / "text.txt").write_text("t5 t6 t7 t8 " * 200)
    keys = (f"base_model={encoders[0]}", f"ftm_dir={encoders[2]}", "method=impart", "preprune_ratio=0.3", "C=1")
    ended = called(sparsify_quant.main, *keys, "compression_ratio_qt=8", f"save_dir={tmp_path / 'sparse'}")
    assert ended.code == 0, ended.err
    flags = ("--saved_delta_path", tmp_path / "sparse", "--save_compressed_delta_dir", tmp_path / "quantized")
    ended = called(sparse_llama.main, encoders[2], tmp_path / "text.txt", *flags, "nsamples=8", "seqlen=16")
    assert ended.code == 0, ended.err


def merged(called, base: Path, models, out: Path) -> dict[str, torch.Tensor]:
    """The mean of the models."""
    given = [f"--model=m{number}={path}" for number, path in enumerate(models)]
    ended = called(merge_script.main, "--merge_method=ta_0.5", f"--ptm_pth={base}", *given, f"--save_pth={out}")
    assert ended.code == 0, ended.err
    return tensors_of(out)


def test_encoders_of_different_heads_are_merged_below_the_bases_head(called, caplog, encoders, tmp_path):
    found = merged(called, encoders[0], encoders[1:], tmp_path / "merged")
    base, plain, classifier = map(tensors_of, encoders)
    assert "m0 lacks the base's head, which counts as unchanged: cls.predictions.bias and " in caplog.text
    assert "m1 has a head that the base lacks, left out of the merge: classifier.bias and 1 more" in caplog.text
    assert set(found) == set(base)
    for name, tensor in found.items():
        half = (plain[name.removeprefix("bert.")] + classifier[name]) / 2 if name in classifier else base[name]
        torch.testing.assert_close(tensor, half, rtol=1e-5, atol=1e-6)


def test_a_head_that_repeats_the_embedding_still_does(called, encoders, tmp_path):
    base, decoder = shutil.copytree(encoders[0], tmp_path / "base"), "cls.predictions.decoder.weight"
    weights = tensors_of(base)
    weights[decoder] = weights["bert.embeddings.word_embeddings.weight"].clone()
    (base / "model.safetensors").unlink()
    torch.save(weights, base / "pytorch_model.bin")
    found = merged(called, base, encoders[1:], tmp_path / "merged")
    assert torch.equal(found[decoder], found["bert.embeddings.word_embeddings.weight"])
    assert not torch.equal(found[decoder], weights[decoder])


@pytest.mark.parametrize("as_delta", [False, True])
def test_a_decoder_without_a_head_leaves_the_bases_as_it_is(called, caplog, tmp_path, as_delta):
    weights = random_weights(llama_shapes(hidden=16, intermediate=24, kv=8, vocabulary=20))
    base = write_checkpoint(tmp_path / "base", weights)
    whole = {name: tensor + 0.01 for name, tensor in tuned_weights(weights).items()}
    tuned = write_checkpoint(tmp_path / "tuned", whole)
    bare = {name.removeprefix("model."): tensor for name, tensor in whole.items() if name != "lm_head.weight"}
    (tuned / "model.safetensors").unlink()
    torch.save(bare, tuned / "pytorch_model.bin")
    given = tuned
    if as_delta:
        given = tmp_path / "delta"
        pair = ("--base_model", base, "--finetuned_model", tuned)
        assert called(delta_script.main, "--svd", "--dtype", "fp32", *pair, "--save_path", given).code == 0
    found = merged(called, base, [f"{given}:2"], tmp_path / "merged")
    assert "m0 lacks the base's head, which counts as unchanged: lm_head.weight\n" in caplog.text
    assert torch.equal(found["lm_head.weight"], weights["lm_head.weight"])
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"):
        torch.testing.assert_close(found[name], whole[name], rtol=2**-7, atol=1e-3)
