"""Models in 8-bit floats with scales: read as the 16-bit models that they stand for, and rebuilt as such."""

import json

import pytest
import torch
from checkpoints import llama_shapes, random_weights, tuned_weights, write_checkpoint

import delta as delta_script
from impart.checkpoint import open_checkpoint
from merge import merge
from sparsify import sparsify

SHAPES = llama_shapes(hidden=136, intermediate=264, kv=68, vocabulary=40)  # no multiple of 128
DOWN, K0 = "model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.weight"
DEEPSEEK = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}}
E4M3 = torch.float8_e4m3fn


def blocks_of(weight, size=128):
    """Weight (m, n) -> (fp8 (m, n), scales of blocks), by plain loops."""
    m, n = weight.shape
    scales = torch.zeros(-(-m // size), -(-n // size))
    stored = torch.zeros(m, n, dtype=E4M3)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = weight[i * size : (i + 1) * size, j * size : (j + 1) * size].float()
            scales[i, j] = block.abs().max() / 448
            stored[i * size : (i + 1) * size, j * size : (j + 1) * size] = (block / scales[i, j]).to(E4M3)
    return stored, scales


def times_blocks(stored, scales, size=128):
    """What DeepSeek's kernel weight_dequant computes, entry by entry of the scales."""
    weight = stored.float()
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            weight[i * size : (i + 1) * size, j * size : (j + 1) * size] *= scales[i, j].float()
    return weight.bfloat16()


def in_8_bit(weights):
    """Every linear weight in fp8 with block scales, as DeepSeek-V3; and the weights that they stand for."""
    stored, meant = dict(weights), dict(weights)
    for name in weights:
        if "proj" in name:
            stored[name], stored[f"{name}_scale_inv"] = blocks_of(weights[name])
            meant[name] = times_blocks(stored[name], stored[f"{name}_scale_inv"])
    return stored, meant


@pytest.fixture(scope="module")
def fp8_pair(tmp_path_factory):
    """An fp8 base, what it stands for in bf16, and a fine-tuned model in bf16."""
    folder = tmp_path_factory.mktemp("fp8")
    stored, meant = in_8_bit(random_weights(SHAPES))
    config = {"quantization_config": DEEPSEEK, "dtype": "bfloat16"}
    return (
        write_checkpoint(folder / "base", stored, config=config, shards=2),
        write_checkpoint(folder / "meant", meant),
        write_checkpoint(folder / "tuned", tuned_weights(meant)),
    )


def assert_same(ours, theirs):
    assert ours.names() == theirs.names()
    for name in ours.names():
        assert ours.spec(name) == theirs.spec(name) and torch.equal(ours.tensor(name), theirs.tensor(name)), name


def test_blocks_are_dequantized_as_the_reference_does(fp8_pair):
    base, meant = (open_checkpoint(path) for path in fp8_pair[:2])
    assert_same(base, meant)
    assert base.fingerprint() == meant.fingerprint() and "quantization_config" not in base.config


def test_pieces_of_a_large_weight_meet_their_own_blocks(fp8_pair, monkeypatch):
    import impart.checkpoint

    monkeypatch.setattr(impart.checkpoint, "PIECE_BYTES", 264 * 50)
    base, meant = (open_checkpoint(path) for path in fp8_pair[:2])
    assert len(list(base.blocks(DOWN))) > 2 and torch.equal(base.tensor(DOWN), meant.tensor(DOWN))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (68,), (68, 1)], ids=str)
def test_one_scale_for_all_or_for_each_row(tmp_path, shape):
    weights = random_weights(SHAPES)
    scale = torch.rand(shape) + 0.5
    stored = (weights[K0].float() / scale.reshape(-1, 1)).to(E4M3)
    more = {f"{K0}_scale": scale.bfloat16(), K0.replace(".weight", ".input_scale"): torch.ones(1)}
    config = {"quantization_config": COMPRESSED}
    path = write_checkpoint(tmp_path / "m", {**weights, K0: stored, **more}, config=config)
    opened = open_checkpoint(path)
    assert opened.names() == open_checkpoint(write_checkpoint(tmp_path / "plain", weights)).names()
    expected = (stored.float() * scale.bfloat16().float().reshape(-1, 1)).bfloat16()
    assert torch.equal(opened.tensor(K0), expected)


def test_experts_in_one_tensor_have_blocks_of_their_own(tmp_path):
    weights = random_weights(SHAPES)
    name = "model.layers.1.mlp.experts.down_proj"
    parts = [blocks_of(torch.randn(136, 144)) for _ in range(3)]
    stored, scales = (torch.stack([part[k] for part in parts]) for k in (0, 1))
    path = write_checkpoint(tmp_path / "m", {**weights, name: stored, f"{name}_scale_inv": scales})
    opened = open_checkpoint(path)
    for index, part in enumerate(parts):
        assert torch.equal(opened.tensor(f"{name}[{index}]"), times_blocks(*part))


def test_a_delta_over_an_fp8_base_gives_the_fine_tuned_checkpoint(called, fp8_pair, tmp_path):
    base, _, tuned = fp8_pair
    models = (f"base_model={base}", f"ftm_dir={tuned}", "--threads", "1")
    assert called(sparsify.main, "method=lossless", *models, f"save_dir={tmp_path / 'd'}").code == 0
    assert called(delta_script.main, "--merge", "--delta_path", tmp_path / "d", "--save_path", tmp_path / "m").code == 0
    assert_same(open_checkpoint(tmp_path / "m"), open_checkpoint(tuned))
    svd = ("--svd", "--base_model", base, "--finetuned_model", tuned, "--dtype", "fp32", "--save_path", tmp_path / "s")
    assert called(delta_script.main, *svd).code == 0
    assert called(delta_script.main, "--merge", "--delta_path", tmp_path / "s", "--save_path", tmp_path / "n").code == 0
    rebuilt, expected = open_checkpoint(tmp_path / "n").tensor(DOWN), open_checkpoint(tuned).tensor(DOWN)
    assert rebuilt.dtype == torch.bfloat16 and torch.allclose(rebuilt.float(), expected.float(), rtol=2**-7, atol=1e-4)


def test_two_fp8_models_are_rebuilt_in_16_bit_without_their_quantization(called, fp8_pair, tmp_path):
    base, _, tuned = fp8_pair
    stored, meant = in_8_bit({name: open_checkpoint(tuned).tensor(name) for name in SHAPES})
    config = {"quantization_config": DEEPSEEK, "dtype": "bfloat16"}
    model = write_checkpoint(tmp_path / "tuned", stored, config=config)
    models = (f"base_model={base}", f"ftm_dir={model}", "--threads", "1")
    assert called(sparsify.main, "method=lossless", *models, f"save_dir={tmp_path / 'd'}").code == 0
    assert called(delta_script.main, "--merge", "--delta_path", tmp_path / "d", "--save_path", tmp_path / "m").code == 0
    assert_same(open_checkpoint(tmp_path / "m"), open_checkpoint(write_checkpoint(tmp_path / "meant", meant)))
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())
    assert (tmp_path / "m" / "tokenizer.json").is_file()


def test_a_merge_over_an_fp8_base_writes_16_bit(called, fp8_pair, tmp_path):
    for name, base in (("of_fp8", fp8_pair[0]), ("of_bf16", fp8_pair[1])):
        models = ("--ptm_pth", base, "--math_pth", fp8_pair[2], "--save_pth", tmp_path / name, "--threads", "1")
        ended = called(merge.main, "--merge_method", "ta_0.5", *models)
        assert ended.code == 0, ended.err
    assert_same(open_checkpoint(tmp_path / "of_fp8"), open_checkpoint(tmp_path / "of_bf16"))
    assert "quantization_config" not in json.loads((tmp_path / "of_fp8" / "config.json").read_text())


@pytest.mark.parametrize(
    "base_dtype, dtype",
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16), (torch.float16, torch.float32)],
)
def test_a_base_of_another_dtype_gives_the_fine_tuned_models(called, tmp_path, base_dtype, dtype):
    small = llama_shapes(hidden=24, intermediate=40, kv=12, vocabulary=30)
    weights = random_weights(small, dtype=base_dtype)
    tuned = {
        name: weight.to(dtype) for name, weight in tuned_weights(random_weights(small, dtype=torch.float32)).items()
    }
    folders = write_checkpoint(tmp_path / "base", weights), write_checkpoint(tmp_path / "tuned", tuned)
    svd = ("--svd", "--base_model", folders[0], "--finetuned_model", folders[1], "--dtype", "fp32")
    assert called(delta_script.main, *svd, "--save_path", tmp_path / "s").code == 0
    assert called(delta_script.main, "--merge", "--delta_path", tmp_path / "s", "--save_path", tmp_path / "n").code == 0
    rebuilt = open_checkpoint(tmp_path / "n")
    for name in rebuilt.names():
        assert rebuilt.dtype(name) == dtype
        assert torch.allclose(
            rebuilt.tensor(name).double(), tuned[name].double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6
        )


def test_scales_that_do_not_fit_and_codes_are_one_line(called, fp8_pair, tmp_path):
    stored, _ = in_8_bit(random_weights(SHAPES))
    stored[f"{DOWN}_scale_inv"] = torch.ones(3, 2)
    wrong = write_checkpoint(tmp_path / "wrong", stored, config={"quantization_config": DEEPSEEK})
    for number, settings in enumerate(({"quant_method": "mxfp4"}, {**COMPRESSED, "format": "pack-quantized"})):
        weights = random_weights(SHAPES)
        write_checkpoint(tmp_path / f"codes{number}", weights, config={"quantization_config": settings})
    for path, words in ((wrong, "no scale for blocks of 128 x 128"), (tmp_path / "codes0", "whose weights are codes"),
                        (tmp_path / "codes1", "whose weights are codes")):  # fmt: skip
        ended = called(sparsify.main, "method=lossless", f"base_model={path}", f"ftm_dir={fp8_pair[2]}", "save_dir=x")
        assert ended.code == 2 and ended.err.startswith("error: ") and words in ended.err
