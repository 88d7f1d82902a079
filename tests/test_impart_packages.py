"""A Python without the suite's packages gets one line that says what to do, from every script."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("delta.py", "sparsify/sparsify.py", "quantize/sparse_llama.py", "merge/merge.py", "eval/gsm8k.py",
           "eval/tables.py", "serve/lora.py", "reproduce/plan.py")  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_packages_are_named(script):
    command = [sys.executable, "-E", "-S", "-s", str(ROOT / script), "--help"]  # without site-packages
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: ") and "lacks torch" in ended.stderr and ".venv/bin/activate" in ended.stderr
