"""delta.py from end to end: SVD, merge and info on every family of decoders."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import FAMILIES, family_pair, llama_pair, llama_shapes, random_weights, tuned_weights, write_checkpoint
from whole_runs import files_of, merge, tensors_of

import delta
from impart.architecture import linear_names
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.dtypes import parse_dtype, short_name
from impart.outputs import MARKER
from sparsify import sparsify

ROOT = Path(__file__).resolve().parents[1]
ONE = ("--threads", "1")


def svd(called, pair, path, *flags):
    ended = called(
        delta.main, "--svd", "--base_model", pair[0], "--finetuned_model", pair[1], "--save_path", path, *ONE, *flags
    )
    assert ended.code == 0, ended.err
    return ended


def assert_equal_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def assert_equal_to_rounding(found, expected, base):
    """What base + the fp32 SVD of the delta may differ by from the fine-tuned weight.

    The SVD loses e = 4e-6 of the delta's largest entry at most. Added to the base this is rounded to the weight's own
    16-bit grid, on which the fine-tuned weight lies: the same value comes out wherever half a step of that grid is
    larger than e, and for the few entries next to zero the difference is at most e and one rounding of it.
    """
    x, y = found.float(), expected.float()
    e = 4e-6 * float((y - base.float()).abs().max())
    mantissa = torch.finfo(expected.dtype).eps  # step of the grid over the value
    certain = y.abs() * mantissa / 4 > e
    if expected.dtype != torch.float32:
        assert torch.equal(x[certain], y[certain]) and certain.float().mean() > 0.95
    assert torch.all(
        (x - y).abs() <= 2 * e + 2 * mantissa * y.abs() * ~certain + torch.finfo(torch.float32).eps * y.abs()
    )


# SVD


def test_the_readme_commands_by_subprocess(pair, tmp_path, script):
    ended = script(
        "delta.py",
        "--svd",
        "--base_model",
        pair[0],
        "--finetuned_model",
        pair[1],
        "--dim",
        20,
        "--save_path",
        tmp_path / "delta.pt",
    )
    assert ended.code == 0, ended.err
    assert sorted(os.listdir(tmp_path)) == ["delta.pt"]
    assert sorted(os.listdir(tmp_path / "delta.pt")) == [
        "README.md",
        "delta.json",
        "layer-00000.safetensors",
        "layer-00001.safetensors",
        "model",
        "report.json",
        "rest.safetensors",
    ]
    ended = script("delta.py", "--info", tmp_path / "delta.pt", cwd=tmp_path)
    assert ended.code == 0 and "svd delta, method svd (dim=20, dtype=fp16)" in ended.out
    ended = script(
        "delta.py",
        "--merge",
        "--finetuned_model",
        pair[1],
        "--delta_path",
        tmp_path / "delta.pt",
        "--save_path",
        tmp_path / "model",
    )
    assert ended.code == 0, ended.err
    assert set(tensors_of(tmp_path / "model")) == set(tensors_of(pair[1]))


def test_the_factors_are_those_of_the_delta(pair, svd_delta):
    artifact, base, tuned = open_delta(svd_delta), *map(open_checkpoint, pair)
    assert artifact.names() == linear_names(tuned) and artifact.extras() == []
    for name in artifact.names():
        dW = tuned.tensor(name).double() - base.tensor(name).double()
        U, s, V = artifact.factors(name)
        assert (
            artifact.rank(name) == min(dW.shape)
            and U.shape == (dW.shape[0], len(s))
            and V.shape == (dW.shape[1], len(s))
        )
        assert torch.allclose(s.double(), torch.linalg.svdvals(dW), rtol=1e-3, atol=1e-7 * float(s[0]))
        assert torch.allclose((U * s) @ V.T, dW.float(), atol=4e-6 * float(dW.abs().max()))
        assert torch.equal(artifact.reconstruct(name), (U * s) @ V.T)


def test_dim_is_the_rank_of_attention_and_mlp_keeps_more(pair, tmp_path, called):
    svd(called, pair, tmp_path / "d", "--dim", "20")
    artifact = open_delta(tmp_path / "d")
    ranks = {name.split(".")[-2]: artifact.rank(name) for name in artifact.names()}
    assert ranks == {
        "q_proj": 20,
        "k_proj": 20,
        "v_proj": 20,
        "o_proj": 20,
        "gate_proj": 29,
        "up_proj": 29,
        "down_proj": 29,
    }
    assert artifact.manifest["settings"] == {"dim": 20, "dtype": "fp16"}


@pytest.mark.parametrize("dim, attention, mlp", [(40, 32, 58), (64, 32, 64), (5120, 32, 64), (1, 1, 1)])
def test_dim_is_capped_by_the_shape(dim, attention, mlp):
    capped, whole = delta.Svd(dim=dim, dtype="fp16"), delta.Svd(dim=None, dtype="fp16")
    assert capped.rank("model.layers.0.self_attn.k_proj.weight", 32, 64) == attention
    assert capped.rank("model.layers.0.mlp.up_proj.weight", 176, 64) == mlp
    assert whole.rank("model.layers.0.mlp.up_proj.weight", 176, 64) == 64


def test_a_truncated_svd_is_the_leading_part_of_the_whole(pair, svd_delta, tmp_path, called):
    svd(called, pair, tmp_path / "d", "--dim", "10", "--dtype", "fp32")
    part, whole = open_delta(tmp_path / "d"), open_delta(svd_delta)
    for name in part.names():
        r, (U, s, V) = part.rank(name), whole.factors(name)
        assert torch.allclose(part.reconstruct(name), (U[:, :r] * s[:r]) @ V[:, :r].T, atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [("fp16", 2e-3), ("bf16", 2e-2), ("bfloat16", 2e-2)])
def test_factors_are_stored_in_the_dtype_that_is_asked_for(pair, svd_delta, tmp_path, called, dtype, tolerance):
    svd(called, pair, tmp_path / "d", "--dtype", dtype)
    found, exact = open_delta(tmp_path / "d"), open_delta(svd_delta)
    for name in found.names():
        stored = found.stored(name)
        assert stored.tensors["U"].dtype == stored.tensors["V"].dtype == parse_dtype(dtype)
        assert stored.tensors["s"].dtype == torch.float32
        dW = exact.reconstruct(name)
        assert float((found.reconstruct(name) - dW).norm() / dW.norm()) < tolerance
    assert found.sizes().linear < exact.sizes().linear * 0.6
    assert found.manifest["settings"]["dtype"] == short_name(dtype)  # one spelling, whichever was given


def test_the_same_command_twice_gives_the_same_bytes(pair, svd_delta, tmp_path, called):
    svd(called, pair, tmp_path / "d", "--dtype", "fp32")
    assert files_of(tmp_path / "d") == files_of(svd_delta)


def test_every_form_of_checkpoint_gives_the_same_matrices(pair, svd_delta, tmp_path, called):
    forms = [
        write_checkpoint(tmp_path / f"{number}", tensors_of(folder), form="bin", shards=2 - number)
        for number, folder in enumerate(pair)
    ]
    svd(called, forms, tmp_path / "d", "--dtype", "fp32")
    for file in ("layer-00000.safetensors", "layer-00001.safetensors", "rest.safetensors"):
        assert (tmp_path / "d" / file).read_bytes() == (svd_delta / file).read_bytes()
    assert (
        open_delta(tmp_path / "d").manifest["base"]["fingerprint"]
        == open_delta(svd_delta).manifest["base"]["fingerprint"]
    )


def test_report_and_info_agree_with_the_files(pair, svd_delta, called):
    artifact, report = open_delta(svd_delta), json.loads((svd_delta / "report.json").read_text())
    assert [row["name"] for row in report["matrices"]] == artifact.names()
    assert report["settings"]["base_model"] == str(pair[0]) and report["settings"]["dtype"] == "fp32"
    ended = called(delta.main, "--info", svd_delta)
    size = sum(len(data) for name, data in files_of(svd_delta).items() if not name.startswith("model/"))
    assert f"{size:,}" in ended.out and re.search(r"mlp\.down_proj +64 x 176 +2 +64\.0", ended.out)
    assert str(pair[0]) in ended.out and "0 extra parameters" in ended.out
    assert ended.out == called(delta.main, "--info", "--delta_path", svd_delta).out
    assert ended.out == called(delta.main, "--info", "--delta_pth", svd_delta).out


def test_info_recommends_a_method_by_rho(pair, svd_delta, tmp_path, called):
    old, new = (open_checkpoint(str(path)) for path in pair)
    names = open_delta(svd_delta).names()
    parts = [
        float((new.tensor(n).float() - old.tensor(n).float()).norm() / old.tensor(n).float().norm()) for n in names
    ]
    ended = called(delta.main, "--info", svd_delta, "--base_model", pair[0])
    assert f"rho {sum(parts) / len(parts):.3f} (norm(dW) / norm(W)); at a ratio of " in ended.out
    assert called(delta.main, "--info", svd_delta).out in ended.out
    arguments = (f"svd_dir={svd_delta}", "method=lowrank", "compression_ratio=16", f"save_dir={tmp_path / 'd'}")
    assert called(sparsify.main, "--threads", 1, *arguments).code == 0
    refused = called(delta.main, "--info", tmp_path / "d", "--base_model", pair[0])
    assert refused.code == 2 and "is a sparse delta, of which norm(dW) is not known any more" in refused.err


def test_info_names_the_matrix_with_the_worst_budget(pair, tmp_path, called):
    arguments = (f"base_model={pair[0]}", f"ftm_dir={pair[1]}", "method=lowrank", "compression_ratio=16")
    assert called(sparsify.main, "--threads", 1, *arguments, f"save_dir={tmp_path / 'd'}").code == 0
    out = called(delta.main, "--info", tmp_path / "d").out
    # of its 64 * 176 = 11264 values it may keep 704, and a triplet takes 240
    assert "least used budget: model.layers.0.mlp.down_proj.weight (64 x 176) holds 68% of the values" in out


def test_info_lists_what_travels_whole_by_kind(tmp_path, called):
    base, tuned = family_pair(tmp_path / "models", "GptOss")
    arguments = (f"base_model={base}", f"ftm_dir={tuned}", "method=dare", "compression_ratio=4")
    assert called(sparsify.main, "--threads", 1, *arguments, f"save_dir={tmp_path / 'd'}").code == 0
    out = called(delta.main, "--info", tmp_path / "d").out
    assert "\n  mlp.experts.gate_up_proj_bias, 4 x 48: 2 of 768 bytes\n" in out
    assert out.index("embed_tokens,") < out.index("mlp.experts.gate_up_proj_bias,")  # the larger first


# Merge


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_rank_in_fp32_merged_back_is_the_fine_tuned_model(tmp_path, called, dtype):
    pair = llama_pair(tmp_path / "pair", dtype=dtype)
    svd(called, pair, tmp_path / "d", "--dtype", "fp32")
    merged = merge(called, tmp_path / "d", tmp_path / "m")
    base, tuned = tensors_of(pair[0]), tensors_of(pair[1])
    assert set(merged.names()) == set(tuned)
    for name in tuned:
        assert merged.dtype(name) == dtype
        assert_equal_to_rounding(merged.tensor(name), tuned[name], base[name])


def test_merging_twice_is_byte_identical_with_and_without_the_fine_tuned_model(pair, svd_delta, tmp_path, called):
    merge(called, svd_delta, tmp_path / "a")
    merge(called, svd_delta, tmp_path / "b")
    merge(called, svd_delta, tmp_path / "c", "--finetuned_model", pair[1])
    merge(called, svd_delta, tmp_path / "d", "--base_model", pair[0])
    first = files_of(tmp_path / "a")
    assert set(first) == {MARKER, "config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}
    for other in "bcd":
        assert files_of(tmp_path / other) == first


def test_flags_have_the_authors_spellings(pair, svd_delta, tmp_path, called):
    ended = called(delta.main, "--merge", "--delta_pth", svd_delta, "--save_pth", tmp_path / "m", *ONE)
    assert ended.code == 0, ended.err
    merge(called, svd_delta, tmp_path / "n")
    assert files_of(tmp_path / "m") == files_of(tmp_path / "n")


@pytest.fixture
def odd_pair(tmp_path):
    """A fine-tuned model with all that may differ outside of the matrices, and one matrix that does not differ."""
    base = random_weights(llama_shapes(hidden=32, intermediate=48, layers=2, kv=16, vocabulary=50))
    base["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tuned = tuned_weights(base)
    del tuned["model.layers.0.self_attn.rotary_emb.inv_freq"]
    unchanged = "model.layers.1.self_attn.o_proj.weight"
    tuned[unchanged] = base[unchanged].clone()
    tuned["model.norm.weight"] = base["model.norm.weight"] * 1.5
    tuned["model.layers.0.input_layernorm.weight"] = base["model.layers.0.input_layernorm.weight"].float() + 0.25
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tuned[name] = torch.cat([base[name], base[name].float().mean(0, keepdim=True).to(base[name].dtype)])
    tuned["model.layers.1.self_attn.q_proj.bias"] = torch.linspace(0, 1, 32).bfloat16()
    folders = (
        write_checkpoint(tmp_path / "odd_base", base),
        write_checkpoint(tmp_path / "odd_tuned", tuned, config={"vocab_size": 51}),
    )
    return *folders, unchanged


def test_extras_added_and_dropped_parameters_travel(odd_pair, tmp_path, called):
    *pair, unchanged = odd_pair
    ended = svd(called, pair, tmp_path / "d", "--dtype", "fp32")
    artifact = open_delta(tmp_path / "d")
    assert sorted(artifact.extras()) == [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.norm.weight",
    ]
    assert "5 extra parameters" in ended.out
    assert artifact.manifest["dropped"] == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert artifact.manifest["matrices"][unchanged]["encoding"] == "empty"
    shutil.move(pair[1], tmp_path / "away")  # the fine-tuned model is not needed
    merged, base, tuned = (
        merge(called, tmp_path / "d", tmp_path / "m"),
        tensors_of(pair[0]),
        tensors_of(tmp_path / "away"),
    )
    assert set(merged.names()) == set(tuned) and merged.config["vocab_size"] == 51
    for name in tuned:
        if name in artifact.names():
            assert_equal_to_rounding(merged.tensor(name), tuned[name], base[name])
        else:
            assert merged.dtype(name) == tuned[name].dtype and torch.equal(merged.tensor(name), tuned[name])
    assert torch.equal(merged.tensor(unchanged), base[unchanged])
    merge(called, tmp_path / "d", tmp_path / "n", "--finetuned_model", tmp_path / "away")
    assert files_of(tmp_path / "n").keys() == files_of(tmp_path / "m").keys()
    assert_equal_tensors(tensors_of(tmp_path / "n"), tensors_of(tmp_path / "m"))


def test_identical_models_give_a_valid_empty_delta_and_say_so(pair, tmp_path, called, caplog):
    copy = shutil.copytree(pair[0], tmp_path / "copy")
    svd(called, (pair[0], copy), tmp_path / "d")
    assert "are identical: the delta is empty" in caplog.text
    artifact = open_delta(tmp_path / "d")
    assert {entry["encoding"] for entry in artifact.manifest["matrices"].values()} == {
        "empty"
    } and artifact.extras() == []
    assert artifact.sizes().values == 0 and called(delta.main, "--info", tmp_path / "d").code == 0
    assert_equal_tensors(tensors_of(merge(called, tmp_path / "d", tmp_path / "m").path), tensors_of(pair[0]))


def test_equal_values_in_another_dtype_are_a_zero_delta(pair, tmp_path, called):
    wide = write_checkpoint(tmp_path / "wide", {name: tensor.float() for name, tensor in tensors_of(pair[0]).items()})
    svd(called, (pair[0], wide), tmp_path / "d")
    assert {entry["encoding"] for entry in open_delta(tmp_path / "d").manifest["matrices"].values()} == {"empty"}
    assert_equal_tensors(tensors_of(merge(called, tmp_path / "d", tmp_path / "m").path), tensors_of(wide))


def test_overwrite_replaces_and_nothing_else_does(pair, svd_delta, tmp_path, called):
    shutil.copytree(svd_delta, tmp_path / "d")
    svd(called, pair, tmp_path / "d", "--overwrite", "--dim", "3")
    assert open_delta(tmp_path / "d").manifest["settings"]["dim"] == 3
    merge(called, tmp_path / "d", tmp_path / "m")
    before = files_of(tmp_path / "m")
    ended = called(delta.main, "--merge", "--delta_path", svd_delta, "--save_path", tmp_path / "m", *ONE)
    assert ended.code == 2 and files_of(tmp_path / "m") == before
    merge(called, svd_delta, tmp_path / "m", "--overwrite")
    assert files_of(tmp_path / "m") != before


# Families


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_and_loads_in_transformers(tmp_path, called, family):
    import transformers

    pair = family_pair(tmp_path, family)
    svd(called, pair, tmp_path / "d", "--dtype", "fp32")
    merged = merge(called, tmp_path / "d", tmp_path / "m")
    base, tuned, artifact = tensors_of(pair[0]), tensors_of(pair[1]), open_delta(tmp_path / "d")
    assert set(merged.names()) == set(tuned)
    for name in tuned:
        if name in artifact.names():
            assert_equal_to_rounding(merged.tensor(name), tuned[name], base[name])
        else:
            assert torch.equal(merged.tensor(name), tuned[name])
    loaded, expected = (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (tmp_path / "m", pair[1])
    )
    tokens = torch.arange(3, 13)[None]
    with torch.no_grad():
        ours, theirs = loaded(tokens).logits, expected(tokens).logits
    assert torch.allclose(ours, theirs, atol=1e-2 * float(theirs.abs().max()))


def test_experts_are_compressed_one_by_one(tmp_path, called):
    for family, kind in (
        ("Mixtral", "block_sparse_moe.experts.3.w2.weight"),
        ("Qwen3Moe", "mlp.experts.3.up_proj.weight"),
    ):
        svd(called, family_pair(tmp_path / family, family), tmp_path / f"d{family}")
        artifact = open_delta(tmp_path / f"d{family}")
        assert f"model.layers.1.{kind}" in artifact.names()
        assert sum("experts" in name for name in artifact.names()) == 2 * 4 * 3
        routers = [name for name in artifact.extras() if name.endswith(".gate.weight")]
        assert len(routers) == 2
    svd(called, family_pair(tmp_path / "GptOss", "GptOss"), tmp_path / "d")
    artifact = open_delta(tmp_path / "d")
    assert "model.layers.0.mlp.experts.gate_up_proj[3]" in artifact.names()
    assert len(artifact.names()) == 2 * (4 + 2 * 4) and "model.layers.0.mlp.router.weight" in artifact.extras()


def test_help_shows_the_commands_and_flags(called):
    ended = called(delta.main, "--help")
    assert ended.code == 0 and ended.err == ""
    for words in (
        "python delta.py --svd",
        "--finetuned_model",
        "--save_pth",
        "--delta_pth",
        "{fp16,bf16,fp32,float16,bfloat16,float32}",
        "--overwrite",
    ):
        assert words in ended.out
