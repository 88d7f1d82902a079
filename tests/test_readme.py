"""Every command of README.md: carried out as it stands there, with the tiny pair in the place of its letters."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "README.md").read_text()
TINY = "assets/tiny"

QUICKSTART = "test_reproduce_quickstart.py::test_quickstart_prints_a_table_and_reuses_what_is_there"
SERVED = "test_serve_vllm.py::test_answers_are_the_rebuilt_checkpoints_and_change_with_the_delta"

# Commands that another test runs, by their first words.
ELSEWHERE = {
    "bash reproduce/quickstart.sh": QUICKSTART,
    "bash tests/run.sh": "test_requirements_environment.py::test_no_script_installs_into_an_active_environment",
    "python delta.py --push_to_hub": "test_impart_card.py::test_a_delta_goes_to_the_hub_and_is_named_by_its_id",
    "python serve/serve.py": SERVED,
    "curl": SERVED,
    "python serve/swap.py": SERVED,
}

# What stands in README -> what stands in its place here; a model pair of 13B, its hub and its data are not at hand.
MODELS = {
    "B": f"{TINY}/base",
    "BASE": f"{TINY}/base",
    "F": f"{TINY}/math",
    "FINETUNED": f"{TINY}/math",
    "M": f"{TINY}/math",
    "MODEL": f"{TINY}/math",
    "C": f"{TINY}/code",
    "law=L:0.7": f"law={TINY}/chat:0.7",
    "gsm8k math": "loss_math",
    "configs/wizardmath_13b/pair.yaml": "configs/tiny/math/pair.yaml",
    "c4": f"{TINY}/data/math_validation.jsonl",
    "D": "runs/impart_cr16",
    "S": "runs/sparse",
    "S2": "runs/sparse2",
    "Q": "runs/quantized",
    "Q2": "runs/quantized2",
    "Q3": "runs/quantized3",
}
CALIBRATION = ["text_field=prompt", "nsamples=8", "seqlen=64"]
OTHERWISE: dict[str, list[str]] = {  # further words for a command here, by its first words
    "bash reproduce/table1.sh": ["--seeds", "0"],
    "python sparsify/sparsify_quant.py --config sparsify/config_example.yaml": [f"ftm_dir={TINY}/math", "layer_num=3"],
    "python quantize/sparse_llama.py F c4 --config quantize/13b_config_example.yaml": [
        f"baseModel={TINY}/base",
        *CALIBRATION,
    ],
    "python quantize/sparse_llama.py": CALIBRATION,
    "python merge/merge.py": ["--overwrite"],  # the page's OUT is there from --merge
    "bash eval/scripts/gsm8k.sh": ["--data", f"{TINY}/gsm8k.jsonl", "--limit", "4", "--backend", "hf"],
}
ITEM = '{"question": "What is 1 + 1?", "answer": "1 + 1 = 2\\n#### 2"}\n'


def commands() -> list[list[str]]:
    """The commands of the page's bash blocks as words, in its order."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def after(words: list[str], known: dict) -> object:
    """What `known` has for the command that begins with one of its keys."""
    return next((value for key, value in known.items() if words[: len(key.split())] == key.split()), None)


def here(word: str) -> str:
    """A word of the page, or the value of its key=value, with the tiny pair in the place of its letters."""
    key, is_set, value = word.partition("=")
    return MODELS.get(word) or (f"{key}={MODELS.get(value, value)}" if is_set else word)


def test_commands_that_run_elsewhere_are_of_the_page_and_their_tests_are_there():
    for start, test in ELSEWHERE.items():
        assert any(after(words, {start: True}) for words in commands()), start
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()
    for start in OTHERWISE:
        assert any(after(words, {start: True}) for words in commands()), start


@pytest.mark.slow
@pytest.mark.vllm
def test_the_commands_of_the_page_run(copy_of_the_suite):
    """A pair of one's own needs the full environment."""
    (copy_of_the_suite / TINY / "gsm8k.jsonl").write_text(4 * ITEM)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for words in commands():
        if after(words, ELSEWHERE):
            continue
        command = [*map(here, words), *(after(words, OTHERWISE) or [])]
        done = subprocess.run(command, cwd=copy_of_the_suite, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    deltas = ("svd.pt", "runs/quantized", "runs/quantized2", "runs/quantized3")
    made = (*(f"{name}/delta.json" for name in deltas), "OUT/model.safetensors", "accuracy.png", "accuracy.csv")
    assert [name for name in made if not (copy_of_the_suite / name).is_file()] == []


def test_the_python_of_the_page_runs(tiny_deltas):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    delta = tiny_deltas("impart", "math")
    found: dict = {}
    exec(code.replace("runs/impart_cr16", str(delta)), found)
    assert found["dW"].shape == found["delta"].shape("model.layers.0.self_attn.q_proj.weight")
