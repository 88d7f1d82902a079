"""Real vLLM: deltas over HTTP and swapped while it serves, against the checkpoints that are rebuilt from them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from manifests import replace_tensors
from safetensors.torch import load_file

import delta as delta_script
from eval.engine.engine import Engine
from eval.engine.settings import EngineSettings
from impart.errors import InputError
from serve.swap import post, swap
from sparsify import sparsify

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[1]


def prompts() -> list[str]:
    """40 of each skill: each model answers its own and babbles on the other's."""
    lines = [
        line
        for skill in ("code", "math")
        for line in (ROOT / "assets/tiny/data" / f"{skill}_test.jsonl").read_text().splitlines()[:40]
    ]
    return [json.loads(line)["prompt"] for line in lines]


def rebuilt_answers(delta: Path, folder: Path) -> list[str]:
    """Greedy answers of the checkpoint that the delta leads to, by transformers."""
    out = folder / f"dense_{delta.name}"
    delta_script.main(["--merge", "--delta_path", str(delta), "--save_path", str(out), "--threads", "1"])
    with Engine(out, EngineSettings(backend="hf", dtype="fp32")) as engine:
        return [completion.text for completion in engine.generate(prompts(), max_tokens=32)]


def served_answers(url: str) -> list[str]:
    body = {"model": "impart", "prompt": prompts(), "max_tokens": 32, "temperature": 0}
    choices = post(url, "/v1/completions", body)["choices"]
    return [choice["text"] for choice in sorted(choices, key=lambda choice: choice["index"])]


@pytest.fixture(scope="module")
def url(tiny_deltas, vllm_environment, tmp_path_factory) -> Iterator[str]:
    """The server of ImPart's delta of the code model."""
    pytest.importorskip("vllm")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    flags = ("--swappable", "--port", str(port), "--enforce-eager", "--max-model-len", "512", "--dtype", "float32")
    command = [sys.executable, "serve/serve.py", str(tiny_deltas("impart", "code")), *flags]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, cwd=ROOT, env=vllm_environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://localhost:{port}"
    try:
        while not healthy(address):
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health"):
            return True
    except OSError:
        return False


def test_answers_are_the_rebuilt_checkpoints_and_change_with_the_delta(url, tiny_deltas, tmp_path):
    code, math = tiny_deltas("impart", "code"), tiny_deltas("lowrank", "math")
    expected = {delta: rebuilt_answers(delta, tmp_path) for delta in (code, math)}
    assert sum(a != b for a, b in zip(expected[code], expected[math], strict=True)) > 60
    assert served_answers(url) == expected[code]
    for delta in (math, code, math, code):
        swap(str(delta), url)
        assert served_answers(url) == expected[delta]


def test_a_delta_that_does_not_fit_is_refused_and_the_old_one_goes_on(url, tiny_deltas, tmp_path):
    code = tiny_deltas("impart", "code")
    swap(str(code), url)
    before = served_answers(url)
    other = tmp_path / "other"
    sparsify.main(
        [
            *("--config", "configs/rows/lowrank.yaml", "base_model=assets/tiny/chat", "ftm_dir=assets/tiny/code"),
            *("compression_ratio=8", f"save_dir={other}", "--threads", "1"),
        ]
    )
    with pytest.raises(InputError, match="is a delta of 'assets/tiny/chat' .* give that base"):
        swap(str(other), url)
    with pytest.raises(InputError, match="is not a delta artifact"):
        swap(str(tmp_path / "nothing"), url)
    damaged = shutil.copytree(tiny_deltas("impart", "math"), tmp_path / "damaged")
    values = "model.layers.2.self_attn.q_proj.weight.s"
    endless = torch.full_like(load_file(damaged / "layer-00002.safetensors")[values], torch.inf)
    replace_tensors(damaged, "layer-00002.safetensors", **{values: endless})
    # Only decoding tells that, when half of the layers are loaded already.
    with pytest.raises(InputError, match="model.layers.2.self_attn.q_proj.weight decodes to NaN or Inf"):
        swap(str(damaged), url)
    assert served_answers(url) == before


def test_the_installed_plugin_needs_no_script(tiny_deltas, vllm_environment, tmp_path):
    """vLLM itself, with the entry point of pyproject.toml as an installation records it."""
    pytest.importorskip("vllm")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    information = tmp_path / "site" / "impart_suite-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (information / "entry_points.txt").write_text("".join(lines))
    ask = (
        "import json, sys\nfrom vllm import LLM, SamplingParams\n"
        "llm = LLM(sys.argv[1], load_format='impart', enforce_eager=True, max_model_len=512, dtype='float32')\n"
        "greedy = SamplingParams(temperature=0, max_tokens=32)\n"
        "outputs = llm.generate(json.loads(sys.argv[2]), greedy, use_tqdm=False)\n"
        "json.dump([output.outputs[0].text for output in outputs], open(sys.argv[3], 'w'))\n"
    )
    delta, answers = tiny_deltas("lowrank", "math"), tmp_path / "answers.json"
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path / "site"))), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, "-c", ask, str(delta / "model"), json.dumps(prompts()), str(answers)]
    done = subprocess.run(command, cwd=ROOT, env=vllm_environment | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(answers.read_text()) == rebuilt_answers(delta, tmp_path)


SWAPPED = """
import json, sys
from vllm import LLM, SamplingParams
prompts, out, *deltas = sys.argv[1:]
plugin = {"load_format": "impart", "worker_extension_cls": "serve.vllm_plugin.DeltaWorker"}
small = {"enforce_eager": True, "max_model_len": 64, "dtype": "float32", "skip_tokenizer_init": True}
llm = LLM(f"{deltas[0]}/model", **plugin, **small)
greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
asked, answers = [{"prompt_token_ids": ids} for ids in json.loads(prompts)], []
for delta in deltas:
    assert llm.collective_rpc("swap_delta", args=(delta,)) == [None] and llm.reset_prefix_cache()
    answers.append([list(one.outputs[0].token_ids) for one in llm.generate(asked, greedy, use_tqdm=False)])
json.dump(answers, open(out, "w"))
"""


def mixtures(folder: Path) -> tuple[Path, Path, Path]:
    """A base and two models with the experts of a layer in one tensor, 48 wide, which a CPU's kernel pads to 64."""
    config = transformers.Qwen3MoeConfig(
        **{"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32},
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_key_value_heads": 2},
    )
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    paths = folder / "base", folder / "one", folder / "two"
    for path, scale in zip(paths, (0.1, 0.02, 0.02), strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * scale)
        model.save_pretrained(path, save_original_format=False)
    return paths


def greedy_tokens(model: Path, asked: list[list[int]]) -> list[list[int]]:
    """Eight tokens for each prompt by transformers."""
    loaded, ids = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), torch.tensor(asked)
    for _ in range(8):
        ids = torch.cat([ids, loaded(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[:, -8:].tolist()


def test_a_fused_mixture_and_an_exact_delta_of_it_are_served_and_swapped(vllm_environment, tmp_path):
    pytest.importorskip("vllm")
    base, one, two = mixtures(tmp_path)
    impart, exact = tmp_path / "impart", tmp_path / "exact"
    keys = ("method=impart", "compression_ratio=4", "preprune_ratio=0.3", "C=1", f"save_dir={impart}")
    sparsify.main([f"base_model={base}", f"ftm_dir={one}", *keys])
    sparsify.main([f"base_model={base}", f"ftm_dir={two}", "method=lossless", f"save_dir={exact}"])
    delta_script.main(["--merge", "--delta_path", str(impart), "--save_path", str(tmp_path / "rebuilt")])
    asked = [[7 * number % 120, 6, 7, number] for number in range(3, 20)]
    expected = {impart: greedy_tokens(tmp_path / "rebuilt", asked), exact: greedy_tokens(two, asked)}
    assert sum(a == b for a, b in zip(*expected.values(), strict=True)) < 5
    order, answers = (impart, exact, impart, exact), tmp_path / "answers.json"
    command = [sys.executable, "-c", SWAPPED, json.dumps(asked), str(answers), *map(str, order)]
    environment = vllm_environment | {"PYTHONPATH": str(ROOT), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(answers.read_text()) == [expected[delta] for delta in order]
