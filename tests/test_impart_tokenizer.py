"""The one loader of tokenizers."""

import json
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
    loads = [name for name, text in modules.items() if "AutoTokenizer" in text and not name.startswith("assets/")]
    assert loads == ["impart/tokenizer.py"]


def test_a_config_that_was_cut_off_is_named(tmp_path):
    folder = shutil.copytree(ROOT / "assets/tiny/base", tmp_path / "m")
    text = (folder / "tokenizer_config.json").read_text()
    for cut in (text[: len(text) // 2], "", "[]", "\xff"):
        (folder / "tokenizer_config.json").write_bytes(cut.encode("latin-1"))
        with pytest.raises(InputError, match="tokenizer_config.json (is not valid JSON|holds a JSON list)"):
            load_tokenizer(folder)


def test_one_that_loads_and_does_not_work_is_named(tmp_path):
    folder = shutil.copytree(ROOT / "assets/tiny/base", tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": "long"}))
    with pytest.raises(InputError, match="its tokenizer fails .TypeError"):
        load_tokenizer(folder)


def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("\n".join(f"the quick brown fox has {i} boats" for i in range(500)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        pad_id=-1,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    settings = '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
    (tmp_path / "tokenizer_config.json").write_text(settings)
    tokenizer = load_tokenizer(tmp_path)
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    text = "the quick fox has 7 boats"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text)
