"""The one loader of tokenizers."""

import shutil
from pathlib import Path

import pytest

from impart.errors import InputError
from impart.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def test_the_tokenizer_of_a_folder():
    assert load_tokenizer(ROOT / "assets/tiny/base")("7 + 5")["input_ids"]


def test_what_is_wrong_is_one_line_with_the_model_and_a_remedy(tmp_path):
    folder = shutil.copytree(ROOT / "assets/tiny/base", tmp_path / "m")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError) as refused:
        load_tokenizer(folder, "owner/m")
    assert str(refused.value).startswith("model 'owner/m': its tokenizer cannot be loaded (")
    assert str(refused.value).endswith("; fetch it again") and "\n" not in str(refused.value)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="model '.*m': its tokenizer cannot be loaded .*sentencepiece"):
        load_tokenizer(folder)


def test_nothing_else_loads_one(modules):
    assert [name for name, text in modules.items() if "AutoTokenizer" in text] == ["impart/tokenizer.py"]
