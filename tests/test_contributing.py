"""What CONTRIBUTING.md says is carried out, as it stands there, in a copy of the suite."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guide import ROOT, read_guide

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def write_files(suite: Path) -> None:
    for name, text in read_guide().files.items():
        assert not (suite / name).exists(), f"{name} exists; the page's example needs a name of its own"
        (suite / name).write_text(text)


def ran(suite: Path, *command: object) -> str:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], cwd=suite, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_row_of_the_first_table_has_a_section_with_what_it_counts():
    rows = re.findall(r"^\| \[[^]]+\]\(#([\w-]+)\)", PAGE, re.MULTILINE)
    sections = [title.lower().replace(" ", "-") for title in re.findall(r"^## (Add .+)$", PAGE, re.MULTILINE)]
    assert rows == sections
    folders = {str(Path(name).parent) for name in read_guide().files}
    assert folders == {
        *("sparsify/methods", "configs/rows", "reproduce", "eval", "eval/scripts"),
        *("merge/methods", "quantize/methods", "impart/encodings"),
    }


@pytest.mark.slow
def test_the_commands_of_the_page_run(copy_of_the_suite):
    suite = copy_of_the_suite
    write_files(suite)
    printed = "".join(ran(suite, "bash", "-euo", "pipefail", "-c", command) for command in read_guide().commands)
    expected = (
        "method halves",
        "math (halves, sparsity 0.5)",
        "## My own table",
        "| Halves",
        "DARE, not rescaled",
        "(n = 2)  results/halves/plural/0.json",
        "plural, % (95 % interval)",
        "absmax_0.5 of code, math",
        "quantized delta, method rowsigns",
    )
    assert [text for text in expected if text not in printed] == [], printed
    assert (suite / "out" / "rebuilt" / "model.safetensors").is_file()


def test_the_files_of_the_page_pass_lint(copy_of_the_suite):
    pytest.importorskip("ruff")
    write_files(copy_of_the_suite)
    files = [name for name in read_guide().files if name.endswith(".py")]
    ran(copy_of_the_suite, sys.executable, "-m", "ruff", "check", *files)
    ran(copy_of_the_suite, sys.executable, "-m", "ruff", "format", "--check", *files)


def test_the_architecture_of_the_page_is_compressed_whole(copy_of_the_suite, tmp_path):
    """Real RecurrentGemmas of transformers: the recurrences join the compressed set by the page's change."""
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    config = RecurrentGemmaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        lru_width=32,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = RecurrentGemmaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.001 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "finetuned")

    def matrices() -> set[str]:
        names = f"linear_names(open_checkpoint({str(tmp_path / 'base')!r}))"
        asked = (
            "from impart.architecture import linear_names, weight_type\n"
            "from impart.checkpoint import open_checkpoint\n"
            f"print(*sorted({{weight_type(name) for name in {names}}}))"
        )
        return set(ran(copy_of_the_suite, sys.executable, "-c", asked).split())

    known = {f"mlp_block.{part}_proj" for part in ("gate", "up", "down")}
    assert matrices() == known
    file = copy_of_the_suite / "impart" / "architecture.py"
    old, new = read_guide().change
    assert file.read_text().count(old) == 1
    file.write_text(file.read_text().replace(old, new))
    assert matrices() == known | {f"temporal_block.linear_{part}" for part in ("x", "y", "out")}
    keys = (f"base_model={tmp_path / 'base'}", f"ftm_dir={tmp_path / 'finetuned'}", f"save_dir={tmp_path / 'dare'}")
    ran(copy_of_the_suite, sys.executable, "sparsify/sparsify.py", *keys, "method=dare", "compression_ratio=2")
    manifest = json.loads((tmp_path / "dare" / "delta.json").read_text())
    assert len(manifest["matrices"]) == 2 * 6
