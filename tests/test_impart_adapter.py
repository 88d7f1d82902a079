"""LoRA adapters as the fine-tuned model: dW is alpha / r B A to the last bit of fp32, saved modules are extras."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import delta as delta_script
from impart.adapter import open_finetuned
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.comparison import compare
from impart.errors import InputError
from merge import merge
from sparsify import sparsify

Q0, K1, EMBEDDING = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "model.embed_tokens",
)


def write_adapter(folder: Path, base: Path, tensors: dict[str, torch.Tensor] | None = None, **changes) -> Path:
    """An adapter of rank 4 on q_proj of layer 0 and of rank 2 on k_proj of layer 1, as PEFT saves it."""
    generator = torch.Generator().manual_seed(3)
    factors = {
        f"{Q0}.lora_A.weight": torch.randn(4, 64, generator=generator),
        f"{Q0}.lora_B.weight": torch.randn(64, 4, generator=generator),
        f"{K1}.lora_A.weight": torch.randn(2, 64, generator=generator),
        f"{K1}.lora_B.weight": torch.randn(32, 2, generator=generator),
        "model.norm.weight": torch.full((64,), 1.5),  # of modules_to_save
        **(tensors or {}),
    }
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layers.1.self_attn.k_proj": 2},
        "alpha_pattern": {"k_proj": 3},
        "modules_to_save": ["norm"],
        **changes,
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    named = {f"base_model.model.{name}": tensor * (0.1 if "lora" in name else 1) for name, tensor in factors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def product(adapter: Path, module: str) -> torch.Tensor:
    tensors = load_file(adapter / "adapter_model.safetensors")
    return tensors[f"base_model.model.{module}.lora_B.weight"] @ tensors[f"base_model.model.{module}.lora_A.weight"]


@pytest.mark.parametrize(("rslora", "scales"), [(False, (2.0, 1.5)), (True, (4.0, 3 / 2**0.5))])
def test_the_delta_is_exact_with_patterns_and_rank_stabilized(pair, tmp_path, rslora, scales):
    adapter, base = write_adapter(tmp_path / "adapter", pair[0], use_rslora=rslora), open_checkpoint(pair[0])
    comparison = compare(base, open_finetuned(adapter, base), [f"{Q0}.weight", f"{K1}.weight"])
    for module, scale in zip((Q0, K1), scales, strict=True):
        assert torch.equal(comparison.delta(f"{module}.weight"), product(adapter, module) * scale)
    assert comparison.extras == ["model.norm.weight"] and comparison.dropped == []
    assert f"{Q0}.weight" not in comparison.unchanged and "lm_head.weight" in comparison.unchanged


def test_embeddings_have_their_own_factors(pair, tmp_path):
    A, B = torch.ones(4, 100) * torch.arange(100), torch.ones(64, 4)
    tensors = {f"{EMBEDDING}.lora_embedding_A": A, f"{EMBEDDING}.lora_embedding_B": B}
    adapted = open_finetuned(write_adapter(tmp_path / "adapter", pair[0], tensors))  # the base is the one that it names
    expected = open_checkpoint(pair[0]).tensor(f"{EMBEDDING}.weight").float() + 0.08 * torch.arange(100)[:, None]
    assert torch.equal(adapted.tensor(f"{EMBEDDING}.weight"), expected.to(torch.bfloat16))


def test_an_adapter_is_compressed_rebuilt_and_merged(called, pair, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", pair[0])
    (adapter / "tokenizer.json").write_text('{"version": "of the adapter"}')
    keys = ("method=impart", "compression_ratio=2", "preprune_ratio=0.5", "C=1", "--threads", 1)
    models = (f"base_model={pair[0]}", f"ftm_dir={adapter}")
    ended = called(sparsify.main, *models, *keys, f"save_dir={tmp_path / 'delta'}")
    assert ended.code == 0, ended.err
    found = open_delta(tmp_path / "delta")
    assert found.extras() == ["model.norm.weight"] and found.rank(f"{Q0}.weight") <= 4
    assert torch.equal(found.extra("model.norm.weight"), torch.full((64,), 1.5))
    assert {name for name in found.names() if found.rank(name)} == {f"{Q0}.weight", f"{K1}.weight"}
    assert (found.path / "model" / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
    flags = ("--base_model", pair[0], "--finetuned_model", adapter, "--dtype", "fp32", "--threads", 1)
    assert called(delta_script.main, "--svd", *flags, "--save_path", tmp_path / "svd").code == 0
    torch.testing.assert_close(open_delta(tmp_path / "svd").reconstruct(f"{Q0}.weight"), 2 * product(adapter, Q0))
    (adapter / "tokenizer.json").unlink()
    names = ("--merge_method", "ta_1.0", "--ptm_pth", pair[0], "--math_pth", adapter, "--code_pth", pair[0])
    ended = called(merge.main, *names, "--save_pth", tmp_path / "merged", "dtype=float32", "--threads", 1, "--force")
    assert ended.code == 0, ended.err
    base, merged = open_checkpoint(pair[0]), open_checkpoint(tmp_path / "merged")
    difference = merged.tensor(f"{Q0}.weight") - base.tensor(f"{Q0}.weight").float()
    torch.testing.assert_close(difference, 2 * product(adapter, Q0), rtol=1e-4, atol=1e-5)
    assert torch.equal(merged.tensor("model.norm.weight"), torch.full((64,), 1.5))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "is a DoRA adapter (use_dora: True)"),
        ({"peft_type": "LOHA"}, "is of kind 'LOHA'; LORA is known here"),
        ({"peft_type": None}, "is of kind None"),
        ({"init_lora_weights": "pissa"}, "is no plain LoRA (init_lora_weights: 'pissa')"),
        ({"lora_bias": True}, "is no plain LoRA (lora_bias: True)"),
        ({"r": 5}, "has factors of shapes"),
        ({"lora_alpha": None}, "and alpha None"),
    ],
)
def test_adapters_that_are_not_alpha_over_r_B_A(called, pair, tmp_path, changes, words):
    adapter = write_adapter(tmp_path / "adapter", pair[0], **changes)
    flags = ("--base_model", pair[0], "--finetuned_model", adapter, "--save_path", tmp_path / "svd")
    ended = called(delta_script.main, "--svd", *flags)
    assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1, ended.err


def test_adapters_that_do_not_fit(pair, tmp_path):
    stranger = {"model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}
    with pytest.raises(
        InputError, match="changes model.layers.7.self_attn.q_proj.weight, and base .* has no parameter"
    ):
        open_finetuned(write_adapter(tmp_path / "layer", pair[0], stranger))
    with pytest.raises(InputError, match="holds magnitude, which is no LoRA factor"):
        open_finetuned(write_adapter(tmp_path / "key", pair[0], {"magnitude": torch.ones(3)}))
    with pytest.raises(InputError, match=r"of shape \[101, 64\], but base .* merge it with PEFT"):
        open_finetuned(write_adapter(tmp_path / "vocabulary", pair[0], {"lm_head.weight": torch.ones(101, 64)}))
    with pytest.raises(InputError, match="holds 1 NaN or Inf"):
        damaged = {f"{Q0}.lora_A.weight": torch.ones(4, 64).index_fill(0, torch.tensor([0]), 1)}
        damaged[f"{Q0}.lora_A.weight"][0, 0] = torch.nan
        open_finetuned(write_adapter(tmp_path / "nan", pair[0], damaged))
    empty = write_adapter(tmp_path / "empty", pair[0])
    (empty / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="has neither adapter_model.safetensors nor adapter_model.bin"):
        open_finetuned(empty)
    with pytest.raises(InputError, match="does not name its base; give base_model"):
        open_finetuned(write_adapter(tmp_path / "nameless", pair[0], base_model_name_or_path=None))


def test_the_fingerprint_is_of_base_factors_and_scales(pair, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", pair[0])
    fingerprint = open_finetuned(adapter).fingerprint()
    assert open_finetuned(shutil.copytree(adapter, tmp_path / "copy")).fingerprint() == fingerprint
    assert open_finetuned(write_adapter(tmp_path / "alpha", pair[0], lora_alpha=9)).fingerprint() != fingerprint
    assert open_finetuned(adapter, open_checkpoint(pair[1])).fingerprint() != fingerprint


@pytest.mark.parametrize("key", ["(", "[a", "(a+)+b", "(.*)*x", "(a){1,}"])
def test_a_key_that_is_no_pattern_of_names_is_refused(pair, tmp_path, key):
    for pattern in ("rank_pattern", "alpha_pattern"):
        adapter = write_adapter(tmp_path / f"a_{pattern}", pair[0], **{pattern: {key: 2}})
        with pytest.raises(InputError, match=f"{pattern} has a key .* that is no pattern of names"):
            open_finetuned(adapter)


@pytest.mark.parametrize("value", [0, -1, "4", None, [4], 4.0, True])
def test_a_rank_that_is_none_is_refused(pair, tmp_path, value):
    with pytest.raises(InputError, match="has factors of shapes"):
        open_finetuned(write_adapter(tmp_path / "a", pair[0], r=value, rank_pattern={}))
