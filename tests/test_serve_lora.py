"""Adapters: their product is dW, what they leave out is counted, and stock servers answer with them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from whole_runs import merge

from impart.artifact import open_delta
from serve import lora
from serve.lora import truncated
from sparsify import sparsify

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"


def exported(called, delta: Path, out: Path, *flags: object) -> tuple[dict, dict[str, torch.Tensor], str]:
    """The adapter's config and tensors, and what was printed."""
    ended = called(lora.main, delta, "--out", out, "--threads", 1, *flags)
    assert ended.code == 0, ended.err
    config = json.loads((out / "adapter_config.json").read_text())
    return config, load_file(out / "adapter_model.safetensors"), ended.out


@pytest.mark.parametrize("row", ["lowrank", "impart"])
def test_the_product_is_the_delta(called, tiny_deltas, tmp_path, row):
    delta = open_delta(tiny_deltas(row, "code"))
    config, tensors, printed = exported(called, delta.path, tmp_path / "adapter", "--dtype", "fp32")
    assert len(tensors) == 2 * len(delta.names()) == 42
    for name in delta.names():
        module = name.removesuffix(".weight")
        A, B = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        assert config["rank_pattern"][module] == config["alpha_pattern"][module] == len(A) == delta.rank(name)
        torch.testing.assert_close(B @ A, delta.reconstruct(name), rtol=1e-4, atol=1e-6)
    assert config["r"] == config["lora_alpha"] == max(config["rank_pattern"].values())
    assert config["target_modules"] == sorted(config["rank_pattern"]) and config["peft_type"] == "LORA"
    assert f"ranks {min(config['rank_pattern'].values())} to {config['r']}" in printed


def test_larger_ranks_become_their_best_approximation():
    generator = torch.Generator().manual_seed(0)
    U, V = torch.randn(30, 12, generator=generator), torch.randn(20, 12, generator=generator)
    U, s = U * (U > 0), torch.linspace(3, 1, 12)  # as masks leave it: not orthogonal
    (left, values, right), lost = truncated((U, s, V), 5)
    X = (U * s) @ V.T
    P, sigma, Q = torch.linalg.svd(X, full_matrices=False)
    torch.testing.assert_close((left * values) @ right.T, (P[:, :5] * sigma[:5]) @ Q[:5], rtol=1e-4, atol=1e-4)
    assert lost == pytest.approx(float(sigma[5:].square().sum()), rel=1e-5)
    assert truncated((U, s, V), 12) == ((U, s, V), 0.0)


def test_what_an_adapter_leaves_out_is_counted(called, tiny_deltas, tmp_path):
    path = tiny_deltas("impart", "code")
    _, tensors, printed = exported(called, path, tmp_path / "adapter", "--dtype", "fp32", "--max_rank", 16)
    assert {len(tensor) for name, tensor in tensors.items() if ".lora_A." in name} == {16}
    delta, base = open_delta(path), load_file(TINY / "base" / "model.safetensors")
    left = {name: (delta.extra(name).float() - base[name].float()).square().sum() for name in delta.extras()}
    carried = {
        name: tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        for name in delta.names()
        for module in [f"base_model.model.{name.removesuffix('.weight')}"]
    }
    lost = sum((delta.reconstruct(name) - carried[name]).square().sum() for name in delta.names())
    whole = sum(left.values()) + sum(delta.reconstruct(name).square().sum() for name in delta.names())
    shares = {
        "ranks above 16": lost,
        "norms": sum(value for name, value in left.items() if "norm" in name),
        "embeddings and head": left["model.embed_tokens.weight"] + left["lm_head.weight"],
        "in all": lost + sum(left.values()),
    }
    lines = {line[:21].strip(): line.split()[-2] for line in printed.splitlines()[2:-1]}
    assert list(lines) == list(shares)
    for what, squared in shares.items():
        assert float(lines[what]) == pytest.approx(100 * float(squared / whole) ** 0.5, abs=0.02), what
    assert printed.splitlines()[-1].startswith("vllm serve assets/tiny/base --enable-lora --max-lora-rank 16 ")


def test_deltas_and_ranks_that_no_adapter_has(called, tiny_deltas, tmp_path):
    delta, out = tiny_deltas("lowrank", "code"), tmp_path / "adapter"
    for rank in (0, 513):
        ended = called(lora.main, delta, "--out", out, "--max_rank", rank)
        assert ended.code == 2 and f"--max_rank {rank}: adapters have ranks from 1 to 512" in ended.err
    ended = called(lora.main, tiny_deltas("dare", "code"), "--out", out)
    assert ended.code == 2 and "as sparse_entries, which has no low-rank factors; serve it with" in ended.err
    assert not out.exists() and ended.err.count("\n") == 1
    exported(called, delta, out)
    ended = called(lora.main, delta, "--out", out)
    assert ended.code == 2 and "exists" in ended.err
    exported(called, delta, out, "--overwrite")


def test_max_rank_of_impart_bounds_what_an_adapter_needs(called, tiny_deltas, tmp_path):
    free, bounded = (open_delta(tiny_deltas("impart", "code", 8, *keys)) for keys in ((), ("max_rank=19",)))
    ranks = [[delta.rank(name) for name in delta.names()] for delta in (free, bounded)]
    assert max(ranks[0]) > 19 >= max(ranks[1]) > 1
    assert abs(bounded.sizes().values - free.sizes().values) < 0.02 * free.sizes().values  # the budget is the same
    keys = ("--config", "configs/rows/impart.yaml", "--config", "configs/tiny/code/pair.yaml", "compression_ratio=8")
    ended = called(sparsify.main, *keys, "max_rank=17", f"save_dir={tmp_path / 'delta'}")
    assert ended.code == 2 and "(192 x 512): 17 singular vectors have fewer values than" in ended.err, ended.err
    assert "take max_rank >= 18 or a higher ratio" in ended.err


IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # starts in half the time
ASK = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
base, adapter, prompts, out = sys.argv[1:]
llm = LLM(base, enable_lora=True, max_lora_rank=64, enforce_eager=True, max_model_len=512, dtype="float32")
greedy = SamplingParams(temperature=0, max_tokens=32)
found = llm.generate(json.loads(prompts), greedy, use_tqdm=False, lora_request=LoRARequest("delta", 1, adapter))
json.dump([one.outputs[0].text for one in found], open(out, "w"))
"""


def answers_by_hf(model, tokenizer, prompts: list[str]) -> list[str]:
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=32, do_sample=False)[0, ids["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(out, skip_special_tokens=True))
    return texts


@pytest.fixture(scope="module")
def code_prompts() -> list[str]:
    return [json.loads(line)["prompt"] for line in (TINY / "data/code_test.jsonl").read_text().splitlines()[:40]]


@pytest.mark.vllm
@pytest.mark.slow
def test_stock_vllm_answers_as_the_rebuilt_model(called, tiny_deltas, tmp_path, vllm_environment, code_prompts):
    pytest.importorskip("vllm")
    import transformers

    delta, adapter = tiny_deltas("lowrank", "code"), tmp_path / "adapter"
    exported(called, delta, adapter)
    merge(called, delta, tmp_path / "dense")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    expected = answers_by_hf(model, transformers.AutoTokenizer.from_pretrained(tmp_path / "dense"), code_prompts)
    command = [sys.executable, "-c", ASK, TINY / "base", adapter, json.dumps(code_prompts), tmp_path / "answers.json"]
    done = subprocess.run(command, env=vllm_environment | IN_PROCESS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [text.strip() for text in json.loads((tmp_path / "answers.json").read_text())]
    assert found == [text.strip() for text in expected]


def test_peft_loads_it(called, tiny_deltas, tmp_path):
    peft = pytest.importorskip("peft")
    import transformers

    delta = open_delta(tiny_deltas("lowrank", "code"))
    exported(called, delta.path, tmp_path / "adapter", "--dtype", "fp32")
    base = transformers.AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    after = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    for name in delta.names():
        torch.testing.assert_close(after[name] - before[name], delta.reconstruct(name), rtol=1e-4, atol=1e-5)
