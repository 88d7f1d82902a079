"""The engine: the hf backend against a loop that recomputes everything, vLLM against hf, and what cannot run."""

import builtins
import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.engine.engine import Engine, chosen_backend, chosen_dtype
from eval.engine.memory import GIB, cache_bytes, refuse_for_hf, refuse_for_vllm, weight_bytes
from eval.engine.settings import EngineSettings, longest_sequence
from eval.engine.vllm_model import set_environment, tensor_parallel
from impart.errors import InputError

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny"
HF = EngineSettings(backend="hf", dtype="fp32")


def prompts(task: str, count: int) -> list[str]:
    lines = (TINY / "data" / f"{task}_test.jsonl").read_text().splitlines()[:count]
    return [json.loads(line)["prompt"] for line in lines]


@pytest.fixture(scope="module")
def engine():
    with Engine(TINY / "code", HF) as opened:
        yield opened


def naive(engine: Engine, prompt: str, max_tokens: int) -> tuple[list[int], str]:
    """Greedy decoding without cache, batch or padding: (token ids, text) up to the end token."""
    model, tokenizer = engine._loaded.model, engine.tokenizer
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    while len(ids) < start + max_tokens and ids[-1] != tokenizer.eos_token_id:
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:], tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_a_model_that_lacks_a_weight_is_not_given_a_random_one(tmp_path):
    folder = Path(shutil.copytree(TINY / "code", tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with Engine(folder, HF) as opened:
        with pytest.raises(InputError, match="lacks the weights of 1 parameters of .*layers.1.mlp.up_proj"):
            opened.generate(["x"], max_tokens=1)


def test_batched_greedy_equals_a_loop_without_cache_and_padding(engine):
    asked = prompts("code", 10) + prompts("math", 2)
    completions = engine.generate(asked, max_tokens=24)
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for prompt, completion in zip(asked, completions, strict=True):
        ids, text = naive(engine, prompt, 24)
        assert (completion.text, completion.tokens) == (text, len(ids))
        assert completion.finish_reason == ("stop" if ids[-1] == engine.tokenizer.eos_token_id else "length")


def test_the_batch_size_changes_nothing(engine):
    asked = prompts("code", 12)
    with Engine(TINY / "code", EngineSettings(backend="hf", dtype="fp32", batch_size=1)) as single:
        assert single.generate(asked, max_tokens=40) == engine.generate(asked, max_tokens=40)


def test_a_stop_string_ends_the_answer_and_is_cut_off(engine):
    asked = prompts("code", 10)
    whole = engine.generate(asked, max_tokens=40)
    cut = engine.generate(asked, max_tokens=40, stop=("return", "nothing"))
    for before, after in zip(whole, cut, strict=True):
        assert after.text == before.text.split("return")[0] and after.finish_reason == "stop"
        assert after.tokens < before.tokens


def test_a_stop_string_across_tokens_and_in_the_order_given(engine):
    asked = prompts("code", 1)
    text = engine.generate(asked, max_tokens=40)[0].text
    inside = text[3:9]  # begins and ends wherever, not where tokens do
    assert engine.generate(asked, max_tokens=40, stop=(inside,))[0].text == text[: text.index(inside)]
    # Both are complete at the same token; the first in the list decides where the text is cut.
    longer, shorter = text[:9], text[3:9]
    assert engine.generate(asked, max_tokens=40, stop=(shorter, longer))[0].text == text[:3]
    assert engine.generate(asked, max_tokens=40, stop=(longer, shorter))[0].text == ""


@pytest.mark.parametrize("special_tokens", [True, False])
def test_the_tokenizers_own_tokens_are_added_or_not(engine, monkeypatch, special_tokens):
    seen = []
    list(engine.stream(prompts("code", 1), max_tokens=1))  # loads
    monkeypatch.setattr(engine._loaded, "stream", lambda ids, **_: seen.extend(ids) or iter(()))
    engine.stream(prompts("code", 1), max_tokens=1, special_tokens=special_tokens)
    assert [ids[0] == engine.tokenizer.bos_token_id for ids in seen] == [special_tokens]


def test_stream_gives_every_position_once(engine):
    seen = [position for position, _ in engine.stream(prompts("code", 7), max_tokens=8)]
    assert sorted(seen) == list(range(7))
    assert engine.generate([], max_tokens=8) == []


def test_an_answer_ends_where_the_positions_end():
    prompt = prompts("math", 1)[0]
    with Engine(TINY / "code", HF) as whole:
        tokens = len(whole.tokenizer(prompt)["input_ids"])
        expected = whole.generate([prompt], max_tokens=8)[0].text
    with Engine(TINY / "code", EngineSettings(backend="hf", dtype="fp32", max_model_len=tokens + 8)) as short:
        # A longer prompt in the same batch must not change what room this one has.
        longer = "x" + prompt
        completions = short.generate([prompt, longer], max_tokens=100)
    assert completions[0] == type(completions[0])(expected, 8, "length")
    assert completions[1].tokens <= 8


def test_penalties_that_a_model_ships_with_do_not_apply(tmp_path, engine):
    model = shutil.copytree(TINY / "code", tmp_path / "model")
    shipped = {
        "eos_token_id": 1,
        "repetition_penalty": 3.0,
        "no_repeat_ngram_size": 2,
        "do_sample": True,
        "temperature": 5.0,
        "min_new_tokens": 30,
    }
    (model / "generation_config.json").write_text(json.dumps(shipped))
    asked = prompts("code", 8)
    with Engine(model, HF) as other:
        assert other.generate(asked, max_tokens=40) == engine.generate(asked, max_tokens=40)


def test_end_tokens_of_the_generation_config_count_too(tmp_path, engine):
    """As Llama-3-Instruct, which ends at a token that is not its tokenizer's end of sequence."""
    prompt = prompts("code", 1)[0]
    ids, _ = naive(engine, prompt, 40)
    model = shutil.copytree(TINY / "code", tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids[3], 1]}))
    with Engine(model, HF) as other:
        completion = other.generate([prompt], max_tokens=40)[0]
    first = ids.index(ids[3])
    assert completion.tokens == first + 1 and completion.finish_reason == "stop"
    assert completion.text == engine.tokenizer.decode(ids[:first], skip_special_tokens=True)


def test_a_prompt_longer_than_the_positions_is_refused_before_loading():
    with Engine(TINY / "code", HF) as short:
        with pytest.raises(InputError, match=r"the prompt of item 1 has \d+ tokens, but prompt and answer together"):
            short.generate(["fine", "7 " * 4000], max_tokens=8)
        assert short._loaded is None


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(InputError, match="config cannot be loaded"):
        Engine(tmp_path / "nothing", HF)
    without = shutil.copytree(TINY / "base", tmp_path / "without")
    (without / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        Engine(without, HF)
    (without / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        Engine(without, HF)
    unknown = shutil.copytree(TINY / "base", tmp_path / "unknown")
    (unknown / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(InputError, match="config cannot be loaded"):
        Engine(unknown, HF)


def config(**changes) -> SimpleNamespace:
    text = SimpleNamespace(
        **{
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "num_hidden_layers": 40,
            "hidden_size": 5120,
            "max_position_embeddings": 4096,
            **changes,
        }
    )
    return SimpleNamespace(get_text_config=lambda: text)


def test_longest_sequence():
    assert longest_sequence(config(), None) == 4096
    assert longest_sequence(config(max_position_embeddings=131072), None) == 8192  # a cap that --max_model_len lifts
    assert longest_sequence(config(max_position_embeddings=131072), 100_000) == 100_000
    assert longest_sequence(config(), 2048) == 2048
    with pytest.raises(InputError, match="--max_model_len 4097: the model has only 4096 positions"):
        longest_sequence(config(), 4097)


def test_tensor_parallel_takes_all_gpus_that_the_heads_divide_over():
    assert [tensor_parallel(config(), None, gpus) for gpus in (0, 1, 2, 4, 6, 7, 8)] == [1, 1, 2, 4, 5, 5, 8]
    assert tensor_parallel(config(), 4, 8) == 4
    with pytest.raises(InputError, match="--tensor_parallel 4: there are 2 GPUs"):
        tensor_parallel(config(), 4, 2)
    with pytest.raises(InputError, match="--tensor_parallel 2: there is no GPU"):
        tensor_parallel(config(), 2, 0)
    with pytest.raises(InputError, match="--tensor_parallel 3 does not divide the model's 40 attention heads"):
        tensor_parallel(config(), 3, 4)


def test_bytes_of_weights_and_cache():
    assert weight_bytes(str(TINY / "base"), "auto") == weight_bytes(str(TINY / "base"), "bf16")
    assert weight_bytes(str(TINY / "base"), "fp32") == 2 * weight_bytes(str(TINY / "base"), "fp16")
    # Llama-2-13B: 2 * 40 layers * 5120 * 2 bytes = 800 KiB a token.
    assert cache_bytes(config(), 4096, "fp16") == 4096 * 800 * 1024
    assert cache_bytes(config(num_key_value_heads=8), 4096, "fp32") == cache_bytes(config(), 4096, "fp16") * 2 // 5


def test_models_without_attention_heads_or_with_several_numbers_of_them():
    for none in (None, 0):
        bare = config(num_attention_heads=none)
        assert cache_bytes(bare, 4096, "fp16") == 0
        assert tensor_parallel(bare, None, 8) == 1 and tensor_parallel(bare, 2, 8) == 2
    mixed = config(num_attention_heads=[20, 40], num_key_value_heads=[10, 40])
    assert cache_bytes(mixed, 4096, "fp16") == 4096 * 800 * 1024 and tensor_parallel(mixed, None, 8) == 8


def test_gpus_that_are_too_small_are_told_before_loading():
    weights, cache = 26 * GIB, 3 * GIB
    refuse_for_vllm(weights, cache, [(80 * GIB, 80 * GIB)], 1, 0.9, 4096)
    refuse_for_vllm(weights, cache, [(24 * GIB, 24 * GIB)] * 2, 2, 0.9, 4096)
    with pytest.raises(
        InputError,
        match=r"weights \(26.0 GiB\) .* over 1 GPU\(s\) need 29.0 GiB of each, but --gpu_memory "
        r"0.9 allows 21.6 of 24.0 GiB on GPU 0; raise --tensor_parallel",
    ):
        refuse_for_vllm(weights, cache, [(24 * GIB, 24 * GIB)] * 2, 1, 0.9, 4096)
    with pytest.raises(
        InputError,
        match=r"--gpu_memory 0.9 asks for 72.0 GiB of GPU 1, but 40.0 of 80.0 GiB are free "
        r"\(14.5 GiB are needed at least\); free the GPU or lower --gpu_memory to 0.5",
    ):
        refuse_for_vllm(weights, cache, [(80 * GIB, 80 * GIB), (40 * GIB, 80 * GIB)], 2, 0.9, 4096)
    refuse_for_hf(weights, cache, 29 * GIB, 4096)
    with pytest.raises(InputError, match="weights need 26.0 GiB .* 28.0 GiB of memory are free; take a 16-bit DTYPE"):
        refuse_for_hf(weights, cache, 28 * GIB, 4096)


def test_auto_takes_hf_where_vllm_is_missing(monkeypatch, caplog):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else found(name))
    with caplog.at_level("INFO"):
        assert chosen_backend("auto") == "hf"
    assert "backend: hf (the package vllm is not installed)" in caplog.text
    with pytest.raises(InputError, match="--backend vllm: the package vllm is not installed; take --backend hf"):
        chosen_backend("vllm")


def test_vllm_that_cannot_be_imported(monkeypatch):
    real = builtins.__import__

    def broken(name, *rest, **keywords):
        if name.startswith("vllm"):
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return real(name, *rest, **keywords)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(InputError, match="--backend vllm: the package vllm cannot be imported .libcudart.so.13"):
        chosen_backend("vllm")


def test_auto_dtype_is_the_checkpoint_s_own_except_on_a_cpu_without_vllm():
    assert chosen_dtype("vllm", "bf16") == "bf16"
    assert chosen_dtype("hf", "bf16") == ("bf16" if torch.cuda.is_available() else "fp32")


def test_the_user_s_environment_wins(monkeypatch):
    for name in (
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_CPU_OMP_THREADS_BIND",
        "VLLM_NO_USAGE_STATS",
    ):
        monkeypatch.setenv(name, "user")
    set_environment(0, 10 * GIB)
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "user"
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    set_environment(1, 10 * GIB)
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ
    set_environment(0, 10 * GIB)
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "40"
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")


@pytest.mark.vllm
def test_vllm_and_hf_give_the_same_greedy_answers(script, tmp_path):
    """Fine-tuned and base model as a user runs them: answers end by themselves, at a stop string and at the limit."""
    pytest.importorskip("vllm")
    samples = {}
    for backend in ("hf", "vllm"):
        ended = script(
            "eval/tiny.py",
            TINY / "code",
            TINY / "base",
            "fp32",
            "--tasks",
            "code,math",
            "--limit",
            40,
            "--max_model_len",
            64,
            "--backend",
            backend,
            "--results_dir",
            tmp_path / backend,
        )
        assert ended.code == 0, ended.err
        for model in ("code", "base"):
            for task in ("code", "math"):
                text = (tmp_path / backend / model / f"tiny_{task}" / "0.jsonl").read_text()
                samples[backend, model, task] = [
                    {key: sample[key] for key in ("completion", "tokens", "finish_reason", "correct")}
                    for sample in map(json.loads, text.splitlines())
                ]
    for model in ("code", "base"):
        for task in ("code", "math"):
            assert len(samples["hf", model, task]) == 40
            assert samples["hf", model, task] == samples["vllm", model, task]
    assert len({sample["finish_reason"] for key in samples for sample in samples[key]}) == 2
